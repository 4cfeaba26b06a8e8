"""``model.safetensors``: the trained weights with what is needed to use them, and nothing else."""

from __future__ import annotations

import os
import reprlib
import shlex
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minires import models
from minires.data import Normalize
from minires.errors import CheckpointError, ConfigError, MiniresError
from minires.files import check_name
from minires.nn import init
from minires.nn.module import Module
from minires.train import checkpoint, checks, continuing, int8, unfinished
from minires.train.fields import exactly, record, shortened
from minires.train.state import TRAINED

ROOM = 10_000_000  # numbers
NAME = continuing.MODEL
KIND = record(kind=exactly("model"), **TRAINED)


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained model and how to use it; ``size`` is the (height, width) of the pictures it learnt from."""

    model: Module = field(repr=False)
    name: str
    variant: dict[str, Any]
    classes: tuple[str, ...]
    normalize: Normalize
    size: tuple[int, int]
    dataset: str


def save_model(path: str | os.PathLike[str], trained: Trained, *, small: bool = False) -> None:
    """Write a trained model to a safetensors file, whole or not at all.

    A ``small`` file has the kernels as whole numbers of 8 bits: see :mod:`minires.train.int8`.

    Raises: MiniresError that names the file and the cause.
    """
    arrays = trained.model.state_dict()
    info = {"kind": "model", **described(trained)}
    checkpoint.write(path, int8.packed(arrays) if small else arrays, info)


def described(trained: Trained) -> dict[str, Any]:
    """What stands in a file beside the weights, as plain data."""
    return {
        "model": trained.name,
        "variant": trained.variant,
        "classes": list(trained.classes),
        "normalize": {"mean": list(trained.normalize.mean), "std": list(trained.normalize.std)},
        "size": list(trained.size),
        "dataset": trained.dataset,
    }


def load_model(
    path: str | os.PathLike[str], *, model: Module | None = None, finished: bool = False
) -> Trained:
    """Read a trained model from its file or its run folder, ready for inference.

    Where the run is not finished, its newest good checkpoint is taken, with the averaged weights if the run
    keeps some, and a warning says of which step. ``model`` takes the weights where the file's model is not
    one that ``minires.models.build`` knows. ``finished`` refuses a run that is not.

    Raises: CheckpointError if the file is missing, damaged, not a trained model, or of another model;
    ConfigError for what is no path.
    """
    if not isinstance(path, str | os.PathLike):
        raise ConfigError(f"a trained model is read from the path of its file or run folder, not {path!r}")
    check_name(path, CheckpointError)
    path = Path(path)
    found = None
    if path.is_dir():
        if not (path / NAME).exists() and (found := unfinished.newest(path)) is None:
            # It may have come to its end while we looked.
            if not (path / NAME).exists() and (words := continuing.not_yet(path)):
                raise CheckpointError(words)
        if found is not None and finished:
            raise CheckpointError(
                f"the run in {path} is not finished, and has no model yet; go on with it: "
                f"{continuing.way_on(path)}"
            )
        folder, path = path, path / NAME if found is None else found.path
    if found is not None:
        arrays, info = found.arrays, found.info
    else:
        arrays, info = _read(path)
    trained = _made(path, arrays, info, model)
    if found is not None:
        said = f"the run in {folder} is not finished: this is its newest checkpoint, of {found.place}"
        warnings.warn(said, stacklevel=2)
    for doubt in checks.not_finite(f"in {path}", arrays):
        warnings.warn(doubt, stacklevel=2)
    return trained


def _read(path: Path) -> tuple[checkpoint.Arrays, dict[str, Any]]:
    """What a model file holds. Raises: CheckpointError if it is none."""
    try:
        arrays, info = checkpoint.read(path)
    except checkpoint.Foreign as error:
        way = f"minires import-weights {shlex.quote(str(path))} --model NAME"
        raise CheckpointError(f"{error}. A model is made of weights that others trained by: {way}") from error
    if info.get("kind") == "checkpoint":
        raise CheckpointError(
            f"{path} is a checkpoint of a run, not a trained model; give the run, {path.parent}, of which "
            f"the newest is taken, or go on with it: {continuing.way_on(path.parent)}, its end writes {NAME}"
        )
    return arrays, info


def _made(path: Path, arrays: checkpoint.Arrays, info: Mapping[str, Any], model: Module | None) -> Trained:
    """The model that a file says, with its weights. Raises: CheckpointError if they do not fit."""
    checkpoint.check(path, info, KIND)
    if model is None and info["model"] not in models.MODELS:
        raise CheckpointError(
            f"{path} holds a {info['model']}, which is no model known here: register it first (see "
            "minires.models.register; on the command line: minires --import MODULE ...), or give its model="
        )
    try:
        arrays = int8.unpacked(arrays)
        if model is None:
            model = _built(info, sum(array.size for array in arrays.values()))
        model.load_state_dict(arrays)
    except MiniresError as error:
        raise CheckpointError(f"{path} holds a {info['model']}: {shortened(error)}") from error
    return Trained(
        model.eval(), info["model"], info["variant"], tuple(info["classes"]),
        Normalize(**info["normalize"]), (info["size"][0], info["size"][1]), info["dataset"],
    )  # fmt: skip


def _built(info: Mapping[str, Any], numbers: int) -> Module:
    """The model that a file names, which says itself how large that is: not many more numbers are made for it
    than the file has. Raises: MiniresError if its options do not fit."""
    try:
        with init.at_most(2 * numbers + ROOM):
            return models.build(info["model"], classes=len(info["classes"]), **info["variant"])
    except MiniresError:
        raise
    except Exception as error:  # an option that the file says may be of any kind, and the model a user's own
        raise CheckpointError(f"it cannot be built with {reprlib.repr(info['variant'])}: {error}") from error

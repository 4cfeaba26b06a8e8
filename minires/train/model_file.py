"""``model.safetensors``: the trained weights with what is needed to use them, and nothing else."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minires import models
from minires.data import Normalize
from minires.errors import CheckpointError, ConfigError
from minires.nn.module import Module
from minires.train import checkpoint

NAME = "model.safetensors"


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


def save_model(path: str | os.PathLike[str], trained: Trained) -> None:
    """Write a trained model to a safetensors file, whole or not at all.

    Raises: MiniresError that names the file and the cause.
    """
    info = {
        "kind": "model",
        "model": trained.name,
        "variant": trained.variant,
        "classes": list(trained.classes),
        "normalize": {"mean": list(trained.normalize.mean), "std": list(trained.normalize.std)},
        "size": list(trained.size),
        "dataset": trained.dataset,
    }
    checkpoint.write(path, trained.model.state_dict(), info)


def load_model(path: str | os.PathLike[str], *, model: Module | None = None) -> Trained:
    """Read a trained model from its file or its run folder, ready for inference.

    ``model`` takes the weights where the file's model is not one that ``minires.models.build`` knows.

    Raises: CheckpointError if the file is missing, damaged, not a trained model, or of another model;
    ConfigError for what is no path.
    """
    if not isinstance(path, str | os.PathLike):
        raise ConfigError(f"a trained model is read from the path of its file or run folder, not {path!r}")
    path = Path(path)
    path = path / NAME if path.is_dir() else path
    arrays, info = checkpoint.read(path)
    if info.get("kind") != "model":
        raise CheckpointError(
            f"{path} is a checkpoint of a run, not a trained model; continue the run with "
            f"minires train --resume --out {shlex.quote(str(path.parent))}, its end writes {NAME}"
        )
    if model is None and info["model"] not in models.MODELS:
        raise CheckpointError(
            f"{path} holds a {info['model']}, which is no model known here: register it first (see "
            "minires.models.register; on the command line: minires --import MODULE ...), or give its model="
        )
    if model is None:
        model = models.build(info["model"], classes=len(info["classes"]), **info["variant"])
    try:
        model.load_state_dict(arrays)
    except CheckpointError as error:
        raise CheckpointError(f"{path} holds a {info['model']}: {error}") from error
    return Trained(
        model.eval(), info["model"], info["variant"], tuple(info["classes"]),
        Normalize(**info["normalize"]), (info["size"][0], info["size"][1]), info["dataset"],
    )  # fmt: skip

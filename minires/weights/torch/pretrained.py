"""Weights that others trained with PyTorch, in our models.

A weight file holds names and numbers. Names are translated by the tables of
:mod:`minires.weights.name_tables`, and numbers get our layout, channels last:

    convolution             (O, C, KH, KW)  -> (KH, KW, C, O)
    dense                   (O, C)          -> (C, O)
    dense behind a flatten  (O, C * H * W)  -> (H * W * C, O)
    1x1 convolution where we have a dense layer, or KH x KW where we have a flatten and a dense layer
                            (O, C, KH, KW)  -> (KH * KW * C, O)

What no number shows is an option of the model: which convolution of a bottleneck has the stride, where
shortcuts of option A put their zeros. :func:`~minires.weights.sources.variant_for` says how a source has it.
All these sources have batch norm with eps 1e-5, as our models have.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from minires import models
from minires.data import Normalize, cifar
from minires.errors import CheckpointError, ConfigError
from minires.nn.layers import BatchNorm2d, Conv2d, Flatten, Linear
from minires.nn.module import Module
from minires.train import Trained, save_model
from minires.weights.classes import COMMAS, distinct, said_twice, several
from minires.weights.name_tables import modern, places_of
from minires.weights.report import Report
from minires.weights.sources import SOURCES, known_as, look_alike, of_a_family, recognise, variant_for
from minires.weights.torch import beside, files


def load(
    model: Module,
    path: str | os.PathLike[str],
    *,
    source: str | None = None,
    head: bool = True,
    container: str | None = None,
) -> Report:
    """Set the weights of ``model`` from a file of PyTorch's: see :func:`minires.weights.load_pretrained`."""
    weights = _read(path, source, container)
    if head and weights.beside.refused:
        raise CheckpointError(weights.beside.refused)
    _check_stride(model, weights)
    return _load(model, weights, head=head)


def import_model(
    src: str | os.PathLike[str],
    name: str,
    out: str | os.PathLike[str],
    *,
    source: str | None = None,
    classes: Sequence[str] | None = None,
    variant: Mapping[str, Any] | None = None,
    container: str | None = None,
) -> Report:
    """Write the model ``name`` with the weights of a file of PyTorch's as our own ``model.safetensors``.

    The model is built with the options of :func:`~minires.weights.sources.variant_for`, then those that a
    config.json that belongs to the file states; those in ``variant`` go before both. Without ``classes`` the
    names are those that the file, or the config.json, has; else the ten of CIFAR-10 for as many outputs of a
    network for pictures of 32x32; else "0", "1", ... Pictures are to be scaled as the config.json says, else
    as the source does it.

    Raises: as :func:`minires.weights.import_weights`.
    """
    entry = models.entry(name)
    weights = _read(src, source, container, name)
    said = _check_named(weights, name)
    if weights.beside.refused:
        raise CheckpointError(weights.beside.refused)
    if weights.beside.unlike:
        raise CheckpointError(f"{weights.beside.unlike}; correct the wrong one, or move it elsewhere")
    options = {**variant_for(weights.source, name), **weights.beside.options, **(variant or {})}
    stated = weights.beside.options
    if against := [option for option, value in stated.items() if options[option] != value]:
        option = against[0]
        raise ConfigError(
            f"the config.json beside {weights.path} states {option}={stated[option]!r}, "
            f"not {options[option]!r}"
        )
    small = entry.size == 32
    # All weights come from the file, so none need to be drawn.
    build = {"initializer": "zeros", **options}
    outputs = _outputs(weights, models.build(name, classes=2, **build))
    several(outputs, weights.path)
    stated_outputs = weights.beside.outputs
    if stated_outputs and outputs and stated_outputs != outputs:
        raise CheckpointError(
            f"the config.json beside {weights.path} states num_classes={stated_outputs}, and the last layer "
            f"has {outputs} outputs"
        )
    classes, notes = _classes(weights, classes, outputs or entry.classes, cifar.CLASSES if small else ())
    side = options.get("size", entry.size)
    if stated_side := weights.beside.side:
        size_from, wanted = stated_side
        if wanted != side and "size" in entry.options:
            raise ConfigError(
                f"{size_from} states pictures of {wanted}x{wanted}, and {name} is for {side}x{side}: "
                f"give --variant size={wanted}"
            )
        side = wanted
        notes.append(f"pictures of {side}x{side}, as {size_from} states")
    model = models.build(name, classes=len(classes), **build)
    report = _load(model, weights, head=True)
    normalize = SOURCES[weights.source].small_pictures if small else Normalize.imagenet()
    trained = Trained(
        model, name, options, classes, weights.beside.normalize or normalize,
        (side, side), "cifar10" if small else "imagenet",
    )  # fmt: skip
    save_model(out, trained)
    return replace(report, notes=(*report.notes, *said, *notes), classes=classes)


# -------------------------------------------------------------------------------------------- in detail


@dataclass(frozen=True)
class _Weights:
    path: str
    source: str
    arrays: files.Arrays
    said: Mapping[str, Any]
    beside: beside.Beside
    notes: tuple[str, ...]


def _read(
    path: str | os.PathLike[str], source: str | None, container: str | None, model: str | None = None
) -> _Weights:
    if source is not None:
        SOURCES.find(source)
    found = files.find(path, container=container)
    arrays = {modern(name): array for name, array in found.arrays.items()}
    source = source or recognise(arrays)
    if source is None:
        shown = ", ".join(list(arrays)[:3])
        raise CheckpointError(
            f"{os.fspath(path)}: names such as {shown} are of no source known here ({', '.join(SOURCES)})"
        )
    about = beside.read(found.path, arrays, model)
    return _Weights(os.fspath(path), source, arrays, found.said, about, (*found.notes, *about.notes))


def _check_named(weights: _Weights, name: str) -> list[str]:
    """Refuse a file that says it is another network: names and shapes of two may be the same. Sentences on
    what it says and cannot be compared.
    """
    notes = []
    named = [(f"{weights.path}: {where}", what) for where, what in weights.said.get("named", ())]
    if theirs := look_alike(Path(weights.path).name):
        named.append((f"the name of {weights.path}", theirs))
    for where, theirs in (*weights.beside.named, *named):
        ours = known_as(theirs)
        if ours is None:
            raise CheckpointError(f"{where} says {theirs!r}, which is no network here, and not our {name}")
        if ours and ours != name:
            raise CheckpointError(f"{where} says {theirs!r}, which is our {ours}: give --model {ours}")
        if not ours and of_a_family(theirs):
            notes.append(f"{where} says {theirs!r}: taken for a name of your own for {name}")
    return notes


def _check_stride(model: Module, weights: _Weights) -> None:
    """Refuse a model that has the stride elsewhere than the config.json beside the file says."""
    wanted = weights.beside.options.get("stride_on")
    first = [part for path, part in model.named_modules() if path.endswith("3a_branch2a")]
    if wanted and first and isinstance(first[0], Conv2d):
        here = "1x1" if first[0].stride in (2, (2, 2)) else "3x3"
        if here != wanted:
            raise CheckpointError(
                f"the config.json beside {weights.path} states stride_on={wanted!r}, and the model has "
                f"{here!r}"
            )


def _outputs(weights: _Weights, model: Module) -> int | None:
    """How many classes the last dense layer of the file has, None if it has none."""
    there, last = places_of(weights.source, model), _last_dense(model)
    weight = next(name for name in last if name.endswith(".weight"))
    array = weights.arrays.get(there[weight][0])
    return None if array is None or not array.ndim else len(array)


def _classes(
    weights: _Weights, given: Sequence[str] | None, outputs: int, usual: Sequence[str]
) -> tuple[tuple[str, ...], list[str]]:
    """The names of the classes, and a sentence on where they are from."""
    if given is not None:
        if len(given) != outputs:
            raise ConfigError(
                f"{len(given)} classes were given, and the last layer of {weights.path} has {outputs} "
                f"outputs. {COMMAS}"
            )
        return distinct(given, "classes"), said_twice(given)
    for contradiction in (weights.beside.contradiction, weights.said.get("contradiction")):
        if contradiction:
            raise CheckpointError(f"{weights.path}: {contradiction}; give the names by --class-names")
    places = [
        (weights.beside.classes, "the config.json beside the file"),
        (weights.said.get("classes"), f"{weights.said.get('classes_from')} in the file"),
    ]
    for names, where in places:
        if names:
            if len(names) != outputs:
                raise CheckpointError(
                    f"{weights.path}: {where} names {len(names)} classes, and the last layer has {outputs} "
                    "outputs; give their names by --class-names"
                )
            found = distinct(names, where)
            return found, [f"the names of the {outputs} classes are from {where}", *said_twice(names)]
    if len(usual) == outputs:
        return tuple(usual), []
    return tuple(map(str, range(outputs))), [
        f"the {outputs} classes have no names in the file: 0, 1, ...; --class-names gives them some"
    ]


def _load(model: Module, weights: _Weights, *, head: bool) -> Report:
    there = places_of(weights.source, model)
    targets: dict[str, Any] = {name: parameter.data for name, parameter in model.named_parameters()}
    targets.update(model.named_buffers())
    last = _last_dense(model)
    left_out = [] if head else last
    flattened = behind_flatten(model)
    rest = dict(weights.arrays)
    state, missing, misshapen = {}, [], []
    for name, target in targets.items():
        theirs, _ = there[name]
        array = rest.pop(theirs, None)
        if name in left_out:
            state[name] = target
        elif array is None:
            missing.append(f"{theirs} for our {name}")
        else:
            state[name] = to_our_layout(array, target.ndim, channels=flattened.get(name))
            if state[name].shape != target.shape:
                misshapen.append(
                    f"{theirs} is {array.shape}, in our layout {state[name].shape}, "
                    f"but {name} is {target.shape}"
                )
    # The file's own last layer may have several parts, fc.1 after a dropout.
    in_head = tuple(f"{there[name][0].rpartition('.')[0]}." for name in last)
    unmatched = [
        f"{name} {array.shape}" for name, array in rest.items() if head or not name.startswith(in_head)
    ]
    if missing or misshapen or unmatched:
        problems = {"missing": missing, "unmatched": unmatched, "of another shape": misshapen}
        hint = _hint(model, weights.arrays)
        if all(line.startswith(in_head) for which in problems.values() for line in which):
            hint = "All but the last layer fits: load_pretrained(..., head=False) in Python takes the rest"
        raise CheckpointError(
            f"{weights.path} has the names of {weights.source} but does not fit the model; nothing was loaded"
            + "".join(_few(what, which) for what, which in problems.items() if which)
            + "".join(f"\n  {line}" for line in (*weights.notes, hint) if line)
        )
    model.load_state_dict(state)
    loaded = [array for name, array in state.items() if name not in left_out]
    return Report(
        weights.path, weights.source, len(loaded), sum(array.size for array in loaded), tuple(left_out),
        notes=weights.notes,
    )  # fmt: skip


def _hint(model: Module, arrays: files.Arrays) -> str:
    """Which relative of our networks a file seems to be of, in words."""
    norms = any(isinstance(part, BatchNorm2d) for _, part in model.named_modules())
    if norms and not any(name.endswith("running_mean") for name in arrays):
        return (
            "There is no running_mean in the file: its norms are group norms (as in BiT and the ..._gn of "
            "timm), or it holds no buffers; the models here have batch norms"
        )
    if {"conv1.0.weight", "stem.conv1.weight"} & arrays.keys():
        return "The file has a stem of three convolutions, as the ...d, ...c and ...t of timm; none here has"
    if any(".conv" in name and name.endswith(("weight_g", "weight_v", "original0")) for name in arrays):
        return "The file has weights as length and direction (weight_norm); take that off before saving"
    if "weight_orig" in " ".join(arrays):
        return "The file has weights with masks (torch.nn.utils.prune); call prune.remove before saving"
    return ""


def to_our_layout(
    array: np.ndarray[Any, Any], ndim: int, *, channels: int | None = None
) -> np.ndarray[Any, Any]:
    """A weight of PyTorch's in our layout, where it has ``ndim`` axes; see the head of this file.

    ``channels`` are those of the picture that was flattened before a dense layer, None where none was.
    """
    if ndim == 2 and array.ndim == 2 and channels:
        side = math.isqrt(array.shape[1] // channels)
        if channels * side * side == array.shape[1]:  # else the shape is wrong, and will be reported
            array = array.reshape(len(array), channels, side, side)
    if array.ndim == 4:
        array = array.transpose(2, 3, 1, 0)
        return array.reshape(-1, array.shape[-1]) if ndim == 2 else array
    return array.T if array.ndim == 2 else array


def _last_dense(model: Module) -> list[str]:
    """The names of the parameters of the last dense layer."""
    path = [path for path, module in model.named_modules() if isinstance(module, Linear)][-1]
    return [name for name, _ in model.named_parameters() if name.startswith(f"{path}.")]


def behind_flatten(model: Module) -> dict[str, int]:
    """The weight of the dense layer that follows a flatten, and the channels that were flattened."""
    flattens = [path for path, module in model.named_modules() if isinstance(module, Flatten)]
    if not flattens:
        return {}
    weights = [(name, p.data) for name, p in model.named_parameters() if name.endswith(".weight")]
    convs = [array for _, array in weights if array.ndim == 4]
    dense = next(name for name, array in weights if array.ndim == 2)
    return {dense: convs[-1].shape[-1]}


def _few(what: str, which: list[str]) -> str:
    """A line with the number of ``which`` and the first three."""
    more = f"; and {len(which) - 3} more" if len(which) > 3 else ""
    return f"\n  {len(which)} {what}: {'; '.join(which[:3])}{more}"

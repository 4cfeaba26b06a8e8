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
from dataclasses import dataclass
from typing import Any

import numpy as np

from minires import models
from minires.data import Normalize, cifar
from minires.errors import CheckpointError
from minires.nn.layers import Flatten, Linear
from minires.nn.module import Module
from minires.train import Trained, save_model
from minires.weights.name_tables import modern, names_of
from minires.weights.report import Report
from minires.weights.sources import SOURCES, recognise, variant_for
from minires.weights.torch import files


def load(
    model: Module, path: str | os.PathLike[str], *, source: str | None = None, head: bool = True
) -> Report:
    """Set the weights of ``model`` from a file of PyTorch's: see :func:`minires.weights.load_pretrained`."""
    return _load(model, _read(path, source), head=head)


def import_model(
    src: str | os.PathLike[str],
    name: str,
    out: str | os.PathLike[str],
    *,
    source: str | None = None,
    classes: Sequence[str] | None = None,
    variant: Mapping[str, Any] | None = None,
) -> Report:
    """Write the model ``name`` with the weights of a file of PyTorch's as our own ``model.safetensors``.

    The model is built with the options of :func:`~minires.weights.sources.variant_for`; those in ``variant``
    go before them. By default ``classes`` are the ten of CIFAR-10 for pictures of 32x32, and "0" to "999" for
    ImageNet. Pictures are to be scaled as the source does it.

    Raises: as :func:`minires.weights.import_weights`.
    """
    weights = _read(src, source)
    entry = models.entry(name)
    options = {**variant_for(weights.source, name), **(variant or {})}
    small = entry.size == 32
    if classes is None:
        classes = cifar.CLASSES if small else [str(number) for number in range(entry.classes)]
    # All weights come from the file, so none need to be drawn.
    model = models.build(name, classes=len(classes), **{"initializer": "zeros", **options})
    report = _load(model, weights, head=True)
    trained = Trained(
        model, name, options, tuple(classes),
        SOURCES[weights.source].small_pictures if small else Normalize.imagenet(),
        (options.get("size", entry.size),) * 2, "cifar10" if small else "imagenet",
    )  # fmt: skip
    save_model(out, trained)
    return report


# -------------------------------------------------------------------------------------------- in detail


@dataclass(frozen=True)
class _Weights:
    path: str
    source: str
    arrays: files.Arrays


def _read(path: str | os.PathLike[str], source: str | None) -> _Weights:
    if source is not None:
        SOURCES.find(source)
    arrays = {
        modern(name): array
        for name, array in files.read(path).items()
        if not name.endswith("num_batches_tracked")
    }
    source = source or recognise(arrays)
    if source is None:
        shown = ", ".join(list(arrays)[:3])
        raise CheckpointError(
            f"{os.fspath(path)}: names such as {shown} are of no source known here ({', '.join(SOURCES)}); "
            "a model.safetensors of our own is read by minires.train.load_model"
        )
    return _Weights(os.fspath(path), source, arrays)


def _load(model: Module, weights: _Weights, *, head: bool) -> Report:
    there = names_of(weights.source, model)
    targets: dict[str, Any] = {name: parameter.data for name, parameter in model.named_parameters()}
    targets.update(model.named_buffers())
    left_out = [] if head else _last_dense(model)
    flattened = behind_flatten(model)
    rest = dict(weights.arrays)
    state, missing, misshapen = {}, [], []
    for name, target in targets.items():
        array = rest.pop(there[name], None)
        if name in left_out:
            state[name] = target
        elif array is None:
            missing.append(f"{there[name]} for our {name}")
        else:
            state[name] = to_our_layout(array, target.ndim, channels=flattened.get(name))
            if state[name].shape != target.shape:
                misshapen.append(
                    f"{there[name]} is {array.shape}, in our layout {state[name].shape}, "
                    f"but {name} is {target.shape}"
                )
    unmatched = [f"{name} {array.shape}" for name, array in rest.items()]
    if missing or misshapen or unmatched:
        problems = {"missing": missing, "unmatched": unmatched, "of another shape": misshapen}
        raise CheckpointError(
            f"{weights.path} has the names of {weights.source} but does not fit the model; nothing was loaded"
            + "".join(_few(what, which) for what, which in problems.items() if which)
        )
    model.load_state_dict(state)
    loaded = [array for name, array in state.items() if name not in left_out]
    return Report(
        weights.path, weights.source, len(loaded), sum(array.size for array in loaded), tuple(left_out)
    )


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

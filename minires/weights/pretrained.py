"""Weights that others trained with PyTorch, in our models.

    report = import_weights("resnet50-0676ba61.pth", "resnet50", "model.safetensors")

A weight file holds names and numbers. Names are translated by the tables of
:mod:`minires.weights.name_tables`, and numbers get our layout, channels last:

    convolution             (O, C, KH, KW)  -> (KH, KW, C, O)
    dense                   (O, C)          -> (C, O)
    dense behind a flatten  (O, C * H * W)  -> (H * W * C, O)
    1x1 convolution where we have a dense layer, or KH x KW where we have a flatten and a dense layer
                            (O, C, KH, KW)  -> (KH * KW * C, O)

What no number shows is an option of the model: which convolution of a bottleneck has the stride, where
shortcuts of option A put their zeros. :func:`variant_for` says how a source has it. All these sources have
batch norm with eps 1e-5, as our models have.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minires import models
from minires.data import Normalize, cifar
from minires.errors import CheckpointError, ConfigError, one_of
from minires.nn.layers import Flatten, Linear
from minires.nn.module import Module
from minires.train import Trained, save_model
from minires.weights.keras import files as keras_files
from minires.weights.name_tables import SOURCES, modern, names_of, recognise
from minires.weights.torch import files as torch_files

IMAGENET = Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
PYTORCHCV_CIFAR = Normalize((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))

# Which of our models a source has (a pattern for the name), and the options with which they are the same.
_TORCHVISION: dict[str, dict[str, Any]] = {
    "vgg(11|13|16|19)(_bn)?": {},
    "resnet(18|34)": {},
    "resnet(50|101|152)": {"stride_on": "3x3"},
    "resnext(50_32x4d|101_32x4d|101_32x8d|101_64x4d)": {},
    "densenet(121|161|169|201)": {},
}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "akamaster": {"resnet(20|32|44|56|110|1202)_cifar": {"pad": "both"}},
    "torchvision": _TORCHVISION,
    "timm": {
        **_TORCHVISION,
        "se_resnet(50|101|152)": {"stride_on": "3x3"},
        "se_resnext(50|101)_32x4d": {},
    },
    "cadene": {
        "se_resnet(50|101|152)": {"pool_padding": "ceil"},
        "se_resnext(50|101)_32x4d": {"pool_padding": "ceil"},
        "senet154": {"pool_padding": "ceil"},
    },
    "pytorchcv": {
        "vgg(11|13|16|19)": {},
        "vgg(11|13|16|19)_bn": {},  # its bn_vgg16b; its bn_vgg16 is bias=False
        "resnet(18|34|50|101|152|200)": {},  # its resnet50b is stride_on="3x3"
        "resnet(20|56|110|1202)_cifar": {"shortcut": "B"},
        "preresnet(164|1001)_cifar": {"stride_on": "3x3"},
        "resnext(50_32x4d|101_32x4d|101_64x4d|29_32x4d_cifar|29_16x64d_cifar)": {},
        "se_resnet(50|101|152|56_cifar|110_cifar)": {},
        "se_resnext(50|101)_32x4d": {},
        "senet154": {},
        "densenet(121|161|169|201)": {},
        "densenet(40|100)_k12_cifar": {"init_channels": 24, "theta": 0.5},
        "densenet100_k24_cifar": {"init_channels": 48, "theta": 0.5},
        "densenet_bc(100_k12|250_k24|190_k40)_cifar": {},
        "bn_inception": {"bias": True},
    },
}


@dataclass(frozen=True)
class Report:
    """What was loaded: ``left_out`` are parameters of the model that kept the values they had."""

    path: str
    source: str
    tensors: int
    numbers: int
    left_out: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = f"{self.path}: {self.tensors} tensors, {self.numbers:,} numbers, named as {self.source}'s are"
        return f"{text}; not loaded: {', '.join(self.left_out)}" if self.left_out else text


def variant_for(source: str, model: str) -> dict[str, Any]:
    """The options of ``minires.models.build`` with which ``model`` is the network that ``source`` trained.

    Raises: ConfigError if the source or the model is unknown, or the source has no such network.
    """
    one_of("source", source, SOURCES)
    models.entry(model)
    for pattern, variant in VARIANTS[source].items():
        if re.fullmatch(pattern, model):
            return dict(variant)
    known = [name for name in models.names() if any(re.fullmatch(p, name) for p in VARIANTS[source])]
    raise ConfigError(f"{source} has no network that is our {model}; it has {', '.join(known)}")


def load_pretrained(
    model: Module, path: str | os.PathLike[str], *, source: str | None = None, head: bool = True
) -> Report:
    """Set the weights of ``model`` from a file of PyTorch's or Keras's, all or, if one does not fit, none.

    ``source`` says whose names the file has, as in :mod:`minires.weights.name_tables`; without it they are
    recognised. ``head=False`` leaves out the last dense layer, for fine-tuning with classes of one's own. The
    model must have been built with the options of :func:`variant_for`, as names and shapes do not show them.

    Raises: CheckpointError if the file cannot be read, its names are of no known source, or tensors are
    missing, unmatched or of another shape; ConfigError if the source has no such network, or ``source`` or
    ``head=False`` are given for a file of Keras's.
    """
    if Path(path).suffix in keras_files.SUFFIXES:
        if source is not None or not head:
            raise ConfigError(
                f"{os.fspath(path)} is a file of Keras's: it is loaded whole and without source=. For other "
                "classes import it with `minires import-weights`, then start from that"
            )
        return load_keras(model, path)
    return _load(model, _read(path, source), head=head)


def load_keras(model: Module, path: str | os.PathLike[str]) -> Report:
    """The same for a file of Keras's, whatever its name.

    Raises: CheckpointError as :func:`load_pretrained`.
    """
    arrays = keras_files.read(path)
    model.load_state_dict(keras_files.to_state(arrays, model))
    return Report(os.fspath(path), "Keras", len(arrays), sum(array.size for array in arrays.values()))


def import_weights(
    src: str | os.PathLike[str],
    name: str,
    out: str | os.PathLike[str],
    *,
    source: str | None = None,
    classes: Sequence[str] | None = None,
    variant: Mapping[str, Any] | None = None,
) -> Report:
    """Write the model ``name`` with the weights of a file of PyTorch's as our own ``model.safetensors``.

    The model is built with the options of :func:`variant_for`; those in ``variant`` go before them.
    ``classes`` are the names of the classes, in the order of the outputs: by default the ten of CIFAR-10 for
    pictures of 32x32, and "0" to "999" for ImageNet. Pictures are to be scaled as the source does it.

    Units: mean and deviation of pixels scaled to 0..1.
    Raises: as :func:`load_pretrained`; MiniresError if ``out`` cannot be written.
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
        PYTORCHCV_CIFAR if small and weights.source == "pytorchcv" else IMAGENET,
        (options.get("size", entry.size),) * 2, "cifar10" if small else "imagenet",
    )  # fmt: skip
    save_model(out, trained)
    return report


# -------------------------------------------------------------------------------------------- in detail


@dataclass(frozen=True)
class _Weights:
    path: str
    source: str
    arrays: torch_files.Arrays


def _read(path: str | os.PathLike[str], source: str | None) -> _Weights:
    if source is not None:
        one_of("source", source, SOURCES)
    arrays = {
        modern(name): array
        for name, array in torch_files.read(path).items()
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

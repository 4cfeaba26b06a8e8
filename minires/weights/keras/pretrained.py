"""Weights that others trained with Keras, as a model of ours.

Keras's applications want pictures in three ways, and with the weights each gets its own:

    caffe   VGG and ResNet: blue first, 0..255, less the mean of ImageNet
    tf      ResNetV2: red first, from -1 to 1
    torch   DenseNet: red first, 0..1, mean and deviation of ImageNet

Ours always see red first. For caffe's way the first kernel's input channels are turned round instead, which
gives the same outputs, and mean and deviation are those of pixels scaled to 0..1.

Source: keras/src/applications/imagenet_utils.py of Keras 3.15, preprocess_input.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from minires import models
from minires.data import Normalize
from minires.errors import ConfigError
from minires.nn.layers import Conv2d
from minires.nn.module import Module
from minires.train import Trained, save_model
from minires.weights.keras import files as keras_files
from minires.weights.pretrained import IMAGENET, Report, load_keras

CAFFE = Normalize((123.68 / 255, 116.779 / 255, 103.939 / 255), (1 / 255, 1 / 255, 1 / 255))
TF = Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def import_keras(
    src: str | os.PathLike[str],
    name: str,
    out: str | os.PathLike[str],
    *,
    classes: Sequence[str] | None = None,
) -> Report:
    """Write the model ``name`` with the weights of a file of Keras's as our own ``model.safetensors``.

    ``classes`` are the names of the classes in the order of the outputs, by default "0", "1", ...

    Units: mean and deviation of pixels scaled to 0..1.
    Raises: ConfigError if Keras has no such network; CheckpointError if the file cannot be read or does not
    fit; MiniresError if ``out`` cannot be written.
    """
    kinds = {keras_files.variant_for(kind)["name"]: kind for kind in keras_files.VARIANTS}
    if name not in kinds:
        raise ConfigError(f"Keras has no network that is our {name}; it has {', '.join(kinds)}")
    kind = kinds[name]
    variant = {key: value for key, value in keras_files.variant_for(kind).items() if key != "name"}
    entry = models.entry(name)
    classes = [str(number) for number in range(entry.classes)] if classes is None else classes
    model = models.build(name, classes=len(classes), **variant)
    report = load_keras(model, src)
    normalize = _preprocessing(kind)
    if normalize is CAFFE:
        _take_red_first(model)
    side = variant.get("size", entry.size)
    save_model(out, Trained(model, name, variant, tuple(classes), normalize, (side, side), "imagenet"))
    return replace(report, source=f"Keras's {kind}")


def _preprocessing(kind: str) -> Normalize:
    if kind == "ResNet50-signs":
        return Normalize.none()
    if kind.endswith("V2"):
        return TF
    return IMAGENET if kind.startswith("DenseNet") else CAFFE


def _take_red_first(model: Module) -> None:
    first = next(part for _, part in model.named_modules() if isinstance(part, Conv2d))
    first.weight.data[...] = first.weight.data[:, :, ::-1].copy()

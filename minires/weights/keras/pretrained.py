"""Weights that others trained with Keras, in our models.

Ours always see red first. Where Keras's see blue first (:mod:`minires.weights.keras.applications`), the first
kernel's input channels are turned round instead, which gives the same outputs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from minires import models
from minires.errors import ConfigError
from minires.nn.layers import Conv2d
from minires.nn.module import Module
from minires.train import Trained, save_model
from minires.weights.keras import files
from minires.weights.keras.applications import APPLICATIONS
from minires.weights.report import Report


def load(model: Module, path: str | os.PathLike[str]) -> Report:
    """Set the weights of ``model`` from a file of Keras's, whatever its name.

    Raises: CheckpointError as :func:`minires.weights.load_pretrained`.
    """
    arrays = files.read(path)
    model.load_state_dict(files.to_state(arrays, model))
    return Report(os.fspath(path), "Keras", len(arrays), sum(array.size for array in arrays.values()))


def import_model(
    src: str | os.PathLike[str],
    name: str,
    out: str | os.PathLike[str],
    *,
    classes: Sequence[str] | None = None,
) -> Report:
    """Write the model ``name`` with the weights of a file of Keras's as our own ``model.safetensors``.

    By default ``classes`` are "0", "1", ...

    Raises: ConfigError if Keras has no such network; else as :func:`minires.weights.import_weights`.
    """
    kinds = {application.model: kind for kind, application in APPLICATIONS.items()}
    if name not in kinds:
        raise ConfigError(f"Keras has no network that is our {name}; it has {', '.join(kinds)}")
    application = APPLICATIONS[kinds[name]]
    options = dict(application.options)
    entry = models.entry(name)
    classes = [str(number) for number in range(entry.classes)] if classes is None else classes
    model = models.build(name, classes=len(classes), **options)
    report = load(model, src)
    if application.blue_first:
        _take_red_first(model)
    side = options.get("size", entry.size)
    trained = Trained(
        model, name, options, tuple(classes), application.normalize, (side, side), "imagenet"
    )
    save_model(out, trained)
    return replace(report, source=f"Keras's {kinds[name]}")


def _take_red_first(model: Module) -> None:
    first = next(part for _, part in model.named_modules() if isinstance(part, Conv2d))
    first.weight.data[...] = first.weight.data[:, :, ::-1].copy()

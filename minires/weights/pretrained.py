"""The door for weights that others trained: files of PyTorch's and of Keras's, told apart by what is in them.

report = import_weights("resnet50-0676ba61.pth", "resnet50", "model.safetensors")
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from minires.errors import ConfigError
from minires.files import not_over, with_ending
from minires.nn.module import Module
from minires.train.continuing import not_in_run
from minires.weights.contents import kind_of
from minires.weights.keras import pretrained as keras
from minires.weights.report import Report
from minires.weights.torch import pretrained as torch
from minires.weights.torch.parts import in_folder, of_one_model


def load_pretrained(
    model: Module,
    path: str | os.PathLike[str],
    *,
    source: str | None = None,
    head: bool = True,
    container: str | None = None,
) -> Report:
    """Set the weights of ``model`` from a file of PyTorch's or Keras's, all or, if one does not fit, none.

    ``source`` says whose names the file has, one of :data:`minires.weights.SOURCES`; without it they are
    recognised. ``head=False`` leaves out the last dense layer, for fine-tuning with classes of one's own.
    ``container`` is as in :func:`minires.weights.read`. The model must have been built with the options of
    :func:`~minires.weights.sources.variant_for`, as names and shapes do not show them.

    Raises: CheckpointError if the file cannot be read, its names are of no known source, or tensors are
    missing, unmatched, of another shape, or hold what no weights can be, or a file of Keras's states other
    options than the model has; ConfigError if the source has no such network, or ``source`` or ``container``
    are given for a file of Keras's.
    """
    if not _is_keras(path):
        return torch.load(model, path, source=source, head=head, container=container)
    _no_source(path, source, container)
    return keras.load(model, in_folder(Path(path)), head=head)


def import_weights(
    src: str | os.PathLike[str],
    name: str,
    out: str | os.PathLike[str],
    *,
    source: str | None = None,
    classes: Sequence[str] | None = None,
    variant: Mapping[str, Any] | None = None,
    container: str | None = None,
) -> Report:
    """Write the model ``name`` with the weights of somebody's file as our own ``model.safetensors``.

    ``classes`` are the names of the classes, in the order of the outputs: by default those that the file or a
    config.json of Hugging Face or timm beside it has, then those of CIFAR-10 for networks of PyTorch's that
    are for it, else "0", "1", ... For a file of PyTorch's ``source`` and ``container`` are as in
    :func:`load_pretrained`. ``variant`` are options of the model on top of those that the source has, or the
    file states.

    Units: mean and deviation of pixels scaled to 0..1.
    Raises: as :func:`load_pretrained`; ConfigError if ``out`` does not end in .safetensors, is one of the
    files of ``src``, or one of a run; MiniresError if it cannot be written.
    """
    with_ending("out", out, ".safetensors", "a model of minires")
    not_over("out", out, _files(src), "the file that is imported, or a part of it")
    not_in_run("out", out)
    if not _is_keras(src):
        return torch.import_model(
            src, name, out, source=source, classes=classes, variant=variant, container=container
        )
    _no_source(src, source, container)
    return keras.import_model(in_folder(Path(src)), name, out, classes=classes, variant=variant)


def _files(src: str | os.PathLike[str]) -> Iterator[Path]:
    """The file that is given, then the parts of the model if it has some."""
    given = in_folder(Path(src))
    yield given
    yield from of_one_model(given)[0]


def _no_source(path: str | os.PathLike[str], source: str | None, container: str | None) -> None:
    if source is not None or container is not None:
        raise ConfigError(
            f"{os.fspath(path)} is a file of Keras's: a source and a container are for those of PyTorch's"
        )


def _is_keras(path: str | os.PathLike[str]) -> bool:
    return kind_of(in_folder(Path(path))) == "keras"

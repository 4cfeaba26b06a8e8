"""Our weights under the names and in the layout of PyTorch's models.

    .safetensors             model.load_state_dict(safetensors.torch.load_file(path))
    .pth .pt .bin            model.load_state_dict(torch.load(path)), which needs PyTorch to be written

The inverse of :mod:`minires.weights.torch.pretrained`; read back by it, the same bits come in again.
"""

from __future__ import annotations

import importlib.util
import inspect
import io
import math
import os
from typing import Any

import numpy as np
from safetensors.numpy import save

from minires import models
from minires.errors import ConfigError, one_of
from minires.files import atomic_write, with_ending
from minires.nn.layers import BatchNorm2d
from minires.nn.module import Module
from minires.train import Trained
from minires.train.continuing import not_in_run
from minires.weights.name_tables import places_of
from minires.weights.sources import SOURCES, variant_for
from minires.weights.torch.pretrained import behind_flatten

WRITTEN = [name for name, source in SOURCES.items() if source.is_written]
PICKLES = (".pth", ".pt", ".bin")
EPS = 1e-5  # of every batch norm there
# Options that a shape shows, or that matter in training alone; eps is looked up in the model.
SHOWN = {
    "repeats", "widths", "blocks", "growth", "init_channels", "theta", "hidden", "width", "cardinality",
    "size", "reduction", "classes", "initializer", "last_gamma", "dropout", "convention", "bn_momentum",
    "bn_eps", "rng",
}  # fmt: skip
MEANING = {"pad": " (a shortcut adds zeros on both sides of the channels)"}  # of an option, for a message


def export_torch(model: Module | Trained, path: str | os.PathLike[str], source: str = "torchvision") -> int:
    """Write all parameters and running statistics of a model; returns how many tensors were written.

    Names and shapes do not show all of a network. Of a ``Trained`` it is known with which options it was
    built, and these are checked; a bare module must have been built with those of
    :func:`~minires.weights.sources.variant_for`.

    Shapes: convolutions (O, C/groups, KH, KW), dense layers (O, C), the first one behind a flatten with its
    inputs in the order (C, H, W); (O, C, 1, 1) where the source has a 1x1 convolution for a dense layer.
    Raises: ConfigError for an unknown source, one that has no such network, an ending that is none of those
    above, the name of a file of a run in its folder, or .pth where PyTorch is missing;
    MiniresError if the file cannot be written.
    """
    one_of("source", source, WRITTEN)
    ending = with_ending("out", path, (".safetensors", *PICKLES), "a file of weights for PyTorch")
    not_in_run("out", path)
    if isinstance(model, Trained):
        _check_options(model, source)
        model = model.model
    _check_eps(model, source)
    there, flattened = places_of(source, model), behind_flatten(model)
    tensors = {}
    for name, array in model.state_dict().items():
        theirs, convolution = there[name]
        tensors[theirs] = to_torch_layout(
            array, channels=flattened.get(name), convolution=convolution and array.ndim == 2
        )
    content = (
        save(tensors, metadata={"format": "pt"}) if ending == ".safetensors" else _pickled(tensors, path)
    )
    with atomic_write(path) as file:
        file.write(content)
    return len(tensors)


def to_torch_layout(
    array: np.ndarray, *, channels: int | None = None, convolution: bool = False
) -> np.ndarray:
    """A weight of ours in PyTorch's layout; ``channels`` of the picture that was flattened before it;
    ``convolution`` if it is one there, as large as the picture, or 1x1."""
    if array.ndim == 2 and (channels or convolution):
        channels = channels or len(array)
        side = math.isqrt(len(array) // channels)
        # (H*W*C, O) -> (O, C, H, W), or (O, C*H*W)
        array = array.reshape(side, side, channels, -1).transpose(3, 2, 0, 1)
        return np.ascontiguousarray(array if convolution else array.reshape(len(array), -1))
    order = (3, 2, 0, 1) if array.ndim == 4 else tuple(reversed(range(array.ndim)))
    return np.ascontiguousarray(array.transpose(order))


def _pickled(tensors: dict[str, np.ndarray], path: str | os.PathLike[str]) -> bytes:
    if importlib.util.find_spec("torch") is None:
        raise ConfigError(
            f"{os.fspath(path)} is to be written by torch.save, which needs PyTorch: pip install torch; a "
            ".safetensors file needs none"
        )
    import torch

    file = io.BytesIO()
    torch.save({name: torch.from_numpy(array) for name, array in tensors.items()}, file)
    return file.getvalue()


def _check_options(trained: Trained, source: str) -> None:
    """Refuse a model that ``source`` lacks, or would compute otherwise with the same weights."""
    having = [name for name in WRITTEN if SOURCES[name].has(trained.name)]
    if source not in having:
        ways = [_way(trained, name) for name in having] or [f"nor have {', '.join(WRITTEN)}"]
        raise ConfigError(
            f"{source} has no network that is our {trained.name}; {'; '.join(ways)}; --onnx writes any model"
        )
    for option, (here, wanted) in _differing(trained, source).items():
        raise ConfigError(
            f"this {trained.name} has {option}={here!r}, that of {source} {wanted!r}{MEANING.get(option, '')}"
            f": it would take the weights and give other outputs. Train one with --variant {option}={wanted} "
            "for it; --onnx writes any model"
        )


def _differing(trained: Trained, source: str) -> dict[str, tuple[Any, Any]]:
    """The options of a model that are others in the network of ``source``: here, and there."""
    entry = models.entry(trained.name)
    parameters = inspect.signature(entry.make).parameters
    usual: dict[str, Any] = {name: one.default for name, one in parameters.items()}
    usual |= entry.preset
    here, there = {**usual, **trained.variant}, {**usual, **variant_for(source, trained.name)}
    return {
        option: (here[option], wanted)
        for option, wanted in there.items()
        if option not in SHOWN and here[option] != wanted
    }


def _way(trained: Trained, source: str) -> str:
    """Say how the model goes out under the names of a source that has it."""
    differing = _differing(trained, source)
    others = ", ".join(
        f"{option}={wanted}{MEANING.get(option, '')}, this has {option}={here}"
        for option, (here, wanted) in differing.items()
    )
    return f"{source} has it (--names {source})" + (f", but with {others}" if others else "")


def _check_eps(model: Module, source: str) -> None:
    for path, part in model.named_modules():
        if isinstance(part, BatchNorm2d) and not math.isclose(part.eps, EPS, rel_tol=0.01):
            raise ConfigError(
                f"{path} has eps={part.eps:g}, the batch norms of {source} have {EPS:g}: the outputs would "
                "be others. --onnx writes any model"
            )

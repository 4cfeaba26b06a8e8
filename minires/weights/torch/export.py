"""Our weights under the names and in the layout of PyTorch's models, as a safetensors file.

    load_state_dict(safetensors.torch.load_file(path))        in the PyTorch model of that source

The inverse of :mod:`minires.weights.torch.pretrained`; read back by it, the same bits come in again.
"""

from __future__ import annotations

import math
import os

import numpy as np
from safetensors.numpy import save

from minires.errors import one_of
from minires.files import atomic_write
from minires.nn.module import Module
from minires.weights.name_tables import names_of
from minires.weights.sources import SOURCES
from minires.weights.torch.pretrained import behind_flatten

WRITTEN = [name for name, source in SOURCES.items() if source.is_written]


def export_torch(model: Module, path: str | os.PathLike[str], source: str = "torchvision") -> int:
    """Write all parameters and running statistics of ``model``; returns how many tensors were written.

    Shapes: convolutions (O, C/groups, KH, KW), dense layers (O, C), the first one behind a flatten with its
    inputs in the order (C, H, W).
    Raises: ConfigError for an unknown source, or one that has no such network; MiniresError if the file
    cannot be written.
    """
    one_of("source", source, WRITTEN)
    there, flattened = names_of(source, model), behind_flatten(model)
    tensors = {
        there[name]: to_torch_layout(array, channels=flattened.get(name))
        for name, array in model.state_dict().items()
    }
    with atomic_write(path) as file:
        file.write(save(tensors, metadata={"format": "pt"}))
    return len(tensors)


def to_torch_layout(array: np.ndarray, *, channels: int | None = None) -> np.ndarray:
    """A weight of ours in PyTorch's layout; ``channels`` of the picture that was flattened before it."""
    if array.ndim == 2 and channels:
        side = math.isqrt(len(array) // channels)
        array = array.reshape(side, side, channels, -1).transpose(2, 0, 1, 3).reshape(array.shape)
    order = (3, 2, 0, 1) if array.ndim == 4 else tuple(reversed(range(array.ndim)))
    return np.ascontiguousarray(array.transpose(order))

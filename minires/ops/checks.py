"""What every operation asks of its inputs, and the sentences it says when they do not fit."""

from __future__ import annotations

import numbers
import operator
from collections.abc import Collection
from typing import Any

import numpy as np

from minires import backend
from minires.errors import ConfigError, ShapeError
from minires.tensor import Tensor

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


def as_tensor(x: Any) -> Tensor:
    """``x`` itself if it is a Tensor, else a Tensor of it that needs no gradient."""
    return x if isinstance(x, Tensor) else Tensor(x)


def same_floats(op: str, *, parameters: Collection[str] = (), **tensors: Tensor | None) -> None:
    """All tensors given are float32, or all are float64, or all bfloat16, and all lie on one device.

    Those named in ``parameters``, of which none is the first, are float32 where the others are bfloat16.

    Raises: ShapeError that names the odd one.
    """
    first: tuple[str, Tensor] | None = None
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if tensor.dtype not in FLOATS and not backend.is_bfloat16(tensor.dtype):
            raise ShapeError(
                f"{op}: {name} is {tensor.dtype}, but float32 or float64 is needed. "
                "Convert it first, pictures for example with x.astype('float32') / 255"
            )
        if first is None:
            first = (name, tensor)
        elif name in parameters and backend.is_bfloat16(first[1].dtype):
            if tensor.dtype != np.float32:
                raise ShapeError(
                    f"{op}: {name} is {tensor.dtype}, but it must be float32, as all parameters stay beside "
                    f"activations in bfloat16, here {first[0]}"
                )
        elif tensor.dtype != first[1].dtype:
            raise ShapeError(
                f"{op}: {first[0]} is {first[1].dtype} but {name} is {tensor.dtype}. "
                "Convert one of them; minires never changes a dtype silently"
            )
        elif tensor.device != first[1].device:
            raise ShapeError(
                f"{op}: {first[0]} is on {first[1].device} but {name} on {tensor.device}; use .to()"
            )


def rank(op: str, name: str, x: Tensor, axes: str) -> None:
    """``x`` has one axis per letter group of ``axes``, for example ``"(N, H, W, C)"``.

    Raises: ShapeError with the shape found.
    """
    rank_of_shape(op, name, x.shape, axes)


def rank_of_shape(op: str, name: str, shape: tuple[int, ...], axes: str) -> None:
    """As :func:`rank`, where there is no tensor yet."""
    wanted = axes.count(",") + 1
    if len(shape) != wanted:
        raise ShapeError(f"{op}: {name} must be {axes}, {wanted} axes, but its shape is {shape}")


def index(value: Any) -> int | None:
    """A whole number of Python or of NumPy as an int; None for anything else, truth values too."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def number(op: str, name: str, value: Any) -> float:
    """A number of Python or of NumPy as a float. Raises: ConfigError for anything else, truth values too."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ConfigError(f"{op}: {name} must be a number, not {value!r}")
    return float(value)


def pair(op: str, name: str, value: Any, *, least: int = 1) -> tuple[int, int]:
    """An int, or a pair of ints (height, width), as a pair.

    Raises: ShapeError if it is neither, or below ``least``.
    """
    try:
        both = (value, value) if index(value) is not None else tuple(value)
    except TypeError:
        both = ()
    sizes = [size for size in map(index, both) if size is not None and size >= least]
    if len(both) != 2 or len(sizes) != 2:
        raise ShapeError(
            f"{op}: {name} must be a whole number of at least {least}, or a pair of them, not {value!r}"
        )
    return sizes[0], sizes[1]


def axes(op: str, axis: int | tuple[int, ...] | None, ndim: int) -> tuple[int, ...]:
    """One axis, several, or None (all of them), counted from the front and in order.

    Raises: ShapeError if an axis does not exist or is named twice.
    """
    several: tuple[Any, ...] = tuple(axis) if isinstance(axis, tuple | list) else (axis,)
    wanted = tuple(range(ndim)) if axis is None else several
    found = {int(a) % ndim for a in wanted if index(a) is not None and -ndim <= a < ndim}
    if len(found) != len(wanted):
        raise ShapeError(
            f"{op}: axis={axis} does not fit a tensor of {ndim} axes; each must be a whole number "
            f"from {-ndim} to {ndim - 1}, named once"
        )
    return tuple(sorted(found))

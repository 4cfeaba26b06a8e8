"""What every operation asks of its inputs, and the sentences it says when they do not fit."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import numpy as np

from minires import backend, errors
from minires.errors import MOST, ConfigError, ShapeError, as_number, as_whole
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
            odd = name if first[1].dtype == np.float32 else first[0]
            raise ShapeError(
                f"{op}: {first[0]} is {first[1].dtype} but {name} is {tensor.dtype}. "
                f"Convert one of them, for example {odd}.astype(\"float32\"): minires never changes a dtype "
                "silently, and what NumPy makes (np.random.randn, np.zeros) is float64"
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


_MOST_NUMBERS = 2**46  # of an array: hundreds of terabytes


def whole(op: str, name: str, value: Any, *, least: int) -> int:
    """A whole number, of Python or of NumPy, as an int.

    Raises: ShapeError if it is none, below ``least``, or too large for any array.
    """
    number = as_whole(value)
    if number is None or number < least:
        raise ShapeError(f"{op}: {name} must be a whole number of at least {least}, not {value!r}")
    if number > MOST:
        raise ShapeError(f"{op}: {name} is {number}, but no array is as large; it may be {MOST} at most")
    return number


def size(op: str, shape: tuple[int, ...]) -> None:
    """A result may be so large. Raises: ShapeError with the shape if no memory can be."""
    if math.prod(shape) > _MOST_NUMBERS:
        raise ShapeError(f"{op}: the result would be of shape {shape}, which is larger than any memory")


def pair(op: str, name: str, value: Any, *, least: int = 1) -> tuple[int, int]:
    """A whole number, or a pair of them (height, width), as a pair.

    Raises: ShapeError if it is neither, or below ``least``.
    """
    one = as_whole(value)
    try:
        height, width = (one, one) if one is not None else map(as_whole, value)
    except (TypeError, ValueError):
        height = width = None
    if height is None or width is None or min(height, width) < least:
        raise ShapeError(
            f"{op}: {name} must be a whole number of at least {least}, or a pair of them, not {value!r}"
        )
    if max(height, width) > MOST:
        raise ShapeError(f"{op}: {name} is {value!r}, but no array is as large; it may be {MOST} at most")
    return height, width


def number(op: str, name: str, value: Any, *, nan: bool = False) -> float:
    """A number, of Python or of NumPy, as a float. Raises: ConfigError for none, or NaN where not allowed."""
    found = as_number(value)
    if found is None or (math.isnan(found) and not nan):
        raise ConfigError(f"{op}: {name} must be a number, not {value!r}")
    return found


def truth(op: str, name: str, value: Any) -> bool:
    """True or False, of Python or of NumPy. Raises: ConfigError if it is neither."""
    return value if isinstance(value, bool) else errors.truth(f"{op}: {name}", value)


def axes(op: str, axis: Any, ndim: int) -> tuple[int, ...]:
    """One axis, several, or None (all of them), counted from the front and in order.

    Raises: ShapeError if an axis does not exist or is named twice.
    """
    if axis is None:
        return tuple(range(ndim))
    several = tuple(axis) if isinstance(axis, tuple | list) else (axis,)
    wanted = [as_whole(one) for one in several]
    found = {one % ndim for one in wanted if one is not None and -ndim <= one < ndim}
    if len(found) != len(wanted):
        raise ShapeError(
            f"{op}: axis={axis} does not fit a tensor of {ndim} axes; each must be a whole number "
            f"from {-ndim} to {ndim - 1}, named once"
        )
    return tuple(sorted(found))


def one_axis(op: str, axis: Any, ndim: int) -> int:
    """One axis, counted from the front. Raises: ShapeError if it does not exist, or is several or None."""
    if as_whole(axis) is None:
        raise ShapeError(f"{op}: axis must be one whole number, not {axis!r}")
    return axes(op, axis, ndim)[0]

"""The same numbers in another shape or order: reshape, flatten, transpose and indexing.

    y = x.reshape(shape)      dx = dy.reshape(the shape of x)
    y = x.transpose(axes)     dx = dy.transpose(the inverse order)
    y = x[index]              dx = zeros, plus dy at index (an element read twice gets both gradients)

Reshape, transpose and slices give views, as in NumPy: no number is copied.
Shapes: see each function. Any dtype, since nothing is computed.
"""

from __future__ import annotations

import math
from typing import Any

from minires import backend
from minires.backend import Array
from minires.errors import ShapeError
from minires.ops import checks
from minires.tensor import Tensor, record


def reshape(x: Tensor, shape: int | tuple[int, ...]) -> Tensor:
    """The same numbers, in the same order, in another shape; one size may be -1: what is left over.

    Math: y = x in another shape. Shapes: x any -> y ``shape``. Backward: dx = dy in the shape of x.
    Raises: ShapeError if the number of elements differs.
    """
    x = checks.as_tensor(x)
    before = x.shape
    try:
        y = x.data.reshape(shape)
    except (ValueError, TypeError):
        raise ShapeError(f"reshape: {x.size} numbers of shape {before} do not fit in {shape}") from None
    return record(
        "reshape",
        y,
        inputs={"x": x},
        options={"shape": y.shape},
        backward=lambda dy: (dy.reshape(before),),
    )


def flatten(x: Tensor) -> Tensor:
    """One row per picture: all axes but the first become one.

    Math: y = x, each picture as a row. Shapes: x (N, ...) -> y (N, the product of the others).
    Backward: dx = dy in the shape of x.
    Raises: ShapeError if ``x`` has no axis.
    """
    x = checks.as_tensor(x)
    if x.ndim == 0:
        raise ShapeError("flatten: x is a single value; it must be (N, ...), at least one axis")
    return reshape(x, (x.shape[0], math.prod(x.shape[1:])))


def transpose(x: Tensor, axes: tuple[int, ...] | None = None) -> Tensor:
    """The axes in another order; without ``axes`` in reverse.

    Math: y = x with its axes in another order. Shapes: axis i of y is axis ``axes[i]`` of x.
    Backward: dx = dy with its axes in the inverse order.
    Raises: ShapeError if ``axes`` does not name every axis once.
    """
    x = checks.as_tensor(x)
    order = tuple(reversed(range(x.ndim))) if axes is None else tuple(axes)
    if len(checks.axes("transpose", order, x.ndim)) != x.ndim:
        raise ShapeError(f"transpose: axes {order} must name each of the {x.ndim} axes of {x.shape} once")
    order = tuple(axis % x.ndim for axis in order)
    inverse = tuple(order.index(axis) for axis in range(x.ndim))
    return record(
        "transpose",
        x.data.transpose(order),
        inputs={"x": x},
        options={"axes": order},
        backward=lambda dy: (dy.transpose(inverse),),
    )


def getitem(x: Tensor, index: Any) -> Tensor:
    """The elements at ``index``: numbers, slices, ``...``, None, lists or arrays of numbers or of booleans.

    Math: y = x[index]. Shapes: as in NumPy. Backward: dx = dy at the elements that were read, else 0.
    Raises: IndexError, with NumPy's message, if the index does not fit.
    """
    x = checks.as_tensor(x)
    parts = index if isinstance(index, tuple) else (index,)
    parts = tuple(part.data if isinstance(part, Tensor) else part for part in parts)
    parts = tuple(backend.to_device(part, x.device) if hasattr(part, "dtype") else part for part in parts)
    plain = all(part is None or part is Ellipsis or isinstance(part, int | slice) for part in parts)
    plain = plain and not any(isinstance(part, bool) for part in parts)
    xp, shape = backend.array_module(x.data), x.shape
    arrays = {f"index {i}": part for i, part in enumerate(parts) if hasattr(part, "dtype")}
    return record(
        "getitem",
        x.data[parts],
        inputs={"x": x},
        options={"index": parts},
        saved=arrays,
        backward=lambda dy: (_backward_getitem(xp, dy, shape, parts, plain),),
    )


def _backward_getitem(xp: Any, dy: Array, shape: tuple[int, ...], index: Any, plain: bool) -> Array:
    dtype = dy.dtype if plain else backend.accumulator(dy.dtype)
    dx = xp.zeros(shape, dtype)
    if plain:
        dx[index] = dy
    else:  # a list may name an element twice; assignment would keep one of its gradients only
        xp.add.at(dx, index, dy.astype(dtype, copy=False))
    return dx.astype(dy.dtype, copy=False)

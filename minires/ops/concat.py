"""Put tensors side by side along one axis, by default the channels.

    y = [x1, x2, ...]
    dx1, dx2, ... = the parts of dy that came from x1, x2, ...

Shapes: equal but for the axis along which they are joined; y has the sum of the sizes there.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from minires import backend
from minires.backend import Array
from minires.errors import ShapeError
from minires.ops import checks
from minires.tensor import Tensor, record


def _forward(xp: Any, xs: list[Array], axis: int) -> Array:
    return xp.concatenate(xs, axis=axis)


def _backward(xp: Any, dy: Array, sizes: list[int], axis: int) -> list[Array]:
    return xp.split(dy, list(accumulate(sizes))[:-1], axis=axis)


def concat(tensors: Sequence[Tensor], *, axis: int = -1) -> Tensor:
    """Join tensors along ``axis``.

    Math, Shapes, Backward: see the head of this file.
    Raises: ShapeError if there is no tensor, or shapes differ elsewhere than at ``axis``, or dtypes or
    devices differ.
    """
    tensors = [checks.as_tensor(tensor) for tensor in tensors]
    if not tensors:
        raise ShapeError("concat: there is nothing to join; give at least one tensor")
    checks.same_floats("concat", **{f"tensors[{i}]": tensor for i, tensor in enumerate(tensors)})
    first = tensors[0]
    (axis,) = checks.axes("concat", axis, first.ndim)
    for i, tensor in enumerate(tensors):
        if _without(tensor.shape, axis) != _without(first.shape, axis) or tensor.ndim != first.ndim:
            raise ShapeError(
                f"concat: tensors[0] is {first.shape} but tensors[{i}] is {tensor.shape}; "
                f"they may differ at axis {axis} only"
            )
    xp = backend.array_module(first.data)
    sizes = [tensor.shape[axis] for tensor in tensors]
    y = _forward(xp, [tensor.data for tensor in tensors], axis)
    return record("concat", y, tensors, lambda dy: _backward(xp, dy, sizes, axis))


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return shape[:axis] + shape[axis + 1 :]

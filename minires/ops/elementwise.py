"""What all operations that work element by element share: their operands, broadcasting, and the way back.

The shapes of two operands are broadcast as NumPy does. Broadcasting copies an element to many places, so its
adjoint sums over these places: :func:`unbroadcast`.

A number (2, 0.5, np.float32(3)), a list of numbers and an array of truth values (1 and 0) take the dtype of
the tensor they meet; two tensors must agree.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from minires import backend
from minires.backend import Array
from minires.errors import ShapeError
from minires.ops import checks
from minires.ops.registry import Case, Make, Shape
from minires.tensor import Tensor, array_of, record


def unbroadcast(dy: Array, shape: Sequence[int]) -> Array:
    """The adjoint of broadcasting from ``shape``: sum ``dy`` over the axes that were added or stretched, in
    float64, rounded once (see minires.backend.sums)."""
    shape = tuple(shape)
    if dy.shape == shape:
        return dy
    added = dy.ndim - len(shape)
    stretched = [added + i for i, size in enumerate(shape) if size == 1 and dy.shape[added + i] != 1]
    return backend.total(dy, (*range(added), *stretched)).reshape(shape)


_NUMBERS = (numbers.Real, np.bool_)


def operand(op: str, x: Any, other: Any) -> Tensor:
    """``x`` as a tensor; what has no dtype of its own takes the dtype and the device of what it meets."""
    if isinstance(x, Tensor) and x.data.dtype.kind != "b":
        return x
    x = x.data if isinstance(x, Tensor) else x
    if not isinstance(x, (list, tuple, *_NUMBERS)) and not hasattr(x, "dtype"):
        raise TypeError(f"{op}: an operand must be a tensor, an array or a number, not {x!r}")
    like = array_of(other) if hasattr(other, "dtype") else None
    if like is None or not backend.is_float(like.dtype):
        like = np.zeros((), np.float32)
    if isinstance(x, list | tuple):
        return Tensor(backend.to_device(array_of(x, like.dtype), backend.device_of(like)))
    if isinstance(x, _NUMBERS):
        return Tensor(backend.array_module(like).asarray(x, dtype=like.dtype))
    array = array_of(x)
    return Tensor(array.astype(like.dtype) if array.dtype.kind == "b" else array)


def broadcastable(op: str, **shapes: tuple[int, ...]) -> None:
    """The shapes can be broadcast to one. Raises: ShapeError that names them."""
    try:
        np.broadcast_shapes(*shapes.values())
    except ValueError:
        named = " and ".join(str(shape) for shape in shapes.values())
        raise ShapeError(
            f"{op}: shapes {named} cannot be broadcast. Counted from the last, "
            "each pair of axes must be equal or one of them 1"
        ) from None


def operands(op: str, a: Any, b: Any) -> tuple[Tensor, Tensor]:
    """Both operands as tensors of one dtype, on one device, whose shapes can be broadcast."""
    a, b = operand(op, a, b), operand(op, b, a)
    checks.same_floats(op, a=a, b=b)
    if a.shape != b.shape:
        broadcastable(op, a=a.shape, b=b.shape)
    return a, b


def binary(
    op: str, a: Any, b: Any, forward: Callable[..., Array], backward: Callable[..., Any], *,
    keep: tuple[str, str],
) -> Tensor:  # fmt: skip
    """``forward(xp, a, b)``, with ``backward(xp, dy, a, b, y) -> (da, db)`` as functions that are only called
    if the operand needs a gradient.

    keep: for a, then for b, which of a, b and y its function reads: "ab". The others are None there, and no
        memory is held for an operand that needs no gradient.
    """
    a, b = operands(op, a, b)
    xp = backend.array_module(a.data)
    y = forward(xp, a.data, b.data)
    shapes = [x.shape if x.requires_grad else None for x in (a, b)]
    read = {name for names, shape in zip(keep, shapes, strict=True) if shape is not None for name in names}
    arrays = {"a": a.data, "b": b.data, "y": y}
    saved = {name: array if name in read else None for name, array in arrays.items()}

    def back(dy: Array) -> list[Array | None]:
        parts = zip(shapes, backward(xp, dy, **saved), strict=True)
        return [None if shape is None else unbroadcast(part(), shape) for shape, part in parts]

    return record(op, y, inputs={"a": a, "b": b}, saved=saved, backward=back)


def unary(
    op: str, x: Any, forward: Callable[..., Array], backward: Callable[..., Array], *, keep: str,
    **options: Any,
) -> Tensor:  # fmt: skip
    """``forward(xp, x)``, with ``backward(xp, dy, x, y)``, of which it reads those in ``keep``: "x", "y", "".

    The other is None there, and its memory is not held.
    """
    x = checks.as_tensor(x)
    checks.same_floats(op, x=x)
    xp, xdata = backend.array_module(x.data), x.data
    y = forward(xp, xdata)
    saved = {"x": xdata if "x" in keep else None, "y": y if "y" in keep else None}
    return record(
        op, y, inputs={"x": x}, options=options, saved=saved,
        backward=lambda dy: (backward(xp, dy, **saved),),
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------ cases

BROADCAST: list[tuple[str, Shape, Shape]] = [
    ("equal shapes", (2, 3), (2, 3)),
    ("row on matrix", (3, 2), (2,)),
    ("column and row", (3, 1), (1, 4)),
    ("inner axis", (2, 1, 3), (2, 4, 3)),
    ("single value", (), (2, 2)),
]


def with_number(op: Callable[..., Tensor], x: Tensor, *, number: float, first: bool = False) -> Tensor:
    return op(number, x) if first else op(x, number)


def unary_cases(make: Callable[[Shape], Make]) -> Callable[[], Iterator[Case]]:
    def cases() -> Iterator[Case]:
        for shape in [(), (3,), (2, 1, 3)]:
            yield Case(f"shape {shape}", {"x": make(shape)})

    return cases

"""Arithmetic, element by element: add, sub, mul, div, neg, pow, exp, log, sqrt.

    y = a + b    da = dy           db = dy
    y = a - b    da = dy           db = -dy
    y = a * b    da = dy * b       db = dy * a
    y = a / b    da = dy / b       db = -dy * y / b
    y = -x       dx = -dy
    y = x ** p   dx = dy * p * x ** (p - 1)        p is a number
    y = exp(x)   dx = dy * y
    y = log(x)   dx = dy / x
    y = sqrt(x)  dx = dy / (2 y)

Shapes: those of two operands are broadcast as NumPy does. Broadcasting copies an element to many places, so
its adjoint sums over these places: ``unbroadcast``.

A number (2, 0.5, np.float32(3)) takes the dtype of the tensor it meets; two tensors must agree.

NumPy and CuPy compute a + b, a - b, a * b and -x of bfloat16 as it should be, in float32 with one rounding of
the result. The others have more steps, and go the way of ``mixed``.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minires import backend
from minires.backend import Array
from minires.errors import ShapeError
from minires.ops import checks
from minires.ops.mixed_precision import mixed
from minires.tensor import Tensor, record


def unbroadcast(xp: Any, dy: Array, shape: Sequence[int]) -> Array:
    """The adjoint of broadcasting from ``shape``: sum ``dy`` over the axes that were added or stretched."""
    shape = tuple(shape)
    if dy.shape == shape:
        return dy
    added = dy.ndim - len(shape)
    stretched = [added + i for i, size in enumerate(shape) if size == 1 and dy.shape[added + i] != 1]
    total = xp.sum(dy, axis=(*range(added), *stretched), dtype=backend.accumulator(dy.dtype))
    return total.reshape(shape).astype(dy.dtype, copy=False)


def _operand(op: str, x: Any, other: Any) -> Tensor:
    """``x`` as a tensor; a number takes the dtype and the device of the tensor it meets."""
    if isinstance(x, Tensor):
        return x
    if isinstance(x, numbers.Real) and isinstance(other, Tensor):
        return Tensor(backend.array_module(other.data).asarray(x, dtype=other.dtype))
    if isinstance(x, list | tuple | numbers.Real) or hasattr(x, "dtype"):
        return Tensor(x)
    raise TypeError(f"{op}: an operand must be a tensor, an array or a number, not {x!r}")


def _operands(op: str, a: Any, b: Any) -> tuple[Tensor, Tensor]:
    """Both operands as tensors of one dtype, on one device, whose shapes can be broadcast."""
    a, b = _operand(op, a, b), _operand(op, b, a)
    checks.same_floats(op, a=a, b=b)
    if a.shape != b.shape:
        try:
            np.broadcast_shapes(a.shape, b.shape)
        except ValueError:
            raise ShapeError(
                f"{op}: shapes {a.shape} and {b.shape} cannot be broadcast. Counted from the last, "
                "each pair of axes must be equal or one of them 1"
            ) from None
    return a, b


def _binary(op: str, a: Any, b: Any, forward: Callable[..., Array], backward: Callable[..., Any]) -> Tensor:
    """``forward(a, b)``, with ``backward(dy, a, b, y) -> (da, db)`` as functions that are only called if
    the operand needs a gradient."""
    a, b = _operands(op, a, b)
    xp = backend.array_module(a.data)
    adata, bdata = a.data, b.data
    y = forward(adata, bdata)
    needed = (a.requires_grad, b.requires_grad)

    def back(dy: Array) -> list[Array | None]:
        parts = zip(needed, backward(dy, adata, bdata, y), (adata, bdata), strict=True)
        return [unbroadcast(xp, part(), x.shape) if need else None for need, part, x in parts]

    saved = {"a": adata, "b": bdata, "y": y}
    return record(op, y, inputs={"a": a, "b": b}, saved=saved, backward=back)


def add(a: Any, b: Any) -> Tensor:
    """The sum of two tensors, or of a tensor and a number.

    Math: y = a + b. Shapes: broadcast as in NumPy. Backward: da = db = dy, summed over stretched axes.
    Raises: ShapeError if shapes cannot be broadcast or dtypes or devices differ; TypeError for an operand
    that is no array.
    """
    a, b = _operands("add", a, b)
    xp = backend.array_module(a.data)
    shapes = [x.shape if x.requires_grad else None for x in (a, b)]  # the closure keeps no array alive

    def backward(dy: Array) -> list[Array | None]:
        return [None if shape is None else unbroadcast(xp, dy, shape) for shape in shapes]

    # Sums of equal shapes, the residual ones, run on all threads.
    y = backend.add(a.data, b.data) if a.shape == b.shape else a.data + b.data
    return record("add", y, inputs={"a": a, "b": b}, backward=backward)


def sub(a: Any, b: Any) -> Tensor:
    """The difference of two tensors, or of a tensor and a number.

    Math: y = a - b. Shapes, Raises: as :func:`add`. Backward: da = dy, db = -dy.
    """
    a, b = _operands("sub", a, b)
    xp = backend.array_module(a.data)
    ashape, bshape = (x.shape if x.requires_grad else None for x in (a, b))

    def backward(dy: Array) -> tuple[Array | None, Array | None]:
        da = None if ashape is None else unbroadcast(xp, dy, ashape)
        return da, None if bshape is None else -unbroadcast(xp, dy, bshape)

    return record("sub", a.data - b.data, inputs={"a": a, "b": b}, backward=backward)


def mul(a: Any, b: Any) -> Tensor:
    """The product, element by element, of two tensors, or of a tensor and a number.

    Math: y = a * b. Shapes, Raises: as :func:`add`. Backward: da = dy * b, db = dy * a.
    """
    return _binary("mul", a, b, lambda a, b: a * b, lambda dy, a, b, y: (lambda: dy * b, lambda: dy * a))


@mixed()
def div(a: Any, b: Any) -> Tensor:
    """The quotient, element by element, of two tensors, or of a tensor and a number.

    Math: y = a / b. Shapes, Raises: as :func:`add`. Backward: da = dy / b, db = -dy * y / b.
    """
    return _binary("div", a, b, lambda a, b: a / b, lambda dy, a, b, y: (lambda: dy / b, lambda: -dy * y / b))


def _unary(
    op: str, x: Any, forward: Callable[..., Array], backward: Callable[..., Array], **options: Any
) -> Tensor:
    x = checks.as_tensor(x)
    checks.same_floats(op, x=x)
    xp, xdata = backend.array_module(x.data), x.data
    y = forward(xp, xdata)
    return record(
        op,
        y,
        inputs={"x": x},
        options=options,
        saved={"x": xdata, "y": y},
        backward=lambda dy: (backward(xp, dy, xdata, y),),
    )


def neg(x: Tensor) -> Tensor:
    """The negative.

    Math: y = -x. Shapes: any. Backward: dx = -dy. Raises: ShapeError if ``x`` is not a float.
    """
    return _unary("neg", x, lambda xp, x: -x, lambda xp, dy, x, y: -dy)


@mixed()
def exp(x: Tensor) -> Tensor:
    """The exponential.

    Math: y = e ** x. Shapes: any. Backward: dx = dy * y. Raises: ShapeError if ``x`` is not a float.
    """
    return _unary("exp", x, lambda xp, x: xp.exp(x), lambda xp, dy, x, y: dy * y)


@mixed()
def log(x: Tensor) -> Tensor:
    """The natural logarithm; -inf at zero, NaN below, as in NumPy.

    Math: y = log(x). Shapes: any. Backward: dx = dy / x. Raises: ShapeError if ``x`` is not a float.
    """
    return _unary("log", x, lambda xp, x: xp.log(x), lambda xp, dy, x, y: dy / x)


@mixed()
def sqrt(x: Tensor) -> Tensor:
    """The square root; its gradient is infinite at zero, as in NumPy.

    Math: y = sqrt(x). Shapes: any. Backward: dx = dy / (2 y). Raises: ShapeError if ``x`` is not a float.
    """
    return _unary("sqrt", x, lambda xp, x: xp.sqrt(x), lambda xp, dy, x, y: dy / (y + y))


@mixed()
def pow(x: Tensor, exponent: float) -> Tensor:
    """A tensor to the power of a number.

    Math: y = x ** p. Shapes: any. Backward: dx = dy * p * x ** (p - 1), zero everywhere if p = 0.
    Raises: ShapeError if ``x`` is not a float; TypeError if the exponent is not a number.
    """
    if not isinstance(exponent, numbers.Real):
        raise TypeError(
            f"pow: the exponent must be a number, not {type(exponent).__name__}; "
            "for an exponent that is a tensor write exp(exponent * log(x))"
        )
    p = float(exponent)  # a Python float, which takes the dtype of x; a NumPy float64 would not

    def backward(xp: Any, dy: Array, x: Array, y: Array) -> Array:
        return xp.zeros_like(x) if p == 0 else dy * (p * x ** (p - 1))

    return _unary("pow", x, lambda xp, x: x**p, backward, exponent=p)

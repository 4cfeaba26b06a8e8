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
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from minires import backend
from minires.backend import Array
from minires.errors import ShapeError
from minires.ops import checks
from minires.ops.forms import Formula
from minires.ops.mixed_precision import mixed
from minires.ops.registry import Case, Make, Shape, Words, apart, normal, operation, positive
from minires.tensor import Tensor, record

# ------------------------------------------------------------------------------------------------ cases

_BROADCAST: list[tuple[str, Shape, Shape]] = [
    ("equal shapes", (2, 3), (2, 3)),
    ("row on matrix", (3, 2), (2,)),
    ("column and row", (3, 1), (1, 4)),
    ("inner axis", (2, 1, 3), (2, 4, 3)),
    ("single value", (), (2, 2)),
]


def _with_number(op: Callable[..., Tensor], x: Tensor, *, number: float, first: bool = False) -> Tensor:
    return op(number, x) if first else op(x, number)


def _binary_cases(number: float) -> Callable[[], Iterator[Case]]:
    """Two tensors of several shapes; and a tensor with a ``number``, before it and behind it."""

    def cases() -> Iterator[Case]:
        for name, a, b in _BROADCAST:
            yield Case(name, {"a": positive(a), "b": positive(b)})
        x, options = {"x": positive((2, 3))}, {"number": number}
        yield Case("tensor and number", x, options, _with_number)
        yield Case("number and tensor", x, {**options, "first": True}, _with_number)

    return cases


def _unary_cases(make: Callable[[Shape], Make]) -> Callable[[], Iterator[Case]]:
    def cases() -> Iterator[Case]:
        for shape in [(), (3,), (2, 1, 3)]:
            yield Case(f"shape {shape}", {"x": make(shape)})

    return cases


def _pow_cases() -> Iterator[Case]:
    for p in (2, 3.0, 0.5, -1, 1, 0):
        yield Case(f"p = {p}", {"x": positive((2, 3))}, {"exponent": p})
    yield Case("cube of negative numbers", {"x": apart((2, 3))}, {"exponent": 3})


# ------------------------------------------------------------------------------------------- operations


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


@operation(
    arithmetic=Formula("""
        y = a + b
        da = dy
        db = dy
    """),
    english=Words(
        "Addition",
        "Two tensors are added, place by place. In a residual block these are the branch and its shortcut.",
        "Addition hands its gradient to both summands unchanged: this is how it travels along the shortcut.",
    ),
    chinese=Words(
        "加法",
        "两个张量逐位相加；在残差块中，它们是主分支与捷径。",
        "加法把梯度原样交给两个加数：梯度正是这样沿捷径传回的。",
    ),
    label="+",
    short="+ constant",
    role="small",
    join="+",
    onnx="Add",
    cases=_binary_cases(2),
)
def add(a: Any, b: Any) -> Tensor:
    """The sum of two tensors, or of a tensor and a number.

    Shapes: broadcast as in NumPy.
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


@operation(
    arithmetic=Formula("""
        y = a - b
        da = dy
        db = -dy
    """),
    english=Words(
        "Subtraction",
        "The second tensor is taken from the first, place by place.",
        "The first gets the gradient, the second its negative.",
    ),
    chinese=Words("减法", "逐位相减。", "被减数得到梯度，减数得到其相反数。"),
    label="-",
    onnx="Sub",
    cases=_binary_cases(0.5),
)
def sub(a: Any, b: Any) -> Tensor:
    """The difference of two tensors, or of a tensor and a number.

    Shapes, Raises: as :func:`add`.
    """
    a, b = _operands("sub", a, b)
    xp = backend.array_module(a.data)
    ashape, bshape = (x.shape if x.requires_grad else None for x in (a, b))

    def backward(dy: Array) -> tuple[Array | None, Array | None]:
        da = None if ashape is None else unbroadcast(xp, dy, ashape)
        return da, None if bshape is None else -unbroadcast(xp, dy, bshape)

    return record("sub", a.data - b.data, inputs={"a": a, "b": b}, backward=backward)


@operation(
    arithmetic=Formula("""
        y = a * b
        da = dy * b
        db = dy * a
    """),
    english=Words(
        "Product",
        "Two tensors are multiplied, place by place. A gate scales whole channels so.",
        "Each factor gets the gradient times the other factor.",
    ),
    chinese=Words("乘法", "两个张量逐位相乘；门控以此缩放整个通道。", "每个因子得到梯度与另一因子的乘积。"),
    label="×",
    short="x constant",
    role="small",
    join="×",
    onnx="Mul",
    cases=_binary_cases(-3),
)
def mul(a: Any, b: Any) -> Tensor:
    """The product, element by element, of two tensors, or of a tensor and a number.

    Shapes, Raises: as :func:`add`.
    """
    return _binary("mul", a, b, lambda a, b: a * b, lambda dy, a, b, y: (lambda: dy * b, lambda: dy * a))


@operation(
    arithmetic=Formula("""
        y = a / b
        da = dy / b
        db = -dy * y / b
    """),
    english=Words(
        "Quotient",
        "The first tensor is divided by the second, place by place.",
        "A larger denominator makes the quotient smaller, so its gradient has the other sign.",
    ),
    chinese=Words("除法", "逐位相除。", "分母变大时商变小，因此分母的梯度符号相反。"),
    label="/",
    onnx="Div",
    cases=_binary_cases(4),
)
@mixed()
def div(a: Any, b: Any) -> Tensor:
    """The quotient, element by element, of two tensors, or of a tensor and a number.

    Shapes, Raises: as :func:`add`.
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


@operation(
    arithmetic=Formula("""
        y = -x
        dx = -dy
    """),
    english=Words("Negative", "Each number with the other sign.", "The gradient with the other sign."),
    chinese=Words("取负", "每个数取相反数。", "梯度取相反数。"),
    onnx="Neg",
    cases=_unary_cases(normal),
)
def neg(x: Tensor) -> Tensor:
    """The negative.

    Shapes: any. Raises: ShapeError if ``x`` is not a float.
    """
    return _unary("neg", x, lambda xp, x: -x, lambda xp, dy, x, y: -dy)


@operation(
    arithmetic=Formula("""
        y = exp(x)
        dx = dy * y
    """),
    english=Words("Exponential", "e to the power of each number.", "The gradient times y."),
    chinese=Words("指数", "每个数的指数函数值。", "梯度乘以 y。"),
    onnx="Exp",
    cases=_unary_cases(normal),
)
@mixed()
def exp(x: Tensor) -> Tensor:
    """The exponential.

    Shapes: any. Raises: ShapeError if ``x`` is not a float.
    """
    return _unary("exp", x, lambda xp, x: xp.exp(x), lambda xp, dy, x, y: dy * y)


@operation(
    arithmetic=Formula("""
        y = log(x)
        dx = dy / x
    """),
    english=Words("Logarithm", "The natural logarithm of each number.", "The gradient divided by x."),
    chinese=Words("对数", "每个数的自然对数。", "梯度除以 x。"),
    onnx="Log",
    cases=_unary_cases(positive),
)
@mixed()
def log(x: Tensor) -> Tensor:
    """The natural logarithm; -inf at zero, NaN below, as in NumPy.

    Shapes: any. Raises: ShapeError if ``x`` is not a float.
    """
    return _unary("log", x, lambda xp, x: xp.log(x), lambda xp, dy, x, y: dy / x)


@operation(
    arithmetic=Formula("""
        y = sqrt(x)
        dx = dy / (2 * y)
    """),
    english=Words("Square root", "The square root of each number.", "The gradient divided by 2 y."),
    chinese=Words("平方根", "每个数的平方根。", "梯度除以 2 y。"),
    onnx="Sqrt",
    cases=_unary_cases(positive),
)
@mixed()
def sqrt(x: Tensor) -> Tensor:
    """The square root; its gradient is infinite at zero, as in NumPy.

    Shapes: any. Raises: ShapeError if ``x`` is not a float.
    """
    return _unary("sqrt", x, lambda xp, x: xp.sqrt(x), lambda xp, dy, x, y: dy / (y + y))


@operation(
    arithmetic=Formula("""
        y = x ** exponent
        dx = dy * exponent * x ** (exponent - 1) if exponent != 0 else 0
    """),
    english=Words(
        "Power",
        "Each number to the power of the exponent p.",
        "The gradient times p x to the power of p - 1.",
    ),
    chinese=Words("幂", "每个数的 p 次幂。", "梯度乘以 p 与 x 的 p - 1 次幂。"),
    cases=_pow_cases,
)
@mixed()
def pow(x: Tensor, exponent: float) -> Tensor:
    """A tensor to the power of a number.

    Shapes: any.
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

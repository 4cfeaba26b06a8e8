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

Shapes, dtypes: those of two operands go together as minires.ops.elementwise says.

NumPy and CuPy compute a + b, a - b, a * b and -x of bfloat16 as it should be, in float32 with one rounding of
the result. The others have more steps, and go the way of ``mixed``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from minires import backend
from minires.backend import Array
from minires.errors import as_number
from minires.ops.elementwise import BROADCAST, binary, operands, unary, unary_cases, unbroadcast, with_number
from minires.ops.forms import Formula
from minires.ops.mixed_precision import mixed
from minires.ops.onnx_graph import Graph
from minires.ops.registry import Case, Words, apart, normal, operation, positive
from minires.tensor import Call, Operand, Tensor, record

# ------------------------------------------------------------------------------------------------ cases


def _binary_cases(number: float) -> Callable[[], Iterator[Case]]:
    """Two tensors of several shapes; and a tensor with a ``number``, before it and behind it."""

    def cases() -> Iterator[Case]:
        for name, a, b in BROADCAST:
            yield Case(name, {"a": positive(a), "b": positive(b)})
        x, options = {"x": positive((2, 3))}, {"number": number}
        yield Case("tensor and number", x, options, with_number)
        yield Case("number and tensor", x, {**options, "first": True}, with_number)

    return cases


def _pow_cases() -> Iterator[Case]:
    for p in (2, 3.0, 0.5, -1, 1, 0):
        yield Case(f"p = {p}", {"x": positive((2, 3))}, {"exponent": p})
    yield Case("cube of negative numbers", {"x": apart((2, 3))}, {"exponent": 3})


# ------------------------------------------------------------------------------------------- operations


@operation(
    arithmetic=Formula("""
        y = a + b
        da = dy
        db = dy
    """),
    english=Words(
        "Addition",
        "Two tensors are added, place by place.{stretched?| In a residual block these are the branch and its "
        "shortcut.}",
        "Addition hands its gradient to both summands unchanged{stretched?, and a number that was read at "
        "several places gets their sum|: this is how it travels along the shortcut}.",
    ),
    chinese=Words(
        "加法",
        "两个张量逐位相加{stretched?|；在残差块中，它们是主分支与捷径}。",
        "加法把梯度原样交给两个加数{stretched?；在多处被读取的数得到各处梯度之和|：梯度正是这样沿捷径传回的}。",
    ),
    label="+",
    short="+ constant",
    role="small",
    join="+",
    onnx="Add",
    cases=_binary_cases(2),
)
def add(a: Operand, b: Operand) -> Tensor:
    """The sum of two tensors, or of a tensor and a number.

    Shapes: broadcast as in NumPy.
    Raises: ShapeError if shapes cannot be broadcast or dtypes or devices differ; TypeError for an operand
    that is no array.

    >>> add(Tensor([[1.0], [2.0]]), Tensor([10.0, 20.0])).tolist()
    [[11.0, 21.0], [12.0, 22.0]]
    """
    a, b = operands("add", a, b)
    shapes = [x.shape if x.requires_grad else None for x in (a, b)]  # the closure keeps no array alive

    def backward(dy: Array) -> list[Array | None]:
        return [None if shape is None else unbroadcast(dy, shape) for shape in shapes]

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
def sub(a: Operand, b: Operand) -> Tensor:
    """The difference of two tensors, or of a tensor and a number.

    Shapes, Raises: as :func:`add`.

    >>> sub(1, Tensor([0.25, 3.0])).tolist()
    [0.75, -2.0]
    """
    a, b = operands("sub", a, b)
    ashape, bshape = (x.shape if x.requires_grad else None for x in (a, b))

    def backward(dy: Array) -> tuple[Array | None, Array | None]:
        da = None if ashape is None else unbroadcast(dy, ashape)
        return da, None if bshape is None else -unbroadcast(dy, bshape)

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
def mul(a: Operand, b: Operand) -> Tensor:
    """The product, element by element, of two tensors, or of a tensor and a number.

    Shapes, Raises: as :func:`add`.

    >>> mul(Tensor([1.0, 2.0]), Tensor([3.0, 5.0])).tolist()
    [3.0, 10.0]
    """
    return binary(
        "mul", a, b, lambda xp, a, b: a * b,
        lambda xp, dy, a, b, y: (lambda: dy * b, lambda: dy * a), keep=("b", "a"),
    )  # fmt: skip


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
def div(a: Operand, b: Operand) -> Tensor:
    """The quotient, element by element, of two tensors, or of a tensor and a number.

    Shapes, Raises: as :func:`add`.

    >>> div(Tensor([1.0, 6.0]), 4).tolist()
    [0.25, 1.5]
    """
    return binary(
        "div", a, b, lambda xp, a, b: a / b,
        lambda xp, dy, a, b, y: (lambda: dy / b, lambda: -dy * y / b), keep=("b", "by"),
    )  # fmt: skip


@operation(
    arithmetic=Formula("""
        y = -x
        dx = -dy
    """),
    english=Words("Negative", "Each number with the other sign.", "The gradient with the other sign."),
    chinese=Words("取负", "每个数取相反数。", "梯度取相反数。"),
    onnx="Neg",
    cases=unary_cases(normal),
)
def neg(x: Tensor) -> Tensor:
    """The negative.

    Shapes: any. Raises: ShapeError if ``x`` is not a float.

    >>> neg(Tensor([1.0, -2.0])).tolist()
    [-1.0, 2.0]
    """
    return unary("neg", x, lambda xp, x: -x, lambda xp, dy, x, y: -dy, keep="")


@operation(
    arithmetic=Formula("""
        y = exp(x)
        dx = dy * y
    """),
    english=Words("Exponential", "e to the power of each number.", "The gradient times y."),
    chinese=Words("指数", "每个数的指数函数值。", "梯度乘以 y。"),
    onnx="Exp",
    cases=unary_cases(normal),
)
@mixed()
def exp(x: Tensor) -> Tensor:
    """The exponential.

    Shapes: any. Raises: ShapeError if ``x`` is not a float.

    >>> exp(Tensor([0.0, 1.0])).numpy().round(4)
    array([1.    , 2.7183], dtype=float32)
    """
    return unary("exp", x, lambda xp, x: xp.exp(x), lambda xp, dy, x, y: dy * y, keep="y")


@operation(
    arithmetic=Formula("""
        y = log(x)
        dx = dy / x
    """),
    english=Words("Logarithm", "The natural logarithm of each number.", "The gradient divided by x."),
    chinese=Words("对数", "每个数的自然对数。", "梯度除以 x。"),
    onnx="Log",
    cases=unary_cases(positive),
)
@mixed()
def log(x: Tensor) -> Tensor:
    """The natural logarithm; -inf at zero, NaN below, as in NumPy.

    Shapes: any. Raises: ShapeError if ``x`` is not a float.

    >>> log(exp(Tensor([0.0, 3.0]))).tolist()
    [0.0, 3.0]
    """
    return unary("log", x, lambda xp, x: xp.log(x), lambda xp, dy, x, y: dy / x, keep="x")


@operation(
    arithmetic=Formula("""
        y = sqrt(x)
        dx = dy / (2 * y)
    """),
    english=Words("Square root", "The square root of each number.", "The gradient divided by 2 y."),
    chinese=Words("平方根", "每个数的平方根。", "梯度除以 2 y。"),
    onnx="Sqrt",
    cases=unary_cases(positive),
)
@mixed()
def sqrt(x: Tensor) -> Tensor:
    """The square root; its gradient is infinite at zero, as in NumPy.

    Shapes: any. Raises: ShapeError if ``x`` is not a float.

    >>> sqrt(Tensor([4.0, 9.0])).tolist()
    [2.0, 3.0]
    """
    return unary("sqrt", x, lambda xp, x: xp.sqrt(x), lambda xp, dy, x, y: dy / (y + y), keep="y")


def _pow_onnx(graph: Graph, call: Call) -> str:
    (x,) = call.inputs.values()
    return graph.add("Pow", graph.value(x), graph.weight(np.array(call.options["exponent"])))


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
    onnx=_pow_onnx,
    cases=_pow_cases,
)
@mixed()
def pow(x: Operand, exponent: Operand) -> Tensor:
    """A tensor to the power of a number, or of a tensor, element by element: :func:`power`.

    Shapes: any.
    Raises: ShapeError if ``x`` is not a float; TypeError if an operand is no tensor, array or number.

    >>> x = Tensor([1.0, 2.0, 3.0])
    >>> (x**2).tolist(), (2**x).tolist()
    ([1.0, 4.0, 9.0], [2.0, 4.0, 8.0])
    """
    p = as_number(exponent)  # a Python float, which takes the dtype of x; a NumPy float64 would not
    if p is None:
        return power(x, exponent)

    def backward(xp: Any, dy: Array, x: Array, y: None) -> Array:
        return xp.zeros_like(dy) if p == 0 else dy * (p * x ** (p - 1))

    return unary("pow", x, lambda xp, x: x**p, backward, keep="" if p == 0 else "x", exponent=p)


def _power_cases() -> Iterator[Case]:
    for name, a, b in BROADCAST:
        yield Case(name, {"a": positive(a), "b": normal(b)})
    yield Case("number and tensor", {"x": (2, 3)}, {"number": 2.5, "first": True}, with_number)


@operation(
    arithmetic=Formula("""
        y = a ** b
        da = dy * b * a ** (b - 1) if b != 0 else 0
        db = dy * y * log(a) if a != 0 or b < 0 else 0
    """),
    english=Words(
        "Power",
        "Each number of a to the power of its number of b.",
        "The base gets the gradient times b a to the power of b - 1, the exponent that times y log a.",
    ),
    chinese=Words(
        "幂", "a 的每个数的 b 次幂。", "底数的梯度乘以 b 与 a 的 b - 1 次幂，指数的梯度乘以 y 与 log a。"
    ),
    onnx="Pow",
    cases=_power_cases,
)
@mixed()
def power(a: Operand, b: Operand) -> Tensor:
    """A tensor to the power of a tensor, element by element; one of them may be a number.

    Shapes, Raises: as :func:`add`. A negative base to a power that is not whole is NaN, as in NumPy.

    >>> x = Tensor([1.0, 2.0, 3.0])
    >>> (x**x).tolist()
    [1.0, 4.0, 27.0]
    """

    def backward(xp: Any, dy: Array, a: Array, b: Array, y: Array) -> Any:
        one = xp.ones((), a.dtype)  # takes the place of what would make 0 * inf

        def da() -> Array:
            return dy * (b * a ** (xp.where(b == 0, one, b) - 1))

        def db() -> Array:
            return dy * (y * xp.log(xp.where((a == 0) & (b >= 0), one, a)))

        return da, db

    return binary("power", a, b, lambda xp, a, b: a**b, backward, keep=("ab", "aby"))

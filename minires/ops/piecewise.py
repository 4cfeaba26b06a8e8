"""Operations that choose, element by element, among several formulas: abs, maximum, minimum, clip, where.

    y = |x|                       dx = dy * sign(x)
    y = max(a, b)                 da = dy where a > b, half of it where a = b, else 0; db as da, exchanged
    y = min(a, b)                 da = dy where a < b, half of it where a = b, else 0; db as da, exchanged
    y = x held in [low, high]     dx = dy where low <= x <= high, else 0
    y = a where c, else b         da = dy where c, else 0; db = 0 where c, else dy

Where two formulas meet there is a kink, and any number between the two slopes may be called the gradient.
Here it is PyTorch's: 0 for abs, half for each of two equal numbers, all of it at both ends of a clip.

Shapes, dtypes: those of two operands go together as minires.ops.elementwise says. NaN stays NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from minires import backend
from minires.backend import Array
from minires.errors import ShapeError
from minires.ops import checks
from minires.ops.elementwise import (
    BROADCAST,
    binary,
    broadcastable,
    operands,
    unary,
    unary_cases,
    unbroadcast,
    with_number,
)
from minires.ops.forms import Formula
from minires.ops.mixed_precision import mixed
from minires.ops.onnx_graph import Graph
from minires.ops.registry import Case, Shape, Words, apart, operation
from minires.tensor import Call, Operand, Tensor, as_array, record


@operation(
    arithmetic=Formula("""
        y = abs(x)
        dx = dy * sign(x)
    """),
    english=Words("Absolute value", "Each number without its sign.", "The gradient with the sign of x."),
    chinese=Words("绝对值", "去掉每个数的符号。", "梯度乘以 x 的符号。"),
    label="|x|",
    onnx="Abs",
    cases=unary_cases(apart),
)
@mixed()
def abs(x: Tensor) -> Tensor:
    """The absolute value.

    Shapes: any.
    Raises: ShapeError if ``x`` is not a float.

    >>> abs(Tensor([-2.0, 0.0, 3.0])).tolist()
    [2.0, 0.0, 3.0]
    """
    return unary("abs", x, lambda xp, x: xp.abs(x), lambda xp, dy, x, y: dy * xp.sign(x), keep="x")


def _share(larger: Array, smaller: Array) -> Array:
    """The share of the gradient that the larger one gets: 1, or half where they are equal."""
    half = larger.dtype.type(0.5)
    return (larger > smaller).astype(larger.dtype) + half * (larger == smaller)


def _cases() -> Iterator[Case]:
    for name, a, b in BROADCAST:
        yield Case(name, {"a": apart(a), "b": apart(b, shift=0.25)})
    yield Case("tensor and number", {"x": apart((2, 3))}, {"number": 0.5}, with_number)


@operation(
    arithmetic=Formula("""
        y = max(a, b)
        da = dy if a > b else dy / 2 if a == b else 0
        db = dy if b > a else dy / 2 if a == b else 0
    """),
    english=Words(
        "Larger of two",
        "Place by place the larger of two numbers.",
        "The larger one gets the gradient; two equal ones share it.",
    ),
    chinese=Words("较大者", "逐位取两数中较大的一个。", "较大的数得到梯度；两数相等时各得一半。"),
    label="max",
    onnx="Max",
    cases=_cases,
)
@mixed()
def maximum(a: Operand, b: Operand) -> Tensor:
    """The larger one of two numbers, element by element, of two tensors or of a tensor and a number.

    Shapes: broadcast as in NumPy.
    Raises: ShapeError if shapes cannot be broadcast or dtypes or devices differ; TypeError for an operand
    that is no array.

    >>> maximum(Tensor([-1.0, 5.0]), 0).tolist()
    [0.0, 5.0]
    """
    return binary(
        "maximum", a, b, lambda xp, a, b: xp.maximum(a, b),
        lambda xp, dy, a, b, y: (lambda: dy * _share(a, b), lambda: dy * _share(b, a)), keep=("ab", "ab"),
    )  # fmt: skip


@operation(
    arithmetic=Formula("""
        y = min(a, b)
        da = dy if a < b else dy / 2 if a == b else 0
        db = dy if b < a else dy / 2 if a == b else 0
    """),
    english=Words(
        "Smaller of two",
        "Place by place the smaller of two numbers.",
        "The smaller one gets the gradient; two equal ones share it.",
    ),
    chinese=Words("较小者", "逐位取两数中较小的一个。", "较小的数得到梯度；两数相等时各得一半。"),
    label="min",
    onnx="Min",
    cases=_cases,
)
@mixed()
def minimum(a: Operand, b: Operand) -> Tensor:
    """The smaller one of two numbers, element by element, of two tensors or of a tensor and a number.

    Shapes, Raises: as :func:`maximum`.

    >>> minimum(Tensor([-1.0, 5.0]), Tensor([2.0, 2.0])).tolist()
    [-1.0, 2.0]
    """
    return binary(
        "minimum", a, b, lambda xp, a, b: xp.minimum(a, b),
        lambda xp, dy, a, b, y: (lambda: dy * _share(b, a), lambda: dy * _share(a, b)), keep=("ab", "ab"),
    )  # fmt: skip


def _clip_cases() -> Iterator[Case]:
    for low, high in [(-1, 0.5), (None, 0.5), (-1, None), (-9, 9)]:
        yield Case(f"from {low} to {high}", {"x": apart((2, 3))}, {"low": low, "high": high})


def _clip_onnx(graph: Graph, call: Call) -> str:
    (x,) = call.inputs.values()
    bounds = [call.options[name] for name in ("low", "high")]
    given = ["" if bound is None else graph.weight(np.array(bound)) for bound in bounds]
    return graph.add("Clip", graph.value(x), *given)


@operation(
    arithmetic=Formula(
        """
        y = min(max(x, low), high)
        dx = dy if low <= x <= high else 0
        """,
        optional=("low", "high"),
    ),
    english=Words(
        "Clip",
        "Numbers {low == none?above the bound are set to it|{high == none?below the bound are set to it"
        "|outside the bounds are set to the nearer one}}.",
        "The gradient goes through where x is {low == none?not above the bound|{high == none?not below the "
        "bound|between the bounds}}, and is zero elsewhere.",
    ),
    chinese=Words(
        "截断",
        "{low == none?大于上限|{high == none?小于下限|超出界限}}的数设为界限值。",
        "x 在界限之内时梯度通过，否则为零。",
    ),
    onnx=_clip_onnx,
    cases=_clip_cases,
)
@mixed()
def clip(x: Tensor, low: float | None = None, high: float | None = None) -> Tensor:
    """Every number held between ``low`` and ``high``, of which one may be None: no bound.

    Where the bounds are tensors, :func:`maximum` and :func:`minimum` do it.

    Shapes: any.
    Raises: ShapeError if ``x`` is not a float, no bound is given, or ``low`` is above ``high``; ConfigError
    if a bound is no number.

    >>> clip(Tensor([-3.0, 0.5, 9.0]), 0, 1).tolist()
    [0.0, 0.5, 1.0]
    """
    if low is None and high is None:
        raise ShapeError("clip: give low, high, or both; without a bound nothing is to be done")
    # Python's own numbers, which take the dtype of x.
    low = None if low is None else checks.number("clip", "low", low)
    high = None if high is None else checks.number("clip", "high", high)
    floor, ceiling = -np.inf if low is None else low, np.inf if high is None else high
    if floor > ceiling:
        raise ShapeError(f"clip: low={low:g} is above high={high:g}")

    def backward(xp: Any, dy: Array, x: Array, y: Array) -> Array:
        return dy * ((floor <= x) & (x <= ceiling))

    return unary("clip", x, lambda xp, x: xp.clip(x, floor, ceiling), backward, keep="x", low=low, high=high)


def _where_case(op: Callable[..., Tensor], a: Any, b: Any, *, condition: Any) -> Tensor:
    return op(condition, a, b)


def _where_cases() -> Iterator[Case]:
    conditions: list[tuple[str, Shape, Shape, Any]] = [
        ("equal shapes", (2, 2), (2, 2), [[True, False], [False, True]]),
        ("one condition for each row", (2, 3), (2, 3), [[True], [False]]),
        ("row and column", (3,), (2, 1), [True, False, True]),
        ("single condition", (2,), (2,), True),
    ]
    for name, a, b, condition in conditions:
        yield Case(name, {"a": a, "b": b}, {"condition": np.array(condition)}, _where_case)
    yield Case("tensor and number", {"a": (2,)}, {"b": 0, "condition": [True, False]}, _where_case)


@operation(
    arithmetic=Formula(
        """
        y = a if condition != 0 else b
        da = dy if condition != 0 else 0
        db = 0 if condition != 0 else dy
        """,
        saved=("condition",),
    ),
    math="y = a where the condition is true, else b",
    backward="da = dy where the condition is true, else 0; db = dy where it is false, else 0",
    english=Words(
        "Choice",
        "Place by place one of two numbers, as the condition says.",
        "The one that was chosen gets the gradient.",
    ),
    chinese=Words("选择", "按条件逐位选取两数之一。", "被选中的数得到梯度。"),
    cases=_where_cases,
)
def where(condition: Any, a: Operand, b: Operand) -> Tensor:
    """Elements of ``a`` where ``condition`` is true, of ``b`` elsewhere.

    condition: an array (or a tensor) of bool, such as ``x > 0``; it gets no gradient.

    Shapes: all three are broadcast as in NumPy.
    Raises: ShapeError if the condition is not of bool, shapes cannot be broadcast, or dtypes or devices
    differ; TypeError for an operand that is no array.

    >>> x = Tensor([-2.0, 3.0])
    >>> where(x > 0, x, x / 2).tolist()
    [-1.0, 3.0]
    """
    chosen = as_array(condition)
    if chosen.dtype.kind != "b":
        raise ShapeError(
            f"where: the condition must be of bool, as x > 0 gives, not of {chosen.dtype}; "
            "whether numbers are not zero is asked by x != 0"
        )
    a, b = operands("where", a, b)
    broadcastable("where", condition=chosen.shape, a=a.shape, b=b.shape)
    return _where(a, b, backend.own(chosen, a.device))


@mixed()
def _where(a: Tensor, b: Tensor, condition: Array) -> Tensor:
    xp = backend.array_module(a.data)
    shapes = [x.shape if x.requires_grad else None for x in (a, b)]

    def backward(dy: Array) -> list[Array | None]:
        zero = xp.zeros((), dy.dtype)
        parts = ((condition, dy, zero), (condition, zero, dy))
        return [
            None if shape is None else unbroadcast(xp.where(*part), shape)
            for shape, part in zip(shapes, parts, strict=True)
        ]

    y = xp.where(condition, a.data, b.data)
    return record("where", y, inputs={"a": a, "b": b}, saved={"condition": condition}, backward=backward)

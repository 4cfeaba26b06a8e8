"""Logistic sigmoid: squeezes every number into (0, 1).

    y = 1 / (1 + exp(-x))
    dx = dy * y * (1 - y)

Computed from e = exp(-|x|), which never overflows: 1 / (1 + e) where x >= 0, e / (1 + e) elsewhere.

Shapes: any; y has the shape of x.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from minires import backend
from minires.backend import Array
from minires.ops import checks
from minires.ops.forms import Formula
from minires.ops.mixed_precision import mixed
from minires.ops.registry import Case, Words, operation
from minires.tensor import Tensor, record


def _forward(xp: Any, x: Array) -> Array:
    e = xp.exp(-xp.abs(x))
    return xp.where(x >= 0, xp.ones((), x.dtype), e) / (1 + e)


def _backward(xp: Any, dy: Array, y: Array) -> Array:
    return dy * y * (1 - y)


def _cases() -> Iterator[Case]:
    for shape in [(), (3,), (2, 1, 3)]:
        yield Case(f"shape {shape}", {"x": shape})


@operation(
    arithmetic=Formula("""
        y = 1 / (1 + exp(-x))
        dx = dy * y * (1 - y)
    """),
    english=Words(
        "Sigmoid",
        "Every number is brought between 0 and 1.",
        "The gradient times y (1 - y): small where y is near 0 or 1.",
    ),
    chinese=Words("Sigmoid", "把每个数变到 0 与 1 之间。", "梯度乘以 y (1 - y)：y 接近 0 或 1 处很小。"),
    role="small",
    onnx="Sigmoid",
    cases=_cases,
)
@mixed()
def sigmoid(x: Tensor) -> Tensor:
    """Squeeze every number into (0, 1).

    Shapes: any; y as x. Raises: ShapeError if ``x`` is not a float.

    >>> sigmoid(Tensor([-1000.0, 0.0, 1000.0])).tolist()
    [0.0, 0.5, 1.0]
    """
    x = checks.as_tensor(x)
    checks.same_floats("sigmoid", x=x)
    xp = backend.array_module(x.data)
    y = _forward(xp, x.data)
    return record("sigmoid", y, inputs={"x": x}, saved={"y": y}, backward=lambda dy: (_backward(xp, dy, y),))

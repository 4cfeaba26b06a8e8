"""Hyperbolic tangent: squeezes every number into (-1, 1).

    y = (exp(x) - exp(-x)) / (exp(x) + exp(-x))
    dx = dy * (1 - y^2)

Shapes: any; y has the shape of x.
"""

from __future__ import annotations

from typing import Any

from minires import backend
from minires.backend import Array
from minires.ops import checks
from minires.ops.elementwise import unary_cases
from minires.ops.forms import Formula
from minires.ops.mixed_precision import mixed
from minires.ops.registry import Words, normal, operation
from minires.tensor import Tensor, record


def _forward(xp: Any, x: Array) -> Array:
    return xp.tanh(x)  # which does not overflow, as the formula would


def _backward(xp: Any, dy: Array, y: Array) -> Array:
    return dy * (1 - y * y)


@operation(
    arithmetic=Formula("""
        y = tanh(x)
        dx = dy * (1 - y * y)
    """),
    english=Words(
        "Hyperbolic tangent",
        "Every number is squeezed into (-1, 1).",
        "The gradient is scaled by 1 - y^2: small where y is near -1 or 1.",
    ),
    chinese=Words("双曲正切", "把每个数压缩到 (-1, 1)。", "梯度乘以 1 - y^2：y 接近 -1 或 1 时很小。"),
    onnx="Tanh",
    cases=unary_cases(normal),
)
@mixed()
def tanh(x: Tensor) -> Tensor:
    """Squeeze every number into (-1, 1).

    Shapes: any. Raises: ShapeError if ``x`` is not a float.

    >>> tanh(Tensor([-100.0, 0.0, 0.5])).numpy().round(4)
    array([-1.    ,  0.    ,  0.4621], dtype=float32)
    """
    x = checks.as_tensor(x)
    checks.same_floats("tanh", x=x)
    xp = backend.array_module(x.data)
    y = _forward(xp, x.data)
    return record("tanh", y, inputs={"x": x}, saved={"y": y}, backward=lambda dy: (_backward(xp, dy, y),))

"""Rectified linear unit: negative values become zero.

    y = max(x, 0)
    dx = dy where y > 0, else 0

Shapes: any; y has the shape of x.
Source: Nair and Hinton 2010, Rectified linear units improve restricted Boltzmann machines.
"""

from __future__ import annotations

from typing import Any

from minires import backend
from minires.backend import Array
from minires.ops import checks
from minires.tensor import Tensor, record


def _forward(xp: Any, x: Array) -> Array:
    return xp.maximum(x, xp.zeros((), x.dtype))


def _backward(xp: Any, dy: Array, y: Array) -> Array:
    return dy * (y > 0)


def relu(x: Tensor) -> Tensor:
    """Set negative values to zero.

    Math: y = max(x, 0). Backward: dx = dy where y > 0; at exactly zero the gradient is zero.
    Shapes: any. Raises: ShapeError if ``x`` is not float32 or float64.
    """
    x = checks.as_tensor(x)
    checks.same_floats("relu", x=x)
    xp = backend.array_module(x.data)
    y = _forward(xp, x.data)
    return record("relu", y, (x,), lambda dy: (_backward(xp, dy, y),))

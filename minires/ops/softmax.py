"""Softmax and its logarithm, along the last axis.

    y = exp(x) / sum exp(x)              dx = y * (dy - sum(dy * y))
    y = x - log sum exp(x)               dx = dy - exp(y) * sum(dy)           (log_softmax)

The largest x is subtracted first: the result is the same and nothing overflows, whatever the size of x.

Shapes: x (..., K); y has the shape of x.
"""

from __future__ import annotations

from typing import Any

from minires import backend
from minires.backend import Array
from minires.errors import ShapeError
from minires.ops import checks
from minires.tensor import Tensor, record


def _forward(xp: Any, x: Array) -> Array:
    e = xp.exp(x - xp.max(x, axis=-1, keepdims=True))
    return e / xp.sum(e, axis=-1, keepdims=True)


def _backward(xp: Any, dy: Array, y: Array) -> Array:
    return y * (dy - xp.sum(dy * y, axis=-1, keepdims=True))


def _forward_log(xp: Any, x: Array) -> Array:
    shifted = x - xp.max(x, axis=-1, keepdims=True)
    return shifted - xp.log(xp.sum(xp.exp(shifted), axis=-1, keepdims=True))


def _backward_log(xp: Any, dy: Array, y: Array) -> Array:
    return dy - xp.exp(y) * xp.sum(dy, axis=-1, keepdims=True)


def _checked(op: str, x: Tensor) -> Tensor:
    x = checks.as_tensor(x)
    checks.same_floats(op, x=x)
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ShapeError(f"{op}: x must be (..., K) with at least one class, not of shape {x.shape}")
    return x


def softmax(x: Tensor) -> Tensor:
    """Turn scores into probabilities that sum to one along the last axis.

    Math, Shapes, Backward: see the head of this file.
    Raises: ShapeError if ``x`` has no classes or is not float32 or float64.
    """
    x = _checked("softmax", x)
    xp = backend.array_module(x.data)
    y = _forward(xp, x.data)
    return record("softmax", y, (x,), lambda dy: (_backward(xp, dy, y),))


def log_softmax(x: Tensor) -> Tensor:
    """The logarithm of :func:`softmax`, exact where a probability would round to zero.

    Math, Shapes, Backward: see the head of this file.
    Raises: ShapeError if ``x`` has no classes or is not float32 or float64.
    """
    x = _checked("log_softmax", x)
    xp = backend.array_module(x.data)
    y = _forward_log(xp, x.data)
    return record("log_softmax", y, (x,), lambda dy: (_backward_log(xp, dy, y),))

"""A border of zeros around pictures.

    y[n, top + i, left + j, c] = x[n, i, j, c], zero elsewhere
    dx = dy without its border

Shapes: x (N, H, W, C) -> y (N, top + H + bottom, left + W + right, C).
"""

from __future__ import annotations

from typing import Any

from minires import backend
from minires.backend import Array
from minires.ops import checks
from minires.ops.window import Padding, sides
from minires.tensor import Tensor, record


def _forward(xp: Any, x: Array, border: tuple[int, int, int, int]) -> Array:
    top, bottom, left, right = border
    return xp.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))


def _backward(xp: Any, dy: Array, border: tuple[int, int, int, int]) -> Array:
    top, bottom, left, right = border
    return dy[:, top : dy.shape[1] - bottom, left : dy.shape[2] - right, :]


def pad(x: Tensor, padding: Padding) -> Tensor:
    """Add a border of zeros to the height and the width of pictures.

    ``padding`` is an int, a pair (height, width), or four sides ((top, bottom), (left, right)).
    Math, Shapes, Backward: see the head of this file.
    Raises: ShapeError if ``x`` is not (N, H, W, C) or the padding makes no sense.
    """
    x = checks.as_tensor(x)
    checks.rank("pad", "x", x, "(N, H, W, C)")
    checks.same_floats("pad", x=x)
    border = sides("pad", padding)
    xp = backend.array_module(x.data)
    top, bottom, left, right = border
    return record(
        "pad",
        _forward(xp, x.data, border),
        inputs={"x": x},
        options={"padding": ((top, bottom), (left, right))},
        backward=lambda dy: (_backward(xp, dy, border),),
    )

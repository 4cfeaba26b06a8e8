"""Shortcut option A of the ResNet paper: fewer places, more channels, no parameters.

    y[n, i, j, before + c] = x[n, i * stride, j * stride, c], zero in the channels added
    dx = dy of the channels that came from x, at the places that were read, zero elsewhere

Shapes: x (N, H, W, C) -> y (N, ceil(H / stride), ceil(W / stride), channels).

Source: He et al. 2016, Deep residual learning for image recognition, section 3.3 (option A): plain
subsampling, with the zero channels AFTER the others. Some widely used weights were trained with half of them
before and half after; ``both`` reproduces these.
"""

from __future__ import annotations

from typing import Any

from minires import backend
from minires.backend import Array
from minires.errors import ShapeError
from minires.ops import checks
from minires.tensor import Tensor, record


def _forward(xp: Any, x: Array, channels: int, stride: int, before: int) -> Array:
    small = x[:, ::stride, ::stride, :]
    after = channels - before - x.shape[-1]
    return xp.pad(small, ((0, 0), (0, 0), (0, 0), (before, after)))


def _backward(xp: Any, dy: Array, shape: tuple[int, ...], stride: int, before: int) -> Array:
    dx = xp.zeros(shape, dy.dtype)
    dx[:, ::stride, ::stride, :] = dy[..., before : before + shape[-1]]
    return dx


def pad_channels(x: Tensor, channels: int, *, stride: int = 1, both: bool = False) -> Tensor:
    """Take every ``stride``-th place and add channels of zeros until there are ``channels``.

    The zero channels come after those of ``x``, or with ``both`` half before and half after (the odd one
    after). Math, Shapes, Backward, Source: see the head of this file.
    Raises: ShapeError if ``x`` is not (N, H, W, C) or has more than ``channels`` channels, or the stride is
    not at least 1.
    """
    x = checks.as_tensor(x)
    checks.rank("pad_channels", "x", x, "(N, H, W, C)")
    checks.same_floats("pad_channels", x=x)
    if not isinstance(channels, int) or channels < x.shape[-1]:
        raise ShapeError(
            f"pad_channels: x {x.shape} has {x.shape[-1]} channels already; "
            f"channels={channels} must be a whole number that is not smaller"
        )
    if not isinstance(stride, int) or stride < 1:
        raise ShapeError(f"pad_channels: stride must be a whole number of at least 1, not {stride!r}")
    before = (channels - x.shape[-1]) // 2 if both else 0
    xp, shape = backend.array_module(x.data), x.shape
    y = _forward(xp, x.data, channels, stride, before)
    return record("pad_channels", y, (x,), lambda dy: (_backward(xp, dy, shape, stride, before),))

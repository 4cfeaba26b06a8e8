"""Max pooling on the CPU: one pass over the pictures, which are shared out among the threads.

What is computed stands in ``minires.ops.max_pool2d``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minires import backend
from minires.backend import Array, kernel
from minires.ops.window import Window


@kernel
def _forward_numba(x, y, winner, size, stride, dilation, top, left):
    _, h, w, channels = x.shape
    for n in range(y.shape[0]):
        for oh in range(y.shape[1]):
            for ow in range(y.shape[2]):
                best, where = y[n, oh, ow], winner[n, oh, ow]
                start_h, start_w = oh * stride[0] - top, ow * stride[1] - left
                first_i, stop_i = max(0, -start_h), min(size[0], h - start_h)
                first_j, stop_j = max(0, -start_w), min(size[1], w - start_w)
                if dilation[0] > 1:
                    first_i = max(0, -(start_h // dilation[0]))
                    stop_i = min(size[0], -((start_h - h) // dilation[0]))
                if dilation[1] > 1:
                    first_j = max(0, -(start_w // dilation[1]))
                    stop_j = min(size[1], -((start_w - w) // dilation[1]))
                best[:] = -np.inf
                where[:] = first_i * size[1] + first_j  # the first pixel, which may be -inf itself
                for i in range(first_i, stop_i):
                    for j in range(first_j, stop_j):
                        pixel = x[n, start_h + i * dilation[0], start_w + j * dilation[1]]
                        place = np.int32(i * size[1] + j)
                        for c in range(channels):
                            better = pixel[c] > best[c] or np.isnan(pixel[c])
                            where[c] = place if better else where[c]
                            best[c] = pixel[c] if better else best[c]


@kernel
def _backward_numba(dy, winner, dx, size, stride, dilation, top, left):
    dx[...] = 0.0
    for n in range(dy.shape[0]):
        for oh in range(dy.shape[1]):
            for ow in range(dy.shape[2]):
                for c in range(dy.shape[3]):
                    i, j = divmod(winner[n, oh, ow, c], size[1])
                    h, w = oh * stride[0] + i * dilation[0] - top, ow * stride[1] + j * dilation[1] - left
                    dx[n, h, w, c] += dy[n, oh, ow, c]


def _window(win: Window) -> tuple[Any, ...]:
    """What the kernels ask of a window."""
    return win.size, win.stride, win.dilation, win.top, win.left


def forward(x: Array, win: Window) -> tuple[Array, Array]:
    """y (N, OH, OW, C), and which pixel of the window each number came from."""
    y = np.empty((len(x), *win.out, x.shape[-1]), x.dtype)
    winner = np.empty(y.shape, np.int32)

    def shard(start: int, stop: int) -> None:
        part = slice(start, stop)
        _forward_numba(x[part], y[part], winner[part], *_window(win))

    backend.parallel_for(shard, len(x))
    return y, winner


def backward(dy: Array, winner: Array, shape: tuple[int, ...], win: Window) -> Array:
    """dx of ``shape`` (N, H, W, C)."""
    dx, dy = np.empty(shape, dy.dtype), np.ascontiguousarray(dy)

    def shard(start: int, stop: int) -> None:
        part = slice(start, stop)
        _backward_numba(dy[part], winner[part], dx[part], *_window(win))

    backend.parallel_for(shard, shape[0])
    return dx

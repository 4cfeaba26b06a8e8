"""Max pooling on the CPU: one pass over the pictures, which are shared out among the threads.

What is computed stands in ``minires.ops.max_pool2d``.
"""

from __future__ import annotations

import numpy as np

from minires import backend
from minires.backend import Array, kernel
from minires.errors import MiniresError
from minires.ops.window import Window


@kernel(
    x="(N, H, W, C)", y="out (N, OH, OW, C)", winner="out int32 (N, OH, OW, C)",
    where="min(*stride, *dilation) > 0",
)  # fmt: skip
def _forward_numba(
    x: Array, y: Array, winner: Array, size: tuple[int, int], stride: tuple[int, int],
    dilation: tuple[int, int], top: int, left: int,
) -> None:  # fmt: skip
    _, h, w, channels = x.shape
    for n in range(y.shape[0]):
        for oh in range(y.shape[1]):
            start_h = oh * stride[0] - top
            first_i = max(0, -(start_h // dilation[0]))
            stop_i = min(size[0], -((start_h - h) // dilation[0]))
            for ow in range(y.shape[2]):
                best, where = y[n, oh, ow], winner[n, oh, ow]
                start_w = ow * stride[1] - left
                first_j, stop_j = max(0, -start_w), min(size[1], w - start_w)
                if dilation[1] > 1:  # else it is spared the divisions
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


@kernel(
    dy="(N, OH, OW, C)", winner="int32 (N, OH, OW, C)", dx="out flat float (N, H, W, C)", behind="int64 (_)",
)  # fmt: skip
def _backward_numba(
    dy: Array, winner: Array, dx: Array, behind: Array, stride: tuple[int, int], top: int, left: int
) -> bool:
    """behind: for each pixel of a window, how many numbers of a picture it lies behind the first.

    Returns False, and stops, where a winner is no pixel of the picture.
    """
    dx[...] = 0.0
    n, h, w, channels = dx.shape
    for p in range(n):
        picture = dx[p].reshape(h * w * channels)
        for oh in range(dy.shape[1]):
            for ow in range(dy.shape[2]):
                first = ((oh * stride[0] - top) * w + ow * stride[1] - left) * channels
                for c in range(channels):
                    pixel = winner[p, oh, ow, c]
                    if not 0 <= pixel < behind.size:
                        return False
                    at = first + behind[pixel] + c
                    if not 0 <= at < picture.size:
                        return False
                    picture[at] += dy[p, oh, ow, c]
    return True


def forward(x: Array, win: Window) -> tuple[Array, Array]:
    """y (N, OH, OW, C), and which pixel of the window each number came from."""
    y = np.empty((len(x), *win.out, x.shape[-1]), x.dtype)
    winner = np.empty(y.shape, np.int32)

    def chunk(start: int, stop: int) -> None:
        part = slice(start, stop)
        where = win.size, win.stride, win.dilation, win.top, win.left
        _forward_numba(x[part], y[part], winner[part], *where)

    backend.parallel_for(chunk, len(x))
    return y, winner


def backward(dy: Array, winner: Array, shape: tuple[int, ...], win: Window) -> Array:
    """dx of ``shape`` (N, H, W, C)."""
    dx, dy = np.empty(shape, win.summed(dy.dtype)), np.ascontiguousarray(dy)
    rows, columns = (np.arange(k) * apart for k, apart in zip(win.size, win.dilation, strict=True))
    behind = (rows[:, None] * shape[2] + columns).reshape(-1) * shape[3]

    def chunk(start: int, stop: int) -> None:
        part = slice(start, stop)
        if not _backward_numba(dy[part], winner[part], dx[part], behind, win.stride, win.top, win.left):
            raise MiniresError("max_pool2d: the winners that the forward pass saved were changed since")

    backend.parallel_for(chunk, shape[0])
    return dx.astype(dy.dtype, copy=False)

"""Average pooling: the mean under each window, or of the whole picture.

    y[n, i, j, c] = sum of x under the window / count
    dx: each dy / count goes to every pixel under its window

``count`` is the number of real pixels under the window, as in TensorFlow and Keras; with
``count_padding=True`` it is always KH*KW, as in Caffe and torch.

Source: LeCun et al. 1989 (subsampling); global average pooling: Lin, Chen, Yan 2013, arXiv:1312.4400.
"""

from __future__ import annotations

from typing import Any

from minires import backend
from minires.backend import Array
from minires.ops import checks
from minires.ops.window import Padding, Window, window
from minires.tensor import Tensor, record


def _counts(xp: Any, win: Window, shape: tuple[int, ...], dtype: Any, count_padding: bool) -> Array:
    """How many pixels each mean is over: (1, OH, OW, 1)."""
    if count_padding:
        return xp.full((1, *win.out, 1), win.size[0] * win.size[1], dtype)
    return _sum(xp, xp.ones((1, *shape[1:3], 1), dtype), win)


def _sum(xp: Any, x: Array, win: Window) -> Array:
    padded = win.pad(xp, x)
    total = win.at(padded, 0, 0).copy()
    for i in range(win.size[0]):
        for j in range(win.size[1]):
            if i or j:
                total += win.at(padded, i, j)
    return total


def _backward(xp: Any, share: Array, shape: tuple[int, ...], win: Window) -> Array:
    n, h, w, c = shape
    padded = xp.zeros((n, h + win.top + win.bottom, w + win.left + win.right, c), share.dtype)
    for i in range(win.size[0]):
        for j in range(win.size[1]):
            win.at(padded, i, j)[...] += share
    return xp.ascontiguousarray(win.crop(padded))


def avg_pool2d(
    x: Tensor,
    kernel: int | tuple[int, int],
    *,
    stride: int | tuple[int, int] | None = None,
    padding: Padding = 0,
    count_padding: bool = False,
) -> Tensor:
    """Take the mean under each window; the stride is the kernel size if left out.

    Math and Backward: see the head of this file.
    Shapes: x (N, H, W, C) -> y (N, OH, OW, C), OH = (H + top + bottom - KH) // stride + 1 (rounded down).
    Raises: ShapeError if x is not four axes of floats, the kernel is larger than the padded picture, or the
    padding is as large as the kernel.
    Differs: torch counts padding by default, Keras never does.
    """
    x = checks.as_tensor(x)
    checks.rank("avg_pool2d", "x", x, "(N, H, W, C)")
    checks.same_floats("avg_pool2d", x=x)
    win = window(
        "avg_pool2d", (x.shape[1], x.shape[2]), kernel, kernel if stride is None else stride, padding
    )
    checks.border("avg_pool2d", win.size, (win.top, win.bottom), (win.left, win.right))
    xp = backend.array_module(x.data)
    shape = x.shape
    counts = _counts(xp, win, shape, x.dtype, count_padding)
    y = _sum(xp, x.data, win) / counts
    return record("avg_pool2d", y, (x,), lambda dy: (_backward(xp, dy / counts, shape, win),))


def global_avg_pool2d(x: Tensor) -> Tensor:
    """The mean of each channel over the whole picture.

    Math: y[n, c] = mean over H, W of x[n, :, :, c]. Backward: dx = dy / (H*W) everywhere.
    Shapes: x (N, H, W, C) -> y (N, C). Raises: ShapeError if x is not four axes of floats.
    Source: arXiv:1312.4400.
    """
    x = checks.as_tensor(x)
    checks.rank("global_avg_pool2d", "x", x, "(N, H, W, C)")
    checks.same_floats("global_avg_pool2d", x=x)
    xp = backend.array_module(x.data)
    n, h, w, c = x.shape

    def backward(dy: Array) -> tuple[Array]:
        share = (dy / (h * w)).reshape(n, 1, 1, c)
        return (xp.broadcast_to(share, (n, h, w, c)).copy(),)

    return record("global_avg_pool2d", x.data.mean(axis=(1, 2)), (x,), backward)

"""Convolution by im2col on the CPU: cut into shards of pictures and blocks that stay in cache.

The same three products as in ``minires.ops.conv2d``, which says what they are:

    gather       y  = im2col(x) @ w + b
    scatter      dx = col2im(dy @ w^T)
    correlate    dw = im2col(x)^T @ dy

Each thread takes a shard of the pictures (or of the rows of dw), and of that a block of a few pictures at a
time, so that the columns of a block are still in the core's own cache when the product reads them. The
columns of the whole batch, KH*KW times the size of the picture, never exist.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from minires import backend
from minires.backend import Array, kernel
from minires.ops.window import Window

_BLOCK = 1 << 20  # bytes of columns in one block: about a core's second-level cache
_WHOLE = 32 << 20  # bytes of columns that may exist at once where a product is cut along its other side


def by_group(matrix: Array, groups: int) -> Array:
    """(..., R, O), any leading axes -> the view (G, R, O/G), R being all of them together."""
    return matrix.reshape(-1, groups, matrix.shape[-1] // groups).swapaxes(0, 1)


@kernel
def _im2col_numba(x, columns, stride, top, left, out, size):
    n, h, w, channels = x.shape
    groups, _, depth = columns.shape
    width = depth // (size[0] * size[1])
    lines = x.reshape(n, h, w * channels)
    for g in range(groups):
        row = 0
        for p in range(n):
            for oh in range(out[0]):
                for ow in range(out[1]):
                    iw = ow * stride[1] - left
                    first, last = max(0, -iw), min(size[1], w - iw)  # the part of the window in the picture
                    for i in range(size[0]):
                        ih = oh * stride[0] + i - top
                        target = columns[g, row, i * size[1] * width : (i + 1) * size[1] * width]
                        if ih < 0 or ih >= h or first >= last:
                            target[:] = 0
                            continue
                        target[: first * width] = 0
                        target[last * width :] = 0
                        if groups == 1:  # the pixels of a line lie side by side: one run
                            source = lines[p, ih, (iw + first) * channels : (iw + last) * channels]
                            run = target[first * width : last * width]
                            for c in range(run.size):
                                run[c] = source[c]
                        else:
                            for j in range(first, last):
                                source = x[p, ih, iw + j, g * width : (g + 1) * width]
                                run = target[j * width : (j + 1) * width]
                                for c in range(width):
                                    run[c] = source[c]
                    row += 1


@kernel
def _col2im_numba(columns, dx, stride, top, left, out, size):
    n, h, w, _ = dx.shape
    groups, _, depth = columns.shape
    width = depth // (size[0] * size[1])
    dx[...] = 0
    for g in range(groups):
        row = 0
        for p in range(n):
            for oh in range(out[0]):
                for ow in range(out[1]):
                    at = 0
                    for i in range(size[0]):
                        ih = oh * stride[0] + i - top
                        for j in range(size[1]):
                            iw = ow * stride[1] + j - left
                            if 0 <= ih < h and 0 <= iw < w:
                                source = columns[g, row, at : at + width]
                                pixel = dx[p, ih, iw, g * width : (g + 1) * width]
                                for c in range(width):
                                    pixel[c] += source[c]
                            at += width
                    row += 1


class _Columns:
    """The columns of a few pictures at a time, made in one buffer that is used again and again."""

    def __init__(self, win: Window, groups: int, channels: int, dtype: Any) -> None:
        self.win, self.groups, self.dtype = win, groups, dtype
        self.depth = win.size[0] * win.size[1] * channels // groups
        self.rows = win.out[0] * win.out[1]  # of one picture

    def bytes(self, pictures: int) -> int:
        return pictures * self.rows * self.depth * self.groups * self.dtype.itemsize

    def blocks(self, start: int, stop: int, least: int = 0) -> list[tuple[int, int]]:
        """The pictures start..stop in blocks whose columns take about _BLOCK bytes, or ``least`` if more."""
        count = max(1, round(self.bytes(stop - start) / max(_BLOCK, least)))
        return backend.split(start, stop, min(count, stop - start))

    def buffer(self, pictures: int) -> Array:
        return np.empty((self.groups, pictures * self.rows, self.depth), self.dtype)

    def read(self, x: Array, buffer: Array | None) -> Array:
        """The columns of the pictures ``x``, in the first rows of ``buffer`` (x itself where it can be)."""
        win = self.win
        if win.is_pointwise:
            return by_group(x, self.groups)
        assert buffer is not None
        columns = buffer[:, : len(x) * self.rows]
        _im2col_numba(x, columns, win.stride, win.top, win.left, win.out, win.size)
        return columns


@kernel
def _finish_numba(y, b, relu):
    zero = y.dtype.type(0)
    for m in range(y.shape[0]):
        for c in range(y.shape[1]):
            value = y[m, c] + b[c] if b.size else y[m, c]
            y[m, c] = zero if relu and value < zero else value  # NaN stays NaN


def finish(y: Array, b: Array | None, relu: bool) -> None:
    """Add the bias to y (..., O) and apply ReLU, in place."""
    if b is not None or relu:
        _finish_numba(y.reshape(-1, y.shape[-1]), np.empty(0, y.dtype) if b is None else b, relu)


def gather(x: Array, w: Array, b: Array | None, relu: bool, win: Window, groups: int) -> Array:
    """im2col(x) @ w + b, with a ReLU behind it where asked."""
    y = np.empty((len(x), *win.out, w.shape[-1]), x.dtype)
    columns = _Columns(win, groups, x.shape[-1], x.dtype)
    kernels = by_group(w, groups)

    def shard(start: int, stop: int) -> None:
        blocks = columns.blocks(start, stop)
        buffer = None if win.is_pointwise else columns.buffer(max(last - first for first, last in blocks))
        for first, last in blocks:
            out = y[first:last]
            np.matmul(columns.read(x[first:last], buffer), kernels, out=by_group(out, groups))
            finish(out, b, relu)

    backend.parallel_for(shard, len(x))
    return y


def scatter(dy: Array, w: Array, shape: tuple[int, ...], win: Window, groups: int) -> Array:
    """col2im(dy @ w^T)."""
    dx = np.empty(shape, dy.dtype)
    columns = _Columns(win, groups, shape[-1], dy.dtype)
    kernels = by_group(w, groups).swapaxes(1, 2)

    def shard(start: int, stop: int) -> None:
        if win.is_pointwise:
            np.matmul(by_group(dy[start:stop], groups), kernels, out=by_group(dx[start:stop], groups))
            return
        blocks = columns.blocks(start, stop)
        buffer = columns.buffer(max(last - first for first, last in blocks))
        for first, last in blocks:
            block = buffer[:, : (last - first) * columns.rows]
            np.matmul(by_group(dy[first:last], groups), kernels, out=block)
            _col2im_numba(block, dx[first:last], win.stride, win.top, win.left, win.out, win.size)

    backend.parallel_for(shard, shape[0])
    return dx


def correlate(dy: Array, x: Array, shape: tuple[int, ...], win: Window, groups: int) -> Array:
    """im2col(x)^T @ dy, cut along the pictures, or along the rows of dw where it is the larger side."""
    columns = _Columns(win, groups, x.shape[-1], x.dtype)
    whole = columns.bytes(len(x))
    if len(x) * columns.rows < 2 * columns.depth and (win.is_pointwise or whole <= _WHOLE):
        return _backward_w_by_depth(dy, x, shape, columns)
    parts = backend.shards(len(x))
    sums = [np.empty(shape, x.dtype) for _ in parts]

    def shard(part: int, start: int, stop: int) -> None:
        # A block adds its product to the sum, so it pays to make blocks as large as the sum.
        blocks = columns.blocks(start, stop, 2 * sums[0].nbytes)
        if win.is_pointwise:
            blocks = [(start, stop)]
        buffer = None if win.is_pointwise else columns.buffer(max(last - first for first, last in blocks))
        product = sums[part] if len(blocks) == 1 else np.empty(shape, x.dtype)
        for number, (first, last) in enumerate(blocks):
            target = sums[part] if number == 0 else product
            matrix = columns.read(x[first:last], buffer).swapaxes(1, 2)
            np.matmul(matrix, by_group(dy[first:last], groups), out=by_group(target, groups))
            if number:
                sums[part] += product

    backend.parallel_calls([partial(shard, number, *part) for number, part in enumerate(parts)])
    for part in sums[1:]:
        backend.add(sums[0], part, out=sums[0])
    return sums[0]


def _backward_w_by_depth(dy: Array, x: Array, shape: tuple[int, ...], columns: _Columns) -> Array:
    dw = np.empty(shape, x.dtype)
    win, groups = columns.win, columns.groups
    buffer = None if win.is_pointwise else columns.buffer(len(x))
    if buffer is not None:

        def read(start: int, stop: int) -> None:
            columns.read(x[start:stop], buffer[:, start * columns.rows : stop * columns.rows])

        backend.parallel_for(read, len(x))
    matrix = (by_group(x, groups) if buffer is None else buffer).swapaxes(1, 2)  # (G, depth, rows)

    def shard(start: int, stop: int) -> None:
        np.matmul(matrix[:, start:stop], by_group(dy, groups), out=by_group(dw, groups)[:, start:stop])

    backend.parallel_for(shard, columns.depth, grain=16)
    return dw

"""Convolution by im2col on the CPU: cut into chunks and blocks that stay in cache.

The same three products as in ``minires.ops.conv2d``, which says what they are:

    forward      y  = im2col(x) @ w + b
    backward_x   dx = col2im(dy @ w^T)
    backward_w   dw = im2col(x)^T @ dy

Each thread takes a chunk of the output's lines, and of that a block of a few lines at a time, so that the
columns of a block are still in the core's own cache when the product reads them. The columns of the whole
batch, KH*KW times the size of the pictures, never exist.

Only where the kernel is the larger matrix, in the last layers or with few pictures, the columns are made
whole and the kernel is cut instead: each thread then reads its part of the kernel, and not all of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from minires import backend
from minires.backend import Array, kernel
from minires.ops.window import Window

_BLOCK = 1 << 20  # bytes of columns in one block: about a core's second-level cache
_WHOLE = 32 << 20  # bytes of columns that may exist at once where the kernel is cut
_GRAIN = 16  # rows or columns of a matrix; fewer are not worth a second thread
_COPY_GRAIN = 1 << 17  # numbers that are copied or changed; fewer are not worth a second thread


def by_group(matrix: Array, groups: int) -> Array:
    """(..., R, O), any leading axes -> the view (G, R, O/G), R being all of them together."""
    *rows, columns = matrix.shape
    return matrix.reshape(math.prod(rows), groups, columns // groups).swapaxes(0, 1)


@kernel(
    x="flat (N, H, W, C)", columns="out (G, R, D)",
    where="min(*size, *dilation) > 0 and 0 <= start <= stop <= N * out[0]"
    " and R >= (stop - start) * out[1] and C % G == 0 and D == size[0] * size[1] * (C // G)",
)  # fmt: skip
def _im2col_numba(
    x: Array, columns: Array, start: int, stop: int, stride: tuple[int, int], dilation: tuple[int, int],
    top: int, left: int, out: tuple[int, int], size: tuple[int, int],
) -> None:  # fmt: skip
    """The columns of the lines start..stop of the output, counted through all pictures."""
    n, h, w, channels = x.shape
    groups, _, depth = columns.shape
    width = depth // (size[0] * size[1])
    lines = x.reshape(n, h, w * channels)
    for g in range(groups):
        row = 0
        for line in range(start, stop):
            p, oh = line // out[0], line % out[0]
            for ow in range(out[1]):
                iw = ow * stride[1] - left
                first, last = max(0, -iw), min(size[1], w - iw)  # the part of the window in the picture
                if dilation[1] > 1:
                    first, last = max(0, -(iw // dilation[1])), min(size[1], -((iw - w) // dilation[1]))
                for i in range(size[0]):
                    ih = oh * stride[0] + i * dilation[0] - top
                    target = columns[g, row, i * size[1] * width : (i + 1) * size[1] * width]
                    if ih < 0 or ih >= h or first >= last:
                        target[:] = 0
                        continue
                    target[: first * width] = 0
                    target[last * width :] = 0
                    if groups == 1 and dilation[1] == 1:  # the pixels of a line lie side by side: one run
                        source = lines[p, ih, (iw + first) * channels : (iw + last) * channels]
                        run = target[first * width : last * width]
                        for c in range(run.size):
                            run[c] = source[c]
                    else:
                        for j in range(first, last):
                            at = (iw + j * dilation[1]) * channels + g * width
                            source = lines[p, ih, at : at + width]
                            run = target[j * width : (j + 1) * width]
                            for c in range(width):
                                run[c] = source[c]
                row += 1


@kernel(
    columns="(G, R, D)", dx="out (N, H, W, C)",
    where="min(size) > 0 and R >= N * out[0] * out[1] and C % G == 0 and D == size[0] * size[1] * (C // G)",
)  # fmt: skip
def _col2im_numba(
    columns: Array, dx: Array, stride: tuple[int, int], dilation: tuple[int, int], top: int, left: int,
    out: tuple[int, int], size: tuple[int, int],
) -> None:  # fmt: skip
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
                        ih = oh * stride[0] + i * dilation[0] - top
                        for j in range(size[1]):
                            iw = ow * stride[1] + j * dilation[1] - left
                            if 0 <= ih < h and 0 <= iw < w:
                                source = columns[g, row, at : at + width]
                                pixel = dx[p, ih, iw, g * width : (g + 1) * width]
                                for c in range(width):
                                    pixel[c] += source[c]
                            at += width
                    row += 1


def _window(win: Window) -> tuple[Any, ...]:
    """What the kernels ask of a window."""
    return win.stride, win.dilation, win.top, win.left, win.out, win.size


class _Columns:
    """The columns of x (N, H, W, C), a few lines of the output at a time. A line has OW rows."""

    def __init__(self, x: Array, win: Window, groups: int) -> None:
        self.x, self.win, self.groups = x, win, groups
        self.depth = win.size[0] * win.size[1] * x.shape[-1] // groups
        self.lines = len(x) * win.out[0]
        self.rows = self.lines * win.out[1]

    def bytes(self, lines: int) -> int:
        return int(lines * self.win.out[1] * self.depth * self.groups * self.x.itemsize)

    def fit(self) -> bool:
        """Whether they may exist whole."""
        return self.win.is_pointwise or self.bytes(self.lines) <= _WHOLE

    def blocks(self, start: int, stop: int, least: int = 0) -> Iterator[tuple[int, int, Array]]:
        """Yield the lines start..stop in blocks (first, last, columns (G, rows, depth)).

        The columns of a block take about _BLOCK bytes, or ``least`` if that is more; where x itself is the
        matrix, there is one block. The next block takes the place of the one before.
        """
        if self.win.is_pointwise:
            yield (
                start,
                stop,
                by_group(self.x.reshape(self.lines, -1, self.x.shape[-1])[start:stop], self.groups),
            )
            return
        count = max(1, round(self.bytes(stop - start) / max(_BLOCK, least)))
        blocks = backend.split(start, stop, min(count, stop - start))
        most = max(last - first for first, last in blocks)
        buffer = np.empty((self.groups, most * self.win.out[1], self.depth), self.x.dtype)
        for first, last in blocks:
            yield first, last, self._read(buffer[:, : (last - first) * self.win.out[1]], first, last)

    def whole(self) -> Array:
        """All of them, (G, rows, depth)."""
        if self.win.is_pointwise:
            return by_group(self.x, self.groups)
        columns = np.empty((self.groups, self.rows, self.depth), self.x.dtype)
        wide = self.win.out[1]

        def chunk(start: int, stop: int) -> None:
            self._read(columns[:, start * wide : stop * wide], start, stop)

        backend.parallel_for(chunk, self.lines, _COPY_GRAIN * self.lines // columns.size)
        return columns

    def _read(self, columns: Array, first: int, last: int) -> Array:
        _im2col_numba(self.x, columns, first, last, *_window(self.win))
        return columns


@kernel(y="out (M, O)", b="maybe (O)")
def _finish_numba(y: Array, b: Array, relu: bool) -> None:
    zero = y.dtype.type(0)
    for m in range(y.shape[0]):
        for c in range(y.shape[1]):
            value = y[m, c] + b[c] if b.size else y[m, c]
            y[m, c] = zero if relu and value < zero else value  # NaN stays NaN


def epilogue(y: Array, b: Array | None, relu: bool) -> None:
    """Add the bias to y (..., O) and apply ReLU, in place."""
    if b is not None or relu:
        _finish_numba(y.reshape(-1, y.shape[-1]), np.empty(0, y.dtype) if b is None else b, relu)


def forward(x: Array, w: Array, b: Array | None, relu: bool, win: Window, groups: int) -> Array:
    """im2col(x) @ w + b, with a ReLU behind it where asked."""
    return _multiply_columns(x, by_group(w, groups), b, relu, win)


def _multiply_columns(x: Array, kernels: Array, b: Array | None, relu: bool, win: Window) -> Array:
    """im2col(x) @ kernels + b, with kernels (G, depth, O/G)."""
    groups, _, width = kernels.shape
    columns = _Columns(x, win, groups)
    y = np.empty((len(x), *win.out, groups * width), x.dtype)
    lines = y.reshape(columns.lines, win.out[1], -1)
    if columns.rows < width and columns.fit():
        _multiply(columns.whole(), kernels, by_group(y, groups))
        grain = _COPY_GRAIN * columns.lines // y.size
        backend.parallel_for(lambda start, stop: epilogue(lines[start:stop], b, relu), columns.lines, grain)
        return y

    def chunk(start: int, stop: int) -> None:
        for first, last, matrix in columns.blocks(start, stop):
            np.matmul(matrix, kernels, out=by_group(lines[first:last], groups))
            epilogue(lines[first:last], b, relu)

    backend.parallel_for(chunk, columns.lines)
    return y


def backward_x(dy: Array, w: Array, shape: tuple[int, ...], win: Window, groups: int) -> Array:
    """col2im(dy @ w^T)."""
    kernels = by_group(w, groups).swapaxes(1, 2)
    if win.is_pointwise:
        return _multiply_columns(dy, kernels, None, False, win)
    dx = np.empty(shape, dy.dtype)
    rows, depth = win.out[0] * win.out[1], kernels.shape[2]  # of one picture
    size = groups * rows * depth * dy.itemsize
    if (len(dy) * rows < depth or len(dy) < backend.threads()) and len(dy) * size <= _WHOLE:
        columns = np.empty((groups, len(dy) * rows, depth), dy.dtype)
        _multiply(by_group(dy, groups), kernels, columns)

        def add_back(start: int, stop: int) -> None:
            block = columns[:, start * rows : stop * rows]
            _col2im_numba(block, dx[start:stop], *_window(win))

        backend.parallel_for(add_back, len(dx), _COPY_GRAIN * len(dx) // columns.size)
        return dx

    def chunk(start: int, stop: int) -> None:
        blocks = backend.split(start, stop, min(stop - start, max(1, round((stop - start) * size / _BLOCK))))
        buffer = np.empty((groups, rows * max(last - first for first, last in blocks), depth), dy.dtype)
        for first, last in blocks:
            block = buffer[:, : (last - first) * rows]
            np.matmul(by_group(dy[first:last], groups), kernels, out=block)
            _col2im_numba(block, dx[first:last], *_window(win))

    backend.parallel_for(chunk, len(dx))
    return dx


def backward_w(dy: Array, x: Array, shape: tuple[int, ...], win: Window, groups: int) -> Array:
    """im2col(x)^T @ dy."""
    columns = _Columns(x, win, groups)
    if columns.rows < 2 * columns.depth and columns.fit():
        dw = np.empty(shape, x.dtype)
        _multiply(columns.whole().swapaxes(1, 2), by_group(dy, groups), by_group(dw, groups))
        return dw
    lines = dy.reshape(columns.lines, win.out[1], -1)
    parts = backend.chunks(columns.lines)
    sums = [np.empty(shape, x.dtype) for _ in parts]

    def chunk(part: int, start: int, stop: int) -> None:
        product: Array | None = None
        # A block adds its product to the sum, so it pays to make blocks as large as the sum.
        for first, last, matrix in columns.blocks(start, stop, 2 * sums[part].nbytes):
            if first > start and product is None:
                product = np.empty(shape, x.dtype)
            target = by_group(sums[part] if product is None else product, groups)
            np.matmul(matrix.swapaxes(1, 2), by_group(lines[first:last], groups), out=target)
            if product is not None:
                sums[part] += product

    backend.parallel_calls([partial(chunk, number, *part) for number, part in enumerate(parts)])
    for part in sums[1:]:
        backend.add(sums[0], part, out=sums[0])
    return sums[0]


def _multiply(a: Array, b: Array, out: Array) -> None:
    """out = a @ b, stacks of matrices, cut along the longer side of the result."""
    wide = a.shape[1] < b.shape[2]

    def chunk(start: int, stop: int) -> None:
        if wide:
            np.matmul(a, b[:, :, start:stop], out=out[:, :, start:stop])
        else:
            np.matmul(a[:, start:stop], b, out=out[:, start:stop])

    backend.parallel_for(chunk, b.shape[2] if wide else a.shape[1], _GRAIN)

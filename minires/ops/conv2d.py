"""Two-dimensional convolution as a matrix product (im2col).

Each place of the window becomes a row of a matrix, the KH*KW*C numbers under the window side by side; the
kernel is a matrix with a column per output channel. Then convolution is one product:

    columns = im2col(x)                       (N*OH*OW, KH*KW*C)
    y = columns @ w + b                       (N*OH*OW, O)

and its adjoints are two more, with col2im (add each row back to where it was read) for the picture:

    dw = columns^T @ dy                       (KH*KW*C, O)
    db = sum of dy over N, OH, OW             (O,)
    dx = col2im(dy @ w^T)                     (N, H, W, C)

With groups, group g of the input channels meets group g of the output channels only: the same products, G of
them side by side, so all matrices below carry G as their first axis. A 1x1 convolution with stride 1 needs no
im2col at all: the picture is the matrix.

As is usual in deep learning, the kernel is not flipped (cross-correlation).

Source: Chellapilla, Puri, Simard 2006, High performance convolutional neural networks for document
processing; groups: Krizhevsky, Sutskever, Hinton 2012.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from minires import backend
from minires.backend import Array, kernel
from minires.errors import ShapeError
from minires.ops import checks
from minires.ops.window import Padding, Window, window
from minires.tensor import Tensor, record

# ---------------------------------------------------------------------------------------- specification


def _im2col(xp: Any, x: Array, win: Window, groups: int) -> Array:
    """(N, H, W, C) -> (G, N*OH*OW, KH*KW*C/G)."""
    (n, _, _, c), (kh, kw), (oh, ow) = x.shape, win.size, win.out
    padded = win.pad(xp, x)
    columns = xp.empty((groups, n, oh, ow, kh, kw, c // groups), x.dtype)
    for i in range(kh):
        for j in range(kw):
            # (N, OH, OW, C) -> (N, OH, OW, G, C/G) -> (G, N, OH, OW, C/G)
            pixel = win.at(padded, i, j).reshape(n, oh, ow, groups, c // groups)
            columns[:, :, :, :, i, j, :] = xp.moveaxis(pixel, 3, 0)
    return columns.reshape(groups, n * oh * ow, kh * kw * c // groups)


def _col2im(xp: Any, columns: Array, shape: tuple[int, ...], win: Window) -> Array:
    """The adjoint of _im2col: add every entry to the pixel it came from."""
    (n, h, w, c), (kh, kw), (oh, ow) = shape, win.size, win.out
    groups = columns.shape[0]
    columns = columns.reshape(groups, n, oh, ow, kh, kw, c // groups)
    padded = xp.zeros((n, h + win.top + win.bottom, w + win.left + win.right, c), columns.dtype)
    for i in range(kh):
        for j in range(kw):
            pixel = xp.moveaxis(columns[:, :, :, :, i, j, :], 0, 3)  # (N, OH, OW, G, C/G)
            win.at(padded, i, j)[...] += pixel.reshape(n, oh, ow, c)
    return xp.ascontiguousarray(win.crop(padded))


def _by_group(matrix: Array, groups: int) -> Array:
    """(..., R, O), any leading axes -> the view (G, R, O/G), R being all of them together."""
    return matrix.reshape(-1, groups, matrix.shape[-1] // groups).swapaxes(0, 1)


def _forward(xp: Any, x: Array, w: Array, b: Array | None, win: Window, groups: int) -> Array:
    y = xp.empty((x.shape[0], *win.out, w.shape[-1]), x.dtype)
    _by_group(y, groups)[...] = xp.matmul(_im2col(xp, x, win, groups), _by_group(w, groups))
    return y if b is None else y + b


def _backward_x(xp: Any, dy: Array, w: Array, shape: tuple[int, ...], win: Window, groups: int) -> Array:
    columns = xp.matmul(_by_group(dy, groups), _by_group(w, groups).swapaxes(1, 2))
    return _col2im(xp, columns, shape, win)


def _backward_w(xp: Any, dy: Array, x: Array, shape: tuple[int, ...], win: Window, groups: int) -> Array:
    dw = xp.empty(shape, x.dtype)
    columns = _im2col(xp, x, win, groups)
    _by_group(dw, groups)[...] = xp.matmul(columns.swapaxes(1, 2), _by_group(dy, groups))
    return dw


# ----------------------------------------------------------------------------------------- fast, on CPU
# The same products, cut into shards of pictures (one thread each) and blocks of a few pictures, so that the
# columns of a block are still in the core's own cache when the product reads them. The columns of the whole
# batch, KH*KW times the size of the picture, never exist.

_BLOCK = 1 << 20  # bytes of columns in one block: about a core's second-level cache
_WHOLE = 32 << 20  # bytes of columns that may exist at once where a product is cut along its other side


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

    def blocks(self, start: int, stop: int, target: int = _BLOCK) -> list[tuple[int, int]]:
        """The pictures start..stop in blocks whose columns take about ``target`` bytes."""
        count = max(1, round(self.bytes(stop - start) / target))
        count = min(count, stop - start)
        edges = [start + (stop - start) * i // count for i in range(count + 1)]
        return list(zip(edges[:-1], edges[1:], strict=True))

    def buffer(self, pictures: int) -> Array:
        return np.empty((self.groups, pictures * self.rows, self.depth), self.dtype)

    def read(self, x: Array, buffer: Array | None) -> Array:
        """The columns of the pictures ``x``, in the first rows of ``buffer`` (x itself where it can be)."""
        win = self.win
        if win.is_pointwise:
            return _by_group(x, self.groups)
        assert buffer is not None
        columns = buffer[:, : len(x) * self.rows]
        _im2col_numba(x, columns, win.stride, win.top, win.left, win.out, win.size)
        return columns


def _forward_numba(x: Array, w: Array, b: Array | None, win: Window, groups: int) -> Array:
    y = np.empty((len(x), *win.out, w.shape[-1]), x.dtype)
    columns = _Columns(win, groups, x.shape[-1], x.dtype)
    kernels = _by_group(w, groups)

    def shard(start: int, stop: int) -> None:
        blocks = columns.blocks(start, stop)
        buffer = None if win.is_pointwise else columns.buffer(max(last - first for first, last in blocks))
        for first, last in blocks:
            out = y[first:last]
            np.matmul(columns.read(x[first:last], buffer), kernels, out=_by_group(out, groups))
            if b is not None:
                np.add(out, b, out=out)

    backend.parallel_for(shard, len(x))
    return y


def _backward_x_numba(dy: Array, w: Array, shape: tuple[int, ...], win: Window, groups: int) -> Array:
    dx = np.empty(shape, dy.dtype)
    columns = _Columns(win, groups, shape[-1], dy.dtype)
    kernels = _by_group(w, groups).swapaxes(1, 2)

    def shard(start: int, stop: int) -> None:
        if win.is_pointwise:
            np.matmul(_by_group(dy[start:stop], groups), kernels, out=_by_group(dx[start:stop], groups))
            return
        blocks = columns.blocks(start, stop)
        buffer = columns.buffer(max(last - first for first, last in blocks))
        for first, last in blocks:
            block = buffer[:, : (last - first) * columns.rows]
            np.matmul(_by_group(dy[first:last], groups), kernels, out=block)
            _col2im_numba(block, dx[first:last], win.stride, win.top, win.left, win.out, win.size)

    backend.parallel_for(shard, shape[0])
    return dx


def _backward_w_numba(dy: Array, x: Array, shape: tuple[int, ...], win: Window, groups: int) -> Array:
    """Cut along the pictures where there are many rows, along the rows of dw where dw is the larger side."""
    columns = _Columns(win, groups, x.shape[-1], x.dtype)
    whole = columns.bytes(len(x))
    if len(x) * columns.rows < 2 * columns.depth and (win.is_pointwise or whole <= _WHOLE):
        return _backward_w_by_depth(dy, x, shape, columns)
    parts = backend.shards(len(x))
    sums = [np.empty(shape, x.dtype) for _ in parts]

    def shard(part: int, start: int, stop: int) -> None:
        # A block adds its product to the sum, so it pays to make blocks as large as the sum.
        blocks = columns.blocks(start, stop, max(_BLOCK, 2 * sums[0].nbytes))
        if win.is_pointwise:
            blocks = [(start, stop)]
        buffer = None if win.is_pointwise else columns.buffer(max(last - first for first, last in blocks))
        product = sums[part] if len(blocks) == 1 else np.empty(shape, x.dtype)
        for number, (first, last) in enumerate(blocks):
            target = sums[part] if number == 0 else product
            matrix = columns.read(x[first:last], buffer).swapaxes(1, 2)
            np.matmul(matrix, _by_group(dy[first:last], groups), out=_by_group(target, groups))
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
    matrix = (_by_group(x, groups) if buffer is None else buffer).swapaxes(1, 2)  # (G, depth, rows)

    def shard(start: int, stop: int) -> None:
        np.matmul(matrix[:, start:stop], _by_group(dy, groups), out=_by_group(dw, groups)[:, start:stop])

    backend.parallel_for(shard, columns.depth, grain=16)
    return dw


def _backward_b(dy: Array) -> Array:
    """The sum of each channel, (N, OH, OW, O) -> (O,), as a product with ones."""
    rows = dy.reshape(-1, dy.shape[-1])
    return backend.matmul(backend.array_module(dy).ones((1, len(rows)), dy.dtype), rows)[0]


# ----------------------------------------------------------------------------------------------- public


def conv2d(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    stride: int | tuple[int, int] = 1,
    padding: Padding = 0,
    groups: int = 1,
) -> Tensor:
    """Convolve pictures with kernels.

    Math: y[n, i, j, o] = b[o] + sum over kh, kw, c of x[n, i*stride + kh - top, j*stride + kw - left, c] *
    w[kh, kw, c, o], with zeros outside the picture.
    Shapes: x (N, H, W, C), w (KH, KW, C/groups, O), b (O,) -> y (N, OH, OW, O) with
    OH = (H + top + bottom - KH) // stride + 1.
    ``padding`` is an int, a pair (height, width), four sides ((top, bottom), (left, right)) or ``"same"``.
    Backward: see the head of this file.
    Raises: ShapeError if ranks, channels, groups or dtypes do not fit, or the kernel is larger than the
    padded picture.
    """
    x, w = checks.as_tensor(x), checks.as_tensor(w)
    b = None if b is None else checks.as_tensor(b)
    checks.rank("conv2d", "x", x, "(N, H, W, C)")
    checks.rank("conv2d", "w", w, "(KH, KW, C/groups, O)")
    checks.same_floats("conv2d", w=w, b=b, x=x)
    (_, h, width, c), (kh, kw, depth, o) = x.shape, w.shape
    if not isinstance(groups, int) or groups < 1 or c % groups or o % groups:
        raise ShapeError(
            f"conv2d: groups={groups} must divide the {c} input channels of x {x.shape} "
            f"and the {o} output channels of w {w.shape}"
        )
    if depth * groups != c:
        raise ShapeError(
            f"conv2d: w {w.shape} expects {depth * groups} input channels (with groups={groups}), "
            f"but x {x.shape} has {c}. x must be channels last, (N, H, W, C)"
        )
    if b is not None and b.shape != (o,):
        raise ShapeError(f"conv2d: b must have shape ({o},), one per output channel, not {b.shape}")
    win = window("conv2d", (h, width), (kh, kw), stride, padding)

    xp = backend.array_module(x.data)
    xdata, wdata = xp.ascontiguousarray(x.data), xp.ascontiguousarray(w.data)
    bdata = None if b is None else b.data
    if backend.fast(xdata):
        y = _forward_numba(xdata, wdata, bdata, win, groups)
    else:
        y = _forward(xp, xdata, wdata, bdata, win, groups)
    # Tensors that need no gradient cost no product: the first layer of a network never computes dx.
    need_x, need_w, need_b = x.requires_grad, w.requires_grad, b is not None and b.requires_grad

    def backward(dy: Array) -> tuple[Array | None, ...]:
        dy = xp.ascontiguousarray(dy)
        fast = backend.fast(dy)
        dx = dw = db = None
        if need_w:
            run = (dy, xdata, wdata.shape, win, groups)
            dw = _backward_w_numba(*run) if fast else _backward_w(xp, *run)
        if need_b:
            db = _backward_b(dy)
        if need_x:
            run = (dy, wdata, xdata.shape, win, groups)
            dx = _backward_x_numba(*run) if fast else _backward_x(xp, *run)
        return (dx, dw) if b is None else (dx, dw, db)

    return record("conv2d", y, (x, w) if b is None else (x, w, b), backward)

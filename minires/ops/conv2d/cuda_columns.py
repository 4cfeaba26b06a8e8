"""Convolution by im2col on a GPU: cuBLAS multiplies, the kernels here move the numbers.

The same three products as in ``minires.ops.conv2d``, which says what they are:

    forward      y  = im2col(x) @ w + b
    backward_x   dx = col2im(dy @ w^T)
    backward_w   dw = im2col(x)^T @ dy

The columns are KH*KW times as large as the pictures. So only those of one group exist at a time, and of as
many pictures as _CHUNK allows. Where the picture itself is the matrix (1x1, stride 1), no columns are made.

In im2col a thread takes one channel at one place of the window, and writes its KH*KW numbers. In col2im a
thread takes one number of dx, and adds up what the windows over it give, always in the same order: no two
threads add to one number, and the result is the same each time. In both, neighbouring threads take
neighbouring channels, which lie side by side in the pictures and in the columns; and the divisions that find
a thread's place are done once for all KH*KW numbers.

In bfloat16 the products are rounded where they are stored: y before its bias is added, and the columns of dx
before they are added up, in float32. dw is float32 throughout.
"""

from __future__ import annotations

import math
from typing import Any

from minires import backend
from minires.backend import Array, cuda
from minires.ops.conv2d.joined_groups import by_group
from minires.ops.window import Window

_CHUNK = 256 << 20  # bytes of columns that may exist at once; those of one picture always may

_CUDA = cuda.Source(r"""
// Pictures (h, w, c), of which the channels of one group are taken, first .. first + depth; and a window
// (kh, kw) of pixels (dh, dw) apart that stands on (oh, ow) places, (sh, sw) apart, the first one (top, left)
// outside the picture.
#define WINDOW int h, int w, int c, int first, int depth, int kh, int kw, int sh, int sw, int dh, int dw, \
               int top, int left, int oh, int ow

// x (n, h, w, c) -> columns (rows, kh, kw, depth), rows = n * oh * ow.
extern "C" __global__ void im2col(
    const T* __restrict__ x /* rows // max(1, oh * ow) * h * w * c */,
    T* __restrict__ columns /* rows * kh * kw * depth */, int rows, WINDOW
) {
    EACH(i, rows * depth) {
        int channel = i % depth, row = i / depth;
        int x0 = row % ow * sw - left, y0 = row / ow % oh * sh - top, n = row / (oh * ow);
        const T* picture = x + n * h * w * c + first + channel;
        T* target = columns + row * kh * kw * depth + channel;
        for (int py = y0; py < y0 + kh * dh; py += dh) {
            for (int px = x0; px < x0 + kw * dw; px += dw) {
                bool inside = 0 <= py && py < h && 0 <= px && px < w;
                *target = inside ? picture[(py * w + px) * c] : T(0);
                target += depth;
            }
        }
    }
}

// columns (n * oh * ow, kh, kw, depth) -> the channels first .. first + depth of dx (n, h, w, c).
extern "C" __global__ void col2im(
    const T* __restrict__ columns /* pixels // max(1, h * w) * oh * ow * kh * kw * depth */,
    T* __restrict__ dx /* pixels * c */, int pixels, WINDOW
) {
    EACH(i, pixels * depth) {
        int channel = i % depth, pixel = i / depth;
        int px = pixel % w + left, py = pixel / w % h + top, n = pixel / (h * w);
        const T* source = columns + n * oh * ow * kh * kw * depth + channel;
        A sum = 0;
        // The windows over the pixel, from the last one, in which it lies uppermost, to the first. A dilated
        // one has gaps, and the pixel may lie in them.
        for (int y = min(py / sh, oh - 1); y >= 0 && py - y * sh < kh * dh; y--) {
            int ky = py - y * sh;
            if (dh > 1) {
                if (ky % dh) continue;
                ky /= dh;
            }
            for (int x = min(px / sw, ow - 1); x >= 0 && px - x * sw < kw * dw; x--) {
                int kx = px - x * sw;
                if (dw > 1) {
                    if (kx % dw) continue;
                    kx /= dw;
                }
                sum += source[((y * ow + x) * kh * kw + ky * kw + kx) * depth];
            }
        }
        dx[pixel * c + first + channel] = sum;
    }
}

extern "C" __global__ void bias_relu(T* y /* n */, const A* b /* outputs */, int outputs, int relu, int n) {
    EACH(i, n) {
        A value = y[i];
        if (b) value += b[i % outputs];
        y[i] = relu && value < 0 ? A(0) : value;  // NaN stays NaN
    }
}
""")


def forward(x: Array, w: Array, b: Array | None, relu: bool, win: Window, groups: int) -> Array:
    """im2col(x) @ w + b, with a ReLU behind it where asked."""
    xp, kernels = backend.array_module(x), by_group(w, groups)
    y = xp.empty((len(x), *win.out, w.shape[-1]), x.dtype)
    for group in range(groups):
        for start, stop in _chunks(x, win, groups):
            columns = _im2col(xp, x[start:stop], win, group, groups)
            y = _placed(y, start, stop, group, groups, backend.matmul(columns, kernels[group]))
    if b is not None or relu:
        bias = None if b is None else xp.ascontiguousarray(b)
        _CUDA("bias_relu", cuda.over(y.size), y, bias, y.shape[-1], relu, y.size)
    return y


def backward_x(dy: Array, w: Array, shape: tuple[int, ...], win: Window, groups: int) -> Array:
    """col2im(dy @ w^T)."""
    xp, kernels = backend.array_module(dy), by_group(w, groups)
    dx = xp.empty(shape, dy.dtype)
    for group in range(groups):
        for start, stop in _chunks(dx, win, groups):
            columns = backend.matmul(by_group(dy[start:stop], groups)[group], kernels[group].T)
            if win.is_pointwise:
                dx = _placed(dx, start, stop, group, groups, columns)
            else:
                _col2im(columns, dx[start:stop], win, group, groups)
    return dx


def backward_w(dy: Array, x: Array, shape: tuple[int, ...], win: Window, groups: int) -> Array:
    """im2col(x)^T @ dy."""
    xp, dtype = backend.array_module(x), backend.accumulator(x.dtype)
    dw = xp.empty(shape, dtype)
    for group in range(groups):
        total = None
        for start, stop in _chunks(x, win, groups):
            columns = _im2col(xp, x[start:stop], win, group, groups)
            product = backend.matmul(columns.T, by_group(dy[start:stop], groups)[group], dtype)
            total = product if total is None else backend.add(total, product, out=total)
        dw = _placed(dw, 0, len(dw), group, groups, total)
    return dw


def _chunks(x: Array, win: Window, groups: int) -> list[tuple[int, int]]:
    """The pictures of x, start to stop at a time: no more than whose columns may exist at once."""
    if win.is_pointwise:
        return [(0, len(x))]
    size = math.prod(win.out) * math.prod(win.size) * x.shape[-1] // groups * x.itemsize  # of one picture
    most = max(1, _CHUNK // size)
    return backend.split(0, len(x), max(1, -(-len(x) // most)))


def _im2col(xp: Any, x: Array, win: Window, group: int, groups: int) -> Array:
    """The columns of one group, (N*OH*OW, KH*KW*C/G)."""
    if win.is_pointwise:
        return by_group(x, groups)[group]
    rows, depth = len(x) * math.prod(win.out), x.shape[-1] // groups
    columns = xp.empty((rows, math.prod(win.size) * depth), x.dtype)
    _CUDA("im2col", cuda.over(rows * depth), x, columns, rows, *_window(x, win, group, groups))
    return columns


def _col2im(columns: Array, dx: Array, win: Window, group: int, groups: int) -> None:
    """The adjoint: from the columns of one group its channels of dx."""
    pixels, depth = math.prod(dx.shape[:3]), dx.shape[-1] // groups
    _CUDA("col2im", cuda.over(pixels * depth), columns, dx, pixels, *_window(dx, win, group, groups))


def _window(x: Array, win: Window, group: int, groups: int) -> tuple[int, ...]:
    """What the kernels call WINDOW."""
    (_, h, w, c), depth = x.shape, x.shape[-1] // groups
    place = (*win.size, *win.stride, *win.dilation, win.top, win.left, *win.out)
    return (h, w, c, group * depth, depth, *place)


def _placed(whole: Array, start: int, stop: int, group: int, groups: int, part: Array) -> Array:
    """``whole`` with ``part`` at start..stop, in the columns of the group. A part that is all of it is not
    copied."""
    if part.size == whole.size:
        return part.reshape(whole.shape)
    by_group(whole[start:stop], groups)[group] = part
    return whole

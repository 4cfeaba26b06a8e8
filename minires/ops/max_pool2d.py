"""Max pooling: the largest value under each window.

    y[n, i, j, c] = max over kh, kw of x[n, i*stride + kh - top, j*stride + kw - left, c]
    dx: each dy goes to the pixel that won; of equal pixels the first one in reading order wins

The border is filled with minus infinity, so it never wins (zeros would beat negative pixels).

Source: Ranzato et al. 2007; the border as in Caffe, torch and Keras.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minires import backend
from minires.backend import Array, cuda, kernel
from minires.ops import checks
from minires.ops.mixed_precision import mixed
from minires.ops.window import Padding, Window, window
from minires.tensor import Tensor, record

# ---------------------------------------------------------------------------------------- specification


def _forward(xp: Any, x: Array, win: Window) -> tuple[Array, Array]:
    """The largest values (N, OH, OW, C), and which pixel of the window they came from (kh * KW + kw)."""
    padded = win.pad(xp, x, -xp.inf)
    picture = win.pad(xp, xp.ones((1, *x.shape[1:3], 1), bool))  # False in the border
    y = xp.full((len(x), *win.out, x.shape[-1]), -xp.inf, x.dtype)
    winner = xp.full(y.shape, -1, xp.int32)
    for i in range(win.size[0]):
        for j in range(win.size[1]):
            pixel = win.at(padded, i, j)
            # NaN wins, so that it is seen and not hidden; so does the first pixel, which may be -inf itself.
            better = (pixel > y) | xp.isnan(pixel) | (winner < 0)
            better &= win.at(picture, i, j)
            y = xp.where(better, pixel, y)
            winner = xp.where(better, xp.int32(i * win.size[1] + j), winner)
    return y, winner


def _backward(xp: Any, dy: Array, winner: Array, shape: tuple[int, ...], win: Window) -> Array:
    n, h, w, c = shape
    padded = xp.zeros((n, h + win.top + win.bottom, w + win.left + win.right, c), dy.dtype)
    for i in range(win.size[0]):
        for j in range(win.size[1]):
            win.at(padded, i, j)[...] += dy * (winner == i * win.size[1] + j)
    return xp.ascontiguousarray(win.crop(padded))


# ----------------------------------------------------------------------------------------- fast, on CPU


@kernel
def _forward_numba(x, y, winner, size, stride, top, left):
    _, h, w, channels = x.shape
    for n in range(y.shape[0]):
        for oh in range(y.shape[1]):
            for ow in range(y.shape[2]):
                best, where = y[n, oh, ow], winner[n, oh, ow]
                first_i, first_j = max(0, top - oh * stride[0]), max(0, left - ow * stride[1])
                best[:] = -np.inf
                where[:] = first_i * size[1] + first_j  # the first pixel, which may be -inf itself
                for i in range(first_i, min(size[0], h + top - oh * stride[0])):
                    for j in range(first_j, min(size[1], w + left - ow * stride[1])):
                        pixel = x[n, oh * stride[0] + i - top, ow * stride[1] + j - left]
                        place = np.int32(i * size[1] + j)
                        for c in range(channels):
                            better = pixel[c] > best[c] or np.isnan(pixel[c])
                            where[c] = place if better else where[c]
                            best[c] = pixel[c] if better else best[c]


@kernel
def _backward_numba(dy, winner, dx, size, stride, top, left):
    dx[...] = 0.0
    for n in range(dy.shape[0]):
        for oh in range(dy.shape[1]):
            for ow in range(dy.shape[2]):
                for c in range(dy.shape[3]):
                    i, j = divmod(winner[n, oh, ow, c], size[1])
                    dx[n, oh * stride[0] + i - top, ow * stride[1] + j - left, c] += dy[n, oh, ow, c]


# ------------------------------------------------------------------------------------------- fast, on GPU

_CUDA = cuda.Source(r"""
#define WINDOW int h, int w, int channels, int out_h, int out_w, \
    int kernel_h, int kernel_w, int stride_h, int stride_w, int top, int left

extern "C" __global__ void max_pool(const T* x, T* y, int* winner, int n, WINDOW) {
    EACH(i, n) {
        int c = i % channels, place = i / channels, row = place / out_w;
        int start_h = row % out_h * stride_h - top, start_w = place % out_w * stride_w - left;
        int first_h = max(start_h, 0), stop_h = min(start_h + kernel_h, h);
        int first_w = max(start_w, 0), stop_w = min(start_w + kernel_w, w);
        const T* pixels = x + row / out_h * h * w * channels + c;
        A best = pixels[(first_h * w + first_w) * channels];  // the first pixel, which may be -inf itself
        int where = (first_h - start_h) * kernel_w + first_w - start_w;
        for (int ih = first_h; ih < stop_h; ih++) {
            for (int iw = first_w; iw < stop_w; iw++) {
                A pixel = pixels[(ih * w + iw) * channels];
                if (pixel > best || isnan(pixel)) {
                    best = pixel;
                    where = (ih - start_h) * kernel_w + iw - start_w;
                }
            }
        }
        y[i] = best;
        winner[i] = where;
    }
}

// Each thread owns one pixel's number of dx and asks the windows over the pixel whether it won, the last
// window first: so the sums are those of the specification, and no two threads write to one place.
extern "C" __global__ void max_pool_gradient(const T* dy, const int* winner, T* dx, int n, WINDOW) {
    EACH(i, n) {
        int c = i % channels, place = i / channels, row = place / w;
        int ih = row % h + top, iw = place % w + left;  // in the padded picture
        A sum = 0;
        for (int oh = min(ih / stride_h, out_h - 1); oh >= 0 && ih < oh * stride_h + kernel_h; oh--) {
            for (int ow = min(iw / stride_w, out_w - 1); ow >= 0 && iw < ow * stride_w + kernel_w; ow--) {
                int o = ((row / h * out_h + oh) * out_w + ow) * channels + c;
                if (winner[o] == (ih - oh * stride_h) * kernel_w + iw - ow * stride_w) sum += dy[o];
            }
        }
        dx[i] = sum;
    }
}
""")


def _window(shape: tuple[int, ...], win: Window) -> tuple[int, ...]:
    """What the kernels call WINDOW."""
    return (*shape[1:], *win.out, *win.size, *win.stride, win.top, win.left)


def _forward_cuda(xp: Any, x: Array, win: Window) -> tuple[Array, Array]:
    y = xp.empty((len(x), *win.out, x.shape[-1]), x.dtype)
    winner = xp.empty(y.shape, xp.int32)
    _CUDA("max_pool", cuda.over(y.size), x, y, winner, y.size, *_window(x.shape, win))
    return y, winner


def _backward_cuda(xp: Any, dy: Array, winner: Array, shape: tuple[int, ...], win: Window) -> Array:
    dx, dy = xp.empty(shape, dy.dtype), xp.ascontiguousarray(dy)
    _CUDA("max_pool_gradient", cuda.over(dx.size), dy, winner, dx, dx.size, *_window(shape, win))
    return dx


# ----------------------------------------------------------------------------------------------- public


@mixed(kernels=True)
def max_pool2d(
    x: Tensor,
    kernel: int | tuple[int, int],
    *,
    stride: int | tuple[int, int] | None = None,
    padding: Padding = 0,
) -> Tensor:
    """Take the largest value under each window; the stride is the kernel size if left out.

    Math and Backward: see the head of this file.
    Shapes: x (N, H, W, C) -> y (N, OH, OW, C), OH = (H + top + bottom - KH) // stride + 1 (rounded down).
    Raises: ShapeError if x is not four axes of floats, the kernel is larger than the padded picture, or the
    padding is as large as the kernel (a window would see nothing but border).
    Differs: Caffe rounds OH up.
    """
    x = checks.as_tensor(x)
    checks.rank("max_pool2d", "x", x, "(N, H, W, C)")
    checks.same_floats("max_pool2d", x=x)
    win = window(
        "max_pool2d", (x.shape[1], x.shape[2]), kernel, kernel if stride is None else stride, padding
    )
    checks.border("max_pool2d", win.size, (win.top, win.bottom), (win.left, win.right))
    xp = backend.array_module(x.data)
    data = xp.ascontiguousarray(x.data)
    if cuda.usable(data):
        y, winner = _forward_cuda(xp, data, win)
    elif backend.fast(data):
        y = np.empty((len(data), *win.out, data.shape[-1]), data.dtype)
        winner = np.empty(y.shape, np.int32)

        def forward(start: int, stop: int) -> None:
            part = slice(start, stop)
            _forward_numba(data[part], y[part], winner[part], win.size, win.stride, win.top, win.left)

        backend.parallel_for(forward, len(data))
    else:
        y, winner = _forward(xp, data, win)
    shape = data.shape

    def backward(dy: Array) -> tuple[Array]:
        if cuda.usable(dy):
            return (_backward_cuda(xp, dy, winner, shape, win),)
        if not backend.fast(dy):
            return (_backward(xp, dy, winner, shape, win),)
        dx, dy = np.empty(shape, dy.dtype), np.ascontiguousarray(dy)

        def shard(start: int, stop: int) -> None:
            part = slice(start, stop)
            _backward_numba(dy[part], winner[part], dx[part], win.size, win.stride, win.top, win.left)

        backend.parallel_for(shard, shape[0])
        return (dx,)

    return record(
        "max_pool2d", y, inputs={"x": x}, options=win.options(), saved={"winner": winner}, backward=backward
    )

"""Max pooling on a GPU: a thread for each number of y, and of dx.

What is computed stands in ``minires.ops.max_pool2d``.
"""

from __future__ import annotations

from typing import Any

from minires.backend import Array, cuda
from minires.ops.window import Window

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
// window first: so the sums are those of the reference implementation, and no two threads write to one place.
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


def forward(xp: Any, x: Array, win: Window) -> tuple[Array, Array]:
    """y (N, OH, OW, C), and which pixel of the window each number came from."""
    y = xp.empty((len(x), *win.out, x.shape[-1]), x.dtype)
    winner = xp.empty(y.shape, xp.int32)
    _CUDA("max_pool", cuda.over(y.size), x, y, winner, y.size, *_window(x.shape, win))
    return y, winner


def backward(xp: Any, dy: Array, winner: Array, shape: tuple[int, ...], win: Window) -> Array:
    """dx of ``shape`` (N, H, W, C)."""
    dx, dy = xp.empty(shape, dy.dtype), xp.ascontiguousarray(dy)
    _CUDA("max_pool_gradient", cuda.over(dx.size), dy, winner, dx, dx.size, *_window(shape, win))
    return dx

"""Max pooling on a GPU: a thread for each number of y, and of dx.

What is computed stands in ``minires.ops.max_pool2d``.
"""

from __future__ import annotations

from typing import Any

from minires.backend import Array, cuda
from minires.ops.window import Window

_CUDA = cuda.Source(r"""
#define WINDOW int h, int w, int channels, int out_h, int out_w, \
    int kernel_h, int kernel_w, int stride_h, int stride_w, int dilation_h, int dilation_w, int top, int left

// Which pixel of a window is the first in the picture, where it begins at ``start``.
__device__ int first(int start, int dilation) { return start < 0 ? (dilation - 1 - start) / dilation : 0; }

extern "C" __global__ void max_pool(
    const T* x /* n // max(1, out_h * out_w) * h * w */, T* y /* n */, int* winner /* n */, int n, WINDOW
) {
    EACH(i, n) {
        int c = i % channels, place = i / channels, row = place / out_w;
        int start_h = row % out_h * stride_h - top, start_w = place % out_w * stride_w - left;
        int first_y = first(start_h, dilation_h), first_x = first(start_w, dilation_w);
        const T* pixels = x + row / out_h * h * w * channels + c;
        int where = first_y * kernel_w + first_x;  // the first pixel, which may be -inf itself
        A best = pixels[((start_h + first_y * dilation_h) * w + start_w + first_x * dilation_w) * channels];
        for (int ky = first_y; ky < kernel_h && start_h + ky * dilation_h < h; ky++) {
            for (int kx = first_x; kx < kernel_w && start_w + kx * dilation_w < w; kx++) {
                int ih = start_h + ky * dilation_h, iw = start_w + kx * dilation_w;
                A pixel = pixels[(ih * w + iw) * channels];
                if (pixel > best || isnan(pixel)) {
                    best = pixel;
                    where = ky * kernel_w + kx;
                }
            }
        }
        y[i] = best;
        winner[i] = where;
    }
}

// Each thread owns one pixel's number of dx and asks the windows over the pixel whether it won, the last
// window first: so the sums are those of the reference implementation, and no two threads write to one place.
// In the gaps of a dilated window none has won.
extern "C" __global__ void max_pool_gradient(
    const T* dy /* n // max(1, h * w) * out_h * out_w */,
    const int* winner /* n // max(1, h * w) * out_h * out_w */, T* dx /* n */, int n, WINDOW
) {
    EACH(i, n) {
        int c = i % channels, place = i / channels, row = place / w;
        int ih = row % h + top, iw = place % w + left;  // in the padded picture
        double sum = 0;
        int high = kernel_h * dilation_h, wide = kernel_w * dilation_w;
        for (int oh = min(ih / stride_h, out_h - 1); oh >= 0 && ih < oh * stride_h + high; oh--) {
            int ky = ih - oh * stride_h;
            if (dilation_h > 1) {
                if (ky % dilation_h) continue;
                ky /= dilation_h;
            }
            for (int ow = min(iw / stride_w, out_w - 1); ow >= 0 && iw < ow * stride_w + wide; ow--) {
                int o = ((row / h * out_h + oh) * out_w + ow) * channels + c, kx = iw - ow * stride_w;
                if (dilation_w > 1) {
                    if (kx % dilation_w) continue;
                    kx /= dilation_w;
                }
                if (winner[o] == ky * kernel_w + kx) sum += dy[o];
            }
        }
        dx[i] = A(sum);
    }
}
""")


def _window(shape: tuple[int, ...], win: Window) -> tuple[int, ...]:
    """What the kernels call WINDOW."""
    return (*shape[1:], *win.out, *win.size, *win.stride, *win.dilation, win.top, win.left)


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

"""Average pooling on a GPU: a thread for each number of y, and of dx.

What is computed stands in ``minires.ops.avg_pool2d``. The mean of a whole picture is one launch and one pass
of CuPy's, so only its gradient has a kernel.
"""

from __future__ import annotations

from typing import Any

from minires.backend import Array, cuda
from minires.ops.window import Window

_CUDA = cuda.Source(r"""
#define WINDOW int h, int w, int channels, int out_h, int out_w, \
    int kernel_h, int kernel_w, int stride_h, int stride_w, int dilation_h, int dilation_w, \
    int top, int left, int count_padding

// The pixels of a window that begins at ``start``, in a picture of so many, are first <= k < stop.
__device__ int first(int start, int dilation) { return start < 0 ? (dilation - 1 - start) / dilation : 0; }

__device__ int stop(int start, int kernel, int dilation, int size) {
    int last = start + (kernel - 1) * dilation;
    return last < size ? kernel : (size - start + dilation - 1) / dilation;
}

extern "C" __global__ void avg_pool(
    const T* x /* n // max(1, out_h * out_w) * h * w */, T* y /* n */, int n, WINDOW
) {
    EACH(i, n) {
        int c = i % channels, place = i / channels, row = place / out_w;
        int start_h = row % out_h * stride_h - top, start_w = place % out_w * stride_w - left;
        int first_y = first(start_h, dilation_h), stop_y = stop(start_h, kernel_h, dilation_h, h);
        int first_x = first(start_w, dilation_w), stop_x = stop(start_w, kernel_w, dilation_w, w);
        const T* pixels = x + row / out_h * h * w * channels + c;
        double sum = 0;  // of sixteen at a time, since GPUs are slower in double
        for (int ky = first_y; ky < stop_y; ky++) {
            const T* line = pixels + (start_h + ky * dilation_h) * w * channels;
            for (int from = first_x; from < stop_x; from += 16) {
                A few = 0;
                for (int kx = from; kx < min(from + 16, stop_x); kx++) {
                    few += line[(start_w + kx * dilation_w) * channels];
                }
                sum += few;
            }
        }
        int count = count_padding ? kernel_h * kernel_w : (stop_y - first_y) * (stop_x - first_x);
        y[i] = A(sum / count);
    }
}

// Each thread owns one number of dx and adds up the shares that the windows over its pixel give, the last
// window first: so the sums are those of the reference implementation, and no two threads write to one place.
extern "C" __global__ void avg_pool_gradient(
    const T* dy /* n // max(1, h * w) * out_h * out_w */, T* dx /* n */, int n, WINDOW
) {
    EACH(i, n) {
        int c = i % channels, place = i / channels, row = place / w;
        int ih = row % h + top, iw = place % w + left;  // in the padded picture
        double sum = 0;
        int high = kernel_h * dilation_h, wide = kernel_w * dilation_w;
        for (int oh = min(ih / stride_h, out_h - 1); oh >= 0 && ih < oh * stride_h + high; oh--) {
            if (dilation_h > 1 && (ih - oh * stride_h) % dilation_h) continue;  // in a gap of the window
            int start_h = oh * stride_h - top;
            int real_h = stop(start_h, kernel_h, dilation_h, h) - first(start_h, dilation_h);
            for (int ow = min(iw / stride_w, out_w - 1); ow >= 0 && iw < ow * stride_w + wide; ow--) {
                if (dilation_w > 1 && (iw - ow * stride_w) % dilation_w) continue;
                int start_w = ow * stride_w - left;
                int real_w = stop(start_w, kernel_w, dilation_w, w) - first(start_w, dilation_w);
                int count = count_padding ? kernel_h * kernel_w : real_h * real_w;
                sum += dy[((row / h * out_h + oh) * out_w + ow) * channels + c] / A(count);
            }
        }
        dx[i] = A(sum);
    }
}

extern "C" __global__ void global_avg_pool_gradient(
    const T* dy /* n // max(1, pixels) */, T* dx /* n */, int n, int pixels, int channels
) {
    EACH(i, n) dx[i] = dy[i / (pixels * channels) * channels + i % channels] / A(pixels);
}
""")


def _window(shape: tuple[int, ...], win: Window, count_padding: bool) -> tuple[int, ...]:
    """What the kernels call WINDOW."""
    return (*shape[1:], *win.out, *win.size, *win.stride, *win.dilation, win.top, win.left, count_padding)


def forward(xp: Any, x: Array, win: Window, count_padding: bool) -> Array:
    """y (N, OH, OW, C)."""
    x, y = xp.ascontiguousarray(x), xp.empty((len(x), *win.out, x.shape[-1]), x.dtype)
    _CUDA("avg_pool", cuda.over(y.size), x, y, y.size, *_window(x.shape, win, count_padding))
    return y


def backward(xp: Any, dy: Array, shape: tuple[int, ...], win: Window, count_padding: bool) -> Array:
    """dx of ``shape`` (N, H, W, C)."""
    dx, dy = xp.empty(shape, dy.dtype), xp.ascontiguousarray(dy)
    _CUDA("avg_pool_gradient", cuda.over(dx.size), dy, dx, dx.size, *_window(shape, win, count_padding))
    return dx


def global_backward(xp: Any, dy: Array, shape: tuple[int, ...]) -> Array:
    """dx of ``shape`` (N, H, W, C), for the mean of whole pictures."""
    dx, dy = xp.empty(shape, dy.dtype), xp.ascontiguousarray(dy)
    _, h, w, c = shape
    _CUDA("global_avg_pool_gradient", cuda.over(dx.size), dy, dx, dx.size, h * w, c)
    return dx

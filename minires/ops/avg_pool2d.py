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
from minires.backend import Array, cuda
from minires.ops import checks
from minires.ops.mixed_precision import mixed
from minires.ops.window import Padding, Window, window
from minires.tensor import Tensor, record

# ---------------------------------------------------------------------------------------- specification


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


# ------------------------------------------------------------------------------------------- fast, on GPU
# The mean of a whole picture is one launch and one pass of CuPy's, so only its gradient has a kernel.

_CUDA = cuda.Source(r"""
#define WINDOW int h, int w, int channels, int out_h, int out_w, \
    int kernel_h, int kernel_w, int stride_h, int stride_w, int top, int left, int count_padding

extern "C" __global__ void avg_pool(const T* x, T* y, int n, WINDOW) {
    EACH(i, n) {
        int c = i % channels, place = i / channels, row = place / out_w;
        int start_h = row % out_h * stride_h - top, start_w = place % out_w * stride_w - left;
        int first_h = max(start_h, 0), stop_h = min(start_h + kernel_h, h);
        int first_w = max(start_w, 0), stop_w = min(start_w + kernel_w, w);
        const T* pixels = x + row / out_h * h * w * channels + c;
        A sum = 0;
        for (int ih = first_h; ih < stop_h; ih++) {
            for (int iw = first_w; iw < stop_w; iw++) sum += pixels[(ih * w + iw) * channels];
        }
        int count = count_padding ? kernel_h * kernel_w : (stop_h - first_h) * (stop_w - first_w);
        y[i] = sum / A(count);
    }
}

// Each thread owns one number of dx and adds up the shares that the windows over its pixel give, the last
// window first: so the sums are those of the specification, and no two threads write to one place.
extern "C" __global__ void avg_pool_gradient(const T* dy, T* dx, int n, WINDOW) {
    EACH(i, n) {
        int c = i % channels, place = i / channels, row = place / w;
        int ih = row % h + top, iw = place % w + left;  // in the padded picture
        A sum = 0;
        for (int oh = min(ih / stride_h, out_h - 1); oh >= 0 && ih < oh * stride_h + kernel_h; oh--) {
            int start_h = oh * stride_h - top;
            int real_h = min(start_h + kernel_h, h) - max(start_h, 0);
            for (int ow = min(iw / stride_w, out_w - 1); ow >= 0 && iw < ow * stride_w + kernel_w; ow--) {
                int start_w = ow * stride_w - left;
                int real_w = min(start_w + kernel_w, w) - max(start_w, 0);
                int count = count_padding ? kernel_h * kernel_w : real_h * real_w;
                sum += dy[((row / h * out_h + oh) * out_w + ow) * channels + c] / A(count);
            }
        }
        dx[i] = sum;
    }
}

extern "C" __global__ void global_avg_pool_gradient(const T* dy, T* dx, int n, int pixels, int channels) {
    EACH(i, n) dx[i] = dy[i / (pixels * channels) * channels + i % channels] / A(pixels);
}
""")


def _window(shape: tuple[int, ...], win: Window, count_padding: bool) -> tuple[int, ...]:
    """What the kernels call WINDOW."""
    return (*shape[1:], *win.out, *win.size, *win.stride, win.top, win.left, count_padding)


def _forward_cuda(xp: Any, x: Array, win: Window, count_padding: bool) -> Array:
    x, y = xp.ascontiguousarray(x), xp.empty((len(x), *win.out, x.shape[-1]), x.dtype)
    _CUDA("avg_pool", cuda.over(y.size), x, y, y.size, *_window(x.shape, win, count_padding))
    return y


def _backward_cuda(xp: Any, dy: Array, shape: tuple[int, ...], win: Window, count_padding: bool) -> Array:
    dx, dy = xp.empty(shape, dy.dtype), xp.ascontiguousarray(dy)
    _CUDA("avg_pool_gradient", cuda.over(dx.size), dy, dx, dx.size, *_window(shape, win, count_padding))
    return dx


def _global_backward_cuda(xp: Any, dy: Array, shape: tuple[int, ...]) -> Array:
    dx, dy = xp.empty(shape, dy.dtype), xp.ascontiguousarray(dy)
    _, h, w, c = shape
    _CUDA("global_avg_pool_gradient", cuda.over(dx.size), dy, dx, dx.size, h * w, c)
    return dx


# ----------------------------------------------------------------------------------------------- public


@mixed(kernels=True)
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
    shape, options = x.shape, {**win.options(), "count_padding": count_padding}
    if cuda.usable(x.data):
        y = _forward_cuda(xp, x.data, win, count_padding)
        return record(
            "avg_pool2d",
            y,
            inputs={"x": x},
            options=options,
            backward=lambda dy: (_backward_cuda(xp, dy, shape, win, count_padding),),
        )
    counts = _counts(xp, win, shape, x.dtype, count_padding)
    y = _sum(xp, x.data, win) / counts
    return record(
        "avg_pool2d",
        y,
        inputs={"x": x},
        options=options,
        saved={"counts": counts},
        backward=lambda dy: (_backward(xp, dy / counts, shape, win),),
    )


@mixed(kernels=True)
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
        if cuda.usable(dy):
            return (_global_backward_cuda(xp, dy, (n, h, w, c)),)
        share = (dy / (h * w)).reshape(n, 1, 1, c)
        return (xp.broadcast_to(share, (n, h, w, c)).copy(),)

    y = x.data.mean(axis=(1, 2), dtype=backend.accumulator(x.dtype)).astype(x.dtype, copy=False)
    return record("global_avg_pool2d", y, inputs={"x": x}, backward=backward)

"""Max pooling: the largest value under each window.

    y[n, i, j, c] = max over kh, kw of x[n, i*stride + kh*dilation - top, j*stride + kw*dilation - left, c]
    dx: each dy goes to the pixel that won; of equal pixels the first one in reading order wins

The border is filled with minus infinity, so it never wins (zeros would beat negative pixels).

A pixel that wins under many windows gets the sum of their dy, which is added up in float64 where a window has
more than 16 pixels.

Shapes: x (N, H, W, C) -> y (N, OH, OW, C).
Source: Ranzato et al. 2007; the border as in Caffe, torch and Keras.

This is the idea. Beside it stand

    numba_kernels.py    the same in one pass, on all threads of the CPU
    cuda_kernels.py     ... and on a GPU
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from minires import backend
from minires.backend import Array, cuda
from minires.ops import checks
from minires.ops.forms import Pool
from minires.ops.max_pool2d import cuda_kernels, numba_kernels
from minires.ops.mixed_precision import mixed
from minires.ops.onnx_graph import Graph
from minires.ops.onnx_graph import window as onnx_window
from minires.ops.pool_cases import POOLS
from minires.ops.registry import Case, Words, apart, operation
from minires.ops.window import UNDER, Padding, Window, check_border, window
from minires.tensor import Call, Tensor, record

# ------------------------------------------------------------------------------ reference implementation


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
    size = (n, h + win.top + win.bottom, w + win.left + win.right, c)
    padded = xp.zeros(size, win.summed(dy.dtype))
    for i in range(win.size[0]):
        for j in range(win.size[1]):
            win.at(padded, i, j)[...] += dy * (winner == i * win.size[1] + j)
    return xp.ascontiguousarray(win.crop(padded), dy.dtype)


# ----------------------------------------------------------------------------------------------- public


def _cases() -> Iterator[Case]:
    for name, x, options in POOLS:
        yield Case(name, {"x": apart(x)}, options)


def _onnx(graph: Graph, call: Call) -> str:
    (x,) = call.inputs.values()
    return graph.add("MaxPool", graph.value(x), **onnx_window(call))


@operation(
    math=f"""
        y[n, i, j, c] = max over kh, kw of
            x[{UNDER}, c]
        {{padding > 0?inside the picture}}
    """,
    backward="dx: each dy goes to the pixel that won; of equal pixels the first one in reading order wins",
    english=Words(
        "Max pooling",
        "Of the numbers under each window the largest is kept.",
        "Each dy goes to the number that won; the others get nothing.",
    ),
    chinese=Words("最大池化", "保留每个窗口内最大的数。", "每个 dy 交给胜出的数，其余得到零。"),
    arithmetic=Pool(),
    label="max pool {kernel}{stride}{dilation}",
    short="max pool {kernel}{step}{dilation}",
    onnx=_onnx,
    cases=_cases,
)
@mixed(kernels=True)
def max_pool2d(
    x: Tensor,
    kernel: int | tuple[int, int],
    *,
    stride: int | tuple[int, int] | None = None,
    padding: Padding = 0,
    dilation: int | tuple[int, int] = 1,
) -> Tensor:
    """Take the largest value under each window.

    kernel: the height and width of the window, an int for both.
    stride: from one window to the next; the kernel size if left out.
    padding: as in :func:`minires.ops.window.window`; the border never wins.
    dilation: the pixels of a window are so far apart; an int or a pair (height, width).

    Shapes: x (N, H, W, C) -> y (N, OH, OW, C), OH = (H + top + bottom - (KH - 1)*dilation - 1) // stride + 1.
    Raises: ShapeError if x is not four axes of floats, the kernel is larger than the padded picture, or a
    window would see nothing but border, as it may where the padding is as large as the kernel.
    Differs: Caffe rounds OH up.

    >>> x = Tensor([[1.0, 2.0, 5.0, 0.0], [3.0, 4.0, 1.0, 1.0]]).reshape(1, 2, 4, 1)
    >>> max_pool2d(x, 2).numpy().ravel().tolist()
    [4.0, 5.0]
    """
    x = checks.as_tensor(x)
    checks.rank("max_pool2d", "x", x, "(N, H, W, C)")
    checks.same_floats("max_pool2d", x=x)
    picture, stride = (x.shape[1], x.shape[2]), kernel if stride is None else stride
    win = window("max_pool2d", picture, kernel, stride, padding, dilation)
    check_border("max_pool2d", win, picture)
    xp = backend.array_module(x.data)
    data = xp.ascontiguousarray(x.data)
    shape = data.shape
    if cuda.usable(data):
        y, winner = cuda_kernels.forward(xp, data, win)
    else:
        y, winner = numba_kernels.forward(data, win) if backend.fast(data) else _forward(xp, data, win)

    def backward(dy: Array) -> tuple[Array]:
        if cuda.usable(dy):
            return (cuda_kernels.backward(xp, dy, winner, shape, win),)
        if backend.fast(dy):
            return (numba_kernels.backward(dy, winner, shape, win),)
        return (_backward(xp, dy, winner, shape, win),)

    return record(
        "max_pool2d", y, inputs={"x": x}, options=win.options(), saved={"winner": winner}, backward=backward
    )

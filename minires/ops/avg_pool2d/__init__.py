"""Average pooling: the mean under each window, or of the whole picture.

    y[n, i, j, c] = sum of x under the window / count
    dx: each dy / count goes to every pixel under its window

``count`` is the number of real pixels under the window, as in TensorFlow and Keras; with
``count_padding=True`` it is KH*KW, as in Caffe and torch, whose windows that reach out because the size is
rounded up count real pixels all the same.

A sum under a window is that of its columns' sums: KW + KH additions. More than 16 are done in float64 and
rounded once; up to 16 in float32, right to 1e-6.

Shapes: x (N, H, W, C) -> y (N, OH, OW, C).
Source: LeCun et al. 1989 (subsampling); global average pooling: Lin, Chen, Yan 2013, arXiv:1312.4400.

This is the idea, and what runs on the CPU. Beside it stands

    cuda_kernels.py     the same on a GPU
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from minires import backend
from minires.backend import Array, cuda
from minires.errors import ConfigError, ShapeError
from minires.ops import checks
from minires.ops.avg_pool2d import cuda_kernels
from minires.ops.forms import Formula, Pool
from minires.ops.mixed_precision import mixed
from minires.ops.onnx_graph import Graph
from minires.ops.onnx_graph import window as onnx_window
from minires.ops.pool_cases import POOLS
from minires.ops.registry import Case, Words, operation
from minires.ops.window import Padding, Window, check_border, window
from minires.tensor import Call, Tensor, record

# ------------------------------------------------------------------------------ reference implementation


def _counts(xp: Any, win: Window, shape: tuple[int, ...], dtype: Any, count_padding: bool) -> Array:
    """How many pixels each mean is over: (1, OH, OW, 1)."""
    if count_padding:
        return xp.full((1, *win.out, 1), win.size[0] * win.size[1], dtype)
    return _sum(xp, xp.ones((1, *shape[1:3], 1), dtype), win).astype(dtype, copy=False)


def _summed(win: Window, dtype: Any) -> Any:
    """The dtype in which the pixels under a window, or the gradients from the windows over a pixel, are added
    up: a sum of few additions is right to 1e-6 in float32."""
    return dtype if sum(win.size) <= 16 else np.dtype(np.float64)


def _sum(xp: Any, x: Array, win: Window) -> Array:
    """The sums under the windows: down, then across, which is KH + KW additions and not KH * KW."""
    for part in win.down(x.shape[2]), win.across():
        padded = part.pad(xp, x)
        x = part.at(padded, 0, 0).astype(_summed(win, x.dtype))
        for i in range(part.size[0]):
            for j in range(part.size[1]):
                if i or j:
                    x += part.at(padded, i, j)
    return x


def _backward(xp: Any, share: Array, shape: tuple[int, ...], win: Window) -> Array:
    """The adjoint of the sums: across, then down."""
    (n, h, w, c), dtype = shape, share.dtype
    for part, lines in (win.across(), win.out[0]), (win.down(w), h):
        size = (n, lines + part.top + part.bottom, w + part.left + part.right, c)
        padded = xp.zeros(size, _summed(win, share.dtype))
        for i in range(part.size[0]):
            for j in range(part.size[1]):
                part.at(padded, i, j)[...] += share
        share = part.crop(padded)
    return xp.ascontiguousarray(share, dtype)


# ----------------------------------------------------------------------------------------------- public


def _cases() -> Iterator[Case]:
    for name, x, options in POOLS:
        yield Case(name, {"x": x}, options)
        if name == "four sides" or "ceil" in name:
            yield Case(f"{name}, counted", {"x": x}, {**options, "count_padding": True})


def _onnx(graph: Graph, call: Call) -> str:
    (x,), counted = call.inputs.values(), int(call.options["count_padding"])
    if call.options["dilation"] != (1, 1) and graph.opset < 19:
        raise ConfigError(f"a dilated average pool is in ONNX from opset 19 on, not in {graph.opset}")
    return graph.add("AveragePool", graph.value(x), count_include_pad=counted, **onnx_window(call))


@operation(
    math="""
        y[n, i, j, c] = sum of x under the window / count
        count = {padding == 0 or count_padding?KH*KW|the number of real pixels under it\
|the number of real pixels under it, KH*KW with count_padding}
    """,
    backward="dx: each dy / count goes to every pixel under its window",
    english=Words(
        "Average pooling",
        "The mean of the numbers under each window{padding > 0?; the zeros around the picture "
        "{count_padding?count|do not count}}.",
        "Each dy is shared evenly by the numbers under its window.",
    ),
    chinese=Words(
        "平均池化",
        "取每个窗口内的平均值{padding > 0?；图片四周补的零{count_padding?也|不}计入}。",
        "每个 dy 平均分给窗口内的数。",
    ),
    arithmetic=Pool(mean=True),
    label="average pool {kernel}{stride}{dilation}",
    short="average pool {kernel}{step}{dilation}",
    onnx=_onnx,
    cases=_cases,
)
@mixed(kernels=True)
def avg_pool2d(
    x: Tensor,
    kernel: int | tuple[int, int],
    *,
    stride: int | tuple[int, int] | None = None,
    padding: Padding = 0,
    dilation: int | tuple[int, int] = 1,
    count_padding: bool = False,
) -> Tensor:
    """Take the mean under each window.

    kernel: the height and width of the window, an int for both.
    stride: from one window to the next; the kernel size if left out.
    padding: as in :func:`minires.ops.window.window`.
    dilation: the pixels of a window are so far apart; an int or a pair (height, width).
    count_padding: whether the pixels of the border count, as zeros. What ``"ceil"`` adds never counts: it is
        no border that was asked for, but where the last windows reach beyond the picture.

    Rounding: off by at most 1e-6 of the mean of absolute values in float32, 1e-7 where KH + KW is more than
    16, as that is added up in float64. The gradient too, to 1e-6 and 2e-7. Up to 16 the sum under a window,
    not only its mean, must be within the range of the dtype.
    Shapes: x (N, H, W, C) -> y (N, OH, OW, C), OH = (H + top + bottom - (KH - 1)*dilation - 1) // stride + 1.
    Raises: ShapeError if x is not four axes of floats, the kernel is larger than the padded picture, or a
    window would see nothing but border, as it may where the padding is as large as the kernel.
    Differs: torch counts padding by default, Keras never does.

    >>> x = Tensor([[1.0, 2.0], [3.0, 6.0]]).reshape(1, 2, 2, 1)
    >>> avg_pool2d(x, 2).numpy().ravel().tolist()
    [3.0]
    """
    x = checks.as_tensor(x)
    checks.rank("avg_pool2d", "x", x, "(N, H, W, C)")
    checks.same_floats("avg_pool2d", x=x)
    picture, stride = (x.shape[1], x.shape[2]), kernel if stride is None else stride
    win = window("avg_pool2d", picture, kernel, stride, padding, dilation)
    check_border("avg_pool2d", win, picture)
    count_padding = checks.truth("avg_pool2d", "count_padding", count_padding) and padding != "ceil"
    xp = backend.array_module(x.data)
    shape, options = x.shape, {**win.options(), "count_padding": count_padding}
    if cuda.usable(x.data):
        y = cuda_kernels.forward(xp, x.data, win, count_padding)
        return record(
            "avg_pool2d",
            y,
            inputs={"x": x},
            options=options,
            backward=lambda dy: (cuda_kernels.backward(xp, dy, shape, win, count_padding),),
        )
    counts = _counts(xp, win, shape, x.dtype, count_padding)
    y = (_sum(xp, x.data, win) / counts).astype(x.dtype, copy=False)
    return record(
        "avg_pool2d",
        y,
        inputs={"x": x},
        options=options,
        saved={"counts": counts},
        backward=lambda dy: (_backward(xp, dy / counts, shape, win),),
    )


def _global_cases() -> Iterator[Case]:
    yield Case("pictures", {"x": (2, 3, 4, 3)})
    yield Case("one picture, one channel", {"x": (1, 2, 5, 1)})


def _global_onnx(graph: Graph, call: Call) -> str:
    (x,) = call.inputs.values()
    return graph.add("Flatten", graph.add("GlobalAveragePool", graph.value(x)), axis=1)


@operation(
    math="y = mean of x over H and W",
    backward="dx = dy / (H * W) everywhere",
    arithmetic=Formula(
        """
        y = mean(x, places)
        dx = dy / count(places)
        """,
        axes={"places": (1, 2)},
    ),
    english=Words(
        "Global average pooling",
        "Each channel becomes one number: its mean over all places.",
        "Every place gets the same share of dy.",
    ),
    chinese=Words("全局平均池化", "每个通道变成一个数：所有位置的平均值。", "每个位置得到 dy 的相同一份。"),
    label="global average pool",
    onnx=_global_onnx,
    cases=_global_cases,
)
@mixed(kernels=True)
def global_avg_pool2d(x: Tensor) -> Tensor:
    """The mean of each channel over the whole picture.

    Rounding: added up in float64 and rounded once, so right to 1e-7 in float32, as :func:`minires.ops.sum`.
    Shapes: x (N, H, W, C) -> y (N, C). Raises: ShapeError if x is not four axes of floats, or has no pixels.
    Source: arXiv:1312.4400.

    >>> global_avg_pool2d(Tensor([[1.0, 2.0], [3.0, 6.0]]).reshape(1, 2, 2, 1)).numpy().tolist()
    [[3.0]]
    """
    x = checks.as_tensor(x)
    checks.rank("global_avg_pool2d", "x", x, "(N, H, W, C)")
    checks.same_floats("global_avg_pool2d", x=x)
    xp = backend.array_module(x.data)
    n, h, w, c = x.shape
    if h * w == 0:
        raise ShapeError(f"global_avg_pool2d: the pictures of x {x.shape} have no pixels to average")

    def backward(dy: Array) -> tuple[Array]:
        if cuda.usable(dy):
            return (cuda_kernels.global_backward(xp, dy, (n, h, w, c)),)
        share = (dy / (h * w)).reshape(n, 1, 1, c)
        return (xp.broadcast_to(share, (n, h, w, c)).copy(),)

    y = backend.mean(x.data, (1, 2))
    return record("global_avg_pool2d", y, inputs={"x": x}, backward=backward)

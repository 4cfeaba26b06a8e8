"""Shortcut option A of the ResNet paper: fewer places, more channels, no parameters.

    y[n, i, j, before + c] = x[n, i * stride, j * stride, c], zero in the channels added
    dx = dy of the channels that came from x, at the places that were read, zero elsewhere

Shapes: x (N, H, W, C) -> y (N, ceil(H / stride), ceil(W / stride), channels).

Source: He et al. 2016, Deep residual learning for image recognition, section 3.3 (option A): plain
subsampling, with the zero channels AFTER the others. Some widely used weights were trained with half of them
before and half after; ``both`` reproduces these.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from minires import backend
from minires.backend import Array, cuda
from minires.errors import ShapeError, as_whole
from minires.ops import checks
from minires.ops.forms import Moved
from minires.ops.onnx_graph import Graph
from minires.ops.registry import Case, Words, operation
from minires.tensor import Call, Tensor, record

# ------------------------------------------------------------------------------ reference implementation


def _forward(xp: Any, x: Array, channels: int, stride: int, before: int) -> Array:
    small = x[:, ::stride, ::stride, :]
    after = channels - before - x.shape[-1]
    return xp.pad(small, ((0, 0), (0, 0), (0, 0), (before, after)))


def _backward(xp: Any, dy: Array, shape: tuple[int, ...], stride: int, before: int) -> Array:
    dx = xp.zeros(shape, dy.dtype)
    dx[:, ::stride, ::stride, :] = dy[..., before : before + shape[-1]]
    return dx


# ------------------------------------------------------------------------------------------- fast, on GPU
# One launch that writes each number once, instead of one for the zeros and one for what is not zero.

_CUDA = cuda.Source(r"""
#define SHAPES int h, int w, int channels, int out_h, int out_w, int out_channels, int stride, int before

extern "C" __global__ void pad_channels(
    const T* x /* n // max(1, out_h * out_w * out_channels) * h * w * channels */, T* y /* n */, int n, SHAPES
) {
    EACH(i, n) {
        int c = i % out_channels - before, place = i / out_channels, row = place / out_w;
        int ih = row % out_h * stride, iw = place % out_w * stride;
        bool from_x = 0 <= c && c < channels;
        y[i] = from_x ? x[((row / out_h * h + ih) * w + iw) * channels + c] : T(0);
    }
}

extern "C" __global__ void pad_channels_gradient(
    const T* dy /* n // max(1, h * w * channels) * out_h * out_w * out_channels */, T* dx /* n */,
    int n, SHAPES
) {
    EACH(i, n) {
        int c = i % channels + before, place = i / channels, row = place / w;
        int ih = row % h, iw = place % w, oh = ih / stride, ow = iw / stride;
        bool was_read = oh * stride == ih && ow * stride == iw;
        dx[i] = was_read ? dy[((row / h * out_h + oh) * out_w + ow) * out_channels + c] : T(0);
    }
}
""")


def _forward_cuda(xp: Any, x: Array, channels: int, stride: int, before: int) -> Array:
    n, h, w, _ = x.shape
    y = xp.empty((n, -(-h // stride), -(-w // stride), channels), x.dtype)
    shapes = (*x.shape[1:], *y.shape[1:], stride, before)
    _CUDA("pad_channels", cuda.over(y.size), xp.ascontiguousarray(x), y, y.size, *shapes)
    return y


def _backward_cuda(xp: Any, dy: Array, shape: tuple[int, ...], stride: int, before: int) -> Array:
    dx = xp.empty(shape, dy.dtype)
    shapes = (*shape[1:], *dy.shape[1:], stride, before)
    _CUDA("pad_channels_gradient", cuda.over(dx.size), xp.ascontiguousarray(dy), dx, dx.size, *shapes)
    return dx


# ----------------------------------------------------------------------------------------------- public


def _cases() -> Iterator[Case]:
    for stride in (1, 2, 3):
        for both in (False, True):
            name = f"stride {stride}, {'both sides' if both else 'after'}"
            yield Case(name, {"x": (2, 3, 4, 2)}, {"channels": 5, "stride": stride, "both": both})
    yield Case("no channel more", {"x": (2, 3, 4, 2)}, {"channels": 2, "stride": 2})


def _moved(x: Array, *, stride: int, before: int, after: int) -> Array:
    return _forward(np, x, before + x.shape[-1] + after, stride, before)


def _onnx(graph: Graph, call: Call) -> str:
    (x,) = call.inputs.values()
    stride, before, after = (call.options[name] for name in ("stride", "before", "after"))
    value = graph.value(x)
    if stride > 1:
        height, width = x.shape[1:3]
        ranges = {"starts": (0, 0), "ends": (height, width), "axes": (2, 3), "steps": (stride, stride)}
        value = graph.add("Slice", value, *(graph.integers(name, places) for name, places in ranges.items()))
    return graph.add("Pad", value, graph.integers("border", (0, before, 0, 0, 0, after, 0, 0)))


@operation(
    math="""
        y[n, i, j, {before > 0?before + }c] = x[n, i{stride > 1? * stride}, j{stride > 1? * stride}, c]\
{before + after > 0?, zero in the channels added}
    """,
    backward="""
        dx = dy{before + after > 0? of the channels that came from x}\
{stride > 1?, at the places that were read, zero elsewhere}
    """,
    english=Words(
        "Shortcut A",
        "{stride > 1?One of {stride} rows and columns is taken{before + after > 0? and channels of zeros are "
        "added}|{before + after > 0?Channels of zeros are added|Nothing is added}}, so that the shortcut "
        "fits the branch.",
        "The gradient goes back to the places that were read{before + after > 0?; that of added channels is "
        "dropped}.",
    ),
    chinese=Words(
        "捷径 A",
        "{stride > 1?每 {stride} 行、{stride} 列取一个，}{before + after > 0?补上零通道，}"
        "使捷径与主分支形状一致。",
        "梯度送回被读取的位置{before + after > 0?；补零通道的梯度丢弃}。",
    ),
    arithmetic=Moved(_moved),
    label="zeros to {channels}{stride}",
    short="zeros to {channels}{step}",
    onnx=_onnx,
    cases=_cases,
)
def pad_channels(x: Tensor, channels: int, *, stride: int = 1, both: bool = False) -> Tensor:
    """Take every ``stride``-th place and add channels of zeros until there are ``channels``.

    both: put half of the zero channels before those of ``x`` (the odd one after); else all come after.

    Shapes: x (N, H, W, C) -> y (N, ceil(H / stride), ceil(W / stride), channels).
    Raises: ShapeError if ``x`` is not (N, H, W, C) or has more than ``channels`` channels, or the stride is
    not at least 1.
    Source: He et al. 2016, Deep residual learning for image recognition, section 3.3 (option A).

    >>> x = Tensor(np.arange(1.0, 5.0).reshape(1, 2, 2, 1))
    >>> pad_channels(x, 3, stride=2).tolist(), pad_channels(x, 3, stride=2, both=True).tolist()
    ([[[[1.0, 0.0, 0.0]]]], [[[[0.0, 1.0, 0.0]]]])
    """
    x = checks.as_tensor(x)
    checks.rank("pad_channels", "x", x, "(N, H, W, C)")
    checks.same_floats("pad_channels", x=x)
    wanted = as_whole(channels)
    if wanted is None or wanted < x.shape[-1]:
        raise ShapeError(
            f"pad_channels: x {x.shape} has {x.shape[-1]} channels already; "
            f"channels={channels} must be a whole number that is not smaller"
        )
    wanted = checks.whole("pad_channels", "channels", wanted, least=0)
    channels, stride = wanted, checks.whole("pad_channels", "stride", stride, least=1)
    both = checks.truth("pad_channels", "both", both)
    before = (channels - x.shape[-1]) // 2 if both else 0
    xp, shape = backend.array_module(x.data), x.shape
    if cuda.usable(x.data):
        y = _forward_cuda(xp, x.data, channels, stride, before)
        back = _backward_cuda
    else:
        y, back = _forward(xp, x.data, channels, stride, before), _backward
    return record(
        "pad_channels",
        y,
        inputs={"x": x},
        options={"stride": stride, "before": before, "after": channels - before - x.shape[-1]},
        backward=lambda dy: (back(xp, dy, shape, stride, before),),
    )

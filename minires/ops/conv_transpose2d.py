"""Transposed convolution: the adjoint of a convolution, as an operation that makes pictures larger.

A convolution reads windows of a large picture and gives a small one. Here each pixel of the small picture
writes a window into the large one, and where windows overlap their numbers are added:

    y[n, i*stride + kh*dilation - top, j*stride + kw*dilation - left, o] += x[n, i, j, c] * w[kh, kw, o, c]

That is what the backward of ``conv2d`` does to go from dy to dx, so it is computed by that; and what goes
back from here is a convolution. With ``conv2d`` of the same kernel, stride, padding, dilation and groups:

    y = its dx, for x as dy; plus b
    dx = conv2d(dy, w)
    dw = its dw, for dy as the picture and x as dy
    db = sum of dy over N, OH, OW

As many sizes of a large picture give a small one of one size (stride 2 makes 4 of 7 and of 8), it must be
said which one is meant: ``output_padding``.

Source: Zeiler, Krishnan, Taylor, Fergus 2010, Deconvolutional networks; Long, Shelhamer, Darrell 2015, Fully
convolutional networks for semantic segmentation, arXiv:1411.4038.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from minires import backend
from minires.backend import Array
from minires.errors import ShapeError, as_whole
from minires.ops import checks
from minires.ops.conv2d import backward_b, implementation
from minires.ops.forms import Products
from minires.ops.mixed_precision import mixed
from minires.ops.onnx_graph import Graph
from minires.ops.onnx_graph import window as onnx_window
from minires.ops.registry import Case, Shape, Words, operation
from minires.ops.window import UNDER, Padding, Window, extent, sides, window
from minires.tensor import Call, Tensor, record


def _window(
    x: tuple[int, ...],
    w: tuple[int, ...],
    stride: int | tuple[int, int],
    padding: Padding,
    dilation: int | tuple[int, int],
    output_padding: int | tuple[int, int],
) -> tuple[tuple[int, int], Window]:
    """Height and width of y, and the window of the convolution whose adjoint this is: it stands on y, at as
    many places as x has pixels.

    Raises: ShapeError if the numbers do not fit.
    """
    op = "conv_transpose2d"
    if min(x[1:3]) < 1:
        raise ShapeError(f"{op}: the pictures of x {x} have no pixels")
    steps = checks.pair(op, "stride", stride)
    apart = checks.pair(op, "dilation", dilation)
    more = checks.pair(op, "output_padding", output_padding, least=0)
    if any(extra >= step for extra, step in zip(more, steps, strict=True)):
        raise ShapeError(
            f"{op}: output_padding {more} must be smaller than the stride {steps}, since it says which of as "
            "many sizes is meant"
        )
    if isinstance(padding, str) and padding in ("same", "same_lower"):
        large = [size * step for size, step in zip(x[1:3], steps, strict=True)]
        if any(more):
            raise ShapeError(f"{op}: padding {padding!r} gives y a size of {large}; leave out output_padding")
    elif isinstance(padding, str):
        raise ShapeError(f"{op}: padding must be an int, a pair, four sides or 'same', not {padding!r}")
    else:
        top, bottom, left, right = sides(op, padding)
        removed = (top + bottom, left + right)
        parts = zip(x[1:3], extent(w[:2], apart), steps, removed, more, strict=True)
        large = [(size - 1) * step + kernel - less + extra for size, kernel, step, less, extra in parts]
        if min(large) < 1:
            raise ShapeError(
                f"{op}: a picture {x[1]}x{x[2]} becomes {large[0]}x{large[1]}, of which nothing is left: "
                f"kernel {w[0]}x{w[1]}, stride {steps}, padding {padding!r}"
            )
    size = (large[0], large[1])
    return size, window(op, size, w[:2], steps, padding, apart)


def _left_over(win: Window, size: tuple[int, int]) -> tuple[int, int]:
    """How many rows and columns of y lie behind the last window: ``output_padding``, and what "same" adds."""
    (kh, kw), (sh, sw), (oh, ow) = win.extent, win.stride, win.out
    rows = size[0] + win.top + win.bottom - (oh - 1) * sh - kh
    return rows, size[1] + win.left + win.right - (ow - 1) * sw - kw


def _check(x: tuple[int, ...], w: tuple[int, ...], b: tuple[int, ...] | None, groups: Any) -> int:
    """How many groups there are. Raises: ShapeError if the channels do not fit."""
    c, count, expected = x[3], as_whole(groups), w[3]
    if count is None or count < 1 or c % count:
        raise ShapeError(f"conv_transpose2d: groups={groups} must divide the {c} input channels of x {x}")
    if expected != c:
        raise ShapeError(
            f"conv_transpose2d: w {w} expects {expected} input channels, but x {x} has {c}. "
            "x must be channels last, (N, H, W, C), and w (KH, KW, O/groups, C)"
        )
    outputs = w[2] * count
    if b is not None and b != (outputs,):
        raise ShapeError(f"conv_transpose2d: b must have shape ({outputs},), one per output channel, not {b}")
    return count


def _cases() -> Iterator[Case]:
    table: list[tuple[str, Shape, Shape, dict[str, Any]]] = [
        ("1x1", (2, 3, 2, 3), (1, 1, 4, 3), {}),
        ("3x3", (2, 3, 4, 2), (3, 3, 3, 2), {}),
        ("3x3, padding 1", (1, 4, 5, 16), (3, 3, 17, 16), {"padding": 1}),
        ("2x2, stride 2", (2, 3, 2, 3), (2, 2, 2, 3), {"stride": 2}),
        ("4x4, stride 2, padding 1", (2, 2, 3, 2), (4, 4, 3, 2), {"stride": 2, "padding": 1}),
        ("3x3, stride 2, same", (1, 3, 2, 2), (3, 3, 2, 2), {"stride": 2, "padding": "same"}),
        ("2x2, stride 3, same", (1, 2, 3, 1), (2, 2, 2, 1), {"stride": 3, "padding": "same"}),
        (
            "3x3, stride 2, the larger size", (2, 3, 2, 2), (3, 3, 1, 2),
            {"stride": 2, "padding": 1, "output_padding": 1},
        ),
        (
            "3x2, pairs and four sides", (1, 3, 3, 2), (3, 2, 2, 2),
            {"stride": (1, 3), "padding": ((2, 0), (0, 1)), "output_padding": (0, 2)},
        ),
        ("3x2, dilated", (2, 3, 2, 2), (3, 2, 3, 2), {"dilation": (2, 3), "stride": 2, "padding": (3, 1)}),
        ("3x3, dilated, same", (1, 3, 2, 2), (3, 3, 2, 2), {"dilation": 2, "stride": 2, "padding": "same"}),
        ("2 groups", (2, 2, 3, 4), (3, 3, 3, 4), {"stride": 2, "groups": 2}),
        ("depthwise", (1, 3, 2, 3), (3, 3, 1, 3), {"padding": 1, "groups": 3}),
    ]  # fmt: skip
    for i, (name, x, w, options) in enumerate(table):
        bias = {"b": (w[2] * options.get("groups", 1),)} if i % 2 == 0 else {}
        yield Case(name + (", bias" if bias else ""), {"x": x, "w": w, **bias}, options)


def _onnx(graph: Graph, call: Call) -> str:
    """Kernels are (C, O/groups, KH, KW) there, for our (KH, KW, O/groups, C)."""
    x, w, *b = call.inputs.values()
    bias = [graph.value(one) for one in b]
    kernel = graph.kernel(w, (3, 2, 0, 1))
    more = {"group": call.options["groups"], "output_padding": call.options["output_padding"]}
    return graph.add("ConvTranspose", graph.value(x), kernel, *bias, **more, **onnx_window(call))


@operation(
    math=f"""
        y[n, oh, ow, o] = {{b?b[o] + }}sum over c and over all i, j, kh, kw of x[n, i, j, c] * w[kh, kw, o, c]
        with [n, oh, ow] = [{UNDER}]
        {{groups > 1?where o counts the channels of the group of c||}}
    """,
    backward=f"""
        dx[n, i, j, c] = sum over kh, kw, o of
            dy[{UNDER}, o]
            * w[kh, kw, o, c], a conv2d of dy
        dw[kh, kw, o, c] = sum over n, i, j of
            dy[{UNDER}, o]
            * x[n, i, j, c]
        {{b?db[o] = sum over n, oh, ow of dy[n, oh, ow, o]}}
    """,
    english=Words(
        "Transposed convolution",
        "The way back of a convolution: each number writes the kernel, times itself, into a larger picture, "
        "and what falls on one place is added{b?, and a bias}.",
        "A convolution of dy with the same kernel. The kernel's own gradient is the sum, over all numbers of "
        "x, of each times the part of dy that it wrote into{b?; that of the bias the sum of dy}.",
    ),
    chinese=Words(
        "转置卷积",
        "卷积的反方向：每个数把卷积核乘以自己写进一张更大的图，落在同一位置的数相加{b?，再加偏置}。",
        "用同一个卷积核对 dy 做卷积。卷积核自身的梯度是：x 的每个数乘以它写入的那一块 dy，再全部相加"
        "{b?；偏置的梯度是 dy 之和}。",
    ),
    arithmetic=Products(transposed=True),
    label="transposed conv {kernel}{stride}{dilation}{groups}",
    short="transposed {kernel}, {channels}{step}{dilation}{groups}",
    onnx=_onnx,
    cases=_cases,
)
@mixed(kernels=True, parameters=("b",), factors=("w",))
def conv_transpose2d(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    stride: int | tuple[int, int] = 1,
    padding: Padding = 0,
    dilation: int | tuple[int, int] = 1,
    output_padding: int | tuple[int, int] = 0,
    groups: int = 1,
) -> Tensor:
    """Let each pixel write a kernel into a larger picture, and add what falls on one place.

    w: a kernel (KH, KW, O/groups, C): that of the convolution from y back to x.
    stride: how far apart the windows of neighbouring pixels lie, an int or a pair (height, width).
    padding: rows and columns that are left out at the sides of y: an int, a pair, four sides
        ((top, bottom), (left, right)), or ``"same"``, which makes y ``stride`` times as large as x.
    dilation: how far apart the pixels that a kernel is written to lie, an int or a pair (height, width).
    output_padding: rows and columns that y has more at the bottom and the right; less than the stride.
    groups: the input and the output channels are cut into as many groups, each of which meets its own only.

    Shapes: x (N, H, W, C), b (O,) -> y (N, OH, OW, O), OH = (H - 1) * stride + (KH - 1) * dilation + 1 -
    top - bottom + output_padding.
    Raises: ShapeError if ranks, channels, groups, paddings or dtypes do not fit.
    Source: arXiv:1411.4038, where it is called deconvolution.
    Differs: PyTorch keeps w as (C, O/groups, KH, KW). Keras, without padding, makes y at least stride times
    as large as x: where the stride is larger than the kernel, ``output_padding`` of the difference does that.

    >>> x, w = Tensor([1.0, 2.0, 3.0, 4.0]).reshape(1, 2, 2, 1), Tensor([1.0] * 4).reshape(2, 2, 1, 1)
    >>> conv_transpose2d(x, w).numpy()[0, :, :, 0].tolist()
    [[1.0, 3.0, 2.0], [4.0, 10.0, 6.0], [3.0, 7.0, 4.0]]
    >>> conv_transpose2d(x, w, stride=2).shape
    (1, 4, 4, 1)
    """
    x, w = checks.as_tensor(x), checks.as_tensor(w)
    b = None if b is None else checks.as_tensor(b)
    checks.rank("conv_transpose2d", "x", x, "(N, H, W, C)")
    checks.rank("conv_transpose2d", "w", w, "(KH, KW, O/groups, C)")
    checks.same_floats("conv_transpose2d", parameters=("b",), w=w, b=b, x=x)
    groups = _check(x.shape, w.shape, None if b is None else b.shape, groups)
    size, win = _window(x.shape, w.shape, stride, padding, dilation, output_padding)
    xp = backend.array_module(x.data)
    xdata, wdata = xp.ascontiguousarray(x.data), xp.ascontiguousarray(w.data)
    _, backward_x, _ = implementation(xdata, x.shape, w.shape)
    y = backward_x(xdata, wdata, (len(xdata), *size, w.shape[2] * groups), win, groups)
    if b is not None:
        y = (y + b.data).astype(y.dtype, copy=False)
    need_x, need_w, need_b = x.requires_grad, w.requires_grad, b is not None and b.requires_grad
    x_shape, w_shape = x.shape, w.shape
    saved = {"x": xdata if need_w else None, "w": wdata if need_x else None}

    def backward(dy: Array) -> tuple[Array | None, ...]:
        dy = xp.ascontiguousarray(dy)
        forward, _, backward_w = implementation(dy, x_shape, w_shape)
        dx = forward(dy, saved["w"], None, False, win, groups) if need_x else None
        dw = backward_w(saved["x"], dy, w_shape, win, groups) if need_w else None
        return dx, dw, backward_b(dy) if need_b else None

    return record(
        "conv_transpose2d",
        y,
        inputs={"x": x, "w": w, "b": b},
        options={**win.options(), "output_padding": _left_over(win, size), "groups": groups},
        saved=saved,
        backward=backward,
    )

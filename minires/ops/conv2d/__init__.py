"""Two-dimensional convolution as a matrix product (im2col).

Each place of the window becomes a row of a matrix, the KH*KW*C numbers under the window side by side; the
kernel is a matrix with a column per output channel. Then convolution is one product:

    columns = im2col(x)                       (N*OH*OW, KH*KW*C)
    y = columns @ w + b                       (N*OH*OW, O)

and its adjoints are two more, with col2im (add each row back to where it was read) for the picture:

    dw = columns^T @ dy                       (KH*KW*C, O)
    db = sum of dy over N, OH, OW             (O,)
    dx = col2im(dy @ w^T)                     (N, H, W, C)

With groups, group g of the input channels meets group g of the output channels only: the same products, G of
them side by side, so all matrices below carry G as their first axis. A 1x1 convolution with stride 1 needs no
im2col at all: the picture is the matrix. The pixels of a window lie side by side, or ``dilation`` apart.

As is usual in deep learning, the kernel is not flipped (cross-correlation).

Source: Chellapilla, Puri, Simard 2006, High performance convolutional neural networks for document
processing; groups: Krizhevsky, Sutskever, Hinton 2012; dilation: Yu, Koltun 2016, arXiv:1511.07122.

This is the idea. What is fast stands in files beside this one; ``way`` says which of them is taken.

    choose.py           which way is taken, and why
    indirect.py         on the CPU: no columns, sums in the processor's registers
    places.py           ... where a table says what lies under the window
    narrow.py           ... for groups of few channels
    winograd.py         ... 3x3 with fewer multiplications, winograd_transforms.py, winograd_kernels.py
    cuda_columns.py     im2col on a GPU
    adjoint.py          the convolution that goes from dy to dx
    joined_groups.py    several small groups taken as one
    arguments.py        what is asked of the shapes
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from minires import backend
from minires.backend import Array
from minires.errors import ShapeError
from minires.ops import checks
from minires.ops.conv2d import arguments, choose
from minires.ops.conv2d.cases import cases
from minires.ops.conv2d.joined_groups import by_group
from minires.ops.conv2d.onnx import write
from minires.ops.forms import Products
from minires.ops.mixed_precision import mixed
from minires.ops.registry import Words, operation
from minires.ops.relu import gradient as relu_gradient
from minires.ops.relu import relu as relu_tensor
from minires.ops.window import UNDER, Padding, Window
from minires.tensor import Tensor, is_fused, record

# ------------------------------------------------------------------------------ reference implementation


def _im2col(xp: Any, x: Array, win: Window, groups: int) -> Array:
    """(N, H, W, C) -> (G, N*OH*OW, KH*KW*C/G)."""
    (n, _, _, c), (kh, kw), (oh, ow) = x.shape, win.size, win.out
    padded = win.pad(xp, x)
    columns = xp.empty((groups, n, oh, ow, kh, kw, c // groups), x.dtype)
    for i in range(kh):
        for j in range(kw):
            # (N, OH, OW, C) -> (N, OH, OW, G, C/G) -> (G, N, OH, OW, C/G)
            pixel = win.at(padded, i, j).reshape(n, oh, ow, groups, c // groups)
            columns[:, :, :, :, i, j, :] = xp.moveaxis(pixel, 3, 0)
    return columns.reshape(groups, n * oh * ow, kh * kw * c // groups)


def _col2im(xp: Any, columns: Array, shape: tuple[int, ...], win: Window) -> Array:
    """The adjoint of _im2col: add every entry to the pixel it came from."""
    (n, h, w, c), (kh, kw), (oh, ow) = shape, win.size, win.out
    groups = columns.shape[0]
    columns = columns.reshape(groups, n, oh, ow, kh, kw, c // groups)
    padded = xp.zeros((n, h + win.top + win.bottom, w + win.left + win.right, c), columns.dtype)
    for i in range(kh):
        for j in range(kw):
            pixel = xp.moveaxis(columns[:, :, :, :, i, j, :], 0, 3)  # (N, OH, OW, G, C/G)
            win.at(padded, i, j)[...] += pixel.reshape(n, oh, ow, c)
    return xp.ascontiguousarray(win.crop(padded))


def _forward(xp: Any, x: Array, w: Array, b: Array | None, relu: bool, win: Window, groups: int) -> Array:
    y = xp.empty((x.shape[0], *win.out, w.shape[-1]), x.dtype)
    by_group(y, groups)[...] = xp.matmul(_im2col(xp, x, win, groups), by_group(w, groups))
    y = y if b is None else y + b
    return xp.maximum(y, xp.zeros((), y.dtype)) if relu else y


def _backward_x(xp: Any, dy: Array, w: Array, shape: tuple[int, ...], win: Window, groups: int) -> Array:
    columns = xp.matmul(by_group(dy, groups), by_group(w, groups).swapaxes(1, 2))
    return _col2im(xp, columns, shape, win)


def _backward_w(xp: Any, dy: Array, x: Array, shape: tuple[int, ...], win: Window, groups: int) -> Array:
    dw = xp.empty(shape, x.dtype)
    columns = _im2col(xp, x, win, groups)
    by_group(dw, groups)[...] = xp.matmul(columns.swapaxes(1, 2), by_group(dy, groups))
    return dw


def backward_b(dy: Array) -> Array:
    """The sum of each channel, (N, OH, OW, O) -> (O,), added up in float64 and rounded once."""
    return backend.total(dy, (0, 1, 2), dtype=backend.accumulator(dy.dtype))


# ----------------------------------------------------------------------------------------------- public


@operation(
    math=f"""
        y[n, i, j, o] = {{b?b[o] + }}sum over kh, kw, c of
            x[{UNDER}, c]
            * w[kh, kw, c, o]
        {{padding > 0?with zeros outside the picture}}
        {{groups > 1?where c counts the channels of the group of o||}}
        {{relu?then y = max(y, 0)||with relu then y = max(y, 0)}}
    """,
    backward=f"""
        {{relu?dy is taken as 0 where y is not above 0||}}
        dw[kh, kw, c, o] = sum over n, i, j of
            x[{UNDER}, c]
            * dy[n, i, j, o]
        {{b?db[o] = sum over n, i, j of dy[n, i, j, o]}}
        dx: each dy[n, i, j, o] * w[kh, kw, c, o] is added to the pixel of x that it came from
    """,
    english=Words(
        "Convolution",
        "A small window slides over the picture. At each place the numbers under it are multiplied with a "
        "kernel and summed{b?, and a bias is added}: one output channel for each kernel."
        "{relu? Then negative numbers become zero.}",
        "Each dy is sent back to the numbers that were under its window, times the kernel. The kernel's own "
        "gradient is the sum, over all places, of what was under it times dy{b?; that of the bias the sum of "
        "dy}.{relu? Behind the ReLU dy counts only where the output is above zero.}",
    ),
    chinese=Words(
        "卷积",
        "小窗口在图上滑动；在每个位置，窗口内的数与卷积核相乘再求和{b?，并加上偏置}，每个卷积核得到一个输出通道。"
        "{relu?然后负数变为零。}",
        "每个 dy 乘以卷积核，送回其窗口内的数。卷积核自身的梯度，是所有位置上窗口内的数与 dy 的乘积之和"
        "{b?；偏置的梯度是 dy 之和}。{relu?在 ReLU 之后，只有输出大于零处的 dy 起作用。}",
    ),
    arithmetic=Products(),
    label="conv {kernel}{stride}{dilation}{groups}{relu}",
    short="{kernel}, {channels}{step}{dilation}{groups}",
    onnx=write,
    cases=cases,
)
@mixed(kernels=True, parameters=("b",), factors=("w",))
def conv2d(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    stride: int | tuple[int, int] = 1,
    padding: Padding = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    relu: bool = False,
) -> Tensor:
    """Convolve pictures with kernels, and apply ReLU where asked.

    padding: an int, a pair (height, width), four sides ((top, bottom), (left, right)), ``"same"`` or
        ``"ceil"``; see :func:`minires.ops.window.window`.
    dilation: the pixels under a kernel are so far apart; an int or a pair (height, width).
    groups: the input and the output channels are cut into as many groups, each of which meets its own only.
    relu: y = max(y, 0) in the same pass. Under ``minires.unfused()`` it is a node of its own on the tape.

    Shapes: x (N, H, W, C), w (KH, KW, C/groups, O), b (O,) -> y (N, OH, OW, O) with
    OH = (H + top + bottom - (KH - 1)*dilation - 1) // stride + 1.
    Rounding: db is added up in float64 and rounded once; the products in float32, those of y and dx one after
    the other, right to 4e-6 of the sum of absolute values for 3x3 and 512 channels, those of dw some thousand
    at a time, right to 2e-6 over ten million places.
    Raises: ShapeError if ranks, channels, groups or dtypes do not fit, or the kernel is larger than the
    padded picture.

    >>> x, w = Tensor(np.ones((1, 4, 4, 3))), Tensor(np.ones((3, 3, 3, 8)))
    >>> y = conv2d(x, w, padding=1)
    >>> y.shape, y.numpy()[0, :, :, 0].tolist()[0]
    ((1, 4, 4, 8), [12.0, 18.0, 18.0, 12.0])
    """
    x, w = checks.as_tensor(x), checks.as_tensor(w)
    b = None if b is None else checks.as_tensor(b)
    win, groups = arguments.window(x.shape, w.shape, stride, padding, dilation, groups), int(groups)
    checks.same_floats("conv2d", parameters=("b",), w=w, b=b, x=x)
    if b is not None and b.shape != w.shape[3:]:
        raise ShapeError(f"conv2d: b must have shape {w.shape[3:]}, one per output channel, not {b.shape}")
    relu = checks.truth("conv2d", "relu", relu)
    if relu and not is_fused():
        return relu_tensor(conv2d(x, w, b, stride=stride, padding=padding, dilation=dilation, groups=groups))

    xp = backend.array_module(x.data)
    xdata, wdata = xp.ascontiguousarray(x.data), xp.ascontiguousarray(w.data)
    bdata = None if b is None else b.data
    forward, _, _ = implementation(xdata, x.shape, w.shape)
    y = forward(xdata, wdata, bdata, relu, win, groups)
    # Tensors that need no gradient cost no product: the first layer of a network never computes dx.
    need_x, need_w, need_b = x.requires_grad, w.requires_grad, b is not None and b.requires_grad
    x_shape, w_shape = x.shape, w.shape
    # The tape keeps what these products read, and the result only where its signs are needed.
    saved = {"x": xdata if need_w else None, "w": wdata if need_x else None, "y": y if relu else None}

    def backward(dy: Array) -> tuple[Array | None, ...]:
        dy = xp.ascontiguousarray(dy) if saved["y"] is None else relu_gradient(dy, saved["y"])
        _, backward_x, backward_w = implementation(dy, x_shape, w_shape)
        dx = dw = db = None
        if need_w:
            dw = backward_w(dy, saved["x"], w_shape, win, groups)
        if need_b:
            db = backward_b(dy)
        if need_x:
            dx = backward_x(dy, saved["w"], x_shape, win, groups)
        return dx, dw, db

    return record(
        "conv2d",
        y,
        inputs={"x": x, "w": w, "b": b},
        options={**win.options(), "groups": groups, **({"relu": True} if relu else {})},
        saved=saved,
        backward=backward,
    )


def way(
    x_shape: tuple[int, ...],
    w_shape: tuple[int, ...],
    *,
    stride: int | tuple[int, int] = 1,
    padding: Padding = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    device: str = "cpu",
) -> choose.Ways:
    """The ways in which a convolution of these shapes is computed on this machine: to y, to dx, to dw.

    Each has a name, that of a file beside this one or "reference", and says how many groups are left: fewer
    than given where small ones are joined.
    Shapes, options, Raises: as in :func:`conv2d`; ConfigError for a ``device`` that is not there.

    >>> found = way((32, 16, 16, 128), (3, 3, 128, 128), padding=1)
    >>> found.forward.name, found.backward_x.name, found.backward_w.name
    ('winograd', 'winograd', 'winograd')
    >>> way((32, 56, 56, 128), (3, 3, 4, 128), padding=1, groups=32).forward
    Way(name='narrow', groups=32)
    """
    win, groups = arguments.window(x_shape, w_shape, stride, padding, dilation, groups), int(groups)
    like = backend.to_device(np.empty(0, np.float32), device)
    return choose.ways(like, x_shape, w_shape, win, groups)


def implementation(
    array: Array, x: tuple[int, ...], w: tuple[int, ...]
) -> tuple[Callable[..., Array], Callable[..., Array], Callable[..., Array]]:
    """forward, backward_x and backward_w for arrays such as this, and the shapes of x and w."""
    if choose.is_fast(array, x, w):
        return choose.forward, choose.backward_x, choose.backward_w
    xp = backend.array_module(array)
    return partial(_forward, xp), partial(_backward_x, xp), partial(_backward_w, xp)

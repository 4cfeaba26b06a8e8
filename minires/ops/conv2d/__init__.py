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
im2col at all: the picture is the matrix.

As is usual in deep learning, the kernel is not flipped (cross-correlation).

Source: Chellapilla, Puri, Simard 2006, High performance convolutional neural networks for document
processing; groups: Krizhevsky, Sutskever, Hinton 2012.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from minires import backend
from minires.backend import Array, cuda
from minires.errors import ShapeError
from minires.ops import checks
from minires.ops.conv2d import cuda_columns, direct, winograd
from minires.ops.conv2d.columns import by_group, correlate, finish, gather, scatter
from minires.ops.mixed_precision import mixed
from minires.ops.relu import gradient as relu_gradient
from minires.ops.relu import relu as relu_tensor
from minires.ops.window import Padding, Window, window
from minires.tensor import Tensor, is_fused, record

# ---------------------------------------------------------------------------------------- specification


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


# ---------------------------------------------------------------------------------------------- groups
# Groups of few channels make products too small to be fast. So several groups are taken as one, with a kernel
# that is zero where a channel of one would meet a channel of another. (NaN or infinity in one then shows in
# the results of all that are joined, as zero times these is NaN.)


def _joined_groups(groups: int, w_shape: tuple[int, ...], most: int) -> int:
    """How many groups are left when as many are joined as have at most ``most`` channels together."""
    widest = max(w_shape[2], w_shape[3] // groups)
    joined = 1
    while 2 * joined * widest <= most and groups % (2 * joined) == 0:
        joined *= 2
    return groups // joined


def _join(xp: Any, w: Array, groups: int, left: int) -> Array:
    """(KH, KW, C/groups, O) -> (KH, KW, C/left, O)."""
    kh, kw, depth, outputs = w.shape
    many = groups // left
    if many == 1:
        return w
    wide = w.astype(backend.accumulator(w.dtype), copy=False)  # CuPy has no where for bfloat16
    parts = wide.reshape(kh, kw, 1, depth, left, many, outputs // groups)
    own = xp.eye(many, dtype=bool).reshape(many, 1, 1, many, 1)
    joined = xp.where(own, parts, xp.zeros((), wide.dtype)).reshape(kh, kw, many * depth, outputs)
    return joined.astype(w.dtype, copy=False)


def _part(xp: Any, dw: Array, groups: int, left: int) -> Array:
    """The adjoint of _join: (KH, KW, C/left, O) -> (KH, KW, C/groups, O)."""
    kh, kw, depth, outputs = dw.shape
    many = groups // left
    if many == 1:
        return dw
    joined = dw.reshape(kh, kw, many, depth // many, left, many, outputs // groups)
    parts = xp.moveaxis(joined.diagonal(axis1=2, axis2=5), -1, 4)  # (KH, KW, C/groups, left, many, O/groups)
    return parts.reshape(kh, kw, depth // many, outputs)


# ----------------------------------------------------------------------------------------- fast, on CPU
# There are three ways: most 3x3 convolutions need fewer products in winograd.py; of the others those
# whose sums fit into registers are done without columns in direct.py; the rest, 1x1 above all, by BLAS
# in columns.py. Here is which way is taken.
# At stride 1 the adjoint of a convolution is a convolution again: with the window turned round and the kernel
# flipped in both directions, its input and output channels exchanged. So each of the three products can be
# had in two ways, with columns of x or with columns of what lies on the other side; where that has fewer
# channels, its columns are smaller. Adding columns back (scatter) takes up to twice as long as reading them
# (gather).


_WINOGRAD_CHANNELS = 8  # with fewer, the transforms take longer than the products they save
_DIRECT_KERNEL = 16 * 16  # channels times outputs, up to which 3x3 convolutions are faster in registers
_JOINED_CHANNELS = 16  # of a group made of several


def _is_busy(pictures: int) -> bool:
    """Whether there is work for all threads where each takes whole pictures."""
    return 2 * pictures > backend.threads()


def _is_direct(win: Window, pictures: int, channels: int, outputs: int) -> bool:
    """Whether sums in registers were measured to be faster; ``channels`` and ``outputs`` are of one group."""
    if win.size == (1, 1) or not direct.fits(win, outputs) or not _is_busy(pictures):
        return False
    return win.size != (3, 3) or win.stride != (1, 1) or channels * outputs <= _DIRECT_KERNEL


def _is_winograd(win: Window, x_shape: tuple[int, ...], w_shape: tuple[int, ...], groups: int) -> bool:
    """Whether Winograd's way was measured to be faster: 3x3, stride 1, and a kernel that, transformed, holds
    at most twice the numbers of the transformed tiles of the pictures and of the output."""
    channels, outputs = w_shape[2], w_shape[3] // groups
    tiles = x_shape[0] * ((win.out[0] + 1) // 2) * ((win.out[1] + 1) // 2)
    fits = win.size == (3, 3) and win.stride == (1, 1) and max(win.top, win.left) < 3
    enough = min(channels, outputs) >= _WINOGRAD_CHANNELS
    return fits and enough and _is_busy(x_shape[0]) and channels * outputs <= 2 * tiles * (channels + outputs)


def _turned(win: Window, x_shape: tuple[int, ...]) -> Window | None:
    """The window that looks from the output back at the picture; None where there is none."""
    (kh, kw), (h, w) = win.size, x_shape[1:3]
    sides = (kh - 1 - win.top, kh - 1 - win.bottom, kw - 1 - win.left, kw - 1 - win.right)
    if win.stride != (1, 1) or win.size == (1, 1) or min(sides) < 0:
        return None
    return Window(win.size, (1, 1), *sides, out=(h, w))


def _is_flip_cheap(x_shape: tuple[int, ...], w_shape: tuple[int, ...]) -> bool:
    """Whether the kernel is no larger than the pictures; else flipping it takes longer than it saves."""
    return math.prod(w_shape) <= math.prod(x_shape)


def _flipped(w: Array, groups: int) -> Array:
    """(KH, KW, C/G, O) -> (KH, KW, O/G, C), turned by 180 degrees; doing it twice changes nothing."""
    kh, kw, c, o = w.shape
    by_group = w[::-1, ::-1].reshape(kh, kw, c, groups, o // groups)
    return np.ascontiguousarray(by_group.transpose(0, 1, 4, 3, 2)).reshape(kh, kw, o // groups, groups * c)


def _forward_numba(x: Array, w: Array, b: Array | None, relu: bool, win: Window, groups: int) -> Array:
    left = _joined_groups(groups, w.shape, _JOINED_CHANNELS)
    w, groups = _join(np, w, groups, left), left
    if _is_direct(win, len(x), w.shape[2], w.shape[3] // groups):
        return direct.forward(x, w, b, relu, win, groups)
    if _is_winograd(win, x.shape, w.shape, groups):
        return winograd.forward(x, w, b, relu, win, groups)
    turned = _turned(win, x.shape)
    if turned is None or 2 * w.shape[-1] > x.shape[-1] or not _is_flip_cheap(x.shape, w.shape):
        return gather(x, w, b, relu, win, groups)
    y = scatter(x, _flipped(w, groups), (len(x), *win.out, w.shape[-1]), turned, groups)
    finish(y, b, relu)
    return y


def _backward_x_numba(dy: Array, w: Array, shape: tuple[int, ...], win: Window, groups: int) -> Array:
    left = _joined_groups(groups, w.shape, _JOINED_CHANNELS)
    w, groups = _join(np, w, groups, left), left
    turned = _turned(win, shape)
    if turned is not None and _is_direct(turned, len(dy), w.shape[3] // groups, w.shape[2]):
        return direct.forward(dy, _flipped(w, groups), None, False, turned, groups)
    if turned is not None and _is_winograd(win, shape, w.shape, groups):
        return winograd.backward_x(dy, w, turned, groups)
    if turned is None or dy.shape[-1] >= 2 * shape[-1] or not _is_flip_cheap(shape, w.shape):
        return scatter(dy, w, shape, win, groups)
    return gather(dy, _flipped(w, groups), None, False, turned, groups)


def _backward_w_numba(dy: Array, x: Array, shape: tuple[int, ...], win: Window, groups: int) -> Array:
    left = _joined_groups(groups, shape, _JOINED_CHANNELS)
    joined = (*shape[:2], x.shape[-1] // left, shape[3])
    return _part(np, _correlate(dy, x, joined, win, left), groups, left)


def _correlate(dy: Array, x: Array, shape: tuple[int, ...], win: Window, groups: int) -> Array:
    if _is_direct(win, len(x), shape[2], shape[3] // groups):
        return direct.correlate(dy, x, shape, win, groups)
    sides = sorted((dy.shape[-1], x.shape[-1]))
    # Where one side has far fewer channels, its columns are made sooner than the tiles of both sides.
    if _is_winograd(win, x.shape, shape, groups) and sides[1] <= 2 * sides[0]:
        return winograd.correlate(dy, x, shape, win, groups)
    turned = _turned(win, x.shape)
    if turned is None or dy.shape[-1] >= x.shape[-1] or not _is_flip_cheap(x.shape, shape):
        return correlate(dy, x, shape, win, groups)
    kh, kw, c, o = shape
    return _flipped(correlate(x, dy, (kh, kw, o // groups, c * groups), turned, groups), groups)


# ------------------------------------------------------------------------------------------- fast, on GPU
# Always by columns, in cuda_columns.py. A GPU multiplies so fast that wider groups are worth their zeros.

_JOINED_CHANNELS_CUDA = 64  # of a group made of several


def _forward_cuda(x: Array, w: Array, b: Array | None, relu: bool, win: Window, groups: int) -> Array:
    left = _joined_groups(groups, w.shape, _JOINED_CHANNELS_CUDA)
    w = _join(backend.array_module(w), w, groups, left)
    return cuda_columns.forward(x, w, b, relu, win, left)


def _backward_x_cuda(dy: Array, w: Array, shape: tuple[int, ...], win: Window, groups: int) -> Array:
    left = _joined_groups(groups, w.shape, _JOINED_CHANNELS_CUDA)
    w = _join(backend.array_module(w), w, groups, left)
    return cuda_columns.backward_x(dy, w, shape, win, left)


def _backward_w_cuda(dy: Array, x: Array, shape: tuple[int, ...], win: Window, groups: int) -> Array:
    left = _joined_groups(groups, shape, _JOINED_CHANNELS_CUDA)
    joined = (*shape[:2], x.shape[-1] // left, shape[3])
    dw = cuda_columns.backward_w(dy, x, joined, win, left)
    return _part(backend.array_module(dw), dw, groups, left)


# ------------------------------------------------------------------------------------------- the choice


def _implementation(array: Array) -> tuple[Callable[..., Array], Callable[..., Array], Callable[..., Array]]:
    """forward, backward_x and backward_w for arrays such as this."""
    if cuda.usable(array):
        return _forward_cuda, _backward_x_cuda, _backward_w_cuda
    if backend.fast(array):
        return _forward_numba, _backward_x_numba, _backward_w_numba
    xp = backend.array_module(array)
    return partial(_forward, xp), partial(_backward_x, xp), partial(_backward_w, xp)


def _backward_b(dy: Array) -> Array:
    """The sum of each channel, (N, OH, OW, O) -> (O,), as a product with ones."""
    rows = dy.reshape(-1, dy.shape[-1])
    ones = backend.array_module(dy).ones((1, len(rows)), dy.dtype)
    return backend.matmul(ones, rows, backend.accumulator(dy.dtype))[0]


# ----------------------------------------------------------------------------------------------- public


@mixed(kernels=True, parameters=("b",), factors=("w",))
def conv2d(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    stride: int | tuple[int, int] = 1,
    padding: Padding = 0,
    groups: int = 1,
    relu: bool = False,
) -> Tensor:
    """Convolve pictures with kernels, and apply ReLU where asked.

    Under ``minires.unfused()`` the ReLU is a node of its own on the tape.

    Math: y[n, i, j, o] = b[o] + sum over kh, kw, c of x[n, i*stride + kh - top, j*stride + kw - left, c] *
    w[kh, kw, c, o], with zeros outside the picture.
    Shapes: x (N, H, W, C), w (KH, KW, C/groups, O), b (O,) -> y (N, OH, OW, O) with
    OH = (H + top + bottom - KH) // stride + 1.
    ``padding`` is an int, a pair (height, width), four sides ((top, bottom), (left, right)), ``"same"`` or
    ``"ceil"``: see :func:`minires.ops.window.window`.
    Backward: see the head of this file.
    Raises: ShapeError if ranks, channels, groups or dtypes do not fit, or the kernel is larger than the
    padded picture.
    """
    x, w = checks.as_tensor(x), checks.as_tensor(w)
    b = None if b is None else checks.as_tensor(b)
    checks.rank("conv2d", "x", x, "(N, H, W, C)")
    checks.rank("conv2d", "w", w, "(KH, KW, C/groups, O)")
    checks.same_floats("conv2d", parameters=("b",), w=w, b=b, x=x)
    (_, h, width, c), (kh, kw, depth, o) = x.shape, w.shape
    if not isinstance(groups, int) or groups < 1 or c % groups or o % groups:
        raise ShapeError(
            f"conv2d: groups={groups} must divide the {c} input channels of x {x.shape} "
            f"and the {o} output channels of w {w.shape}"
        )
    if depth * groups != c:
        raise ShapeError(
            f"conv2d: w {w.shape} expects {depth * groups} input channels (with groups={groups}), "
            f"but x {x.shape} has {c}. x must be channels last, (N, H, W, C)"
        )
    if b is not None and b.shape != (o,):
        raise ShapeError(f"conv2d: b must have shape ({o},), one per output channel, not {b.shape}")
    win = window("conv2d", (h, width), (kh, kw), stride, padding)
    if relu and not is_fused():
        return relu_tensor(conv2d(x, w, b, stride=stride, padding=padding, groups=groups))

    xp = backend.array_module(x.data)
    xdata, wdata = xp.ascontiguousarray(x.data), xp.ascontiguousarray(w.data)
    bdata = None if b is None else b.data
    forward, _, _ = _implementation(xdata)
    y = forward(xdata, wdata, bdata, relu, win, groups)
    # Tensors that need no gradient cost no product: the first layer of a network never computes dx.
    need_x, need_w, need_b = x.requires_grad, w.requires_grad, b is not None and b.requires_grad

    rectified = y if relu else None  # the tape keeps the result only where its signs are needed

    def backward(dy: Array) -> tuple[Array | None, ...]:
        dy = xp.ascontiguousarray(dy) if rectified is None else relu_gradient(dy, rectified)
        _, backward_x, backward_w = _implementation(dy)
        dx = dw = db = None
        if need_w:
            dw = backward_w(dy, xdata, wdata.shape, win, groups)
        if need_b:
            db = _backward_b(dy)
        if need_x:
            dx = backward_x(dy, wdata, xdata.shape, win, groups)
        return dx, dw, db

    return record(
        "conv2d",
        y,
        inputs={"x": x, "w": w, "b": b},
        options={**win.options(), "groups": groups, **({"relu": True} if relu else {})},
        saved={"x": xdata, "w": wdata, "y": rectified},
        backward=backward,
    )

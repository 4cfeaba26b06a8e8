"""Which way a convolution is computed, and why.

A way is a file of this folder with three functions, forward, backward_x and backward_w, for y, dx and dw. On
a GPU it is ``cuda_columns`` always. On the CPU there are four, and each product takes its own:

    direct            where the sums of a window fit into registers and there are few channels: the columns
                      of im2col would cost as much as their product
    winograd          most other 3x3 convolutions: 2.25 times fewer multiplications
    columns           the rest, 1x1 above all: BLAS multiplies
    turned_columns    as columns, where the other side has so few channels that its columns are smaller

Small groups are joined before. The rules were found by measuring layers of networks on two cores.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from minires import backend
from minires.backend import Array, cuda
from minires.ops.conv2d import (
    adjoint,
    columns,
    cuda_columns,
    direct,
    joined_groups,
    turned_columns,
    winograd,
)
from minires.ops.window import Window

Shape = tuple[int, ...]
Rule = Callable[[Shape, Shape, Window, int], str]  # from the shapes of x and w, groups joined

_WINOGRAD_CHANNELS = 8  # with fewer, the transforms take longer than the products they save
_DIRECT_KERNEL = 16 * 16  # channels times outputs, up to which 3x3 convolutions are faster in registers
_JOINED_CHANNELS = 16  # of a group made of several
_JOINED_CHANNELS_CUDA = 64  # a GPU multiplies so fast that wider groups are worth their zeros


class Way(NamedTuple):
    """How one product is computed: the ``name`` of a file of this folder, or "reference"; and how many
    ``groups`` are left after small ones were joined."""

    name: str
    groups: int


class Ways(NamedTuple):
    """The ways to y, dx and dw."""

    forward: Way
    backward_x: Way
    backward_w: Way


_FILES = {
    "columns": columns,
    "turned_columns": turned_columns,
    "direct": direct,
    "winograd": winograd,
    "cuda_columns": cuda_columns,
}

# ---------------------------------------------------------------------------------------------- the rules


def is_fast(like: Array, x: Shape, w: Shape) -> bool:
    """Whether arrays such as this take one of the ways; if not, they take the reference implementation. So do
    shapes of x and w without numbers: no picture, no channel, no kernel is no work for a way."""
    return 0 not in (*x, *w) and (cuda.usable(like) or backend.fast(like))


def _is_busy(pictures: int) -> bool:
    """Whether there is work for all threads where each takes whole pictures."""
    return 2 * pictures > backend.threads()


def _is_direct(win: Window, pictures: int, channels: int, outputs: int) -> bool:
    """Whether sums in registers were measured to be faster; ``channels`` and ``outputs`` are of one group."""
    if win.size == (1, 1) or not direct.fits(win, outputs) or not _is_busy(pictures):
        return False
    return win.size != (3, 3) or win.stride != (1, 1) or channels * outputs <= _DIRECT_KERNEL


def _is_winograd(win: Window, x: Shape, w: Shape, groups: int) -> bool:
    """Whether Winograd's way was measured to be faster: 3x3, stride 1, and a kernel that, transformed, holds
    at most twice the numbers of the transformed tiles of the pictures and of the output."""
    channels, outputs = w[2], w[3] // groups
    tiles = x[0] * ((win.out[0] + 1) // 2) * ((win.out[1] + 1) // 2)
    fits = win.size == (3, 3) and win.stride == (1, 1) and win.is_dense and max(win.top, win.left) < 3
    enough = min(channels, outputs) >= _WINOGRAD_CHANNELS
    return fits and enough and _is_busy(x[0]) and channels * outputs <= 2 * tiles * (channels + outputs)


def _columns(win: Window, x: Shape, w: Shape, is_less: bool) -> str:
    """By columns: of the other side where that ``is_less``, the adjoint exists, and the kernel is no larger
    than the pictures; else flipping it takes longer than it saves."""
    is_cheap = math.prod(w) <= math.prod(x)
    return "turned_columns" if is_less and is_cheap and adjoint.exists(win) else "columns"


def _to_y(x: Shape, w: Shape, win: Window, groups: int) -> str:
    if _is_direct(win, x[0], w[2], w[3] // groups):
        return "direct"
    if _is_winograd(win, x, w, groups):
        return "winograd"
    return _columns(win, x, w, is_less=2 * w[3] <= x[3])


def _to_dx(x: Shape, w: Shape, win: Window, groups: int) -> str:
    if adjoint.exists(win):
        if _is_direct(adjoint.window(win, x), x[0], w[3] // groups, w[2]):
            return "direct"
        if _is_winograd(win, x, w, groups):
            return "winograd"
    return _columns(win, x, w, is_less=w[3] < 2 * x[3])


def _to_dw(x: Shape, w: Shape, win: Window, groups: int) -> str:
    if _is_direct(win, x[0], w[2], w[3] // groups):
        return "direct"
    # Where one side has far fewer channels, its columns are made sooner than the tiles of both sides.
    if _is_winograd(win, x, w, groups) and max(x[3], w[3]) <= 2 * min(x[3], w[3]):
        return "winograd"
    return _columns(win, x, w, is_less=w[3] < x[3])


def _way(rule: Rule, like: Array, x: Shape, w: Shape, win: Window, groups: int) -> Way:
    """The way by a rule, on arrays such as ``like``: x and w are shapes."""
    if cuda.usable(like):
        return Way("cuda_columns", joined_groups.left(groups, w, _JOINED_CHANNELS_CUDA))
    left = joined_groups.left(groups, w, _JOINED_CHANNELS)
    return Way(rule(x, joined_groups.joined_shape(w, groups, left), win, left), left)


def ways(like: Array, x: Shape, w: Shape, win: Window, groups: int) -> Ways:
    """The ways on arrays such as ``like``, from the shapes of x and w."""
    if not is_fast(like, x, w):
        return Ways(*[Way("reference", groups)] * 3)
    return Ways(*[_way(rule, like, x, w, win, groups) for rule in (_to_y, _to_dx, _to_dw)])


# ---------------------------------------------------------------------------------------- going that way


def forward(x: Array, w: Array, b: Array | None, relu: bool, win: Window, groups: int) -> Array:
    """conv2d of x (N, H, W, C) with w (KH, KW, C/G, O), with a ReLU behind it where asked."""
    name, left = _way(_to_y, x, x.shape, w.shape, win, groups)
    w = joined_groups.join(backend.array_module(w), w, groups, left)
    return _FILES[name].forward(x, w, b, relu, win, left)


def backward_x(dy: Array, w: Array, shape: Shape, win: Window, groups: int) -> Array:
    """dx of ``shape`` (N, H, W, C)."""
    name, left = _way(_to_dx, dy, shape, w.shape, win, groups)
    w = joined_groups.join(backend.array_module(w), w, groups, left)
    return _FILES[name].backward_x(dy, w, shape, win, left)


def backward_w(dy: Array, x: Array, shape: Shape, win: Window, groups: int) -> Array:
    """dw of ``shape`` (KH, KW, C/G, O)."""
    name, left = _way(_to_dw, dy, x.shape, shape, win, groups)
    dw = _FILES[name].backward_w(dy, x, joined_groups.joined_shape(shape, groups, left), win, left)
    return joined_groups.part(backend.array_module(dw), dw, groups, left)

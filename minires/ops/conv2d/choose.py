"""Which way a convolution is computed, and why.

A way is a file of this folder with three functions, forward, backward_x and backward_w, for y, dx and dw. On
a GPU it is ``cuda_columns`` always. On the CPU there are three, and each product takes its own:

    indirect    sums in registers, over what lies under the window: any convolution
    narrow      groups of 1, 2, 4 or 8 channels: no product is with a zero
    winograd    3x3, of channels that are whole vectors, on pictures that are large enough: 2.25 times fewer
                multiplications, but each number is moved more often

Else small groups are joined before. The rules were found by measuring layers of networks on two cores.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from minires import backend
from minires.backend import Array, cuda, simd
from minires.ops.conv2d import adjoint, cuda_columns, indirect, joined_groups, narrow, winograd
from minires.ops.window import Window

Shape = tuple[int, ...]
Rule = Callable[[Shape, Shape, Window, int], str]  # from the shapes of x and w, groups joined

_PRODUCTS = 1_700_000  # in each of the 16; with fewer, starting takes longer than what is saved
_LESS = 0.95  # of the time of ``indirect``
_JOINED_CHANNELS_CUDA = 64  # a GPU multiplies so fast that wider groups are worth their zeros


class _Costs(NamedTuple):
    """Of Winograd's way, in units of what ``indirect`` takes for all pixels under the window: the products,
    the transforms where there is one channel, and the kernel's transform where there is one tile."""

    products: float
    transforms: float
    kernel: float


_Y, _DW = _Costs(1.15, 5.5, 25), _Costs(1.3, 9, 75)
_PLANNED = _Costs(1.15, 5.5, 10)  # where the kernel's transform is made once for all


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


_FILES: dict[str, Any] = {
    "indirect": indirect, "narrow": narrow, "winograd": winograd, "cuda_columns": cuda_columns,
}  # fmt: skip

# ---------------------------------------------------------------------------------------------- the rules


def is_fast(like: Array, x: Shape, w: Shape) -> bool:
    """Whether arrays such as this take one of the ways; if not, they take the reference implementation. So do
    shapes of x and w without numbers: no picture, no channel, no kernel is no work for a way."""
    return 0 not in (*x, *w) and (cuda.usable(like) or backend.fast(like))


def _is_winograd(win: Window, x: Shape, w: Shape, groups: int, costs: _Costs) -> bool:
    """Whether Winograd's way can be taken, and is worth it."""
    fits = win.size == (3, 3) and win.stride == (1, 1) and win.is_dense
    whole = all(channels % simd.lanes(np.float32) == 0 for channels in w[2:])  # vectors
    return fits and whole and groups == 1 and _is_worth(win, x, w, costs)


def _is_worth(win: Window, x: Shape, w: Shape, costs: _Costs) -> bool:
    """Whether Winograd's way was measured to be faster: it does not leave out the border of small pictures,
    and the fewer channels there are, the more its transforms count."""
    tiles = math.prod((places + 1) // 2 for places in win.out)
    seen = _seen(win.out[0], x[1], win.top) * _seen(win.out[1], x[2], win.left)
    many, time = x[0] * tiles, costs.products * 16 * tiles / max(1, seen)
    time += costs.transforms / min(w[2:]) + costs.kernel / many
    return time < _LESS and many * math.prod(w[2:]) >= _PRODUCTS


def _seen(places: int, size: int, before: int) -> int:
    """How many pixels lie under three of a window at all places of a line, without its border."""
    return sum(max(0, min(places, size + before - k) - max(0, before - k)) for k in range(3))


def _to_y(x: Shape, w: Shape, win: Window, groups: int) -> str:
    return "winograd" if _is_winograd(win, x, w, groups, _Y) else "indirect"


def _to_dx(x: Shape, w: Shape, win: Window, groups: int) -> str:
    return "winograd" if adjoint.exists(win) and _is_winograd(win, x, w, groups, _Y) else "indirect"


def _to_dw(x: Shape, w: Shape, win: Window, groups: int) -> str:
    return "winograd" if _is_winograd(win, x, w, groups, _DW) else "indirect"


def is_planned_winograd(x: Shape, w: Shape, win: Window, groups: int) -> bool:
    """Whether a plan of inference takes Winograd's way to y, with a kernel that was transformed before."""
    return _is_winograd(win, x, w, groups, _PLANNED)


def _way(rule: Rule, like: Array, x: Shape, w: Shape, win: Window, groups: int) -> Way:
    """The way by a rule, on arrays such as ``like``: x and w are shapes."""
    if cuda.usable(like):
        return Way("cuda_columns", joined_groups.left(groups, w, _JOINED_CHANNELS_CUDA))
    if narrow.fits(w, groups, like.dtype):
        return Way("narrow", groups)
    left = joined_groups.left(groups, w, joined_groups.MOST)
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

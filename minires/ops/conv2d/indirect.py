"""Convolution on the CPU by tiles of sums that read the pictures where they lie: no columns are made.

A tile (``minires.backend.simd``) holds the sums of R places times L output channels in registers while the
pixels under the window go by (``minires.backend.tile_products``):

    forward      y[place, o]    = b[o] + sum over tap, c of x[offset(tap, place) + c] * w[tap, c, o]
    backward_x   dx[pixel, c]   = sum over tap, o of dy[offset(tap, pixel) + o] * w[tap, c, o]
    backward_w   dw[tap, c, o]  = sum over place of x[offset(tap, place) + c] * dy[place, o]

Where the pixel of each place lies says a table (``places.py``), and with it strides, borders and dilation
cost nothing. Of pictures with few channels, the first layer's above all, the pixels under a line of the
window are taken as one with many: they lie side by side. The pictures get their border for that.

Source: Dukhan 2019, The indirect convolution algorithm, arXiv:1907.02129.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from minires import backend
from minires.backend import Array, simd
from minires.backend.tile_products import Sizes, products
from minires.backend.tile_sums import sums_over_places
from minires.ops.conv2d import places
from minires.ops.window import Window

_FEW = 8  # channels; where there are fewer, the pixels of a line are joined
_TAIL = 16  # numbers behind the pictures, as many as a tile has rows
_GRAIN = 1 << 16  # numbers; fewer are not worth a second thread


def is_joined(channels: int, win: Window, groups: int) -> bool:
    """Whether the pixels of a line are taken as one with many channels."""
    return channels < _FEW and groups == 1 and win.size[1] > 1 and win.dilation[1] == 1


def column(win: Window) -> Window:
    """The window of a line's first pixel, on pictures that have their border."""
    return replace(win, size=(win.size[0], 1), top=0, bottom=0, left=0, right=0)


def _joined(x: Array, win: Window) -> tuple[Array, tuple[int, ...], Window, int]:
    """The pictures with their border, flat, with a few zeros more behind; the shape of one; the window of a
    column on them; and the numbers under a line."""
    (n, h, w, c), kw = x.shape, win.size[1]
    picture = (h + win.top + win.bottom, w + win.left + win.right, c)
    flat = np.zeros(n * math.prod(picture) + _TAIL, x.dtype)
    bordered = flat[:-_TAIL].reshape(n, *picture)

    def chunk(start: int, stop: int) -> None:
        win.crop(bordered)[start:stop] = x[start:stop]

    backend.parallel_for(chunk, n, _GRAIN * n // flat.size)
    return flat, picture, column(win), kw * c


def sizes(depth: int, outputs: int, groups: int, *, turned: bool = False) -> Sizes:
    """Those of a kernel (KH, KW, C/G, O): of k and n, or, turned, of n and k."""
    group, tap = depth if turned else outputs, groups * depth * outputs
    return Sizes(depth, outputs, groups, depth, outputs, group, tap, groups * group)


def forward(x: Array, w: Array, b: Array | None, relu: bool, win: Window, groups: int) -> Array:
    """conv2d of x (N, H, W, C) with w (KH, KW, C/G, O), with a ReLU behind it where asked."""
    y = np.empty((len(x), *win.out, w.shape[-1]), x.dtype)
    outputs, depth = w.shape[-1] // groups, w.shape[2]
    pictures, *picture = x.shape
    if is_joined(x.shape[-1], win, groups):
        x, picture, win, depth = _joined(x, win)
    tile = simd.shape(outputs, x.dtype)
    parts = places.forward(pictures, tuple(picture), w.shape[-1], win, depth, len(tile[0]))
    products(tile, x, w, y, parts, sizes(depth, outputs, groups), b=b, relu=relu)
    return y


def backward_x(dy: Array, w: Array, shape: tuple[int, ...], win: Window, groups: int) -> Array:
    """dx of ``shape`` (N, H, W, C)."""
    dx = np.empty(shape, dy.dtype)
    outputs, depth = w.shape[2], w.shape[-1] // groups
    tile = simd.shape(outputs, dy.dtype)
    parts = places.backward(len(dy), tuple(shape[1:]), w.shape[-1], win, depth, len(tile[0]))
    products(tile, dy, w, dx, parts, sizes(depth, outputs, groups, turned=True), turned=True)
    return dx


def is_gathered(win: Window) -> bool:
    """Whether what a window sees is copied together for dw: then nothing else is brought into the cache."""
    return win.size == (1, 1) and win.stride != (1, 1) and not win.has_border


def beside(win: Window) -> Window:
    """The window on pixels that were copied together."""
    return replace(win, stride=(1, 1))


def _seen(x: Array, win: Window) -> Array:
    """What a 1x1 window sees of the pictures, (N, OH, OW, C)."""
    seen = np.empty((len(x), *win.out, x.shape[-1]), x.dtype)
    backend.copy(win.at(x, 0, 0), seen)
    return seen


def backward_w(dy: Array, x: Array, shape: tuple[int, ...], win: Window, groups: int) -> Array:
    """dw of ``shape`` (KH, KW, C/G, O)."""
    dw = np.empty(shape, x.dtype)
    outputs, depth = shape[-1] // groups, shape[2]
    if is_gathered(win):
        x, win = _seen(x, win), beside(win)
    pictures, *picture = x.shape
    if is_joined(x.shape[-1], win, groups):
        x, picture, win, depth = _joined(x, win)
    blocks = places.blocks(pictures, tuple(picture), win)
    sums_over_places(x, dy, dw, blocks, sizes(depth, outputs, groups), picture[-1], shape[-1])
    return dw

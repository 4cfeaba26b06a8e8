"""Convolution of narrow groups on the CPU, depthwise above all, by tiles of ``minires.backend.tile_groups``.

Only for groups that have as many outputs as inputs.
"""

from __future__ import annotations

import numpy as np

from minires.backend import Array, tile_groups
from minires.ops.conv2d import places
from minires.ops.window import Window


def fits(w: tuple[int, ...], groups: int, dtype: np.dtype) -> bool:
    """Whether a kernel (KH, KW, C/G, O) has such groups."""
    channels, group = w[3], w[2]
    return groups > 1 and group * groups == channels and tile_groups.fits(channels, group, dtype)


def forward(x: Array, w: Array, b: Array | None, relu: bool, win: Window, groups: int) -> Array:
    """conv2d of x (N, H, W, C) with w (KH, KW, C/G, C), with a ReLU behind it where asked."""
    n, *picture = x.shape
    y = np.empty((n, *win.out, w.shape[3]), x.dtype)
    parts = places.forward(n, tuple(picture), w.shape[3], win, 0, len(tile_groups.shape()[0]))
    tile_groups.group_products(x, w, y, parts, w.shape[2], w.shape[3], b=b, relu=relu)
    return y


def backward_x(dy: Array, w: Array, shape: tuple[int, ...], win: Window, groups: int) -> Array:
    """dx of ``shape`` (N, H, W, C)."""
    dx = np.empty(shape, dy.dtype)
    parts = places.backward(shape[0], tuple(shape[1:]), w.shape[3], win, 0, len(tile_groups.shape()[0]))
    tile_groups.group_products(dy, turned(w, groups), dx, parts, w.shape[2], w.shape[3])
    return dx


def backward_w(dy: Array, x: Array, shape: tuple[int, ...], win: Window, groups: int) -> Array:
    """dw of ``shape`` (KH, KW, C/G, C)."""
    n, *picture = x.shape
    dw = np.empty(shape, x.dtype)
    parts = places.by_place(n, tuple(picture), shape[3], win, len(tile_groups.sums_shape(shape[2])[2]))
    tile_groups.group_sums(x, dy, dw, parts, shape[2], shape[3])
    return dw


def turned(w: Array, groups: int) -> Array:
    """w of which inputs and outputs of each group have changed places."""
    kh, kw, group, channels = w.shape
    by_group = w.reshape(kh, kw, group, groups, group)
    return np.ascontiguousarray(by_group.swapaxes(2, 4)).reshape(w.shape)

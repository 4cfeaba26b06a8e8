"""Where the pixels under a window lie: tables of offsets, which the tiles of ``indirect.py`` read.

A picture is an array of numbers, and the window's pixel (kh, kw) at the place (i, j) of the output is the
number

    ((i*stride + kh*dilation - top) * W + (j*stride + kw*dilation - left)) * C

of it, unless it lies outside, in the border of zeros. A table has a line for each pixel of the window (a
*tap*) and a column for each place of the output, of several pictures: such offsets, and -1 for outside.
Strides, borders and dilation are in the table and nowhere else.

Of a 3x3 window on 4x4 pictures, three of ten products are with zeros. So places that see the same taps are
together: first those in the middle of all pictures, then those at each border, where a whole tile leaves out
what lies outside. In the middle, pixels of a line lie one behind the other, and are read as one long row.

Backward, each pixel of x is a place, and its taps are those through which it was seen. With strides these
are others for even and for odd rows, so there is a table for each: a *phase*.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np

from minires.backend import Array, split, tile_sums
from minires.backend.simd import MOST_ROWS
from minires.backend.tile_products import Part, Places
from minires.backend.tile_sums import Blocks
from minires.errors import ShapeError
from minires.ops.window import Window

_PLACES = 2048  # in a table of more pictures than one
_TAPS = 255  # that are read as one
_TABLE = 1 << 19  # numbers in a table of more pictures than one: two megabytes
MOST = 2**31 - 1  # numbers in a picture, as offsets are counted


@functools.lru_cache(maxsize=256)
def forward(
    pictures: int, picture: tuple[int, ...], outputs: int, win: Window, depth: int, rows: int
) -> tuple[Part, ...]:
    """The places of the output (OH, OW, outputs), which look at a picture (H, W, C) and read ``depth``
    numbers for each tap; tiles have ``rows``."""
    offsets = _under(win, picture)
    taps, places = offsets.shape
    phase = _Phase(offsets, np.arange(places) * outputs, np.arange(taps))
    return _parts(pictures, [phase], math.prod(picture), places * outputs, rows, depth)


@functools.lru_cache(maxsize=256)
def backward(
    pictures: int, picture: tuple[int, ...], outputs: int, win: Window, depth: int, rows: int
) -> tuple[Part, ...]:
    """The places of a picture (H, W, C), which look back at the output (OH, OW, outputs), phase by phase.
    Their taps are turned round, so that what they read lies one behind the other."""
    (h, w, c), (oh, ow) = picture, win.out
    down = _seen(h, win.size[0], win.stride[0], win.dilation[0], win.top)
    across = _seen(w, win.size[1], win.stride[1], win.dilation[1], win.left)
    phases = []
    for lines, kh, high in down:
        for pixels, kw, wide in across:
            at = (lines[:, None] * w + pixels).reshape(-1) * c
            taps = (kh[:, None] * win.size[1] + kw).reshape(-1)
            phases.append(_Phase(_offsets(high, wide, oh, ow, outputs)[::-1], at, taps[::-1]))
    return _parts(pictures, phases, oh * ow * outputs, h * w * c, rows, depth)


@functools.lru_cache(maxsize=256)
def by_place(
    pictures: int, picture: tuple[int, ...], outputs: int, win: Window, taps: int
) -> tuple[Part, ...]:
    """As ``forward``, with a line for each place and a column for each tap, of these so many at a time."""
    found = []
    for part in forward(pictures, picture, outputs, win, 0, 1):
        many, seen = part.places.many, part.places.table
        table = np.full((many, -(-len(seen) // taps) * taps), -1, np.int32)
        table[:, : len(seen)] = seen[:, :many].T
        found.append(part._replace(places=part.places._replace(table=table)))
    return tuple(found)


class _Phase(NamedTuple):
    """Of one picture: offsets (taps, places), where each place lies in the output, and the taps' numbers."""

    offsets: Array
    out: Array
    taps: Array


def _seen(
    size: int, kernel: int, stride: int, dilation: int, before: int
) -> list[tuple[Array, Array, Array]]:
    """Of one axis, for each phase: its pixels, its taps, and (taps, pixels) where the window stands that
    sees the pixel by the tap."""
    found = []
    for phase in range(min(stride, size)):
        pixels = np.arange(phase, size, stride)
        taps = np.array([k for k in range(kernel) if (phase + before - k * dilation) % stride == 0], np.int64)
        places = (pixels + before - taps[:, None] * dilation) // stride
        found.append((pixels, taps, places))
    return found


def _under(win: Window, picture: tuple[int, ...]) -> Array:
    """What lies under a window, (KH*KW, OH*OW) offsets in a picture (H, W, C), or -1."""
    (oh, ow), (kh, kw) = win.out, win.size
    down = np.arange(oh) * win.stride[0] + np.arange(kh)[:, None] * win.dilation[0] - win.top  # (KH, OH)
    across = np.arange(ow) * win.stride[1] + np.arange(kw)[:, None] * win.dilation[1] - win.left  # (KW, OW)
    return _offsets(down, across, *picture)


def _offsets(down: Array, across: Array, h: int, w: int, c: int) -> Array:
    """(KH, OH) rows and (KW, OW) columns -> (KH*KW, OH*OW) offsets in a picture (H, W, C), or -1."""
    inside = ((down >= 0) & (down < h))[:, None, :, None] & ((across >= 0) & (across < w))[None, :, None]
    at = (down[:, None, :, None] * w + across[None, :, None]) * c
    taps = len(down) * len(across)
    return np.where(inside, at, -1).reshape(taps, down.shape[1] * across.shape[1])


def _parts(
    pictures: int, phases: list[_Phase], size: int, out_size: int, rows: int, depth: int
) -> tuple[Part, ...]:
    """For all pictures, whose numbers are ``size`` and ``out_size`` apart."""
    if max(size, out_size) > MOST:
        many = max(size, out_size)
        raise ShapeError(f"conv2d: a picture of {many:,} numbers is too large; at most {MOST:,}")
    places = max(len(phase.out) for phase in phases)
    numbers = max(1, *(phase.offsets.size for phase in phases))
    most = max(1, min(_TABLE // numbers, MOST // max(size, out_size)))
    together = max(1, min(pictures, most, -(-_PLACES // places)))
    whole = pictures // together * together
    found = []
    for first, last in ((0, whole), (whole, pictures)):
        for phase in phases if first < last else ():
            many = min(together, last - first)
            times, steps = (last - first) // many, (many * size, many * out_size)
            table = _tabled(phase, many, size, out_size, rows, depth)
            found.append(Part(table, first * size, first * out_size, times, *steps))
    return tuple(found)


def _tabled(phase: _Phase, pictures: int, size: int, out_size: int, rows: int, depth: int) -> Places:
    """The table of a phase, of so many pictures: first the places that see all, then those at each border."""
    begin, offsets = np.arange(pictures)[:, None], phase.offsets[:, None]
    order = np.argsort(np.tile(_kinds(phase.offsets < 0), pictures), kind="stable")
    many = np.where(offsets < 0, -1, offsets + begin * size).reshape(len(phase.taps), len(order))[:, order]
    to = (phase.out + begin * out_size).reshape(-1)[order]
    taps, count = phase.taps, to.size
    tiles = -(-count // rows)
    # Beyond the last place of the last tile stands that place again.
    place = np.minimum(np.arange(tiles * rows + MOST_ROWS), count - 1)
    table, targets = np.ascontiguousarray(many[:, place], np.int32), to[place].astype(np.int32)
    return Places(count, table, targets, taps.astype(np.int64), _seen_by_tiles(table, tiles, rows, depth))


def _kinds(outside: Array) -> Array:
    """A number for each place, from which taps lie outside there (taps, places): 0 where none does."""
    if not len(outside):
        return np.zeros(outside.shape[1], np.int64)
    found: Array = np.unique(np.packbits(outside, axis=0), axis=1, return_inverse=True)[1]
    return found.reshape(-1)


def _seen_by_tiles(table: Array, tiles: int, rows: int, depth: int) -> Array:
    """How many taps each tile sees from each on (taps, tiles): rows that lie ``depth`` numbers further are
    the next taps'."""
    lines = table[:, : tiles * rows].reshape(len(table), tiles, rows)
    sees = (lines >= 0).any(axis=2).astype(np.uint8)
    for t in reversed(range(len(table) - 1)):
        goes_on = ((lines[t + 1] - lines[t] == depth) & (lines[t] >= 0)).all(axis=1)
        sees[t] = np.where(goes_on & (sees[t + 1] < _TAPS), sees[t + 1] + 1, sees[t])
    return sees


@functools.lru_cache(maxsize=256)
def blocks(pictures: int, picture: tuple[int, ...], win: Window) -> tuple[Blocks, ...]:
    """What each tap sees of the picture (H, W, C), for blocks of lines of the output, or of whole pictures.
    The rows are pixels of x, and places."""
    (h, w, _), (oh, ow) = picture, win.out
    pixels = _under(win, (h, w, 1)).reshape(-1, oh, ow)
    together = max(1, min(pictures, tile_sums.PLACES // (oh * ow)))
    whole = pictures // together * together
    found = []
    for first, last in ((0, whole), (whole, pictures)):
        if first < last:
            many = min(together, last - first)
            lines = oh if many > 1 else max(1, min(oh, tile_sums.PLACES // ow))
            cuts = split(0, oh, -(-oh // lines))
            # Places follow each other along a line, or, in small pictures, from one picture to the next.
            steps = [(win.stride[1], 1), (h * w, oh * ow)]
            found_both = [(*_runs(pixels, cuts, many, h * w, apart), *apart) for apart in steps]
            best = min(found_both, key=lambda one: one[2].shape[1])
            at = first * h * w, first * oh * ow, (last - first) // many, many * h * w, many * oh * ow
            found.append(Blocks(*best, *at))
    return tuple(found)


def _runs(
    pixels: Array, cuts: list[tuple[int, int]], pictures: int, size: int, apart: tuple[int, int]
) -> tuple[Array, Array, Array]:
    """Rows, starts and runs of blocks, from pixels (taps, OH, OW) of a picture that has ``size`` of them."""
    rows, starts, runs = [], [], []
    taps, _, ow = pixels.shape
    total = 0
    for top, bottom in cuts:
        seen = pixels[:, top:bottom].reshape(taps, -1)
        inside = seen[seen >= 0]
        first, last = (int(inside.min()), int(inside.max()) + 1) if inside.size else (0, 1)
        if pictures > 1:
            first, last = 0, size
        start, places = [total], seen.shape[1]
        for tap in seen:
            place, step = np.flatnonzero(tap >= 0), np.arange(pictures)
            pairs = np.stack([tap[place] - first, place])[:, None] + step[:, None] * [[[size]], [[places]]]
            if apart[1] > 1:
                pairs = pairs.swapaxes(1, 2)
            pairs = pairs.reshape(2, -1)
            if pairs.size:
                goes_on = (np.diff(pairs) == np.array(apart)[:, None]).all(axis=0)
                begin = np.flatnonzero(np.append(True, ~goes_on))
                many = np.diff(np.append(begin, pairs.shape[1]))
                runs.append(np.vstack([pairs[:, begin], many]))
                total += len(begin)
            start.append(total)
        rows.append((first, last - first + (pictures - 1) * size, top * ow, places * pictures))
        starts.append(start)
    together = np.concatenate(runs, 1) if runs else np.empty((3, 0))
    return np.array(rows), np.array(starts, np.int32), np.ascontiguousarray(together, np.int32)

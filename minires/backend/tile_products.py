"""Sums of products by tiles: what convolutions, dense layers and matrix products are made of.

With places m of an output, taps t of a kernel, channels k and n, and a table that says where in x the row of
numbers lies that place m sees by tap t:

    y[out[m] + n] = b[n] + sum over t, k of x[table[t, m] + k] * w[t, k, n]

A matrix product is the case of one tap, whose rows lie one after the other. Nothing is copied: the tiles of
``simd.py`` read x where it lies, and w in *panels*, L numbers n of all t and k. A panel is packed for it
first, unless there are so few places that it is read only once: each thread packs what it needs, a little at
a time, so that it stays in its core's cache.

Source: Dukhan 2019, The indirect convolution algorithm, arXiv:1907.02129; tiles and panels: Goto and van de
Geijn 2008, Anatomy of high-performance matrix multiplication.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from minires.backend import parallel, simd, thread_pool
from minires.backend.arrays import Array, empty
from minires.backend.kernels import kernel
from minires.backend.simd import Size, expect, listed, multiply_add, plus, rectify, spread, store, turn

PANELS = 1 << 17  # numbers that a thread packs at a time: half a megabyte of its cache
_SUMMED = 512  # products that are summed by themselves, as one long sum of float32 rounds more
_PLACES = 288  # that meet all of these, before the next do
GRAIN = 1 << 20  # MACs; fewer are not worth a second thread


class Places(NamedTuple):
    """Where ``many`` rows of numbers lie: ``table`` (taps, at least as many as whole tiles have), -1 for
    zeros; ``out`` as many, for each place its numbers in the output; ``taps`` (taps,) their numbers in the
    kernel; ``sees`` (taps, tiles) how many taps a tile sees from this one on: 0 if its rows are all zeros,
    and more than 1 if the rows of the next taps lie just behind, so that they are read as one."""

    many: int
    table: Array
    out: Array
    taps: Array
    sees: Array


class Part(NamedTuple):
    """The same places for several times: at ``x`` and ``y``, and x_step and y_step numbers on each time."""

    places: Places
    x: int = 0
    y: int = 0
    times: int = 1
    x_step: int = 0
    y_step: int = 0


class Sizes(NamedTuple):
    """Of a kernel: ``groups`` that do not meet, of ``depth`` numbers k and ``outputs`` numbers n each, and
    how many numbers further the next group lies in x, y and w, the next tap in w, and the next row (of n, or,
    where w is turned, of k)."""

    depth: int
    outputs: int
    groups: int
    x_group: int
    y_group: int
    w_group: int
    tap: int
    row: int


@kernel(
    w="flat (W)", taps="flat int64 (T)", panel="out flat (P)",
    where="0 < count <= width and depth > 0 and lanes > 0 and width % lanes == 0"
    " and min(at, tap, row, to) >= 0 and to + T * depth * width <= P and at + max(taps, default=0) * tap"
    " + ((count - 1) * row + depth if turned else (depth - 1) * row + count) <= W",
)  # fmt: skip
def _pack_numba(
    w: Array, at: int, taps: Array, tap: int, depth: int, row: int, turned: bool, count: int,
    panel: Array, to: int, width: int, lanes: int,
) -> None:  # fmt: skip
    """panel[t, k, n] = w[at + taps[t]*tap + k*row + n] of the first ``count`` n, zeros behind; turned, it is
    w[... + n*row + k]."""
    for t in range(taps.size):
        start = at + taps[t] * tap
        deep, many = depth // lanes * lanes, count // lanes * lanes
        if not turned:
            for k in range(depth):
                source = w[start + k * row : start + k * row + count]
                target = panel[to + k * width : to + k * width + count]
                for n in range(count):
                    target[n] = source[n]
        else:
            for k in range(0, deep, lanes):
                for n in range(0, many, lanes):
                    turn(w, start + n * row + k, row, panel, to + k * width + n, width)
            for n in range(count):
                for k in range(deep if n < many else 0, depth):
                    panel[to + k * width + n] = w[start + n * row + k]
        for k in range(depth):
            for n in range(count, width):
                panel[to + k * width + n] = 0
        to += depth * width


@kernel(
    x="flat (X)", w="flat (W)", packed="maybe flat (_)", b="flat (B)", added="maybe flat (Y)",
    y="out flat (Y)", table="flat int32 (T, M)", out="flat int32 (M)", taps="flat int64 (T)",
    sees="flat uint8 (T, Q)", zeros="flat (Z)", room="out flat (R)",
    where="min(depth, outputs) > 0 and width == len(columns) * lanes_of(dtype_) > 0"
    " and Z >= max(depth, width) and M >= max(count, Q * len(rows))"
    " and 0 <= start <= stop and 0 <= first <= last and last * width <= B"
    " and min(x_step, y_step, x_group, y_group, w_group, tap, row) >= 0"
    " and (time := max(stop - 1, 0) // Q) >= 0 and (group := max(last - 1, 0) // -(-outputs // width)) >= 0"
    " and time * x_step + group * x_group + depth <= X and time * y_step + group * y_group + outputs <= Y"
    " and (packed.size >= last * T * depth * width if packed.size else R >= T * depth * width"
    " and group * w_group + max(taps, default=0) * tap"
    " + ((outputs - 1) * row + depth if turned else (depth - 1) * row + outputs) <= W)",
)  # fmt: skip
def products_numba(
    rows: Size, columns: Size, x: Array, w: Array, packed: Array, b: Array, added: Array, y: Array,
    table: Array, out: Array, taps: Array, sees: Array, zeros: Array, room: Array, relu: bool, turned: bool,
    count: int, x_step: int, y_step: int, depth: int, outputs: int, x_group: int, y_group: int, w_group: int,
    tap: int, row: int, width: int, start: int, stop: int, first: int, last: int,
) -> None:  # fmt: skip
    """The tiles start..stop of all times, and the panels first..last of all groups."""
    height, across, tiles = len(rows), table.shape[1], sees.shape[1]
    panels = (outputs + width - 1) // width  # of a group
    long, offsets = taps.size * depth * width, table.reshape(table.size)
    is_packed = packed.size > 0
    is_direct = not is_packed and not turned and outputs % width == 0 and stop - start <= 2
    together = max(1, _SUMMED // depth)  # taps
    fit, step, kernels = max(1, room.size // max(1, long)), width, room
    if is_packed or is_direct:
        fit = max(1, last - first)
    if is_packed:
        kernels = packed
    if is_direct:
        step, kernels = row, w
    for p0 in range(first, last, fit):
        p1 = min(p0 + fit, last)
        if not is_packed and not is_direct:
            for p in range(p0, p1):
                n = p % panels * width
                at = p // panels * w_group + (n * row if turned else n)
                _pack_numba(
                    w, at, taps, tap, depth, row, turned, min(width, outputs - n), room, (p - p0) * long,
                    width, width // len(columns),
                )  # fmt: skip
        for q0 in range(start, stop, _PLACES // height):
            for p in range(p0, p1):
                group, n = p // panels, p % panels * width
                panel = (p if is_packed else p - p0) * long
                time, q = q0 // tiles, q0 % tiles - 1
                for _ in range(q0, min(q0 + _PLACES // height, stop)):
                    q += 1
                    if q == tiles:
                        time, q = time + 1, 0
                    m, at, to = q * height, time * x_step + group * x_group, time * y_step + group * y_group
                    expect(columns, listed(rows, y, to, out, m, zeros), n)
                    if added.size:
                        expect(columns, listed(rows, added, to, out, m, zeros), n)
                    t0 = k0 = 0
                    while t0 < taps.size:  # what is summed by itself: some taps, or a part of one
                        t1, k1 = min(t0 + together, taps.size), min(k0 + _SUMMED, depth)
                        is_first, is_last = t0 + k0 == 0, t1 == taps.size and k1 == depth
                        tile = spread(rows, columns, b if is_first else zeros, p * width if is_first else 0)
                        t = t0
                        while t < t1:
                            if sees[t, q] == 0:
                                t += 1
                                continue
                            here = min(np.int64(sees[t, q]), t1 - t)
                            end = k1 + (here - 1) * depth
                            whole = end - (end - k0) % 4
                            lines = listed(rows, x, at, offsets, t * across + m, zeros)
                            o = panel + (t * depth + k0) * width
                            if is_direct:
                                o = taps[t] * tap + group * w_group + n + k0 * step
                            for k in range(k0, whole, 4):
                                tile = multiply_add(tile, lines, k, kernels, o)
                                tile = multiply_add(tile, lines, k + 1, kernels, o + step)
                                tile = multiply_add(tile, lines, k + 2, kernels, o + 2 * step)
                                tile = multiply_add(tile, lines, k + 3, kernels, o + 3 * step)
                                o += 4 * step
                            for k in range(whole, end):
                                tile = multiply_add(tile, lines, k, kernels, o)
                                o += step
                            t += here
                        target = listed(rows, y, to, out, m, zeros)
                        if not is_first:  # y holds what was summed before
                            tile = plus(tile, target, n, outputs - n)
                        if is_last and added.size:
                            tile = plus(tile, listed(rows, added, to, out, m, zeros), n, outputs - n)
                        if is_last and relu:
                            tile = rectify(tile)
                        store(tile, target, n, count - m, outputs - n)
                        k0 = k1 if k1 < depth else 0
                        t0 = t0 if k1 < depth else t1
                    if taps.size == 0:  # places that nothing is seen from
                        tile, target = spread(rows, columns, b, p * width), listed(rows, y, to, out, m, zeros)
                        if added.size:
                            tile = plus(tile, listed(rows, added, to, out, m, zeros), n, outputs - n)
                        if relu:
                            tile = rectify(tile)
                        store(tile, target, n, count - m, outputs - n)


def products(
    tile: simd.Shape,
    x: Array,
    w: Array,
    y: Array,
    parts: Sequence[Part],
    sizes: Sizes,
    *,
    turned: bool = False,
    packed: Array | None = None,
    b: Array | None = None,
    added: Array | None = None,
    relu: bool = False,
) -> None:
    """Write y from x and w, arrays without gaps, on all threads. See the head of this file.

    tile: rows and columns, as ``simd.shape`` gives them; the places are made for as many rows.
    turned: w has a row of k for each n.
    packed: what ``pack`` made of w.
    b (groups * outputs,), added as y, relu: what is added, and ReLU behind it.
    """
    (rows, columns), width = tile, simd.width(tile, x.dtype)
    panels = sizes.groups * -(-sizes.outputs // width)
    none = np.empty(0, x.dtype)
    packed, added = none if packed is None else packed, none if added is None else added.reshape(-1)
    bias, zeros = padded_bias(b, sizes, panels, width, x.dtype), np.zeros(max(sizes.depth, width), x.dtype)
    x, w, y = x.reshape(-1), w.reshape(-1), y.reshape(-1)
    threads = share(parts, sizes)
    by_panel = w.size > x.size and panels >= threads

    def chunk(number: int) -> None:
        for places, at, to, times, x_step, y_step in parts:
            tiles, long = times * places.sees.shape[1], len(places.taps) * sizes.depth * width
            room = empty((0 if packed.size else min(max(PANELS, long), panels * long),), x.dtype)
            total = panels if by_panel else tiles
            mine = total * number // threads, total * (number + 1) // threads
            if mine[0] < mine[1]:
                products_numba(
                    rows, columns, x[at:], w, packed, bias, added[to:], y[to:], places.table, places.out,
                    places.taps, places.sees, zeros, room, relu, turned, places.many, x_step, y_step,
                    sizes.depth, sizes.outputs, *sizes[3:], width,
                    *((0, tiles, *mine) if by_panel else (*mine, 0, panels)),
                )  # fmt: skip

    parallel.parallel_calls([functools.partial(chunk, number) for number in range(threads)])


def pack(tile: simd.Shape, w: Array, sizes: Sizes, *, taps: int = 1, turned: bool = False) -> Array:
    """All panels of w, for several calls of ``products`` whose places have all ``taps`` of the kernel."""
    width = simd.width(tile, w.dtype)
    panels, long = -(-sizes.outputs // width), taps * sizes.depth * width
    packed, every, w = empty((sizes.groups * panels * long,), w.dtype), np.arange(taps), w.reshape(-1)

    def chunk(start: int, stop: int) -> None:
        for panel in range(start, stop):
            n = panel % panels * width
            at = panel // panels * sizes.w_group + n * (sizes.row if turned else 1)
            _pack_numba(
                w, at, every, sizes.tap, sizes.depth, sizes.row, turned, min(width, sizes.outputs - n),
                packed, panel * long, width, simd.lanes(w.dtype),
            )  # fmt: skip

    parallel.parallel_for(chunk, sizes.groups * panels, GRAIN // long)
    return packed


def share(parts: Sequence[Part], sizes: Sizes) -> int:
    """How many threads the work is worth."""
    macs = seen_by(parts) * sizes.depth * sizes.outputs * sizes.groups
    return max(1, min(thread_pool.threads(), macs // GRAIN))


def seen_by(parts: Sequence[Part]) -> int:
    """How many rows of numbers all places look at by all taps."""
    return sum(part.times * part.places.many * len(part.places.taps) for part in parts)


def padded_bias(b: Array | None, sizes: Sizes, panels: int, width: int, dtype: Any) -> Array:
    """b, with zeros behind the numbers of each group up to whole panels."""
    bias = np.zeros((sizes.groups, panels * width // sizes.groups), dtype)
    if b is not None:
        bias[:, : sizes.outputs] = b.reshape(sizes.groups, sizes.outputs)
    return bias.reshape(-1)


_ROWS = 3072  # of a matrix in one table: a whole number of tiles


@functools.lru_cache(maxsize=64)
def rows_of(count: int, x_width: int, y_width: int, rows: int) -> tuple[Part, ...]:
    """The rows of a matrix (count, x_width), and of its product (count, y_width), for tiles of ``rows``."""
    block = max(1, min(_ROWS, count, (2**31 - 1) // max(x_width, y_width, 1)))
    parts, whole = [], count // block * block
    for first, last in ((0, whole), (whole, count)):
        if first < last:
            size = min(block, last - first)
            tiles = -(-size // rows)
            index = np.minimum(np.arange(tiles * rows + simd.MOST_ROWS), size - 1).astype(np.int32)
            one, all_seen = np.zeros(1, np.int64), np.ones((1, tiles), np.uint8)
            places = Places(size, index[None] * np.int32(x_width), index * np.int32(y_width), one, all_seen)
            steps = size * x_width, size * y_width
            parts.append(Part(places, first * x_width, first * y_width, (last - first) // size, *steps))
    return tuple(parts)

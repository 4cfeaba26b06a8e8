"""Sums of products by tiles, where few channels meet: convolutions of narrow groups.

Of groups of G channels, G = 1, 2, 4 or 8, number n of the output meets the G numbers of its own group only:

    y[out[m] + n] = b[n] + sum over t and k < G of x[table[t, m] + n // G * G + k] * w[t, k, n]

and the other way round, for dw:

    dw[t, k, n] = sum over m of x[table[t, m] + n // G * G + k] * dy[out[m] + n]

A vector holds whole groups. So a tile reads a vector of x where it lies, and for each k takes from it the
number k of every group (``simd.multiply_groups``, ``multiply_each``). Nothing is packed, and nothing is
multiplied by a zero that only fills up.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from minires.backend import parallel, simd, thread_pool
from minires.backend.arrays import Array
from minires.backend.kernels import kernel
from minires.backend.simd import (
    Size,
    add,
    beside,
    listed,
    multiply_each,
    multiply_groups,
    plus,
    rectify,
    spread,
    store,
)  # fmt: skip
from minires.backend.tile_products import GRAIN, Part, seen_by

GROUPS = ((0,), (0,) * 2, (0,) * 4, (0,) * 8)  # channels of a group, as many as zeros


def fits(channels: int, group: int, dtype: Any) -> bool:
    """Whether there are tiles for groups of so many of the channels."""
    lanes = simd.lanes(dtype)
    return group in map(len, GROUPS) and group <= lanes and channels % lanes == 0


@kernel(
    x="flat (X)", w="flat (W)", b="flat (B)", added="maybe flat (Y)", y="out flat (Y)",
    table="flat int32 (T, M)", out="flat int32 (M)", taps="flat int64 (T)", sees="flat uint8 (T, Q)",
    zeros="flat (Z)",
    where="channels > 0 and lanes > 0 and channels % lanes == 0 and lanes % len(group) == 0"
    " and B >= channels and Z >= channels and M >= max(count, Q * len(rows)) and 0 <= start <= stop"
    " and (max(taps, default=0) + 1) * len(group) * channels <= W and min(x_step, y_step) >= 0"
    " and (time := max(stop - 1, 0) // Q) >= 0 and time * x_step + channels <= X"
    " and time * y_step + channels <= Y",
)  # fmt: skip
def group_products_numba(
    rows: Size, column: Size, group: Size, x: Array, w: Array, b: Array, added: Array, y: Array, table: Array,
    out: Array, taps: Array, sees: Array, zeros: Array, relu: bool, count: int, x_step: int, y_step: int,
    channels: int, lanes: int, start: int, stop: int,
) -> None:  # fmt: skip
    """The tiles start..stop of all times."""
    height, across, tiles, offsets = len(rows), table.shape[1], sees.shape[1], table.reshape(table.size)
    for number in range(start, stop):
        time, q = number // tiles, number % tiles
        m, at, to = q * height, time * x_step, time * y_step
        for n in range(0, channels, lanes):
            tile = spread(rows, column, b, n)
            for t in range(taps.size):
                if sees[t, q]:
                    lines = listed(rows, x, at, offsets, t * across + m, zeros)
                    p = taps[t] * len(group) * channels + n
                    tile = multiply_groups(tile, lines, n, group, w, p, channels)
            if added.size:
                tile = plus(tile, listed(rows, added, to, out, m, zeros), n, lanes)
            if relu:
                tile = rectify(tile)
            store(tile, listed(rows, y, to, out, m, zeros), n, count - m, lanes)


def group_products(
    x: Array, w: Array, y: Array, parts: Sequence[Part], group: int, channels: int, *,
    b: Array | None = None, relu: bool = False,
) -> None:  # fmt: skip
    """Write y from x and w (taps, G, channels), arrays without gaps, on all threads; the places are made for
    ``shape``'s rows."""
    (rows, column), zeros = shape(), np.zeros(channels, x.dtype)
    x, w, flat, none = x.reshape(-1), w.reshape(-1), y.reshape(-1), np.empty(0, x.dtype)
    b, threads = zeros if b is None else np.ascontiguousarray(b), share(parts, group, channels)

    def chunk(number: int) -> None:
        for places, at, to, times, x_step, y_step in parts:
            tiles = times * places.sees.shape[1]
            group_products_numba(
                rows, column, (0,) * group, x[at:], w, b, none, flat[to:], places.table, places.out,
                places.taps, places.sees, zeros, relu, places.many, x_step, y_step, channels,
                simd.lanes(x.dtype), tiles * number // threads, tiles * (number + 1) // threads,
            )  # fmt: skip

    parallel.parallel_calls([functools.partial(chunk, number) for number in range(threads)])


@kernel(
    x="flat (X)", dy="flat (Y)", dw="out flat (W)", table="flat int32 (M, V)", out="flat int32 (>= M)",
    zeros="flat (Z)",
    where="channels > 0 and lanes > 0 and channels % lanes == 0 and lanes % len(group) == 0 and summed > 0"
    " and len(height) == len(rows) * len(group) and taps > 0 and V >= -(-taps // len(rows)) * len(rows)"
    " and Z >= channels and taps * len(group) * channels <= W and times > 0 and min(x_step, y_step) >= 0"
    " and (times - 1) * x_step + channels <= X and (times - 1) * y_step + channels <= Y"
    " and 0 <= start <= stop <= -(-taps // len(rows)) * (channels // lanes)",
)  # fmt: skip
def group_sums_numba(
    height: Size, column: Size, rows: Size, group: Size, x: Array, dy: Array, dw: Array, is_first: bool,
    table: Array, out: Array, zeros: Array, times: int, x_step: int, y_step: int, taps: int, channels: int,
    lanes: int, summed: int, start: int, stop: int,
) -> None:  # fmt: skip
    """The units start..stop of dw: some taps, of a vector of channels. So many places are ``summed`` by
    themselves, as one long sum of float32 rounds more."""
    parts, many, wide = (taps + len(rows) - 1) // len(rows), len(group), table.shape[1]
    offsets = table.reshape(table.size)
    for unit in range(start, stop):
        t, n, is_new = unit % parts * len(rows), unit // parts * lanes, is_first
        target = beside(height, dw, t * many * channels + n, channels)
        for time in range(times):
            at, to = time * x_step, time * y_step + n
            for m0 in range(0, table.shape[0], summed):
                tile = spread(height, column, zeros, 0)
                for m in range(m0, min(m0 + summed, table.shape[0])):
                    lines = listed(rows, x, at, offsets, m * wide + t, zeros)
                    tile = multiply_each(tile, lines, n, group, dy, to + out[m])
                if is_new:
                    store(tile, target, 0, (taps - t) * many, lanes)
                else:
                    add(tile, target, 0, (taps - t) * many, lanes)
                is_new = False


def group_sums(x: Array, dy: Array, dw: Array, parts: Sequence[Part], group: int, channels: int) -> None:
    """Write dw (taps, G, channels) from x and dy, arrays without gaps, on all threads. The tables of places
    have a line for each place."""
    (height, column, rows), taps = sums_shape(group), dw.size // (group * channels)
    zeros = np.zeros(channels, x.dtype)
    x, dy, dw, lanes = x.reshape(-1), dy.reshape(-1), dw.reshape(-1), simd.lanes(x.dtype)
    units = -(-taps // len(rows)) * (channels // lanes)
    threads, summed = min(units, share(parts, group, channels)), together(parts)

    def chunk(number: int) -> None:
        for i, (places, at, to, times, x_step, y_step) in enumerate(parts):
            group_sums_numba(
                height, column, rows, (0,) * group, x[at:], dy[to:], dw, i == 0, places.table,
                places.out, zeros, times, x_step, y_step, taps, channels, lanes, summed,
                units * number // threads, units * (number + 1) // threads,
            )  # fmt: skip

    parallel.parallel_calls([functools.partial(chunk, number) for number in range(threads)])


def sums_shape(group: int) -> tuple[Size, Size, Size]:
    """The tile of sums over places: rows and column, and of how many taps it is."""
    taps = (9, 9, 5, 3) if simd.processor()[1] >= 32 else (9, 5, 3, 1)
    rows = (0,) * taps[[len(one) for one in GROUPS].index(group)]
    return rows * group, (0,), rows


def together(parts: Sequence[Part]) -> int:
    """How many places are summed by themselves: as many as there are such sums, or some hundreds."""
    return max(256, math.isqrt(sum(part.times * part.places.many for part in parts)))


def shape() -> simd.Shape:
    """The tile: a vector wide."""
    return simd.shapes()[-1]


def share(parts: Sequence[Part], group: int, channels: int) -> int:
    """How many threads the work is worth."""
    return max(1, min(thread_pool.threads(), 4 * seen_by(parts) * group * channels // GRAIN))

"""Sums over places, by tiles: the gradient of a kernel, and the product of two matrices of which the first is
transposed.

With the numbers k of a row of x and n of a row of dy, where place m sees by tap t the row pixel(t, m) of x:

    dw[t, k, n] = sum over m of x[pixel(t, m), k] * dy[m, n]

A tile (``simd.py``) holds R numbers k times L numbers n of a tap, while the places go by. They do so in
blocks of a few hundred: of a block the rows of x are packed R numbers at a time, and those of dy L at a time,
so that both stay in the cache of the core, and lie side by side. What a tap sees of a block is a list of
pairs, row of x and row of dy: what lies outside a picture is in no list.

Each thread has tiles of dw of its own, or, where these are few, sums of some blocks, which are added up at
the end: either way they are the same to the bit on any number of threads.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from minires.backend import parallel, simd, thread_pool
from minires.backend.arrays import Array
from minires.backend.kernels import kernel
from minires.backend.simd import Size, add, beside, multiply_add, spread, store
from minires.backend.tile_products import GRAIN, Sizes

PLACES = 256  # in a block
_PANELS = 1 << 16  # numbers of dy that are packed together, a quarter of a megabyte
_LONG = 256  # numbers in a row
_SUMMED = 64  # blocks that are summed by themselves, as one long sum of float32 rounds more
_FEW = 32  # tiles of dw; where there are fewer, threads have blocks of their own


class Blocks(NamedTuple):
    """Blocks of places: each is ``rows`` (blocks, 4), the first row of x and how many, the first row of dy
    and how many; tap t of block i sees the pairs start[i, t] .. start[i, t + 1] of ``pairs`` (2, many), rows
    of x and of dy counted from the first. For several ``times``, x_step and y_step rows on each time, from
    the rows ``x`` and ``y`` on."""

    rows: Array
    start: Array
    pairs: Array
    x: int = 0
    y: int = 0
    times: int = 1
    x_step: int = 0
    y_step: int = 0


@kernel(
    x="flat (X)", dy="flat (Y)", dw="out flat (W)", rows="flat int64 (B, 4)", starts="flat int32 (B, T)",
    pairs="flat int32 (2, E)", zeros="flat (>= width)", x_room="out flat (P)", y_room="out flat (Q)",
    where="depth > 0 and outputs > 0 and few > 0 and width > 0 and width % len(columns) == 0 and T > 1"
    " and times > 0 and 0 <= start <= stop and 0 <= first <= last <= -(-outputs // width)"
    " and min(x_at, y_at, x_step, y_step, x_row, y_row, x_group, y_group, w_group, tap, row) >= 0"
    " and (group := max(stop - 1, 0) // ((T - 1) * -(-depth // len(height)))) >= 0"
    " and (x_at + (times - 1) * x_step) * x_row + group * x_group"
    " + (-(-depth // len(height)) * len(height) if is_direct else depth) <= X"
    " and (y_at + (times - 1) * y_step) * y_row + group * y_group + outputs <= Y"
    " and group * w_group + (T - 2) * tap + (depth - 1) * row + outputs <= W"
    " and width <= Q and (is_direct or (-(-stop // (T - 1)) - start // (T - 1)) * len(height) + width <= P)",
)  # fmt: skip
def _sums_numba(
    height: Size, columns: Size, x: Array, dy: Array, dw: Array, is_first: bool, rows: Array, starts: Array,
    pairs: Array, zeros: Array, x_room: Array, y_room: Array, x_at: int, y_at: int, times: int, x_step: int,
    y_step: int, x_row: int, y_row: int, is_direct: bool, depth: int, outputs: int, x_group: int,
    y_group: int, w_group: int, tap: int, row: int, width: int, few: int, start: int, stop: int, first: int,
    last: int,
) -> None:  # fmt: skip
    """The units start..stop of dw, all taps of R numbers k, all of these of a group, all groups; and the
    panels first..last of each."""
    high, taps, one = len(height), starts.shape[1] - 1, (0,)
    tiles, lanes = (depth + high - 1) // high, width // len(columns)
    source, apart = (x, x_row) if is_direct else (x_room, high)
    u0, u1 = start // taps, (stop + taps - 1) // taps  # units of R numbers of each row of x
    for time in range(times):
        for block in range(len(rows)):
            x_first, x_count = x_at + time * x_step + rows[block, 0], rows[block, 1]
            y_first, y_count = y_at + time * y_step + rows[block, 2], rows[block, 3]
            x_far, y_far = x_count * high + lanes, y_count * width
            for group in range(u0 // tiles, (u1 + tiles - 1) // tiles):
                here = group * tiles
                ua, ub = max(u0, here), min(u1, here + tiles)
                for m in range(0 if is_direct else x_count):  # as they lie, so that reading is fast
                    at, to = (x_first + m) * x_row + group * x_group + (ua - here) * high, m * high
                    for _ in range(ub - ua):
                        for r in range(0, high, lanes):
                            if at + r + lanes <= x.size:  # too many are copied, and the next go over them
                                numbers = spread(one, one, x, at + r)
                                store(numbers, beside(one, x_room, to + r, 0), 0, 1, lanes)
                            else:
                                for i in range(r, min(high, x.size - at)):
                                    x_room[to + i] = x[at + i]
                        at += high
                        to += x_far
                for p0 in range(first, last, few):
                    p1 = min(p0 + few, last)
                    for m in range(y_count):
                        at, to = (y_first + m) * y_row + group * y_group + p0 * width, m * width
                        for p in range(p0, p1):
                            if at + width <= dy.size:
                                store(spread(one, columns, dy, at), beside(one, y_room, to, 0), 0, 1, width)
                            else:
                                for i in range(outputs - p * width):
                                    y_room[to + i] = dy[at + i]
                            at += width
                            to += y_far
                    for p in range(p0, p1):
                        n, panel = p * width, (p - p0) * y_far
                        for unit in range(ua, ub):
                            k, at = (unit - here) * high, (unit - ua) * x_far
                            if is_direct:
                                at = x_first * x_row + group * x_group + k
                            for t in range(max(0, start - unit * taps), min(taps, stop - unit * taps)):
                                tile = spread(height, columns, zeros, 0)
                                for e in range(starts[block, t], starts[block, t + 1]):
                                    lines = beside(height, source, at + pairs[0, e] * apart, 1)
                                    tile = multiply_add(tile, lines, 0, y_room, panel + pairs[1, e] * width)
                                lines = beside(height, dw, t * tap + k * row + group * w_group + n, row)
                                if is_first and time == 0 and block == 0:
                                    store(tile, lines, 0, depth - k, outputs - n)
                                else:
                                    add(tile, lines, 0, depth - k, outputs - n)


def sums_over_places(
    x: Array, dy: Array, dw: Array, blocks: Sequence[Blocks], sizes: Sizes, x_row: int, y_row: int, *,
    grows: bool = False, tail: int = 0,
) -> None:  # fmt: skip
    """Write dw from x and dy, arrays without gaps whose rows are ``x_row`` and ``y_row`` numbers apart.

    sizes: those of ``products`` for a w such as dw.
    grows: add to what is in dw.
    tail: how many numbers of x there are behind the last row, which may be read.
    """
    tile = simd.square(sizes.outputs, sizes.depth, x.dtype)
    high, width = len(tile[0]), simd.width(tile, x.dtype)
    taps, zeros = blocks[0].start.shape[1] - 1, np.zeros(width, x.dtype)
    units, panels = sizes.groups * -(-sizes.depth // high) * taps, -(-sizes.outputs // width)
    x, dy, dw = x.reshape(-1), dy.reshape(-1), dw.reshape(-1)
    longest, highest = (max(int(part.rows[:, i].max()) for part in blocks) for i in (1, 3))
    macs = sum(part.times * part.pairs.shape[1] for part in blocks) * math.prod(sizes[:3])
    share = max(1, min(thread_pool.threads(), macs // GRAIN))
    few = max(1, _PANELS // (highest * width))
    # What only one tap reads is read where it lies, unless rows are so long that their parts are read slowly,
    # or the last tile would read beyond the end.
    is_direct = tail >= high or (taps == 1 and sizes.depth <= _LONG and sizes.depth % high == 0)

    def run(
        some: Sequence[Blocks], total: Array, start: int, stop: int, first: int, last: int, onto: bool = False
    ) -> None:
        units_here = 0 if is_direct else -(-stop // taps) - start // taps
        x_room = np.empty((longest * high + width) * units_here + width, x.dtype)
        y_room = np.empty(min(few, last - first) * highest * width, x.dtype)
        for i, (rows, starts, pairs, *at) in enumerate(some if start < stop and first < last else ()):
            _sums_numba(
                *tile, x, dy, total, i == 0 and not onto, rows, starts, pairs, zeros, x_room, y_room, *at,
                x_row, y_row, is_direct, sizes.depth, sizes.outputs, *sizes[3:], width, few, start, stop,
                first, last,
            )  # fmt: skip

    if units * panels < _FEW and not grows:
        lists = _few_at_a_time(blocks, _SUMMED // 4)
        totals = np.empty((len(lists), dw.size), x.dtype)

        def chunk(begin: int, end: int) -> None:
            for number in range(begin, end):
                run(lists[number], totals[number], 0, units, 0, panels)

        parallel.parallel_for(chunk, len(lists), -(-len(lists) // share))
        dw[...] = totals.sum(axis=0)
        return
    by_panel = sizes.outputs > sizes.depth and panels >= share  # each thread packs its part of the wider side
    for number, some in enumerate(_few_at_a_time(blocks, _SUMMED)):
        total, all_of_it = np.empty_like(dw) if number else dw, panels if by_panel else units
        calls = []
        for i, j in parallel.split(0, all_of_it, min(share, all_of_it)):
            start, stop, first, last = (0, units, i, j) if by_panel else (i, j, 0, panels)
            onto = grows and not number
            calls.append(functools.partial(run, some, total, start, stop, first, last, onto))
        parallel.parallel_calls(calls)
        if number:
            parallel.add(dw, total, out=dw)


def _few_at_a_time(blocks: Sequence[Blocks], few: int) -> list[list[Blocks]]:
    """The same, cut into lists of about ``few`` blocks."""
    lists: list[list[Blocks]] = [[]]
    room = few
    for part in blocks:
        done = 0
        while done < part.times:
            if room <= 0:
                lists.append([])
                room = few
            now = min(part.times - done, max(1, room // len(part.rows)))
            x, y = part.x + done * part.x_step, part.y + done * part.y_step
            lists[-1].append(part._replace(x=x, y=y, times=now))
            done, room = done + now, room - now * len(part.rows)
    return lists


@functools.lru_cache(maxsize=64)
def rows_of(count: int) -> tuple[Blocks, ...]:
    """The rows of two matrices, each of which meets that of the same number in the other."""
    parts, whole = [], count // PLACES * PLACES
    for first, last in ((0, whole), (whole, count)):
        if first < last:
            size = min(PLACES, last - first)
            rows, start = np.array([[0, size, 0, size]]), np.array([[0, size]], np.int32)
            pairs = np.tile(np.arange(size, dtype=np.int32), (2, 1))
            parts.append(Blocks(rows, start, pairs, first, first, (last - first) // size, size, size))
    return tuple(parts)

"""Sums over places, by tiles: the gradient of a kernel, and the product of two matrices of which the first is
transposed.

With the numbers k of a row of x and n of a row of dy, where place m sees by tap t the row pixel(t, m) of x:

    dw[t, k, n] = sum over m of x[pixel(t, m), k] * dy[m, n]

A tile (``simd.py``) holds R numbers k times L numbers n of a tap, while the places go by. They do so in
blocks of a few hundred, small enough for the cache of the core: all tiles read one block, where it lies, and
while they do so the next is fetched. What a tap sees of a block is a list of *runs*, of places that follow
each other evenly, as do the rows that they see: what lies outside a picture is in no run.

Each thread has tiles of dw of its own, or, where these are few, sums of some blocks, which are added up at
the end: either way they are the same to the bit on any number of threads.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from minires.backend import parallel, simd, thread_pool
from minires.backend.arrays import Array, empty
from minires.backend.kernels import kernel
from minires.backend.simd import Size, add, beside, expect, fetch, multiply_add, spread, store
from minires.backend.tile_products import GRAIN, Sizes

PLACES = 256  # in a block
_SUMMED = 64  # blocks that are summed by themselves, as one long sum of float32 rounds more
_FEW = 32  # tiles of dw; where there are fewer, threads have blocks of their own


class Blocks(NamedTuple):
    """Blocks of places: each is ``rows`` (blocks, 4), the first row of x and how many, the first row of dy
    and how many. Tap t of block i sees the runs start[i, t] .. start[i, t + 1] of ``runs`` (3, many): the
    first row of x and of dy, counted from those of the block, and how many places follow, each ``x_apart``
    and ``y_apart`` rows further. All this is so several ``times``, x_step and y_step rows on each time, from
    the rows ``x`` and ``y`` on."""

    rows: Array
    start: Array
    runs: Array
    x_apart: int = 1
    y_apart: int = 1
    x: int = 0
    y: int = 0
    times: int = 1
    x_step: int = 0
    y_step: int = 0


@kernel(
    x="flat (X)", dy="flat (Y)", dw="out flat (W)", rows="flat int64 (B, 4)", starts="flat int32 (B, T)",
    runs="flat int32 (3, E)", zeros="flat (>= width)", x_room="out flat (P)", y_room="out flat (Q)",
    where="depth > 0 and outputs > 0 and width == len(columns) * lanes_of(dtype_) > 0 and T > 1"
    " and times > 0 and B > 0 and 0 <= start < stop and 0 <= first < last <= -(-outputs // width)"
    " and min(x_at, y_at, x_step, y_step, x_row, y_row, x_group, y_group, w_group, tap, row) >= 0"
    " and (group := (stop - 1) // ((T - 1) * -(-depth // len(height)))) >= 0"
    " and (x_at + (times - 1) * x_step) * x_row + group * x_group + depth <= X"
    " and (y_at + (times - 1) * y_step) * y_row + group * y_group + outputs <= Y"
    " and group * w_group + (T - 2) * tap + (depth - 1) * row + outputs <= W"
    " and (rows[:, 1].max() - 1) * x_row + group * x_group + -(-depth // len(height)) * len(height) <= P"
    " and (rows[:, 3].max() - 1) * y_row + group * y_group + last * width <= Q",
)  # fmt: skip
def sums_numba(
    height: Size, columns: Size, x: Array, dy: Array, dw: Array, is_first: bool, rows: Array, starts: Array,
    runs: Array, zeros: Array, x_room: Array, y_room: Array, x_apart: int, y_apart: int, x_at: int, y_at: int,
    times: int, x_step: int, y_step: int, x_row: int, y_row: int, depth: int, outputs: int, x_group: int,
    y_group: int, w_group: int, tap: int, row: int, width: int, start: int, stop: int, first: int, last: int,
) -> None:  # fmt: skip
    """The units start..stop of dw, all taps of R numbers k, all of these of a group, all groups; and the
    panels first..last of each."""
    high, taps = len(height), starts.shape[1] - 1
    tiles, line = (depth + high - 1) // high, 64 // x.itemsize
    u0, u1 = start // taps, (stop + taps - 1) // taps  # units of R numbers of each row of x
    g0, g1 = u0 // tiles, (u1 + tiles - 1) // tiles
    dx, dn = x_apart * x_row, y_apart * y_row
    # What is read of a row, of x and of dy.
    x_begin, x_end = g0 * x_group + u0 % tiles * high, (g1 - 1) * x_group + ((u1 - 1) % tiles + 1) * high
    y_begin, y_end = g0 * y_group + first * width, (g1 - 1) * y_group + last * width
    for time in range(times):
        for block in range(len(rows)):
            x_from = (x_at + time * x_step + rows[block, 0]) * x_row
            y_from = (y_at + time * y_step + rows[block, 2]) * y_row
            xs, x_here, ys, y_here = x, x_from, dy, y_from
            if x_from + (rows[block, 1] - 1) * x_row + x_end > x.size:  # tiles would read beyond the end
                for i in range(x.size - x_from):
                    x_room[i] = x[x_from + i]
                xs, x_here = x_room, 0
            if y_from + (rows[block, 3] - 1) * y_row + y_end > dy.size:
                for i in range(dy.size - y_from):
                    y_room[i] = dy[y_from + i]
                ys, y_here = y_room, 0
            after, later = (block + 1, time) if block + 1 < len(rows) else (0, time + 1)
            x_left, y_left = (rows[after, 1], rows[after, 3]) if later < times else (0, 0)
            x_next = (x_at + later * x_step + rows[after, 0]) * x_row + x_begin
            y_next = (y_at + later * y_step + rows[after, 2]) * y_row + y_begin
            x_line_end, y_line_end = x_next + x_end - x_begin, y_next + y_end - y_begin
            for group in range(g0, g1):
                here = group * tiles
                ua, ub = max(u0, here), min(u1, here + tiles)
                for p in range(first, last):
                    n = p * width
                    for unit in range(ua, ub):
                        k = (unit - here) * high
                        for t in range(max(0, start - unit * taps), min(taps, stop - unit * taps)):
                            target = t * tap + k * row + group * w_group + n
                            expect(columns, beside(height, dw, target, row), 0)
                            tile = spread(height, columns, zeros, 0)
                            x_unit, y_unit = x_here + group * x_group + k, y_here + group * y_group + n
                            for e in range(starts[block, t], starts[block, t + 1]):
                                at = x_unit + runs[0, e] * x_row
                                o = y_unit + runs[1, e] * y_row
                                for _ in range(runs[2, e] // 4):
                                    tile = multiply_add(tile, beside(height, xs, at, 1), 0, ys, o)
                                    lines = beside(height, xs, at + dx, 1)
                                    tile = multiply_add(tile, lines, 0, ys, o + dn)
                                    lines = beside(height, xs, at + 2 * dx, 1)
                                    tile = multiply_add(tile, lines, 0, ys, o + 2 * dn)
                                    lines = beside(height, xs, at + 3 * dx, 1)
                                    tile = multiply_add(tile, lines, 0, ys, o + 3 * dn)
                                    at += 4 * dx
                                    o += 4 * dn
                                    if x_left > 0:
                                        fetch(x, x_next)
                                        x_next += line
                                        if x_next >= x_line_end:
                                            x_left -= 1
                                            x_line_end += x_row
                                            x_next = x_line_end + x_begin - x_end
                                    elif y_left > 0:
                                        fetch(dy, y_next)
                                        y_next += line
                                        if y_next >= y_line_end:
                                            y_left -= 1
                                            y_line_end += y_row
                                            y_next = y_line_end + y_begin - y_end
                                for _ in range(runs[2, e] % 4):
                                    tile = multiply_add(tile, beside(height, xs, at, 1), 0, ys, o)
                                    at += dx
                                    o += dn
                            lines = beside(height, dw, target, row)
                            if is_first and time == 0 and block == 0:
                                store(tile, lines, 0, depth - k, outputs - n)
                            else:
                                add(tile, lines, 0, depth - k, outputs - n)


class Task(NamedTuple):
    """How sums are shared out: ``lists`` of blocks that are summed by themselves and added up at the end, in
    their order; the tile and its number among all; of dw the ``units`` (R numbers of a tap) and ``panels``.
    If ``by_list``, threads take the lists; else each takes its part of the panels, or of the units, of one
    list after the other."""

    tile: simd.Shape
    width: int
    units: int
    panels: int
    by_panel: bool
    by_list: bool
    threads: int
    lists: list[list[Blocks]]

    @property
    def kind(self) -> int:
        return simd.squares().index(self.tile)

    @property
    def pieces(self) -> int:
        """In how many pieces the panels, or the units, of a list are summed."""
        if self.by_list:
            return min(self.units, -(-self.threads // len(self.lists)))
        return min(self.threads, self.panels if self.by_panel else self.units)

    def x_room(self, sizes: Sizes, row: int) -> int:
        """The numbers of the longest block of x, of all groups, and of what tiles read beyond."""
        longest = max(int(part.rows[:, 1].max()) for some in self.lists for part in some)
        high = len(self.tile[0])
        return (longest - 1) * row + sizes.groups * sizes.x_group + -(-sizes.depth // high) * high

    def y_room(self, sizes: Sizes, row: int) -> int:
        longest = max(int(part.rows[:, 3].max()) for some in self.lists for part in some)
        return (longest - 1) * row + sizes.groups * sizes.y_group + self.panels * self.width


def task(blocks: Sequence[Blocks], sizes: Sizes, dtype: Any, *, grows: bool = False) -> Task:
    """How the sums over blocks are best taken. What is added up by itself does not hang on the number of
    threads, so that dw is the same on any."""
    tile = simd.square(sizes.outputs, sizes.depth, dtype)
    width = simd.width(tile, dtype)
    units = sizes.groups * -(-sizes.depth // len(tile[0])) * (blocks[0].start.shape[1] - 1)
    panels = -(-sizes.outputs // width)
    macs = sum(part.times * int(part.runs[2].sum()) for part in blocks) * math.prod(sizes[:3])
    threads = max(1, min(thread_pool.threads(), macs // GRAIN))
    by_list = units * panels < _FEW and not grows
    lists = _few_at_a_time(blocks, _SUMMED // 4 if by_list else _SUMMED)
    by_panel = not by_list and sizes.outputs > sizes.depth and panels >= threads  # of the wider side
    return Task(tile, width, units, panels, by_panel, by_list, threads, lists)


def sums_over_places(
    x: Array, dy: Array, dw: Array, blocks: Sequence[Blocks], sizes: Sizes, x_row: int, y_row: int, *,
    grows: bool = False,
) -> None:  # fmt: skip
    """Write dw from x and dy, arrays without gaps whose rows are ``x_row`` and ``y_row`` numbers apart.

    sizes: those of ``products`` for a w such as dw.
    grows: add to what is in dw.
    """
    shared = task(blocks, sizes, x.dtype, grows=grows)
    x_long, y_long = shared.x_room(sizes, x_row), shared.y_room(sizes, y_row)
    zeros, x, dy, dw = np.zeros(shared.width, x.dtype), x.reshape(-1), dy.reshape(-1), dw.reshape(-1)

    def run(
        some: Sequence[Blocks], total: Array, onto: bool, start: int, stop: int, first: int, last: int
    ) -> None:
        x_room, y_room = empty((x_long,), x.dtype), empty((y_long,), x.dtype)
        for i, (rows, starts, runs, *at) in enumerate(some):
            sums_numba(
                *shared.tile, x, dy, total, i == 0 and not onto, rows, starts, runs, zeros, x_room, y_room,
                *at, x_row, y_row, sizes.depth, sizes.outputs, *sizes[3:], shared.width, start, stop, first,
                last,
            )  # fmt: skip

    def calls(some: Sequence[Blocks], total: Array, onto: bool = False) -> list[Callable[[], None]]:
        all_of_it = shared.panels if shared.by_panel else shared.units
        parts = parallel.split(0, all_of_it, shared.pieces)
        where = [(0, shared.units, i, j) if shared.by_panel else (i, j, 0, shared.panels) for i, j in parts]
        return [functools.partial(run, some, total, onto, *part) for part in where]

    if shared.by_list:
        totals = empty((len(shared.lists), dw.size), x.dtype)
        pairs = zip(shared.lists, totals, strict=True)
        parallel.parallel_calls([call for some, total in pairs for call in calls(some, total)])
        dw[...] = 0
        for total in totals:  # one after the other, of a single number, too, of which NumPy would add pairs
            dw += total
        return
    for number, some in enumerate(shared.lists):
        total = np.empty_like(dw) if number else dw
        parallel.parallel_calls(calls(some, total, grows and not number))
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
            rows, start = np.array([[0, size, 0, size]]), np.array([[0, 1]], np.int32)
            runs, times = np.array([[0], [0], [size]], np.int32), (last - first) // size
            parts.append(Blocks(rows, start, runs, 1, 1, first, first, times, size, size))
    return tuple(parts)

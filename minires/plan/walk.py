"""The program of a plan, and how threads walk through it.

A program is a table of whole numbers, one line for each step. A line says what is to be done (its first
number), in how many pieces, and where in one large array the numbers lie that are read and written. One
compiled function walks down the table on every thread. At a line each thread takes pieces until none is left,
then waits until those that others took are done, and goes on: no Python and no lock between two layers.

Nobody depends on how many threads there are: a thread that comes late finds the lines done, and one alone
does all pieces itself.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from minires.backend import Array, kernel
from minires.backend.atomics import fetch_add, look
from minires.backend.kernels import sched_yield
from minires.backend.simd import Shape, Size
from minires.backend.tile_groups import GROUPS, group_products_numba
from minires.backend.tile_products import products_numba
from minires.ops.batch_norm.numba_kernels import normalize_numba
from minires.ops.conv2d.winograd_kernels import convolve_numba


class Do(IntEnum):
    """What a line asks for. ``minires.plan.program`` writes the rest of it, in this order."""

    PRODUCTS = 0  # convolution or dense layer: see _products
    WINOGRAD = 1  # convolution by Winograd's way
    COPY = 2  # (n, h, w, c) numbers from one place to another, each with strides of its own
    MAX_POOL = 3
    AVG_POOL = 4
    GLOBAL_AVG = 5
    NORMALIZE = 6  # batch norm with constants
    ADD = 7  # relu(a + b), each of them where asked
    GATE = 8  # each channel of each picture times a number, plus what is added
    SIGMOID = 9
    GROUPS = 10  # convolution of narrow groups


COLUMNS = 32  # numbers in a line
_SPINS = 4000  # looks at a counter before a thread gives way to others


@kernel(
    r="flat int64 (_)", floats="out flat (F)", offsets="flat int32 (I)", sees="flat uint8 (S)",
    every="flat int64 (T)",
)  # fmt: skip
def _products(
    r: Array, piece: int, floats: Array, offsets: Array, sees: Array, every: Array, rows: Size, columns: Size
) -> None:
    """0: what, pieces, tile, x, panels, bias, added or -1, y, 8: table, its length, out, taps, sees, tiles,
    14: relu, places, x step, y step, depth, outputs, x group, y group, 22: width, all tiles, all panels,
    whether panels are shared out, numbers of the panels."""
    total = r[24] if r[25] else r[23]
    start, stop = total * piece // r[1], total * (piece + 1) // r[1]
    first, last = 0, r[24]
    if r[25]:
        first, last, start, stop = start, stop, 0, r[23]
    nothing, zero, no = floats[:0], np.int64(0), np.bool_(False)  # Numba compiles anew for a literal
    added = floats[r[6] :] if r[6] >= 0 else nothing
    products_numba(
        rows, columns, floats[r[3] :], nothing, floats[r[4] : r[4] + r[26]], floats[r[5] :], added,
        floats[r[7] :], offsets[r[8] : r[8] + r[11] * r[9]].reshape(r[11], r[9]), offsets[r[10] :],
        every[: r[11]], sees[r[12] : r[12] + r[11] * r[13]].reshape(r[11], r[13]), floats, nothing,
        r[14] != 0, no, r[15], r[16], r[17], r[18], r[19], r[20], r[21], zero, zero, zero, r[22], start,
        stop, first, last,
    )  # fmt: skip


@kernel(r="flat int64 (_)", floats="out flat (F)", offsets="flat int32 (I)")
def _winograd(r: Array, piece: int, floats: Array, offsets: Array, rows: Size, columns: Size) -> None:
    """2: tile, x, u, bias or -1, added or -1, y, relu; 9: blocks, how many, lines, how many; 13: h, w, c,
    out h, w, c, left, width; 21: room, its numbers."""
    nothing = floats[:0]
    convolve_numba(
        rows, columns, floats[r[3] :], floats[r[4] :], floats[r[5] : r[5] + r[18]] if r[5] >= 0 else nothing,
        floats[r[6] :] if r[6] >= 0 else nothing, floats[r[7] :], r[8] != 0,
        offsets[r[9] : r[9] + 4 * r[10]].reshape(r[10], 4), offsets[r[11] : r[11] + r[12]], floats,
        floats[r[21] + piece * r[22] : r[21] + (piece + 1) * r[22]], r[13], r[14], r[15], r[16], r[17],
        r[18], r[19], r[20], r[10] * piece // r[1], r[10] * (piece + 1) // r[1],
    )  # fmt: skip


@kernel(
    r="flat int64 (_)", floats="out flat (F)", offsets="flat int32 (I)", sees="flat uint8 (S)",
    every="flat int64 (T)",
)  # fmt: skip
def _groups(
    r: Array, piece: int, floats: Array, offsets: Array, sees: Array, every: Array, tile: Shape, group: Size
) -> None:  # fmt: skip
    """2: channels of a group, x, w, bias, added or -1, y; 8: table, its length, out, taps, sees, tiles;
    14: relu, places, x step, y step, channels, lanes, all tiles."""
    group_products_numba(
        tile[0], tile[1], group, floats[r[3] :], floats[r[4] :], floats[r[5] :],
        floats[r[6] :] if r[6] >= 0 else floats[:0], floats[r[7] :],
        offsets[r[8] : r[8] + r[11] * r[9]].reshape(r[11], r[9]), offsets[r[10] :], every[: r[11]],
        sees[r[12] : r[12] + r[11] * r[13]].reshape(r[11], r[13]), floats, r[14] != 0, r[15], r[16], r[17],
        r[18], r[19], r[20] * piece // r[1], r[20] * (piece + 1) // r[1],
    )  # fmt: skip


@kernel(r="flat int64 (_)", floats="out flat (F)")
def _copy(r: Array, piece: int, floats: Array) -> None:
    """2: x, its strides of n, h, w; 6: y, its strides; 10: n, h, w, c."""
    lines = r[10] * r[11]
    for line in range(lines * piece // r[1], lines * (piece + 1) // r[1]):
        n, i = line // r[11], line % r[11]
        for j in range(r[12]):
            at, to = r[2] + n * r[3] + i * r[4] + j * r[5], r[6] + n * r[7] + i * r[8] + j * r[9]
            source, target = floats[at : at + r[13]], floats[to : to + r[13]]
            for c in range(r[13]):
                target[c] = source[c]


@kernel(r="flat int64 (_)", floats="out flat (F)")
def _pool(r: Array, piece: int, floats: Array, is_max: bool) -> None:
    """2: x, y, n, h, w, c; 8: out h, w, size, stride, dilation, top, left, whether the border is counted;
    19: room for c sums of a piece, of a column of the window."""
    h, w, c, oh, ow, kh, kw = r[5], r[6], r[7], r[8], r[9], r[10], r[11]
    zero = floats.dtype.type(0)
    lines = r[4] * oh
    for line in range(lines * piece // r[1], lines * (piece + 1) // r[1]):
        n, i = line // oh, line % oh
        for j in range(ow):
            to = r[3] + (line * ow + j) * c
            target = floats[to : to + c]
            seen_h = 0
            for k in range(kh):
                seen_h += 0 <= i * r[12] + k * r[14] - r[16] < h
            seen_w = 0
            for k in range(kw):
                seen_w += 0 <= j * r[13] + k * r[15] - r[17] < w
            for channel in range(c):
                target[channel] = -np.inf if is_max else zero
            if is_max:
                for a in range(kh):
                    y = i * r[12] + a * r[14] - r[16]
                    for b in range(kw):
                        x = j * r[13] + b * r[15] - r[17]
                        if 0 <= y < h and 0 <= x < w:
                            at = r[2] + ((n * h + y) * w + x) * c
                            pixel = floats[at : at + c]
                            for channel in range(c):
                                value, best = pixel[channel], target[channel]
                                target[channel] = value if value > best or np.isnan(value) else best
            else:
                count = floats.dtype.type(kh * kw if r[18] else seen_h * seen_w)
                column = floats[r[19] + piece * c : r[19] + (piece + 1) * c]
                for b in range(kw):
                    x = j * r[13] + b * r[15] - r[17]
                    column[:] = zero
                    for a in range(kh):
                        y = i * r[12] + a * r[14] - r[16]
                        if 0 <= y < h and 0 <= x < w:
                            at = r[2] + ((n * h + y) * w + x) * c
                            pixel = floats[at : at + c]
                            for channel in range(c):
                                column[channel] += pixel[channel]
                    for channel in range(c):
                        target[channel] += column[channel]
                for channel in range(c):
                    target[channel] = target[channel] / count


@kernel(r="flat int64 (_)", floats="out flat (F)", sums="out flat float64 (D)")
def _global_avg(r: Array, piece: int, floats: Array, sums: Array) -> None:
    """2: x, y, n, places, c. Added up in float64; ``sums`` has room for c."""
    for n in range(r[4] * piece // r[1], r[4] * (piece + 1) // r[1]):
        places, c = r[5], r[6]
        total = sums[piece * c : (piece + 1) * c]
        total[:] = 0
        for place in range(places):
            at = r[2] + (n * places + place) * c
            pixel = floats[at : at + c]
            for channel in range(c):
                total[channel] += pixel[channel]
        target = floats[r[3] + n * c : r[3] + (n + 1) * c]
        for channel in range(c):
            target[channel] = total[channel] / places


@kernel(r="flat int64 (_)", floats="out flat (F)")
def _normalize(r: Array, piece: int, floats: Array) -> None:
    """2: x, its row; 4: y, rows, c; 7: scale, mean, beta, added or -1, relu."""
    m, c = r[5], r[6]
    x, y = floats[r[2] : r[2] + m * r[3]].reshape(m, r[3]), floats[r[4] : r[4] + m * c].reshape(m, c)
    added = floats[r[10] : r[10] + m * c].reshape(m, c) if r[10] >= 0 else floats[:0].reshape(0, c)
    normalize_numba(
        x, floats[r[7] : r[7] + c], floats[r[8] : r[8] + c], floats[r[9] : r[9] + c], added, r[11] != 0, y,
        m * piece // r[1], m * (piece + 1) // r[1],
    )  # fmt: skip


@kernel(r="flat int64 (_)", floats="out flat (F)")
def add_numba(r: Array, piece: int, floats: Array) -> None:
    """2: a, b or -1, y, count, relu."""
    first, last = r[5] * piece // r[1], r[5] * (piece + 1) // r[1]
    a, y, zero = floats[r[2] + first : r[2] + last], floats[r[4] + first : r[4] + last], floats.dtype.type(0)
    b = floats[r[3] + first : r[3] + last] if r[3] >= 0 else a
    for i in range(last - first):
        value = a[i] + b[i] if r[3] >= 0 else a[i]
        y[i] = zero if r[6] and value < zero else value  # NaN stays NaN


@kernel(r="flat int64 (_)", floats="out flat (F)")
def gate_numba(r: Array, piece: int, floats: Array) -> None:
    """2: x, gate, y, n, places, c, added or -1, relu."""
    rows, places, c, zero = r[5] * r[6], r[6], r[7], floats.dtype.type(0)
    for m in range(rows * piece // r[1], rows * (piece + 1) // r[1]):
        x, y = floats[r[2] + m * c : r[2] + (m + 1) * c], floats[r[4] + m * c : r[4] + (m + 1) * c]
        gate = floats[r[3] + m // places * c : r[3] + (m // places + 1) * c]
        if r[8] >= 0:
            added = floats[r[8] + m * c : r[8] + (m + 1) * c]
            for channel in range(c):
                value = x[channel] * gate[channel] + added[channel]
                y[channel] = zero if r[9] and value < zero else value  # NaN stays NaN
        else:
            for channel in range(c):
                value = x[channel] * gate[channel]
                y[channel] = zero if r[9] and value < zero else value


@kernel(r="flat int64 (_)", floats="out flat (F)")
def _sigmoid(r: Array, piece: int, floats: Array) -> None:
    """2: x, y, count."""
    one = floats.dtype.type(1)
    for i in range(r[4] * piece // r[1], r[4] * (piece + 1) // r[1]):
        x = floats[r[2] + i]
        e = np.exp(-abs(x))
        floats[r[3] + i] = (one if x >= 0 else e) / (one + e)


@kernel(
    program="flat int64 (P, 32)", floats="out flat (F)", offsets="flat int32 (I)", sees="flat uint8 (S)",
    every="flat int64 (T)", sums="out flat float64 (D)", counters="out flat int64 (2 * P)",
)  # fmt: skip
def walk_numba(
    program: Array, floats: Array, offsets: Array, sees: Array, every: Array, sums: Array, counters: Array,
    tiles: tuple[Shape, Shape, Shape],
) -> None:  # fmt: skip
    """Walk down the program: each thread calls this with the same counters, zeros at first."""
    for i in range(len(program)):
        r = program[i]
        while True:
            piece = fetch_add(counters, 2 * i, 1)
            if piece >= r[1]:
                break
            what = r[0]
            if what == 0:
                if r[2] == 0:
                    _products(r, piece, floats, offsets, sees, every, tiles[0][0], tiles[0][1])
                elif r[2] == 1:
                    _products(r, piece, floats, offsets, sees, every, tiles[1][0], tiles[1][1])
                else:
                    _products(r, piece, floats, offsets, sees, every, tiles[2][0], tiles[2][1])
            elif what == 1:
                if r[2] == 0:
                    _winograd(r, piece, floats, offsets, tiles[0][0], tiles[0][1])
                elif r[2] == 1:
                    _winograd(r, piece, floats, offsets, tiles[1][0], tiles[1][1])
                else:
                    _winograd(r, piece, floats, offsets, tiles[2][0], tiles[2][1])
            elif what == 2:
                _copy(r, piece, floats)
            elif what == 3 or what == 4:
                _pool(r, piece, floats, what == 3)
            elif what == 5:
                _global_avg(r, piece, floats, sums)
            elif what == 6:
                _normalize(r, piece, floats)
            elif what == 7:
                add_numba(r, piece, floats)
            elif what == 8:
                gate_numba(r, piece, floats)
            elif what == 9:
                _sigmoid(r, piece, floats)
            elif r[2] == 1:
                _groups(r, piece, floats, offsets, sees, every, tiles[2], GROUPS[0])
            elif r[2] == 2:
                _groups(r, piece, floats, offsets, sees, every, tiles[2], GROUPS[1])
            elif r[2] == 4:
                _groups(r, piece, floats, offsets, sees, every, tiles[2], GROUPS[2])
            else:
                _groups(r, piece, floats, offsets, sees, every, tiles[2], GROUPS[3])
            fetch_add(counters, 2 * i + 1, 1)
        spins = 0
        while look(counters, 2 * i + 1) < r[1]:
            spins += 1
            if spins > _SPINS:
                sched_yield()

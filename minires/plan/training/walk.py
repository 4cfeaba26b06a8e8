"""The program of a planned training step, and how threads walk through it.

As in ``walk.py``: a line for each step, done in pieces by all threads. Three things are new. What lies
outside the plan's own array, a parameter or its gradient, has its address in the line in the place of an
offset. Nobody waits for a line that has no ``waits``: those that follow are begun at once, and the next that
has it waits for all before. And each thread has rooms of its own, for what a line packs or copies.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from minires.backend import Array, kernel
from minires.backend.atomics import fetch_add, look
from minires.backend.kernels import sched_yield
from minires.backend.simd import Shape
from minires.backend.tile_groups import GROUPS, sums_shape
from minires.ops.batch_norm.numba_kernels import (
    gradient_numba,
    gradient_sums_numba,
    moments_numba,
    normalize_numba,
)
from minires.ops.conv2d.winograd import square
from minires.plan.training.convolution_walk import (
    correlate_line,
    group_sums_line,
    groups_line,
    numbers_of,
    panels_line,
    products_line,
    sums_line,
    winograd_line,
)
from minires.plan.walk import add_numba, gate_numba


class Do(IntEnum):
    """What a line asks for. ``minires.plan.training.program`` writes the rest of it, in this order."""

    PRODUCTS = 0  # a convolution, or its dx
    SUMS = 1  # its dw, or a part of it
    COPY = 2  # (n, h, w, c) numbers from one place to another, each with strides of its own
    ADD = 3  # relu(a + b), each of them where asked
    PASS = 4  # dx = dy where y > 0
    TOTAL = 5  # of arrays, one after the other
    COLUMNS = 6  # sums of columns, of some rows
    COLUMNS_END = 7  # ... and of all
    MOMENTS = 8  # of a batch norm: sums of some rows
    MOMENTS_END = 9  # mean, inv and scale, and the running statistics
    NORMALIZE = 10
    SLOPES = 11  # the sums of its backward, of some rows
    SLOPES_END = 12  # dgamma, dbeta, and what dx needs
    GRADIENT = 13  # dx and dadd
    PANELS = 14  # the kernel of a convolution by Winograd's way
    WINOGRAD = 15  # ... its y or dx
    CORRELATE = 16  # ... the sums of its dw
    GATE = 17  # each channel of each picture times a number
    GATE_BACK = 18  # dx and dgate
    GLOBAL_AVG_BACK = 19  # of global average pooling
    GROUPS = 20  # a convolution of narrow groups, or its dx
    GROUP_SUMS = 21  # ... its dw


COLUMNS = 44  # numbers in a line
SQUARE = square()
SUMS = tuple(sums_shape(len(group)) for group in GROUPS)
_SPINS = 4000  # looks at a counter before a thread gives way to others


@kernel(r="flat int64 (_)", floats="out flat (F)")
def _copy(r: Array, piece: int, floats: Array) -> None:
    """2: x, its strides of n, h, w; 6: y, its strides; 10: n, h, w, c; 14: whether y grows."""
    lines, c = r[10] * r[11], r[13]
    x = numbers_of(floats, r[2], (r[10] - 1) * r[3] + (r[11] - 1) * r[4] + (r[12] - 1) * r[5] + c)
    y = numbers_of(floats, r[6], (r[10] - 1) * r[7] + (r[11] - 1) * r[8] + (r[12] - 1) * r[9] + c)
    for line in range(lines * piece // r[1], lines * (piece + 1) // r[1]):
        n, i = line // r[11], line % r[11]
        for j in range(r[12]):
            at, to = n * r[3] + i * r[4] + j * r[5], n * r[7] + i * r[8] + j * r[9]
            source, target = x[at : at + c], y[to : to + c]
            if r[14]:
                for k in range(c):
                    target[k] += source[k]
            else:
                for k in range(c):
                    target[k] = source[k]


@kernel(r="flat int64 (_)", floats="out flat (F)")
def _pass(r: Array, piece: int, floats: Array) -> None:
    """2: dy, y, dx, count."""
    first, last = r[5] * piece // r[1], r[5] * (piece + 1) // r[1]
    dy, y, dx = floats[r[2] + first : r[2] + last], floats[r[3] + first : r[3] + last], floats[r[4] + first :]
    zero = floats.dtype.type(0)
    for i in range(last - first):
        dx[i] = dy[i] if y[i] > zero else zero


@kernel(r="flat int64 (_)", floats="out flat (F)")
def _total(r: Array, piece: int, floats: Array) -> None:
    """2: x, how many arrays, y, count, whether y grows."""
    first, last = r[5] * piece // r[1], r[5] * (piece + 1) // r[1]
    y = numbers_of(floats, r[4], r[5])[first:last]
    for number in range(r[3]):
        x = floats[r[2] + number * r[5] + first : r[2] + number * r[5] + last]
        for i in range(last - first):
            y[i] = x[i] if number == 0 and r[6] == 0 else y[i] + x[i]


@kernel(r="flat int64 (_)", floats="out flat (F)", doubles="out flat float64 (D)")
def _columns(r: Array, piece: int, floats: Array, doubles: Array) -> None:
    """2: x, rows, c, sums."""
    c = r[4]
    m, stop = r[3] * piece // r[1], r[3] * (piece + 1) // r[1]
    sums = doubles[r[5] + piece * c : r[5] + (piece + 1) * c]
    sums[:] = 0
    while m + 3 < stop:
        at = r[2] + m * c
        x0, x1 = floats[at : at + c], floats[at + c : at + 2 * c]
        x2, x3 = floats[at + 2 * c : at + 3 * c], floats[at + 3 * c : at + 4 * c]
        for k in range(c):
            sums[k] += (np.float64(x0[k]) + np.float64(x1[k])) + (np.float64(x2[k]) + np.float64(x3[k]))
        m += 4
    while m < stop:
        row = floats[r[2] + m * c : r[2] + (m + 1) * c]
        for k in range(c):
            sums[k] += np.float64(row[k])
        m += 1


@kernel(r="flat int64 (_)", floats="out flat (F)", doubles="out flat float64 (D)")
def _columns_end(r: Array, floats: Array, doubles: Array) -> None:
    """2: sums, parts, c, y."""
    y = numbers_of(floats, r[5], r[4])
    for k in range(r[4]):
        total = 0.0
        for part in range(r[3]):
            total += doubles[r[2] + part * r[4] + k]
        y[k] = total


@kernel(floats="out flat (F)")
def _tiled(floats: Array, source: int, c: int, times: int, to: int) -> Array:
    """The numbers of c channels as often as rows are taken as one, in a room at ``to``."""
    if times == 1:
        return numbers_of(floats, source, c)
    numbers, tiled = numbers_of(floats, source, c), floats[to : to + times * c]
    for i in range(times):
        for k in range(c):
            tiled[i * c + k] = numbers[k]
    return tiled


@kernel(r="flat int64 (_)", floats="out flat (F)", doubles="out flat float64 (D)")
def _moments(r: Array, piece: int, me: int, floats: Array, doubles: Array) -> None:
    """2: x, its row, rows, channels, rows taken as one, sums, room."""
    m, c, row = r[4] // r[6], r[5] * r[6], r[3] * r[6]
    at = r[7] + piece * 2 * c
    total, squares = doubles[at : at + c], doubles[at + c : at + 2 * c]
    total[:] = 0
    squares[:] = 0
    shift = _tiled(floats, r[2], r[5], r[6], r[8] + me * c)
    x = floats[r[2] : r[2] + m * row].reshape(m, row)
    moments_numba(x, shift, m * piece // r[1], m * (piece + 1) // r[1], total, squares)


@kernel(r="flat int64 (_)", floats="out flat (F)", doubles="out flat float64 (D)")
def _moments_end(r: Array, floats: Array, doubles: Array) -> None:
    """2: sums, parts or 0 where mean and var are known, channels, rows taken as one, first row of x, rows;
    8: mean, var, running mean or -1, running var or -1, and, among the doubles, the share of these that is
    kept, that is replaced, and the factor of the variance."""
    c, wide = r[4], r[4] * r[5]
    mean, var, first = floats[r[8] : r[8] + c], floats[r[9] : r[9] + c], floats[r[6] : r[6] + c]
    kind = floats.dtype.type
    for k in range(c if r[3] else 0):
        total = squares = 0.0
        for part in range(r[3]):
            for i in range(r[5]):
                total += doubles[r[2] + part * 2 * wide + i * c + k]
                squares += doubles[r[2] + (part * 2 + 1) * wide + i * c + k]
        offset = total / r[7]
        mean[k] = first[k] + offset
        spread = squares / r[7] - offset * offset
        var[k] = 0.0 if spread < 0 else spread  # NaN stays NaN
    kept, replaced, factor = kind(doubles[r[12]]), kind(doubles[r[12] + 1]), kind(doubles[r[12] + 2])
    if r[10] >= 0:
        running = numbers_of(floats, r[10], c)
        for k in range(c):
            running[k] = running[k] * kept + replaced * mean[k]
    if r[11] >= 0:
        running = numbers_of(floats, r[11], c)
        for k in range(c):
            running[k] = running[k] * kept + replaced * (var[k] * factor)


@kernel(r="flat int64 (_)", floats="out flat (F)", doubles="out flat float64 (D)")
def _normalize(r: Array, piece: int, me: int, floats: Array, doubles: Array) -> None:
    """2: x, its row; 4: y, rows, c; 7: mean, var, gamma, beta, added or -1, relu, eps among the doubles;
    14: room."""
    m, c, kind = r[5], r[6], floats.dtype.type
    x, y = floats[r[2] : r[2] + m * r[3]].reshape(m, r[3]), floats[r[4] : r[4] + m * c].reshape(m, c)
    added = floats[r[11] : r[11] + m * c].reshape(m, c) if r[11] >= 0 else floats[:0].reshape(0, c)
    scale, gamma, var = floats[r[14] + me * c :], numbers_of(floats, r[9], c), floats[r[8] :]
    for k in range(c):
        scale[k] = gamma[k] * (kind(1) / np.sqrt(var[k] + kind(doubles[r[13]])))
    normalize_numba(
        x, scale[:c], floats[r[7] : r[7] + c], numbers_of(floats, r[10], c), added, r[12] != 0, y,
        m * piece // r[1], m * (piece + 1) // r[1],
    )  # fmt: skip


@kernel(r="flat int64 (_)", floats="out flat (F)", doubles="out flat float64 (D)")
def _slopes(r: Array, piece: int, me: int, floats: Array, doubles: Array) -> None:
    """2: dy, x, its row, y or -1, rows, channels, rows taken as one; 9: mean, var, gamma, beta, relu, eps
    among the doubles; 15: sums, room."""
    together, kind = r[8], floats.dtype.type
    m, c, row = r[6] // together, r[7] * together, r[4] * together
    at, room = r[15] + piece * 2 * c, r[16] + me * 4 * c
    total, products = doubles[at : at + c], doubles[at + c : at + 2 * c]
    total[:] = 0
    products[:] = 0
    gamma, var, scale = numbers_of(floats, r[11], r[7]), floats[r[10] :], floats[room : room + r[7]]
    for k in range(r[7]):
        scale[k] = gamma[k] * (kind(1) / np.sqrt(var[k] + kind(doubles[r[14]])))
    y = floats[r[5] : r[5] + m * c].reshape(m, c) if r[5] >= 0 else floats[:0].reshape(0, c)
    start, stop = m * piece // r[1], m * (piece + 1) // r[1]
    gradient_sums_numba(
        floats[r[2] : r[2] + m * c].reshape(m, c), floats[r[3] : r[3] + m * row].reshape(m, row), y,
        _tiled(floats, r[9], r[7], together, room + c), _tiled(floats, room, r[7], together, room + 2 * c),
        _tiled(floats, r[12], r[7], together, room + 3 * c), r[13] != 0, start, stop, total,
        products,
    )  # fmt: skip


@kernel(r="flat int64 (_)", floats="out flat (F)", doubles="out flat float64 (D)")
def _slopes_end(r: Array, floats: Array, doubles: Array) -> None:
    """2: sums, parts, channels, rows taken as one, rows; 7: var, gamma, eps among the doubles; 10: dgamma or
    -1, dbeta or -1, scale, slope, offset."""
    c, wide, kind = r[4], r[4] * r[5], floats.dtype.type
    var, gamma = floats[r[7] :], numbers_of(floats, r[8], c)
    scale, slope, offset = floats[r[12] :], floats[r[13] :], floats[r[14] :]
    dgammas = numbers_of(floats, r[10], c) if r[10] >= 0 else scale  # written over at once
    dbetas = numbers_of(floats, r[11], c) if r[11] >= 0 else scale
    for k in range(c):
        dbeta = products = 0.0
        for part in range(r[3]):
            for i in range(r[5]):
                dbeta += doubles[r[2] + part * 2 * wide + i * c + k]
                products += doubles[r[2] + (part * 2 + 1) * wide + i * c + k]
        inv = kind(1) / np.sqrt(var[k] + kind(doubles[r[9]]))
        dgamma = products * inv
        dgammas[k] = dgamma
        dbetas[k] = dbeta
        scale[k] = gamma[k] * inv
        slope[k] = -scale[k] * inv * dgamma / r[6]
        offset[k] = -scale[k] * dbeta / r[6]


@kernel(r="flat int64 (_)", floats="out flat (F)")
def _gradient(r: Array, piece: int, floats: Array) -> None:
    """2: dy, x, its row, y or -1, rows, c; 8: mean, scale, beta, relu, slope, offset; 14: dx, its row,
    whether it grows, dadd or -1."""
    m, c = r[6], r[7]
    none = floats[:0].reshape(0, c)
    y = floats[r[5] : r[5] + m * c].reshape(m, c) if r[5] >= 0 else none
    dx = floats[r[14] : r[14] + m * r[15]].reshape(m, r[15])
    dadd = floats[r[17] : r[17] + m * c].reshape(m, c) if r[17] >= 0 else none
    gradient_numba(
        floats[r[2] : r[2] + m * c].reshape(m, c), floats[r[3] : r[3] + m * r[4]].reshape(m, r[4]), y,
        floats[r[8] : r[8] + c], floats[r[9] : r[9] + c], numbers_of(floats, r[10], c), r[11] != 0,
        floats[r[12] : r[12] + c], floats[r[13] : r[13] + c], r[16] != 0, dx, dadd,
        m * piece // r[1], m * (piece + 1) // r[1],
    )  # fmt: skip


@kernel(r="flat int64 (_)", floats="out flat (F)", doubles="out flat float64 (D)")
def _gate_back(r: Array, piece: int, floats: Array, doubles: Array) -> None:
    """2: dy, x, gate, n, places, c; 8: dx, what is added, dgate, what is added, or -1 for each; 12: sums."""
    places, c = r[6], r[7]
    sums = doubles[r[12] + piece * c : r[12] + (piece + 1) * c]
    for n in range(r[5] * piece // r[1], r[5] * (piece + 1) // r[1]):
        gate = floats[r[4] + n * c : r[4] + (n + 1) * c]
        sums[:] = 0
        for m in range(n * places, (n + 1) * places):
            dy = floats[r[2] + m * c : r[2] + (m + 1) * c]
            if r[8] >= 0:
                dx = floats[r[8] + m * c : r[8] + (m + 1) * c]
                if r[9] >= 0:
                    added = floats[r[9] + m * c : r[9] + (m + 1) * c]
                    for k in range(c):
                        dx[k] = added[k] + dy[k] * gate[k]
                else:
                    for k in range(c):
                        dx[k] = dy[k] * gate[k]
            if r[10] >= 0:
                x = floats[r[3] + m * c : r[3] + (m + 1) * c]
                for k in range(c):
                    sums[k] += np.float64(dy[k] * x[k])
        if r[10] >= 0:
            dgate = floats[r[10] + n * c : r[10] + (n + 1) * c]
            for k in range(c):
                dgate[k] = sums[k] if r[11] < 0 else floats[r[11] + n * c + k] + floats.dtype.type(sums[k])


@kernel(r="flat int64 (_)", floats="out flat (F)")
def _global_avg_back(r: Array, piece: int, floats: Array) -> None:
    """2: dy, dx, n, places, c, added or -1."""
    places, c, many = r[5], r[6], floats.dtype.type(r[5])
    for m in range(r[4] * places * piece // r[1], r[4] * places * (piece + 1) // r[1]):
        dy, dx = floats[r[2] + m // places * c :], floats[r[3] + m * c : r[3] + (m + 1) * c]
        if r[7] >= 0:
            added = floats[r[7] + m * c : r[7] + (m + 1) * c]
            for k in range(c):
                dx[k] = added[k] + dy[k] / many
        else:
            for k in range(c):
                dx[k] = dy[k] / many


@kernel(
    program="flat int64 (P, 44)", waits="flat bool (P)", floats="out flat (F)",
    doubles="out flat float64 (D)", offsets="flat int32 (I)", sees="flat uint8 (S)", longs="flat int64 (T)",
    counters="out flat int64 (2 * P + 1)",
)  # fmt: skip
def walk_numba(
    program: Array, waits: Array, floats: Array, doubles: Array, offsets: Array, sees: Array, longs: Array,
    counters: Array, tiles: tuple[Shape, Shape, Shape], squares: tuple[Shape, Shape, Shape, Shape],
) -> None:  # fmt: skip
    """Walk down the program: each thread calls this with the same counters, zeros at first."""
    waited, me = 0, fetch_add(counters, 2 * len(program), 1)
    for i in range(len(program)):
        r = program[i]
        while True:
            piece = fetch_add(counters, 2 * i, 1)
            if piece >= r[1]:
                break
            what = r[0]
            if what == 0:
                if r[2] == 0:
                    products_line(r, piece, me, floats, offsets, sees, longs, tiles[0][0], tiles[0][1])
                elif r[2] == 1:
                    products_line(r, piece, me, floats, offsets, sees, longs, tiles[1][0], tiles[1][1])
                else:
                    products_line(r, piece, me, floats, offsets, sees, longs, tiles[2][0], tiles[2][1])
            elif what == 1:
                if r[2] == 0:
                    sums_line(r, piece, me, floats, offsets, longs, squares[0][0], squares[0][1])
                elif r[2] == 1:
                    sums_line(r, piece, me, floats, offsets, longs, squares[1][0], squares[1][1])
                elif r[2] == 2:
                    sums_line(r, piece, me, floats, offsets, longs, squares[2][0], squares[2][1])
                else:
                    sums_line(r, piece, me, floats, offsets, longs, squares[3][0], squares[3][1])
            elif what == 2:
                _copy(r, piece, floats)
            elif what == 3:
                add_numba(r, piece, floats)
            elif what == 4:
                _pass(r, piece, floats)
            elif what == 5:
                _total(r, piece, floats)
            elif what == 6:
                _columns(r, piece, floats, doubles)
            elif what == 7:
                _columns_end(r, floats, doubles)
            elif what == 8:
                _moments(r, piece, me, floats, doubles)
            elif what == 9:
                _moments_end(r, floats, doubles)
            elif what == 10:
                _normalize(r, piece, me, floats, doubles)
            elif what == 11:
                _slopes(r, piece, me, floats, doubles)
            elif what == 12:
                _slopes_end(r, floats, doubles)
            elif what == 13:
                _gradient(r, piece, floats)
            elif what == 14:
                panels_line(r, piece, me, floats)
            elif what == 15:
                if r[2] == 0:
                    winograd_line(r, piece, me, floats, offsets, tiles[0][0], tiles[0][1])
                elif r[2] == 1:
                    winograd_line(r, piece, me, floats, offsets, tiles[1][0], tiles[1][1])
                else:
                    winograd_line(r, piece, me, floats, offsets, tiles[2][0], tiles[2][1])
            elif what == 16:
                correlate_line(r, piece, me, floats, offsets, SQUARE[0], SQUARE[1])
            elif what == 17:
                gate_numba(r, piece, floats)
            elif what == 18:
                _gate_back(r, piece, floats, doubles)
            elif what == 19:
                _global_avg_back(r, piece, floats)
            elif what == 20:
                if r[2] == 1:
                    groups_line(r, piece, floats, offsets, sees, longs, tiles[2], GROUPS[0])
                elif r[2] == 2:
                    groups_line(r, piece, floats, offsets, sees, longs, tiles[2], GROUPS[1])
                elif r[2] == 4:
                    groups_line(r, piece, floats, offsets, sees, longs, tiles[2], GROUPS[2])
                else:
                    groups_line(r, piece, floats, offsets, sees, longs, tiles[2], GROUPS[3])
            elif r[2] == 1:
                group_sums_line(r, piece, floats, offsets, SUMS[0][0], SUMS[0][1], SUMS[0][2], GROUPS[0])
            elif r[2] == 2:
                group_sums_line(r, piece, floats, offsets, SUMS[1][0], SUMS[1][1], SUMS[1][2], GROUPS[1])
            elif r[2] == 4:
                group_sums_line(r, piece, floats, offsets, SUMS[2][0], SUMS[2][1], SUMS[2][2], GROUPS[2])
            else:
                group_sums_line(r, piece, floats, offsets, SUMS[3][0], SUMS[3][1], SUMS[3][2], GROUPS[3])
            fetch_add(counters, 2 * i + 1, 1)
        if waits[i]:
            while waited <= i:
                spins = 0
                while look(counters, 2 * waited + 1) < program[waited, 1]:
                    spins += 1
                    if spins > _SPINS:
                        sched_yield()
                waited += 1

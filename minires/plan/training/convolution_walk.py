"""The kernels of a planned training step that are about convolutions: what their lines ask for.

The numbers of a line ``r`` are told by each, from its third on; its first two are what and how many pieces.
"""

from __future__ import annotations

from minires.backend import Array, kernel
from minires.backend.addresses import MARK, numbers_at
from minires.backend.simd import Shape, Size
from minires.backend.tile_groups import group_products_numba, group_sums_numba
from minires.backend.tile_products import products_numba
from minires.backend.tile_sums import sums_numba
from minires.ops.conv2d.winograd_kernels import convolve_numba, correlate_numba
from minires.ops.conv2d.winograd_transforms import EIGHT, ONE, panels_numba


@kernel(floats="out flat (F)")
def numbers_of(floats: Array, place: int, count: int) -> Array:
    """``count`` numbers at an offset or an address."""
    if place >= MARK:
        return numbers_at(floats, place - MARK, count)
    return floats[place : place + count]


@kernel(
    r="flat int64 (_)", floats="out flat (F)", offsets="flat int32 (I)", sees="flat uint8 (S)",
    longs="flat int64 (T)",
)  # fmt: skip
def products_line(
    r: Array,
    piece: int,
    me: int,
    floats: Array,
    offsets: Array,
    sees: Array,
    longs: Array,
    rows: Size,
    columns: Size,
) -> None:
    """2: tile, x, its size, w, its size, bias, added or -1, y, its size; 11: table, its length, out, taps,
    where they stand, sees, tiles; 18: relu, turned, places, x step, y step; 23: depth, outputs, x group,
    y group, w group, tap, row; 30: width, all tiles, all panels, whether panels are shared out; 34: room, its
    size, from one thread's to the next's."""
    total = r[32] if r[33] else r[31]
    start, stop = total * piece // r[1], total * (piece + 1) // r[1]
    first, last = 0, r[32]
    if r[33]:
        first, last, start, stop = start, stop, 0, r[31]
    nothing = floats[:0]
    added = numbers_of(floats, r[8], r[10]) if r[8] >= 0 else nothing
    table = offsets[r[11] : r[11] + r[14] * r[12]].reshape(r[14], r[12])
    products_numba(
        rows, columns, numbers_of(floats, r[3], r[4]), numbers_of(floats, r[5], r[6]), nothing,
        numbers_of(floats, r[7], r[32] * r[30]), added, numbers_of(floats, r[9], r[10]), table,
        offsets[r[13] :], longs[r[15] : r[15] + r[14]],
        sees[r[16] : r[16] + r[14] * r[17]].reshape(r[14], r[17]), floats,
        floats[r[34] + me * r[36] : r[34] + me * r[36] + r[35]], r[18] != 0, r[19] != 0, r[20], r[21],
        r[22], r[23], r[24], r[25], r[26], r[27], r[28], r[29], r[30], start, stop, first, last,
    )  # fmt: skip


@kernel(r="flat int64 (_)", floats="out flat (F)", offsets="flat int32 (I)", longs="flat int64 (T)")
def sums_line(
    r: Array, piece: int, me: int, floats: Array, offsets: Array, longs: Array, height: Size, columns: Size
) -> None:
    """2: tile, x, its size, dy, its size, dw, its size, whether it is new; 10: rows, blocks, starts, taps,
    runs, how many; 16: x apart, y apart, x, y, times, x step, y step, x row, y row; 25: depth, outputs,
    x group, y group, w group, tap, row; 32: width, units, panels, whether panels are shared out; 36: room for
    x, its size, from one thread's to the next's; 39: for y."""
    total = r[34] if r[35] else r[33]
    start, stop = total * piece // r[1], total * (piece + 1) // r[1]
    first, last = 0, r[34]
    if r[35]:
        first, last, start, stop = start, stop, 0, r[33]
    if start == stop or first == last:
        return
    sums_numba(
        height, columns, numbers_of(floats, r[3], r[4]), numbers_of(floats, r[5], r[6]),
        numbers_of(floats, r[7], r[8]), r[9] != 0, longs[r[10] : r[10] + 4 * r[11]].reshape(r[11], 4),
        offsets[r[12] : r[12] + r[11] * (r[13] + 1)].reshape(r[11], r[13] + 1),
        offsets[r[14] : r[14] + 3 * r[15]].reshape(3, r[15]), floats,
        floats[r[36] + me * r[38] : r[36] + me * r[38] + r[37]],
        floats[r[39] + me * r[41] : r[39] + me * r[41] + r[40]], r[16], r[17], r[18], r[19], r[20], r[21],
        r[22], r[23], r[24], r[25], r[26], r[27], r[28], r[29], r[30], r[31], r[32], start, stop, first, last,
    )  # fmt: skip


@kernel(
    r="flat int64 (_)", floats="out flat (F)", offsets="flat int32 (I)", sees="flat uint8 (S)",
    longs="flat int64 (T)",
)  # fmt: skip
def groups_line(
    r: Array, piece: int, floats: Array, offsets: Array, sees: Array, longs: Array, tile: Shape, group: Size
) -> None:  # fmt: skip
    """2: channels of a group, x, its size, w, its size, bias, added or -1, y, its size; 11: table, its
    length, out, taps, where they stand, sees, tiles; 18: relu, places, x step, y step, channels, lanes, all
    tiles."""
    group_products_numba(
        tile[0], tile[1], group, floats[r[3] : r[3] + r[4]], numbers_of(floats, r[5], r[6]),
        numbers_of(floats, r[7], r[22]), floats[r[8] : r[8] + r[10]] if r[8] >= 0 else floats[:0],
        floats[r[9] : r[9] + r[10]], offsets[r[11] : r[11] + r[14] * r[12]].reshape(r[14], r[12]),
        offsets[r[13] :], longs[r[15] : r[15] + r[14]],
        sees[r[16] : r[16] + r[14] * r[17]].reshape(r[14], r[17]), floats, r[18] != 0, r[19], r[20], r[21],
        r[22], r[23], r[24] * piece // r[1], r[24] * (piece + 1) // r[1],
    )  # fmt: skip


@kernel(r="flat int64 (_)", floats="out flat (F)", offsets="flat int32 (I)")
def group_sums_line(
    r: Array, piece: int, floats: Array, offsets: Array, height: Size, column: Size, rows: Size, group: Size
) -> None:
    """2: channels of a group, x, its size, dy, its size, dw, its size, whether it is new; 10: table, places,
    taps in it, out, times, x step, y step; 17: taps, channels, lanes, places that are summed, units."""
    group_sums_numba(
        height, column, rows, group, floats[r[3] : r[3] + r[4]], floats[r[5] : r[5] + r[6]],
        numbers_of(floats, r[7], r[8]), r[9] != 0,
        offsets[r[10] : r[10] + r[11] * r[12]].reshape(r[11], r[12]), offsets[r[13] :],
        floats, r[14], r[15], r[16], r[17], r[18], r[19], r[20], r[21] * piece // r[1],
        r[21] * (piece + 1) // r[1],
    )  # fmt: skip


@kernel(r="flat int64 (_)", floats="out flat (F)")
def panels_line(r: Array, piece: int, me: int, floats: Array) -> None:
    """2: w, its size, g, u, its size; 7: turned, depth, outputs, width, lanes, units; 13: room, from one
    thread's to the next's, its size."""
    room = r[13] + me * r[14]
    panels_numba(
        EIGHT, ONE, numbers_of(floats, r[2], r[3]), floats[r[4] : r[4] + 144], floats,
        floats[r[5] : r[5] + r[6]], floats[room : room + r[15]], r[7] != 0, r[8], r[9], r[10], r[11],
        r[12] * piece // r[1], r[12] * (piece + 1) // r[1],
    )  # fmt: skip


@kernel(r="flat int64 (_)", floats="out flat (F)", offsets="flat int32 (I)")
def winograd_line(
    r: Array, piece: int, me: int, floats: Array, offsets: Array, rows: Size, columns: Size
) -> None:
    """2: tile, x, its size, u, bias or -1, added or -1, y, its size, relu; 11: blocks, how many, lines, how
    many; 15: h, w, c, out h, w, c, left, width; 23: room, from one thread's to the next's, its size."""
    nothing, room = floats[:0], r[23] + me * r[24]
    convolve_numba(
        rows, columns, floats[r[3] : r[3] + r[4]], floats[r[5] :],
        numbers_of(floats, r[6], r[20]) if r[6] >= 0 else nothing,
        floats[r[7] : r[7] + r[9]] if r[7] >= 0 else nothing, floats[r[8] : r[8] + r[9]], r[10] != 0,
        offsets[r[11] : r[11] + 4 * r[12]].reshape(r[12], 4), offsets[r[13] : r[13] + r[14]], floats,
        floats[room : room + r[25]], r[15], r[16], r[17], r[18], r[19], r[20], r[21], r[22],
        r[12] * piece // r[1], r[12] * (piece + 1) // r[1],
    )  # fmt: skip


@kernel(r="flat int64 (_)", floats="out flat (F)", offsets="flat int32 (I)")
def correlate_line(
    r: Array, piece: int, me: int, floats: Array, offsets: Array, rows: Size, columns: Size
) -> None:
    """3: x, its size, dy, its size, sums, those of a piece; 9: blocks, how many, lines, how many; 13: h, w,
    c, out h, w, c, left, width; 21: room, from one thread's to the next's, its size."""
    room, many, to = r[21] + me * r[22], r[10], r[7] + piece * r[8]
    correlate_numba(
        rows, columns, floats[r[3] : r[3] + r[4]], floats[r[5] : r[5] + r[6]], floats[to : to + r[8]],
        offsets[r[9] : r[9] + 4 * many].reshape(many, 4), offsets[r[11] : r[11] + r[12]], floats,
        floats[room : room + r[23]], r[13], r[14], r[15], r[16], r[17], r[18], r[19], r[20],
        many * piece // r[1], many * (piece + 1) // r[1],
    )  # fmt: skip

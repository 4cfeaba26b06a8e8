"""The kernels of ``winograd.py``: all of a block of tiles at a time, without Python between.

    convolve_numba     y = A^T (v @ u) A of some blocks, with v = B^T d B
    correlate_numba    the sums v^T @ e of some blocks, with e = A dy A^T
"""

from __future__ import annotations

from minires.backend import Array, kernel
from minires.backend.simd import Size, add, beside, multiply_add, plus, spread, store
from minires.ops.conv2d.winograd_transforms import gradients_numba, inputs_numba, outputs_numba

SUMMED = 512  # products that are summed by themselves, as one long sum of float32 rounds more


@kernel(
    v="flat (V)", u="flat (U)", m="out flat (M)", zeros="flat (>= width)",
    where="min(count, channels, outputs) > 0 == channels % 4 and width == len(columns) * lanes_of(dtype_) > 0"
    " and v_apart >= count * channels and V >= 16 * v_apart + len(rows) * channels"
    " and m_apart >= count * outputs and M >= 16 * m_apart + len(rows) * outputs"
    " and 16 * channels * -(-outputs // width) * width <= U",
)  # fmt: skip
def _products_numba(
    rows: Size, columns: Size, v: Array, u: Array, m: Array, zeros: Array, count: int, channels: int,
    outputs: int, width: int, v_apart: int, m_apart: int,
) -> None:  # fmt: skip
    """m = v @ u, 16 times, of so many tiles: u lies in panels of ``width`` outputs.

    If there are fewer than ``rows``, what is written beyond them is written anew by the next of the 16."""
    panels, long = (outputs + width - 1) // width, channels * width
    for p in range(16 * panels):
        i, n = p // panels, p % panels * width
        for q in range(0, count, len(rows)):
            at = max(0, min(q, count - len(rows)))  # the last are computed twice rather than in part
            target = beside(rows, m, i * m_apart + at * outputs, outputs)
            for k0 in range(0, channels, SUMMED):
                k1 = min(k0 + SUMMED, channels)
                lines = beside(rows, v, i * v_apart + at * channels, channels)
                tile, o = spread(rows, columns, zeros, 0), p * long + k0 * width
                for k in range(k0, k1, 4):
                    tile = multiply_add(tile, lines, k, u, o)
                    tile = multiply_add(tile, lines, k + 1, u, o + width)
                    tile = multiply_add(tile, lines, k + 2, u, o + 2 * width)
                    tile = multiply_add(tile, lines, k + 3, u, o + 3 * width)
                    o += 4 * width
                if k0:
                    tile = plus(tile, target, n, outputs - n)
                store(tile, target, n, len(rows), outputs - n)


@kernel(
    x="flat (X)", u="flat (U)", b="maybe flat (_)", added="maybe flat (Y)", y="out flat (Y)",
    blocks="flat int32 (N, 4)", lines="flat int32 (L)", zeros="flat (Z)",
    room="out flat (R)",
    where="min(channels, outputs, len(columns)) > 0 == channels % 4 and 0 <= start <= stop <= N and left >= 0"
    " and width == len(columns) * (lanes := lanes_of(dtype_)) and channels % lanes == 0 == outputs % lanes"
    " and lines.max(initial=0) <= (h - 1) * w * channels and Z >= max(width, w * channels)"
    " and int(blocks[:, 3].max(initial=0)) <= min(L // 4, (high + 1) // 2)"
    " and blocks[:, ::2].min(initial=0) >= 0"
    " and (last := int(blocks[:, 1].max(initial=0))) * h * w * channels <= X"
    " and last * high * wide * outputs <= Y"
    " and b.size in (0, outputs) and 16 * -(-outputs // width) * width * channels <= U"
    " and (deep := (blocks[:, 3] - blocks[:, 2])).min(initial=1) > 0"
    " and R >= 16 * (int(((blocks[:, 1] - blocks[:, 0]) * deep).max(initial=0)) * ((wide + 1) // 2)"
    " * (channels + outputs) + 2 * lanes) + len(rows) * (channels + outputs)",
)  # fmt: skip
def convolve_numba(
    rows: Size, columns: Size, x: Array, u: Array, b: Array, added: Array, y: Array, relu: bool,
    blocks: Array, lines: Array, zeros: Array, room: Array, h: int, w: int, channels: int, high: int,
    wide: int, outputs: int, left: int, width: int, start: int, stop: int,
) -> None:  # fmt: skip
    """y of the pictures x, the blocks start..stop: each some pictures, and of these some lines of tiles."""
    across, lanes = (wide + 1) // 2, width // len(columns)
    for number in range(start, stop):
        first, last, upper = blocks[number, 0], blocks[number, 1], blocks[number, 2]
        down = blocks[number, 3] - upper
        count = (last - first) * down * across
        v_apart, m_apart = (count * channels // lanes | 1) * lanes, (count * outputs // lanes | 1) * lanes
        v, m = room, room[16 * v_apart + len(rows) * channels :]  # rows of products read beyond v
        inputs_numba(
            x, v, lines, zeros, h, w, channels, first, last, left, upper, down, across, lanes, v_apart
        )
        _products_numba(rows, columns, v, u, m, zeros, count, channels, outputs, width, v_apart, m_apart)
        outputs_numba(m, b, added, relu, y, high, wide, outputs, first, last, upper, down, lanes, m_apart)


@kernel(
    v="flat (V)", e="flat (E)", totals="out flat (W)", zeros="flat (>= width)",
    where="min(count, channels, outputs) > 0 and width == len(columns) * lanes_of(dtype_) > 0"
    " and v_apart >= count * channels and V >= 16 * v_apart + len(rows)"
    " and e_apart >= count * outputs and E >= 16 * e_apart + width and W >= 16 * channels * outputs",
)  # fmt: skip
def _sums_numba(
    rows: Size, columns: Size, v: Array, e: Array, totals: Array, is_first: bool, zeros: Array, count: int,
    channels: int, outputs: int, width: int, v_apart: int, e_apart: int,
) -> None:  # fmt: skip
    """totals = v^T @ e, 16 times, of so many tiles, or plus what was summed before."""
    for i in range(16):
        for n in range(0, outputs, width):
            for c in range(0, channels, len(rows)):
                tile, lines = spread(rows, columns, zeros, 0), beside(rows, v, i * v_apart + c, 1)
                o = i * e_apart + n
                for k in range(0, count * channels, channels):
                    tile = multiply_add(tile, lines, k, e, o)
                    o += outputs
                target = beside(rows, totals, (i * channels + c) * outputs, outputs)
                if is_first:
                    store(tile, target, n, channels - c, outputs - n)
                else:
                    add(tile, target, n, channels - c, outputs - n)


@kernel(
    x="flat (X)", dy="flat (Y)", totals="out flat (W)", blocks="flat int32 (N, 4)", lines="flat int32 (L)",
    zeros="flat (Z)", room="out flat (R)",
    where="min(channels, outputs, len(columns)) > 0 == channels % 4 and 0 <= start <= stop <= N and left >= 0"
    " and width == len(columns) * (lanes := lanes_of(dtype_)) and channels % lanes == 0 == outputs % lanes"
    " and lines.max(initial=0) <= (h - 1) * w * channels and Z >= max(width, w * channels)"
    " and int(blocks[:, 3].max(initial=0)) <= min(L // 4, (high + 1) // 2)"
    " and blocks[:, ::2].min(initial=0) >= 0"
    " and (last := int(blocks[:, 1].max(initial=0))) * h * w * channels <= X"
    " and last * high * wide * outputs <= Y and 16 * channels * outputs <= W"
    " and (deep := (blocks[:, 3] - blocks[:, 2])).min(initial=1) > 0"
    " and R >= 16 * (int(((blocks[:, 1] - blocks[:, 0]) * deep).max(initial=0)) * ((wide + 1) // 2)"
    " * (channels + outputs) + 2 * lanes) + 16 * lanes + width",
)  # fmt: skip
def correlate_numba(
    rows: Size, columns: Size, x: Array, dy: Array, totals: Array, blocks: Array, lines: Array, zeros: Array,
    room: Array, h: int, w: int, channels: int, high: int, wide: int, outputs: int, left: int, width: int,
    start: int, stop: int,
) -> None:  # fmt: skip
    """totals (16, C, O) of the blocks start..stop."""
    across, lanes = (wide + 1) // 2, width // len(columns)
    for number in range(start, stop):
        first, last, upper = blocks[number, 0], blocks[number, 1], blocks[number, 2]
        down = blocks[number, 3] - upper
        count = (last - first) * down * across
        v_apart, e_apart = (count * channels // lanes | 1) * lanes, (count * outputs // lanes | 1) * lanes
        v, e = room, room[16 * v_apart + 16 * lanes :]  # rows of sums read beyond v
        inputs_numba(
            x, v, lines, zeros, h, w, channels, first, last, left, upper, down, across, lanes, v_apart
        )
        gradients_numba(dy, e, zeros, high, wide, outputs, first, last, upper, down, lanes, e_apart)
        _sums_numba(
            rows, columns, v, e, totals, number == start, zeros, count, channels, outputs, width, v_apart,
            e_apart,
        )  # fmt: skip

"""The kernels of ``winograd.py``: all of a block of tiles at a time, without Python between.

    panels_numba       u = G w G^T, packed for the tiles of sums
    convolve_numba     y = A^T (v @ u) A of some blocks, with v = B^T d B
    correlate_numba    the sums v^T @ e of some blocks, with e = A dy A^T

Even and odd pixels of a line are kept apart: a tile begins at every even pixel, so in the arrays of the
even (and of the odd) pixels the tiles of a line lie side by side, and sums run over whole lines at a time.
"""

from __future__ import annotations

from minires.backend import Array, kernel
from minires.backend.simd import Size, beside, multiply_add, spread, store, turn
from minires.backend.tile_products import products_numba
from minires.backend.tile_sums import sums_numba

EIGHT, ONE = (0,) * 8, (0,)  # half of the 16 numbers, and one vector


@kernel(
    w="flat (W)", g="flat (144)", zeros="flat (>= lanes)", u="out flat (U)", room="out flat (R)",
    where="depth > 0 and outputs > 0 and lanes > 0 and width % lanes == 0 and R >= 16 * lanes * lanes"
    " and 9 * depth * outputs <= W and 16 * depth * -(-outputs // width) * width <= U"
    " and 0 <= start <= stop <= -(-outputs // width) * -(-depth // lanes)",
)  # fmt: skip
def panels_numba(
    eight: Size, one: Size, w: Array, g: Array, zeros: Array, u: Array, room: Array, turned: bool,
    depth: int, outputs: int, width: int, lanes: int, start: int, stop: int,
) -> None:  # fmt: skip
    """u[i, panel, k, n] = sum over tap of g[i, tap] * w[tap, k, n], or, turned, w[tap, n, k]: the units
    start..stop, of a vector of k in a panel each."""
    panels, parts = (outputs + width - 1) // width, (depth + lanes - 1) // lanes
    tap, long = depth * outputs, depth * width
    k_step, n_step = (1, depth) if turned else (outputs, 1)
    for unit in range(start, stop):
        panel, k0 = unit // parts, unit % parts * lanes
        k1, n0 = min(k0 + lanes, depth), panel * width
        many = min(width, outputs - n0)
        whole = many // lanes * lanes if k1 - k0 == lanes or not turned else 0  # of n, in vectors
        to = panel * long - n0  # of k and n, u[to + k * width + n]
        for n in range(n0, n0 + whole, lanes):
            for i in range(lanes if turned else k1 - k0):  # vectors: of k, for an n; or of n, for a k
                at = (n + i) * n_step + k0 if turned else (k0 + i) * k_step + n
                for half in range(0, 16, 8):
                    tile, lines = spread(eight, one, zeros, 0), beside(eight, g, half * 9, 9)
                    for t in range(9):
                        tile = multiply_add(tile, lines, t, w, t * tap + at)
                    if turned:
                        target = beside(eight, room, (half * lanes + i) * lanes, lanes * lanes)
                    else:
                        target = beside(
                            eight, u, half * panels * long + to + (k0 + i) * width + n, panels * long
                        )
                    store(tile, target, 0, 8, lanes)
            if turned:
                for i in range(16):
                    turn(room, i * lanes * lanes, lanes, u, i * panels * long + to + k0 * width + n, width)
        for k in range(k0, k1):
            for n in range(n0 + whole, n0 + width):
                for i in range(16):
                    total = zeros[0]
                    for t in range(9 if n < n0 + many else 0):
                        total += g[i * 9 + t] * w[t * tap + k * k_step + n * n_step]
                    u[i * panels * long + to + k * width + n] = total


@kernel(
    x="flat (X)", v="out flat (V)", pixels="out flat (P)", sums="out flat (S)",
    where="0 <= first <= last and last * h * w * channels <= X and min(down, across, channels) > 0 <= left"
    " and V >= 16 * (last - first) * down * across * channels"
    " and P >= 4 * (down + 1) * (across + 1) * channels and S >= 2 * (across + 1) * channels",
)  # fmt: skip
def _inputs_numba(
    x: Array, v: Array, pixels: Array, sums: Array, h: int, w: int, channels: int, first: int, last: int,
    top: int, left: int, down: int, across: int,
) -> None:  # fmt: skip
    """v = B^T d B of the pictures first..last, from the line ``top`` and the column -left on: so many tiles
    down and across, (16, tiles, C). ``pixels`` takes a picture, the even of each line and the odd, with their
    border of zeros, ``sums`` two of such lines."""
    lines, wide = 2 * down + 2, (across + 1) * channels
    run, size = wide - channels, (last - first) * down * (wide - channels)
    pixels[: 2 * lines * wide] = 0
    for p in range(first, last):
        for line in range(max(0, -top), min(lines, h - top)):
            for i in range(min(w, 2 * (across + 1) - left)):
                source = x[((p * h + line + top) * w + i) * channels :]
                target = pixels[((i + left) % 2 * lines + line) * wide + (i + left) // 2 * channels :]
                for c in range(channels):
                    target[c] = source[c]
        for i in range(down):
            start = ((p - first) * down + i) * run
            for k in range(4):
                # B^T d: a sum or difference of two lines of the picture
                one = 2 * i + (0 if k == 0 else 2 if k == 2 else 1)
                two = 2 * i + (3 if k == 3 else 1 if k == 2 else 2)
                e1, e2 = pixels[one * wide : (one + 1) * wide], pixels[two * wide : (two + 1) * wide]
                o1 = pixels[(lines + one) * wide : (lines + one + 1) * wide]
                o2 = pixels[(lines + two) * wide : (lines + two + 1) * wide]
                even, odd = sums[:wide], sums[wide : 2 * wide]
                if k == 1:
                    for c in range(wide):
                        even[c] = e1[c] + e2[c]
                        odd[c] = o1[c] + o2[c]
                else:
                    for c in range(wide):
                        even[c] = e1[c] - e2[c]
                        odd[c] = o1[c] - o2[c]
                # (B^T d) B: the same along the line
                v0, v1 = v[4 * k * size + start :], v[(4 * k + 1) * size + start :]
                v2, v3 = v[(4 * k + 2) * size + start :], v[(4 * k + 3) * size + start :]
                next_even, next_odd = even[channels:], odd[channels:]
                for c in range(run):
                    v0[c] = even[c] - next_even[c]
                    v1[c] = odd[c] + next_even[c]
                    v2[c] = next_even[c] - odd[c]
                    v3[c] = odd[c] - next_odd[c]


@kernel(
    m="flat (M)", b="maybe flat (_)", added="maybe flat (Y)", y="out flat (Y)", sums="out flat (S)",
    where="0 <= first <= last and last * high * wide * channels <= Y and min(down, channels) > 0 <= upper"
    " and b.size in (0, channels) and S >= 8 * ((wide + 1) // 2) * channels"
    " and M >= 16 * (last - first) * down * ((wide + 1) // 2) * channels",
)  # fmt: skip
def _outputs_numba(
    m: Array, b: Array, added: Array, relu: bool, y: Array, sums: Array, high: int, wide: int, channels: int,
    first: int, last: int, upper: int, down: int,
) -> None:  # fmt: skip
    """y = A^T m A + b, and what is added, with a ReLU behind it where asked: of the pictures first..last so
    many lines of tiles from ``upper`` on. ``sums`` takes 8 lines of half the pixels."""
    run, zero = (wide + 1) // 2 * channels, y.dtype.type(0)
    size = (last - first) * down * run
    for p in range(first, last):
        for i in range(down):
            start = ((p - first) * down + i) * run
            for k in range(4):
                m0, m1 = m[4 * k * size + start :], m[(4 * k + 1) * size + start :]
                m2, m3 = m[(4 * k + 2) * size + start :], m[(4 * k + 3) * size + start :]
                even, odd = sums[2 * k * run :], sums[(2 * k + 1) * run :]
                for c in range(run):
                    even[c] = m0[c] + m1[c] + m2[c]
                    odd[c] = m1[c] - m2[c] - m3[c]
            for j in range(wide):
                at = j % 2 * run + j // 2 * channels
                r0, r1 = sums[at : at + channels], sums[at + 2 * run : at + 2 * run + channels]
                r2, r3 = sums[at + 4 * run :], sums[at + 6 * run :]
                for line in range(min(2, high - 2 * (upper + i))):
                    to = ((p * high + 2 * (upper + i) + line) * wide + j) * channels
                    pixel, more = y[to : to + channels], added[to : to + channels]
                    for c in range(channels):
                        value = r1[c] - r2[c] - r3[c] if line else r0[c] + r1[c] + r2[c]
                        if b.size:
                            value += b[c]
                        if added.size:
                            value += more[c]
                        pixel[c] = zero if relu and value < zero else value  # NaN stays NaN


@kernel(
    dy="flat (Y)", e="out flat (E)", pixels="out flat (P)",
    where="0 <= first <= last and last * high * wide * channels <= Y and min(down, channels) > 0 <= upper"
    " and P >= 4 * ((wide + 1) // 2) * channels"
    " and E >= 16 * (last - first) * down * ((wide + 1) // 2) * channels",
)  # fmt: skip
def _gradients_numba(
    dy: Array, e: Array, pixels: Array, high: int, wide: int, channels: int, first: int, last: int,
    upper: int, down: int,
) -> None:  # fmt: skip
    """e = A dy A^T, the adjoint of _outputs_numba; ``pixels`` takes the even and the odd of two lines."""
    run, number = (wide + 1) // 2 * channels, dy.dtype.type
    size = (last - first) * down * run
    even0, even1, odd0, odd1 = pixels[:run], pixels[run:], pixels[2 * run :], pixels[3 * run :]
    pixels[: 4 * run] = 0
    for p in range(first, last):
        for i in range(down):
            start = ((p - first) * down + i) * run
            for line in range(2):
                if 2 * (upper + i) + line == high:
                    pixels[line * run : (line + 1) * run] = 0
                    pixels[(2 + line) * run : (3 + line) * run] = 0
                    continue
                for j in range(wide):
                    source = dy[((p * high + 2 * (upper + i) + line) * wide + j) * channels :]
                    target = pixels[(j % 2 * 2 + line) * run + j // 2 * channels :]
                    for c in range(channels):
                        target[c] = source[c]
            for k in range(4):
                e0, e1 = e[4 * k * size + start :], e[(4 * k + 1) * size + start :]
                e2, e3 = e[(4 * k + 2) * size + start :], e[(4 * k + 3) * size + start :]
                # A dy: above, above + below, above - below, -below
                one, two = number(1 if k < 3 else 0), number(0 if k == 0 else 1 if k == 1 else -1)
                for c in range(run):
                    even = one * even0[c] + two * even1[c]
                    odd = one * odd0[c] + two * odd1[c]
                    # (A dy) A^T: the same along the line
                    e0[c] = even
                    e1[c] = even + odd
                    e2[c] = even - odd
                    e3[c] = -odd


@kernel(
    x="flat (X)", u="flat (U)", b="maybe flat (_)", added="maybe flat (Y)", y="out flat (Y)",
    blocks="flat int32 (N, 4)", table="flat int32 (T)", out="flat int32 (T)", taps="flat int64 (1)",
    sees="flat uint8 (Q)", zeros="flat (Z)", room="out flat (R)",
    where="min(channels, outputs, width) > 0 and 0 <= start <= stop <= N and min(top, left) >= 0"
    " and (last := int(blocks[:, 1].max(initial=0))) * h * w * channels <= X"
    " and last * high * wide * outputs <= Y"
    " and b.size in (0, outputs) and (panels := 16 * -(-outputs // width)) * width * channels <= U"
    " and Z >= max(panels * width, channels) and Q * len(rows) <= T"
    " and (lines := (blocks[:, 3] - blocks[:, 2])).min(initial=1) > 0"
    " and (most := int(((blocks[:, 1] - blocks[:, 0]) * lines).max(initial=0)) * ((wide + 1) // 2))"
    " <= Q * len(rows)"
    " and R >= 16 * most * (channels + outputs) + 4 * ((wide + 1) // 2 + 1)"
    " * max((int(lines.max(initial=0)) + 2) * channels, 2 * outputs)",
)  # fmt: skip
def convolve_numba(
    rows: Size, columns: Size, x: Array, u: Array, b: Array, added: Array, y: Array, relu: bool,
    blocks: Array, table: Array, out: Array, taps: Array, sees: Array, zeros: Array, room: Array, h: int,
    w: int, channels: int, high: int, wide: int, outputs: int, top: int, left: int, width: int, start: int,
    stop: int,
) -> None:  # fmt: skip
    """y of the pictures x, the blocks start..stop: each some pictures, and of these some lines of tiles."""
    across, panels = (wide + 1) // 2, (outputs + width - 1) // width
    for number in range(start, stop):
        first, last, upper = blocks[number, 0], blocks[number, 1], blocks[number, 2]
        down = blocks[number, 3] - upper
        count = (last - first) * down * across
        tiles = (count + len(rows) - 1) // len(rows)
        to_m, end = 16 * count * channels, 16 * count * (channels + outputs)
        v, m, lines = room[:to_m], room[to_m:end], room[end:]
        sums = lines[4 * (down + 1) * (across + 1) * channels :]
        _inputs_numba(x, v, lines, sums, h, w, channels, first, last, 2 * upper - top, left, down, across)
        products_numba(
            rows, columns, v, v[:0], u, zeros, v[:0], m, table.reshape(1, table.size), out, taps,
            sees[:tiles].reshape(1, tiles), zeros, v[:0], False, False, count, 0, 0, channels, outputs,
            count * channels, count * outputs, 0, 0, 0, width, 0, tiles, 0, 16 * panels,
        )  # fmt: skip
        _outputs_numba(m, b, added, relu, y, lines, high, wide, outputs, first, last, upper, down)


@kernel(
    x="flat (X)", dy="flat (Y)", totals="out flat (W)", blocks="flat int32 (N, 4)", rows="flat int64 (N, 4)",
    starts="flat int32 (1, 2)", runs="flat int32 (N, 3, 1)", zeros="flat (>= width)", room="out flat (R)",
    where="min(channels, outputs, width) > 0 and 0 <= start <= stop <= N and min(top, left) >= 0"
    " and (last := int(blocks[:, 1].max(initial=0))) * h * w * channels <= X"
    " and last * high * wide * outputs <= Y"
    " and 16 * channels * outputs <= W and (lines := (blocks[:, 3] - blocks[:, 2])).min(initial=1) > 0"
    " and (rows[:, 1::2].T == (many := (blocks[:, 1] - blocks[:, 0]) * lines * ((wide + 1) // 2))).all()"
    " and (runs[:, 2, 0] == many).all()"
    " and R >= 16 * int(many.max(initial=0)) * (channels + outputs) + 128 + 4 * ((wide + 1) // 2 + 1)"
    " * max((int(lines.max(initial=0)) + 2) * channels, outputs)",
)  # fmt: skip
def correlate_numba(
    height: Size, columns: Size, x: Array, dy: Array, totals: Array, blocks: Array, rows: Array,
    starts: Array, runs: Array, zeros: Array, room: Array, h: int, w: int, channels: int, high: int,
    wide: int, outputs: int, top: int, left: int, width: int, start: int, stop: int,
) -> None:  # fmt: skip
    """totals (16, C, O) of the blocks start..stop, whose tiles are the ``rows`` and ``runs`` of sums."""
    across, panels = (wide + 1) // 2, (outputs + width - 1) // width
    units = 16 * ((channels + len(height) - 1) // len(height))
    one = starts[0, 1]  # a compiler that knows its value makes sums_numba of it that takes twice the time
    for number in range(start, stop):
        first, last, upper = blocks[number, 0], blocks[number, 1], blocks[number, 2]
        down = blocks[number, 3] - upper
        count = (last - first) * down * across
        # Tiles of sums read a little beyond a row, and so beyond the last: there is room behind both.
        to_e, end = 16 * count * channels + 64, 16 * count * (channels + outputs) + 128
        v, e, lines = room[:to_e], room[to_e:end], room[end:]
        sums = lines[4 * (down + 1) * (across + 1) * channels :]
        _inputs_numba(x, v, lines, sums, h, w, channels, first, last, 2 * upper - top, left, down, across)
        _gradients_numba(dy, e, lines, high, wide, outputs, first, last, upper, down)
        sums_numba(
            height, columns, v, e, totals, number == start, rows[number : number + 1], starts, runs[number],
            zeros, v[:0], v[:0], one, one, 0, 0, one, 0, 0, channels, outputs, channels, outputs,
            count * channels, count * outputs, channels * outputs, 0, outputs, width, 0, units, 0, panels,
        )  # fmt: skip

"""The transforms of ``winograd.py``, on one thread each:

    panels_numba       u = G w G^T, packed for the tiles of products
    inputs_numba       v = B^T d B
    outputs_numba      y = A^T m A, with what is added to it
    gradients_numba    e = A dy A^T, the adjoint of the latter

A tile is transformed in registers, a vector of channels at a time: it is read once, and written once. The 16
arrays of v, m and e lie an odd number of vectors ``apart``: else a cache would look for the same tile of all
of them in the same few places.
"""

from __future__ import annotations

from minires.backend import Array, kernel
from minires.backend.simd import (
    Size,
    beside,
    listed,
    multiply_add,
    read,
    rectify,
    spread,
    store,
    turn,
    write,
)

ONE, TWO, FOUR, EIGHT, SIXTEEN = (0,), (0,) * 2, (0,) * 4, (0,) * 8, (0,) * 16


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
    x="flat (X)", v="out flat (V)", table="flat int32 (L)", zeros="flat (Z)",
    where="0 <= first <= last and last * h * w * channels <= X and min(down, across, channels, lanes) > 0"
    " and left >= 0 <= upper and 4 * (upper + down) <= L and channels % lanes == 0"
    " and table.max(initial=0) <= (h - 1) * w * channels and Z >= w * channels"
    " and apart >= (last - first) * down * across * channels and V >= 16 * apart",
)  # fmt: skip
def inputs_numba(
    x: Array, v: Array, table: Array, zeros: Array, h: int, w: int, channels: int, first: int, last: int,
    left: int, upper: int, down: int, across: int, lanes: int, apart: int,
) -> None:  # fmt: skip
    """v = B^T d B of the pictures first..last, so many lines of tiles from ``upper`` on, from the column
    -left on, (16, tiles, C). ``table`` says where the four lines of each tile begin in a picture."""
    start = 0
    nothing = read(beside(FOUR, zeros, 0, 0), 0)
    for p in range(first, last):
        for i in range(upper, upper + down):
            lines = listed(FOUR, x, p * h * w * channels, table, 4 * i, zeros)
            for o in range(0, channels, lanes):
                # The columns of a tile: the last two are the first two of the next.
                d0, d1, d2, d3 = nothing if left > 0 else read(lines, o)
                p0, p1, p2, p3 = d0 - d2, d1 + d2, d2 - d1, d1 - d3  # B^T d
                d0, d1, d2, d3 = read(lines, (1 - left) * channels + o) if 0 <= 1 - left < w else nothing
                q0, q1, q2, q3 = d0 - d2, d1 + d2, d2 - d1, d1 - d3
                for j in range(across):
                    c = 2 * j + 2 - left
                    d0, d1, d2, d3 = read(lines, c * channels + o) if 0 <= c < w else nothing
                    r0, r1, r2, r3 = d0 - d2, d1 + d2, d2 - d1, d1 - d3
                    d0, d1, d2, d3 = read(lines, (c + 1) * channels + o) if 0 <= c + 1 < w else nothing
                    s0, s1, s2, s3 = d0 - d2, d1 + d2, d2 - d1, d1 - d3
                    sums = (
                        p0 - r0, q0 + r0, r0 - q0, q0 - s0, p1 - r1, q1 + r1, r1 - q1, q1 - s1,
                        p2 - r2, q2 + r2, r2 - q2, q2 - s2, p3 - r3, q3 + r3, r3 - q3, q3 - s3,
                    )  # fmt: skip
                    write(sums, beside(SIXTEEN, v, start + j * channels + o, apart), 0)
                    p0, p1, p2, p3, q0, q1, q2, q3 = r0, r1, r2, r3, s0, s1, s2, s3
            start += across * channels


@kernel(
    m="flat (M)", b="maybe flat (_)", added="maybe flat (Y)", y="out flat (Y)",
    where="0 <= first <= last and last * high * wide * channels <= Y and min(down, channels) > 0 <= upper"
    " and b.size in (0, channels) and lanes > 0 == channels % lanes"
    " and apart >= (last - first) * down * ((wide + 1) // 2) * channels and M >= 16 * apart",
)  # fmt: skip
def outputs_numba(
    m: Array, b: Array, added: Array, relu: bool, y: Array, high: int, wide: int, channels: int, first: int,
    last: int, upper: int, down: int, lanes: int, apart: int,
) -> None:  # fmt: skip
    """y = A^T m A + b, and what is added, with a ReLU behind it where asked: of the pictures first..last so
    many lines of tiles from ``upper`` on."""
    across, start = (wide + 1) // 2, 0
    for p in range(first, last):
        for i in range(upper, upper + down):
            below = wide * channels if 2 * i + 1 < high else 0
            for o in range(0, channels, lanes):
                for j in range(across):
                    at = start + j * channels + o
                    m0, m1, m2, m3 = read(beside(FOUR, m, at, apart), 0)
                    e0, o0 = m0 + m1 + m2, m1 - m2 - m3  # m A
                    m0, m1, m2, m3 = read(beside(FOUR, m, at + 4 * apart, apart), 0)
                    e1, o1 = m0 + m1 + m2, m1 - m2 - m3
                    m0, m1, m2, m3 = read(beside(FOUR, m, at + 8 * apart, apart), 0)
                    e2, o2 = m0 + m1 + m2, m1 - m2 - m3
                    m0, m1, m2, m3 = read(beside(FOUR, m, at + 12 * apart, apart), 0)
                    e3, o3 = m0 + m1 + m2, m1 - m2 - m3
                    y00, y01, y10, y11 = e0 + e1 + e2, o0 + o1 + o2, e1 - e2 - e3, o1 - o2 - o3
                    if b.size:
                        (bias,) = read(beside(ONE, b, o, 0), 0)
                        y00, y01, y10, y11 = y00 + bias, y01 + bias, y10 + bias, y11 + bias
                    # A pixel beyond the border is the one before: that is written last.
                    right = channels if 2 * j + 1 < wide else 0
                    at = ((p * high + 2 * i) * wide + 2 * j) * channels + o + right
                    if added.size:
                        a01, a00 = read(beside(TWO, added, at, -right), 0)
                        a11, a10 = read(beside(TWO, added, at + below, -right), 0)
                        y00, y01, y10, y11 = y00 + a00, y01 + a01, y10 + a10, y11 + a11
                    if relu:
                        y00, y01, y10, y11 = rectify(y00), rectify(y01), rectify(y10), rectify(y11)
                    write((y11, y10), beside(TWO, y, at + below, -right), 0)
                    write((y01, y00), beside(TWO, y, at, -right), 0)
            start += across * channels


@kernel(
    dy="flat (Y)", e="out flat (E)", zeros="flat (>= lanes)",
    where="0 <= first <= last and last * high * wide * channels <= Y and min(down, channels) > 0 <= upper"
    " and lanes > 0 == channels % lanes"
    " and apart >= (last - first) * down * ((wide + 1) // 2) * channels and E >= 16 * apart",
)  # fmt: skip
def gradients_numba(
    dy: Array, e: Array, zeros: Array, high: int, wide: int, channels: int, first: int, last: int,
    upper: int, down: int, lanes: int, apart: int,
) -> None:  # fmt: skip
    """e = A dy A^T, the adjoint of outputs_numba."""
    across, start = (wide + 1) // 2, 0
    (zero,) = read(beside(ONE, zeros, 0, 0), 0)
    for p in range(first, last):
        for i in range(upper, upper + down):
            below = wide * channels if 2 * i + 1 < high else 0
            for o in range(0, channels, lanes):
                for j in range(across):
                    right = channels if 2 * j + 1 < wide else 0
                    at = ((p * high + 2 * i) * wide + 2 * j) * channels + o
                    y0, z0 = read(beside(TWO, dy, at, right), 0)
                    y1, z1 = read(beside(TWO, dy, at + below, right), 0)
                    if right == 0:
                        z0, z1 = zero, zero
                    if below == 0:
                        y1, z1 = zero, zero
                    # A dy: above, above + below, above - below, -below; along the line the same
                    a1, a2, a3 = y0 + y1, y0 - y1, zero - y1
                    b1, b2, b3 = z0 + z1, z0 - z1, zero - z1
                    sums = (
                        y0, y0 + z0, y0 - z0, zero - z0, a1, a1 + b1, a1 - b1, zero - b1,
                        a2, a2 + b2, a2 - b2, zero - b2, a3, a3 + b3, a3 - b3, zero - b3,
                    )  # fmt: skip
                    write(sums, beside(SIXTEEN, e, start + j * channels + o, apart), 0)
            start += across * channels

"""3x3 convolution with stride 1 in 2.25 times fewer multiplications: Winograd's F(2x2, 3x3).

Two neighbouring outputs of a 3-tap filter share inputs, so four products do the work of six. With d four
inputs, g the filter, and * place by place:

    y = A^T [(G g) * (B^T d)]

    B^T = 1  0 -1  0      G = 1    0    0      A^T = 1  1  1  0
          0  1  1  0          1/2  1/2  1/2          0  1 -1 -1
          0 -1  1  0          1/2 -1/2  1/2
          0  1  0 -1          0    0    1

In two dimensions that is done along both axes: a tile of 4x4 inputs gives 2x2 outputs with 16 products in
place of 36. Summed over channels each of the 16 is a matrix product of its own:

    u = G w G^T          (16, C, O)       the kernel
    v = B^T d B          (16, tiles, C)   the pictures, cut into tiles that overlap by two
    y = A^T (v @ u) A    tiles of 2x2 outputs

    dw = G^T (v^T @ e) G    with e = A dy A^T        the adjoint; dx is a forward pass with the flipped kernel

Rounding: in float32, y and dx come out as near to the exact result as with im2col (2e-7 to 5e-7 of its size
in networks' shapes), dw up to three times as far (1e-6) where many tiles are summed. A test holds these.

Each thread takes some of the pictures, a few at a time, so that their tiles stay in its cache. The products
are those of tiles of another kind, of sums in registers: ``minires.backend.tile_products``.

Source: Winograd 1980, Arithmetic complexity of computations; Lavin and Gray 2015, Fast algorithms for
convolutional neural networks, arXiv:1509.09308.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import numpy as np

from minires import backend
from minires.backend import Array, kernel, simd, tile_products, tile_sums
from minires.backend.tile_products import Sizes
from minires.ops.conv2d import adjoint
from minires.ops.window import Window

G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
_G_TWICE = np.kron(G, G)  # along both axes: (16, 9)
_G_FLIPPED = np.kron(G[:, ::-1], G[:, ::-1])  # of the kernel turned by 180 degrees
_BLOCK = 2 << 20  # bytes of v and of the products in one block


# Even and odd pixels of a line are kept apart: a tile begins at every even pixel, so in the arrays of the
# even (and of the odd) pixels the tiles of a line lie side by side, and sums run over whole lines at a time.


@kernel(
    x="(N, H, W, C)", v="out flat (16, T, C)", evens="out flat (L, A, C)", odds="out flat (L, A, C)",
    even="out (A * C)", odd="out (A * C)",
    where="min(top, left) >= 0 and T >= N * ((L - 2) // 2) * (A - 1)",
)  # fmt: skip
def _inputs_numba(
    x: Array, v: Array, evens: Array, odds: Array, even: Array, odd: Array, top: int, left: int
) -> None:
    """v = B^T d B of the pictures x (n, H, W, C).

    evens, odds (lines, across + 1, C) take a picture with its border of zeros, even, odd one of their lines.
    """
    n, h, w, channels = x.shape
    lines, wide = evens.shape[0], evens.shape[1] * channels
    down, run = (lines - 2) // 2, wide - channels
    e_lines, o_lines = evens.reshape(lines, wide), odds.reshape(lines, wide)
    flat = v.reshape(16, v.shape[1] * channels)
    evens[...] = 0
    odds[...] = 0
    for p in range(n):
        for ih in range(min(h, lines - top)):
            for iw in range(min(w, 2 * evens.shape[1] - left)):
                source, at = x[p, ih, iw], (iw + left) // 2
                target = odds[ih + top, at] if (iw + left) % 2 else evens[ih + top, at]
                for c in range(channels):
                    target[c] = source[c]
        for i in range(down):
            start = (p * down + i) * run
            for k in range(4):
                # B^T d: a sum or difference of two lines of the picture
                one = 2 * i + (0 if k == 0 else 2 if k == 2 else 1)
                two = 2 * i + (3 if k == 3 else 1 if k == 2 else 2)
                e1, e2, o1, o2 = e_lines[one], e_lines[two], o_lines[one], o_lines[two]
                if k == 1:
                    for c in range(wide):
                        even[c] = e1[c] + e2[c]
                        odd[c] = o1[c] + o2[c]
                else:
                    for c in range(wide):
                        even[c] = e1[c] - e2[c]
                        odd[c] = o1[c] - o2[c]
                # (B^T d) B: the same along the line
                v0, v1 = flat[4 * k, start : start + run], flat[4 * k + 1, start : start + run]
                v2, v3 = flat[4 * k + 2, start : start + run], flat[4 * k + 3, start : start + run]
                next_even, next_odd = even[channels:], odd[channels:]
                for c in range(run):
                    v0[c] = even[c] - next_even[c]
                    v1[c] = odd[c] + next_even[c]
                    v2[c] = next_even[c] - odd[c]
                    v3[c] = odd[c] - next_odd[c]


@kernel(
    m="flat (16, T, C)", b="maybe (C)", y="out (N, H, W, C)", evens="out (4, E)", odds="out (4, E)",
    where="E >= (W + 1) // 2 * C and T * C >= N * ((H + 1) // 2) * E",
)  # fmt: skip
def _outputs_numba(m: Array, b: Array, relu: bool, y: Array, evens: Array, odds: Array) -> None:
    """y = A^T m A + b, with a ReLU behind it where asked, into the pictures y (n, OH, OW, O); evens, odds (4,
    across * O)."""
    n, high, wide, channels = y.shape
    run, zero = evens.shape[1], y.dtype.type(0)
    flat = m.reshape(16, m.shape[1] * channels)
    down = (high + 1) // 2
    for p in range(n):
        for i in range(down):
            start = (p * down + i) * run
            for k in range(4):
                m0, m1 = flat[4 * k, start : start + run], flat[4 * k + 1, start : start + run]
                m2, m3 = flat[4 * k + 2, start : start + run], flat[4 * k + 3, start : start + run]
                even, odd = evens[k], odds[k]
                for c in range(run):
                    even[c] = m0[c] + m1[c] + m2[c]
                    odd[c] = m1[c] - m2[c] - m3[c]
            for ow in range(wide):
                at = ow // 2 * channels
                lines = odds if ow % 2 else evens
                r0, r1 = lines[0, at : at + channels], lines[1, at : at + channels]
                r2, r3 = lines[2, at : at + channels], lines[3, at : at + channels]
                pixel = y[p, 2 * i, ow]
                for c in range(channels):
                    value = r0[c] + r1[c] + r2[c] + (b[c] if b.size else zero)
                    pixel[c] = zero if relu and value < zero else value  # NaN stays NaN
                if 2 * i + 1 < high:
                    pixel = y[p, 2 * i + 1, ow]
                    for c in range(channels):
                        value = r1[c] - r2[c] - r3[c] + (b[c] if b.size else zero)
                        pixel[c] = zero if relu and value < zero else value


@kernel(
    dy="(N, H, W, C)", e="out flat (16, T, C)", evens="out (>= 2, E)", odds="out (>= 2, E)",
    where="E >= (W + 1) // 2 * C and T * C >= N * ((H + 1) // 2) * E",
)  # fmt: skip
def _gradients_numba(dy: Array, e: Array, evens: Array, odds: Array) -> None:
    """e = A dy A^T, the adjoint of _outputs_numba; evens, odds (at least 2, across * O) take two lines."""
    n, high, wide, channels = dy.shape
    run, number = evens.shape[1], dy.dtype.type
    flat = e.reshape(16, e.shape[1] * channels)
    down = (high + 1) // 2
    evens[...] = 0
    odds[...] = 0
    for p in range(n):
        for i in range(down):
            start = (p * down + i) * run
            for line in range(2):
                if 2 * i + line == high:
                    evens[line] = 0
                    odds[line] = 0
                    continue
                for ow in range(wide):
                    source, at = dy[p, 2 * i + line, ow], ow // 2 * channels
                    target = odds[line, at : at + channels] if ow % 2 else evens[line, at : at + channels]
                    for c in range(channels):
                        target[c] = source[c]
            for k in range(4):
                e0, e1 = flat[4 * k, start : start + run], flat[4 * k + 1, start : start + run]
                e2, e3 = flat[4 * k + 2, start : start + run], flat[4 * k + 3, start : start + run]
                # A dy: above, above + below, above - below, -below
                one, two = number(1 if k < 3 else 0), number(0 if k == 0 else 1 if k == 1 else -1)
                for c in range(run):
                    even = one * evens[0, c] + two * evens[1, c]
                    odd = one * odds[0, c] + two * odds[1, c]
                    # (A dy) A^T: the same along the line
                    e0[c] = even
                    e1[c] = even + odd
                    e2[c] = even - odd
                    e3[c] = -odd


class _Block(NamedTuple):
    """Tiles that are computed together: the lines top..bottom of them, of the pictures first..last."""

    first: int
    last: int
    top: int
    bottom: int


class _Tiles:
    """How pictures are cut into tiles of 2x2 outputs, and into blocks of about _BLOCK bytes: of a few
    pictures, or, where these are large or fewer than threads, of some lines of one."""

    def __init__(self, win: Window, pictures: int, channels: int, outputs: int, itemsize: int) -> None:
        self.win = win
        down, self.across = (win.out[0] + 1) // 2, (win.out[1] + 1) // 2
        size = 16 * down * self.across * (channels + outputs) * itemsize  # of one picture, in bytes
        strips = min(down, max(-(-size // _BLOCK), -(-backend.threads() // pictures)))
        whole = max(backend.threads(), round(pictures * size / _BLOCK))
        count = pictures if strips > 1 else min(pictures, whole)
        self.blocks = [
            _Block(*some, *lines)
            for some in backend.split(0, pictures, count)
            for lines in backend.split(0, down, strips)
        ]

    def count(self, block: _Block) -> int:
        """The tiles of a block."""
        return (block.last - block.first) * (block.bottom - block.top) * self.across

    def room(self, blocks: list[_Block], channels: int, dtype: np.dtype) -> Array:
        """Room for the largest block, flat."""
        return np.empty(16 * channels * max(map(self.count, blocks)), dtype)

    def view(self, room: Array, block: _Block, channels: int) -> Array:
        """The first numbers of ``room`` as (16, tiles, channels) of a block."""
        shape = (16, self.count(block), channels)
        return room[: math.prod(shape)].reshape(shape)

    def lines(self, channels: int, dtype: np.dtype) -> tuple[Array, Array]:
        """Room for the even and for the odd pixels of four lines."""
        evens, odds = np.empty((2, 4, self.across * channels), dtype)
        return evens, odds

    def read(self, x: Array, block: _Block, v: Array) -> None:
        """v of the pictures x (N, H, W, C), for a block."""
        high, channels = 2 * (block.bottom - block.top) + 2, x.shape[-1]
        evens, odds = np.empty((2, high, self.across + 1, channels), x.dtype)
        even, odd = np.empty((2, (self.across + 1) * channels), x.dtype)
        line = 2 * block.top - self.win.top
        seen = x[block.first : block.last, max(0, line) : max(0, line + high)]
        _inputs_numba(seen, v, evens, odds, even, odd, max(0, -line), self.win.left)

    def gradients(self, dy: Array, block: _Block, e: Array) -> None:
        """e of the gradients dy (N, OH, OW, O), for a block."""
        seen = dy[block.first : block.last, 2 * block.top : 2 * block.bottom]
        _gradients_numba(seen, e, *self.lines(dy.shape[-1], dy.dtype))

    def write(self, m: Array, b: Array, relu: bool, y: Array, block: _Block) -> None:
        """The outputs y (N, OH, OW, O) of the products m, for a block."""
        seen = y[block.first : block.last, 2 * block.top : 2 * block.bottom]
        _outputs_numba(m, b, relu, seen, *self.lines(y.shape[-1], y.dtype))


def _sizes(depth: int, outputs: int, row: int, tiles: int) -> Sizes:
    """16 products of (tiles, depth) with (depth, outputs), whose kernel's rows are ``row`` numbers long."""
    return Sizes(depth, outputs, 16, tiles * depth, tiles * outputs, depth * outputs, 0, row)


def forward(x: Array, w: Array, b: Array | None, relu: bool, win: Window, groups: int) -> Array:
    """conv2d of x (N, H, W, C) with w (3, 3, C, O), stride 1, one group; then a ReLU where asked."""
    u = backend.matmul(_G_TWICE.astype(x.dtype), w.reshape(9, -1))
    return _convolve(x, u, w.shape[-1], b, relu, win)


def backward_x(dy: Array, w: Array, shape: tuple[int, ...], win: Window, groups: int) -> Array:
    """dx of ``shape`` (N, H, W, C): forward through the adjoint, with the kernel flipped by its transform."""
    u = backend.matmul(_G_FLIPPED.astype(dy.dtype), w.reshape(9, -1))
    return _convolve(dy, u, shape[-1], None, False, adjoint.window(win, shape), turned=True)


def _convolve(
    x: Array, u: Array, outputs: int, b: Array | None, relu: bool, win: Window, *, turned: bool = False
) -> Array:
    """A^T (v @ u) A of x (N, H, W, C) and u (16, C * O), or, turned, (16, O * C): some pictures at a time."""
    channels = x.shape[-1]
    y = np.empty((len(x), *win.out, outputs), x.dtype)
    b = np.empty(0, x.dtype) if b is None else b
    tiles, tile = _Tiles(win, len(x), channels, outputs, x.itemsize), simd.shape(outputs, x.dtype)
    row = channels if turned else outputs
    packed = tile_products.pack(tile, u, _sizes(channels, outputs, row, 0), turned=turned)

    def chunk(start: int, stop: int) -> None:
        blocks = tiles.blocks[start:stop]
        inputs, products = (tiles.room(blocks, count, x.dtype) for count in (channels, outputs))
        for block in blocks:
            v, m = tiles.view(inputs, block, channels), tiles.view(products, block, outputs)
            tiles.read(x, block, v)
            rows = tile_products.rows_of(v.shape[1], channels, outputs, len(tile[0]))
            sizes = _sizes(channels, outputs, row, v.shape[1])
            tile_products.products(tile, v, u, m, rows, sizes, turned=turned, packed=packed)
            tiles.write(m, b, relu, y, block)

    backend.parallel_for(chunk, len(tiles.blocks))
    return y


def backward_w(dy: Array, x: Array, shape: tuple[int, ...], win: Window, groups: int) -> Array:
    """dw of ``shape`` (3, 3, C, O)."""
    channels, outputs = x.shape[-1], shape[-1]
    tiles = _Tiles(win, len(x), channels, outputs, x.itemsize)
    parts = backend.chunks(len(tiles.blocks))
    sums = np.empty((len(parts), 16, channels, outputs), x.dtype)

    def chunk(part: int, start: int, stop: int) -> None:
        blocks = tiles.blocks[start:stop]
        inputs, gradients = (tiles.room(blocks, count, x.dtype) for count in (channels, outputs))
        for number, block in enumerate(blocks):
            v, e = tiles.view(inputs, block, channels), tiles.view(gradients, block, outputs)
            tiles.read(x, block, v)
            tiles.gradients(dy, block, e)
            rows, sizes = tile_sums.rows_of(v.shape[1]), _sizes(channels, outputs, outputs, v.shape[1])
            tile_sums.sums_over_places(v, e, sums[part], rows, sizes, channels, outputs, grows=number > 0)

    backend.parallel_calls([partial(chunk, number, *part) for number, part in enumerate(parts)])
    # G^T s G of all parts, which also adds them up
    back = np.tile(_G_TWICE.T.astype(x.dtype), len(parts))
    return backend.matmul(back, sums.reshape(16 * len(parts), -1)).reshape(shape)

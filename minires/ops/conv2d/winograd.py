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
in networks' shapes), dw up to three times as far (1e-6) where many tiles are summed. A test holds these. Each
thread sums a dw of its own, so that its last bits hang on how many threads there are.

Each thread takes some of the pictures, a few at a time, so that their tiles stay in its cache. The kernels
are in ``winograd_kernels.py``; the products are those of tiles of another kind, of sums in registers
(``minires.backend.tile_products``).

Source: Winograd 1980, Arithmetic complexity of computations; Lavin and Gray 2015, Fast algorithms for
convolutional neural networks, arXiv:1509.09308.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from minires import backend
from minires.backend import Array, simd
from minires.ops.conv2d import adjoint
from minires.ops.conv2d import winograd_kernels as kernels
from minires.ops.window import Window

G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
_G_TWICE = np.kron(G, G)  # along both axes: (16, 9)
_G_FLIPPED = np.kron(G[:, ::-1], G[:, ::-1])  # of the kernel turned by 180 degrees
_BLOCK = 2 << 20  # bytes of v and of the products in one block
SUMMED = 256  # tiles in a block of dw, at least: for each block the sums are read and written once


def tile() -> simd.Shape:
    """The one tile of its products: each more is compiled for seconds."""
    return simd.shapes()[0]


def square() -> simd.Shape:
    """The one tile of its sums over places."""
    return simd.square(256, 256, np.float32)


class Cut(NamedTuple):
    """How pictures are cut into tiles of 2x2 outputs, and into blocks of about _BLOCK bytes: of a few
    pictures, or, where these are large or fewer than threads, of some lines of one.

    blocks (N, 4): the first and the last picture, the first and the last line of tiles.
    parts: of the blocks, one for each thread that sums.
    room: the numbers that a thread needs for a block.
    table, out, sees: where the tiles of a block lie, for ``products``.
    rows, starts, runs: the same of each block, for ``sums_over_places``.
    """

    blocks: Array
    parts: list[tuple[int, int]]
    room: int
    table: Array
    out: Array
    sees: Array
    rows: Array
    starts: Array
    runs: Array


@functools.lru_cache(maxsize=64)
def cut(
    win: Window, pictures: int, channels: int, outputs: int, dtype: np.dtype, threads: int, least: int = 1
) -> Cut:
    """For a convolution of so many pictures; its blocks have ``least`` tiles where there are so many."""
    down, across = (win.out[0] + 1) // 2, (win.out[1] + 1) // 2
    tiles = max(least, _BLOCK // (16 * (channels + outputs) * dtype.itemsize))
    strips = min(down, max(-(-down * across // tiles), -(-threads // pictures)))
    groups = -(-round(pictures * down * across / tiles) // threads) * threads  # as much for each thread
    some = backend.split(0, pictures, pictures if strips > 1 else min(pictures, max(threads, groups)))
    lines = backend.split(0, down, strips)
    blocks = np.array([(*one, *line) for one in some for line in lines], np.int32)
    deep = blocks[:, 3] - blocks[:, 2]
    many = (blocks[:, 1] - blocks[:, 0]) * deep * across
    most, high = int(many.max()), len(tile()[0])
    room = 16 * most * (channels + outputs) + 128
    room += 4 * (across + 1) * max((int(deep.max()) + 2) * channels, 2 * outputs)
    index = np.minimum(np.arange(-(-most // high) * high + simd.MOST_ROWS), most - 1).astype(np.int32)
    none = np.zeros_like(many)
    return Cut(
        blocks, backend.split(0, len(blocks), min(threads, len(blocks))), room,
        index * np.int32(channels), index * np.int32(outputs), np.ones(-(-most // high), np.uint8),
        np.stack([none, many, none, many], 1).astype(np.int64), np.array([[0, 1]], np.int32),
        np.stack([none, none, many], 1).astype(np.int32)[..., None],
    )  # fmt: skip


def panels(w: Array, channels: int, outputs: int, *, turned: bool) -> Array:
    """u of w (3, 3, C, O) for tiles of sums, or, turned, of the kernel of the way back (3, 3, O, C): a kernel
    of so many ``channels`` and ``outputs``."""
    width, lanes = simd.width(tile(), w.dtype), simd.lanes(w.dtype)
    u = np.empty(16 * -(-outputs // width) * channels * width, w.dtype)
    g, zeros, w = transform(w.dtype, turned=turned), np.zeros(lanes, w.dtype), w.reshape(-1)

    def chunk(start: int, stop: int) -> None:
        room = np.empty(16 * lanes * lanes, w.dtype)
        kernels.panels_numba(
            kernels.EIGHT, kernels.ONE, w, g, zeros, u, room, turned, channels, outputs, width, lanes, start,
            stop,
        )  # fmt: skip

    backend.parallel_for(chunk, units(channels, outputs, width, lanes))
    return u


def transform(dtype: np.dtype, *, turned: bool) -> Array:
    """G along both axes, flat, of (16, 9), for a kernel or for the one turned by 180 degrees."""
    return (_G_FLIPPED if turned else _G_TWICE).astype(dtype).reshape(-1)


def zeros_of(channels: int, outputs: int, width: int) -> int:
    """How many zeros ``convolve_numba`` needs."""
    return max(16 * -(-outputs // width) * width, channels)


def units(channels: int, outputs: int, width: int, lanes: int) -> int:
    """Into how many parts the panels of a kernel can be cut."""
    return -(-outputs // width) * -(-channels // lanes)


def forward(x: Array, w: Array, b: Array | None, relu: bool, win: Window, groups: int) -> Array:
    """conv2d of x (N, H, W, C) with w (3, 3, C, O), stride 1, one group; then a ReLU where asked."""
    return _convolve(x, w, w.shape[-1], b, relu, win)


def backward_x(dy: Array, w: Array, shape: tuple[int, ...], win: Window, groups: int) -> Array:
    """dx of ``shape`` (N, H, W, C): forward through the adjoint, with the kernel flipped by its transform."""
    return _convolve(dy, w, shape[-1], None, False, adjoint.window(win, shape), turned=True)


def _convolve(
    x: Array, w: Array, outputs: int, b: Array | None, relu: bool, win: Window, *, turned: bool = False
) -> Array:
    """A^T (v @ u) A of x (N, H, W, C)."""
    n, *picture = x.shape
    y, none = np.empty((n, *win.out, outputs), x.dtype), np.empty(0, x.dtype)
    u = panels(w, picture[-1], outputs, turned=turned)
    width, b = simd.width(tile(), x.dtype), none if b is None else np.ascontiguousarray(b)
    made = cut(win, n, picture[-1], outputs, x.dtype, backend.threads())
    zeros, taps = np.zeros(zeros_of(picture[-1], outputs, width), x.dtype), np.zeros(1, np.int64)
    x, flat = x.reshape(-1), y.reshape(-1)

    def chunk(start: int, stop: int) -> None:
        kernels.convolve_numba(
            *tile(), x, u, b, none, flat, relu, made.blocks, made.table, made.out, taps, made.sees, zeros,
            np.empty(made.room, x.dtype), *picture, *win.out, outputs, win.top, win.left, width, start, stop,
        )  # fmt: skip

    backend.parallel_for(chunk, len(made.blocks))
    return y


def backward_w(dy: Array, x: Array, shape: tuple[int, ...], win: Window, groups: int) -> Array:
    """dw of ``shape`` (3, 3, C, O)."""
    (n, *picture), (_, _, depth, outputs) = x.shape, shape
    made = cut(win, n, depth, outputs, x.dtype, backend.threads(), SUMMED)
    width = simd.width(square(), x.dtype)
    totals = np.empty((len(made.parts), 16 * depth * outputs), x.dtype)
    x, dy, zeros = x.reshape(-1), dy.reshape(-1), np.zeros(width, x.dtype)

    def chunk(part: int, start: int, stop: int) -> None:
        kernels.correlate_numba(
            *square(), x, dy, totals[part], made.blocks, made.rows, made.starts, made.runs, zeros,
            np.empty(made.room, x.dtype), *picture, *win.out, outputs, win.top, win.left, width, start, stop,
        )  # fmt: skip

    backend.parallel_calls([functools.partial(chunk, i, *part) for i, part in enumerate(made.parts)])
    return backend.matmul(back(made, x.dtype), totals.reshape(-1, depth * outputs)).reshape(shape)


def back(made: Cut, dtype: np.dtype) -> Array:
    """G^T s G of the sums s of all parts, which also adds them up: (9, 16 * parts)."""
    return np.tile(_G_TWICE.T.astype(dtype), len(made.parts))

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

Rounding: in float32, y and dx come out up to twice as far from the exact result as with im2col (2e-7 to 7e-7
of its size in networks' shapes), dw up to three times (1e-6) where many tiles are summed. A test holds these.
Each thread sums a dw of its own, so that its last bits hang on how many threads there are.

Each thread takes some of the pictures, a few at a time, so that their tiles stay in its cache. The kernels
are in ``winograd_transforms.py`` and ``winograd_kernels.py``. They take channels and outputs by whole vectors
(``minires.backend.simd``): of both there must be a multiple of a vector's.

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
from minires.ops.conv2d import winograd_transforms as transforms
from minires.ops.window import Window

G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
_G_TWICE = np.kron(G, G)  # along both axes: (16, 9)
_G_FLIPPED = np.kron(G[:, ::-1], G[:, ::-1])  # of the kernel turned by 180 degrees
_BLOCK = 1 << 19  # bytes of v and of the products in one block
_LEAST = 96  # tiles in a block where there are so many: for each block the kernel is read, or the sums


def square() -> simd.Shape:
    """The one tile of its sums: half of the registers hold them."""
    return (0,) * (simd.processor()[1] // 4), (0,) * 2


class Cut(NamedTuple):
    """How pictures are cut into tiles of 2x2 outputs, and into blocks of about _BLOCK bytes: of a few
    pictures, or, where these are large or fewer than threads, of some lines of one.

    blocks (N, 4): the first and the last picture, the first and the last line of tiles.
    parts: of the blocks, one for each thread that sums.
    room: the numbers that a thread needs for a block.
    lines: where the four lines of each line of tiles begin in a picture, -1 outside.
    """

    blocks: Array
    parts: list[tuple[int, int]]
    room: int
    lines: Array


@functools.lru_cache(maxsize=64)
def cut(win: Window, shape: tuple[int, ...], outputs: int, dtype: np.dtype, threads: int) -> Cut:
    """For a convolution of pictures (N, H, W, C)."""
    pictures, high, wide, channels = shape
    down, across = (win.out[0] + 1) // 2, (win.out[1] + 1) // 2
    tiles = max(_LEAST, _BLOCK // (16 * (channels + outputs) * dtype.itemsize))
    strips = min(down, max(-(-down * across // tiles), -(-threads // pictures)))
    groups = -(-round(pictures * down * across / tiles) // threads) * threads  # as much for each thread
    some = backend.split(0, pictures, pictures if strips > 1 else min(pictures, max(threads, groups)))
    lines = backend.split(0, down, strips)
    blocks = np.array([(*one, *line) for one in some for line in lines], np.int32)
    deep = blocks[:, 3] - blocks[:, 2]
    many = (blocks[:, 1] - blocks[:, 0]) * deep * across
    line = (2 * np.arange(down)[:, None] + np.arange(4) - win.top).reshape(-1)
    begins = np.where((line >= 0) & (line < high), line * wide * channels, -1).astype(np.int32)
    room = 16 * (int(many.max()) * (channels + outputs) + 2 * simd.lanes(dtype))
    room += simd.MOST_ROWS * (channels + outputs)  # rows of sums may reach beyond
    return Cut(blocks, backend.split(0, len(blocks), min(threads, len(blocks))), room, begins)


def panels(w: Array, channels: int, outputs: int, *, turned: bool) -> Array:
    """u of w (3, 3, C, O) for tiles of products, or, turned, of the kernel of the way back (3, 3, O, C): a
    kernel of so many ``channels`` and ``outputs``."""
    width, lanes = simd.width(simd.shape(outputs, w.dtype), w.dtype), simd.lanes(w.dtype)
    u = backend.empty((16 * -(-outputs // width) * channels * width,), w.dtype)
    g, zeros, w = transform(w.dtype, turned=turned), np.zeros(lanes, w.dtype), w.reshape(-1)

    def chunk(start: int, stop: int) -> None:
        room = backend.empty((16 * lanes * lanes,), w.dtype)
        transforms.panels_numba(
            transforms.EIGHT, transforms.ONE, w, g, zeros, u, room, turned, channels, outputs, width, lanes,
            start, stop,
        )  # fmt: skip

    backend.parallel_for(chunk, units(channels, outputs, width, lanes))
    return u


def transform(dtype: np.dtype, *, turned: bool) -> Array:
    """G along both axes, flat, of (16, 9), for a kernel or for the one turned by 180 degrees."""
    return (_G_FLIPPED if turned else _G_TWICE).astype(dtype).reshape(-1)


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
    tile, b = simd.shape(outputs, x.dtype), none if b is None else np.ascontiguousarray(b)
    made = cut(win, x.shape, outputs, x.dtype, backend.threads())
    width = simd.width(tile, x.dtype)
    zeros = np.zeros(max(width, picture[1] * picture[2]), x.dtype)
    x, flat = x.reshape(-1), y.reshape(-1)

    def chunk(start: int, stop: int) -> None:
        room = backend.empty((made.room,), x.dtype)
        kernels.convolve_numba(
            *tile, x, u, b, none, flat, relu, made.blocks, made.lines, zeros, room, *picture, *win.out,
            outputs, win.left, width, start, stop,
        )  # fmt: skip

    backend.parallel_for(chunk, len(made.blocks))
    return y


def backward_w(dy: Array, x: Array, shape: tuple[int, ...], win: Window, groups: int) -> Array:
    """dw of ``shape`` (3, 3, C, O)."""
    (_, *picture), (_, _, depth, outputs) = x.shape, shape
    made = cut(win, x.shape, outputs, x.dtype, backend.threads())
    width = simd.width(square(), x.dtype)
    totals = backend.empty((len(made.parts), 16 * depth * outputs), x.dtype)
    zeros = np.zeros(max(width, picture[1] * depth), x.dtype)
    x, dy = x.reshape(-1), dy.reshape(-1)

    def chunk(part: int, start: int, stop: int) -> None:
        room = backend.empty((made.room,), x.dtype)
        kernels.correlate_numba(
            *square(), x, dy, totals[part], made.blocks, made.lines, zeros, room, *picture, *win.out, outputs,
            win.left, width, start, stop,
        )  # fmt: skip

    backend.parallel_calls([functools.partial(chunk, i, *part) for i, part in enumerate(made.parts)])
    return backend.matmul(back(made, x.dtype), totals.reshape(-1, depth * outputs)).reshape(shape)


def back(made: Cut, dtype: np.dtype) -> Array:
    """G^T s G of the sums s of all parts, which also adds them up: (9, 16 * parts)."""
    return np.tile(_G_TWICE.T.astype(dtype), len(made.parts))

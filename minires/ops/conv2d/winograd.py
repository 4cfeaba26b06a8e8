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

Each thread takes some of the pictures, a few at a time, so that their tiles stay in its cache. Only where the
kernel is much the larger matrix (few and small pictures, many channels) the tiles of all pictures are made
first, and the 16 products are shared out: each thread then reads a part of the kernel, and not all of it.

Source: Winograd 1980, Arithmetic complexity of computations; Lavin and Gray 2015, Fast algorithms for
convolutional neural networks, arXiv:1509.09308.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np

from minires import backend
from minires.backend import Array, kernel
from minires.ops.conv2d import adjoint
from minires.ops.conv2d.columns import epilogue
from minires.ops.window import Window

G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
_G_TWICE = np.kron(G, G)  # along both axes: (16, 9)
_G_FLIPPED = np.kron(G[:, ::-1], G[:, ::-1])  # of the kernel turned by 180 degrees
_BLOCK = 2 << 20  # bytes of v and of the products in one block
_SMALL_KERNEL = 64  # times the tiles; with a larger one the 16 products are shared out, not the pictures


# Even and odd pixels of a line are kept apart: a tile begins at every even pixel, so in the arrays of the
# even (and of the odd) pixels the tiles of a line lie side by side, and sums run over whole lines at a time.


@kernel(
    x="(N, H, W, C)", v="out flat (16, T, C)", evens="out flat (L, A, C)", odds="out flat (L, A, C)",
    even="out (A * C)", odd="out (A * C)",
    where="min(first, top, left) >= 0 and T >= (first + N) * ((L - 2) // 2) * (A - 1)",
)  # fmt: skip
def _inputs_numba(
    x: Array, first: int, v: Array, evens: Array, odds: Array, even: Array, odd: Array, top: int, left: int
) -> None:
    """v = B^T d B of the pictures x (n, H, W, C), whose tiles in v begin with those of picture ``first``.

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
            start = ((first + p) * down + i) * run
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
    m="flat (16, T, C)", y="out (N, H, W, C)", evens="out (4, E)", odds="out (4, E)",
    where="first >= 0 and E >= (W + 1) // 2 * C and T * C >= (first + N) * ((H + 1) // 2) * E",
)  # fmt: skip
def _outputs_numba(m: Array, first: int, y: Array, evens: Array, odds: Array) -> None:
    """y = A^T m A into the pictures y (n, OH, OW, O); evens, odds (4, across * O)."""
    n, high, wide, channels = y.shape
    run = evens.shape[1]
    flat = m.reshape(16, m.shape[1] * channels)
    down = (high + 1) // 2
    for p in range(n):
        for i in range(down):
            start = ((first + p) * down + i) * run
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
                    pixel[c] = r0[c] + r1[c] + r2[c]
                if 2 * i + 1 < high:
                    pixel = y[p, 2 * i + 1, ow]
                    for c in range(channels):
                        pixel[c] = r1[c] - r2[c] - r3[c]


@kernel(
    dy="(N, H, W, C)", e="out flat (16, T, C)", evens="out (>= 2, E)", odds="out (>= 2, E)",
    where="first >= 0 and E >= (W + 1) // 2 * C and T * C >= (first + N) * ((H + 1) // 2) * E",
)  # fmt: skip
def _gradients_numba(dy: Array, first: int, e: Array, evens: Array, odds: Array) -> None:
    """e = A dy A^T, the adjoint of _outputs_numba; evens, odds (at least 2, across * O) take two lines."""
    n, high, wide, channels = dy.shape
    run, number = evens.shape[1], dy.dtype.type
    flat = e.reshape(16, e.shape[1] * channels)
    down = (high + 1) // 2
    evens[...] = 0
    odds[...] = 0
    for p in range(n):
        for i in range(down):
            start = ((first + p) * down + i) * run
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


class _Tiles:
    """How pictures are cut into tiles of 2x2 outputs, and into blocks of a few pictures."""

    def __init__(self, win: Window, channels: int, outputs: int, itemsize: int) -> None:
        self.win = win
        self.down, self.across = (win.out[0] + 1) // 2, (win.out[1] + 1) // 2
        self.count = self.down * self.across  # of one picture
        self.bytes = 16 * self.count * (channels + outputs) * itemsize

    def blocks(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The pictures start..stop in blocks of about _BLOCK bytes."""
        count = max(1, min(stop - start, round((stop - start) * self.bytes / _BLOCK)))
        return backend.split(start, stop, count)

    def view(self, room: Array, pictures: int) -> Array:
        """The first numbers of ``room`` (16, most, channels) as (16, tiles, channels) of so many pictures."""
        shape = (16, pictures * self.count, room.shape[2])
        return room.reshape(-1)[: math.prod(shape)].reshape(shape)

    def are_few(self, pictures: int, kernel: int) -> bool:
        """Whether ``kernel``, its numbers, are so many that each thread does better to read a part of it."""
        return kernel > _SMALL_KERNEL * pictures * self.count

    def room(self, blocks: list[tuple[int, int]], channels: int, dtype: np.dtype) -> Array:
        """Room for the largest block."""
        return np.empty((16, self.count * max(last - first for first, last in blocks), channels), dtype)

    def lines(self, channels: int, dtype: np.dtype) -> tuple[Array, Array]:
        """Room for the even and for the odd pixels of four lines."""
        evens, odds = np.empty((2, 4, self.across * channels), dtype)
        return evens, odds

    def read(self, x: Array, v: Array, first: int = 0) -> Array:
        """v of the pictures x, in its place from that of picture ``first`` on."""
        evens, odds = np.empty((2, 2 * self.down + 2, self.across + 1, x.shape[-1]), x.dtype)
        even, odd = np.empty((2, (self.across + 1) * x.shape[-1]), x.dtype)
        _inputs_numba(x, first, v, evens, odds, even, odd, self.win.top, self.win.left)
        return v

    def gradients(self, dy: Array, e: Array, first: int = 0) -> Array:
        """e of the gradients dy, in its place from that of picture ``first`` on."""
        _gradients_numba(dy, first, e, *self.lines(dy.shape[-1], dy.dtype))
        return e

    def write(self, m: Array, y: Array, first: int = 0) -> None:
        """The outputs y of the products m from those of picture ``first`` on."""
        _outputs_numba(m, first, y, *self.lines(y.shape[-1], y.dtype))

    def whole(self, read: Callable[[Array, Array, int], Array], pictures: Array) -> Array:
        """What ``read`` makes of all pictures (16, tiles, channels)."""
        tiles = np.empty((16, len(pictures) * self.count, pictures.shape[-1]), pictures.dtype)

        def chunk(start: int, stop: int) -> None:
            read(pictures[start:stop], tiles, start)

        backend.parallel_for(chunk, len(pictures))
        return tiles


def forward(x: Array, w: Array, b: Array | None, relu: bool, win: Window, groups: int) -> Array:
    """conv2d of x (N, H, W, C) with w (3, 3, C/G, O), stride 1, with a ReLU behind it where asked."""
    u = backend.matmul(_G_TWICE.astype(x.dtype), w.reshape(9, -1))
    return _convolve(x, _by_group(u.reshape(16, *w.shape[2:]), groups), b, relu, win)


def backward_x(dy: Array, w: Array, shape: tuple[int, ...], win: Window, groups: int) -> Array:
    """dx of ``shape`` (N, H, W, C): forward through the adjoint, with the kernel flipped by its transform."""
    u = backend.matmul(_G_FLIPPED.astype(dy.dtype), w.reshape(9, -1))
    u = _by_group(u.reshape(16, *w.shape[2:]), groups).swapaxes(2, 3)
    if u.nbytes < _BLOCK:  # then BLAS gains more from matrices in order than it takes to put them so
        u = np.ascontiguousarray(u)
    return _convolve(dy, u, None, False, adjoint.window(win, shape))


def _by_group(matrices: Array, groups: int) -> Array:
    """(16, R, C) -> the view (16, G, R, C/G)."""
    count, rows, columns = matrices.shape
    return matrices.reshape(count, rows, groups, columns // groups).swapaxes(1, 2)


def _convolve(x: Array, u: Array, b: Array | None, relu: bool, win: Window) -> Array:
    """A^T (v @ u) A of x (N, H, W, C) and u (16, G, C/G, O/G), a few pictures at a time."""
    _, groups, channels, outputs = u.shape
    channels, outputs = groups * channels, groups * outputs
    y = np.empty((len(x), *win.out, outputs), x.dtype)
    tiles = _Tiles(win, channels, outputs, x.itemsize)

    def chunk(start: int, stop: int) -> None:
        blocks = tiles.blocks(start, stop)
        inputs, products = (tiles.room(blocks, count, x.dtype) for count in (channels, outputs))
        for first, last in blocks:
            v = tiles.read(x[first:last], tiles.view(inputs, last - first))
            m = tiles.view(products, last - first)
            np.matmul(_by_group(v, groups), u, out=_by_group(m, groups))
            write(m, 0, first, last)

    def write(m: Array, at: int, first: int, last: int) -> None:
        tiles.write(m, y[first:last], at)
        epilogue(y[first:last], b, relu)

    if tiles.are_few(len(x), u[0].size):
        m = np.empty((16, len(x) * tiles.count, outputs), x.dtype)
        _multiply(_by_group(tiles.whole(tiles.read, x), groups), u, _by_group(m, groups))
        backend.parallel_for(lambda start, stop: write(m, start, start, stop), len(x))
    else:
        backend.parallel_for(chunk, len(x))
    return y


def _multiply(a: Array, b: Array, out: Array) -> None:
    """out = a @ b, 16 products shared out among the threads."""
    backend.parallel_for(lambda i, j: np.matmul(a[i:j], b[i:j], out=out[i:j]), 16)


def backward_w(dy: Array, x: Array, shape: tuple[int, ...], win: Window, groups: int) -> Array:
    """dw of ``shape`` (3, 3, C/G, O)."""
    channels, outputs = x.shape[-1], shape[-1]
    tiles = _Tiles(win, channels, outputs, x.itemsize)
    few = tiles.are_few(len(x), shape[2] * outputs)
    parts = backend.chunks(1 if few else len(x))
    sums = np.empty((len(parts), 16, groups, shape[2], outputs // groups), x.dtype)

    def chunk(part: int, start: int, stop: int) -> None:
        blocks = tiles.blocks(start, stop)
        inputs, gradients = (tiles.room(blocks, count, x.dtype) for count in (channels, outputs))
        product = np.empty_like(sums[0]) if len(blocks) > 1 else sums[part]
        for number, (first, last) in enumerate(blocks):
            v = tiles.read(x[first:last], tiles.view(inputs, last - first))
            e = tiles.gradients(dy[first:last], tiles.view(gradients, last - first))
            target = product if number else sums[part]
            np.matmul(_by_group(v, groups).swapaxes(2, 3), _by_group(e, groups), out=target)
            if number:
                sums[part] += product

    if few:
        v, e = tiles.whole(tiles.read, x), tiles.whole(tiles.gradients, dy)
        _multiply(_by_group(v, groups).swapaxes(2, 3), _by_group(e, groups), sums[0])
    else:
        backend.parallel_calls([partial(chunk, number, *part) for number, part in enumerate(parts)])
    # G^T s G of all parts, which also adds them up
    back = np.tile(_G_TWICE.T.astype(x.dtype), len(parts))
    dw = backend.matmul(back, sums.reshape(16 * len(parts), -1))  # (9, G * C/G * O/G)
    return dw.reshape(9, groups, shape[2], -1).swapaxes(1, 2).reshape(shape)

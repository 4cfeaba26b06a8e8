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

The transforms add and subtract whole lines of pixels at a time. Rounding: in float32, y and dx come out as
near to the exact result as with im2col (2e-7 to 5e-7 of its size in networks' shapes), dw up to three times
as far (1e-6) where many tiles are summed. A test holds these.

Source: Winograd 1980, Arithmetic complexity of computations; Lavin and Gray 2015, Fast algorithms for
convolutional neural networks, arXiv:1509.09308.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from minires import backend
from minires.backend import Array, kernel
from minires.ops.window import Window

G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
_BLOCK = 2 << 20  # bytes of v and of the products in one block


@kernel
def _inputs_numba(x, v, lines, top, left, across):
    """v = B^T d B of the pictures x (n, H, W, C); lines (4, W', C) is room for four lines of pixels."""
    n, h, w, channels = x.shape
    tiles = v.shape[1] // n
    wide = min(w, lines.shape[1] - left) * channels
    flat = x.reshape(n, h, w * channels)
    rows = lines.reshape(4, lines.shape[1] * channels)
    start = left * channels
    for p in range(n):
        for i in range(tiles // across):
            rows[...] = 0
            for k in range(4):  # B^T d: line k is the sum or difference of two lines of the picture
                first = 2 * i - top + (0 if k == 0 else 1 if k != 2 else 2)
                second = 2 * i - top + (3 if k == 3 else 2 if k != 2 else 1)
                line = rows[k, start : start + wide]
                if 0 <= first < h:
                    source = flat[p, first]
                    for c in range(wide):
                        line[c] = source[c]
                if 0 <= second < h:
                    source = flat[p, second]
                    if k == 1:
                        for c in range(wide):
                            line[c] += source[c]
                    else:
                        for c in range(wide):
                            line[c] -= source[c]
            for j in range(across):  # (B^T d) B: the same along the line
                t = p * tiles + i * across + j
                for k in range(4):
                    d0, d1 = lines[k, 2 * j], lines[k, 2 * j + 1]
                    d2, d3 = lines[k, 2 * j + 2], lines[k, 2 * j + 3]
                    v0, v1, v2, v3 = v[4 * k, t], v[4 * k + 1, t], v[4 * k + 2, t], v[4 * k + 3, t]
                    for c in range(channels):
                        v0[c] = d0[c] - d2[c]
                        v1[c] = d1[c] + d2[c]
                        v2[c] = d2[c] - d1[c]
                        v3[c] = d1[c] - d3[c]


@kernel
def _outputs_numba(m, y, lines, across):
    """y = A^T m A into the pictures y (n, OH, OW, O); lines (4, 2 * across, O)."""
    n, high, wide, channels = y.shape
    tiles = m.shape[1] // n
    flat = y.reshape(n, high, wide * channels)
    rows = lines.reshape(4, lines.shape[1] * channels)
    for p in range(n):
        for i in range(tiles // across):
            for j in range(across):
                t = p * tiles + i * across + j
                for k in range(4):
                    m0, m1, m2, m3 = m[4 * k, t], m[4 * k + 1, t], m[4 * k + 2, t], m[4 * k + 3, t]
                    even, odd = lines[k, 2 * j], lines[k, 2 * j + 1]
                    for c in range(channels):
                        even[c] = m0[c] + m1[c] + m2[c]
                        odd[c] = m1[c] - m2[c] - m3[c]
            line, r0, r1, r2, r3 = flat[p, 2 * i], rows[0], rows[1], rows[2], rows[3]
            for c in range(line.size):
                line[c] = r0[c] + r1[c] + r2[c]
            if 2 * i + 1 < high:
                line = flat[p, 2 * i + 1]
                for c in range(line.size):
                    line[c] = r1[c] - r2[c] - r3[c]


@kernel
def _gradients_numba(dy, e, lines, across):
    """e = A dy A^T, the adjoint of _outputs_numba; lines (4, 2 * across, O)."""
    n, high, wide, channels = dy.shape
    tiles = e.shape[1] // n
    flat = dy.reshape(n, high, wide * channels)
    rows = lines.reshape(4, lines.shape[1] * channels)
    rows[...] = 0
    for p in range(n):
        for i in range(tiles // across):
            line, r0, r1, r2, r3 = flat[p, 2 * i], rows[0], rows[1], rows[2], rows[3]
            if 2 * i + 1 < high:
                below = flat[p, 2 * i + 1]
                for c in range(line.size):
                    r0[c] = line[c]
                    r1[c] = line[c] + below[c]
                    r2[c] = line[c] - below[c]
                    r3[c] = -below[c]
            else:
                for c in range(line.size):
                    r0[c] = r1[c] = r2[c] = line[c]
                    r3[c] = 0
            for j in range(across):
                t = p * tiles + i * across + j
                for k in range(4):
                    even, odd = lines[k, 2 * j], lines[k, 2 * j + 1]
                    e0, e1, e2, e3 = e[4 * k, t], e[4 * k + 1, t], e[4 * k + 2, t], e[4 * k + 3, t]
                    for c in range(channels):
                        e0[c] = even[c]
                        e1[c] = even[c] + odd[c]
                        e2[c] = even[c] - odd[c]
                        e3[c] = -odd[c]


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
        edges = [start + (stop - start) * i // count for i in range(count + 1)]
        return list(zip(edges[:-1], edges[1:], strict=True))

    def room(self, pictures: int, channels: int, dtype: np.dtype) -> Array:
        return np.empty((16, pictures * self.count, channels), dtype)

    def read(self, x: Array, room: Array) -> Array:
        """v of the pictures x, in the first tiles of ``room``."""
        v = room[:, : len(x) * self.count]
        lines = np.empty((4, 2 * self.across + 2, x.shape[-1]), x.dtype)
        _inputs_numba(x, v, lines, self.win.top, self.win.left, self.across)
        return v


def forward(x: Array, w: Array, b: Array | None, win: Window) -> Array:
    """conv2d of x (N, H, W, C) with w (3, 3, C, O), stride 1."""
    channels, outputs = w.shape[2:]
    y = np.empty((len(x), *win.out, outputs), x.dtype)
    tiles = _Tiles(win, channels, outputs, x.itemsize)
    twice = np.kron(G, G).astype(x.dtype)  # along both axes: (16, 9)
    u = backend.matmul(twice, w.reshape(9, channels * outputs)).reshape(16, channels, outputs)

    def shard(start: int, stop: int) -> None:
        blocks = tiles.blocks(start, stop)
        most = max(last - first for first, last in blocks)
        inputs, products = tiles.room(most, channels, x.dtype), tiles.room(most, outputs, x.dtype)
        lines = np.empty((4, 2 * tiles.across, outputs), x.dtype)
        for first, last in blocks:
            v = tiles.read(x[first:last], inputs)
            m = np.matmul(v, u, out=products[:, : v.shape[1]])
            _outputs_numba(m, y[first:last], lines, tiles.across)
            if b is not None:
                np.add(y[first:last], b, out=y[first:last])

    backend.parallel_for(shard, len(x))
    return y


def correlate(dy: Array, x: Array, shape: tuple[int, ...], win: Window) -> Array:
    """dw of ``shape`` (3, 3, C, O)."""
    channels, outputs = shape[2:]
    tiles = _Tiles(win, channels, outputs, x.itemsize)
    parts = backend.shards(len(x))
    sums = [np.empty((16, channels, outputs), x.dtype) for _ in parts]

    def shard(part: int, start: int, stop: int) -> None:
        blocks = tiles.blocks(start, stop)
        most = max(last - first for first, last in blocks)
        inputs, gradients = tiles.room(most, channels, x.dtype), tiles.room(most, outputs, x.dtype)
        lines = np.empty((4, 2 * tiles.across, outputs), x.dtype)
        product = np.empty_like(sums[0]) if len(blocks) > 1 else sums[part]
        for number, (first, last) in enumerate(blocks):
            v = tiles.read(x[first:last], inputs)
            e = gradients[:, : v.shape[1]]
            _gradients_numba(dy[first:last], e, lines, tiles.across)
            np.matmul(v.swapaxes(1, 2), e, out=product if number else sums[part])
            if number:
                sums[part] += product

    backend.parallel_calls([partial(shard, number, *part) for number, part in enumerate(parts)])
    for part in sums[1:]:
        backend.add(sums[0], part, out=sums[0])
    twice = np.kron(G, G).astype(x.dtype)
    return backend.matmul(twice.T, sums[0].reshape(16, channels * outputs)).reshape(shape)

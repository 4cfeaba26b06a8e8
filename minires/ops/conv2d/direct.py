"""Convolution on the CPU without im2col and without BLAS: sums in registers, pictures read where they lie.

For few channels the columns of im2col cost as much as their product, and the matrices of Winograd's way are
too small for BLAS. Here a tile of sums (``minires.backend.simd``: neighbouring places of a line times 16
output channels) stays in registers while the window goes by:

    y[i, j : j + ROWS, o : o + 16] += x[i*stride + kh, (j..)*stride + kw, c] * w[kh, kw, c, o : o + 16]

and for dw a tile of ROWS input channels times 16 output channels stays while the picture goes by:

    dw[kh, kw, c : c + ROWS, o : o + 16] += x[i*stride + kh, j*stride + kw, c : ...] * dy[i, j, o : o + 16]

Each picture is copied into a frame with its border of zeros first, so that no place needs a question. In the
frame, and in w, the KW*C numbers under a line of the window lie side by side: with one group they are one
run; with several groups, or where the window is dilated, KW runs of C/G.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from minires import backend
from minires.backend import Array, kernel, simd
from minires.backend.simd import add, multiply_add, rectify, spread, store
from minires.ops.conv2d import adjoint
from minires.ops.window import Window

LANES = simd.LANES
MOST_ROWS = 8  # of a tile, on any processor
_PLACES = 4096  # of a picture whose products are summed by themselves, in dw


@kernel(
    picture="flat (H, W, C)", frame="out flat (F)", where="min(top, left) >= 0 and F >= lines * across * C"
)
def _frame_numba(picture: Array, frame: Array, lines: int, across: int, top: int, left: int) -> None:
    """Copy a picture (H, W, C) into the frame (lines, across, C), flat, whose border is zero already."""
    h, w, channels = picture.shape
    run = min(w, across - left) * channels
    for i in range(min(h, lines - top)):
        source = picture[i].reshape(w * channels)
        at = ((i + top) * across + left) * channels
        target = frame[at : at + run]
        for c in range(run):
            target[c] = source[c]


@kernel(
    x="flat (N, H, W, C)", w="flat (KH, KW, D, O)", b="flat (O)", y="out flat (N, OH, OW, O)",
    frame="out flat (F)",
    where="min(top, left) >= 0 and min(groups, runs, *stride, *dilation) > 0"
    " and D * groups == C and O % (16 * groups) == 0 and runs in (1, KW) and OW >= 8"
    " and F >= lines * across * C + 8 and lines > (OH - 1) * stride[0] + (KH - 1) * dilation[0]"
    " and across > (OW - 1) * stride[1] + (KW - 1) * dilation[1]",
)  # fmt: skip
def _forward_numba(
    x: Array, w: Array, b: Array, relu: bool, y: Array, frame: Array, lines: int, across: int,
    stride: tuple[int, int], dilation: tuple[int, int], top: int, left: int, groups: int, runs: int,
) -> None:  # fmt: skip
    (n, _, _, channels), (kh, kw, depth, outputs) = x.shape, w.shape
    _, oh, ow, _ = y.shape
    kernels, sums, step, run = w.reshape(w.size), y.reshape(y.size), stride[1] * channels, kw * depth // runs
    for p in range(n):
        _frame_numba(x[p], frame, lines, across, top, left)
        for i in range(oh):
            for o in range(0, outputs, LANES):
                group = o // (outputs // groups)
                for start in range(0, ow, simd.ROWS):
                    j = min(start, ow - simd.ROWS)  # the last tile of a line overlaps the one before
                    tile = spread(b, o)
                    for k in range(kh):
                        for r in range(runs):
                            line = i * stride[0] + k * dilation[0]
                            pixel = line * across + j * stride[1] + r * dilation[1]
                            at, row = pixel * channels + group * depth, (k * kw + r) * depth * outputs + o
                            for c in range(run):
                                tile = multiply_add(tile, frame, at + c, step, kernels, row + c * outputs)
                    if relu:
                        tile = rectify(tile)
                    store(tile, sums, ((p * oh + i) * ow + j) * outputs + o, outputs)


@kernel(
    x="flat (N, H, W, C)", dy="flat (N, OH, OW, O)", dw="out flat (KH, R, D, O)", zeros="flat (16)",
    frame="out flat (F)",
    where="min(top, left) >= 0 and min(groups, *stride, *dilation) > 0"
    " and O % (16 * groups) == 0 and C % groups == 0 and D % 8 == 0 and F >= lines * across * C"
    " and F >= (((OH - 1) * stride[0] + (KH - 1) * dilation[0]) * across"
    " + (OW - 1) * stride[1] + (R - 1) * dilation[1] + 1) * C - C // groups + D",
)  # fmt: skip
def _backward_w_numba(
    x: Array, dy: Array, dw: Array, zeros: Array, frame: Array, lines: int, across: int,
    stride: tuple[int, int], dilation: tuple[int, int], top: int, left: int, groups: int,
) -> None:  # fmt: skip
    """Add to dw (KH, runs, run, O), whose runs are rounded up to whole tiles: what is behind is meaningless.

    Some lines of a picture are summed by themselves first, which rounds less than one long sum.
    """
    n, _, _, channels = x.shape
    kh, runs, run, outputs = dw.shape
    _, oh, ow, _ = dy.shape
    gradients, sums, step = dy.reshape(dy.size), dw.reshape(dw.size), stride[1] * channels
    together = max(1, _PLACES // ow)  # lines
    for p in range(n):
        _frame_numba(x[p], frame, lines, across, top, left)
        for start in range(0, oh, together):
            stop = min(start + together, oh)
            for k in range(kh):
                for r in range(runs):
                    for c in range(0, run, simd.ROWS):
                        for o in range(0, outputs, LANES):
                            first = o // (outputs // groups) * (channels // groups) + c
                            place = ((k * runs + r) * run + c) * outputs + o
                            row = (p * oh + start) * ow * outputs + o
                            tile = spread(zeros, 0)
                            for i in range(start, stop):
                                line = i * stride[0] + k * dilation[0]
                                at = (line * across + r * dilation[1]) * channels + first
                                for _ in range(ow):
                                    tile = multiply_add(tile, frame, at, 1, gradients, row)
                                    at += step
                                    row += outputs
                            add(tile, sums, place, outputs)


def _runs(win: Window, groups: int) -> int:
    """Into how many runs the numbers under a line of the window fall apart."""
    return 1 if groups == 1 and win.dilation[1] == 1 else win.size[1]


def fits(win: Window, outputs: int) -> bool:
    """Whether there are whole tiles: ``outputs`` are those of a group."""
    return outputs % LANES == 0 and win.out[1] >= MOST_ROWS


def _frame(win: Window, channels: int, dtype: np.dtype) -> tuple[Array, int, int]:
    """Zeros for what the window sees of a picture, flat, and its lines and pixels in a line.

    Behind it are a few more, which the last tile may read without using them.
    """
    sides = zip(win.out, win.stride, win.extent, strict=True)
    lines, across = ((out - 1) * step + extent for out, step, extent in sides)
    return np.zeros(lines * across * channels + MOST_ROWS, dtype), lines, across


def forward(x: Array, w: Array, b: Array | None, relu: bool, win: Window, groups: int) -> Array:
    """conv2d of x (N, H, W, C) with w (KH, KW, C/G, O), with a ReLU behind it where asked."""
    y = np.empty((len(x), *win.out, w.shape[-1]), x.dtype)
    b = np.zeros(w.shape[-1], x.dtype) if b is None else np.ascontiguousarray(b)

    def chunk(start: int, stop: int) -> None:
        where = (*_frame(win, x.shape[-1], x.dtype), win.stride, win.dilation, win.top, win.left, groups)
        _forward_numba(x[start:stop], w, b, relu, y[start:stop], *where, _runs(win, groups))

    backend.parallel_for(chunk, len(x))
    return y


def backward_x(dy: Array, w: Array, shape: tuple[int, ...], win: Window, groups: int) -> Array:
    """dx of ``shape`` (N, H, W, C): forward through the adjoint."""
    return forward(dy, adjoint.kernel(w, groups), None, False, adjoint.window(win, shape), groups)


def backward_w(dy: Array, x: Array, shape: tuple[int, ...], win: Window, groups: int) -> Array:
    """dw of ``shape`` (KH, KW, C/G, O)."""
    kh, kw, depth, outputs = shape
    runs = _runs(win, groups)
    run = kw * depth // runs
    parts = backend.chunks(len(x))
    sums = np.zeros((len(parts), kh, runs, -(-run // MOST_ROWS) * MOST_ROWS, outputs), x.dtype)

    def chunk(part: int, start: int, stop: int) -> None:
        where = (*_frame(win, x.shape[-1], x.dtype), win.stride, win.dilation, win.top, win.left, groups)
        _backward_w_numba(x[start:stop], dy[start:stop], sums[part], np.zeros(LANES, x.dtype), *where)

    backend.parallel_calls([partial(chunk, number, *part) for number, part in enumerate(parts)])
    return sums[:, :, :, :run].sum(axis=0).reshape(shape)

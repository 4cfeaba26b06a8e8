"""Batch normalisation on the CPU in few passes over the memory: two forward, two backward.

The formulas are those of ``minires.ops.batch_norm``; plain NumPy makes a pass for each operator of them.

Sums are kept in float64, to which four rows at a time are added, since going from one type to the other
costs more than the sum. They are taken of x minus its first row, so that a large common mean does not eat the
digits of the variance.

In the kernels x may have more columns than there are channels, as the array of a dense block's history has;
those behind belong to others. (Numba takes a view of the first columns as well, but then it no longer knows
that the channels lie one after the other, and its code was measured up to ten times slower.)
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minires import backend
from minires.backend import Array, kernel
from minires.backend.simd import fetch
from minires.ops.batch_norm import over_ranks

_AHEAD = 2048  # numbers; so far ahead is fetched what is read soon


@kernel(
    x="(M, >= C)", shift="(C)", total="out float64 (C)", squares="out float64 (C)",
    where="0 <= start <= stop <= M",
)  # fmt: skip
def moments_numba(x: Array, shift: Array, start: int, stop: int, total: Array, squares: Array) -> None:
    channels = total.size
    whole = stop - (stop - start) % 4
    xs, ahead, line = x.reshape(x.size), _AHEAD // channels + 4, 64 // x.itemsize
    for m in range(start, whole, 4):
        for r in range(m + ahead, min(m + ahead + 4, stop)):
            for c in range(0, channels, line):
                fetch(xs, r * x.shape[1] + c)
        for c in range(channels):
            d0, d1 = x[m, c] - shift[c], x[m + 1, c] - shift[c]
            d2, d3 = x[m + 2, c] - shift[c], x[m + 3, c] - shift[c]
            total[c] += (d0 + d1) + (d2 + d3)
            squares[c] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)
    for m in range(whole, stop):
        for c in range(channels):
            d = x[m, c] - shift[c]
            total[c] += d
            squares[c] += d * d


@kernel(
    x="(M, >= C)", scale="(C)", mean="(C)", beta="(C)", add="maybe (M, C)", y="out (M, C)",
    where="0 <= start <= stop <= M",
)  # fmt: skip
def normalize_numba(
    x: Array, scale: Array, mean: Array, beta: Array, add: Array, relu: bool, y: Array, start: int,
    stop: int,
) -> None:  # fmt: skip
    zero = x.dtype.type(0)
    for m in range(start, stop):
        for c in range(len(mean)):
            value = (x[m, c] - mean[c]) * scale[c] + beta[c]
            if add.shape[0]:
                value += add[m, c]
            y[m, c] = zero if relu and value < zero else value  # NaN stays NaN


# Where no shortcut was added, the sign of y follows from x, which the backward reads anyway. Then y, an array
# as large, is not read: it is given without rows.


@kernel(
    dy="(M, C)", x="(M, >= C)", y="maybe (M, C)", mean="(C)", scale="(C)", beta="(C)",
    total="out float64 (C)", products="out float64 (C)", where="0 <= start <= stop <= M",
)  # fmt: skip
def gradient_sums_numba(
    dy: Array, x: Array, y: Array, mean: Array, scale: Array, beta: Array, relu: bool, start: int, stop: int,
    total: Array, products: Array,
) -> None:  # fmt: skip
    zero, channels, from_x = x.dtype.type(0), total.size, y.shape[0] == 0
    whole = stop - (stop - start) % 4
    xs, dys, ys = x.reshape(x.size), dy.reshape(dy.size), y.reshape(y.size)
    ahead, line = _AHEAD // channels + 4, 64 // x.itemsize
    for m in range(start, whole, 4):
        for r in range(m + ahead, min(m + ahead + 4, stop)):
            for c in range(0, channels, line):
                fetch(xs, r * x.shape[1] + c)
                fetch(dys, r * channels + c)
                if y.shape[0]:
                    fetch(ys, r * channels + c)
        for c in range(channels):
            d0, d1 = x[m, c] - mean[c], x[m + 1, c] - mean[c]
            d2, d3 = x[m + 2, c] - mean[c], x[m + 3, c] - mean[c]
            g0, g1, g2, g3 = dy[m, c], dy[m + 1, c], dy[m + 2, c], dy[m + 3, c]
            if relu:
                g0 = g0 if (d0 * scale[c] + beta[c] if from_x else y[m, c]) > zero else zero
                g1 = g1 if (d1 * scale[c] + beta[c] if from_x else y[m + 1, c]) > zero else zero
                g2 = g2 if (d2 * scale[c] + beta[c] if from_x else y[m + 2, c]) > zero else zero
                g3 = g3 if (d3 * scale[c] + beta[c] if from_x else y[m + 3, c]) > zero else zero
            total[c] += (g0 + g1) + (g2 + g3)
            products[c] += (g0 * d0 + g1 * d1) + (g2 * d2 + g3 * d3)
    for m in range(whole, stop):
        for c in range(channels):
            d, g = x[m, c] - mean[c], dy[m, c]
            if relu:
                g = g if (d * scale[c] + beta[c] if from_x else y[m, c]) > zero else zero
            total[c] += g
            products[c] += g * d


@kernel(
    dy="(M, C)", x="(M, >= C)", y="maybe (M, C)", mean="(C)", scale="(C)", beta="(C)", slope="(C)",
    offset="(C)", dx="out (M, >= C)", dadd="out maybe (M, C)", where="0 <= start <= stop <= M",
)  # fmt: skip
def gradient_numba(
    dy: Array, x: Array, y: Array, mean: Array, scale: Array, beta: Array, relu: bool, slope: Array,
    offset: Array, grows: bool, dx: Array, dadd: Array, start: int, stop: int,
) -> None:  # fmt: skip
    """grows: add to what is in dx."""
    # With a question in an innermost loop the compiler makes no vector instructions of it.
    zero, channels, row = x.dtype.type(0), mean.size, np.empty(mean.size, x.dtype)
    xs, dys, ys, dxs = x.reshape(x.size), dy.reshape(dy.size), y.reshape(y.size), dx.reshape(dx.size)
    ahead, line = _AHEAD // channels + 1, 64 // x.itemsize
    for m in range(start, stop):
        r = m + ahead
        for c in range(0, channels if r < stop else 0, line):
            fetch(xs, r * x.shape[1] + c)
            fetch(dys, r * channels + c)
            if grows:
                fetch(dxs, r * dx.shape[1] + c)
            if y.shape[0]:
                fetch(ys, r * channels + c)
        g = dadd[m] if dadd.shape[0] else row
        if not relu:
            for c in range(channels):
                g[c] = dy[m, c]
        elif y.shape[0]:
            for c in range(channels):
                g[c] = dy[m, c] if y[m, c] > zero else zero
        else:
            for c in range(channels):
                g[c] = dy[m, c] if (x[m, c] - mean[c]) * scale[c] + beta[c] > zero else zero
        if grows:
            for c in range(channels):
                dx[m, c] += scale[c] * g[c] + slope[c] * (x[m, c] - mean[c]) + offset[c]
        else:
            for c in range(channels):
                dx[m, c] = scale[c] * g[c] + slope[c] * (x[m, c] - mean[c]) + offset[c]


_GRAIN = 200_000  # numbers; fewer are not worth a second thread
_WIDE = 64  # numbers in a row that make a kernel's inner loop worth its beginning and end
_PART, _PARTS = 1 << 16, 16  # numbers that are summed by themselves, and how often that is done at most


def sharing(rows: int, channels: int) -> tuple[int, int]:
    """How many rows are taken as one where there are few channels, and in how many parts they are summed:
    the same on any number of threads, so that the sums are."""
    together = 1
    while together * channels < _WIDE and rows % (2 * together) == 0:
        together *= 2
    return together, max(1, min(_PARTS, rows * channels // _PART, rows // together))


def _reduce(task: Any, rows: Array, *given: Array) -> tuple[Array, Array]:
    """The two sums of each channel: ``task(rows, *given, start, stop, a, b)`` on parts of the rows, each
    with sums of its own, added up at the end.

    ``given`` have a number per channel. Where there are few channels, several rows are taken as one; a view
    with gaps is copied then, so that the order of the sums, and their last bit, are those of an array.
    """
    count, channels = rows.shape
    together, many = sharing(count, channels)
    rows = _wide(rows) if together == 1 else np.ascontiguousarray(rows).reshape(count // together, -1)
    tiled = [np.tile(numbers, together) for numbers in given]
    sums, parts = np.zeros((2, many, together * channels)), backend.split(0, len(rows), many)  # float64

    def chunk(begin: int, end: int) -> None:
        for part in range(begin, end):
            task(rows, *tiled, *parts[part], *sums[:, part])

    backend.parallel_for(chunk, many, -(-many * _GRAIN // (count * channels)))
    first, second = sums.reshape(2, many * together, channels).sum(axis=1)
    return first, second


def statistics(x: Array) -> tuple[Array, Array]:
    """Mean and biased variance of each channel of x (M, C), as (C,) each."""
    total, squares = _reduce(moments_numba, x, x[0])
    offset = total / len(x)
    mean = x[0] + offset
    var = np.maximum(squares / len(x) - offset * offset, 0)
    return mean.astype(x.dtype), var.astype(x.dtype)


def forward(
    x: Array, gamma: Array, beta: Array, mean: Array, inv: Array, add: Array | None, relu: bool
) -> Array:
    """y (M, C)."""
    wide, y = _wide(x), np.empty(x.shape, x.dtype)
    scale, added = gamma * inv, _none(x) if add is None else add

    def chunk(start: int, stop: int) -> None:
        normalize_numba(wide, scale, mean, beta, added, relu, y, start, stop)

    backend.parallel_for(chunk, len(x), max(1, _GRAIN // x.shape[1]))
    return y


def backward(
    dy: Array,
    x: Array,
    y: Array,
    gamma: Array,
    beta: Array,
    mean: Array,
    inv: Array,
    relu: bool,
    training: bool,
    added: bool,
    need_dadd: bool,
    ranks: Any = None,
    count: int = 0,
) -> tuple[Array, Array, Array, Array]:
    """dx, dgamma, dbeta and, where needed, dadd; count is M, that of all ranks."""
    signs = y if added and relu else _none(x)
    scale = gamma * inv

    def sums(rows: Array, means: Array, scales: Array, betas: Array, *where: Any) -> None:
        shape = (len(rows), means.size)
        y_rows = signs.reshape(shape) if len(signs) else signs
        gradient_sums_numba(dy.reshape(shape), rows, y_rows, means, scales, betas, relu, *where)

    dbeta, products = _reduce(sums, x, mean, scale, beta)
    dgamma = products * inv
    of_all, total = over_ranks.sums(ranks, dgamma, dbeta) if ranks else (dgamma, dbeta)
    slope = -scale * inv * of_all / (count or len(x)) if training else np.zeros_like(dgamma)
    offset = -scale * total / (count or len(x)) if training else np.zeros_like(dbeta)
    slope, offset = slope.astype(x.dtype), offset.astype(x.dtype)
    wide, none = _wide(x), _none(x)
    dx, dadd = np.empty_like(y), np.empty_like(y) if need_dadd else none

    def chunk(start: int, stop: int) -> None:
        gradient_numba(dy, wide, signs, mean, scale, beta, relu, slope, offset, False, dx, dadd, start, stop)

    backend.parallel_for(chunk, len(x), max(1, _GRAIN // x.shape[1]))
    return dx, dgamma.astype(x.dtype), dbeta.astype(x.dtype), dadd


def _wide(rows: Array) -> Array:
    """The rows (M, C), as ``arguments.rows`` gives them, without the gaps: each goes on to where the next one
    begins, (M, wider).

    Behind the last row that may be beyond the end of the memory; only the first C columns are ever read.
    """
    if rows.flags.c_contiguous:
        return rows
    return np.lib.stride_tricks.as_strided(rows, (len(rows), rows.strides[0] // rows.itemsize))


def _none(x: Array) -> Array:
    """Stands for an array that a kernel does not get: no rows, but of a type Numba can compile for."""
    return np.empty((0, 0), x.dtype)

"""Sums that lose no digits, over any axes: all numbers are added up in float64, whatever their dtype.

In float32 a sum of ones stops at 2**24 = 16,777,216, and a sum of ten million numbers is off by percents.
NumPy adds in pairs, which is nearly as good, but only along an axis whose numbers lie side by side in memory.
In float64 each number that is added costs at most 1.1e-16 of the sum of absolute values; of 10**8 numbers of
one sign that is 1.1e-8, less than what rounding the result to float32 costs (6e-8). So

    |total - sum of x| <= 6e-8 * |sum of x| + 1.1e-16 * count * sum of |x|       for float32

No copy in float64 is made: numbers are widened as they are read. bfloat16 on a GPU is added in float32, which
CuPy does in pairs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from minires.backend import arrays, kernels, parallel
from minires.backend.arrays import Array
from minires.backend.kernels import kernel

Axes = int | tuple[int, ...] | None


def total(
    array: Array, axes: Axes = None, *, keepdims: bool = False, dtype: Any = None, divisor: float = 1
) -> Array:
    """The sum over ``axes`` (one, several, or None for all), divided by ``divisor`` before it is rounded.

    dtype: that of the result; that of ``array`` if left out.
    """
    dtype = np.dtype(dtype or array.dtype)
    if axes is None:
        axes = tuple(range(array.ndim))
    elif not isinstance(axes, tuple):
        axes = (axes,)
    found = _by_kernel(array, axes, dtype, divisor) if array.size >= _GRAIN and kernels.fast(array) else None
    if found is None:
        return _plain(array, axes, keepdims, dtype, divisor)
    return found.reshape(_kept(array.shape, axes, keepdims))


def mean(array: Array, axes: Axes = None, *, keepdims: bool = False, dtype: Any = None) -> Array:
    """The mean over ``axes``: :func:`total`, divided by how many numbers there are."""
    reduced = range(array.ndim) if axes is None else axes if isinstance(axes, tuple) else (axes,)
    count = math.prod(array.shape[axis] for axis in reduced)
    return total(array, axes, keepdims=keepdims, dtype=dtype, divisor=count)


def _plain(array: Array, axes: tuple[int, ...], keepdims: bool, dtype: Any, divisor: float) -> Array:
    xp = arrays.array_module(array)
    in_pairs = xp is not np and arrays.is_bfloat16(array.dtype)
    sums = xp.sum(array, axis=axes, keepdims=keepdims, dtype=np.float32 if in_pairs else np.float64)
    with np.errstate(over="ignore"):  # what is too large for the dtype is infinite
        found = sums / divisor
        return np.asarray(found, dtype) if xp is np else found.astype(dtype, copy=False)


def _kept(shape: tuple[int, ...], axes: tuple[int, ...], keepdims: bool) -> tuple[int, ...]:
    reduced = {axis % len(shape) for axis in axes}
    sizes = [(1 if axis in reduced else size, axis in reduced) for axis, size in enumerate(shape)]
    return tuple(size for size, gone in sizes if keepdims or not gone)


# ---------------------------------------------------------------------------------------------- on the CPU

_GRAIN = 1 << 14  # numbers; of fewer NumPy makes a sum sooner than a kernel is called
_PART = 1 << 20  # numbers worth a thread of their own
_WIDE = 64  # sums side by side, so that a kernel's inner loop is worth its beginning and end
_BLOCK = 4096  # ... but only so many, so that they stay near the processor; so below, as text


@kernel(x="flat (n)", out="out float (O)", where="n >= O * each", in_any_order=True)
def _rows_numba(x: Array, each: int, divisor: float, out: Array) -> None:
    """out[o] = sum of x[o, :] / divisor, of x (O, each) as one row."""
    for o in range(len(out)):
        total, row = 0.0, x[o * each : (o + 1) * each]
        for i in range(each):
            total += row[i]
        out[o] = total / divisor


@kernel(
    x="flat (n)", out="out float (O, inner)",
    where="inner > 0 and inner <= width <= max(inner, 4096) and width % inner == 0 and each % inner == 0"
    " and n >= O * each",
)  # fmt: skip
def _total_numba(x: Array, each: int, inner: int, width: int, divisor: float, out: Array) -> None:
    """out[o, c] = sum of x[o, :, c] / divisor, of x (outer, rows, inner) as one row with ``each`` numbers to
    every o. ``width`` is a multiple of ``inner``: so many sums are kept, of a long row a block at a time."""
    sums = np.empty(min(width, _BLOCK), np.float64)
    for o in range(len(out)):
        stop = (o + 1) * each
        for first in range(0, width, _BLOCK):
            wide = min(_BLOCK, width - first)
            sums[:] = 0
            at = o * each + first
            while at + 3 * width + wide <= stop:
                a, b = x[at : at + wide], x[at + width : at + width + wide]
                d, e = x[at + 2 * width : at + 2 * width + wide], x[at + 3 * width : at + 3 * width + wide]
                for c in range(wide):
                    sums[c] += (np.float64(a[c]) + np.float64(b[c])) + (np.float64(d[c]) + np.float64(e[c]))
                at += 4 * width
            while at < stop:
                rest = x[at : min(at + wide, stop)]
                for c in range(len(rest)):
                    sums[c] += np.float64(rest[c])
                at += width
            for k in range(inner, wide, inner):  # a block is a part of one row, or whole rows
                for c in range(inner):
                    sums[c] += sums[k + c]
            for c in range(min(wide, inner)):
                out[o, first + c] = sums[c] / divisor


def _by_kernel(array: Array, axes: tuple[int, ...], dtype: Any, divisor: float) -> Array | None:
    """The sums in one row; None where the kernel cannot have them, as the axes do not lie side by side."""
    reduced = sorted(axis % array.ndim for axis in axes)
    if (
        not reduced
        or array.dtype != np.float32
        or not array.flags.c_contiguous
        or reduced[-1] - reduced[0] >= len(reduced)
    ):
        return None
    rows = math.prod(array.shape[reduced[0] : reduced[-1] + 1])
    inner = math.prod(array.shape[reduced[-1] + 1 :])
    outer, flat, each = array.size // (rows * inner), array.reshape(-1), rows * inner
    if outer == 1 and inner <= _BLOCK:  # each thread sums some of the rows
        parts = parallel.chunks(rows, max(1, _PART // inner))
        sums = np.empty((len(parts), 1, inner))
        _run(
            [
                functools.partial(_sum_into, out, flat[i * inner : j * inner], (j - i) * inner)
                for (i, j), out in zip(parts, sums, strict=True)
            ]
        )
        with np.errstate(over="ignore"):
            return (sums.sum(axis=0) / divisor).astype(dtype)
    out = np.empty((outer, inner), dtype)
    parts = parallel.chunks(outer, max(1, _PART // each))
    _run(
        [
            functools.partial(_sum_into, out[i:j], flat[i * each : j * each], each, divisor)
            for i, j in parts
        ]
    )
    return out


def _sum_into(out: Array, flat: Array, each: int, divisor: float = 1) -> None:
    """out (O, inner): sums of ``flat``, which has ``each`` numbers to every row of ``out``."""
    inner = out.shape[1]
    if inner == 1:
        _rows_numba(flat, each, float(divisor), out.reshape(-1))
    else:
        wide = inner * max(1, min(each // inner, _WIDE // inner))
        _total_numba(flat, each, inner, wide, float(divisor), out)


def _run(calls: Sequence[Callable[[], None]]) -> None:
    """On all threads; a lone call at once, as it has no matrix product that would need the threads' care."""
    if len(calls) == 1:
        calls[0]()
    else:
        parallel.parallel_calls(calls)


@kernel(x="flat (n)", sums="out float64 (_)")
def _squares_numba(x: Array, sums: Array) -> None:
    """Adds to sums[k] the squares of the numbers x[k], x[k + len(sums)], ..."""
    width = len(sums)
    whole = x.size - x.size % (4 * width)
    for at in range(0, whole, 4 * width):
        a, b = x[at : at + width], x[at + width : at + 2 * width]
        d, e = x[at + 2 * width : at + 3 * width], x[at + 3 * width : at + 4 * width]
        for k in range(width):
            p, q, r, s = np.float64(a[k]), np.float64(b[k]), np.float64(d[k]), np.float64(e[k])
            sums[k] += (p * p + q * q) + (r * r + s * s)
    for at in range(whole, x.size, width):
        rest = x[at : min(at + width, x.size)]
        for k in range(len(rest)):
            sums[k] += np.float64(rest[k]) * np.float64(rest[k])


def sum_of_squares(given: Iterable[Array]) -> float:
    """The sum of the squares of all numbers of some arrays, in float64: right to 1e-14. Waits for a GPU."""
    flats, total = [], 0.0
    for array in given:
        if array.dtype == np.float32 and kernels.fast(array):
            flats.append(array.ravel(order="K"))  # in the order of memory, so that a copy is rare
        else:
            total += _plain_squares(array)
    parts = parallel.chunks(sum(flat.size for flat in flats), _PART)
    sums = np.zeros((len(parts), _WIDE))

    def task(start: int, stop: int, sums: Array) -> None:
        """The numbers from start to stop of all, as if they stood in one row."""
        for flat in flats:
            if start < flat.size and stop > 0:
                _squares_numba(flat[max(start, 0) : stop], sums)
            start, stop = start - flat.size, stop - flat.size

    _run([functools.partial(task, *part, own) for part, own in zip(parts, sums, strict=True)])
    return total + float(sums.sum())


def _plain_squares(array: Array) -> float:
    if not arrays.is_numpy(array):
        return float(arrays.array_module(array).sum(array.astype(np.float64) ** 2))
    flat = array.reshape(-1)
    pieces = (flat[at : at + _PART].astype(np.float64) for at in range(0, flat.size, _PART))
    return sum(float(np.square(piece).sum()) for piece in pieces)

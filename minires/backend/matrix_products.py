"""Matrix products: by tiles on the CPU, by cuBLAS on a GPU, and else by the array module."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from minires.backend import arrays, cublas, kernels, parallel, simd, tile_products, tile_sums
from minires.backend.arrays import Array
from minires.backend.tile_products import Sizes, rows_of

# One long sum of float32 rounds more than several short ones: so many products are summed by themselves, and
# so many of these sums.
_DEPTH = 4096
_TOGETHER = 32


def matmul(a: Array, b: Array, dtype: Any = None) -> Array:
    """``a @ b``: on the CPU by tiles, on the threads of the pool; on a GPU by cuBLAS, in the arithmetic
    chosen with ``precision``.

    Stacks of matrices are multiplied as they are. Matrices of bfloat16 are multiplied with sums in float32,
    and their product is given as ``dtype``: bfloat16 if left out, or float32.
    """
    if arrays.is_numpy(a) and arrays.is_bfloat16(a.dtype):
        return matmul(a.astype(np.float32), b.astype(np.float32)).astype(dtype or a.dtype, copy=False)
    if a.ndim != 2 or b.ndim != 2:
        return arrays.array_module(a, b).matmul(a, b)
    if not (arrays.is_numpy(a) and arrays.is_numpy(b)):
        return cublas.matmul(arrays.cupy(), a, b, dtype=dtype, precision=cublas.chosen_precision())
    is_tiled = kernels.fast(a, b) and a.dtype == b.dtype and a.dtype in (np.float32, np.float64)
    if not is_tiled or 0 in (*a.shape, *b.shape) or a.shape[1] != b.shape[0]:
        return np.matmul(a, b)
    return _by_tiles(a, b)


def _by_tiles(a: Array, b: Array) -> Array:
    """a (M, K) @ b (K, N), of which a transposed one is read as it lies."""
    (m, k), n = a.shape, b.shape[1]
    if a.T.flags.c_contiguous and not a.flags.c_contiguous:  # sums over the rows of what is transposed
        y, sizes = np.empty((m, n), a.dtype), Sizes(m, n, 1, 0, 0, 0, m * n, n)
        tile_sums.sums_over_places(a.T, np.ascontiguousarray(b), y, tile_sums.rows_of(k), sizes, m, n)
        return y
    a, turned = np.ascontiguousarray(a), b.T.flags.c_contiguous and not b.flags.c_contiguous
    w, tile = b.T if turned else np.ascontiguousarray(b), simd.shape(n, a.dtype)
    rows, blocks = rows_of(m, k, n, len(tile[0])), parallel.split(0, k, -(-k // _DEPTH))
    x, w = a.reshape(-1), w.reshape(-1)
    totals = []
    for number, (first, last) in enumerate(blocks):
        if number % _TOGETHER == 0:
            y = np.empty((m, n), a.dtype)
            totals.append(y)
        sizes = Sizes(last - first, n, 1, 0, 0, 0, k * n, k if turned else n)
        added = y if number % _TOGETHER else None
        tile_products.products(
            tile, x[first:], w[first if turned else first * n :], y, rows, sizes, turned=turned, added=added
        )
    return functools.reduce(lambda one, other: parallel.add(one, other, out=one), totals)

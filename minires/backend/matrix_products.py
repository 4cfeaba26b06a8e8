"""Matrix products: by tiles on the CPU, by cuBLAS on a GPU, and else by the array module."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from minires.backend import arrays, cublas, kernels, parallel, simd, tile_products, tile_sums
from minires.backend.arrays import Array
from minires.backend.tile_products import Sizes, rows_of

_DEPTH = 1 << 16  # products that are summed by themselves, as one long sum of float32 rounds more


def matmul(a: Array, b: Array, dtype: Any = None, bias: Array | None = None) -> Array:
    """``a @ b``, plus ``bias`` in each row: on the CPU by tiles, on the threads of the pool; on a GPU by
    cuBLAS, in the arithmetic chosen with ``precision``.

    Stacks of matrices are multiplied as they are. Matrices of bfloat16 are multiplied with sums in float32,
    and their product is given as ``dtype``: bfloat16 if left out, or float32.
    """
    if arrays.is_numpy(a) and arrays.is_bfloat16(a.dtype):
        y = matmul(a.astype(np.float32), b.astype(np.float32), bias=bias)
        return y.astype(dtype or a.dtype, copy=False)
    if _is_tiled(a, b):
        return _by_tiles(a, b, bias)
    on_cpu = arrays.is_numpy(a) and arrays.is_numpy(b)
    if on_cpu and np.may_share_memory(a, b):
        # A matrix by its own transpose is another routine of BLAS (syrk), with other last bits than the same
        # numbers in two places have.
        b = b.copy(order="K")
    if a.ndim != 2 or b.ndim != 2 or on_cpu:
        y = arrays.array_module(a, b).matmul(a, b)
    else:
        y = cublas.matmul(arrays.cupy(), a, b, dtype=dtype, precision=cublas.chosen_precision())
    return y if bias is None else y + bias


def _is_tiled(a: Array, b: Array) -> bool:
    """Whether these are two matrices for the tiles; what does not fit together is for NumPy to refuse."""
    if not kernels.fast(a, b) or a.ndim != 2 or b.ndim != 2 or 0 in (*a.shape, *b.shape):
        return False
    return a.shape[1] == b.shape[0] and a.dtype == b.dtype and a.dtype in (np.float32, np.float64)


def _by_tiles(a: Array, b: Array, bias: Array | None) -> Array:
    """a (M, K) @ b (K, N), of which a transposed one is read as it lies."""
    (m, k), n = a.shape, b.shape[1]
    is_transposed = a.T.flags.c_contiguous and not a.flags.c_contiguous
    if is_transposed and bias is None:  # sums over its rows
        y, sizes = np.empty((m, n), a.dtype), Sizes(m, n, 1, 0, 0, 0, m * n, n)
        tile_sums.sums_over_places(a.T, np.ascontiguousarray(b), y, tile_sums.rows_of(k), sizes, m, n)
        return y
    a, turned = np.ascontiguousarray(a), b.T.flags.c_contiguous and not b.flags.c_contiguous
    w, tile = b.T if turned else np.ascontiguousarray(b), simd.shape(n, a.dtype)
    rows = rows_of(m, k, n, len(tile[0]))
    x, w = a.reshape(-1), w.reshape(-1)
    totals = []
    for first, last in parallel.split(0, k, -(-k // _DEPTH)):
        totals.append(np.empty((m, n), a.dtype))
        sizes = Sizes(last - first, n, 1, 0, 0, 0, k * n, k if turned else n)
        tile_products.products(
            tile, x[first:], w[first if turned else first * n :], totals[-1], rows, sizes, turned=turned,
            b=None if first else bias,
        )  # fmt: skip
    return functools.reduce(lambda one, other: parallel.add(one, other, out=one), totals)

"""One launch of a CUDA kernel for all parameters of a model, and the norm of all gradients in two.

In the microseconds that a launch takes a GPU updates a hundred thousand numbers, and most arrays of a network
are smaller than that. So one launch goes over all of them ("multi-tensor apply"). What it is to do stands in
three tables on the device, which every kernel gets in this order:

========= =========== ================================================================================
chunks    (blocks, 3) for each block: which array, the first number of it, and the one after the last
addresses (arrays, k) for each array: where the k arrays lie that belong to it (a parameter, its gradient,
                      its state); 0 where there is nothing to do, as there is no gradient
numbers   (arrays, n) for each array: the n numbers of its formula, in the arrays' dtype
========= =========== ================================================================================

and after them how many arrays there are, to which the sizes of the tables are held.

They are sent to the device where they changed: ``chunks`` once, ``addresses`` when backward made new
arrays, ``numbers`` when the learning rate is another. Each stays where it is on the device, so that a launch
which was captured into a CUDA graph does, when the graph is replayed, what stands in the tables then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from minires import backend
from minires.backend import Array, cuda

CHUNK = 4096  # numbers for one block: 16 for each thread
_THREADS = 256  # of a block, as the kernels below expect
_DTYPES = frozenset(map(np.dtype, cuda.C_TYPES))

Rows = Mapping[int, tuple[Sequence[Array], Sequence[float]]]  # of both tables, by the number of the array

_NORM_CUDA = cuda.Source(r"""
// Add up one number from each of the 256 threads, always in the same order. Thread 0 has the sum.
__device__ double sum_of_block(double value) {
    __shared__ double sums[256];
    int thread = threadIdx.x;
    sums[thread] = value;
    for (int half = 128; half > 0; half /= 2) {
        __syncthreads();
        if (thread < half) sums[thread] += sums[thread + half];
    }
    return sums[0];
}

// An array of floats has its address in the first column of addresses, an array of doubles in the second.
extern "C" __global__ void squares_of_chunks(
    const int* chunks /* 3 * blocks */, const unsigned long long* addresses /* 2 * arrays */, int arrays,
    double* sums /* blocks */
) {
    const int* chunk = chunks + 3 * blockIdx.x;
    const float* narrow = (const float*)addresses[2 * chunk[0]];
    const double* wide = (const double*)addresses[2 * chunk[0] + 1];
    double sum = 0;
    if (narrow || wide) {
        for (int i = chunk[1] + threadIdx.x; i < chunk[2]; i += blockDim.x) {
            double value = narrow ? narrow[i] : wide[i];
            sum += value * value;
        }
    }
    sum = sum_of_block(sum);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

extern "C" __global__ void norm_of_chunks(const double* sums /* n */, int n, double* norm /* 1 */) {
    double sum = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) sum += sums[i];
    sum = sum_of_block(sum);
    if (threadIdx.x == 0) *norm = sqrt(sum);
}
""")


def fits(*arrays: Array) -> bool:
    """Whether a launch may go over these arrays: on a GPU, without gaps, and of one size and dtype."""
    first = arrays[0]
    return (
        cuda.usable(*arrays)
        and first.dtype in _DTYPES
        and all(a.dtype == first.dtype and a.size == first.size and a.flags.c_contiguous for a in arrays)
    )


class Table:
    """A table on the device that the host writes. It keeps its place, and is sent only where it changed."""

    def __init__(self, xp: Any, shape: tuple[int, int], dtype: str) -> None:
        self.xp = xp
        self.host = np.zeros(shape, dtype)
        self.device = xp.zeros(shape, dtype)

    def set(self, rows: Mapping[int, Sequence[float]]) -> None:
        """Write these rows, and zeros in all others."""
        host = np.zeros_like(self.host)
        if rows:
            host[list(rows)] = list(rows.values())
        if not np.array_equal(host, self.host):
            self.host = host
            self.device[...] = self.xp.asarray(host)


class Sweep:
    """Launches that go over all of ``arrays``, and over others of the same sizes that belong to them."""

    def __init__(self, arrays: Sequence[Array]) -> None:
        self.xp = backend.array_module(*arrays)
        self.sizes = [array.size for array in arrays]
        chunks = [
            (i, start, min(start + CHUNK, size))
            for i, size in enumerate(self.sizes)
            for start in range(0, size, CHUNK)
        ]
        self.chunks = self.xp.asarray(np.array(chunks, np.int32))
        self.grid = (len(chunks), _THREADS)
        self.tables: dict[str, tuple[Table, Table]] = {}  # addresses and numbers, by dtype
        self.gradients = Table(self.xp, (len(arrays), 2), "uint64")  # addresses for the norm

    def set(self, rows: Rows) -> None:
        """Write the tables for the next launch: arrays that fit, and numbers; the caller keeps the arrays."""
        for dtype in cuda.C_TYPES:
            of_dtype = {i: row for i, row in rows.items() if row[0][0].dtype == dtype}
            if of_dtype and dtype not in self.tables:
                k, n = map(len, next(iter(of_dtype.values())))
                count = len(self.sizes)
                self.tables[dtype] = Table(self.xp, (count, k), "uint64"), Table(self.xp, (count, n), dtype)
            if dtype in self.tables:
                addresses, numbers = self.tables[dtype]
                addresses.set({i: self._addresses(i, arrays) for i, (arrays, _) in of_dtype.items()})
                numbers.set({i: values for i, (_, values) in of_dtype.items()})

    def launch(self, source: cuda.Source, kernel: str, *more: Any) -> None:
        """Do what stands in the tables, with ``more`` arguments: one launch for each dtype."""
        for addresses, numbers in self.tables.values():
            source(kernel, self.grid, self.chunks, addresses.device, numbers.device, len(self.sizes), *more)

    def norm(self, gradients: Mapping[int, Array]) -> Array:
        """The Euclidean norm of all ``gradients`` together, added up in double: one number, on the device."""
        in_order = {i: self.xp.ascontiguousarray(gradient) for i, gradient in gradients.items()}
        self.set_norm(in_order)
        return self.launch_norm()

    def set_norm(self, gradients: Mapping[int, Array]) -> None:
        """Write the table for the next norm; the gradients have no gaps, and the caller keeps them."""
        addresses: dict[int, tuple[int, int]] = {}
        for i, gradient in gradients.items():
            (address,) = self._addresses(i, [gradient])
            addresses[i] = (address, 0) if gradient.dtype == "float32" else (0, address)
        self.gradients.set(addresses)

    def launch_norm(self) -> Array:
        """The norm of the gradients in the table."""
        sums, norm = self.xp.empty(self.grid[0], "float64"), self.xp.empty((), "float64")
        tables = self.chunks, self.gradients.device, len(self.sizes)
        _NORM_CUDA("squares_of_chunks", self.grid, *tables, sums)
        _NORM_CUDA("norm_of_chunks", (1, _THREADS), sums, sums.size, norm)
        return norm

    def _addresses(self, i: int, arrays: Sequence[Array]) -> list[int]:
        assert all(a.size == self.sizes[i] and a.dtype in _DTYPES for a in arrays), "no launch can do these"
        return [cuda.address(array) for array in arrays]

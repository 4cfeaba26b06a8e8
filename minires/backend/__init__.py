"""Arrays and devices, compiled kernels, and the one pool of threads: all that stands under the tensors.

    arrays.py           NumPy's and CuPy's arrays, devices, bfloat16
    kernels.py          functions that Numba compiles, and the switch between them and plain code
    arguments.py        what a kernel takes, checked before each call
    simd.py             tiles of sums in the processor's vector registers, for kernels
    atomics.py          counters that several threads change, for kernels
    tile_products.py    sums of products by such tiles: convolutions and matrix products
    tile_sums.py        sums over places by such tiles: gradients of kernels
    matrix_products.py  matrix products, on the CPU and on a GPU
    thread_pool.py      the one pool of threads
    parallel.py         loops, additions and copies on all threads
    sums.py             sums and means that lose no digits, over any axes
    cuda.py             kernels in CUDA C++
    cublas.py           matrix products on a GPU, and their precision

What the rest of the package uses every day can be had from here: ``backend.fast(x)``,
``backend.parallel_for(task, n)``. Only this folder imports CuPy, Numba and ``ml_dtypes``, and only when they
are needed.
"""

from __future__ import annotations

from minires.backend.arrays import (
    Array,
    accumulator,
    activations,
    array_module,
    bfloat16,
    choose_device,
    cupy,
    device_of,
    dtype_of,
    empty,
    gpus,
    is_bfloat16,
    is_cupy,
    is_float,
    is_writable,
    make_current,
    nccl,
    own,
    to_device,
)
from minires.backend.cublas import precision
from minires.backend.kernels import (
    HAS_NUMBA,
    before_compiling,
    fast,
    is_reference,
    kernel,
    reference,
)
from minires.backend.matrix_products import matmul
from minires.backend.parallel import add, chunks, copy, parallel_calls, parallel_for, split
from minires.backend.sums import mean, sum_of_squares, total
from minires.backend.thread_pool import set_threads, threads

__all__ = [
    "HAS_NUMBA",
    "Array",
    "accumulator",
    "activations",
    "add",
    "array_module",
    "before_compiling",
    "bfloat16",
    "choose_device",
    "copy",
    "cupy",
    "device_of",
    "dtype_of",
    "empty",
    "fast",
    "gpus",
    "is_bfloat16",
    "is_cupy",
    "is_float",
    "is_reference",
    "is_writable",
    "kernel",
    "make_current",
    "matmul",
    "mean",
    "nccl",
    "own",
    "parallel_calls",
    "parallel_for",
    "precision",
    "set_threads",
    "chunks",
    "reference",
    "split",
    "sum_of_squares",
    "threads",
    "to_device",
    "total",
]

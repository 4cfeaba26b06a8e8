"""Kernels in CUDA C++: one source for float32 and float64, compiled when it is first needed.

A ``Source`` holds the kernels of one operation, beside its plain array code. In it

    T             is the type of the arrays, float or double
    EACH(i, n)    begins a loop that shares 0 <= i < n out among all threads

and calling it launches a kernel: ``source("relu", over(n), x, None, y, n)``. The arguments are arrays without
gaps (a kernel knows nothing of strides), whole numbers and truth values (int), numbers (T), and None (a null
pointer). Which T is meant follows from the first array of floats.

``usable(x)`` says whether these kernels may be used: the arrays are on a GPU, and nobody asked for the plain
code with ``with specification():``.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from minires import backend
from minires.backend import Array

THREADS = 256  # of a block
_MOST_BLOCKS = 8192  # threads of more would only wait
_MOST_NUMBERS = 2**31 - _MOST_BLOCKS * THREADS  # that a kernel can count

PRELUDE = """
#define EACH(i, n) for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < (n); i += blockDim.x * gridDim.x)
"""
C_TYPES = {"float32": "float", "float64": "double"}


def usable(*arrays: Array) -> bool:
    """Whether the CUDA kernels may be used on these arrays."""
    on_gpu = not any(isinstance(array, np.ndarray | np.generic) for array in arrays)
    return on_gpu and not backend.is_specification()


def over(n: int, threads: int = THREADS) -> tuple[int, int]:
    """The blocks, and the threads of each, for a loop EACH(i, n)."""
    return max(1, min(_MOST_BLOCKS, -(-n // threads))), threads


def address(array: Array) -> int:
    """Where the numbers of an array begin, for kernels that find their arrays in a table."""
    return array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr


class Source:
    """The kernels of one operation, ``extern "C" __global__ void name(...)`` each."""

    def __init__(self, code: str) -> None:
        self.code = PRELUDE + code

    def text(self, dtype: str) -> str:
        """The source for arrays of ``dtype``. (T is no macro: the compiler's own headers use this name.)"""
        return f"using T = {C_TYPES[dtype]};\n{self.code}"

    def __call__(self, name: str, grid: tuple[int, int], *arguments: Any) -> None:
        """Launch the kernel ``name`` on ``grid``: how many blocks, and how many threads in each."""
        dtype = next(a.dtype for a in arguments if hasattr(a, "dtype") and a.dtype.kind == "f")
        _launch(self, name, dtype, grid, [_argument(argument, dtype) for argument in arguments])


def _argument(value: Any, dtype: Any) -> Any:
    if value is None:
        return np.uint64(0)
    if isinstance(value, np.generic):
        value = value.item()
    if hasattr(value, "flags"):
        assert value.flags.c_contiguous, "a kernel knows nothing of strides"
        assert value.size < _MOST_NUMBERS, f"an array of {value.size} numbers is too large for a kernel"
        return value
    return np.dtype(dtype).type(value) if isinstance(value, float) else np.int32(value)


@functools.cache
def _module(source: Source, dtype: str) -> Any:
    return backend.cupy().RawModule(code=source.text(dtype), options=("--std=c++17",))


@functools.cache
def _function(source: Source, name: str, dtype: str) -> Any:
    return _module(source, dtype).get_function(name)


def _launch(source: Source, name: str, dtype: Any, grid: tuple[int, int], arguments: list[Any]) -> None:
    blocks, threads = grid
    _function(source, name, str(dtype))((blocks,), (threads,), tuple(arguments))

"""Kernels in CUDA C++: one source for float32, float64 and bfloat16, compiled when it is first needed.

A ``Source`` holds the kernels of one operation, beside its plain array code. In it

    T             is the type of activations and their gradients: float, double or bfloat16
    A             is the type of all arithmetic, and of parameters, statistics and their gradients
    EACH(i, n)    begins a loop that shares 0 <= i < n out among all threads

and calling it launches a kernel: ``source("relu", over(n), x, None, y, n)``. The arguments are arrays without
gaps (a kernel knows nothing of strides), whole numbers and truth values (int), numbers (A), and None (a null
pointer). T is the type of the first array of floats, and A is T, or float where T is bfloat16. A bfloat16
that is read becomes a float by itself, and a float is rounded when it is stored as one: there is no
arithmetic in 16 bits. (Where a source does arithmetic in T, it is for float and double only.)

``usable(x)`` says whether these kernels may be used: the arrays are on a GPU, and nobody asked for the plain
code with ``with reference():``.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from minires.backend import arrays, kernels
from minires.backend.arrays import Array

THREADS = 256  # of a block
_MOST_BLOCKS = 8192  # threads of more would only wait
_MOST_NUMBERS = 2**31 - _MOST_BLOCKS * THREADS  # that a kernel can count

PRELUDE = """
#define EACH(i, n) for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < (n); i += blockDim.x * gridDim.x)
"""
C_TYPES = {"float32": "float", "float64": "double"}
# Our own type for 16 bits, so that no header is needed and the source is the same wherever it is compiled.
BFLOAT16 = """
struct bfloat16 {
    unsigned short bits;  // the upper half of a float's

    // Rounded to the nearest, from halfway to the even one. NaN stays NaN: rounding could make it infinity.
    __device__ bfloat16(float value) {
        unsigned all = __float_as_uint(value);
        bool is_nan = (all & 0x7fffffff) > 0x7f800000;
        bits = (is_nan ? all | 0x400000 : all + 0x7fff + (all >> 16 & 1)) >> 16;
    }
    __device__ operator float() const { return __uint_as_float(unsigned(bits) << 16); }
};
"""


def usable(*given: Array) -> bool:
    """Whether the CUDA kernels may be used on the arrays given."""
    on_gpu = not any(isinstance(array, np.ndarray | np.generic) for array in given)
    return on_gpu and not kernels.is_reference()


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
        if dtype == "bfloat16":
            return f"{BFLOAT16}using T = bfloat16;\nusing A = float;\n{self.code}"
        return f"using T = {C_TYPES[dtype]};\nusing A = T;\n{self.code}"

    def __call__(self, name: str, grid: tuple[int, int], *arguments: Any) -> None:
        """Launch the kernel ``name`` on ``grid``: how many blocks, and how many threads in each."""
        dtype = next(a.dtype for a in arguments if hasattr(a, "dtype") and arrays.is_float(a.dtype))
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
    return arrays.accumulator(dtype).type(value) if isinstance(value, float) else np.int32(value)


@functools.cache
def _module(source: Source, dtype: str) -> Any:
    return arrays.cupy().RawModule(code=source.text(dtype), options=("--std=c++17",))


@functools.cache
def _function(source: Source, name: str, dtype: str) -> Any:
    return _module(source, dtype).get_function(name)


def _launch(source: Source, name: str, dtype: Any, grid: tuple[int, int], arguments: list[Any]) -> None:
    blocks, threads = grid
    _function(source, name, str(dtype))((blocks,), (threads,), tuple(arguments))

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

Each launch is held to the parameters as the kernel declares them: how many, arrays or numbers, their types,
and how many numbers an array has at least. That stands behind its name, an expression of Python of the int
parameters and of ``blocks``: ``const T* x /* rows * channels */``.

``usable(x)`` says whether these kernels may be used: the arrays are on a GPU, and nobody asked for the plain
code with ``with reference():``.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from minires.backend import arrays, kernels
from minires.backend.arrays import Array
from minires.errors import MiniresError, as_number, as_whole

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
        dtype = next(a.dtype for a in arguments if hasattr(a, "flags") and arrays.is_float(a.dtype))
        _launch(self, name, dtype, grid, _checked(self, name, grid[0], arguments, dtype))


@dataclass(frozen=True)
class Parameter:
    """A parameter of a kernel, as its source declares it."""

    name: str
    kind: str  # T, A, int, double, unsigned long long
    is_array: bool
    size: str  # how many numbers an array has at least

    @classmethod
    def parse(cls, text: str) -> Parameter:
        said = re.search(r"/\*(.*?)\*/", text)
        kind, _, name = re.sub(r"/\*.*?\*/|\bconst\b|\b__restrict__\b", " ", text).strip().rpartition(" ")
        return cls(name, kind.rstrip("* "), "*" in text.split("/*")[0], said[1].strip() if said else "0")


@functools.cache
def parameters(source: Source, name: str) -> list[Parameter]:
    """The parameters of a kernel, those in macros included."""
    macros = dict(re.findall(r"#define (\w+) ((?:.*\\\n)*.*)", source.code))
    declared = re.search(rf"__global__ void (?:__launch_bounds__\(\w+\) )?{name}\(", source.code)
    assert declared, f"there is no kernel {name}"
    inside = re.match(r"(?:/\*.*?\*/|[^()])*", source.code[declared.end() :], re.DOTALL)
    assert inside
    text = re.sub(r"\b[A-Z_]{2,}\b", lambda word: macros.get(word[0], word[0]), inside[0])
    parts = re.findall(r"(?:/\*.*?\*/|[^,/])+", " ".join(text.replace("\\", " ").split()))
    return [Parameter.parse(part) for part in parts]


def _checked(source: Source, name: str, blocks: int, given: tuple[Any, ...], dtype: Any) -> list[Any]:
    """The arguments, each of the type that the kernel reads. Raises: MiniresError for what does not fit."""
    declared = parameters(source, name)
    if len(given) != len(declared):
        raise MiniresError(f"kernel {name} takes {len(declared)} arguments, but got {len(given)}")
    if (fitting := _checker(source, name, dtype)(blocks, *given)) is not None:
        return fitting
    numbers = {"blocks": blocks}
    pairs = sorted(zip(declared, given, strict=True), key=lambda pair: pair[0].is_array)
    found = {}  # numbers first: sizes of arrays follow from them
    for one, value in pairs:
        found[one.name] = _argument(name, one, value, dtype, numbers)
        if one.kind == "int" and not one.is_array:
            numbers[one.name] = int(found[one.name])
    return [found[one.name] for one in declared]


@functools.cache
def _checker(source: Source, name: str, dtype: Any) -> Callable[..., list[Any] | None]:
    """A function of the blocks and a kernel's arguments: these as the kernel reads them, if nothing about
    them needs a second look, else None.

    It is made as the text of a function, as it goes before every launch, where :func:`_argument` for each
    argument takes five times as long.
    """
    declared = parameters(source, name)
    names: dict[str, Any] = {"NULL": np.uint64(0), "MOST": _MOST_NUMBERS}
    conditions, results = [], []
    for place, one in enumerate(declared):
        wanted, it = _dtype(one.kind, dtype), one.name
        names |= {f"dtype_{place}": wanted, f"type_{place}": wanted.type}
        if one.is_array:
            conditions.append(
                f"({it} is None or {it}.dtype == dtype_{place} and {it}.flags.c_contiguous"
                f" and {one.size} <= {it}.size < MOST)"
            )
            results.append(f"NULL if {it} is None else {it}")
        else:
            conditions.append(f"type({it}) is int" if one.kind == "int" else f"type({it}) in (int, float)")
            results.append(f"type_{place}({it})")
    text = "\n    ".join([
        f"def check({', '.join(['blocks', *(one.name for one in declared)])}):",
        "try:",
        f"    if {' and '.join(conditions)}:",
        f"        return [{', '.join(results)}]",
        "except (AttributeError, OverflowError, TypeError, ZeroDivisionError):",
        "    pass",
    ])  # fmt: skip
    exec(text, names)
    check: Callable[..., list[Any] | None] = names["check"]
    return check


def _argument(kernel: str, declared: Parameter, value: Any, dtype: Any, numbers: dict[str, int]) -> Any:
    wanted = _dtype(declared.kind, dtype)
    if not declared.is_array:
        number: float | None
        if isinstance(value, bool | np.bool_):
            number = int(value)
        else:
            number = as_whole(value) if declared.kind == "int" else as_number(value)
        if number is None:
            raise MiniresError(f"kernel {kernel}: {declared.name} must be of {wanted}, not {value!r}")
        if wanted.kind == "i" and not _INT.min <= number <= _INT.max:
            raise MiniresError(f"kernel {kernel}: {declared.name} is {number}, but must fit into 32 bits")
        return wanted.type(number)
    if value is None:
        return np.uint64(0)
    if not hasattr(value, "flags") or value.dtype != wanted:
        what = value.dtype if hasattr(value, "dtype") else type(value).__name__
        raise MiniresError(f"kernel {kernel}: {declared.name} must be an array of {wanted}, not {what}")
    if not value.flags.c_contiguous:
        raise MiniresError(f"kernel {kernel}: {declared.name} has gaps, but kernels know nothing of strides")
    least = eval(declared.size, {"min": min, "max": max}, numbers)
    if not least <= value.size < _MOST_NUMBERS:
        raise MiniresError(
            f"kernel {kernel}: {declared.name} has {value.size} numbers, but must have at least {least} and "
            f"fewer than {_MOST_NUMBERS}"
        )
    return value


_INT = np.iinfo(np.int32)
_KINDS = {"int": np.int32, "float": np.float32, "double": np.float64, "unsigned long long": np.uint64}


def _dtype(kind: str, dtype: Any) -> np.dtype[Any]:
    """The dtype of a type in a source, where T is ``dtype``."""
    if kind == "T":
        given: np.dtype[Any] = dtype
        return given
    if kind == "A":
        return np.dtype(arrays.accumulator(dtype))
    return np.dtype(_KINDS[kind])


@functools.cache
def _module(source: Source, dtype: str) -> Any:
    return arrays.cupy().RawModule(code=source.text(dtype), options=("--std=c++17",))


@functools.cache
def _function(source: Source, name: str, dtype: str) -> Any:
    return _module(source, dtype).get_function(name)


def _launch(source: Source, name: str, dtype: Any, grid: tuple[int, int], arguments: list[Any]) -> None:
    blocks, threads = grid
    _function(source, name, str(dtype))((blocks,), (threads,), tuple(arguments))

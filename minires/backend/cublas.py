"""Matrix products on a GPU: NVIDIA's cuBLAS, called directly.

CuPy's own calls of cuBLAS refuse to run while a stream is captured into a graph, and choose the arithmetic by
an environment variable. Here the library is called with a handle, a stream and a workspace of our own, and
each product says in which arithmetic it is to be done:

    "fp32"    float32 throughout
    "tf32"    float32 numbers whose factors are rounded to 10 bits, on the tensor cores; sums in float32
    "bf16"    as "fp32": it is for networks whose activations are bfloat16, and says nothing of float32

Matrices of bfloat16 are multiplied on the tensor cores in every precision, with sums in float32. The product
is rounded to bfloat16, or given in float32.

cuBLAS counts matrices by columns. A row-major matrix is, read so, its transpose: y = a @ b by rows is
y^T = b^T @ a^T by columns, so b is given first and nothing is copied.

Where the library is not found, ``cupy.matmul`` does the work.

Source: NVIDIA, cuBLAS documentation, sections 2.1 (handles, workspaces) and 2.8.12 (cublasGemmEx).
"""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minires.backend import arrays
from minires.backend.arrays import Array
from minires.errors import ConfigError, MiniresError, one_of
from minires.settings import Block, Settings

PRECISIONS = ("fp32", "tf32", "bf16")
_WORKSPACE = 32 << 20  # bytes, as recommended for Hopper
_NO_TRANSPOSE, _TRANSPOSE = 0, 1
_DEFAULT_ALGORITHM = -1
_TYPES = {"float32": 0, "float64": 1, "bfloat16": 14}  # cudaDataType_t
_FLOAT, _FLOAT_BY_TF32, _DOUBLE = 68, 77, 70  # cublasComputeType_t


class _Mode(Settings):
    precision = "fp32"


_mode = _Mode()


def precision(name: str) -> Block:
    """Do the matrix products of GPUs in the arithmetic ``name`` inside this block.

    "fp32" and "tf32" say how float32 is multiplied: see minires.backend.cublas. "bf16" is a matter of the
    arrays: a network that is given pictures in bfloat16, ``model(x.astype("bfloat16"))``, keeps its
    activations and their gradients in it, and multiplies in it, with sums in float32. Parameters, their
    gradients, statistics, the optimiser's state and the loss stay float32: see minires.ops.mixed_precision.
    What is float32 inside a block "bf16" is multiplied as in "fp32".

    Raises: ConfigError for an unknown name, and for "bf16" without the package ml_dtypes.
    """
    one_of("precision", name, PRECISIONS)
    arrays.activations(name)  # raises if bfloat16 is missing
    return _mode.within(precision=name)


def chosen_precision() -> str:
    """The arithmetic chosen with :func:`precision`."""
    return _mode.precision


def _candidates() -> Iterator[str]:
    """Where the library may be: in NVIDIA's wheels, in a toolkit, on the system's path."""
    spec = importlib.util.find_spec("nvidia")
    for root in spec.submodule_search_locations or () if spec else ():
        yield from map(str, sorted(Path(root).glob("*/lib/libcublas.so.*"), reverse=True))
        yield from map(str, sorted(Path(root).glob("*/bin/**/cublas64_*.dll"), reverse=True))
    for variable in ("CUDA_PATH", "CUDA_HOME"):
        if folder := os.environ.get(variable):
            yield from map(str, sorted(Path(folder).glob("lib64/libcublas.so*"), reverse=True))
    if name := ctypes.util.find_library("cublas"):
        yield name


@functools.cache
def library() -> ctypes.CDLL | None:
    """cuBLAS, or None where it is not found."""
    for place in _candidates():
        try:
            found = ctypes.CDLL(place)
        except OSError:  # for another CUDA, or its own libraries are missing
            continue
        if hasattr(found, "cublasGemmEx"):
            return found
    return None


def _call(name: str, *arguments: Any) -> None:
    found = library()
    assert found is not None
    status = getattr(found, name)(*arguments)
    if status != 0:
        raise MiniresError(f"{name} failed with status {status}; see cublasStatus_t in its documentation")


class _Handle:
    """A cuBLAS context for one device, whose workspace is given anew whenever the stream changes."""

    def __init__(self, cupy: Any) -> None:
        self.pointer = ctypes.c_void_p()
        _call("cublasCreate_v2", ctypes.byref(self.pointer))
        self.workspace = cupy.empty(_WORKSPACE, "uint8")
        self.stream: int | None = None

    def on(self, stream: int) -> ctypes.c_void_p:
        if stream != self.stream:
            _call("cublasSetStream_v2", self.pointer, ctypes.c_void_p(stream))
            # Setting a stream takes the workspace away.
            place = ctypes.c_void_p(self.workspace.data.ptr)
            _call("cublasSetWorkspace_v2", self.pointer, place, ctypes.c_size_t(_WORKSPACE))
            self.stream = stream
        return self.pointer


@functools.cache
def _handle(cupy: Any, device: int) -> _Handle:
    return _Handle(cupy)


def _layout(matrix: Array) -> tuple[int, int] | None:
    """Whether a matrix is transposed, and the numbers from line to line; None if neither axis is in order."""
    (rows, columns), (down, across) = matrix.shape, (step // matrix.itemsize for step in matrix.strides)
    if (across == 1 or columns == 1) and (down >= columns or rows == 1):
        return _NO_TRANSPOSE, max(down, columns, 1)
    if (down == 1 or rows == 1) and (across >= rows or columns == 1):
        return _TRANSPOSE, max(across, rows, 1)
    return None


def _compute(dtype: str, precision: str) -> int:
    if dtype == "float64":
        return _DOUBLE
    return _FLOAT_BY_TF32 if dtype == "float32" and precision == "tf32" else _FLOAT


def matmul(
    cupy: Any, a: Array, b: Array, out: Array | None = None, *, dtype: Any = None, precision: str = "fp32"
) -> Array:
    """a (M, K) @ b (K, N) -> (M, N) on the GPU where they are, into ``out`` where given.

    a and b may be transposed views, and have gaps between their lines; ``out`` has its rows in order. Without
    ``out`` the result has ``dtype``, that of a and b if left out; of bfloat16 it may also be float32.
    Raises: ConfigError if the precision needs cuBLAS and it is missing; MiniresError if it reports an error.
    """
    if library() is None:
        needed = "bf16" if str(a.dtype) == "bfloat16" else precision
        if needed != "fp32":
            raise ConfigError(
                f"precision {needed!r} needs cuBLAS, and it was not found. "
                "Install it with pip install nvidia-cublas-cu12 (or nvidia-cublas for CUDA 13)"
            )
        return cupy.matmul(a, b, out=out)
    (m, k), n = a.shape, b.shape[1]
    out = cupy.empty((m, n), a.dtype if dtype is None else dtype) if out is None else out
    if _layout(a) is None:
        a = cupy.ascontiguousarray(a)
    if _layout(b) is None:
        b = cupy.ascontiguousarray(b)
    (turn_a, down_a), (turn_b, down_b), layout = _layout(a), _layout(b), _layout(out)  # type: ignore[misc]
    assert layout is not None and layout[0] == _NO_TRANSPOSE, "the rows of out must be in order"
    kind, kind_out = _TYPES[str(a.dtype)], _TYPES[str(out.dtype)]
    scalar = ctypes.c_double if a.dtype == "float64" else ctypes.c_float
    handle = _handle(cupy, a.device.id).on(cupy.cuda.get_current_stream().ptr)
    pointer, size = ctypes.c_void_p, ctypes.c_int
    _call(
        "cublasGemmEx", handle, turn_b, turn_a, size(n), size(m), size(k), ctypes.byref(scalar(1)),
        pointer(b.data.ptr), kind, size(down_b), pointer(a.data.ptr), kind, size(down_a),
        ctypes.byref(scalar(0)), pointer(out.data.ptr), kind_out, size(layout[1]),
        _compute(str(a.dtype), precision), _DEFAULT_ALGORITHM,
    )  # fmt: skip
    return out

"""Arrays: NumPy's and CuPy's, the device they lie on, and bfloat16.

``array_module(x)`` is ``numpy`` or ``cupy``, so that one piece of plain code (the reference implementation
of an operation) runs on either kind of array. bfloat16 is a dtype that NumPy knows once the package
``ml_dtypes`` is imported; here stands which dtypes go together with it.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
from types import ModuleType
from typing import Any

import numpy as np

from minires.errors import ConfigError

_LINE = 64  # bytes of a cache
Array = Any  # a numpy.ndarray or a cupy.ndarray; the two share their interface

# ---------------------------------------------------------------------------------------------- devices


@functools.cache
def cupy() -> ModuleType:
    """The CuPy module. Raises: ConfigError that says what is missing and how to get it."""
    if importlib.util.find_spec("cupy") is None:
        raise ConfigError(
            "a GPU was asked for, but CuPy is not installed. "
            "Install it with pip install 'cupy-cuda12x[ctk]' (or cupy-cuda13x), or use device='cpu'"
        )
    module = importlib.import_module("cupy")
    try:
        count = module.cuda.runtime.getDeviceCount()
    except Exception as error:  # CuPy raises its own type, which is only known once it is imported
        raise ConfigError(
            f"a GPU was asked for, but CUDA does not answer ({error}); use device='cpu'"
        ) from error
    if count == 0:
        raise ConfigError("a GPU was asked for, but this machine has none; use device='cpu'")
    return module


def nccl() -> ModuleType:
    """CuPy's module of NCCL: sums over several GPUs. Raises: ConfigError that says what is missing."""
    cupy()
    try:
        module = importlib.import_module("cupy.cuda.nccl")
    except ImportError as error:
        raise ConfigError(f"this CuPy knows no NCCL ({error}); its packages for Linux do") from error
    if not module.available:
        raise ConfigError("NCCL is not installed; pip install nvidia-nccl-cu12 (or nvidia-nccl-cu13)")
    return module


def is_numpy(array: Array) -> bool:
    """Whether an array is NumPy's, and so lies in the memory of the CPU."""
    return isinstance(array, np.ndarray | np.generic)


def is_writable(array: Array) -> bool:
    """Whether the numbers of an array may be changed; those on a GPU always may."""
    return bool(getattr(array.flags, "writeable", True))


def is_cupy(array: Array) -> bool:
    """Whether an array is CuPy's, without importing CuPy."""
    return type(array).__module__.partition(".")[0] == "cupy"


def empty(shape: tuple[int, ...], dtype: Any) -> Array:
    """``np.empty`` at the beginning of a line of the cache: a vector of 64 bytes that lies in two lines takes
    twice as long to read, and NumPy's own arrays begin 16 bytes behind one. It is a view: no gradient."""
    count, dtype = math.prod(shape), np.dtype(dtype)
    numbers = np.empty(count + _LINE // dtype.itemsize, dtype)
    first = -numbers.__array_interface__["data"][0] % _LINE // dtype.itemsize
    return numbers[first : first + count].reshape(shape)


def array_module(*arrays: Array) -> Any:
    """``cupy`` if any of ``arrays`` lies on a GPU, else ``numpy``."""
    return np if all(is_numpy(array) for array in arrays) else cupy()


def device_of(array: Array) -> str:
    """``"cpu"``, ``"cuda:0"``, ``"cuda:1"``, ..."""
    return "cpu" if is_numpy(array) else f"cuda:{array.device.id}"


def choose_device(device: str) -> str:
    """``device``; for ``"auto"`` it is ``"cuda"`` if there is a GPU that CuPy can use, else ``"cpu"``."""
    if device != "auto":
        return device
    try:
        cupy()
    except ConfigError:
        return "cpu"
    return "cuda"


def to_device(array: Array, device: str) -> Array:
    """``array`` on ``device`` (``"cpu"``, ``"cuda"``, ``"cuda:1"``); the same object if it is there already.

    Raises: ConfigError for an unknown device, and for a GPU that is not there.
    """
    number = _gpu(device)
    if number is None:
        return array if is_numpy(array) else cupy().asnumpy(array)
    with cupy().cuda.Device(number):
        return cupy().asarray(array)


def _gpu(device: str) -> int | None:
    """The number of a GPU, None for the CPU. Raises: ConfigError as :func:`to_device`."""
    kind, _, index = device.partition(":") if isinstance(device, str) else ("", "", "")
    if kind == "cpu" and not index:
        return None
    if kind != "cuda" or (index and not index.isdecimal()):
        raise ConfigError(f"unknown device {device!r}; use 'cpu', 'cuda' or 'cuda:1'")
    count = cupy().cuda.runtime.getDeviceCount()
    if int(index or 0) >= count:
        raise ConfigError(f"there is no {device}: this machine's GPUs are cuda:0 to cuda:{count - 1}")
    return int(index or 0)


def make_current(device: str) -> None:
    """From now on this thread launches its kernels, and makes its new arrays, on ``device``, if it is a GPU.

    Where arrays lie does not say where their kernels run, so a thread that works on another GPU than the
    first must call it. Raises: ConfigError as :func:`to_device`.
    """
    number = _gpu(device)
    if number is not None:
        cupy().cuda.Device(number).use()


def gpus() -> list[str]:
    """The GPUs that this process may use, by their places on the machine's bus, which are the same for all
    processes of a machine. Raises: ConfigError if there is none."""
    device, count = cupy().cuda.Device, cupy().cuda.runtime.getDeviceCount()
    return [str(device(number).pci_bus_id) for number in range(count)]


def own(array: Array, device: str) -> Array:
    """What an operation keeps of an array that the caller may change: a copy on ``device``.

    An array that lies on a GPU is not copied, as it may be one that a captured step writes anew.
    """
    return array.copy() if device == "cpu" and is_numpy(array) else to_device(array, device)


# --------------------------------------------------------------------------------------------- bfloat16


@functools.cache
def bfloat16() -> np.dtype[Any]:
    """The dtype bfloat16: a float32 without the lower half of its bits. Raises: ConfigError if it is missing.

    It has the range of float32 (8 bits of exponent) and 8 significant bits instead of 24.
    """
    if importlib.util.find_spec("ml_dtypes") is None:
        raise ConfigError(
            "bfloat16 was asked for, but the package ml_dtypes, which brings it to NumPy, is not installed. "
            "Install it with pip install ml_dtypes, or leave the precision at 'fp32'"
        )
    found: np.dtype[Any] = np.dtype(importlib.import_module("ml_dtypes").bfloat16)
    return found


def is_bfloat16(dtype: Any) -> bool:
    """Whether a dtype is bfloat16, without importing what brings it."""
    return bool(dtype.kind == "V" and dtype.name == "bfloat16")


def dtype_of(name: Any) -> np.dtype[Any]:
    """The dtype of a name such as "float32" or "bfloat16", or a dtype itself.

    Raises: ConfigError if it is none, or the package for bfloat16 is missing.
    """
    if isinstance(name, str) and name == "bfloat16":
        return bfloat16()
    if isinstance(name, str | type | np.dtype):
        try:
            return np.dtype(name)
        except TypeError:
            pass
    raise ConfigError(f"{name!r} is no dtype; give 'float32' or 'float64', or 'bfloat16' for activations")


def is_float(dtype: Any) -> bool:
    """Whether a dtype is one of floating-point numbers. NumPy alone does not count bfloat16 among them."""
    return dtype.kind == "f" or is_bfloat16(dtype)


def accumulator(dtype: Any) -> np.dtype[Any]:
    """The dtype in which numbers of ``dtype`` are added up, and that of parameters beside activations of it.

    It is float32 for bfloat16, else ``dtype`` itself.
    """
    return np.dtype(np.float32) if is_bfloat16(dtype) else dtype


def activations(precision: str) -> np.dtype[Any]:
    """The dtype in which a network is to be given its pictures in ``precision``, and keeps activations."""
    return bfloat16() if precision == "bf16" else np.dtype(np.float32)

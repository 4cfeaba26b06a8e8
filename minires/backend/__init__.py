"""Arrays and devices: the only file that imports CuPy or Numba, and the one pool of threads.

Four things live here:

* **array modules.** ``array_module(x)`` is ``numpy`` or ``cupy``, so that one piece of plain code (the
  specification of an operation) runs on either kind of array.
* **bfloat16.** Its dtype, which NumPy knows once the package ``ml_dtypes`` is imported, and which dtypes go
  together with it.
* **kernels.** ``@kernel`` marks a function over NumPy arrays that Numba compiles on its first call, without
  Python's global lock. ``fast(x)`` says whether such a kernel may be used: Numba is installed, the array is
  a NumPy array, and nobody asked for the plain code with ``with specification():``.
* **threads.** ``parallel_for(task, n)`` cuts ``range(n)`` into one shard per thread. Inside it every matrix
  product runs on one thread: two layers of threads would fight for the same cores, which was measured to
  cost a factor of two to five.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.util
import os
import platform
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import FunctionType, ModuleType
from typing import Any

import numpy as np

from minires.backend import cublas, simd
from minires.errors import ConfigError, one_of

Array = Any  # a numpy.ndarray or a cupy.ndarray; the two share their interface


# ---------------------------------------------------------------------------------------------- devices


@functools.cache
def cupy() -> ModuleType:
    """The CuPy module. Raises: ConfigError that says what is missing and how to get it."""
    if importlib.util.find_spec("cupy") is None:
        raise ConfigError(
            "a GPU was asked for, but CuPy is not installed. "
            "Install it with pip install 'minires[cuda12]' (or cuda13), or use device='cpu'"
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


def _is_numpy(array: Array) -> bool:
    return isinstance(array, np.ndarray | np.generic)


def array_module(*arrays: Array) -> Any:
    """``cupy`` if any of ``arrays`` lies on a GPU, else ``numpy``."""
    return np if all(_is_numpy(array) for array in arrays) else cupy()


def device_of(array: Array) -> str:
    """``"cpu"``, ``"cuda:0"``, ``"cuda:1"``, ..."""
    return "cpu" if _is_numpy(array) else f"cuda:{array.device.id}"


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
    kind, _, index = device.partition(":")
    if device == "cpu":
        return array if _is_numpy(array) else cupy().asnumpy(array)
    if kind != "cuda" or (index and not index.isdigit()):
        raise ConfigError(f"unknown device {device!r}; use 'cpu', 'cuda' or 'cuda:1'")
    count = cupy().cuda.runtime.getDeviceCount()
    if int(index or 0) >= count:
        raise ConfigError(f"there is no {device}: this machine's GPUs are cuda:0 to cuda:{count - 1}")
    with cupy().cuda.Device(int(index or 0)):
        return cupy().asarray(array)


# --------------------------------------------------------------------------------------------- bfloat16


@functools.cache
def bfloat16() -> np.dtype[Any]:
    """The dtype bfloat16: a float32 without the lower half of its bits. Raises: ConfigError if it is missing.

    It has the range of float32 (8 bits of exponent) and 8 significant bits instead of 24.
    """
    if importlib.util.find_spec("ml_dtypes") is None:
        raise ConfigError(
            "bfloat16 was asked for, but the package ml_dtypes, which brings it to NumPy, is not installed. "
            "Install it with pip install 'minires[bf16]', or leave the precision at 'fp32'"
        )
    return np.dtype(importlib.import_module("ml_dtypes").bfloat16)


def is_bfloat16(dtype: Any) -> bool:
    """Whether a dtype is bfloat16, without importing what brings it."""
    return dtype.kind == "V" and dtype.name == "bfloat16"


def is_float(dtype: Any) -> bool:
    """Whether a dtype is one of floating-point numbers. NumPy alone does not count bfloat16 among them."""
    return dtype.kind == "f" or is_bfloat16(dtype)


def accumulator(dtype: Any) -> np.dtype[Any]:
    """The dtype in which numbers of ``dtype`` are added up, and that of parameters beside activations of it.

    It is float32 for bfloat16, else ``dtype`` itself.
    """
    return np.dtype(np.float32) if is_bfloat16(dtype) else dtype


# ---------------------------------------------------------------------------------------------- kernels

HAS_NUMBA = importlib.util.find_spec("numba") is not None


class _Mode(threading.local):
    specification = False
    precision = "fp32"


_mode = _Mode()


@contextmanager
def specification(on: bool = True) -> Iterator[None]:
    """Run every operation as its plain array code, without fused kernels, inside this block."""
    before, _mode.specification = _mode.specification, on
    try:
        yield
    finally:
        _mode.specification = before


@contextmanager
def precision(name: str) -> Iterator[None]:
    """Do the matrix products of GPUs in the arithmetic ``name`` inside this block.

    "fp32" and "tf32" say how float32 is multiplied: see minires.backend.cublas. "bf16" is a matter of the
    arrays: a network that is given pictures in bfloat16, ``model(x.astype("bfloat16"))``, keeps its
    activations and their gradients in it, and multiplies in it, with sums in float32. Parameters, their
    gradients, statistics, the optimiser's state and the loss stay float32: see minires.ops.mixed_precision.
    What is float32 inside a block "bf16" is multiplied as in "fp32".

    Raises: ConfigError for an unknown name, and for "bf16" without the package ml_dtypes.
    """
    one_of("precision", name, cublas.PRECISIONS)
    activations(name)
    before, _mode.precision = _mode.precision, name
    try:
        yield
    finally:
        _mode.precision = before


def activations(precision: str) -> np.dtype[Any]:
    """The dtype in which a network is to be given its pictures in ``precision``, and keeps activations."""
    return bfloat16() if precision == "bf16" else np.dtype(np.float32)


def is_specification() -> bool:
    """Whether operations run as their plain array code now."""
    return _mode.specification


def fast(*arrays: Array) -> bool:
    """Whether the Numba kernels may be used on these arrays."""
    return HAS_NUMBA and not _mode.specification and all(_is_numpy(array) for array in arrays)


_tell: Callable[[str], None] | None = None  # who is told before a kernel is compiled


@contextmanager
def before_compiling(tell: Callable[[str], None]) -> Iterator[None]:
    """Call ``tell`` with a line to show before the first kernel that is compiled inside this block.

    A kernel that comes from the cache on disk is not compiled, and nothing is told then.
    """
    global _tell
    before, _tell = _tell, tell
    try:
        yield
    finally:
        _tell = before


def _announce(kept: bool) -> None:
    """Tell whoever wants to know that kernels are being compiled, and whether they are kept on disk."""
    global _tell
    tell, _tell = _tell, None  # the kernels that follow are no news
    if tell is not None:
        often = "once on this machine" if kept else "at each start, as no folder for them can be written to"
        tell(f"compiling the kernels, {often}; it takes about ten seconds")


@functools.cache
def _numba() -> ModuleType:
    """Numba, which from now on says when it compiles: only then, and before the wait."""
    from numba.core import event

    class Compiling(event.Listener):
        def on_start(self, start: Any) -> None:
            _announce(kept=start.data["dispatcher"].stats.cache_path is not None)

        def on_end(self, end: Any) -> None:
            pass

    event.register("numba:compile", Compiling())
    if hasattr(os, "sched_yield"):
        global _sched_yield
        types = importlib.import_module("numba.core.types")
        _sched_yield = types.ExternalFunction("sched_yield", types.intc())
    simd.set_up()
    return importlib.import_module("numba")


def _compile(function: Callable[..., Any]) -> Callable[..., Any]:
    njit = functools.partial(_numba().njit, nogil=True, error_model="numpy")
    names = function.__code__.co_names
    called = {name: function.__globals__[name] for name in names if name in function.__globals__}
    inner = {name: other.compiled() for name, other in called.items() if hasattr(other, "compiled")}
    if inner:  # kernels that it calls: Numba must see these compiled
        function = FunctionType(function.__code__, {**function.__globals__, **inner}, function.__name__)
    try:
        return njit(cache=True)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache can be written to
        return njit()(function)


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile ``function`` with Numba on its first call (importing Numba only then), free of the global lock.

    The compiled code is kept on disk where it can be, so that the second run of a program starts at once.
    A kernel may call other kernels of its module, and the functions of ``minires.backend.simd``.
    """
    lock = threading.Lock()
    ready: Callable[..., Any] | None = None

    def compiled() -> Callable[..., Any]:
        nonlocal ready
        with lock:
            if ready is None:
                ready = _compile(function)
            return ready

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        return (ready or compiled())(*arguments)

    call.compiled = compiled  # type: ignore[attr-defined]
    return call


# ---------------------------------------------------------------------------------------------- threads


def _available_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


_MMAP_MAX, _TRIM_THRESHOLD = -4, -1  # the numbers of these options in glibc's malloc.h


def _keep_freed_memory() -> None:
    """Have glibc keep the memory of freed arrays for the next ones, unless the user told it otherwise.

    By default it gives large arrays back to the system, which then clears each page anew: a training step
    asks for the same hundreds of megabytes every time, and was measured to lose 5 to 12% so.
    """
    told = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    if platform.libc_ver()[0] == "glibc" and not told:
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)


# A sleeping thread takes some 50 microseconds to wake, and a step of a network is made of hundreds of shards
# that take little longer. So who waits stays awake for a moment first, and gives way to whoever else wants
# the core. This is but a delay: what there is to do, and whether it is done, is learned from queues.

_sched_yield: Any = None  # the C function, for kernels; None where there is none, or Numba is not in use yet
_PATIENCE = 2000  # times to give way before going to sleep, about half a millisecond on an idle core
_GRACE = 20  # times more, in which the thread that rang lets go of Python's global lock


@kernel
def _stay_awake_numba(rung, until):
    for _ in range(_PATIENCE):
        if rung[0] >= until:
            break
        _sched_yield()
    for _ in range(_GRACE):
        _sched_yield()


class _Bell:
    """Counts how often it was rung, and keeps threads awake that wait for that."""

    compiled = False  # by a caller: a thread of the pool that compiles would hold up the end of the program

    def __init__(self) -> None:
        self.rung = np.zeros(1, np.int64)

    def ring(self) -> None:
        self.rung[0] += 1

    def stay_awake(self, until: int) -> None:
        """Return once it was rung ``until`` times, or when patience is at an end."""
        if _sched_yield is not None:
            _stay_awake_numba(self.rung, until)
            _Bell.compiled = True


class _Pool:
    """Threads that wait for shards. The caller works on the first shard itself, so a pool of n has n - 1."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self.bell = _Bell()
        for _ in range(size - 1):
            threading.Thread(target=self._work, name="minires", daemon=True).start()

    def put(self, tasks: list[Callable[[], None]]) -> None:
        for task in tasks:
            self.tasks.put(task)
        self.bell.ring()

    def _work(self) -> None:
        _inside.yes = True
        while (task := self.tasks.get()) is not None:
            heard = int(self.bell.rung[0])
            task()
            del task  # and with it the arrays that it holds
            if self.tasks.empty() and _Bell.compiled:
                self.bell.stay_awake(heard + 1)

    def close(self) -> None:
        for _ in range(self.size - 1):
            self.tasks.put(None)


class _Inside(threading.local):
    yes = False  # in a shard already: a parallel_for in it runs in place


_inside = _Inside()
_pool: _Pool | None = None
_pool_lock = threading.Lock()


def threads() -> int:
    """How many threads the operations use: set_threads(), else MINIRES_THREADS, else the cores at hand."""
    return _get_pool().size


def set_threads(count: int) -> None:
    """Use ``count`` threads from now on. Raises: ConfigError if it is not at least 1."""
    global _pool
    if count < 1:
        raise ConfigError(f"the number of threads must be at least 1, not {count}")
    with _pool_lock:
        if _pool is None:
            _keep_freed_memory()
        else:
            _pool.close()
        _pool = _Pool(count)


def _get_pool() -> _Pool:
    if _pool is None:
        asked = os.environ.get("MINIRES_THREADS", "")
        if asked and not asked.isdigit():
            raise ConfigError(f"MINIRES_THREADS must be a whole number of threads, not {asked!r}")
        set_threads(int(asked) if asked else _available_cores())
    assert _pool is not None
    return _pool


def _forget_pool() -> None:
    """A forked child has no threads but its own: it starts a pool of its own when it needs one."""
    global _pool
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


class _SingleThreadedBlas:
    """While any thread is inside, each BLAS call runs on one thread; afterwards the setting is as before.

    From its version 3.8 on threadpoolctl lets only the first Python thread that sets a limit set any, while
    that thread lives. Here threads do not fight over it, as they are counted, so each takes it over.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.inside = 0
        self.before: list[int] = []

    @functools.cached_property
    def libraries(self) -> list[Any]:
        from threadpoolctl import ThreadpoolController

        return ThreadpoolController().select(user_api="blas").lib_controllers

    def __enter__(self) -> None:
        with self.lock:
            if self.inside == 0:
                self.before = [library.get_num_threads() for library in self.libraries]
                self._set([1] * len(self.libraries))
            self.inside += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.inside -= 1
            if self.inside == 0:
                self._set(self.before)

    def _set(self, counts: list[int]) -> None:
        for library, count in zip(self.libraries, counts, strict=True):
            if hasattr(library, "clear_controlling_thread"):
                library.clear_controlling_thread(force=True)
            library.set_num_threads(count)


_single_threaded_blas = _SingleThreadedBlas()


def shards(n: int, grain: int = 1) -> list[tuple[int, int]]:
    """``range(n)`` in nearly equal parts, at most one per thread, none (but a lone one) under ``grain``."""
    return split(0, n, max(1, min(threads(), n // max(1, grain))))


def split(start: int, stop: int, count: int) -> list[tuple[int, int]]:
    """``range(start, stop)`` in ``count`` nearly equal parts."""
    edges = [start + (stop - start) * part // count for part in range(count + 1)]
    return list(zip(edges[:-1], edges[1:], strict=True))


def parallel_for(task: Callable[[int, int], None], n: int, grain: int = 1) -> None:
    """Call ``task(start, stop)`` on the shards of ``range(n)``, one thread each, and wait for all of them.

    ``grain`` is the least work worth a thread of its own. An exception in a shard is raised here.
    """
    parts = [(0, n)] if _inside.yes else shards(n, grain)
    parallel_calls([functools.partial(task, *part) for part in parts])


def parallel_calls(calls: Sequence[Callable[[], None]]) -> None:
    """Run ``calls`` at once, the first on this thread, the others on the pool; wait for all of them.

    Matrix products inside them use one thread each: the threads of BLAS stay awake for a while after they
    were needed, and would take the cores from ours.
    """
    if len(calls) == 1 or _inside.yes:
        with nullcontext() if _inside.yes else _single_threaded_blas:
            for call in calls:
                call()
        return
    pool = _get_pool()
    done: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
    bell = _Bell()

    def guarded(call: Callable[[], None]) -> None:
        try:
            call()
        except BaseException as error:
            done.put(error)
        else:
            done.put(None)
        bell.ring()

    with _single_threaded_blas:
        pool.put([functools.partial(guarded, call) for call in calls[1:]])
        _inside.yes = True
        try:
            guarded(calls[0])
        finally:
            _inside.yes = False
        if done.qsize() < len(calls):
            bell.stay_awake(len(calls))
        errors = [error for _ in calls if (error := done.get()) is not None]
    if errors:
        raise errors[0]


_ADD_GRAIN = 1 << 17  # numbers; fewer are not worth a second thread


def add(a: Array, b: Array, out: Array | None = None) -> Array:
    """``a + b`` of two arrays of one shape, on all threads where they are large NumPy arrays."""
    if a.size < 2 * _ADD_GRAIN or not _is_numpy(a):
        xp = array_module(a, b)
        return xp.asarray(xp.add(a, b, out=out))  # NumPy adds arrays without axes to a scalar
    out = np.empty(a.shape, a.dtype) if out is None else out
    parts = (a, b, out)
    if all(part.flags.c_contiguous for part in parts):
        parts = (a.reshape(-1), b.reshape(-1), out.reshape(-1))
    first, second, total = parts

    def task(start: int, stop: int) -> None:
        np.add(first[start:stop], second[start:stop], out=total[start:stop])

    parallel_for(task, len(total), _ADD_GRAIN * len(total) // total.size)
    return out


def copy(source: Array, target: Array) -> None:
    """``target[...] = source``, on all threads where they are large NumPy arrays."""
    if target.size < 2 * _ADD_GRAIN or not _is_numpy(target):
        target[...] = source
        return

    def task(start: int, stop: int) -> None:
        target[start:stop] = source[start:stop]

    parallel_for(task, len(target), _ADD_GRAIN * len(target) // target.size)


_MATMUL_GRAIN = 1 << 22  # multiply-adds worth a thread of their own


def matmul(a: Array, b: Array, dtype: Any = None) -> Array:
    """``a @ b``: on the CPU on the threads of the pool, cut along the longest of the three sides; on a GPU by
    cuBLAS, in the arithmetic chosen with ``precision``.

    Plain ``a @ b`` would wake the threads of BLAS, which then compete with ours for the cores.
    Stacks of matrices are multiplied as they are. Matrices of bfloat16 are multiplied with sums in float32,
    and their product is given as ``dtype``: bfloat16 if left out, or float32.
    """
    if _is_numpy(a) and is_bfloat16(a.dtype):
        return matmul(a.astype(np.float32), b.astype(np.float32)).astype(dtype or a.dtype, copy=False)
    if a.ndim != 2 or b.ndim != 2:
        return array_module(a, b).matmul(a, b)
    if not (_is_numpy(a) and _is_numpy(b)):
        return cublas.matmul(cupy(), a, b, dtype=dtype, precision=_mode.precision)
    (m, k), n = a.shape, b.shape[1]
    longest = max(m, k, n)
    parts = shards(longest, _MATMUL_GRAIN * longest // max(1, m * k * n))
    with _single_threaded_blas:
        if longest in (m, n):
            out = np.empty((m, n), a.dtype)
            if longest == m:
                calls = [functools.partial(np.matmul, a[i:j], b, out=out[i:j]) for i, j in parts]
            else:
                calls = [functools.partial(np.matmul, a, b[:, i:j], out=out[:, i:j]) for i, j in parts]
            parallel_calls(calls)
            return out
        sums = np.empty((len(parts), m, n), a.dtype)
        parallel_calls(
            [
                functools.partial(np.matmul, a[:, i:j], b[i:j], out=part)
                for (i, j), part in zip(parts, sums, strict=True)
            ]
        )
    return sums[0].copy() if len(parts) == 1 else sums.sum(axis=0)

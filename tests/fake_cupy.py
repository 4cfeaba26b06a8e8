"""Stands in for CuPy where there is no GPU: arrays on the CPU, and streams whose work can be captured.

While a stream is captured, what is done with its arrays is written down and not kept: kernels (run by the
emulator), products, and the functions of NumPy. A graph does all of it again, on the very same arrays. So a
number that found its way into a step from the host, and would be frozen in a CUDA graph, is frozen here too.

There may be several GPUs. Each thread has its current one, on which its arrays are made, and computes with
arrays of that one only. So a thread can stand for a rank of a run: see fake_nccl.py.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import cuda_emulator
import numpy as np
import opcheck
import pytest
from fake_nccl import FakeNccl

from minires import backend
from minires.backend import arrays, cuda, kernels, matrix_products


class _Here(threading.local):
    """What each thread has for itself."""

    captured: list[Callable[[], Any]] | None = None  # what was written down so far, while one is captured
    replays = False  # whether a graph is run
    device = 0  # the current one

    def __init__(self) -> None:
        self.streams = [Stream()]  # the last is the current one


_emulator = threading.Lock()  # it runs one kernel at a time
# What CuPy 14 computes of bfloat16, as far as it is used here. It has no where and no argmax.
OF_BFLOAT16 = {"add", "subtract", "multiply", "negative", "isfinite", "isnan", "isinf", "sum"}


def _check_known(name: str, arguments: Any) -> None:
    if name not in OF_BFLOAT16 and any(_is_array(a) and backend.is_bfloat16(a.dtype) for a in arguments):
        raise TypeError(f"CuPy has no {name} of bfloat16")


def _plain(value: Any) -> Any:
    if isinstance(value, DeviceArray):
        return value.view(np.ndarray)
    if isinstance(value, list | tuple):
        return type(value)(map(_plain, value))
    return value


def _computed(work: Callable[[], Any]) -> Any:
    """The result of ``work`` as an array, which a graph computes anew."""
    with np.errstate(all="ignore"):  # while capturing arrays hold what was in the memory before
        result = work()
    if isinstance(result, list | tuple):
        raise NotImplementedError("this stand-in knows functions with one result only")
    array = np.array(result)
    if here.captured is not None:
        here.captured.append(lambda: np.copyto(array, work()))
    return array.view(DeviceArray)


def _changed(work: Callable[[], Any]) -> None:
    """Do what changes arrays in place; while capturing only write it down."""
    if here.captured is None:
        work()
    else:
        here.captured.append(work)


def _check_here(*given: Any) -> None:
    """What CuPy asks of the arrays of an operation, and a kernel of its own would not forgive."""
    for array in given:
        if isinstance(array, DeviceArray) and array.number != here.device:
            raise RuntimeError(f"an array on GPU {array.number}, while the current one is {here.device}")


class DeviceArray(np.ndarray):
    """An array on the GPU ``number``, which is not there."""

    number = 0

    def __array_finalize__(self, base):
        self.number = base.number if isinstance(base, DeviceArray) else here.device

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **options):
        _check_here(*inputs, *(out or ()))
        _check_known(ufunc.__name__, inputs)
        run, inputs = getattr(ufunc, method), _plain(inputs)
        if out is None:
            return _computed(lambda: run(*inputs, **options))
        target = _plain(out)
        _changed(lambda: run(*inputs, out=target, **options))
        return out[0]

    def __array_function__(self, function, types, args, options):
        _check_here(*args)
        args, options = _plain(args), {name: _plain(value) for name, value in options.items()}
        # While a step is captured the numbers are not there yet.
        with np.errstate(all="ignore" if here.captured is not None else None):
            result = function(*args, **options)
        if isinstance(result, np.ndarray) and any(np.shares_memory(result, a) for a in args if _is_array(a)):
            return result.view(DeviceArray)  # a view: nothing was computed
        if not isinstance(result, np.ndarray | np.generic):
            return result
        _check_known(function.__name__, args)
        return _computed(lambda: function(*args, **options))

    def __setitem__(self, key, value):
        _check_here(self, value)
        mine, key, value = _plain(self), _plain(key), _plain(value)
        _changed(lambda: mine.__setitem__(key, value))

    def argmax(self, *args, **options):
        _check_known("argmax", [self])
        mine = _plain(self)
        return _computed(lambda: mine.argmax(*args, **options))

    def copy(self, order="C"):
        mine = _plain(self)
        return _computed(lambda: mine.copy(order))

    def astype(self, dtype, *args, copy=True, **options):
        mine = _plain(self)
        return self if self.dtype == dtype and not copy else _computed(lambda: mine.astype(dtype))

    def set(self, array, stream=None):
        _plain(self)[...] = array

    def get(self, out, stream=None, blocking=True):
        out[...] = _plain(self)
        return out


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray)


class Stream:
    """Everything on it is done at once, unless it is captured."""

    numbers = itertools.count(1000)

    def __init__(self, non_blocking: bool = False) -> None:
        self.ptr = next(self.numbers)

    def __enter__(self) -> Stream:
        here.streams.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        here.streams.pop()

    def wait_event(self, event: Event) -> None:
        assert event.recorded, "this would wait for nothing"

    def begin_capture(self) -> None:
        assert here.captured is None, "one capture at a time"
        here.captured = []

    def end_capture(self) -> SimpleNamespace:
        work, here.captured = here.captured, None

        def launch(stream: Stream) -> None:
            here.replays = True
            try:
                for step in work or ():
                    step()
            finally:
                here.replays = False

        return SimpleNamespace(launch=launch, size=len(work or ()))


class Event:
    recorded = False

    def record(self, stream: Stream) -> None:
        self.recorded = True

    def synchronize(self) -> None:
        pass


class Device:
    def __init__(self, number: int | None = None) -> None:
        self.number = here.device if number is None else number
        self.before: list[int] = []

    @property
    def pci_bus_id(self) -> str:
        return f"0000:{self.number + 1:02x}:00.0"

    def use(self) -> None:
        here.device = self.number

    def __enter__(self) -> Device:
        self.before.append(here.device)
        here.device = self.number
        return self

    def __exit__(self, *_: object) -> None:
        here.device = self.before.pop()

    def synchronize(self) -> None:
        pass


@contextmanager
def _using_allocator(allocator: Any) -> Iterator[None]:
    yield


here = _Here()


class FakeCupy:
    """The module: NumPy's functions, whose results are arrays on the device."""

    def __init__(self, gpus: int = 1) -> None:
        self.cuda = SimpleNamespace(
            Stream=Stream,
            Event=Event,
            Device=Device,
            MemoryPool=lambda: SimpleNamespace(malloc=None),
            using_allocator=_using_allocator,
            alloc_pinned_memory=bytearray,
            get_current_stream=lambda: here.streams[-1],
            runtime=SimpleNamespace(getDeviceCount=lambda: gpus),
        )

    matmul = staticmethod(np.matmul)

    def __getattr__(self, name: str) -> Any:
        found = getattr(np, name)
        if not callable(found) or isinstance(found, type | np.ufunc):
            return found

        def function(*args: Any, **options: Any) -> Any:
            result = found(*args, **options)
            return result.view(DeviceArray) if type(result) is np.ndarray else result

        return function

    @staticmethod
    def asarray(array: Any, dtype: Any = None) -> Any:
        return np.asarray(_plain(array), dtype).view(DeviceArray)

    @staticmethod
    def ascontiguousarray(array: Any, dtype: Any = None) -> Any:
        dtype = array.dtype if dtype is None else np.dtype(dtype)
        if array.flags.c_contiguous and array.dtype == dtype:
            return array
        return _computed(lambda: np.array(_plain(array), dtype, order="C"))

    @staticmethod
    def asnumpy(array: Any) -> Any:
        return np.array(_plain(array))


# What a test that runs on both asks for: a GPU that is pretended, or a real one.
WAYS = ["emulated", pytest.param("cuda", marks=pytest.mark.gpu)]


def take(way: str, monkeypatch: Any) -> None:
    """From here on there is a GPU, as this one of the ``WAYS`` gives it; else the test is skipped."""
    if way == "emulated":
        pretend(monkeypatch)
    else:
        opcheck.need_device("cuda")


def pretend(monkeypatch: Any, gpus: int = 1) -> cuda_emulator.Emulator:
    """From here on there are so many GPUs, "cuda:0", ...: CuPy is this module, and kernels are emulated."""
    emulator = cuda_emulator.emulate(monkeypatch)
    fake = FakeCupy(gpus)
    nccl = FakeNccl(here, _changed)

    def launch(source: Any, name: str, dtype: Any, grid: Any, arguments: list[Any]) -> None:
        _check_here(*arguments)

        def work() -> None:
            with _emulator:
                emulator.launch(source, name, dtype, grid, arguments)

        _changed(work)

    monkeypatch.setattr(cuda, "_launch", launch)
    monkeypatch.setattr(
        cuda, "usable", lambda *arrays: _on_device(*arrays) and not backend.is_reference()
    )
    for home in (arrays, kernels):
        monkeypatch.setattr(home, "is_numpy", lambda array: not _on_device(array) and _is_host(array))
    for home in (backend, arrays):
        monkeypatch.setattr(home, "cupy", lambda: fake)
        monkeypatch.setattr(home, "nccl", lambda: nccl)
        monkeypatch.setattr(
            home, "device_of", lambda array: f"cuda:{array.number}" if _on_device(array) else "cpu"
        )
    for home in (backend, matrix_products):
        monkeypatch.setattr(home, "matmul", _matmul)
    return emulator


def _matmul(a: Any, b: Any, dtype: Any = None, bias: Any = None) -> Any:
    factor = backend.accumulator(a.dtype)
    product = np.matmul(a.astype(factor, copy=False), b.astype(factor, copy=False))
    product = product.astype(a.dtype if dtype is None else dtype, copy=False)
    return product if bias is None else product + bias


def _on_device(*arrays: Any) -> bool:
    return all(isinstance(array, DeviceArray) for array in arrays)


def _is_host(array: Any) -> bool:
    return isinstance(array, np.ndarray | np.generic)

"""Kernels: functions over NumPy arrays that Numba compiles, and the switch between them and plain code.

``@kernel`` marks a function that is compiled on its first call and runs without Python's global lock.
``fast(x)`` says whether such a kernel may be used: Numba is installed, the array is a NumPy array, and nobody
asked for the plain code with ``with reference():``. Numba is imported when the first kernel is compiled.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import logging  # noqa: F401  # see where we fork: its lock must be registered before ours
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import CellType, FunctionType, ModuleType
from typing import Any, overload

from minires.backend import addresses, arguments, atomics, overloads, simd, simd_compiled
from minires.backend.arrays import Array, is_numpy
from minires.errors import truth
from minires.settings import Block, F, Settings

HAS_NUMBA = importlib.util.find_spec("numba") is not None


class _Mode(Settings):
    reference = False


_mode = _Mode()


@overload
def reference(on: bool = True) -> Block: ...
@overload
def reference(on: F) -> F: ...
def reference(on: bool | F = True) -> Block | F:
    """Run every operation as its reference implementation, plain array code, inside this block.

    It may stand above a function, with or without parentheses. ``reference(False)`` is the way back.
    """
    if callable(on):
        return _mode.within(reference=True)(on)
    return _mode.within(reference=truth("reference", on))


def is_reference() -> bool:
    """Whether operations run as their reference implementations now."""
    return _mode.reference


def fast(*given: Array) -> bool:
    """Whether the Numba kernels may be used on the arrays given."""
    return HAS_NUMBA and not _mode.reference and all(is_numpy(array) for array in given)


_tell: Callable[[str], None] | None = None  # who is told before a kernel is compiled
_inside = False  # of a block in which somebody is told, or was


@contextmanager
def before_compiling(tell: Callable[[str], None]) -> Iterator[None]:
    """Call ``tell`` with a line to show before the first kernel that is compiled inside this block.

    A kernel that comes from the cache on disk is not compiled, and nothing is told then. Of such blocks, one
    inside the other, the outer one is told, once.
    """
    global _tell, _inside
    if _inside:
        yield
        return
    _tell, _inside = tell, True
    try:
        yield
    finally:
        _tell, _inside = None, False


def _announce(kept: bool) -> None:
    """Tell whoever wants to know that kernels are being compiled, and whether they are kept on disk."""
    global _tell
    tell, _tell = _tell, None  # the kernels that follow are no news
    if tell is not None:
        often = "they are kept for the next time" if kept else "and not kept, as no folder can be written to"
        tell(f"compiling the kernels that are new here ({often}); ten seconds to a minute")


_in_use = False


def is_numba_in_use() -> bool:
    """Whether Numba is imported already, as it is once a kernel was called."""
    return _in_use


@functools.cache
def numba() -> ModuleType:
    """Numba, which from now on says when it compiles: only then, and before the wait."""
    event: Any = importlib.import_module("numba.core.event")

    class Compiling(event.Listener):  # type: ignore[misc]  # Numba comes without types
        def on_start(self, start: Any) -> None:
            _announce(kept=start.data["dispatcher"].stats.cache_path is not None)

        def on_end(self, end: Any) -> None:
            pass

    event.register("numba:compile", Compiling())
    _compiling.append(importlib.import_module("numba.core.compiler_lock").global_compiler_lock)
    global _in_use
    _in_use = True
    simd_compiled.set_up()
    atomics.set_up()
    addresses.set_up()
    return importlib.import_module("numba")


def _compile(function: Callable[..., Any], in_any_order: bool) -> Callable[..., Any]:
    options = {"fastmath": {"reassoc"}} if in_any_order else {}
    njit = functools.partial(numba().njit, nogil=True, error_model="numpy", **options)
    inner = {name: other.compiled() for name, other in _called(function).items()}  # as Numba must see them
    # What is kept on disk is found by a kernel's file, its code and what it encloses. But it is made of the
    # files of the kernels that it calls, too: so it encloses a name that says what these hold.
    code = function.__code__.replace(co_freevars=("contents",))
    enclosed = (CellType(_contents(frozenset(_files(function)))),)
    function = FunctionType(code, {**function.__globals__, **inner}, function.__name__, None, enclosed)
    compiled: Callable[..., Any]
    try:
        compiled = njit(cache=True)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache can be written to
        compiled = njit()(function)
    return compiled


def _called(function: Any) -> dict[str, Any]:
    """The kernels that one calls, by the names that it has for them."""
    found = {name: function.__globals__.get(name) for name in function.__code__.co_names}
    return {name: other for name, other in found.items() if hasattr(other, "compiled")}


def _files(function: Any) -> Iterator[str]:
    """The files that the code of a kernel comes from, beside its own."""
    yield from (str(one.__file__) for one in (simd, simd_compiled, atomics, addresses, overloads))
    for other in _called(function).values():
        inner = getattr(other, "__wrapped__", None)  # sched_yield has none
        if inner is not None:
            yield inner.__code__.co_filename
            yield from _files(inner)


@functools.cache
def _contents(files: frozenset[str]) -> str:
    """What stands in files, as a short text."""
    return hashlib.sha256(b"".join(Path(file).read_bytes() for file in sorted(files))).hexdigest()[:16]


# Nobody forks while a kernel is compiled: a child would inherit Numba's lock as it is, locked for good. What
# is registered last is done first before a fork: ours before that of logging, whose lock a compiler asks for
# while it holds Numba's.

_compiling: list[Any] = [threading.RLock()]  # ours, and that of Numba once it is there, in this order


def _before_fork() -> None:
    _forking.locks = list(_compiling)
    for lock in _forking.locks:
        lock.acquire()


def _after_fork() -> None:
    for lock in reversed(_forking.locks):
        lock.release()


_forking = threading.local()  # the locks that the thread holds that forks

if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)


@overload
def kernel(function: Callable[..., Any], /) -> Callable[..., Any]: ...
@overload
def kernel(
    *, where: str = "True", in_any_order: bool = False, **arrays: str
) -> Callable[..., Callable[..., Any]]: ...
def kernel(
    function: Callable[..., Any] | None = None,
    /,
    *,
    where: str = "True",
    in_any_order: bool = False,
    **arrays: str,
) -> Callable[..., Any]:
    """Compile ``function`` with Numba on its first call (importing Numba only then), free of the global lock.

    The compiled code is kept on disk where it can be, so that the second run of a program starts at once.
    A kernel may call other kernels of its module, and the functions of ``minires.backend.simd``,
    ``minires.backend.atomics`` and ``minires.backend.addresses``.

    ``arrays`` and ``where`` declare what it takes, as :mod:`minires.backend.arguments` says; what does not
    fit is refused with a MiniresError. Without them, ``@kernel`` alone, nothing is checked.
    ``in_any_order`` lets the compiler add up several numbers of a sum at once, as a processor does best.
    """
    if function is None:
        return functools.partial(_kernel, where=where, in_any_order=in_any_order, arrays=arrays)
    return _kernel(function)


def _kernel(
    function: Callable[..., Any],
    *,
    where: str = "True",
    in_any_order: bool = False,
    arrays: Mapping[str, str] | None = None,
) -> Callable[..., Any]:
    ready: Callable[..., Any] | None = None
    check: arguments.Check | None = None

    def compiled() -> Callable[..., Any]:
        nonlocal ready, check
        with _compiling[0]:
            if ready is None:
                check = arguments.checker(function, arrays, where) if arrays else _takes_anything
                ready = _compile(function, in_any_order)
            return ready

    @functools.wraps(function)
    def call(*given: Any) -> Any:
        run = ready or compiled()
        assert check is not None
        check(*given)
        return run(*given)

    call.compiled = compiled  # type: ignore[attr-defined]
    call.arrays = arrays  # type: ignore[attr-defined]
    return call


def _takes_anything(*_: Any) -> None:
    """The check of a kernel that declares nothing."""


class _SchedYield:
    def compiled(self) -> Any:
        types = importlib.import_module("numba.core.types")
        return types.ExternalFunction("sched_yield", types.intc())


# The C function of this name, for kernels: who calls it gives way to another thread. Windows has none.
sched_yield: Any = _SchedYield() if hasattr(os, "sched_yield") else None

"""The one pool of threads. ``minires.backend.parallel`` hands work to it.

There is one pool and no other: two layers of threads, ours and those of BLAS or of Numba, would fight for the
same cores, which was measured to cost a factor of two to five.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import queue
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from minires.backend import kernels
from minires.backend.kernels import kernel, sched_yield
from minires.errors import ConfigError, as_whole


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


def give_memory_back() -> None:
    """Give the system what glibc keeps of freed arrays: after work that took more than what follows will."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


# A sleeping thread takes some 50 microseconds to wake, and a step of a network is made of hundreds of chunks
# that take little longer. So who waits stays awake for a moment first, and gives way to whoever else wants
# the core. This is but a delay: what there is to do, and whether it is done, is learned from queues.

_PATIENCE = 2000  # times to give way before going to sleep, about half a millisecond on an idle core
_GRACE = 20  # times more, in which the thread that rang lets go of Python's global lock


@kernel(rung="int64 (1)")
def _stay_awake_numba(rung: Any, until: int) -> None:
    for _ in range(_PATIENCE):
        if rung[0] >= until:
            break
        sched_yield()
    for _ in range(_GRACE):
        sched_yield()


@functools.cache
def _stay_awake() -> Callable[[Any, int], None]:
    """The kernel without its check, as who waits must not hold Python's lock; the array is a bell's own."""
    compiled: Callable[[Any, int], None] = _stay_awake_numba.compiled()  # type: ignore[attr-defined]
    return compiled


class Bell:
    """Counts how often it was rung, and keeps threads awake that wait for that."""

    compiled = False  # by a caller: a thread of the pool that compiles would hold up the end of the program

    def __init__(self) -> None:
        self.rung = np.zeros(1, np.int64)

    def ring(self) -> None:
        self.rung[0] += 1

    def stay_awake(self, until: int) -> None:
        """Return once it was rung ``until`` times, or when patience is at an end."""
        if sched_yield is not None and kernels.is_numba_in_use():
            _stay_awake()(self.rung, until)
            Bell.compiled = True


class _Pool:
    """Threads that help who calls them. The caller works, too, so a pool of n has n - 1.

    A caller needs nobody's help to come to an end: what no thread has begun it does itself. So nothing waits
    for a pool that was closed meanwhile.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self.bell = Bell()
        self.started = 0
        try:
            for _ in range(size - 1):
                threading.Thread(target=self._work, name="minires", daemon=True).start()
                self.started += 1
        except RuntimeError as error:
            self.close()
            raise ConfigError(
                f"this machine gives no {size} threads ({error}); the number of them stays as it was"
            ) from error

    def ask(self, task: Callable[[], None], helpers: int) -> None:
        """Have up to ``helpers`` threads call ``task``, whichever are free."""
        for _ in range(helpers):
            self.tasks.put(task)
        self.bell.ring()

    def _work(self) -> None:
        inside.yes, process = True, os.getpid()
        while (task := self.tasks.get()) is not None:
            heard = int(self.bell.rung[0])
            task()
            del task  # and with it the arrays that it holds
            if os.getpid() != process:
                sys.stderr.write(
                    "minires: a chunk of work was forked in a thread of the pool, and its child came out of "
                    "it, where it has nothing to do; end the child inside the chunk, or fork outside\n"
                )
                os._exit(1)
            if self.tasks.empty() and Bell.compiled:
                self.bell.stay_awake(heard + 1)

    def close(self) -> None:
        for _ in range(self.started):
            self.tasks.put(None)


class _Inside(threading.local):
    yes = False  # in a chunk already: a parallel_for in it runs in place


inside = _Inside()
_pool: _Pool | None = None
_pool_lock = threading.Lock()


def threads() -> int:
    """How many threads the operations use: set_threads(), else MINIRES_THREADS, else the cores at hand."""
    return get_pool().size


_MOST = 1024  # threads; more are a mistake, and take gigabytes


def set_threads(count: int) -> None:
    """Use ``count`` threads from now on; work that has begun goes on.

    Raises: ConfigError if it is no whole number from 1 to 1024, or the machine gives no such number of
    threads; it stays as it was then.
    """
    global _pool
    number = as_whole(count)
    if number is None or not 1 <= number <= _MOST:
        most = f", and {_MOST} at most" if number is not None and number > _MOST else ""
        kind = "a whole number and " if number is None else ""
        raise ConfigError(f"the number of threads must be {kind}at least 1{most}, not {count!r}")
    with _pool_lock:
        if _pool is None:
            _keep_freed_memory()
        before, _pool = _pool, _Pool(number)
    if before is not None:
        before.close()


def get_pool() -> _Pool:
    """The pool, which is made when it is first needed."""
    if _pool is None:
        asked = os.environ.get("MINIRES_THREADS", "")
        if asked and not asked.isdecimal():
            raise ConfigError(f"MINIRES_THREADS must be a whole number of threads, not {asked!r}")
        set_threads(int(asked) if asked else _available_cores())
    assert _pool is not None
    return _pool


def _start_anew() -> None:
    """A forked child has no threads but its own: pool and lock begin anew.

    A thread that a chunk forked is in no chunk any more, and may use the child's pool.
    """
    global _pool, _pool_lock
    _pool, _pool_lock = None, threading.Lock()
    inside.yes = False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)

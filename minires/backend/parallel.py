"""Work on all threads: loops, additions and copies.

``parallel_for(task, n)`` cuts ``range(n)`` into one chunk per thread. What is called inside a chunk runs in
place.
"""

from __future__ import annotations

import functools
import os
import queue
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from minires.backend import arrays, thread_pool
from minires.backend.arrays import Array
from minires.errors import MiniresError


def chunks(n: int, grain: int = 1) -> list[tuple[int, int]]:
    """``range(n)`` in nearly equal parts, at most one per thread, none (but a lone one) under ``grain``."""
    return split(0, n, max(1, min(thread_pool.threads(), n // max(1, grain))))


def split(start: int, stop: int, count: int) -> list[tuple[int, int]]:
    """``range(start, stop)`` in ``count`` nearly equal parts."""
    edges = [start + (stop - start) * part // count for part in range(count + 1)]
    return list(zip(edges[:-1], edges[1:], strict=True))


def parallel_for(task: Callable[[int, int], None], n: int, grain: int = 1) -> None:
    """Call ``task(start, stop)`` on the chunks of ``range(n)``, one thread each, and wait for all of them.

    ``grain`` is the least work worth a thread of its own. An exception in a chunk is raised here.
    """
    parts = [(0, n)] if thread_pool.inside.yes else chunks(n, grain)
    parallel_calls([functools.partial(task, *part) for part in parts])


def parallel_calls(calls: Sequence[Callable[[], None]]) -> None:
    """Run ``calls`` at once, on this thread and those of the pool; wait for all of them.

    Raises: what a call raised; MiniresError in a child that one of the calls forked, and that comes back here
    while other threads, which stayed with the parent, had calls of theirs in hand.
    """
    if len(calls) == 1 or thread_pool.inside.yes:
        for call in calls:
            call()
        return
    pool = thread_pool.get_pool()
    waiting = deque(calls)
    done: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
    bell, process = thread_pool.Bell(), os.getpid()

    def work() -> None:
        """Do what waits; each call is taken once, by whoever comes first."""
        while waiting:
            try:
                call = waiting.popleft()
            except IndexError:  # somebody else was faster
                return
            try:
                call()
            except BaseException as error:
                done.put(error)
            else:
                done.put(None)
            del call  # and with it the arrays that it holds
            bell.ring()

    pool.ask(work, len(calls) - 1)
    thread_pool.inside.yes = True
    try:
        work()
    finally:
        thread_pool.inside.yes = False
    if done.qsize() < len(calls):
        if os.getpid() != process:
            raise MiniresError(
                f"this process was forked inside one of {len(calls)} chunks of work, and those that "
                "other threads had begun stay with its parent; fork outside, or end the child inside"
            )
        bell.stay_awake(len(calls))
    errors = [error for _ in calls if (error := done.get()) is not None]
    if errors:
        raise errors[0]


_ADD_GRAIN = 1 << 17  # numbers; fewer are not worth a second thread


def add(a: Array, b: Array, out: Array | None = None) -> Array:
    """``a + b`` of two arrays of one shape, on all threads where they are large NumPy arrays."""
    if a.size < 2 * _ADD_GRAIN or not arrays.is_numpy(a):
        xp = arrays.array_module(a, b)
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
    if target.size < 2 * _ADD_GRAIN or not arrays.is_numpy(target):
        target[...] = source
        return

    def task(start: int, stop: int) -> None:
        target[start:stop] = source[start:stop]

    parallel_for(task, len(target), _ADD_GRAIN * len(target) // target.size)

"""Work done ahead by several threads, given in order; so much of it at a time and no more.

Threads, and not processes: decoding and resizing pictures let go of Python's global lock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Generic, TypeVar

T = TypeVar("T")
P = TypeVar("P")
S = TypeVar("S")
AT_ONCE = 4  # pictures in a task, so that handing it to a thread costs little


@dataclass(frozen=True)
class Job(Generic[T, P]):
    """Parts that threads work on side by side, and what is made of the results, in their order."""

    parts: Sequence[Callable[[], P]]
    whole: Callable[[list[P]], T]


def in_order(jobs: Iterable[Job[T, P]], *, threads: int, ahead: int) -> Generator[T, None, None]:
    """Give the results of ``jobs``, in their order, while up to ``ahead`` of them are worked on beyond the
    one that is waited for. What a job raises is raised in its place; closing the iterator ends the threads.

    >>> squares = (Job([lambda n=n: n * n], sum) for n in range(5))
    >>> list(in_order(squares, threads=2, ahead=2))
    [0, 1, 4, 9, 16]
    """
    left = iter(jobs)
    waiting: deque[tuple[list[Future[P]], Job[T, P]]] = deque()
    # Leaving the block, also by close() or an exception, waits for what is being done, and ends the threads.
    with ThreadPoolExecutor(threads, thread_name_prefix="minires-loader") as pool:

        def begin(count: int) -> None:
            for job in islice(left, count):
                waiting.append(([pool.submit(part) for part in job.parts], job))

        try:
            begin(1 + ahead)
            while waiting:
                futures, job = waiting.popleft()
                found = job.whole([future.result() for future in futures])
                begin(1)
                yield found
                del found  # and with it the arrays, before the next are waited for
        finally:
            for futures, _ in waiting:
                for future in futures:
                    future.cancel()


def each(work: Callable[[S], P], items: Sequence[S], *, threads: int) -> Iterator[P]:
    """``work`` of each of many items, in their order, a few tens ahead.

    >>> list(each(len, ["a", "bc", ""], threads=2))
    [1, 2, 0]
    """

    def some(which: range) -> list[P]:
        return [work(items[at]) for at in which]

    starts = range(0, len(items), AT_ONCE)
    parts = (range(start, min(start + AT_ONCE, len(items))) for start in starts)
    jobs = (Job([partial(some, which)], _only) for which in parts)
    for results in in_order(jobs, threads=threads, ahead=enough(AT_ONCE, threads)):
        yield from results


def _only(parts: list[P]) -> P:
    return parts[0]


def groups(count: int, threads: int) -> list[range]:
    """``range(count)`` in tasks of a few pictures each, at least one for each thread where there are so many.

    >>> groups(10, 2)
    [range(0, 4), range(4, 8), range(8, 10)]
    """
    size = max(1, min(AT_ONCE, count // threads))
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def enough(batch_size: int, threads: int) -> int:
    """How many batches ahead keep all threads at work: one, and as many as have two tasks for each thread."""
    return 1 + 2 * AT_ONCE * threads // max(1, batch_size)

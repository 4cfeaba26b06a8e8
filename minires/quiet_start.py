"""A signal that comes while the program ``minires`` starts ends it at once, without a traceback.

The package imports this file before all others, and this file imports next to nothing: until its signals are
set, Ctrl-C shows where in the imports Python was.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Sequence

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


def said(number: int) -> str:
    """What is said of a program that a signal has ended.

    >>> said(2), said(15)
    ('interrupted', 'stopped by SIGTERM')
    """
    return "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"


def is_the_program() -> bool:
    """Whether Python was started as ``minires`` or ``python -m minires``."""
    name = os.path.basename(sys.argv[0]) if sys.argv else ""
    if name == "-m":  # so it is while Python looks for the module that it is to run
        return _module(sys.orig_argv) in ("minires", "minires.__main__")
    return name.lower() in ("minires", "minires.exe")


def _module(started: Sequence[str]) -> str:
    """The module that Python was told to run; its options of one letter may be joined.

    >>> _module(["python", "-Bm", "minires"]), _module(["python", "-X", "dev", "-mminires", "train"])
    ('minires', 'minires')
    """
    rest = iter(started[1:])
    for option in rest:
        if option == "--check-hash-based-pycs":
            next(rest, "")
        elif not option.startswith("-"):
            return ""
        elif not option.startswith("--"):
            for place, letter in enumerate(option[1:], 2):
                if letter in "cmWX":  # what follows is its value
                    value = option[place:] or next(rest, "")
                    if letter in "cm":
                        return value if letter == "m" else ""
                    break
    return ""


def set_signals() -> None:
    """If this is the program, end it when a signal comes; there is nothing yet to clean up. A handler that is
    set already stays: a program of the user's may bear this name, too."""
    if is_the_program():
        for number in SIGNALS:
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                try:
                    signal.signal(number, _end)
                except ValueError:  # imported by another thread than the first
                    return


def tell(line: str) -> None:
    """Write a line to standard error, from a signal's handler too; if nobody is there, or does not read, to
    nobody: it never waits."""
    try:
        if can_write(2):
            os.write(2, f"{line}\n".encode(errors="backslashreplace"))
    except OSError:
        pass


def can_write(descriptor: int) -> bool:
    """Whether a line can be written without waiting for who reads."""
    if not hasattr(select, "poll"):
        return True
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(0))


def _end(number: int, frame: object) -> None:
    tell(f"minires: {said(number)}")
    os._exit(128 + number)

"""A signal that comes while the program ``minires`` starts ends it at once, without a traceback.

The package imports this file before all others, and this file imports next to nothing: until its signals are
set, Ctrl-C shows where in the imports Python was.
"""

from __future__ import annotations

import os
import signal
import sys

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
    # "-m" stands there while Python looks for the module that it is to run.
    as_module = name == "-m" and "minires" in sys.orig_argv[sys.orig_argv.index("-m") + 1 :][:1]
    return as_module or name.partition(".")[0] == "minires"


def set_signals() -> None:
    """If this is the program, end it when a signal comes; there is nothing yet to clean up."""
    if is_the_program():
        for number in SIGNALS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                signal.signal(number, _end)


def _end(number: int, frame: object) -> None:
    try:
        os.write(2, f"minires: {said(number)}\n".encode())
    except OSError:  # nobody is there to read it
        pass
    os._exit(128 + number)

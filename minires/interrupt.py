"""Ctrl-C and SIGTERM as a wish to stop soon: the step is finished, a checkpoint saved, then the run ends."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


_pressed = False  # whether Ctrl-C was pressed since noticed() began


@contextmanager
def noticed() -> Iterator[None]:
    """Inside this block no Ctrl-C is lost: where Python forgets one, a StopWish that begins later raises it.

    Python raises KeyboardInterrupt wherever the main thread happens to be. In a destructor, or the callback
    of a weak reference, of which the import of a package has many, it only prints a line and goes on.
    """
    global _pressed
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield
        return

    def note(number: int, frame: FrameType | None) -> None:
        global _pressed
        _pressed = True
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        _pressed = False


class Interrupted(KeyboardInterrupt):
    """A run was stopped by a signal and its state is saved; the message says how to go on."""


class StopWish:
    """Inside this block the first SIGINT or SIGTERM only sets ``wanted``; a second one acts as usual.

    Signals reach the main thread only; in any other thread the block changes nothing.
    Raises: KeyboardInterrupt if Ctrl-C was pressed before and Python forgot it: see noticed().
    """

    def __init__(self) -> None:
        self.wanted = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopWish:
        if _pressed:
            raise KeyboardInterrupt
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.wanted = True
        self._restore()
        # Not print(): the signal may have come while something else was being printed.
        os.write(2, b"\nStopping after this step; press Ctrl-C again to stop at once without saving.\n")

    def _restore(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())

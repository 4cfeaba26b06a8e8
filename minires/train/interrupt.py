"""Ctrl-C and SIGTERM as a wish to stop soon: the step is finished, a checkpoint saved, then the run ends."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A run was stopped by a signal and its state is saved; ``Trainer(config, out, resume=True)`` goes on."""


class StopWish:
    """Inside this block the first SIGINT or SIGTERM only sets ``wanted``; a second one acts as usual.

    Signals reach the main thread only; in any other thread the block changes nothing.
    """

    def __init__(self) -> None:
        self.wanted = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopWish:
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

"""How a run is told to stop: by a signal, or by a file STOP in its folder, which needs no terminal."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from minires.interrupt import StopWish
from minires.train.shared import FILE

NAME = "STOP"
EVERY = 1.0  # seconds between two looks


class Wish(StopWish):
    """Inside this block ``told()`` is the number of the signal by which the run is to stop, or ``FILE`` for
    the file in the ``folder`` of the run, or 0. One that is ``silent``, as all ranks but the first are, says
    nothing and looks for no file."""

    def __init__(self, folder: Path, *, silent: bool = False) -> None:
        super().__init__(silent=silent)
        self.file = None if silent else folder / NAME
        self._looked = time.monotonic() - EVERY

    def told(self) -> int:
        """By what this process is told to stop."""
        if not self.wanted and self.file is not None and time.monotonic() - self._looked >= EVERY:
            self._looked = time.monotonic()
            if os.path.exists(self.file):  # not there, too, where it cannot be asked for a moment
                return FILE
        return self.wanted

    def done(self) -> None:
        """The run has stopped: the file has done its work."""
        if self.file is not None:
            with suppress(OSError):
                self.file.unlink(missing_ok=True)


def in_words(number: int) -> str:
    """By what a run was stopped.

    >>> in_words(FILE), in_words(15)
    (' by the file STOP', ' by SIGTERM')
    """
    if number == FILE:
        return f" by the file {NAME}"
    return "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"

"""Telling somebody who may be gone: a terminal that was closed, a reader such as ``head`` that has enough.

That ends no run: it goes on, and what nobody hears is not said.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from minires.errors import harmless
from minires.interrupt import is_gone

SAY = Callable[[str], None]


class Listener:
    """Calls ``say`` with each line, until nobody is there any more."""

    def __init__(self, say: SAY) -> None:
        self.say = say
        self._gone = False

    def __call__(self, line: str) -> None:
        if self._gone:
            return
        try:
            self.say(harmless(line))
        except (OSError, ValueError) as error:
            if not is_gone(error):
                raise
            self._gone = True


class Stream:
    """A text stream that takes what is written to it, until nobody is there any more; else as ``stream``."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write the text if that is possible."""
        with suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush if that is possible."""
        with suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __eq__(self, other: object) -> bool:  # tqdm asks whether it writes to the terminal
        return self is other or self._stream is other

    def __hash__(self) -> int:
        return hash(self._stream)

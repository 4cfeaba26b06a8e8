"""A thread that watches over a rank: no rank waits for ever for one that is gone, or has got stuck.

MPI itself ends a job only when a process dies. One that leaves early, by a ``return`` or an exception, or
stands still, leaves the others waiting in a collective for ever. So each rank has this thread, which a few
times a second asks itself:

    has a rank left, while this one waits for it?       it is named, and all end
    does this one wait longer than ``limit`` seconds?   what for is said, and all end
    does this one come to no collective for so long?    where it is, file and line, is said, and all end

The last is asked only between ``watch(True)`` and ``watch(False)``, while collectives follow one another.

One rank says it, and not all: who ends all tells the others first, and they keep silent.
"""

from __future__ import annotations

import os
import sys
import sysconfig
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from minires.errors import ConfigError, as_number

LIMIT = 300.0  # seconds
EVERY = 0.2  # seconds between two looks
PATIENCE = 20.0  # times as long is waited where ranks may have much more to do than others
GRACE = 1.0  # seconds in which a rank that has just left may have been on its way through the same collective
APART = 0.3  # seconds between the ranks, so that one of them says it and not all
LATEST = 10.0  # seconds that one which has said it ends all is given for it


def limit() -> float:
    """How long a rank waits for the others: MINIRES_WAIT, else 300 seconds.

    Raises: ConfigError for what is no number above 0.
    """
    given = os.environ.get("MINIRES_WAIT", "")
    if not given:
        return LIMIT
    try:
        seconds = as_number(float(given))
    except ValueError:
        seconds = None
    if seconds is None or not seconds > 0:
        raise ConfigError(f"MINIRES_WAIT must be a number of seconds above 0, not {given!r}")
    return seconds


class Others(Protocol):
    """The other ranks, as a watchdog needs them."""

    def left(self) -> list[str]:
        """Those that have left and said nothing of an error, in words."""

    def is_ending(self) -> bool:
        """Whether one has said that it ends all, because of an error or of what its watchdog has seen."""

    def tell_wait(self, what: str) -> None:
        """Tell them for what this one waits."""

    def missing(self, what: str) -> str:
        """Those that have not said that they wait for it, too, in words."""

    def end(self, sentence: str) -> None:
        """Say this, and end all."""


class Watchdog:
    """Watches over the rank ``name``, one of the ``others``. ``order`` is its number, by which ranks take
    turns."""

    def __init__(self, name: str, order: int, others: Others) -> None:
        self.name, self.limit = name, limit()
        self._others, self._late = others, APART * order
        self._waits: dict[int, tuple[str, float, float]] = {}  # by thread: for what, since when, how long
        self._told: set[tuple[str, float]] = set()  # the long waits of which the others were told
        self._watched: tuple[int, float] | None = None  # the thread that is to come back, and since when
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="minires-watchdog", daemon=True)
        self._thread.start()

    @contextmanager
    def waiting(self, what: str, patience: float = 1.0) -> Iterator[None]:
        """A block in which the thread that calls waits for other ranks, ``patience`` times the limit."""
        own = threading.get_ident()
        around = self._waits.get(own)
        self._waits[own] = what, time.monotonic(), patience * self.limit
        try:
            yield
        finally:
            del self._waits[own]
            if around is not None:
                self._waits[own] = around
            if self._watched is not None and self._watched[0] == own:
                self._watched = own, time.monotonic()

    def watch(self, on: bool) -> None:
        """From now on the thread that calls comes to a collective again and again, or not."""
        self._watched = (threading.get_ident(), time.monotonic()) if on else None

    def close(self) -> None:
        """End the thread."""
        self._over.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _look(self) -> None:
        silent_until = 0.0
        while not self._over.wait(EVERY):
            now, gone = time.monotonic(), self._others.left()
            if self._others.is_ending():
                silent_until = silent_until or now + LATEST
                if now < silent_until:
                    continue
            for what, since, limit in list(self._waits.values()):
                waited = now - since
                if gone and waited > GRACE + self._late:
                    self._others.end(f"{', '.join(gone)}, and {self.name} waits in {what!r}")
                if waited > limit / 2 and (what, since) not in self._told:
                    self._told.add((what, since))
                    self._others.tell_wait(what)
                if waited > limit + self._late:
                    why = self._others.missing(what)
                    self._others.end(
                        f"{self.name} has waited {limit:.0f} s for the others in {what!r}; {why} "
                        "(MINIRES_WAIT says how long)"
                    )
            watched = self._watched
            if watched and watched[0] not in self._waits and now - watched[1] > 0.9 * self.limit:
                self._others.end(
                    f"{self.name} has come to no other rank for {0.9 * self.limit:.0f} s: it is at "
                    f"{_place(watched[0])} (MINIRES_WAIT says how long)"
                )


def _place(thread: int) -> str:
    """Where a thread is; where it waits for threads that load pictures, where one of these is."""
    frames = sys._current_frames()
    if thread not in frames:
        return "its end"
    own = sysconfig.get_path("stdlib")
    loaders = [one.ident for one in threading.enumerate() if one.name.startswith("minires-loader")]
    places = [traceback.extract_stack(frames[one])[-1] for one in (thread, *loaders) if one in frames]
    last = places[0]
    if last.filename.startswith(own):
        last = next((one for one in places[1:] if not one.filename.startswith(own)), last)
    return f"{last.filename}, line {last.lineno}, in {last.name}"

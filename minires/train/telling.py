"""What is told while a run goes: which epochs and when, how long it may take; and to whom.

Who is told may be gone: a terminal that was closed, a reader such as ``head`` that has enough. That ends no
run: it goes on, and what nobody hears is not said.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from minires.errors import harmless
from minires.interrupt import is_gone
from minires.train import best, run_folder
from minires.train.observers import Observer, Run
from minires.train.state import Progress

SAY = Callable[[str], None]
LINES = 60  # of epochs, in the report of a run
PAUSE = 30.0  # seconds between two lines of progress
KEPT = 100  # lines


class Listener:
    """Calls ``say`` with each line, until nobody is there any more; ``said`` are the last lines."""

    def __init__(self, say: SAY) -> None:
        self.say = say
        self.said: deque[str] = deque(maxlen=KEPT)
        self._gone = False

    def __call__(self, line: str) -> None:
        self.said.append(line)
        if self._gone:
            return
        try:
            self.say(harmless(line))
        except (OSError, ValueError) as error:
            if not is_gone(error):
                raise
            self._gone = True


class HeardStream:
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


def under_way(progress: Progress) -> str:
    """The figures of an epoch so far, for the bar.

    >>> under_way(Progress(pictures=4, loss=2.0, right=3))
    'loss 0.500, accuracy 75.0%'
    """
    seen = max(1, progress.pictures)
    loss, accuracy = progress.loss / seen, progress.right / seen
    return f"loss {run_folder.shown(loss, 3)}, accuracy {100 * accuracy:.1f}%"


def lines_of_epochs(
    history: Sequence[Mapping[str, Any]], epochs: int, *, last: bool = False
) -> list[Mapping[str, Any]]:
    """The epochs that are told of when the newest one in ``history`` is done: of a run of many epochs each so
    manieth, the first and the ``last``, which that of ``epochs`` is in any case; and before such a one the
    best so far, if it was not told of.

    >>> rows = [{"epoch": n + 1, "val_accuracy": 0.5 + (n == 4) / 4, "val_loss": 1} for n in range(1000)]
    >>> [row["epoch"] for n in range(1, 1001) for row in lines_of_epochs(rows[:n], 1000)][:5]
    [1, 5, 34, 68, 102]
    """
    every = 1 if epochs <= LINES else math.ceil(2 * epochs / LINES)
    newest = history[-1]
    if not (last or newest["epoch"] in (1, epochs) or newest["epoch"] % every == 0):
        return []
    told = (newest["epoch"] - 1) // every * every  # the last one before this
    found = best.best(history) or min(history, key=lambda row: row["train_loss"])
    return [found, newest] if max(1, told) < found["epoch"] < newest["epoch"] else [newest]


class Pace:
    """How fast a run goes, all that is done between its steps included."""

    def __init__(self) -> None:
        self._from: tuple[int, float] | None = None

    def begins(self, run: Run) -> None:
        """Forget how fast it went before."""
        self._from = None

    def stepped(self, run: Run) -> None:
        """The first step, for which kernels may be compiled, says nothing."""
        if self._from is None:
            self._from = run.progress.step, time.monotonic()

    def left(self, run: Run) -> float | None:
        """The seconds that the rest of the run may take; None if that is not known yet."""
        total, step = run.config.epochs * len(run.loader), run.progress.step
        if step >= total:
            return 0.0
        if self._from is None or step == self._from[0]:
            return None
        return (total - step) * (time.monotonic() - self._from[1]) / (step - self._from[0])


def about(seconds: float) -> str:
    """A time in words.

    >>> about(8), about(250), about(5400), about(300_000)
    ('about 8 s', 'about 4 min', 'about 1.5 h', 'about 3.5 days')
    """
    if seconds < 90:
        return f"about {max(1, seconds):.0f} s"
    if seconds < 5400:
        return f"about {seconds / 60:.0f} min"
    return f"about {seconds / 3600:.1f} h" if seconds < 2 * 86_400 else f"about {seconds / 86_400:.1f} days"


class BeginTold(Observer):
    """Says when the rate of a schedule's beginning ends: see :class:`minires.train.schedules.Begin`."""

    def begins(self, run: Run) -> None:
        """It may have ended before the run was stopped."""
        self._told = run.schedule.begin is None or not run.schedule.begin.holds(run.progress.step)

    def stepped(self, run: Run) -> None:
        """Say it, in the step in which it does."""
        begin, step = run.schedule.begin, run.progress.step
        if self._told or begin is None or begin.holds(step):
            return
        self._told = True
        why = f"after step {step} the training error is below {100 * begin.until_error:g}%"
        if begin.ends == begin.at_most:
            why = f"{begin.at_most} steps are done, the most for a beginning"
        run.say(f"{why}: the learning rate goes from {begin.lr:g} to that of the schedule")

    def ends(self, run: Run, summary: Mapping[str, Any]) -> None:
        """Say that it never did."""
        if not self._told and run.schedule.begin is not None:
            begin = run.schedule.begin
            run.say(
                f"warning: the training error never fell below {100 * begin.until_error:g}%: all "
                f"{run.progress.step} steps had the learning rate of the beginning, {begin.lr:g}"
            )


class ProgressLines(Observer):
    """Says now and then, where no bar is seen, how far the run is and how long the rest may take."""

    def __init__(self, pause: float = PAUSE) -> None:
        self.pause, self.pace = pause, Pace()
        self._said = time.monotonic()

    def begins(self, run: Run) -> None:
        """Wait from now on."""
        self.pace.begins(run)
        self._said = time.monotonic()

    def stepped(self, run: Run) -> None:
        """Say a line, if the last one is long ago."""
        self.pace.stepped(run)
        progress = run.progress
        if time.monotonic() - self._said < self.pause or progress.batch == len(run.loader):
            return
        self._said = time.monotonic()
        text = f"epoch {progress.epoch + 1}/{run.config.epochs}, step {progress.batch} of {len(run.loader)}"
        if progress.pictures:
            text += f", loss {run_folder.shown(progress.loss / progress.pictures)}"
        left = self.pace.left(run)
        run.say(text + (f", {about(left)} left" if left is not None else ""))

    def epoch_ended(self, run: Run, row: Mapping[str, Any], val: Any) -> None:
        """The line of an epoch is one, too."""
        if lines_of_epochs(run.history, run.config.epochs):
            self._said = time.monotonic()

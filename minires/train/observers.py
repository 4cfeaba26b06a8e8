"""Observers: others who hear how a run goes, while it goes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from minires.data import Dataset, Loader, Normalize, Splits
from minires.errors import ConfigError
from minires.nn.module import Module
from minires.optim import Optimizer
from minires.train.config import Config
from minires.train.evaluation import Evaluation
from minires.train.lock import Lost
from minires.train.schedules import Schedule
from minires.train.state import Progress


class Run(Protocol):
    """What an observer may read of a run, which is the :class:`~minires.train.Trainer` itself.

    ``config`` is what it does, and ``out`` the full path of its folder; ``splits`` are the pictures,
    ``train_set`` and ``val_set`` those that it trains on and validates with (None where nothing is
    validated), ``normalize`` is how they are prepared and ``loader`` what gives the batches; ``model``,
    ``optimizer`` and ``schedule`` are as they are now; ``progress`` is the place in the run, ``history`` the
    figures of the epochs that are done, as metrics.csv has them. ``say`` takes a line of the report, of which
    ``said`` has the last ones.

    They are to be read, and not changed: the bits of a run hang on them.
    """

    config: Config
    out: Path
    splits: Splits
    train_set: Dataset
    val_set: Dataset | None
    normalize: Normalize
    loader: Loader
    model: Module
    optimizer: Optimizer
    schedule: Schedule
    progress: Progress
    history: list[dict[str, Any]]
    said: Iterable[str]

    def say(self, line: str) -> None:
        """Say a line of the report."""


class Observer:
    """Hears how a run goes; each method does nothing, and a subclass has those that it needs.

    What they are given is described by :class:`Run`. A method that raises does not end the run: a line says
    so, and this observer hears no more of it. While one is at work the run waits.

    >>> class Steps(Observer):
    ...     count = 0
    ...     def stepped(self, run):
    ...         self.count += 1
    """

    def begins(self, run: Run) -> None:
        """The run begins, or goes on where it was stopped: its first step is the next."""

    def stepped(self, run: Run) -> None:
        """A step of the optimiser is done. The figures of an epoch under way, in ``run.progress``, may be
        those up to the step before: a GPU is not waited for."""

    def epoch_ended(self, run: Run, row: Mapping[str, Any], val: Evaluation | None) -> None:
        """An epoch is done and saved.

        row: its line of metrics.csv.
        val: what validation gave, None where nothing is validated.
        """

    def ends(self, run: Run, summary: Mapping[str, Any]) -> None:
        """The run has come to its end, or to a loss that is not finite: ``summary`` is what summary.json
        holds. A run that was interrupted, and can go on, does not end."""


class Observers:
    """Tells several observers; ``warn`` is told of those that fail.

    Raises: ConfigError for what is no :class:`Observer`.
    """

    def __init__(self, observers: Iterable[Observer], warn: Callable[[str], None]) -> None:
        self._all: list[Observer] = []
        self._warn = warn
        self.at_work = False  # whether one is told something now
        self.add(*observers)

    def add(self, *observers: Observer) -> None:
        """Tell these, too, before the others. Raises: ConfigError for what is no :class:`Observer`."""
        for one in observers:
            if not isinstance(one, Observer):
                raise ConfigError(f"an observer is of a subclass of minires.train.Observer; {one!r} is not")
        self._all = [*observers, *self._all]

    def __bool__(self) -> bool:
        return bool(self._all)

    def tell(self, what: str, *given: Any) -> None:
        """Call the method ``what`` of each. Raises: Lost, if somebody else has taken over the folder."""
        for one in list(self._all):
            self.at_work = True
            try:
                getattr(one, what)(*given)
            except Lost:
                raise
            except Exception as error:
                self._all.remove(one)
                self._warn(
                    f"the observer {type(one).__name__} has failed in {what}() and is left out from here on: "
                    f"{type(error).__name__}: {error}"
                )
            finally:
                self.at_work = False

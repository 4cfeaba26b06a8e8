"""When the figures of a run are written; one that fails costs neither the run nor its model."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minires.data import Dataset
from minires.errors import MiniresError
from minires.train import run_folder
from minires.train.config import Config
from minires.train.continuing import METRICS
from minires.train.lock import Lost

REDRAW = 30.0  # seconds between two drawings of the curves


class Figures:
    """Writes the figures of the run in ``folder``; ``warn`` hears of those that cannot be made. Without
    ``draws`` it writes the table alone."""

    def __init__(
        self, folder: Path, config: Config, dataset: str, warn: Callable[[Iterable[str]], None], *,
        draws: bool = True,
    ) -> None:  # fmt: skip
        self.folder, self.config, self.dataset, self.warn, self.draws = folder, config, dataset, warn, draws
        self.drawn = -math.inf  # when the curves were

    def history(self, rows: Sequence[run_folder.Row], *, last: bool) -> None:
        """Write metrics.csv, and draw the curves if that is long ago or these are the last."""
        if not rows:
            return
        self._write(METRICS, run_folder.write_metrics, rows)
        if self.draws and (time.monotonic() - self.drawn > REDRAW or last):
            title = f"{self.config.model} on {self.dataset}, recipe {self.config.recipe}"
            of_loss = {"label_smoothing": self.config.label_smoothing, "balance": self.config.balance}
            self._write("curves.png", run_folder.draw_curves, rows, title=title, **of_loss)
            self.drawn = time.monotonic()

    def last(self, test: Dataset, probabilities: NDArray[np.floating]) -> None:
        """Draw what the test has shown."""
        if not self.draws:
            return
        guesses = probabilities.argmax(axis=1)
        self._write("confusion.png", run_folder.draw_confusion, test.labels, guesses, test.classes)
        self._write("mistakes.png", run_folder.draw_mistakes, test, probabilities)

    def _write(self, name: str, write: Callable[..., None], *given: Any, **options: Any) -> None:
        try:
            write(self.folder / name, *given, **options)
        except Lost:
            raise
        except Exception as error:  # matplotlib has errors of all kinds
            text = str(error) if isinstance(error, MiniresError) else f"{type(error).__name__}: {error}"
            self.warn([f"{name} could not be made: {text}"])

"""What a run shows in a notebook: a bar, and its curves, which grow epoch by epoch."""

from __future__ import annotations

import importlib
import math
import sys
import time
import warnings
from collections.abc import Mapping
from typing import Any

from minires.train import best, run_folder
from minires.train.observers import Observer, Run

SPARED = 30  # times as long as drawing takes is waited before the curves are drawn again


def is_notebook() -> bool:
    """Whether the code runs in a notebook: in IPython, with a kernel that somebody talks with."""
    shell = sys.modules.get("IPython")
    here = shell.get_ipython() if shell is not None and hasattr(shell, "get_ipython") else None
    return getattr(here, "kernel", None) is not None


def bar_class() -> Any:
    """What shows a bar: in a notebook one of its own, where ipywidgets is installed, else one of text."""
    if is_notebook():
        with warnings.catch_warnings(action="ignore"):  # that ipywidgets is missing: text is shown then
            from tqdm.auto import tqdm
    else:
        from tqdm import tqdm
    return tqdm


class LiveCurves(Observer):
    """Shows loss and accuracy below the cell of a notebook: one picture, drawn anew as the run goes on."""

    def __init__(self) -> None:
        self._shown: Any = None  # the place of the picture
        self._next = -math.inf  # when it may be drawn again

    def epoch_ended(self, run: Run, row: Mapping[str, Any], val: Any) -> None:
        """Draw the curves, unless that would take much of the time of such short epochs."""
        ipython: Any = importlib.import_module("IPython.display")
        start = time.monotonic()
        spent = best.spent(run.history, run.config.patience)
        last = row["epoch"] == run.config.epochs or spent is not None
        if start < self._next and not last:
            return
        title = f"{run.config.model} on {run.train_set.name}, epoch {row['epoch']} of {run.config.epochs}"
        config = run.config
        png = run_folder.as_png(run_folder.curves(
            run.history, title=title, label_smoothing=config.label_smoothing, balance=config.balance
        ))  # fmt: skip
        picture = ipython.Image(data=png, format="png", width=880)
        if self._shown is None:
            self._shown = ipython.display(picture, display_id=True)
        else:
            self._shown.update(picture)
        self._next = time.monotonic() + SPARED * (time.monotonic() - start)

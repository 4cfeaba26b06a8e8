"""Who hears of every run, without being asked for: files, and whoever sits at a terminal or a notebook."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from minires.train import notebook
from minires.train.config import Config
from minires.train.observers import Observer
from minires.train.telling import BeginTold, HeardStream, ProgressLines
from minires.train.watched import Watch


def shows_bar(asked: bool | None) -> bool:
    """Whether a bar is shown, as ``asked`` for; None: only where somebody sees how it moves."""
    if sys.stderr is None or asked is not None:
        return bool(asked) and sys.stderr is not None
    return notebook.is_notebook() or HeardStream(sys.stderr).isatty()


def bar(asked: bool | None, **options: Any) -> Any:
    """The bar of a run, with the ``options`` of tqdm; one that is not shown does nothing."""
    if not notebook.is_notebook():
        options["file"] = HeardStream(sys.stderr)
    return notebook.bar_class()(disable=not shows_bar(asked), dynamic_ncols=True, **options)


def observers(config: Config, asked: bool | None) -> Iterator[Observer]:
    """The observers of every run, as far as they are of use where it runs."""
    if config.watch:
        yield Watch()
    if "begin" in config.schedule:
        yield BeginTold()
    if asked is None and not shows_bar(asked):
        yield ProgressLines()
    if asked is not False and notebook.is_notebook():
        yield notebook.LiveCurves()

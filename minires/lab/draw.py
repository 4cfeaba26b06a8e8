"""What the figures of labs share: colours, curves with a band for the spread, points of each seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from minires.errors import ConfigError, unknown
from minires.lab.lab import Numbers
from minires.train.canvas import plain_axes

# Told apart with any colour vision (Okabe and Ito 2008, with grey and brown for yellow), and by their order.
COLOURS = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#000000", "#8c510a",
)  # fmt: skip


def colour(at: int) -> str:
    """The colour of the case with this number."""
    return COLOURS[at % len(COLOURS)]


def labelled(axes: Any, x: str, y: str, title: str = "") -> Any:
    """Axes in the house's look, with words on both."""
    plain_axes(axes)
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.set_title(title, fontsize=10)
    return axes


def named(axes: Any) -> None:
    """The names of what is drawn, if there is anything, on a ground through which curves are seen faintly."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, framealpha=0.8, edgecolor="none", borderpad=0.2)


def curves(
    axes: Any, numbers: Numbers, what: str, *, cases: Sequence[str] | None = None, dashed: bool = False,
    x: Sequence[float] | None = None, legend: bool = True,
) -> None:  # fmt: skip
    """A line for each case: the mean over the seeds, and a band from the least to the greatest of them.

    Raises: ConfigError if nothing was measured under this name.
    """
    _see_that_it_was_measured(numbers, what)
    for at, case in enumerate(numbers):
        values = numbers.all(case, what)
        if not len(values) or (cases is not None and case not in cases):
            continue
        places = np.arange(1, values.shape[1] + 1) if x is None else np.asarray(x)[: values.shape[1]]
        label = case if legend else None
        axes.plot(places, values.mean(axis=0), "--" if dashed else "-", color=colour(at), label=label)
        axes.fill_between(
            places, values.min(axis=0), values.max(axis=0), color=colour(at), alpha=0.15, linewidth=0
        )
    if x is None:
        axes.xaxis.get_major_locator().set_params(integer=True)  # epochs, layers
    if legend:
        named(axes)


def dots(axes: Any, numbers: Numbers, what: str) -> None:
    """A row for each case: a dot for each seed, and a stroke at their mean.

    Raises: ConfigError if nothing was measured under this name.
    """
    _see_that_it_was_measured(numbers, what)
    for at, case in enumerate(numbers):
        values = numbers.all(case, what)
        if len(values):
            axes.plot(values, [at] * len(values), "o", color=colour(at), alpha=0.6, markersize=5)
            axes.plot(values.mean(), at, "|", color=colour(at), markersize=18, markeredgewidth=2)
    axes.set_yticks(range(len(numbers)), list(numbers), fontsize=8)
    axes.set_ylim(len(numbers) - 0.5, -0.5)


def against(
    axes: Any, numbers: Numbers, x: str | Mapping[str, float], what: str, *, names: bool = True
) -> None:  # fmt: skip
    """A point for each seed of each case: one measured number against another, or one given for the case.
    With ``names`` the cases stand beside their means, none over another; else :func:`named` tells them.

    Raises: ConfigError if nothing was measured under these names.
    """
    for name in (what, x) if isinstance(x, str) else (what,):
        _see_that_it_was_measured(numbers, name)
    middles: list[tuple[float, float, int]] = []
    heights: list[float] = []
    for at, case in enumerate(numbers):
        values = numbers.all(case, what)
        if isinstance(x, str):  # a run that diverged may have one of the two
            whole = [one for one in numbers[case] if None not in (one.get(what), one.get(x))]
            values, places = (np.array([one[name] for one in whole], dtype=float) for name in (what, x))
        else:
            places = np.full(len(values), x[case])
        label = None if names else case
        axes.plot(places, values, "o", color=colour(at), markersize=4.5, label=label)
        if names and len(values):
            middles.append((values.mean(), places.mean(), at))
            heights += values.tolist()
    free, cases = -math.inf, list(numbers)
    for height, place, at in sorted(middles):
        height = max(height, free)
        axes.annotate(
            cases[at], (place, height), xytext=(7, -3), textcoords="offset points", fontsize=7.5,
            color=colour(at),
        )  # fmt: skip
        free = height + 0.045 * (max(heights) - min(heights))  # of a name


def _see_that_it_was_measured(numbers: Numbers, what: str) -> None:
    every = [one for seeds in numbers.values() for one in seeds]
    known = dict.fromkeys(name for one in every for name in one)
    if known and what not in known and not any(one.get("diverged") for one in every):
        raise ConfigError(unknown("number", what, known))

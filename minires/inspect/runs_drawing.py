"""The curves of several runs in one figure, and the test pictures on which they disagree.

A figure is written over nothing but an earlier one of its kind: each says in its metadata who made it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minires.errors import ConfigError
from minires.files import with_ending
from minires.train.canvas import GREY, epochs_axis, new_figure, plain_axes, save_figure, short
from minires.train.run_folder import many_orders

MADE_BY = "minires compare"
PANELS = (
    ("train_loss", "Training loss", 1), ("train_accuracy", "Training accuracy (%)", 100),
    ("val_loss", "Validation loss", 1), ("val_accuracy", "Validation accuracy (%)", 100),
)  # fmt: skip
STYLES = ("-", "--", ":", "-.")  # of runs of one colour
COLOURS = ("#2563a8", "#d9730d", "#2f855a", "#b83280", "#6b46c1", "#8a6d1c", "#0e7490", "#c53030", "#475569")
MOST = 40  # pictures on a sheet


@dataclass(frozen=True)
class Curve:
    """The epochs of a run; curves of one ``group`` have one colour."""

    label: str
    rows: Sequence[Mapping[str, float | None]]
    group: int


def check_out(path: str | os.PathLike[str], endings: str | tuple[str, ...], what: str) -> str:
    """The ending of a figure that is to be written, and that nothing is lost by it.

    Raises: ConfigError for another ending, or a file that is there and is no figure of this kind.
    """
    ending = with_ending("out", path, endings, what)
    if os.path.lexists(path):
        try:
            with open(path, "rb") as file:
                ours = MADE_BY.encode() in file.read(8192)
        except OSError:
            ours = False
        if not ours:
            raise ConfigError(f"{os.fspath(path)} is there already, and is {what} of no earlier comparison; "
                              "choose another name")  # fmt: skip
    return ending


def draw_curves(path: str | os.PathLike[str], curves: Sequence[Curve]) -> None:
    """Draw loss and accuracy of runs over their epochs, as a .png or .svg."""
    ending = check_out(path, (".png", ".svg"), "a figure")
    figure = new_figure(11.0, 7.2 + 0.11 * len(curves))
    last = max([1, *(int(row["epoch"] or 0) for curve in curves for row in curve.rows)])
    lines: dict[str, Any] = {}
    styles: dict[int, int] = {}
    style_of = []
    for curve in curves:
        style_of.append(styles.get(curve.group, 0))
        styles[curve.group] = style_of[-1] + 1
    for axes, (column, title, scale) in zip(figure.subplots(2, 2).flat, PANELS, strict=True):
        shown = False
        for curve, style in zip(curves, style_of, strict=True):
            values = [row[column] for row in curve.rows]
            if all(value is None for value in values):
                continue
            shown = True
            (lines[curve.label],) = axes.plot(
                [row["epoch"] for row in curve.rows],
                [np.nan if value is None else scale * value for value in values],
                color=COLOURS[curve.group % len(COLOURS)], linewidth=1.6, marker="o",
                linestyle=STYLES[style % len(STYLES)], markersize=3 if last < 40 else 0,
            )  # fmt: skip
        if column.endswith("loss") and many_orders([row for curve in curves for row in curve.rows]):
            axes.set_yscale("log")
            title += ", logarithmic axis"
        if not shown:
            axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color=GREY)
        axes.set_title(title, fontsize=11)
        epochs_axis(axes, last)
        plain_axes(axes)
    if lines:
        names = [short(label, 60) for label in lines]
        figure.legend(lines.values(), names, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    svg = ending == ".svg"
    metadata = {"Creator": MADE_BY, "Date": None} if svg else {"Software": MADE_BY}
    save_figure(figure, path, format=ending[1:], metadata=metadata)


def draw_disagreements(
    path: str | os.PathLike[str],
    images: NDArray[np.uint8],
    names: Sequence[str],
    truths: Sequence[str],
    guesses: Sequence[Sequence[tuple[str, str]]],
    *,
    total: int,
) -> None:
    """Draw pictures with what they show, and below each what every run takes it for, as a .png.

    ``guesses`` has for each picture (run, guess) of every run; ``total`` is how many pictures there were.
    """
    check_out(path, ".png", "a sheet of pictures")
    most = min(len(names), MOST)
    columns = min(8, max(3, most))
    rows = -(-most // columns)
    runs = len(guesses[0]) if len(guesses) else 0
    figure = new_figure(1.9 * columns, (2.1 + 0.16 * runs) * rows + 0.6)
    part = f", the {most} surest are shown" if most < len(names) else ""
    figure.suptitle(
        f"the runs disagree on {len(names)} of {total} test pictures{part}", fontsize=12, fontweight="bold"
    )
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.axis("off")
    for axes, image, name, truth, told in zip(
        figure.axes[:most], images[:most], names[:most], truths[:most], guesses[:most], strict=True
    ):
        axes.imshow(image, interpolation="nearest")
        axes.set_title(f"true: {short(truth, 18)}", fontsize=9, pad=3)
        lines = [f"{short(run, 14)}: {short(guess, 14)}" for run, guess in told]
        axes.text(
            0.5, -0.03, "\n".join([*lines, short(Path(name).name, 26)]), transform=axes.transAxes,
            ha="center", va="top", fontsize=6.5, color=GREY,
        )  # fmt: skip
    save_figure(figure, path, metadata={"Software": MADE_BY})

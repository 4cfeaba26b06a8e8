"""What a run leaves to look at: metrics.csv, JSON files, curves, confusion matrix, mistakes.

Matplotlib is imported only when a picture is drawn, and drawn without a display.
"""

from __future__ import annotations

import csv
import importlib.metadata
import io
import json
import math
import os
import platform
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minires.data import Dataset
from minires.errors import CheckpointError, harmless
from minires.files import atomic_write, why
from minires.limits import regular_file
from minires.train.canvas import (
    BLUE,
    GREY,
    ORANGE,
    epochs_axis,
    new_figure,
    plain_axes,
    save_figure,
    short,
    write_figure,
)
from minires.train.fields import parsed
from minires.version import __version__

COLUMNS = (
    "epoch",
    "step",
    "lr",
    "train_loss",
    "train_accuracy",
    "val_loss",
    "val_accuracy",
    "gradient_norm",
    "pictures_per_second",
    "seconds",
)
LONGEST_JSON = 16 * 2**20  # bytes
LARGE = 100  # times the smallest loss, or 1: what needs a logarithmic axis
Row = Mapping[str, Any]


def write_json(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all. What is no UTF-8 in the name of a file is an escape of JSON.

    Raises: MiniresError with the file and the cause.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic_write(path) as file:
        file.write(text.encode(errors="backslashreplace"))


def read_json(path: str | os.PathLike[str], longest: int = LONGEST_JSON) -> dict[str, Any]:
    """Read a JSON file of a run folder, of so many bytes at most. Raises: CheckpointError if it is missing,
    longer, or no JSON object."""
    if Path(path).exists() and (size := regular_file(path, CheckpointError)) > longest:
        raise CheckpointError(f"{path}: {size:,} bytes; no JSON file of a run has over {longest:,}")
    try:
        content = parsed(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist; is {Path(path).parent} the folder of a run?") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {why(error)}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds {type(content).__name__}, not a JSON object")
    return content


def epoch_line(row: Row, epochs: int) -> str:
    """What is said of an epoch."""
    text = f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}  loss {shown(row['train_loss'])}"
    text += f"  accuracy {100 * row['train_accuracy']:.2f}%"
    if row["val_accuracy"] is not None:
        loss = float("nan") if row["val_loss"] is None else row["val_loss"]
        text += f"  |  validation loss {shown(loss)}  accuracy {100 * row['val_accuracy']:.2f}%"
    return f"{text}  |  {row['pictures_per_second']:.0f} pictures/s, {row['seconds']:.1f} s"


def shown(loss: float, digits: int = 4) -> str:
    """A loss as text; of one that is far from any that training has, the size.

    >>> shown(0.51234), shown(1.4e13)
    ('0.5123', '1.4e+13')
    """
    return f"{loss:.{digits}f}" if not loss >= 1e4 else f"{loss:.{digits}g}"


def finite(value: float | None) -> float | None:
    """JSON has no NaN and no infinity: such a figure is left empty."""
    return value if value is not None and math.isfinite(value) else None


def versions() -> dict[str, str]:
    """Python, this package, and what decides its numbers: of which version."""
    found = {"python": platform.python_version(), "minires": __version__}
    for name in ("numpy", "numba", "safetensors"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def write_metrics(path: str | os.PathLike[str], rows: Sequence[Row]) -> None:
    """Write one line per epoch as CSV; a figure that was not measured is an empty field."""
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())


def draw_curves(
    path: str | os.PathLike[str],
    rows: Sequence[Row],
    *,
    title: str,
    label_smoothing: float = 0.0,
    balance: str = "none",
) -> None:
    """Write a picture of :func:`curves` to a file."""
    save_figure(curves(rows, title=title, label_smoothing=label_smoothing, balance=balance), path)


def as_png(figure: Any) -> bytes:
    """A figure as the bytes of a PNG file."""
    file = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):  # of letters that no font has
        write_figure(figure, file)
    return file.getvalue()


def curves(rows: Sequence[Row], *, title: str, label_smoothing: float = 0.0, balance: str = "none") -> Any:
    """Draw loss, accuracy and learning rate over the epochs.

    With ``label_smoothing`` the training loss is one of smoothed labels, and cannot reach zero; with
    ``balance`` it is weighed by the classes, or of pictures that were drawn evenly: it is said.
    """
    figure = new_figure(11.0, 3.6)
    loss, accuracy, rate = figure.subplots(1, 3)
    epochs = [row["epoch"] for row in rows]
    for axes, kind, name in ((loss, "loss", "Loss"), (accuracy, "accuracy", "Accuracy (%)")):
        scale = 100 if kind == "accuracy" else 1
        for part, colour, label in (("train", BLUE, "training"), ("val", ORANGE, "validation")):
            values = [row[f"{part}_{kind}"] for row in rows]
            if part == "train":
                label += ", smoothed labels" * (kind == "loss" and label_smoothing > 0)
                label += ", weighed by class" * (kind == "loss" and balance == "weights")
                label += ", classes drawn evenly" * (balance == "sampler")
            if any(value is not None for value in values):
                axes.plot(
                    epochs,
                    [np.nan if v is None else scale * v for v in values],
                    color=colour,
                    marker="o",
                    markersize=3.5 if len(rows) < 40 else 0,
                    linewidth=1.8,
                    label=label,
                )
        if kind == "loss" and many_orders(rows):
            axes.set_yscale("log")
            name = "Loss, logarithmic axis"
        axes.set_title(name, fontsize=11)
        axes.legend(frameon=False, fontsize=9)
    accuracy.set_ylim(top=101)
    rate.plot(
        epochs,
        [row["lr"] for row in rows],
        color=GREY,
        linewidth=1.8,
        marker="o",
        markersize=3.5 if len(rows) < 40 else 0,
    )
    rate.set_title("Learning rate, end of epoch", fontsize=11)
    rate.set_ylim(bottom=0)
    rate.yaxis.set_major_formatter("{x:g}")
    for axes in (loss, accuracy, rate):
        epochs_axis(axes, max(epochs))
        plain_axes(axes)
    figure.suptitle(harmless(title), fontsize=12, fontweight="bold")
    return figure


def many_orders(rows: Sequence[Row]) -> bool:
    """Whether a loss is so large that on a linear axis the others would all look like zero."""
    losses = [row[name] for row in rows for name in ("train_loss", "val_loss")]
    positive = [loss for loss in losses if loss is not None and 0 < loss < math.inf]
    return bool(positive) and max(positive) > LARGE * max(1.0, min(positive))


def draw_confusion(
    path: str | os.PathLike[str],
    labels: NDArray[np.int64],
    guesses: NDArray[np.int64],
    classes: Sequence[str],
) -> None:
    """Draw how often each class was taken for each class: rows are the truth, columns the guesses."""
    count = len(classes)
    table = confusion_table(labels, guesses, count)
    share = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    side = min(14.0, max(4.6, 0.55 * count + 2.0))
    figure = new_figure(side + 0.6, side)
    axes = figure.subplots()
    picture = axes.imshow(100 * share, cmap="Blues", vmin=0, vmax=100)
    if count <= 25:
        for i, j in np.ndindex(count, count):
            if table[i, j]:
                axes.text(
                    j,
                    i,
                    str(table[i, j]),
                    ha="center",
                    va="center",
                    fontsize=10 if count <= 12 else 7,
                    color="white" if share[i, j] > 0.55 else "#1f2937",
                )
    names = [short(name, 18) for name in classes]
    long = max(map(len, names)) > 3
    if count <= 60:
        axes.set_xticks(range(count), names, rotation=45 if long else 0, ha="right" if long else "center")
        axes.set_yticks(range(count), names)
    axes.tick_params(length=0, labelsize=9 if count <= 25 else 6)
    axes.set_xlabel("guessed class")
    axes.set_ylabel("true class")
    right = int(np.trace(table))
    axes.set_title(
        f"{right} of {len(labels)} test pictures right ({100 * right / len(labels):.1f}%)",
        fontsize=12,
        fontweight="bold",
        pad=12,
    )
    bar = figure.colorbar(picture, ax=axes, fraction=0.046, pad=0.04)
    bar.set_label("% of the true class", fontsize=9)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, length=0)
    axes.spines[:].set_visible(False)
    save_figure(figure, path)


def draw_mistakes(
    path: str | os.PathLike[str], dataset: Dataset, probabilities: NDArray[np.floating], *, most: int = 40
) -> None:
    """Draw the misclassified pictures with true and guessed label and file name, the surest first."""
    guesses = probabilities.argmax(axis=1)
    wrong = np.flatnonzero(guesses != dataset.labels)
    wrong = wrong[np.argsort(-probabilities[wrong, guesses[wrong]], kind="stable")]
    shown = wrong[:most]
    columns = min(8, max(4, len(shown)))
    rows = max(1, -(-len(shown) // columns))
    figure = new_figure(1.75 * columns, 2.3 * rows + 0.6)
    of = f", the {len(shown)} surest are shown" if len(shown) < len(wrong) else ""
    title = f"{len(wrong)} of {len(dataset)} test pictures misclassified{of}"
    figure.suptitle(title, fontsize=12, fontweight="bold")
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.axis("off")
    for axes, index in zip(figure.axes, shown, strict=False):
        sure = 100 * probabilities[index, guesses[index]]
        axes.imshow(dataset.images[index], interpolation="nearest")
        truth, guess = (short(dataset.classes[k], 16) for k in (dataset.labels[index], guesses[index]))
        axes.set_title(f"true: {truth}\nguessed: {guess}, {sure:.0f}%", fontsize=9, pad=4)
        axes.text(
            0.5,
            -0.04,
            short(Path(dataset.names[index]).name, 26),
            transform=axes.transAxes,
            ha="center",
            va="top",
            fontsize=6.5,
            color=GREY,
        )
    if not len(wrong):
        figure.text(0.5, 0.4, f"All {len(dataset)} are right.", ha="center", fontsize=14, color=BLUE)
    save_figure(figure, path)


def confusion_table(labels: NDArray[np.int64], guesses: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Count how often class i (row) was taken for class j (column).

    Shapes: labels (N,), guesses (N,) -> (classes, classes).
    """
    return np.bincount(labels * classes + guesses, minlength=classes * classes).reshape(classes, classes)

"""What a run writes about itself while it goes, for ``minires watch``: files of the run folder.

    watch.json     the figures of the layers and the confusion table of validation, of the epochs that were
                   looked at: see minires.train.watch_file
    layers.csv     the figures of the layers once more, as a table
    progress.json  where the run is, the loss step by step, the last lines of its report; every few seconds
    samples.png    some training pictures as the model gets them, augmented

Each is whole at any moment. When a run goes on from a checkpoint, what was written of later steps is
forgotten and made again. How often the model is looked at follows from the counts of pictures and epochs
alone, and costs little; the bits of the run are the same without it.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from minires.errors import CheckpointError, ConfigError
from minires.files import atomic_write
from minires.train import best, continuing, probe, run_folder, watch_file
from minires.train.evaluation import Evaluation
from minires.train.fields import Kind, Optional, between, exactly, listing, real, record, text
from minires.train.observers import Observer, Run
from minires.train.telling import Pace

FORMAT = watch_file.FORMAT
PICTURES = 8  # in the batch that is looked at
COST = {  # of a look, in pictures that could be trained on meanwhile
    "cpu": 3 * PICTURES,  # the model itself, beside a plan
    "cuda": 2000,  # some thousand launches and answers that are waited for, beside a captured step
}
SHARE = 0.03  # of the time of the epochs, at most
EPOCHS = 200  # that are looked at in a run, at most
CELLS = 2000  # of a confusion table that are kept: the largest
POINTS = 500  # of the loss, step by step
PAUSE = 10.0  # seconds between two writes of progress.json
SAMPLES, SIDE = watch_file.SAMPLES, 96  # pictures that are shown, and the least side of each
COLUMNS = 8

PROGRESS_KIND = record(
    kind=exactly("progress"), format=exactly(FORMAT), time=real, epoch=between(0), epochs=between(1),
    batch=between(0), batches=between(1), step=between(0), loss=Optional(real), accuracy=Optional(real),
    lr=Optional(real), pictures_per_second=Optional(real), seconds=real, left=Optional(real),
    points=listing(listing(Optional(real), count=4)), said=listing(text),
)  # fmt: skip


def every(pictures: int, epochs: int, device: str = "cpu") -> int:
    """Each how manieth epoch is looked at: so that it takes a small share of their time.

    >>> every(pictures=45_000, epochs=20), every(pictures=45_000, epochs=500), every(pictures=80, epochs=20)
    (1, 3, 10)
    """
    cost = COST["cpu" if device == "cpu" else "cuda"]
    return max(1, math.ceil(cost / (SHARE * pictures)), math.ceil(epochs / EPOCHS))


def is_due(epoch: int, pictures: int, epochs: int, device: str = "cpu") -> bool:
    """Whether an epoch, counted from 1, is looked at: each so manieth one, the first and the last."""
    return epoch in (1, epochs) or epoch % every(pictures, epochs, device) == 0


class Watch(Observer):
    """Writes these files."""

    def __init__(self) -> None:
        self.pace = Pace()
        self._before: list[dict[str, Any]] | None = None  # the weights before the last step of an epoch
        self._updates: list[float | None] | None = None
        self._written = -math.inf  # when progress.json was

    # ---------------------------------------------------------------------------------------- the run goes

    def begins(self, run: Run) -> None:
        """Read what is there of the run, and forget what lies behind the place where it goes on."""
        self.layers = probe.layers_of(run.model)
        self.classes = run.train_set.classes
        step, known = run.progress.step, [{"path": one.path, "kind": one.kind} for one in self.layers]
        self.content: dict[str, Any] = {
            "kind": "watch", "format": FORMAT, "classes": list(self.classes), "layers": known,
            "responses": [], "blocks": [], "samples": None, "epochs": [],
        }  # fmt: skip
        self.points: list[list[float | None]] = []
        watch_file.check_table(run.out / continuing.LAYERS)
        if (old := _ours(run.out / continuing.WATCH, watch_file.KIND)) and old["layers"] == known:
            self.content |= {name: old.get(name) or [] for name in ("responses", "blocks")}
            self.content["samples"] = old["samples"]
            self.content["epochs"] = [one for one in old["epochs"] if one["step"] <= step]
            if old["epochs"]:
                self._write_look(run)
        if old := _ours(run.out / continuing.PROGRESS, PROGRESS_KIND):
            self.points = [one for one in old["points"] if (one[0] or 0) <= step]
        self._point = self._sums(run)
        self.pace.begins(run)
        self._probe = probe.Probe(
            run.model, self.layers, *_shown(run), label_smoothing=run.config.label_smoothing
        )
        if step and not run.progress.batch and self._is_due(run, run.progress.epoch):
            if not any(one["step"] == step for one in self.content["epochs"]):  # it was killed before that
                self._look(run, run.history[-1], None)
        self._copy_before_last(run)

    def stepped(self, run: Run) -> None:
        """Note the loss now and then, and how far the last step of an epoch went."""
        self.pace.stepped(run)
        progress = run.progress
        if self._before is not None:
            self._updates, self._before = probe.updates(self.layers, self._before), None
        self._copy_before_last(run)
        total = run.config.epochs * len(run.loader)
        if progress.step % max(1, math.ceil(total / POINTS)) == 0 or progress.step == total:
            self._note_point(run)
        if self._written == -math.inf:
            self._first(run)
        if time.monotonic() - self._written > PAUSE:
            self._write_progress(run)

    def epoch_ended(self, run: Run, row: Mapping[str, Any], val: Evaluation | None) -> None:
        """Look at the model, if it is the turn of this epoch."""
        if self._is_due(run, row["epoch"]) or best.spent(run.history, run.config.patience):
            self._look(run, row, val)
        self._updates = None
        self._point = self._sums(run)
        self._copy_before_last(run)
        if time.monotonic() - self._written > PAUSE / 5:
            self._write_progress(run)

    def ends(self, run: Run, summary: Mapping[str, Any]) -> None:
        """Write where it has come."""
        self._write_progress(run)

    # ------------------------------------------------------------------------------------------- what is seen

    def _is_due(self, run: Run, epoch: int) -> bool:
        device = next(run.model.parameters()).device
        return is_due(epoch, len(run.train_set), run.config.epochs, device)

    def _copy_before_last(self, run: Run) -> None:
        """Keep the weights if the next step is the last one of an epoch that is looked at."""
        last = run.progress.batch == len(run.loader) - 1
        if last and run.progress.epoch < run.config.epochs and self._is_due(run, run.progress.epoch + 1):
            self._before = probe.copied(self.layers)

    def _look(self, run: Run, row: Mapping[str, Any], val: Evaluation | None) -> None:
        look = self._probe()
        figures: dict[str, Any] = dict(look.layers)
        figures["update"] = self._updates or [None] * len(self.layers)
        kinds = {path: type(module).__name__ for path, module in run.model.named_modules()}
        kinds[""] = type(run.model).__name__
        seen = watch_file.placed(
            self.content["responses"], [one.path for one in look.responses], kinds,
            response=[probe.finite(one.std) for one in look.responses],
        ) | watch_file.placed(
            self.content["blocks"], [one.path for one in look.ways], kinds,
            branch=[probe.finite(one.branch) for one in look.ways],
            shortcut=[probe.finite(one.shortcut) for one in look.ways],
        )  # fmt: skip
        table = None
        if val is not None and run.val_set is not None:
            guesses = val.probabilities.argmax(axis=1)
            table = _cells(run_folder.confusion_table(run.val_set.labels, guesses, len(self.classes)))
        epochs: list[Any] = self.content["epochs"]
        epochs.append(
            {"epoch": row["epoch"], "step": row["step"], "layers": figures, **seen, "confusion": table}
        )
        self._write_look(run)

    def _write_look(self, run: Run) -> None:
        _write(run.out / continuing.WATCH, self.content)
        watch_file.write_table(run.out / continuing.LAYERS, self.content)

    def _first(self, run: Run) -> None:
        """What is written once: here, and not before the first step, which may be refused."""
        if self.content["samples"] is None and not os.path.lexists(run.out / continuing.SAMPLES):
            self.content["samples"] = write_samples(run)
            _write(run.out / continuing.WATCH, self.content)

    # ---------------------------------------------------------------------------------------- where it is

    def _sums(self, run: Run) -> tuple[int, float, int]:
        progress = run.progress
        return progress.pictures, progress.loss, progress.right

    def _note_point(self, run: Run) -> None:
        """The mean loss and accuracy of the steps since the last point, as far as they are known."""
        before, now = self._point, self._sums(run)
        pictures, loss, right = (b - a for a, b in zip(before, now, strict=True))
        if pictures > 0:
            self.points.append(
                [run.progress.step, run_folder.finite(loss / pictures), right / pictures, run.optimizer.lr]
            )
            self._point = now

    def _write_progress(self, run: Run) -> None:
        progress, seen = run.progress, max(1, run.progress.pictures)
        last = run.history[-1] if run.history else {}
        is_new = not progress.pictures  # at the end of an epoch the next one has no figures yet
        now = progress.pictures / max(progress.epoch_seconds, 1e-9)
        speed = last.get("pictures_per_second") if is_new else now
        _write(run.out / continuing.PROGRESS, {
            "kind": "progress", "format": FORMAT, "time": time.time(), "epoch": progress.epoch,
            "epochs": run.config.epochs, "batch": progress.batch, "batches": len(run.loader),
            "step": progress.step,
            "loss": run_folder.finite(last.get("train_loss") if is_new else progress.loss / seen),
            "accuracy": last.get("train_accuracy") if is_new else progress.right / seen,
            "lr": run.optimizer.lr, "pictures_per_second": run_folder.finite(speed),
            "seconds": progress.seconds, "left": self.pace.left(run), "points": self.points,
            "said": list(run.said),
        })  # fmt: skip
        self._written = time.monotonic()


def write_samples(run: Run) -> dict[str, Any] | None:
    """Write the first training pictures of the run, as its model gets them, as one PNG in rows; the names of
    their classes."""
    found: list[tuple[Any, Any]] = []
    with closing(run.loader.epoch(0, 0)) as batches:
        for x, y in batches:
            found.append((x, y))
            if sum(len(labels) for _, labels in found) >= SAMPLES:
                break
    x, y = (np.concatenate(parts) for parts in zip(*found, strict=True))
    mean, std = (np.asarray(one, np.float32) for one in (run.normalize.mean, run.normalize.std))
    pixels = x[:SAMPLES] * std + mean
    pictures = (pixels.clip(0, 1) * 255).round().astype(np.uint8)
    sheet = contact_sheet(pictures)
    labels = [_name(one, run.train_set.classes) for one in y[: len(pictures)]]
    with atomic_write(run.out / continuing.SAMPLES) as file:
        Image.fromarray(sheet).save(file, "PNG")
    return {"count": len(pictures), "columns": min(COLUMNS, len(pictures)), "labels": labels}


def contact_sheet(pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pictures in rows of eight, small ones enlarged by whole pixels, without anything between them.

    Shapes: pictures (N, H, W, 3) -> (rows * H * times, columns * W * times, 3).
    """
    count, high, wide, _ = pictures.shape
    columns = min(COLUMNS, count)
    rows = -(-count // columns)
    whole = np.full((rows * columns, high, wide, 3), 255, np.uint8)
    whole[:count] = pictures
    # (rows * columns, H, W, 3) -> (rows, H, columns, W, 3) -> (rows * H, columns * W, 3)
    sheet = whole.reshape(rows, columns, high, wide, 3).swapaxes(1, 2).reshape(rows * high, columns * wide, 3)
    times = max(1, -(-SIDE // max(high, wide)))
    return sheet.repeat(times, axis=0).repeat(times, axis=1)


def _name(label: Any, classes: Sequence[str]) -> str | None:
    """The class of a label, or the first of a mixed one."""
    label = np.asarray(label)
    number = int(label.argmax()) if label.ndim else int(label)
    return classes[number] if 0 <= number < len(classes) else None


def _shown(run: Run) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The batch that is looked at: pictures from all over the training set, which may be sorted by class."""
    train = run.train_set
    count = min(len(train), max(2, PICTURES))
    places = np.linspace(0, len(train) - 1, count).round().astype(int)
    pictures = np.stack([train.images[place] for place in places])
    return run.normalize(pictures), np.asarray(train.labels)[places]


def _cells(table: NDArray[np.int64]) -> dict[str, Any]:
    """A confusion table as [true, guessed, count], without zeros: of a large one the largest counts."""
    rows, columns = table.nonzero()
    counts = table[rows, columns]
    order = np.argsort(-counts, kind="stable")[:CELLS]
    cells = np.stack([rows[order], columns[order], counts[order]], axis=1).tolist()
    return {"cells": cells, "left_out": int(counts.sum() - counts[order].sum())}


def _write(path: Path, content: Mapping[str, Any]) -> None:
    encoded = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n"
    with atomic_write(path) as file:
        file.write(encoded.encode(errors="backslashreplace"))


def _ours(path: Path, kind: Kind) -> dict[str, Any] | None:
    """What we wrote there before; None if there is nothing, or what a power failure leaves.

    Raises: MiniresError if it is a file of somebody else, which stays as it is.
    """
    if not os.path.lexists(path):
        return None
    try:
        content = run_folder.read_json(path)
        try:
            kind("", content)
        except ConfigError as error:
            raise CheckpointError(f"{path} was not written by minires: {error}") from error
        return content
    except CheckpointError as error:
        if path.is_file() and not path.is_symlink() and not path.read_bytes()[:65536].strip(b"\0"):
            return None
        raise CheckpointError(f"{error}; it stays as it is, and nothing is written over it") from error

"""One run of a lab: trained once, and found again by its settings."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minires import data, models
from minires.data import Normalize, Splits
from minires.distributed import Solo
from minires.errors import CheckpointError, ConfigError, DataError, MiniresError, plain
from minires.inspect.runs import read_run
from minires.lab.scale import Case
from minires.nn.module import Module
from minires.train import Config, Trainer, continuing, layer_figures, load_model, run_folder, state

DRAWN = "hands"  # pictures that need no download
LEARNT = 5.0  # points of training error below guessing
MEANS = {
    "train_error": "percent of the training pictures that were wrong in the last epoch, while learning",
    "val_error": "percent of the validation pictures that were wrong after the last epoch",
    "test_error": "percent of the test pictures that were wrong",
    "diverged": "1 if a loss was not finite (errors from then on are those of guessing), else 0",
    "learnt": f"1 if the training error ends at least {LEARNT:g} points below that of guessing, else 0",
}


class Pictures:
    """The pictures of all runs, read once for each data set and size; ``say`` is told of it."""

    def __init__(self, say: Callable[[str], None] | None = None) -> None:
        def read(name: str, size: int | None) -> Splits:
            if say is not None:
                say(f"  reads the pictures of {name}" + (f", {size}x{size}" if size else ""))
            try:
                return data.load(name, size=size)
            except DataError as error:
                if name not in data.names():  # a path, which was there
                    raise
                raise DataError(f"{error}; or take others, say --data {DRAWN} (data={DRAWN!r})") from error

        self._read = functools.lru_cache(maxsize=2)(read)

    def __call__(self, case: Case) -> Splits:
        """Those that a case names. Raises: as ``data.load``."""
        splits = self._read(case.settings["data"], case.settings.get("size"))
        if case.tests is None:
            return splits
        val, test = (one.some(min(case.tests, len(one))) for one in (splits.val, splits.test))
        return dataclasses.replace(splits, val=val, test=test)


class Run:
    """A run, as ``measure`` of a lab sees it.

    ``case`` is its name, ``settings`` what it was made with, ``extra`` what else the scale says, ``seed`` its
    seed. ``diverged`` says that its loss was not finite, so that there is no model. ``epochs`` are the rows
    of its metrics.csv, and ``folder`` is where they stand; a case that is not trained has none.
    """

    def __init__(self, case: str, made: Case, seed: int, folder: Path, pictures: Pictures) -> None:
        self.case, self.settings, self.extra, self.seed = case, made.settings, made.extra, seed
        self.trained, self.folder = made.trained, folder
        self._made, self._pictures = made, pictures

    # -------------------------------------------------------------------------------------- what it is of

    @functools.cached_property
    def splits(self) -> Splits:
        """The pictures."""
        return self._pictures(self._made)

    @property
    def classes(self) -> int:
        return len(self.splits.train.classes)

    @functools.cached_property
    def learnt_from(self) -> data.Dataset:
        """The pictures that it learnt from."""
        if self.trained:
            return state.trained_on(self.config, self.splits)
        some = self.settings.get("pictures")
        return self.splits.train if some is None else self.splits.train.some(some)

    @property
    def config(self) -> Config:
        """The configuration of its training."""
        return Config.from_dict({**self.settings, "seed": self.seed})

    @functools.cached_property
    def model(self) -> Module:
        """The trained network, for inference; where nothing is trained a fresh one, as it is made.

        Raises: ConfigError if there is none: its loss was not finite, or its case names no model.
        """
        if self.diverged:
            raise ConfigError(
                f"{self.case!r}, seed {self.seed}: its loss was not finite, so there is no model; see "
                "run.diverged before"
            )
        if not self.settings.get("model"):
            raise ConfigError(f"the case {self.case!r} has no model: give one, scale.fresh(model=...)")
        if self.trained:
            return load_model(self.folder).model
        name, variant = self.settings["model"], dict(self.settings.get("variant", {}))
        fitted = models.entry(name).fitted(self.settings["size"])
        return models.build(name, classes=self.classes, seed=self.seed, **{**fitted, **variant})

    @functools.cached_property
    def normalize(self) -> Normalize:
        """How the pictures are prepared for it."""
        if not self.trained:
            return Normalize.of(self.learnt_from)
        return state.normalization(self.config.normalize, self.learnt_from, seed=self.seed, held=None)

    def batch(self, count: int, *, part: str = "test") -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Some pictures of a part ("train" is what it learnt from), ready for the model, and their labels.

        They are taken from all over it, since some sets stand class by class.
        """
        pictures = self.learnt_from if part == "train" else getattr(self.splits, part)
        count = min(count, len(pictures))
        places = np.linspace(0, len(pictures) - 1, count).round().astype(int)
        return self.normalize(pictures.images[places]), pictures.labels[places]

    # ------------------------------------------------------------------------------------- how it has gone

    @property
    def mended_by(self) -> str:
        """What is done about a run folder that is damaged."""
        return f"remove the folder {self.folder}, and the lab trains it anew"

    @functools.cached_property
    def summary(self) -> dict[str, Any]:
        """What its summary.json says."""
        return run_folder.read_json(self.folder / continuing.SUMMARY)

    @property
    def diverged(self) -> bool:
        """Whether its loss or a gradient was not finite, which has ended it."""
        return self.trained and _has_diverged(self.summary)

    @functools.cached_property
    def layers(self) -> list[Any]:
        """The figures of its layers, epoch by epoch, where the setting ``watch`` asked for them."""
        return list(layer_figures(self.folder))

    @functools.cached_property
    def epochs(self) -> Sequence[Mapping[str, float | None]]:
        """The figures of its epochs, as metrics.csv has them; a run that diverged has fewer.

        Raises: CheckpointError if there are none of a run that has not.
        """
        rows = read_run(self.folder).rows
        if not rows and not self.diverged:
            raise CheckpointError(f"{self.folder} has no figures of its epochs; {self.mended_by}")
        return rows

    def errors(self) -> dict[str, Any]:
        """Its errors, in percent: of the last epoch ``train_error``, as the pictures came in training, and
        ``val_error``; on the test pictures ``test_error``; and epoch by epoch ``train_errors``,
        ``val_errors``, ``train_losses``. After a loss that was not finite they are those of guessing.
        ``learnt`` is 1 if the training error is at least five points below that of guessing, else 0.

        Raises: ConfigError for a case that is not trained.
        """
        if not self.trained:
            raise ConfigError(
                f"the case {self.case!r} is not trained, so it has no errors of training; define "
                "measure(self, run) for what is to be measured of it"
            )
        guess, rows = 100 * (1 - 1 / self.classes), self.epochs
        lost = self.config.epochs - len(rows) if self.diverged else 0  # patience may have ended it, too

        def errors(what: str) -> list[float | None]:
            found = [None if row[what] is None else 100 * (1 - float(row[what] or 0)) for row in rows]
            return found + [guess] * lost

        train, val = errors("train_accuracy"), errors("val_accuracy")
        right = self.summary["test_accuracy"]
        test = guess if self.diverged else None if right is None else 100 * (1 - right)
        return {
            "train_error": train[-1], "val_error": val[-1], "test_error": test,
            "train_errors": train, "val_errors": val, "train_losses": [row["train_loss"] for row in rows],
            "diverged": int(self.diverged),
            "learnt": int(train[-1] is not None and train[-1] <= guess - LEARNT),
        }  # fmt: skip


def key(case: Case, seed: int) -> str:
    """What a run is found again by: those of its settings that decide its result and are not the usual ones
    of a training; of what is not trained all of them.

    >>> key(Case({"model": "resnet18", "device": "cpu"}), 0) == key(Case({"model": "resnet18"}), 0)
    True
    """
    usual, free = {}, set[str]()
    if case.trained:
        usual, free = Config().to_dict(), {*state.FREE, "seed", "recipe"} - {"keep"}  # it says what is tested
    if case.decides and case.settings["data"] not in data.names():
        free.add("data")  # known by content, not by path
    deciding = {
        name: value for name, value in plain(dict(case.settings)).items()
        if name not in free and (name not in usual or value != usual[name])
    }  # fmt: skip
    if case.settings.get("watch"):  # what it writes is measured
        deciding["watch"] = True
    decides = [case.decides] if case.decides else []
    return digest([deciding, case.trained, case.tests, seed, *decides])


def digest(content: Any) -> str:
    """A short name for what JSON can hold, another one for other content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def folder_of(runs: Path, case: Case, seed: int) -> Path:
    """The folder of a run."""
    return runs / f"{case.settings.get('model', 'fresh')}-{key(case, seed)}"


def train(run: Run, device: str, bar: bool | None) -> None:
    """Train, unless it was done before; go on where it was stopped.

    Raises: what training raises; a loss that is not finite is a result, of which ``run.diverged`` tells.
    """
    if has_ended(run.folder):
        return
    begun = (run.folder / continuing.CONFIG).exists()
    config = Config.from_dict({**run.config.to_dict(), "device": device})
    # Each run is one of this process alone: several of them are shared out among ranks.
    try:
        Trainer(
            config, run.folder, splits=run.splits, resume=begun, progress=bar, say=_silent, comm=Solo(),
            figures=False,
        ).run()  # fmt: skip
    except CheckpointError as error:
        raise CheckpointError(f"{error}; or {run.mended_by}") from error
    except MiniresError:
        if not has_ended(run.folder):
            raise


def _silent(line: str) -> None:
    """A lab says what there is to say of its runs."""


def has_ended(folder: Path) -> bool:
    """Whether a run has come to its end: to a model, or to a loss that is not finite."""
    try:
        summary = run_folder.read_json(folder / continuing.SUMMARY)
    except CheckpointError:
        return False
    return summary.get("test_accuracy") is not None or _has_diverged(summary)


def _has_diverged(summary: Mapping[str, Any]) -> bool:
    """Whether a loss was not finite: in training, or only that of validation or of the test."""
    return bool(summary.get("diverged"))

"""The test pictures on which several trained runs disagree: the runs' models on the same test pictures."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from minires import data
from minires.data import Dataset
from minires.errors import ConfigError, DataError
from minires.inspect.runs import Run
from minires.inspect.runs_drawing import draw_disagreements
from minires.train import evaluate, load_model
from minires.train.model_file import Trained


@dataclass(frozen=True, eq=False)
class Disagreement:
    """What several runs take the same test pictures for.

    ``guesses`` (runs, N) are places in ``classes``, and ``sure`` the probability that a run gives its guess.
    ``notes`` are sentences on what is doubtful.
    """

    runs: tuple[Run, ...]
    classes: tuple[str, ...]
    pictures: Dataset = field(repr=False)
    guesses: NDArray[np.int64] = field(repr=False)
    sure: NDArray[np.float64] = field(repr=False)
    notes: tuple[str, ...] = ()

    @cached_property
    def places(self) -> NDArray[np.int64]:
        """Where they disagree, places in ``pictures``; first where the least sure of them is surest."""
        places = np.flatnonzero((self.guesses != self.guesses[0]).any(axis=0))
        return places[np.argsort(-self.sure[:, places].min(axis=0), kind="stable")]

    def draw(self, path: str | os.PathLike[str]) -> None:
        """Draw these pictures with what each run takes them for, as a .png.

        Raises: ConfigError for another ending, or if there is a file at ``path`` that is no such figure;
        MiniresError if it cannot be written.
        """
        told = [
            [(run.label, self.classes[guess]) for run, guess in zip(self.runs, column, strict=True)]
            for column in self.guesses.T[self.places]
        ]
        truths = [self.classes[label] for label in self.pictures.labels[self.places]]
        names = [self.pictures.names[place] for place in self.places]
        draw_disagreements(
            path, self.pictures.images[self.places], names, truths, told, total=len(self.pictures)
        )


def disagreement(runs: Sequence[Run]) -> Disagreement:
    """Ask the models of finished runs what is on the test pictures that they share.

    Raises: ConfigError for fewer than two finished runs, other classes, or pictures that are not square;
    DataError where a run's pictures are not there, or the runs have other test pictures; CheckpointError if
    a model cannot be read.
    """
    done = tuple(run for run in runs if run.finished)
    if len(done) < 2:
        raise ConfigError(f"{len(done)} of {len(runs)} runs are finished: it needs two models")
    trained = [load_model(run.folder) for run in done]
    first = trained[0]
    for run, one in zip(done, trained, strict=True):
        if sorted(one.classes) != sorted(first.classes):
            raise ConfigError(
                f"{done[0].label} tells apart {_few(first.classes)}, {run.label} {_few(one.classes)}: other "
                "classes"
            )
        if one.size[0] != one.size[1]:
            raise ConfigError(f"{run.label} learnt from pictures that are not square, {one.size[1]} wide")
    parts = _Parts()
    side = first.size[0]
    common = parts.of(done[0], side, first)
    for run in done[1:]:
        _check_same(done[0], common, run, parts.of(run, side, first))
    guesses, sure, notes = [], [], []
    for run, one in zip(done, trained, strict=True):
        test = parts.of(run, one.size[0], one)
        result = evaluate(one.model, test, one.normalize)
        best = result.probabilities.argmax(axis=1)
        places = np.array([first.classes.index(label) for label in one.classes])
        guesses.append(places[best])
        sure.append(result.probabilities.max(axis=1))
        right, said = round(result.accuracy * len(test)), run.tested
        if said is not None and (right, len(test)) != said:
            notes.append(
                f"{run.label} gets {right} of {len(test)} pictures right now, and when it was tested "
                f"{said[0]} of {said[1]}: the pictures, or what reads them, may be others"
            )
    if unfinished := [run.label for run in runs if not run.finished]:
        notes.append(f"not finished, and not asked: {', '.join(unfinished)}")
    return Disagreement(done, first.classes, common, np.stack(guesses), np.stack(sure), tuple(notes))


class _Parts:
    """The test pictures of runs, each data set read once in each way."""

    def __init__(self) -> None:
        self._read: dict[tuple[str, int, bool], Dataset] = {}

    def of(self, run: Run, side: int, trained: Trained) -> Dataset:
        """The test pictures of a run at a size, with the classes in the order of a model's outputs."""
        name = run.config.data
        if name not in data.names() and not os.path.lexists(name):
            raise DataError(f"the pictures that {run.label} was trained on are no longer at {name}")
        known = name, side, run.config.draft
        if known not in self._read:
            with warnings.catch_warnings(action="ignore"):  # they were told when it was trained
                self._read[known] = data.load(name, size=side, draft=run.config.draft).test
        return self._read[known].with_classes(trained.classes)


def _check_same(first: Run, one: Dataset, second: Run, other: Dataset) -> None:
    """Check that two runs have the same test pictures, which are here at one size."""
    if len(one) != len(other):
        raise DataError(
            f"{first.label} has {len(one)} test pictures and {second.label} {len(other)}: other pictures"
        )
    if _digest(one) != _digest(other):
        raise DataError(
            f"{first.label} and {second.label} have other test pictures, {len(one)} each, or other labels "
            "of them"
        )


def _digest(part: Dataset) -> bytes:
    digest = hashlib.sha256(part.labels.tobytes())
    for image in part.images:
        digest.update(np.ascontiguousarray(image).data)
    return digest.digest()


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f", ... ({len(names)} in all)" if len(names) > 6 else "")

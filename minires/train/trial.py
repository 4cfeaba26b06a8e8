"""A trial of some ways to train on a few pictures: which of them gets the most right that it has not seen?

    thirds     of the pictures are left out in turn (cross-validation); each way trains on the others from the
               beginning and is asked for those left out, so that it is asked for each picture once
    steps      a few, as what is looked for is which way is better, and not how good it can become

A fifth of a few pictures, kept to validate, could not tell this: of 14 pictures, one more that is right is
seven per cent.

Source: Stone, "Cross-validatory choice and assessment of statistical predictions", J. R. Stat. Soc. B 36
(1974).
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minires import backend
from minires.data import Dataset, Splits
from minires.errors import DataError, counted
from minires.interrupt import Stopped
from minires.train import audience
from minires.train.config import Config
from minires.train.observers import Observer, Run
from minires.train.trainer import Trainer

FOLDS, STEPS = 3, 100


class _Bar(Observer):
    def __init__(self, bar: Any) -> None:
        self.bar = bar

    def stepped(self, run: Run) -> None:
        self.bar.update(1)


def trial(
    pictures: Dataset,
    ways: Mapping[str, Config],
    *,
    progress: bool | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, float]:
    """Try several configurations, by their names, on the same pictures: the share that each gets right.

    Of a configuration all counts but ``epochs`` and what is kept and written: nothing is.
    ``progress`` shows a bar, as for :class:`~minires.train.Trainer`; ``say`` gets what must be said.

    Raises: DataError if a class has fewer than ``FOLDS`` pictures; Stopped after a signal; ConfigError for
    what does not fit.

    >>> labels = np.arange(12) % 2
    >>> images = (200 * labels[:, None, None, None] * np.ones((1, 8, 8, 3))).astype(np.uint8)
    >>> pictures = Dataset(images, labels, ("dark", "light"), ("",) * 12, "pictures")
    >>> way = Config(model="resnet20_cifar", variant={"widths": [2, 2, 2]}, batch_size=4, normalize="none")
    >>> trial(pictures, {"the only way": way}, progress=False)
    {'the only way': 1.0}
    """
    left_out = folds(pictures.labels, len(pictures.classes), seed=next(iter(ways.values())).seed)
    right = dict.fromkeys(ways, 0)

    def tell(line: str) -> None:
        with bar.external_write_mode():
            say(line)

    with tempfile.TemporaryDirectory(prefix="minires-trial-") as place, \
            audience.bar(progress, total=len(ways) * FOLDS * STEPS, unit=" steps", leave=False,
                         desc="trying") as bar, backend.before_compiling(tell):  # fmt: skip
        for number, (name, config) in enumerate(ways.items()):
            for fold in range(FOLDS):
                out = Path(place, f"{number}-{fold}")
                right[name] += _right(pictures, left_out == fold, config, out, _Bar(bar))
    return {name: count / len(pictures) for name, count in right.items()}


def folds(labels: NDArray[np.int64], classes: int, *, seed: int) -> NDArray[np.int64]:
    """Which of the ``FOLDS`` parts leaves each picture out (N,): of each class about as many in each.

    Raises: DataError if a class has fewer pictures than there are parts.

    >>> folds(np.array([0, 0, 0, 1, 1, 1, 1]), 2, seed=0)
    array([0, 1, 2, 1, 0, 0, 2])
    """
    rng, found = np.random.default_rng([seed, 0x7211]), np.zeros(len(labels), np.int64)
    for label in range(classes):
        places = rng.permutation(np.flatnonzero(labels == label))
        if len(places) < FOLDS:
            raise DataError(f"class {label} has {counted(len(places), 'picture')}, too few for {FOLDS} parts")
        found[places] = np.arange(len(places)) % FOLDS
    return found


def _right(
    pictures: Dataset, left_out: NDArray[np.bool_], config: Config, out: Path, watched: Observer
) -> int:
    """How many of those left out are right, after a run on the others."""
    others, asked = np.flatnonzero(~left_out), pictures.take(np.flatnonzero(left_out))
    # One epoch that is as long as the trial: what ends an epoch takes longer than the steps of a small one.
    repeats = -(-STEPS * config.batch_size // len(others))
    seen = pictures.take(np.tile(others, repeats)[: STEPS * config.batch_size])
    short = dataclasses.replace(
        config, epochs=1, train_on="train", keep="none", patience=None, recalibrate=False, watch=False,
        checkpoint_every=0,
    )  # fmt: skip
    run = Trainer(
        short, out, splits=Splits(seen, asked, asked, "trial"), progress=False, say=lambda _: None,
        observers=[watched],
    )  # fmt: skip
    try:
        accuracy: float = run.run()["test_accuracy"]
    except Stopped as stop:
        raise Stopped("stopped while it was tried how to train; nothing was begun", stop.number) from None
    return round(accuracy * len(asked))

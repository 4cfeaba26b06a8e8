"""A trial of some ways to train on a few pictures: which of them gets the most right that it has not seen?

    thirds     of the pictures are left out in turn (cross-validation); each way trains on the others from the
               beginning and is asked for those left out, so that it is asked for each picture once
    steps      a few, as what is looked for is which way is better, and not how good it can become
    seed       the same for every run: which way suits the pictures does not hang on the run that follows

A fifth of a few pictures, kept to validate, could not tell this: of 14 pictures, one more that is right is
seven per cent.

Source: Stone, "Cross-validatory choice and assessment of statistical predictions", J. R. Stat. Soc. B 36
(1974).
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minires import backend
from minires.data import Dataset, Splits, Stream
from minires.data.pictures import unreadable
from minires.distributed import Solo
from minires.errors import ConfigError, DataError, MiniresError, counted
from minires.interrupt import Stopped
from minires.train import audience
from minires.train.config import Config
from minires.train.observers import Observer, Run
from minires.train.telling import PAUSE, Listener, about
from minires.train.trainer import Trainer

FOLDS, STEPS, SEED = 3, 100, 0
MEMORY = 2**28  # bytes that pictures which come again and again may take
PIECE = 64  # pictures of a stream that are read together
NOTHING = "the trial of how to train could not go on, and no run was begun"
ROOM = "; TMPDIR can name another folder for what is tried"


@dataclasses.dataclass(frozen=True)
class _Fold:
    """A run of the trial: its configuration, the places of the pictures that it learns from, in epochs of so
    many steps, and of those that it is asked for."""

    config: Config
    seen: NDArray[np.int64]
    asked: NDArray[np.int64]

    @property
    def steps(self) -> int:
        return self.config.epochs * (len(self.seen) // self.config.batch_size)


class _Progress(Observer):
    """Moves the bar, or says now and then how far the trial is."""

    def __init__(self, bar: Any, total: int, say: Callable[[str], None] | None) -> None:
        self.bar, self.total, self.say = bar, total, say
        self.done, self.diverged = 0, False
        self._began = self._said = 0.0

    def stepped(self, run: Run) -> None:
        self.bar.update(1)
        self.done, now = self.done + 1, time.monotonic()
        if self.done == 1:  # kernels may have been compiled for it
            self._began = self._said = now
        elif self.say and now - self._said >= PAUSE:
            self._said = now
            left = (now - self._began) / (self.done - 1) * (self.total - self.done)
            self.say(f"tried {self.done} of {self.total} steps, {about(left)} left")

    def ends(self, run: Run, summary: Mapping[str, Any]) -> None:
        self.diverged = summary["diverged"]


def trial(
    pictures: Dataset,
    ways: Mapping[str, Config],
    *,
    progress: bool | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, int]:
    """Try several configurations, by their names, on the same pictures: how many of them each gets right.

    A run of the trial is as its configuration says, but for: ``STEPS`` steps of whole batches, as a rule in
    one epoch; a batch of no more pictures than there are; ``seed``; no validation, running statistics as they
    come, and nothing kept, watched or drawn. A way that diverges gets none right. ``progress`` shows a bar,
    as for :class:`~minires.train.Trainer`; ``say`` gets what must be said.

    Raises: DataError if a class has fewer than ``FOLDS`` pictures, or that names pictures of a stream which
    cannot be read; Stopped after a signal; ConfigError for what does not fit, or if there is no way;
    MiniresError if a run cannot write.

    >>> labels = np.arange(12) % 2
    >>> images = (200 * labels[:, None, None, None] * np.ones((1, 8, 8, 3))).astype(np.uint8)
    >>> pictures = Dataset(images, labels, ("dark", "light"), ("",) * 12, "pictures")
    >>> way = Config(model="resnet20_cifar", variant={"widths": [2, 2, 2]}, batch_size=4, normalize="none")
    >>> trial(pictures, {"the only way": way}, progress=False, say=[].append)
    {'the only way': 12}
    """
    if not ways:
        raise ConfigError("a trial needs ways to try, {name: Config}, and got none")
    left_out = folds(pictures.labels, pictures.classes, seed=SEED)
    runs = {name: [_fold(pictures, left_out == fold, config) for fold in range(FOLDS)]
            for name, config in ways.items()}  # fmt: skip
    if isinstance(pictures.images, Stream):
        _read(pictures.images)
    listener = Listener(say)

    def tell(line: str) -> None:
        with bar.external_write_mode():
            listener(line)

    total = sum(one.steps for of_way in runs.values() for one in of_way)
    with _folder() as place, \
            audience.bar(progress, total=total, unit=" steps", leave=False, desc="trying") as bar, \
            backend.before_compiling(tell):  # fmt: skip
        silent = progress is None and not audience.shows_bar(progress)
        watched = _Progress(bar, total, tell if silent else None)
        return {
            name: sum(_right(pictures, one, place / "run", watched) for one in of_way)
            for name, of_way in runs.items()
        }


def folds(labels: NDArray[np.int64], classes: Sequence[str], *, seed: int) -> NDArray[np.int64]:
    """Which of the ``FOLDS`` parts leaves each picture out (N,): of each class about as many in each.

    Raises: DataError if a class has fewer pictures than there are parts.

    >>> folds(np.array([0, 0, 0, 1, 1, 1, 1]), ["cat", "dog"], seed=0)
    array([0, 1, 2, 1, 0, 0, 2])
    """
    rng, found = np.random.default_rng([seed, 0x7211]), np.zeros(len(labels), np.int64)
    for label, name in enumerate(classes):
        places = rng.permutation(np.flatnonzero(labels == label))
        if len(places) < FOLDS:
            few = counted(len(places), "picture")
            raise DataError(f"class {name!r} has {few}, too few for {FOLDS} parts")
        found[places] = np.arange(len(places)) % FOLDS
    return found


def _read(images: Stream) -> None:
    """Read each picture once. Raises: DataError that names those which cannot be read."""
    pieces = [slice(start, start + PIECE) for start in range(0, len(images), PIECE)]
    if broken := [text for _, wrong in images.tried(pieces) for _, text in wrong]:
        raise DataError(unreadable(broken, images.files.where))


@contextmanager
def _folder() -> Iterator[Path]:
    """A folder that is there inside this block. Raises: MiniresError if none can be made."""
    try:
        folder = tempfile.TemporaryDirectory(prefix="minires-trial-", ignore_cleanup_errors=True)
    except OSError as error:
        raise MiniresError(f"{NOTHING}: {error}{ROOM}") from error
    with folder as place:
        yield Path(place)


def _fold(pictures: Dataset, left_out: NDArray[np.bool_], config: Config) -> _Fold:
    """The run on those that are not left out."""
    others = np.random.default_rng([SEED, 0x07E5]).permutation(np.flatnonzero(~left_out))
    batch, accumulate = config.batch_size, config.accumulate
    if batch > len(others):  # in parts as large as those of the whole batch
        part = -(-batch // accumulate)
        accumulate = max(1, len(others) // part)
        batch = min(len(others), accumulate * part)
    # One epoch that is as long as the trial: what ends an epoch takes longer than the steps of a small one.
    count = STEPS * batch
    if not isinstance(pictures.images, Stream):
        fitting = max(1, MEMORY // pictures.images[others[:1]].nbytes // len(others))
        count = min(count, fitting * len(others))
    epochs = -(-STEPS // (count // batch))
    seen = np.resize(others, -(-STEPS // epochs) * batch)  # in their order, again and again
    short = dataclasses.replace(
        config, data=Config.data, batch_size=batch, accumulate=accumulate, drop_last=True, epochs=epochs,
        seed=SEED, train_on="train", pictures=None, keep="none", patience=None, recalibrate=False,
        watch=False, checkpoint_every=0,
    )  # fmt: skip
    return _Fold(short, seen, np.flatnonzero(left_out))


def _right(pictures: Dataset, fold: _Fold, out: Path, watched: _Progress) -> int:
    """How many of those that are asked for are right after the run."""
    asked, watched.diverged = pictures.take(fold.asked), False
    splits = Splits(pictures.take(fold.seen), asked, asked, "trial")
    try:
        run = Trainer(
            fold.config, out, splits=splits, progress=False, say=lambda _: None, observers=[watched],
            comm=Solo(), figures=False,
        )  # fmt: skip
        accuracy: float = run.run()["test_accuracy"]
    except Stopped as stop:
        raise Stopped("stopped before the run began, and nothing of it is kept", stop.number) from None
    except MiniresError as error:
        if watched.diverged:
            return 0
        why = error.__cause__  # without how to go on with a run of which nothing stays
        if isinstance(error, ConfigError) or not isinstance(why, MiniresError | OSError):
            raise
        raise MiniresError(f"{NOTHING}: {why}{ROOM if isinstance(why, OSError) else ''}") from error
    finally:
        shutil.rmtree(out, ignore_errors=True)
    return round(accuracy * len(asked))

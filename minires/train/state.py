"""What a checkpoint of a run says besides its arrays, and whether it belongs to the run that goes on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from minires import data, models
from minires.errors import CheckpointError, ConfigError
from minires.nn.module import Module
from minires.optim import Optimizer
from minires.train import checkpoint
from minires.train.checkpoint import Damaged, Misfit
from minires.train.config import Config
from minires.train.ema import EMA
from minires.train.evaluation import Evaluation
from minires.train.fields import (
    Optional,
    between,
    either,
    exactly,
    listing,
    positive,
    real,
    record,
    table,
    text,
)
from minires.train.run_folder import COLUMNS, finite
from minires.train.schedules import Schedule

# Settings that may change when a run is continued.
FREE = ("device", "plan", "watch", "checkpoint_every", "keep", "cache")
FILES = "files"  # what a stream's pictures are known by, in the place of their pixels
MENDED = "mended pictures"  # those that could not be read, and that a run does not know by their files
COUNT = between(0)
WIDEST = 1 << 13  # pixels of a side
TRAINED = {  # what weights are of, and how they are used
    "model": text,
    "variant": table(),
    "classes": listing(text, least=1),
    "normalize": record(mean=listing(real, count=3), std=listing(positive, count=3)),
    "size": listing(between(1, WIDEST), count=2),
    "dataset": text,
}
KIND = record(
    kind=exactly("checkpoint"),
    config=table(),
    data=either(text, table(Optional(either(text, listing(text))))),
    threads=between(1),
    progress=record(
        epoch=COUNT, batch=COUNT, step=COUNT, seconds=real, epoch_seconds=real, pictures=COUNT, loss=real,
        right=COUNT, norm=real,
    ),
    random=table(),
    schedule=table(),
    history=listing(record(epoch=COUNT, step=COUNT, **{
        name: Optional(real) if name.startswith("val_") else real
        for name in COLUMNS if name not in ("epoch", "step")
    })),
    ranks=Optional(between(1)),  # older checkpoints do not say
    warnings=Optional(listing(text)),  # nor have they these
    trained=Optional(record(**TRAINED)),  # nor this
)  # fmt: skip


@dataclass
class Progress:
    """The place in the run, and what was summed up in the epoch that is under way."""

    epoch: int = 0
    batch: int = 0  # the next one of this epoch
    step: int = 0
    seconds: float = 0.0  # of the whole run, validation included
    epoch_seconds: float = 0.0  # of training in this epoch
    pictures: int = 0
    loss: float = 0.0  # summed over pictures
    right: int = 0
    norm: float = 0.0  # summed over steps

    def row(self, lr: float, batches: int, val: Evaluation | None) -> dict[str, Any]:
        """The figures of the epoch, which is at its end: a line of metrics.csv."""
        return {
            "epoch": self.epoch + 1,
            "step": self.step,
            "lr": lr,
            "train_loss": self.loss / self.pictures,
            "train_accuracy": self.right / self.pictures,
            "val_loss": finite(val.loss if val else None),
            "val_accuracy": val.accuracy if val else None,
            "gradient_norm": self.norm / batches,
            "pictures_per_second": self.pictures / max(self.epoch_seconds, 1e-9),
            "seconds": self.epoch_seconds,
        }

    def next_epoch(self) -> Progress:
        return Progress(epoch=self.epoch + 1, step=self.step, seconds=self.seconds)


def belongs(
    path: Any,
    info: Mapping[str, Any],
    config: Config,
    splits: data.Splits,
    train_set: data.Dataset,
    fingerprint: Mapping[str, Any],
    batches: int,
) -> None:
    """Check that a checkpoint is whole in itself, and one of this run.

    Raises: Damaged if it does not say what a checkpoint says; CheckpointError if it is another run's, or
    the pictures, their labels or the names of the classes are others now.
    """
    if info.get("kind") == "model":
        raise CheckpointError(f"{path} is a trained model, and not a checkpoint of a run")
    checkpoint.check(path, info, KIND)
    # A version that had no such setting did as by default; what it streamed its data say.
    saved, here = {**Config().to_dict(), **info["config"]}, config.to_dict()
    free = FREE if None not in (saved["stream"], here["stream"]) else (*FREE, "stream")
    if different := checkpoint.differences(saved, here, ignore=free):
        raise CheckpointError(
            f"{path} belongs to another run: {'; '.join(different)}. "
            "Continue it with its own settings, or choose another folder"
        )
    held = info["data"]
    if isinstance(held, str):  # of an older version
        what = "training pictures or their labels"
        held, fingerprint = {what: held}, {what: _older(train_set)}
    same_data(path, held, fingerprint, splits.source)
    at = info["progress"]
    fits = at["step"] == at["epoch"] * batches + at["batch"] and at["batch"] <= batches
    if not fits or at["epoch"] > config.epochs or len(info["history"]) != at["epoch"]:
        raise Damaged(
            f"{path} does not say what it should: epoch {at['epoch']}, batch {at['batch']}, "
            f"step {at['step']} "
            f"and figures of {len(info['history'])} epochs do not agree, with {config.epochs} epochs of "
            f"{batches} batches"
        )


def load(
    path: Any,
    groups: Mapping[str, Any],
    info: Mapping[str, Any],
    *,
    model: Module,
    optimizer: Optimizer,
    ema: EMA | None,
    schedule: Schedule,
) -> None:
    """Give all of these the state that a checkpoint holds.

    Raises: Misfit if it is one of another model; Damaged if it holds no state of these.
    """
    try:
        model.load_state_dict(groups.get("model", {}))
        optimizer.load_state_dict(groups.get("optimizer", {}))
        if ema:
            ema.load_state_dict(groups.get("ema", {}))
        model.load_random_states(info["random"])
    except CheckpointError as error:
        raise Misfit(f"{path} is of another model: {error}") from error
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise Damaged(f"{path} does not hold the state of this run: {error}") from error
    try:
        schedule.load_state_dict(info["schedule"])
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise Damaged(f"{path} does not hold the state of its schedule: {error}") from error


def same_data(path: Any, held: Mapping[str, Any], fingerprint: Mapping[str, Any], source: str) -> None:
    """Check that the data of a run, known by ``fingerprint``, are those that the file at ``path`` ``held``.

    Raises: CheckpointError that names what is another now.
    """
    changed, names = [], dict.fromkeys([*held, *fingerprint])
    if held.get(MENDED) != fingerprint.get(MENDED):  # of before a picture was mended: its file was another
        names = dict.fromkeys(name for name in names if not name.endswith("pictures"))
    for name in names:
        before, now = held.get(name), fingerprint.get(name)
        if before != now:
            counts = [str(one).partition(" ")[0] for one in (before, now)]
            many = f" ({counts[0]} before, {counts[1]} now)" if all(map(str.isdecimal, counts)) else ""
            changed.append(f"the {name}{many if counts[0] != counts[1] else ''}")
    if changed:
        raise CheckpointError(
            f"{path} was made with other data than {source} holds now; changed: "
            f"{', '.join(changed)}. Make the same data available again, or choose another folder"
        )


def normalization(
    choice: str | dict[str, Any], train_set: data.Dataset, *, seed: int = 0, held: Any = None
) -> data.Normalize:
    """What the setting ``normalize`` stands for; ``held``, what a run that goes on had measured."""
    if isinstance(choice, dict):
        return data.Normalize(**choice)
    if choice != "data":
        return data.Normalize.none()
    if isinstance(train_set.images, data.Stream) and isinstance(held, dict):
        with suppress(ConfigError, KeyError):
            return data.Normalize(held["mean"], held["std"])
    return data.Normalize.of(train_set, seed=seed)


def measured(info: Mapping[str, Any]) -> Any:
    """The mean and the deviation that a run had, of which ``info`` was saved; None if it does not say."""
    trained = info.get("trained")
    return trained.get("normalize") if isinstance(trained, dict) else None


def size(config: Config) -> int | None:
    """The side of the pictures of a run: None if neither the configuration nor its model says."""
    usual = models.entry(config.model).size  # an unknown model is named in any case
    return config.size or usual


def pictures(config: Config, *, size: int | None, streamed: bool | None = None) -> data.Splits:
    """The pictures of a run at this size, as a stream if the configuration says so, its augmentation needs
    one, or they were ``streamed`` when the run began; None: as their number tells.

    Raises: as ``data.load``.
    """
    stream = config.stream
    if stream is None:
        stream = True if data.augment.needs_stream(data.build(config.augment)) else streamed
    return data.load(config.data, size=size, stream=stream, draft=config.draft, cache=config.cache)


def trained_on(config: Config, splits: data.Splits) -> data.Dataset:
    """The pictures that a run learns from. Raises: ConfigError if it asks for more than there are."""
    train = splits.train if config.train_on == "train" else splits.train.join(splits.val)
    return train if config.pictures is None else train.some(config.pictures)


def streamed(info: Mapping[str, Any]) -> bool | None:
    """Whether the pictures of a run, of which ``info`` was saved, were streamed; None if it does not say."""
    held = info.get("data")
    known = held.get("training pictures") if isinstance(held, dict) else held
    return f" {FILES} " in known if isinstance(known, str) else None


def mended(info: Mapping[str, Any]) -> frozenset[str]:
    """The pictures that a run could not read, and that are others when they are mended."""
    held = info.get("data")
    names = held.get(MENDED) if isinstance(held, dict) else None
    return frozenset(map(str, names)) if isinstance(names, list) else frozenset()


def fingerprint(splits: data.Splits, *, without: frozenset[str] | None = frozenset()) -> dict[str, Any]:
    """What the pictures and labels of the three parts are known by, and the names of the classes.

    Pictures of a stream are known by the names, sizes and times of their files, but those ``without``; None:
    by their names, as copies on several machines have times of their own.
    """
    found: dict[str, Any] = {MENDED: sorted(without)} if without else {}
    for part, name in (("train", "training"), ("val", "validation"), ("test", "test")):
        found |= known(getattr(splits, part), name, without=without)
    return found | {"class names": list(splits.train.classes)}


def known(
    dataset: data.Dataset | None, name: str, *, without: frozenset[str] | None = None
) -> dict[str, Any]:
    """What the pictures and labels of one part are known by, under its ``name``: see :func:`fingerprint`."""
    if not dataset:
        return {f"{name} pictures": dataset, f"{name} labels": dataset}
    if not isinstance(dataset.images, data.Stream):
        by = _digest(dataset.images)
    elif without is None:
        names = "\n".join(dataset.names).encode(errors="backslashreplace")
        by = f"{FILES} {hashlib.sha256(names).hexdigest()}"
    else:
        by = f"{FILES} {dataset.images.fingerprint(without=without)}"
    return {f"{name} pictures": f"{len(dataset)} {by}", f"{name} labels": _digest(dataset.labels)}


def _digest(array: Any) -> str:
    digest = hashlib.sha256(str(array.shape).encode())
    for start in range(0, len(array), 1024):  # pictures that are not in memory come piece by piece
        digest.update(np.ascontiguousarray(array[start : start + 1024]).reshape(-1).data)
    return digest.hexdigest()


def _older(dataset: data.Dataset) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(dataset.images).reshape(-1).data)
    digest.update(np.ascontiguousarray(dataset.labels).data)
    return digest.hexdigest()

"""The recipe ``auto``: looks at the pictures and at the machine, and chooses; says what and why.

What is chosen, and by what; each setting that is given stays as it is given, and the others follow it:

    start     the trained weights that are part of the package, ``starter``. Another model starts new.
    layers    all of them learn, or the new last one alone, which suits pictures of things that the start
              knows: both are tried on the pictures, of which some are left out, if they are not many and
              the run is no shorter than usual; that takes as long as 600 steps
    size      that of the pictures that the start has learnt from, 32 for the starter
    steps     at least 400, however few the pictures are, and at least eight epochs; fewer of more than
              fifty thousand pictures
    batch     16, or 32 of 2,000 pictures and more
    augment   random boxes, mirrored or not, in other light: a few pictures are seen in many ways
    classes   balanced where the largest has twice the pictures of the smallest
    the end   running statistics of batch norm measured anew, as few steps leave them behind the weights;
              of 100 validation pictures and more the weights of the best epoch are kept. Fewer say nothing,
              and are trained on
    device    the GPU if there is one

``python benchmarks/own_pictures.py`` measures what it comes to, beside what a user of PyTorch would do.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minires import models
from minires.data import Glance
from minires.errors import ConfigError, counted, whole
from minires.train import trial
from minires.train.config import Config
from minires.train.finetune import all_but, start_from
from minires.train.model_file import load_model
from minires.train.starters import STARTER, path_of

NAME = "auto"
STEPS, EPOCHS, MOST_STEPS, FEWEST_EPOCHS = 400, 8, 12_000, 3
MANY = 2000  # pictures, from which on a batch is 32
TRIED = 1000  # pictures, up to which it is tried which layers are to learn; more can teach all of them
ALL, LAST = "all layers", "the last layer alone"  # that learn: the ways that are tried
UNEVEN = 2.0  # the largest class to the smallest
MEANT = 100  # validation pictures, from which on the best epoch is more than luck
AUGMENT: list[Any] = [["crop", {"scale": [0.5, 1.0]}], "flip", ["jitter", {}]]


@dataclass(frozen=True)
class Choice:
    """The settings of a run, fields of :class:`~minires.train.config.Config`, three lines of why, and the
    pictures that were ``seen``, in the parts that the run makes of them."""

    settings: dict[str, Any]
    lines: tuple[str, str, str]
    seen: Glance


def ways(seen: Glance, given: Mapping[str, Any] | None = None) -> dict[str, dict[str, Any]]:
    """The settings that are to be tried on the pictures that were ``seen``, by :func:`trial.trial`, before
    :func:`choose`; none where the pictures are many or too few, where fewer than ``STEPS`` steps are asked
    for, where there is no new last layer on trained ones, or where what learns is ``given``.

    Raises: as :func:`choose`.

    >>> from minires.data import Glance
    >>> counts = {"train": (30, 29), "val": (8, 8), "test": (10, 9)}
    >>> pets = Glance("pets", ("cat", "dog"), counts, shorter=480)
    >>> list(ways(pets)), list(ways(pets, {"freeze": ["conv1"]}))
    (['all layers', 'the last layer alone'], [])
    """
    given = dict(given or {})
    settings, new = _settings(seen, given), []
    Config.from_dict(settings)  # what is given is checked before anything hangs on it
    counts = _used(seen, settings).counts["train"]
    if not _untried(settings, counts, given):
        model = models.build(settings["model"], classes=len(counts), **settings["variant"])
        new = start_from(model, settings["start_from"], classes=seen.classes)
    if not new:
        return {}
    # All but the last layer stay as they are, the statistics of their batch norms, too.
    alone = {
        "freeze": all_but(model, new), "optimizer": {"name": "adam", "lr": 1e-2}, "recalibrate": False
    }  # fmt: skip
    return {ALL: settings, LAST: {**settings, **alone, **given}}


def choose(
    seen: Glance, given: Mapping[str, Any] | None = None, tried: Mapping[str, int] | None = None
) -> Choice:
    """Choose the settings of a run on the pictures that were ``seen``; those that are ``given`` stay.

    ``tried`` is how many pictures each of the :func:`ways` got right; where nothing was tried, all layers
    learn. ``start_from=None``, given, starts new.

    Raises: CheckpointError if a model that is given to start from cannot be read; ConfigError for an unknown
    model, or a setting that does not fit.

    >>> from minires.data import Glance
    >>> counts = {"train": (30, 29), "val": (8, 8), "test": (10, 9)}
    >>> chosen = choose(Glance("pets", ("cat", "dog"), counts, shorter=480))
    >>> chosen.settings["start_from"], chosen.settings["size"], chosen.settings["epochs"]
    ('starter', 32, 100)
    >>> print("\\n".join(chosen.lines))
    75 training pictures of 2 classes, 37 to 38 of each, shorter side about 480 pixels: ...
    ...
    """
    given = dict(given or {})
    if tried is not None and tried.keys() != {ALL, LAST}:
        raise ConfigError(f"what was tried is {ALL!r} and {LAST!r}, the ways of auto.ways; not {[*tried]}")
    last = tried is not None and tried[LAST] > tried[ALL]
    settings = ways(seen, given)[LAST] if last else _settings(seen, given)
    config = Config.from_dict(settings)  # what is given is checked before it is spoken of
    used = _used(seen, settings)
    why = None if tried else _untried(settings, used.counts["train"], given)
    return Choice(settings, _lines(used, config, tried, why), used)


def _untried(settings: Mapping[str, Any], counts: Sequence[int], given: Mapping[str, Any]) -> str | None:
    """Why it is not tried which layers should learn, in words; None if it may be."""
    if "freeze" in given:
        return "as --freeze says"
    if not settings["start_from"]:
        return "as there is nothing to start from"
    if sum(counts) > TRIED:
        return f"which suits more than {TRIED:,} pictures"
    if min(counts) < trial.FOLDS:
        return f"as a class of fewer than {trial.FOLDS} pictures is too small to try the last one alone"
    if settings["epochs"] * _per_epoch(settings, sum(counts)) < STEPS:
        return f"as it takes {STEPS} steps or more to be worth trying the last one alone"
    return None


def _used(seen: Glance, settings: Mapping[str, Any]) -> Glance:
    """The parts that a run with these settings makes of the pictures."""
    used = seen.joined() if settings.get("train_on") == "train+val" else seen
    return used if settings.get("pictures") is None else used.some(settings["pictures"])


def _settings(seen: Glance, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with which all layers learn."""
    settings = {**_start(given), **given}
    validated = seen.total("val") >= MEANT or settings.get("patience") or settings.get("keep") == "best"
    settings.setdefault("train_on", "train" if validated else "train+val")
    counts = _used(seen, settings).counts["train"]
    train = sum(counts)
    batch = settings.setdefault("batch_size", min(32 if train >= MANY else 16, max(2, train)))
    whole("batch_size", batch)
    settings.setdefault("drop_last", train >= 2 * batch)
    per_epoch = _per_epoch(settings, train)
    wanted = max(STEPS / per_epoch, min(EPOCHS, max(FEWEST_EPOCHS, MOST_STEPS / per_epoch)))
    settings.setdefault("epochs", math.ceil(wanted))
    settings.setdefault("optimizer", {"name": "adam", "lr": 1e-3})
    settings.setdefault("schedule", {"name": "one-cycle", "peak": 0.25})
    settings.setdefault("augment", copy.deepcopy(AUGMENT))
    settings.setdefault("label_smoothing", 0.1)
    settings.setdefault("recalibrate", True)
    settings.setdefault("device", "auto")
    low, high = min(counts), max(counts)
    settings.setdefault("balance", "sampler" if high >= UNEVEN * max(low, 1) else "none")
    kept = settings["train_on"] == "train" and seen.total("val") >= MEANT
    settings.setdefault("keep", "best" if kept else "none")
    return settings


def _per_epoch(settings: Mapping[str, Any], pictures: int) -> int:
    batch: int = settings["batch_size"]
    return max(1, pictures // batch if settings["drop_last"] else -(-pictures // batch))


def _start(given: Mapping[str, Any]) -> dict[str, Any]:
    """Model, weights, size of the pictures, and what goes with them."""
    start = given.get("start_from", None if {"model", "variant"} & given.keys() else STARTER)
    if start is None:
        name = given.get("model", "resnet20_cifar")
        models.entry(name)
        return {"model": name, "variant": {}, "start_from": None}
    trained = load_model(path_of(start))
    return {
        "model": trained.name,
        "variant": trained.variant,
        "size": trained.size[0],
        "normalize": {"mean": list(trained.normalize.mean), "std": list(trained.normalize.std)},
        "start_from": start,
    }


def _lines(
    seen: Glance, config: Config, tried: Mapping[str, int] | None, why: str | None
) -> tuple[str, str, str]:
    counts = seen.counts["train"]
    low, high, train = min(counts), max(counts), sum(counts)
    each = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    start, size = config.start_from, config.size or models.entry(config.model).size
    shorter = f", shorter side about {counted(seen.shorter, 'pixel')}" if seen.shorter else ""
    first = (
        f"{counted(train, 'training picture')} of {counted(len(counts), 'class', 'classes')}, "
        f"{each} of each{shorter}: "
        f"{config.model}{f' from `{start}`' if start else ', from the beginning'}, at {size}x{size} "
        f"({'--model, --start-from, --size' if start else '--model, --size'} change that)"
    )
    steps = config.epochs * _per_epoch(config.to_dict(), train)
    learns = f"{'some' if config.freeze else 'all'} layers learn{f', {why}' if why else ''}"
    if tried:
        found = ", ".join(f"{name} {count}" for name, count in tried.items())
        learns = (
            f"{LAST if config.freeze else ALL} learning (of {train} pictures, each left out once, got right: "
            f"{found})"
        )
    second = (
        f"{counted(steps, 'step')} of {counted(min(config.batch_size, train), 'picture')}, "
        f"{counted(config.epochs, 'epoch')}: {learns} (--epochs, --batch-size, --lr, --freeze)"
    )
    names = [one if isinstance(one, str) else one[0] for one in config.augment]
    third = [f"each picture changed at random: {', '.join(names)}" if names else "pictures as they are"]
    if config.balance != "none":
        third.append(f"classes are balanced ({config.balance})")
    if config.recalibrate:
        third.append("running statistics are measured anew")
    if config.keep == "best":
        third.append("the weights of the best epoch are kept")
    if config.train_on == "train+val":
        third.append("validation pictures are trained on, too")
    statistics = "--no-recalibrate" if config.recalibrate else "--recalibrate"
    others = f"--set augment=[], --balance, {statistics}, --keep, --train-on"
    return first, second, f"{'; '.join(third)} ({others})"

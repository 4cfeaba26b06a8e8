"""The recipe ``auto``: looks at the pictures and at the machine, and chooses; says what and why.

What is chosen, and by what; each setting that is given stays as it is given, and the others follow it:

    start     the trained weights that are part of the package, ``starter``: some hundred pictures do not
              teach a network from the beginning what edges and textures are. Another model starts new.
    size      that of the pictures that the start has learnt from, 32 for the starter: at twice that size it
              sees other things than it has learnt, and a few pictures do not teach it to
    steps     at least 400, however few the pictures are, and at least eight epochs; fewer of more than
              fifty thousand pictures
    batch     16, or 32 of 2,000 pictures and more
    augment   random boxes, mirrored or not, in other light: a few pictures are seen in many ways
    classes   balanced where the largest has twice the pictures of the smallest
    the end   running statistics of batch norm measured anew, as few steps leave them behind the weights;
              of 50 validation pictures and more the weights of the best epoch are kept
    device    the GPU if there is one

``python benchmarks/own_pictures.py`` measures what it comes to, beside what a user of PyTorch would do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from minires import models
from minires.data import Glance
from minires.errors import counted, whole
from minires.train.config import Config
from minires.train.model_file import load_model
from minires.train.starters import STARTER, path_of

NAME = "auto"
STEPS, EPOCHS, MOST_STEPS, FEWEST_EPOCHS = 400, 8, 12_000, 3
MANY = 2000  # pictures, from which on a batch is 32
UNEVEN = 2.0  # the largest class to the smallest
MEANT = 50  # validation pictures, from which on the best epoch is more than luck
AUGMENT: list[Any] = [["crop", {"scale": [0.5, 1.0]}], "flip", ["jitter", {}]]


@dataclass(frozen=True)
class Choice:
    """The settings of a run, fields of :class:`~minires.train.config.Config`, and three lines of why."""

    settings: dict[str, Any]
    lines: tuple[str, str, str]


def choose(seen: Glance, given: Mapping[str, Any] | None = None) -> Choice:
    """Choose the settings of a run on the pictures that were ``seen``; those that are ``given`` stay.

    ``start_from=None``, given, starts new.

    Raises: CheckpointError if a model that is given to start from cannot be read; ConfigError for an unknown
    model.

    >>> from minires.data import Glance
    >>> counts = {"train": (30, 29), "val": (8, 8), "test": (10, 9)}
    >>> chosen = choose(Glance("pets", ("cat", "dog"), counts, shorter=480))
    >>> chosen.settings["start_from"], chosen.settings["size"], chosen.settings["epochs"]
    ('starter', 32, 134)
    >>> print("\\n".join(chosen.lines))
    59 training pictures of 2 classes, 29 to 30 of each: resnet20_cifar from `starter`, at 32x32 (...)
    ...
    """
    given, train = dict(given or {}), seen.total("train")
    settings = {**_start(given), **given}
    batch = settings.setdefault("batch_size", min(32 if train >= MANY else 16, max(2, train)))
    whole("batch_size", batch)
    settings.setdefault("drop_last", train >= 2 * batch)
    per_epoch = max(1, train // batch if settings["drop_last"] else -(-train // batch))
    wanted = max(STEPS / per_epoch, min(EPOCHS, max(FEWEST_EPOCHS, MOST_STEPS / per_epoch)))
    settings.setdefault("epochs", math.ceil(wanted))
    settings.setdefault("optimizer", {"name": "adam", "lr": 1e-3})
    settings.setdefault("schedule", {"name": "one-cycle", "peak": 0.25})
    settings.setdefault("augment", AUGMENT)
    settings.setdefault("label_smoothing", 0.1)
    settings.setdefault("recalibrate", True)
    settings.setdefault("device", "auto")
    low, high = min(seen.counts["train"]), max(seen.counts["train"])
    settings.setdefault("balance", "sampler" if high >= UNEVEN * max(low, 1) else "none")
    validated = settings.get("train_on", "train") == "train"
    settings.setdefault("keep", "best" if validated and seen.total("val") >= MEANT else "none")
    config = Config.from_dict(settings)  # what is given is checked before it is spoken of
    return Choice(settings, _lines(seen, config, steps=config.epochs * per_epoch))


def _start(given: Mapping[str, Any]) -> dict[str, Any]:
    """Model, weights, size of the pictures, and what goes with them."""
    start = given.get("start_from", None if {"model", "variant"} & given.keys() else STARTER)
    if start is None:
        name = given.get("model", "resnet20_cifar")
        models.entry(name)
        return {"model": name, "start_from": None}
    trained = load_model(path_of(start))
    return {
        "model": trained.name,
        "variant": trained.variant,
        "size": trained.size[0],
        "normalize": {"mean": list(trained.normalize.mean), "std": list(trained.normalize.std)},
        "start_from": start,
    }


def _lines(seen: Glance, config: Config, *, steps: int) -> tuple[str, str, str]:
    low, high = min(seen.counts["train"]), max(seen.counts["train"])
    each = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    start, size = config.start_from, config.size or models.entry(config.model).size
    pictures = counted(seen.total("train"), "training picture")
    classes = counted(len(seen.classes), "class", "classes")
    first = (
        f"{pictures} of {classes}, {each} of each: "
        f"{config.model}{f' from `{start}`' if start else ', from the beginning'}, at {size}x{size} "
        f"({'--model, --start-from, --size' if start else '--model, --size'} change that)"
    )
    second = (
        f"{counted(steps, 'step')} of {config.batch_size} pictures, {counted(config.epochs, 'epoch')}, as "
        "what counts is how often the weights are changed (--epochs, --batch-size, --lr)"
    )
    names = [one if isinstance(one, str) else one[0] for one in config.augment]
    third = [f"each picture changed at random: {', '.join(names)}" if names else "pictures as they are"]
    if config.balance != "none":
        third.append(f"classes are balanced ({config.balance})")
    if config.recalibrate:
        third.append("running statistics are measured anew")
    if config.keep == "best":
        third.append("the weights of the best epoch are kept")
    return first, second, f"{'; '.join(third)} (--set augment=[], --balance, --no-recalibrate, --keep)"

"""How much a lab does, and what it compares: scales, and the cases that they make."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from minires import models
from minires.errors import ConfigError, mapping
from minires.train import Config

MERGED = ("optimizer", "schedule", "variant")  # what a case names of these is changed, and the rest stays


def see_that_it_names_a_folder(what: str, name: str) -> None:
    """Raises: ConfigError, which begins with ``what``, for a name of other than letters, digits, - and _."""
    if not name.replace("-", "").replace("_", "").isalnum():
        raise ConfigError(f"{what} {name!r} names a folder; use letters, digits, - and _")


@dataclass(frozen=True)
class Scale:
    """How much is done: the pictures, their size, and for how long. ``settings`` are further ones of every
    training run, ``variant`` options of those networks that have them and are not told otherwise, ``extra``
    is what only the lab knows; ``about`` says how long it takes.

    >>> Scale("quick", pictures=10_000, size=16, epochs=8).but(epochs=4).epochs
    4
    """

    name: str
    data: str = "cifar10"
    pictures: int | None = None  # of the training part; None: all
    tests: int | None = None  # of the validation part, and of the test part, at most; None: all
    size: int | None = 32
    epochs: int = 1
    batch_size: int = 128
    recipe: str = "cifar"
    settings: Mapping[str, Any] = field(default_factory=dict)
    variant: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)  # what only this lab knows: numbers of blocks, ...
    about: str = ""

    def __post_init__(self) -> None:
        see_that_it_names_a_folder("the scale", self.name)

    def but(self, **changes: Any) -> Scale:
        """The same scale with some things changed."""
        return dataclasses.replace(self, **changes)

    def train(self, model: str, **changes: Any) -> Case:
        """A network to be trained at this scale. ``changes`` are fields of :class:`minires.train.Config`; of
        optimizer, schedule and variant those that are named are changed, and the others stay.

        >>> case = Scale("quick", epochs=2).train("resnet20_cifar", optimizer={"lr": 0.01})
        >>> case.settings["optimizer"]
        {'name': 'sgd', 'lr': 0.01, 'momentum': 0.9, 'weight_decay': 0.0001}
        """
        of_scale = {
            "data": self.data, "pictures": self.pictures, "size": self.size, "epochs": self.epochs,
            "batch_size": self.batch_size, "watch": False, "checkpoint_every": 0, **self.settings,
        }  # fmt: skip
        base = Config.settings_of(self.recipe, model=model, **of_scale)
        options = models.entry(model).options
        base["variant"] = base.get("variant", {}) | {
            name: value for name, value in self.variant.items() if name in options
        }
        for name, value in changes.items():
            before = base.get(name, {})
            if name in MERGED and mapping(name, value).get("name", before.get("name")) == before.get("name"):
                value = {**before, **value}
            base[name] = value
        return Case(Config.from_dict(base).to_dict(), tests=self.tests, extra=self.extra)

    def fresh(self, model: str | None = None, **settings: Any) -> Case:
        """Something to be measured without training; ``settings`` are for ``measure``, and JSON holds them.
        With a ``model`` (and a setting ``variant``) a network of that name is made from each seed."""
        of_scale = {"data": self.data, "size": self.size, "pictures": self.pictures}
        of_model = {} if model is None else {"model": model}
        return Case({**of_scale, **of_model, **settings}, trained=False, tests=self.tests, extra=self.extra)


@dataclass(frozen=True)
class Case:
    """One of the things that a lab compares: the settings of a run, whether it is trained, how many pictures
    of each other part are used at most, and what else the scale says. ``decides`` is what its settings do not
    say, and which decides on its result all the same: the content of pictures at a path, own definitions."""

    settings: Mapping[str, Any]
    trained: bool = True
    tests: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    decides: str = ""


# He et al. 2015 train on CIFAR-10 with batches of 128 and a rate of 0.1. With half as many pictures in a
# batch there are twice the steps, each at half the rate (Goyal et al. 2017, arXiv:1706.02677).
QUICK = Scale(
    "quick", pictures=5_000, tests=2_000, size=16, epochs=12, batch_size=64,
    settings={"optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 1e-4}},
)  # fmt: skip

"""A lab: one claim of a paper, what is run to see whether it holds, the figure, and the rule of the verdict.

    class Depth(Lab):
        number, name, title = "P1", "degradation", "Deeper plain networks are worse"
        claim, source = "...", "..."
        expects = [Expect("...", of=("plain-56", "train_error"), minus=("plain-20", "train_error"), above=0)]

        def cases(self, scale):
            return {"plain-20": scale.train("plain20_cifar"), "plain-56": scale.train("plain56_cifar")}

        def measure(self, run):
            return run.errors()

        def figure(self, numbers, figure):
            draw.curves(figure.subplots(), numbers, "train_errors")

A file with such a class is run by ``minires lab my_lab.py``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from minires.errors import ConfigError, mapping
from minires.lab.expect import Expect

if TYPE_CHECKING:
    from minires.lab.run import Run

CHANGES = {"optimizer": dict, "schedule": dict, "variant": dict}


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
        from minires import models
        from minires.train import Config

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
            other = isinstance(value, Mapping) and value.get("name", base.get(name, {}).get("name"))
            same = name in CHANGES and (other == base.get(name, {}).get("name") or name == "variant")
            base[name] = {**base.get(name, {}), **mapping(name, value)} if same else value
        return Case(Config.from_dict(base).to_dict(), tests=self.tests, extra=self.extra)

    def fresh(self, **settings: Any) -> Case:
        """Something to be measured without training; ``settings`` are for ``measure``, and JSON holds them.
        With ``model`` (and ``variant``) among them a network of that name is made from each seed."""
        of_scale = {"data": self.data, "size": self.size, "pictures": self.pictures}
        return Case({**of_scale, **settings}, trained=False, tests=self.tests, extra=self.extra)


@dataclass(frozen=True)
class Case:
    """One of the things that a lab compares: the settings of a run, whether it is trained, how many pictures
    of each other part are used at most, and what else the scale says."""

    settings: Mapping[str, Any]
    trained: bool = True
    tests: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


class Numbers(dict[str, list[dict[str, Any]]]):
    """What was measured: by case a dict for each seed.

    >>> seeds = [{"error": 9.0, "errors": [12.0, 9.0]}, {"error": 8.0, "errors": [11.0, 8.0]}]
    >>> numbers = Numbers(plain=seeds)
    >>> numbers.all("plain", "error").tolist(), numbers.all("plain", "errors").shape
    ([9.0, 8.0], (2, 2))
    """

    def all(self, case: str, what: str) -> NDArray[np.float64]:
        """What was measured under a name, seed by seed: lists become axes; seeds without it are left out.

        Shapes: (seeds, ...), cut to the shortest list where they differ in length.
        """
        found = [one[what] for one in self[case] if one.get(what) is not None]
        if found and isinstance(found[0], list):
            shortest = min(map(len, found))
            found = [one[:shortest] for one in found]
        return np.array(found, dtype=float)

    def mean(self, case: str, what: str) -> Any:
        """The mean over the seeds, NaN where there are none."""
        found = self.all(case, what)
        return found.mean(axis=0) if len(found) else np.nan


class Lab:
    """The base of all labs; see the head of this file.

    ``number`` is P1 to P16 for those that come with minires, and may be left out. ``quick``, ``hour`` and
    ``full`` are its scales: minutes, about an hour for each seed on two cores, and the paper's own setting.
    ``why`` says what stands in the place of the paper's experiment and why. ``expects`` is what the claim
    says, and decides on the verdict; ``further`` are questions besides, judged by the same rule, which
    explain or take apart what was found. ``seeds`` are as many starts as it asks for.
    """

    number: ClassVar[str] = ""
    name: ClassVar[str] = ""
    title: ClassVar[str] = ""
    claim: ClassVar[str] = ""
    source: ClassVar[str] = ""
    why: ClassVar[str] = ""
    expects: ClassVar[Sequence[Expect]] = ()
    further: ClassVar[Sequence[Expect]] = ()
    seeds: ClassVar[int] = 3
    quick: ClassVar[Scale] = Scale("quick", pictures=5_000, tests=2_000, size=16, epochs=10, batch_size=64)
    hour: ClassVar[Scale] = Scale("hour", size=16, epochs=20)
    full: ClassVar[Scale] = Scale("full", epochs=182)

    def cases(self, scale: Scale) -> Mapping[str, Case]:
        """What is compared, by name."""
        raise NotImplementedError(f"{type(self).__name__} does not define cases()")

    def measure(self, run: Run) -> Mapping[str, Any]:
        """What is measured of one run: numbers, and lists of numbers, by name."""
        return run.errors()

    def figure(self, numbers: Numbers, figure: Any) -> None:
        """Draw what was measured into a figure of matplotlib."""
        raise NotImplementedError(f"{type(self).__name__} does not define figure()")

    def scale(self, name: str) -> Scale:
        """The scale of this name. Raises: ConfigError if there is none."""
        for one in (self.quick, self.hour, self.full):
            if one.name == name:
                return one
        raise ConfigError(f"the scale is quick, hour or full, not {name!r}")


def checked(lab: Lab) -> Lab:
    """See that a lab says what it must. Raises: ConfigError that names what is missing."""
    where = f"the lab {type(lab).__name__}"
    missing = [one for one in ("name", "title", "claim", "source", "expects") if not getattr(lab, one)]
    if missing:
        raise ConfigError(f"{where} does not say its {', '.join(missing)}")
    if not lab.name.replace("-", "").replace("_", "").isalnum():
        raise ConfigError(f"{where}: its name {lab.name!r} names a folder; use letters, digits, - and _")
    if not all(isinstance(one, Expect) for one in (*lab.expects, *lab.further)):
        raise ConfigError(f"{where}: expects is a list of minires.lab.Expect")
    return lab

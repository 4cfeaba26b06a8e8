"""The configuration of a run: everything that decides its result, in one object that JSON can hold."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minires import data, optim
from minires.backend.cublas import PRECISIONS
from minires.errors import ConfigError, UnknownName, mapping, plain, unknown
from minires.nn.module import Parameter
from minires.train.balance import WAYS
from minires.train.recipes import get
from minires.train.schedules import Schedule

BATCH_NORMS = ("local", "sync")
KEEP = ("none", "best", "last", "all")


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to train, on what, and how; ``config.json`` of a run folder is one of these.

    ``Config.of("two-epoch", seed=3)`` is a recipe with changes. The names of a model, data set, optimiser,
    schedule or augmentation may be ones of your own: see the function ``register`` of ``minires.models``,
    ``minires.data``, ``minires.optim``, ``minires.train.schedules`` and ``minires.data.augment``.

    Raises: ConfigError for an unknown field or recipe (with the nearest name) or a value that does not fit.

    >>> config = Config.of("two-epoch", seed=3)
    >>> config.epochs, config.batch_size, config.optimizer
    (2, 8, {'name': 'adam', 'lr': 0.001})
    >>> Config.of("two-epochs")
    Traceback (most recent call last):
    ...
    minires.errors.UnknownName: unknown recipe 'two-epochs'. Did you mean 'two-epoch'? Known: default, ...
    """

    model: str = "resnet50_signs"  # a name that minires.models.build knows
    variant: dict[str, Any] = field(default_factory=dict)  # its options
    data: str = "signs"  # a name that minires.data.load knows, or a path
    size: int | None = None  # resize the pictures to squares of this many pixels
    stream: bool | None = None  # decode pictures while they are needed; None: those that are too many to keep
    draft: bool = False  # of a stream: read JPEGs at a fraction of their size where that is enough
    cache: str | None = None  # of a stream: "pixels" keeps the resized pictures in a file for later runs
    train_on: str = "train"  # or "train+val": then nothing is validated
    # Learn from so many of them, the same ones for every seed, of each class its share; None: from all.
    pictures: int | None = None
    recipe: str = "default"  # what Config.of made this from; the name alone changes nothing
    epochs: int = 20
    batch_size: int = 32
    drop_last: bool = False  # leave out the last batch of an epoch if it is smaller
    accumulate: int = 1  # a batch goes through the model in so many parts; batch norm sees each by itself
    optimizer: dict[str, Any] = field(default_factory=lambda: {"name": "adam", "lr": 1e-3})
    schedule: dict[str, Any] = field(default_factory=lambda: {"name": "constant"})
    augment: list[Any] = field(default_factory=list)  # see minires.data.augment
    normalize: str | dict[str, Any] = "data"  # "data": measured; "none": only / 255; or {"mean", "std"}
    label_smoothing: float = 0.0
    balance: str = "none"  # "weights": rare classes count more; "sampler": each class is drawn as often
    ema: float = 0.0  # decay of the weights' running average, which is what is kept; 0: none
    recalibrate: bool = False  # measure batch norm's running statistics anew for validation and at the end
    patience: int | None = None  # stop after so many epochs in which validation did not get better
    seed: int = 0
    device: str = "cpu"  # or "cuda", "cuda:1", "auto"
    precision: str = "fp32"  # or "tf32", products on a GPU; or "bf16", activations while training
    start_from: str | None = None  # a trained model, whose weights are the start
    freeze: list[Any] = field(default_factory=list)  # parts that stay as they are: see minires.train.freeze
    # In a run of several processes: batch norm sees the pictures of each by themselves ("local"), or those of
    # all together ("sync"), so that the run is the same on any number of processes.
    batch_norm: str = "local"
    plan: bool = True  # on the CPU, long runs step by a plan where one can be made: see minires.compile
    watch: bool = True  # write what `minires watch` shows: see minires.train.watched
    checkpoint_every: int = 200  # steps between checkpoints within an epoch; 0: at the end of epochs only
    # Checkpoints that stay when the run is finished: "none", "last" (two), "all"; or "best": none, and the
    # model is that of the epoch with the best validation, not of the last.
    keep: str = "none"

    def __post_init__(self) -> None:
        kinds = {
            "int": int,
            "str": str,
            "bool": bool,
            "bool | None": bool | None,
            "float": int | float,
            "int | None": int | None,
            "str | None": str | None,
            "dict[str, Any]": dict,
            "list[Any]": list,
            "str | dict[str, Any]": str | dict,
        }
        for one in dataclasses.fields(self):
            value = plain(getattr(self, one.name))
            value = bool(value) if isinstance(value, np.bool_) else value
            object.__setattr__(self, one.name, value)
            # Python counts truths among the whole numbers.
            wrong = isinstance(value, bool) and not str(one.type).startswith("bool")
            if wrong or not isinstance(value, kinds[str(one.type)]):
                raise ConfigError(f"{one.name} is {value!r}; it must be of type {one.type}")
            if isinstance(value, dict):
                mapping(one.name, value)
        for name, low, high in (
            ("epochs", 1, None),
            ("batch_size", 1, None),
            ("accumulate", 1, None),
            ("patience", 1, None),
            ("size", 1, None),
            ("pictures", 1, None),
            ("seed", 0, 2**64),
            ("checkpoint_every", 0, None),
            ("label_smoothing", 0, 1),
            ("ema", 0, 1),
        ):
            value = getattr(self, name)
            if value is None:
                continue
            if not value >= low or (high is not None and not value < high):
                below = "" if high is None else f" and below {high}"
                raise ConfigError(f"{name} is {value}; it must be at least {low}{below}")
        for name, way in (
            ("name", "give the setting model"),
            ("classes", "it follows from the pictures"),
            ("seed", "give the setting seed"),
        ):
            if name in self.variant:
                raise ConfigError(f"variant cannot set {name}: {way}")
        if self.train_on not in ("train", "train+val"):
            raise ConfigError(unknown("value of train_on", self.train_on, ["train", "train+val"]))
        if self.batch_norm not in BATCH_NORMS:
            raise ConfigError(unknown("value of batch_norm", self.batch_norm, BATCH_NORMS))
        if self.keep not in KEEP:
            raise ConfigError(unknown("value of keep", self.keep, KEEP))
        data.Opener(stream=self.stream, draft=self.draft, cache=self.cache)
        if self.balance not in WAYS:
            raise ConfigError(unknown("value of balance", self.balance, WAYS))
        if self.accumulate > self.batch_size:
            raise ConfigError(
                f"accumulate is {self.accumulate}; it must be at most batch_size={self.batch_size}, as each "
                "part of a batch has a picture"
            )
        for name, wanted in (("patience", self.patience is not None), ("keep", self.keep == "best")):
            if wanted and self.train_on != "train":
                raise ConfigError(
                    f"{name} is {getattr(self, name)!r}, and asks for validation, but with train_on="
                    f"{self.train_on!r} nothing is validated; leave it out, or use train_on='train'"
                )
        if self.precision not in PRECISIONS:
            raise ConfigError(unknown("precision", self.precision, PRECISIONS))
        for part in self.freeze:
            if not isinstance(part, str):
                raise ConfigError(f"freeze is a list of paths of modules, as text; {part!r} is none")
        if isinstance(self.normalize, str) and self.normalize not in ("data", "none"):
            raise ConfigError(unknown("value of normalize", self.normalize, ["data", "none", "{mean, std}"]))
        if isinstance(self.normalize, dict):
            if self.normalize.keys() != {"mean", "std"}:
                given = ", ".join(self.normalize) or "nothing"
                raise ConfigError(f"normalize must have mean and std, not {given}")
            data.Normalize(**self.normalize)
        # What does not fit is refused here, and not when the run begins; but a name may still be registered.
        with suppress(UnknownName):
            optim.build(self.optimizer, [Parameter(np.zeros(1, np.float32))])
        with suppress(UnknownName):
            Schedule(self.schedule, lr=1.0, total_steps=1)
        with suppress(UnknownName):
            data.build(self.augment)
        self.to_dict()

    @classmethod
    def of(cls, recipe: str = "default", **changes: Any) -> Config:
        """Give the configuration of a recipe, with changes.

        The recipe's ``variant`` is one of its own model: with another model it falls away.
        """
        return cls.from_dict(cls.settings_of(recipe, **changes))

    @classmethod
    def settings_of(cls, recipe: str = "default", **changes: Any) -> dict[str, Any]:
        """Give what :meth:`of` makes a configuration of: a recipe's settings and the changes, unchecked."""
        settings = {"model": cls.model, **get(recipe)}
        if changes.get("model", settings["model"]) != settings["model"]:
            settings.pop("variant", None)
        return {**settings, "recipe": recipe, **changes}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Config:
        """Make a configuration from what JSON held; a field that is left out has its default."""
        known = [one.name for one in dataclasses.fields(cls)]
        for key in mapping("a configuration", content):
            if key not in known:
                raise ConfigError(unknown("setting", key, known))
        try:
            return cls(**copy.deepcopy(dict(content)))
        except RecursionError as error:
            raise ConfigError("a configuration's lists or dicts are nested too deeply") from error

    def to_dict(self) -> dict[str, Any]:
        """Give all fields, defaults included, as they come back from JSON (tuples as lists).

        Raises: ConfigError if JSON cannot hold one.
        """
        try:
            content: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self), allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"the configuration cannot be written as JSON: {error}") from error
        return content

"""Recipes: named settings of a run, as dicts that JSON can hold; their fields are those of ``Config``.

One more, ``auto``, looks at the pictures and chooses: see :mod:`minires.train.auto`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from minires.registry import Registry

# Each block starts near its shortcut, and running statistics follow the weights closely.
SIGNS_START = {"initializer": "he_normal", "last_gamma": 0.25, "bn_momentum": 0.9}

RECIPES: Registry[Mapping[str, Any]] = Registry("recipe", {
    # Six minutes on two cores, with a validation curve.
    "default": {
        "variant": SIGNS_START,
        "epochs": 20,
        "batch_size": 16,
        "drop_last": True,
        "optimizer": {"name": "adam", "lr": 1e-3},
        "schedule": {"name": "linear", "warmup": 0.2},
        "augment": [["shift", {"pixels": 4}]],
        "normalize": "data",
        "label_smoothing": 0.1,
    },
    # As far as two epochs from scratch can get on SIGNS.
    "two-epoch": {
        "variant": SIGNS_START,
        "epochs": 2,
        "batch_size": 8,
        "drop_last": True,
        "optimizer": {"name": "adam", "lr": 1e-3},
        "schedule": {"name": "linear", "warmup": 0.25},
        "normalize": "data",
        "label_smoothing": 0.1,
        "train_on": "train+val",
    },
    # What the original tutorial does: Keras's Adam with its defaults, pictures / 255.
    "blog": {
        "epochs": 2,
        "batch_size": 32,
        "optimizer": {"name": "adam", "lr": 1e-3, "convention": "keras"},
        "schedule": {"name": "constant"},
        "normalize": "none",
        "train_on": "train+val",
    },
    # He et al. arXiv:1512.03385, section 4.2: 64,000 steps of 128 pictures, the rate divided by ten at
    # 32,000 and 48,000; pad 4, crop and flip. 45,000 pictures (their train/val split) make 182 epochs.
    "cifar": {
        "data": "cifar10",
        "model": "resnet20_cifar",
        "epochs": 182,
        "batch_size": 128,
        "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4},
        "schedule": {"name": "step", "at": [0.5, 0.75], "factor": 0.1},
        "augment": [["shift", {"pixels": 4, "mode": "constant"}], "flip"],
        "normalize": "data",
    },
    # The same paper, section 3.4: the shorter side scaled to 256 to 480, crops of 224, flip, AlexNet's
    # colour; 600,000 steps of 256 pictures, 120 epochs of ImageNet; the rate divided by ten when the error
    # gets no better. A batch goes through in 8 parts of 32, as it went over 8 GPUs.
    "imagenet": {
        "model": "resnet50",
        "size": 224,
        "epochs": 120,
        "batch_size": 256,
        "accumulate": 8,
        "drop_last": True,
        "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4},
        "schedule": {"name": "plateau", "factor": 0.1, "patience": 5},
        "augment": [["scale_crop", {"shorter": [256, 480]}], "flip", "pca_colour"],
        "normalize": "data",
    },
})  # fmt: skip


def names() -> tuple[str, ...]:
    """The names of the recipes.

    >>> names()
    ('default', 'two-epoch', 'blog', 'cifar', 'imagenet')
    """
    return tuple(RECIPES)


def get(name: str) -> dict[str, Any]:
    """Give a copy of a recipe. Raises: ConfigError for an unknown name, with the nearest one.

    >>> get("cifar")["optimizer"]
    {'name': 'sgd', 'lr': 0.1, 'momentum': 0.9, 'weight_decay': 0.0001}
    """
    return copy.deepcopy(dict(RECIPES.find(name)))


def register(name: str, settings: Mapping[str, Any]) -> None:
    """Give settings of your own a name; they are fields of :class:`~minires.train.config.Config`.

    Raises: ConfigError if the name is another recipe's.

    >>> from minires.train import Config, recipes
    >>> recipes.register("short", {**recipes.get("cifar"), "epochs": 10})
    >>> config = Config.of("short", seed=3)
    >>> config.model, config.epochs, config.seed
    ('resnet20_cifar', 10, 3)
    """
    RECIPES.add(name, settings)

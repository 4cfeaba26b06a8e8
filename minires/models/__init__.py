"""The models by name: ``build("resnet50_signs", classes=6, seed=0)``.

A model of your own gets a name with :func:`register`, and is then built, trained, summed up and drawn by it.
"""

from __future__ import annotations

import fnmatch
import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np

from minires.errors import ConfigError, MiniresError, as_seed, unknown, whole
from minires.models import bn_inception, densenet, resnet, resnet_signs, resnet_v2, resnext, senet, vgg
from minires.models.registry import Entry, Paper
from minires.nn.init import drawing_from
from minires.nn.module import Module
from minires.registry import Registry

__all__ = ["MODELS", "Entry", "Paper", "build", "entry", "names", "option", "register"]

MODELS: Registry[Entry] = Registry("model", {
    **vgg.MODELS, **resnet_signs.MODELS, **resnet.MODELS, **resnet_v2.MODELS, **resnext.MODELS,
    **densenet.MODELS, **bn_inception.MODELS, **senet.MODELS,
}, listed="`minires models`")  # fmt: skip

Make = TypeVar("Make", bound=Callable[..., Module])


def names(pattern: str = "*") -> list[str]:
    """The names that ``build`` knows; those that have ``pattern`` in them, or fit it where it has a ``*``.

    >>> names("resnet50_*")
    ['resnet50_signs', 'resnet50_keras']
    >>> names("inception")
    ['bn_inception', 'se_bn_inception']
    """
    glob = pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*"
    return [name for name in MODELS if fnmatch.fnmatchcase(name, glob)]


def entry(name: str) -> Entry:
    """What the registry knows of a model. Raises: ConfigError with the nearest name if it is unknown.

    >>> print(entry("resnet18").title, entry("resnet18").paper, sep="; ")
    ResNet of 18 layers; He et al. 2015, arXiv:1512.03385
    """
    return MODELS.find(name)


def register(
    name: str,
    *,
    size: int = 224,
    classes: int = 1000,
    preset: Mapping[str, Any] | None = None,
    title: str = "",
    paper: Paper | None = None,
) -> Callable[[Make], Make]:
    """Give a model of your own a name: above a class or function, or called with one.

    It is called with the keyword ``classes`` and with the options of ``preset`` and of the user; its keywords
    are the options that :func:`build` knows. ``size`` is the side of the pictures it is made for. With a
    keyword ``size`` it is fitted to others; with a keyword ``rng`` it gets the random generator, from which
    its layers draw in any case.

    Raises: ConfigError if the name is another model's, or ``classes`` is not taken.

    >>> from minires import models, nn
    >>> @models.register("my_net", size=32, classes=10, title="one convolution")
    ... class MyNet(nn.Module):
    ...     def __init__(self, *, classes, width=8):
    ...         super().__init__()
    ...         self.conv = nn.Conv2d(3, width, 3, stride=2)
    ...         self.pool = nn.GlobalAvgPool2d()
    ...         self.fc = nn.Linear(width, classes)
    ...     def forward(self, x):
    ...         return self.fc(self.pool(self.conv(x)))
    >>> models.build("my_net", classes=3, width=4).fc.weight.shape
    (4, 3)
    >>> models.build("my_nte")
    Traceback (most recent call last):
    ...
    minires.errors.UnknownName: unknown model 'my_nte'; the nearest is my_net
    """

    MODELS.name_given(name)

    def add(make: Make) -> Make:
        taken = inspect.signature(make).parameters
        if "classes" not in taken and not any(one.kind is one.VAR_KEYWORD for one in taken.values()):
            raise ConfigError(f"the model {name} does not take the keyword classes, how many outputs it has")
        MODELS.add(name, Entry(make, size, classes, dict(preset or {}), title, paper), maker=make)
        return make

    return add


def option(text: str) -> tuple[str, Any]:
    """Read an option of a model, ``"shortcut=A"``; its value is JSON, or else a word.

    Raises: ConfigError if the text is not NAME=VALUE.

    >>> option("shortcut=A"), option("repeats=[1, 1, 1, 1]")
    (('shortcut', 'A'), ('repeats', [1, 1, 1, 1]))
    """
    name, equals, value = text.partition("=")
    if not name or not equals or name == "name":
        raise ConfigError(f"{text!r} is no option of a model; write NAME=VALUE, for example shortcut=A")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def build(name: str, *, classes: int | None = None, seed: int = 0, **variant: Any) -> Module:
    """A new model with weights drawn from ``seed``; ``variant`` are the options of that model.

    Shapes: pictures (N, H, W, 3), mostly of the side ``entry(name).size`` -> logits (N, classes).
    Raises: ConfigError if the name or an option is unknown (with the nearest one), an option's value makes no
    sense, or classes is below 1.

    >>> model = build("resnet20_cifar", classes=100, shortcut="B")
    >>> model.fc.weight.shape
    (64, 100)
    """
    if isinstance(name, type) and issubclass(name, Module):
        raise ConfigError(
            "build takes the name of a registered model as text; make one of your own with "
            f"{name.__name__}(...), "
            "or give it a name with minires.models.register"
        )
    found = entry(name)
    classes = whole(f"{name}: classes", found.classes if classes is None else classes)
    for option in variant:
        if option not in found.options:
            known = ["classes", "seed", *sorted(found.options - {"seed"})]
            raise ConfigError(unknown(f"option of {name}", option, known))
    options, rng = {**found.preset, **variant}, np.random.default_rng(as_seed(seed))
    if found.takes_rng:
        options["rng"] = rng
    try:
        with drawing_from(rng):
            model = found.make(classes=classes, **options)
    except MiniresError:
        raise
    except (TypeError, ValueError, ArithmeticError, AttributeError) as error:
        if not variant:
            raise  # our own mistake, no option was given
        given = ", ".join(f"{option}={value!r}" for option, value in variant.items())
        raise ConfigError(f"{name} cannot be built with {given}: {error}") from error
    if not isinstance(model, Module):
        raise ConfigError(f"the model {name} must be a Module, but what builds it gave {model!r:.80}")
    return model

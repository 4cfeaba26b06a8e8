"""The models by name: ``build("resnet50_signs", classes=6, seed=0)``."""

from __future__ import annotations

import difflib
import json
from typing import Any

import numpy as np

from minires.errors import ConfigError, MiniresError
from minires.models import bn_inception, densenet, resnet, resnet_signs, resnet_v2, resnext, senet, vgg
from minires.models.registry import Entry
from minires.nn.module import Module

_MODELS: dict[str, Entry] = {
    **vgg.MODELS, **resnet_signs.MODELS, **resnet.MODELS, **resnet_v2.MODELS, **resnext.MODELS,
    **densenet.MODELS, **bn_inception.MODELS, **senet.MODELS,
}  # fmt: skip


def names() -> list[str]:
    """The names that ``build`` knows."""
    return list(_MODELS)


def entry(name: str) -> Entry:
    """What the registry knows of a model. Raises: ConfigError with the nearest name if it is unknown."""
    if name not in _MODELS:
        near = difflib.get_close_matches(name, _MODELS, 1, 0)
        raise ConfigError(f"unknown model {name!r}; did you mean {near[0]!r}? Known: {', '.join(_MODELS)}")
    return _MODELS[name]


def option(text: str) -> tuple[str, Any]:
    """Read an option of a model, ``"shortcut=A"``; its value is JSON, or else a word.

    Raises: ConfigError if the text is not NAME=VALUE.
    """
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise ConfigError(f"{text!r} is no option of a model; write NAME=VALUE, for example shortcut=A")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def build(name: str, *, classes: int | None = None, seed: int = 0, **variant: Any) -> Module:
    """A new model with weights drawn from ``seed``; ``variant`` are the options of that model.

    Raises: ConfigError if the name or an option is unknown (with the nearest one), an option's value makes no
    sense, or classes is below 1.
    """
    found = entry(name)
    classes = found.classes if classes is None else classes
    if classes < 1:
        raise ConfigError(f"{name}: classes must be at least 1, not {classes}")
    for option in variant:
        if option not in found.options:
            near = difflib.get_close_matches(option, sorted(found.options), 1, 0)
            raise ConfigError(
                f"{name} has no option {option!r}; did you mean {near[0]!r}? "
                f"It has {', '.join(sorted(found.options))}"
            )
    options = {**found.preset, **variant}
    try:
        model = found.make(classes=classes, rng=np.random.default_rng(seed), **options)
    except MiniresError:
        raise
    except (TypeError, ValueError, ArithmeticError, AttributeError) as error:
        if not variant:
            raise  # our own mistake, no option was given
        given = ", ".join(f"{option}={value!r}" for option, value in variant.items())
        raise ConfigError(f"{name} cannot be built with {given}: {error}") from error
    return model.name_modules()

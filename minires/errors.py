"""The errors minires raises on purpose: each says what was wrong, where, and what to do."""

from __future__ import annotations

import difflib
import numbers
import operator
import re
from collections.abc import Collection, Iterable
from typing import Any


class MiniresError(ValueError):
    """Base of every error that a user can cause and mend.

    ``where`` is the path of the layer in which it happened; a module fills it in when the error
    passes through, so an operation need not know who called it.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message
        self.where: str | None = None

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message


class ShapeError(MiniresError):
    """An array has the wrong rank, shape or dtype for an operation."""


class DataError(MiniresError):
    """A data set or a picture cannot be read or used."""


class CheckpointError(MiniresError):
    """A weight file or checkpoint is damaged or belongs to another model."""


class ConfigError(MiniresError):
    """A name or an option is unknown or does not fit."""


class UnknownName(ConfigError):
    """Nothing is registered under a name."""


def one_of(option: str, value: object, allowed: Collection[object]) -> None:
    """Raise ConfigError unless ``value`` is one of those that ``option`` may have."""
    if value not in allowed:
        raise ConfigError(f"{option} must be one of {', '.join(map(repr, allowed))}, not {value!r}")


def unknown(kind: str, name: object, known: Iterable[str]) -> str:
    """Say that ``name`` is not a known ``kind``, which one is nearest, and which there are.

    >>> unknown("optimiser", "adm", ["sgd", "adam"])
    "unknown optimiser 'adm'. Did you mean 'adam'? Known: sgd, adam"
    >>> unknown("module", "conv", [])
    "unknown module 'conv'. Known: there are none"
    """
    names = list(known)
    near = _closest(name, names, count=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {name!r}.{hint} Known: {', '.join(names) or 'there are none'}"


def nearest(name: object, known: Iterable[str], *, count: int = 3) -> str:
    """Say which of the known names are nearest, for a message that ends in it; for lists too long to show.

    >>> nearest("res2a", ["res3b", "conv1", "res2b", "res3a"], count=2)
    'the nearest are res3a, res2b'
    >>> nearest("resnet20", ["resnet200", "resnet20_cifar"], count=1)
    'the nearest is resnet20_cifar'
    >>> nearest("res2a", [])
    'there are none at all'
    """
    near = _closest(name, sorted(known), count=count, cutoff=0)
    if not near:
        return "there are none at all"
    return f"the nearest {'is' if len(near) == 1 else 'are'} {', '.join(near)}"


def _closest(name: object, known: list[str], *, count: int, cutoff: float) -> list[str]:
    """The known names nearest to ``name``: those that go on where it ends at a sign (resnet20_cifar for
    resnet20), then those that end it (classes for num_classes), then by letters."""
    given = str(name)
    begin = [one for one in known if re.match(rf"{re.escape(given)}[_.-]", one)] if given else []
    near = difflib.get_close_matches(given, known, n=count, cutoff=cutoff)
    ends = [one for one in known if one and given.endswith(f"_{one}")]
    return list(dict.fromkeys([*begin, *ends, *near]))[:count]


def as_whole(value: Any) -> int | None:
    """``value`` as an int if it is a whole number, of Python or of NumPy; None if it is none, or a bool."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)  # refuses floats, and the bools of NumPy
    except TypeError:
        return None


def as_number(value: Any) -> float | None:
    """``value`` as a float if it is a real number, of Python or of NumPy; None if it is none, or a bool."""
    return float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else None


def plain(value: Any) -> Any:
    """``value`` with Python's own numbers in the place of NumPy's, in tuples, lists and dicts, too.

    >>> import numpy as np
    >>> plain((np.int64(2), [np.float32(0.5), True, "same"]))
    (2, [0.5, True, 'same'])
    """
    if isinstance(value, tuple | list):
        return type(value)(plain(one) for one in value)
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    for number in (as_whole(value), as_number(value)):
        if number is not None:
            return number
    return value


def whole(what: str, value: Any, *, least: int = 1) -> int:
    """A whole number of at least ``least``, of Python or of NumPy, as an int. Raises: ConfigError.

    >>> whole("channels", 0)
    Traceback (most recent call last):
    ...
    minires.errors.ConfigError: channels must be a whole number of at least 1, not 0
    """
    number = as_whole(value)
    if number is None or number < least:
        raise ConfigError(f"{what} must be a whole number of at least {least}, not {value!r}")
    return number

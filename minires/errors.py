"""The errors minires raises on purpose: each says what was wrong, where, and what to do."""

from __future__ import annotations

import difflib
import math
import numbers
import operator
import re
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

# What a terminal obeys instead of showing it: control characters, and marks that turn the direction of text.
# And what it cannot show: bytes of a file name that are no UTF-8, which are surrogates in Python.
_OBEYED = {*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x2028, 0x2029}
_OBEYED |= {*range(0xD800, 0xE000)}
_SHOWN = {code: f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" for code in _OBEYED - {*b"\n\t"}}


def harmless(text: str) -> str:
    """``text`` with what a terminal would obey, or cannot show, as an escape; new lines and tabs stay.

    >>> harmless("a\\x1b[2Jb")
    'a\\\\x1b[2Jb'
    """
    return text.translate(_SHOWN)


class MiniresError(ValueError):
    """Base of every error that a user can cause and mend.

    ``where`` is the path of the layer in which it happened; a module fills it in when the error
    passes through, so an operation need not know who called it.
    """

    def __init__(self, message: str) -> None:
        message = harmless(message)  # names of files and layers come from anywhere
        super().__init__(message)
        self.message = message
        self.where: str | None = None

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message


class ShapeError(MiniresError):
    """An array has the wrong rank, shape or dtype for an operation."""


class DataError(MiniresError):
    """A data set or a picture cannot be read or used."""


class Unreadable(DataError):
    """Pictures of a stream cannot be read; ``names`` says which."""

    def __init__(self, message: str, names: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.names = tuple(names)


class CheckpointError(MiniresError):
    """A weight file or checkpoint is damaged or belongs to another model."""


class ConfigError(MiniresError):
    """A name or an option is unknown or does not fit."""


class UnknownName(ConfigError):
    """Nothing is registered under a name."""


def counted(number: int, singular: str, plural: str = "") -> str:
    """A number with its noun.

    >>> counted(1, "picture"), counted(1200, "picture"), counted(2, "class", "classes")
    ('1 picture', '1,200 pictures', '2 classes')
    """
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def one_of(option: str, value: object, allowed: Collection[object]) -> None:
    """Raise ConfigError unless ``value`` is one of those that ``option`` may have."""
    if not isinstance(value, Hashable) or value not in allowed:  # == of an array is no truth value
        raise ConfigError(f"{option} must be one of {', '.join(map(repr, allowed))}, not {value!r}")


SHOWN = 20  # names in a message


def unknown(kind: str, name: object, known: Iterable[str]) -> str:
    """Say that ``name`` is not a known ``kind``, which one is near it, if one is, and which there are.

    >>> unknown("optimiser", "adm", ["sgd", "adam"])
    "unknown optimiser 'adm'. Did you mean 'adam'? Known: sgd, adam"
    >>> unknown("module", "conv", [])
    "unknown module 'conv'. Known: there are none"
    """
    names = list(known)
    near = closest(name, names, count=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {name!r}.{hint} Known: {', '.join(names) or 'there are none'}"


def nearest(name: object, known: Iterable[str], *, count: int = 3, listed: str = "") -> str:
    """Say which of the known names are near ``name``, or which there are, for a message that ends in it.

    It is for lists too long to show; ``listed`` says who shows all.

    >>> nearest("res2a", ["res3b", "conv1", "res2b", "res3a"], count=2)
    'the nearest are res3a, res2b'
    >>> nearest("resnet20", ["resnet200", "resnet20_cifar"], count=1)
    'the nearest is resnet20_cifar'
    >>> nearest("xyzzy", ["res2a", "conv1"])
    'there are conv1, res2a'
    >>> nearest("xyzzy", (f"conv{k}" for k in range(86)), listed="`minires models`")
    'there are 86, and `minires models` lists them'
    >>> nearest("res2a", [])
    'there are none at all'
    """
    names = sorted(known)
    if near := closest(name, names, count=count):
        return f"the nearest {'is' if len(near) == 1 else 'are'} {', '.join(near)}"
    if listed and len(names) > SHOWN:
        return f"there are {len(names)}, and {listed} lists them"
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"there {'is' if len(names) == 1 else 'are'} {', '.join(names[:SHOWN]) or 'none at all'}{more}"


def closest(name: object, known: Iterable[str], *, count: int) -> list[str]:
    """The known names near ``name``: those that are it but for signs and capitals (resnet50 for ResNet-50) or
    go on where it ends, at a sign first (resnet20_cifar for resnet20), those that it ends in (classes for
    num_classes) or that end in it, then by letters."""
    given = str(name).casefold()
    names = {one: one.casefold() for one in known if one}
    if not given:
        return []
    bare = {one: re.sub(r"[\W_]", "", plain) for one, plain in names.items()}
    letters_of_it = re.sub(r"[\W_]", "", given)
    same = [one for one, plain in bare.items() if plain == letters_of_it]
    begin = [one for one, plain in names.items() if re.match(rf"{re.escape(given)}[_.-]", plain)]
    end = [one for one, plain in names.items() if re.search(rf"[_.-]{re.escape(plain)}$", given)]
    inside = [one for one, plain in names.items() if re.search(rf"[_.-]{re.escape(given)}$", plain)]
    letters = difflib.get_close_matches(given, names.values(), n=count)
    alike = [one for near in letters for one, plain in names.items() if plain == near]
    longer = [one for one, plain in names.items() if plain.startswith(given)]
    more = [one for one, plain in bare.items() if letters_of_it and re.match(rf"{letters_of_it}\D", plain)]
    return list(dict.fromkeys([*same, *begin, *end, *inside, *more, *alike, *longer]))[:count]


MOST = 2**31 - 1  # of a whole number: what kernels count with


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
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return None
    try:
        return float(value)
    except OverflowError:  # a whole number beyond all floats
        return -math.inf if operator.lt(value, 0) else math.inf


def plain(value: Any) -> Any:
    """``value`` with Python's own numbers and truths in the place of NumPy's, in tuples, lists and dicts,
    too; arrays of numbers as lists.

    >>> plain((np.int64(2), [np.float32(0.5), True, "same"], np.arange(2)))
    (2, [0.5, True, 'same'], [0, 1])
    """
    if isinstance(value, np.ndarray) and value.ndim and value.dtype.kind in "iuf":
        return value.tolist()
    if isinstance(value, tuple | list):
        return type(value)(plain(one) for one in value)
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, np.bool_):
        return bool(value)
    for number in (as_whole(value), as_number(value)):
        if number is not None:
            return number
    return value


def whole(what: str, value: Any, *, least: int = 1, most: int = MOST) -> int:
    """A whole number from ``least`` to ``most``, of Python or of NumPy, as an int. Raises: ConfigError.

    >>> whole("channels", 0)
    Traceback (most recent call last):
    ...
    minires.errors.ConfigError: channels must be a whole number of at least 1, not 0
    """
    number = as_whole(value)
    if number is None or number < least:
        raise ConfigError(f"{what} must be a whole number of at least {least}, not {value!r}")
    if number > most:
        raise ConfigError(f"{what} is {number}; it may be {most} at most")
    return number


def as_seed(value: Any) -> int:
    """The seed of a generator, a whole number of up to 64 bits. Raises: ConfigError."""
    return whole("seed", value, least=0, most=2**64 - 1)


def number(
    what: str,
    value: Any,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> float:
    """A finite number in a range, of Python or of NumPy, as a float. Raises: ConfigError.

    >>> number("lr", 2, above=0)
    2.0
    >>> number("p", 1.5, least=0, most=1)
    Traceback (most recent call last):
    ...
    minires.errors.ConfigError: p is 1.5; it must be at least 0 and at most 1
    >>> number("p", "half")
    Traceback (most recent call last):
    ...
    minires.errors.ConfigError: p must be a number, not 'half'
    """
    found = as_number(value)
    if found is None:
        raise ConfigError(f"{what} must be a number, not {value!r}")
    limits = [
        (least, "at least", operator.ge), (above, "above", operator.gt),
        (most, "at most", operator.le), (below, "below", operator.lt),
    ]  # fmt: skip
    given = [(limit, word, fits) for limit, word, fits in limits if limit is not None]
    if not math.isfinite(found) or not all(fits(found, limit) for limit, _, fits in given):
        ranges = [f"{word} {limit:g}" for limit, word, _ in given]
        wanted = " and ".join(ranges if math.isfinite(found) else ["finite", *ranges])
        raise ConfigError(f"{what} is {value}; it must be {wanted}")
    return found


def several(what: str, value: Any, *, count: int | None = None, **limits: float | None) -> tuple[float, ...]:
    """The numbers of a list, each as :func:`number` takes it, and so many if a ``count`` is given.

    >>> several("betas", [0.9, 0.99], count=2, least=0, below=1)
    (0.9, 0.99)
    >>> several("at", 0.5)
    Traceback (most recent call last):
    ...
    minires.errors.ConfigError: at must be a list of numbers, not 0.5
    """
    is_list = isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim == 1)
    if not is_list or count not in (None, len(value)):
        wanted = "a list of numbers" if count is None else f"{count} numbers"
        raise ConfigError(f"{what} must be {wanted}, not {value!r}")
    return tuple(number(f"{what}[{i}]", one, **limits) for i, one in enumerate(value))


def truth(what: str, value: Any) -> bool:
    """True or False, of Python or of NumPy. Raises: ConfigError.

    >>> truth("nesterov", 1)
    Traceback (most recent call last):
    ...
    minires.errors.ConfigError: nesterov must be True or False, not 1
    """
    if not isinstance(value, bool | np.bool_):
        raise ConfigError(f"{what} must be True or False, not {value!r}")
    return bool(value)


def mapping(what: str, value: Any) -> dict[str, Any]:
    """A dict whose keys are text, as a new dict. Raises: ConfigError."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ConfigError(f"{what} must be a dict of options by name, not {value!r}")
    return dict(value)

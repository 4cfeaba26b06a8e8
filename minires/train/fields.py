"""What a file of ours must say: a kind for each field, checked in one place when the file is read.

A kind is a function of a field's name and its value that raises ConfigError. Kinds are put together:

>>> person = record(name=text, age=Optional(between(0, 150)), marks=listing(real))
>>> person("", {"name": "Ada", "marks": [1, 2.5]})
>>> person("", {"name": "Ada", "marks": [1, "two"]})
Traceback (most recent call last):
...
minires.errors.ConfigError: marks[1] must be a number, not 'two'
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Callable
from typing import Any

from minires.errors import ConfigError, number, whole

Kind = Callable[[str, Any], object]
_short = reprlib.Repr()  # a wrong value may be as long as the file


def parsed(content: str) -> Any:
    """What JSON text says. Raises: ValueError if it is none, NaN and infinity included, or too deep."""
    try:
        return json.loads(content, parse_constant=_no_number)
    except RecursionError as error:
        raise ValueError("its lists or dicts are nested too deeply") from error


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def shortened(error: object, *, most: int = 2000) -> str:
    """The text of an error, which may hold a value as long as the file."""
    text = str(error)
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 4 :]}"


def anything(what: str, value: Any) -> None:
    """For what others check."""


_NAME = re.compile("[\udc80-\udcff]")


def text(what: str, value: Any) -> None:
    """Text that can be shown and stored. A byte of a file name that is no UTF-8 is one of the signs U+DC80 to
    U+DCFF; there are no such signs else."""
    if not isinstance(value, str) or any("\ud800" <= sign <= "\udfff" for sign in _NAME.sub("", value)):
        raise ConfigError(f"{what} must be text, not {_short.repr(value)}")


def exactly(wanted: Any) -> Kind:
    """This value and no other."""

    def check(what: str, value: Any) -> None:
        if type(value) is not type(wanted) or value != wanted:
            raise ConfigError(f"{what} must be {wanted!r}, not {_short.repr(value)}")

    return check


def between(least: int, most: int = 2**63 - 1) -> Kind:
    """A whole number."""
    return lambda what, value: whole(what, value, least=least, most=most)


def real(what: str, value: Any) -> None:
    """A finite number."""
    number(what, value)


def positive(what: str, value: Any) -> None:
    """A finite number above 0."""
    number(what, value, above=0)


def either(*kinds: Kind) -> Kind:
    """What one of these takes."""

    def check(what: str, value: Any) -> None:
        wrong = []
        for kind in kinds:
            try:
                kind(what, value)
                return
            except ConfigError as error:
                wrong.append(error)
        raise wrong[-1]

    return check


class Optional:
    """None, or this kind; in a :func:`record` the field may be left out."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind

    def __call__(self, what: str, value: Any) -> None:
        if value is not None:
            self.kind(what, value)


def listing(kind: Kind, *, least: int = 0, count: int | None = None) -> Kind:
    """A list of these, so many or at least so many."""

    def check(what: str, value: Any) -> None:
        if not isinstance(value, list | tuple) or count not in (None, len(value)) or len(value) < least:
            wanted = f"a list of {count}" if count is not None else f"a list of at least {least}"
            raise ConfigError(f"{what} must be {wanted}, not {_short.repr(value)}")
        for place, one in enumerate(value):
            kind(f"{what}[{place}]", one)

    return check


def table(kind: Kind = anything) -> Kind:
    """A dict of these by names."""

    def check(what: str, value: Any) -> None:
        if not isinstance(value, dict):
            raise ConfigError(f"{what} must be a dict, not {_short.repr(value)}")
        for name, one in value.items():
            text(f"a name in {what}", name)
            kind(f"{what}.{name}", one)

    return check


def record(**kinds: Kind) -> Kind:
    """A dict that has these fields; others may stand beside them."""

    def check(what: str, value: Any) -> None:
        if not isinstance(value, dict):
            raise ConfigError(f"{what or 'it'} must be a dict, not {_short.repr(value)}")
        for name, kind in kinds.items():
            inner = f"{what}.{name}" if what else name
            if name in value:
                kind(inner, value[name])
            elif not isinstance(kind, Optional):
                raise ConfigError(f"{inner} is missing")

    return check

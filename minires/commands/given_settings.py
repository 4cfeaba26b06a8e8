"""Settings that are given as ``--set NAME=VALUE``, beside the options that have names of their own.

A name may lead into a setting, ``optimizer.lr``; what is there stays, but for what is named. A setting that
is given twice, in whichever way, must be given the same value.
"""

from __future__ import annotations

import argparse
import copy
import shlex
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from minires.errors import ConfigError, unknown

Path = tuple[str, ...]
AS_TEXT = ("data", "model", "recipe", "start_from")  # these are looked up before a configuration is made
TABLE, WORD_OR_TABLE = "dict[str, Any]", "str | dict[str, Any]"  # settings that names may lead into


@dataclass(frozen=True)
class Given:
    """A value for a setting, and what gives it, in words of the command line."""

    path: Path
    value: Any
    words: str


def read(texts: Iterable[str] | None) -> list[Given]:
    """What ``--set`` was given: values are JSON, or else text.

    Raises: ConfigError if a text is not NAME=VALUE, or a setting is given two values.

    >>> [(one.path, one.value) for one in read(["epochs=3", "schedule.name=cosine", "augment=[\\"flip\\"]"])]
    [(('epochs',), 3), (('schedule', 'name'), 'cosine'), (('augment',), ['flip'])]
    """
    from minires.train.fields import parsed

    found: dict[Path, Given] = {}
    for text in texts or []:
        name, equals, value = text.partition("=")
        path = tuple(name.split("."))
        if not equals or not all(path):
            raise ConfigError(f"--set {text!r}: write NAME=VALUE, for example --set schedule.name=cosine")
        try:
            content = parsed(value)
        except ValueError:
            content = value
        given = Given(path, content, f"--set {name}={shlex.quote(value)}")
        _agree(found.setdefault(path, given), given)
    return list(found.values())


def as_options(options: argparse.Namespace, given: Iterable[Given], names: Iterable[str]) -> list[Given]:
    """Give settings that are options, too, to these; return the others.

    Raises: ConfigError if the option is there with another value.
    """
    others, names = [], set(names)
    for one in given:
        name = one.path[0]
        if len(one.path) > 1 or name not in names or one.value is None:
            others.append(one)
            continue
        if name in AS_TEXT and not isinstance(one.value, str):
            raise ConfigError(f"{one.words}: it must be text, such as --set {name}='\"{one.value}\"'")
        if (value := getattr(options, name)) is not None:
            _agree(option(name, (name,), value), one)
        setattr(options, name, one.value)
    return others


def option(name: str, path: Path, value: Any) -> Given:
    """A setting as the option of its own gives it."""
    flag = name.replace("_", "-")
    words = ("--" if value else "--no-") + flag if isinstance(value, bool) else f"--{flag} {value}"
    return Given(path, value, words)


def applied(settings: Mapping[str, Any], given: Iterable[Given], own: Iterable[Given] = ()) -> dict[str, Any]:
    """Settings with what is given, by ``--set`` and by options of their ``own``.

    Raises: ConfigError for an unknown name, with the nearest one, or for two values of a setting.
    """
    content = copy.deepcopy(dict(settings))
    for one in given:
        _check_name(one, settings)
    for one in [*sorted(given, key=lambda one: len(one.path)), *own]:  # what is inside after what it is in
        for other in given:
            inside = _at(other.value, one.path[len(other.path) :])
            if one.path[: len(other.path)] == other.path and inside is not _NOTHING:
                _agree(one, Given(one.path, inside, other.words))
        _put(content, one)
    return content


def without_leftovers(
    settings: Mapping[str, Any], given: Iterable[Given]
) -> tuple[dict[str, Any], list[str]]:
    """Settings without those options of an optimizer or schedule that the one ``given`` in its place does not
    have; and a line for each, which says what is left out. An option that both have stays as it is.

    >>> settings = {"schedule": {"name": "one-cycle", "peak": 0.25, "warmup": 0.1}}
    >>> without_leftovers(settings, read(["schedule.name=cosine"]))
    ({'schedule': {'name': 'one-cycle', 'warmup': 0.1}}, ['schedule cosine instead of one-cycle: ...'])
    """
    from minires import optim
    from minires.train import schedules

    content, lines = copy.deepcopy(dict(settings)), []
    named = {one.path: one.value for one in given}
    for kind, options_of in (("optimizer", optim.options_of), ("schedule", schedules.options_of)):
        inside = content.get(kind, {})
        old, new = inside.get("name"), named.get((kind, "name"))
        if new in (None, old) or (kind,) in named:
            continue
        with suppress(ConfigError):  # an unknown name is refused where the configuration is made
            known = ["name", *options_of(new)]
            if left := [name for name in inside if name not in known]:
                shown = ", ".join(f"{name}={inside.pop(name)!r}" for name in left)
                lines.append(f"{kind} {new} instead of {old}: what only {old} has is left out, {shown}")
    return content, lines


_NOTHING = object()


def _at(value: Any, path: Path) -> Any:
    """What stands at a place inside; ``_NOTHING`` if there is none."""
    for name in path:
        if not isinstance(value, dict) or name not in value:
            return _NOTHING
        value = value[name]
    return value


def _check_name(one: Given, settings: Mapping[str, Any]) -> None:
    name, *inside = one.path
    if name in settings and not (inside and _kind(name) not in (TABLE, WORD_OR_TABLE)):
        return
    if name in settings:
        raise ConfigError(f"{one.words}: {name} is given as a whole, --set {name}=VALUE")
    known = [*settings, *(f"{key}.{part}" for key, value in settings.items() if isinstance(value, dict)
                          for part in value)]  # fmt: skip
    raise ConfigError(f"{one.words}: {unknown('setting', '.'.join(one.path), known)}")


def _kind(name: str) -> str:
    from dataclasses import fields

    from minires.train import Config

    return next(str(field.type) for field in fields(Config) if field.name == name)


def _put(content: dict[str, Any], one: Given) -> None:
    place = content
    for number, name in enumerate(one.path[:-1], 1):
        if number == 1 and isinstance(place.get(name), str) and _kind(name) == WORD_OR_TABLE:
            place[name] = {}  # instead of the word
        place = place.setdefault(name, {})
        if not isinstance(place, dict):
            whole = ".".join(one.path[:number])
            raise ConfigError(f"{one.words}: {whole} is {place!r}, and has nothing inside")
    place[one.path[-1]] = one.value


def _agree(one: Given, other: Given) -> None:
    """Raises: ConfigError if a setting is given two values."""
    if type(one.value) is not type(other.value) and {type(one.value), type(other.value)} != {int, float}:
        same = False
    else:
        same = one.value == other.value
    if not same:
        raise ConfigError(f"{one.words} and {other.words} contradict each other; give one of them")

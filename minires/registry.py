"""A registry: the things of one kind by name, with one way to add to them and one answer to a wrong name.

Models, data sets, optimisers, schedules, recipes, augmentations and commands have one each. What comes with
minires stands in the table that the registry is made from; a user adds to it with the function ``register``
beside it, and then uses the name wherever one of ours could stand.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from minires.errors import SHOWN, ConfigError, UnknownName, nearest, unknown

T = TypeVar("T")

_ADDED: set[str] = set()


def added() -> frozenset[str]:
    """The names, of whatever kind, under which users have added something."""
    return frozenset(_ADDED)


class Registry(dict[str, T]):
    """The things of one ``kind``, by name; ``listed`` is what lists them, where they can be many.

    >>> colours = Registry("colour", {"red": "#ff0000", "green": "#00ff00"})
    >>> colours.add("blue", "#0000ff")
    >>> list(colours)
    ['red', 'green', 'blue']
    >>> colours.find("gren")
    Traceback (most recent call last):
    ...
    minires.errors.UnknownName: unknown colour 'gren'. Did you mean 'green'? Known: red, green, blue
    """

    def __init__(self, kind: str, things: Mapping[str, T], *, listed: str = "") -> None:
        super().__init__(things)
        self.kind, self.listed = kind, listed
        self._added: dict[str, Any] = {}  # where each that was added is defined

    @property
    def _one(self) -> str:
        return f"an {self.kind}" if self.kind[0] in "aeiou" else f"a {self.kind}"

    def find(self, name: object) -> T:
        """Give what stands under ``name``. Raises: ConfigError with the nearest name if there is nothing."""
        if not isinstance(name, str) and hasattr(name, "__name__"):
            raise ConfigError(f"give the name of a {self.kind} as text, not {name.__name__} itself")
        if not isinstance(name, str) or name not in self:
            raise UnknownName(self.unknown(name))
        return self[name]

    def unknown(self, name: object) -> str:
        """Say that there is nothing under ``name``, and what there is: all, or those near it of many."""
        if len(self) <= SHOWN:
            return unknown(self.kind, name, self)
        return f"unknown {self.kind} {name!r}; {nearest(name, self, listed=self.listed)}"

    def name_given(self, name: object) -> None:
        """See that what came in the place of a name is one, and not what is to be registered.

        Raises: ConfigError that says how ``register`` is written.
        """
        if not isinstance(name, str):
            shown = getattr(name, "__name__", type(name).__name__)
            raise ConfigError(
                f"register takes the name of the {self.kind} first, as text, then the thing itself: "
                f"@register(\"my_name\") above {shown}"
            )

    def add(self, name: str, thing: T, *, maker: Callable[..., Any] | None = None) -> None:
        """Put ``thing`` under ``name``.

        ``maker`` is the function or class that the user wrote (``thing`` itself if not given): the same
        definition may come again, as a cell of a notebook does that is run twice, and replaces the first.

        Raises: ConfigError if the name is another one's, or has signs besides letters, digits, _, - and .
        """
        self.name_given(name)
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise ConfigError(f"{name!r} cannot name {self._one}; use letters, digits, _, - and .")
        made: Any = thing if maker is None else maker
        definition = (made.__module__, made.__qualname__) if hasattr(made, "__qualname__") else made
        if name in self and (name not in self._added or self._added[name] != definition):
            raise ConfigError(f"there is {self._one} {name!r} already; choose another name")
        self[name] = thing
        self._added[name] = definition
        if not str(getattr(made, "__module__", "")).startswith("minires."):
            _ADDED.add(name)

"""What a model holds in its attributes: numbers, words, lists, arrays, parts; and whether it is so still."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from minires.errors import ConfigError
from minires.nn.hooks import Bare
from minires.nn.module import Module

_LONG = 4096  # items, or numbers of an array, that are compared; of what is longer there is but the one
_PLAIN = (int, float, str, type(None))
_FIXED = (*_PLAIN, tuple)
_NOTHING = object()
Place = tuple[int, str]  # a module, by its id, and an attribute


def parts(model: Module) -> list[tuple[str, Module]]:
    """The model itself, and every module inside, with its path."""
    return [("", model), *model.named_modules()]


def bare_still(bare: Bare, what: str = "") -> None:
    """Raises: ConfigError if modules of a model have hooks now, or are changed: a plan calls no module."""
    if words := bare.found():
        raise ConfigError(
            f"{what}{words}, and a plan would not know of it; call the model itself, or take it away first"
        )


class _Same:
    """Equals itself alone."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    __hash__ = object.__hash__


def frozen(value: Any, depth: int = 4) -> Any:
    """What equals that of another value of the same numbers and words; of all else there is but the one."""
    if isinstance(value, _PLAIN):
        return "nan" if isinstance(value, float) and value != value else value
    if isinstance(value, np.ndarray | np.generic) and value.size <= _LONG and value.dtype.kind != "O":
        return value.dtype.str, value.shape, value.tobytes()
    if depth and isinstance(value, list | tuple) and len(value) <= _LONG:
        return [type(value).__name__, *(frozen(one, depth - 1) for one in value)]
    if depth and isinstance(value, dict) and len(value) <= _LONG:
        return ["dict", *((frozen(key), frozen(one, depth - 1)) for key, one in value.items())]
    return _Same(value)


class Held:
    """What each part of a model holds now; not its mode, and what is private and more than a number.

    >>> from minires.nn import Linear
    >>> model = Linear(2, 3)
    >>> held = Restorable(model)
    >>> model.note = [1, 2]
    >>> held.changed(), held.changed(new=True)
    ([], ['note of the model'])
    >>> held.restore()
    >>> hasattr(model, "note")
    False
    """

    def __init__(self, model: Module) -> None:
        self._parts = []
        for path, part in parts(model):
            values = {name: frozen(value) for name, value in _attributes(part)}
            self._parts.append((path or "the model", part, dict(vars(part)), values))

    def changed(self, moved: Collection[Place] = (), *, new: bool = False) -> list[str]:
        """Which attributes are others now, but for those ``moved``; with ``new``, those that came, too."""
        found = []
        for path, part, before, values in self._parts:
            now = vars(part)
            for name, value in values.items():
                one, was = now.get(name, _NOTHING), before[name]
                is_fixed = one is was and (isinstance(value, _Same) or isinstance(one, _FIXED))
                if not is_fixed and (id(part), name) not in moved and frozen(one) != value:
                    found.append(f"{name} of {path}")
            if new:
                found += [f"{name} of {path}" for name, _ in _attributes(part) if name not in before]
        return found


class Restorable(Held):
    """What a model holds, with copies of its lists and arrays, so that all can be as it was."""

    def __init__(self, model: Module) -> None:
        super().__init__(model)
        self._copies = [
            (f"{name} of {path}", (id(part), name), value, value.copy())
            for path, part, before, _ in self._parts
            for name, value in before.items()
            if isinstance(value, np.ndarray | list | dict)
        ]

    def changed(self, moved: Collection[Place] = (), *, new: bool = False) -> list[str]:
        """Also large arrays that have other numbers."""
        found = super().changed(moved, new=new)
        for where, place, value, copy in self._copies:
            if isinstance(value, np.ndarray) and value.size > _LONG and place not in moved:
                found += [] if value.tobytes() == np.asarray(copy).tobytes() else [where]
        return found

    def restore(self) -> None:
        """Everything is as it was: what came is gone, and lists and arrays have what they had."""
        for _, _, value, copy in self._copies:
            if isinstance(value, dict):
                value.clear()
                value.update(copy)
            elif isinstance(value, list):
                value[:] = copy
            else:
                value[...] = copy
        for _, part, before, _ in self._parts:
            now = vars(part)
            for name in now.keys() - before.keys():
                del now[name]
            now.update(before)


def _attributes(part: Module) -> list[tuple[str, Any]]:
    return [
        (name, value)
        for name, value in vars(part).items()
        if name != "training" and (name[0] != "_" or isinstance(value, (*_PLAIN, np.ndarray)))
    ]

"""Where a module stands in the model that runs: the names that errors, tape and debugger give.

A module does not know its name; the model around it does. When a module is called while no other is running,
it is the outermost one, and all paths are relative to it: in ``model(x)`` the first convolution is ``conv1``,
in ``model.conv1(x)`` it has no path. The paths are found once and kept, until a module, or a list that may
hold some, is set anywhere, or a list inside has changed. To see that nothing has costs microseconds.

A module that the outermost one does not hold (it is made in ``forward``, say, or kept in a closure) is
outermost once more, under the path where it is called. Each thread has its own outermost module.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any, Protocol

from minires.tensor import running

Container = list[Any] | tuple[Any, ...] | dict[Any, Any]


class _Root(Protocol):
    """What a tree asks of its module."""

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Any]]: ...

    def _held_containers(self) -> Iterator[Container]: ...

    def _check_names(self) -> None: ...


class _Changes:
    """A stamp that is another one whenever an attribute that may hold modules was set, in any module."""

    def __init__(self) -> None:
        self.stamp = object()

    def note(self) -> None:
        self.stamp = object()


changes = _Changes()


class Tree:
    """The paths of a module and of all inside it, as they were when it was last looked at."""

    def __init__(self, root: _Root, prefix: str) -> None:
        self.root = weakref.ref(root)
        self.prefix = prefix
        self.look(root)

    def look(self, root: _Root) -> None:
        """Find all paths. Raises: ConfigError if two parameters, buffers or modules have one name."""
        stamp = changes.stamp
        root._check_names()
        before = f"{self.prefix}." if self.prefix else ""
        paths = {id(root): (self.root, self.prefix)}
        paths |= {id(one): (weakref.ref(one), before + path) for path, one in root.named_modules()}
        self._watched = [
            (held, [_Member(one) for one in _members(held)])
            for held in root._held_containers()
            if isinstance(held, list | dict)
        ]
        self._paths, self._stamp = paths, stamp

    def is_fresh(self) -> bool:
        """Whether all is as it was when we looked."""
        return self._stamp is changes.stamp and all(
            len(now := _members(held)) == len(then)
            and all(member.is_still(one) for member, one in zip(then, now, strict=True))
            for held, then in self._watched
        )

    def path_of(self, module: Any) -> str | None:
        """The path of a module, None if it is not here; where it is missing we look again if need be."""
        path, root = self._known(module), self.root()
        if path is None and root is not None and not self.is_fresh():
            self.look(root)
            path = self._known(module)
        return path

    def _known(self, module: Any) -> str | None:
        found, path = self._paths.get(id(module), (None, ""))
        # A module that is gone may have left its id to a new one.
        return path if found is not None and found() is module else None


def locate(module: Any) -> tuple[Tree, str]:
    """The tree to which a module belongs that is called now, and its path in it."""
    tree, around = running()
    if tree is not None:
        path = tree.path_of(module)
        if path is not None:
            return tree, path
    own = vars(module).get("_tree")
    if own is None or own.prefix != around:
        own = vars(module)["_tree"] = Tree(module, around)
    elif not own.is_fresh():
        own.look(module)
    return own, around


def _members(held: list[Any] | dict[Any, Any]) -> list[Any]:
    """Those in a list or dict that are modules, or may hold some; tensors and numbers are left out."""
    values = held.values() if isinstance(held, dict) else held
    return [one for one in values if isinstance(one, list | tuple | dict) or hasattr(one, "named_modules")]


class _Member:
    """What a list held when we looked. It is not kept alive by that."""

    def __init__(self, one: Any) -> None:
        self.number = id(one)
        self.reference = weakref.ref(one) if hasattr(one, "named_modules") else None

    def is_still(self, one: Any) -> bool:
        """A list that is gone cannot have left its id to another: those inside are watched, and so held."""
        return self.reference() is one if self.reference is not None else self.number == id(one)

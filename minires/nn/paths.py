"""Where a module stands in the model that runs: the names that errors, tape and debugger give.

A module does not know its name; the model around it does. When a module is called while no other is running,
it is the outermost one, and all paths are relative to it: in ``model(x)`` the first convolution is ``conv1``,
in ``model.conv1(x)`` it has no path. The paths are found once and kept, until a module, or a list that may
hold some, is set anywhere, or a list inside has changed. To see that nothing has costs microseconds.

A module that the outermost one does not hold (it is made in ``forward``, say, or kept in a closure) is
outermost once more, under the path where it is called. Each thread has its own outermost module.
"""

from __future__ import annotations

import operator
import weakref
from collections.abc import Iterable, Iterator
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
            (held, _content(held))
            for held in root._held_containers()
            if isinstance(held, list | dict) and not _is_data(held)
        ]
        self._paths, self._stamp = paths, stamp

    def is_fresh(self) -> bool:
        """Whether all is as it was when we looked."""
        return self._stamp is changes.stamp and all(
            len(now := _content(held)) == len(then) and all(map(operator.is_, now, then))
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


def _content(held: list[Any] | dict[Any, Any]) -> tuple[Any, ...]:
    return (*held, *held.values()) if isinstance(held, dict) else tuple(held)


def _is_data(held: Iterable[Any]) -> bool:
    """Whether these are numbers or words (losses, say, to which each step adds one), and not nothing yet."""
    content = list(held)
    return bool(content) and all(isinstance(one, int | float | str) for one in content)

"""What stands around the forward pass of a module: forward hooks, and the changes of ``minires.intervene``.

A module that has any carries an :class:`Around`, and ``Module.__call__`` asks that instead of ``forward``.
One call goes through it in this order:

    place       another module runs here instead: nothing below is asked, but for that of the other module
    skip        nothing runs, and no hook is called
    source      what comes instead of forward: the module is dropped, or its output is stored
    branch, shortcut       y = join(changed branch, changed shortcut) of a block that has these two ways
    output      changes of the output, in their order
    hook        forward hooks, in their order; each is given what the one before has made of the output

An ``Around`` is never changed: who adds an entry puts another one in its place. So whoever runs a block a
second time (:func:`minires.nn.recompute.recompute`) can put back what stood there the first time. Copies and
pickles of a module have none.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

from minires.errors import ConfigError
from minires.modes import is_bare
from minires.tensor import Tensor

_lock = threading.RLock()


def _start_anew() -> None:
    """In a forked child: the lock that another thread had is its parent's."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)
NAME = "_around"  # of the attribute


class _Stamp:
    """Another object whenever an entry came or went, at any module."""

    now = object()


@dataclass(frozen=True, eq=False)
class Entry:
    """One thing that stands around a module; ``part`` says where: see the head of this file.

    ``owner`` is who takes it away again. ``kind`` is that of a change: drop, stored, scale, function, look.
    ``act`` is called with (module, inputs, options) in place, skip and source; with the tensor as it is, and
    gives a new one, in branch, shortcut and output, and in the first two, where the ``kind`` is drop or
    stored, with any tensor of its shape; with (module, inputs, output) as a hook. ``words`` say what it does.
    """

    owner: object
    part: str
    act: Callable[..., Any]
    kind: str = ""
    words: str = ""

    @property
    def is_instead(self) -> bool:
        """Whether it needs nothing of what it takes the place of."""
        return self.kind in ("drop", "stored")


class Around:
    """All that stands around one module."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self.entries = tuple(entries)
        self._of: dict[str, list[Entry]] = {}
        for one in self.entries:
            self._of.setdefault(one.part, []).append(one)

    def of(self, part: str) -> Sequence[Entry]:
        """The entries of one part, in the order in which they came."""
        return self._of.get(part, ())

    def __call__(self, module: Any, inputs: Any, options: Any, *, is_moved: bool = False) -> Any:
        """What a call of the module gives; ``is_moved`` if it runs in the place of another."""
        if is_bare():
            return module.forward(*inputs, **options)
        for one in () if is_moved else self.of("place")[-1:]:
            return one.act(module, inputs, options)
        for one in self.of("skip")[-1:]:
            return one.act(module, inputs, options)
        if source := self.of("source"):
            y = source[-1].act(module, inputs, options)
        elif self.of("branch") or self.of("shortcut"):
            y = self._joined(module, inputs, options)
        else:
            y = module.forward(*inputs, **options)
        for one in self.of("output"):
            y = one.act(y)
        for one in self.of("hook"):
            new = one.act(module, inputs, y)
            if new is not None and isinstance(y, Tensor) and not isinstance(new, Tensor):
                raise ConfigError(
                    f"a forward hook returns None, or a tensor in the place of the output, not a "
                    f"{type(new).__name__}"
                )
            y = y if new is None else new
        return y

    def _joined(self, module: Any, inputs: Any, options: Any) -> Any:
        """A block with its two ways changed. A branch that is not needed is not run, if the block can do
        without: if it has ``shortcut_of``."""
        of_branch, of_shortcut = self.of("branch"), self.of("shortcut")
        branch = shortcut = None
        if any(one.is_instead for one in of_branch) and hasattr(module, "shortcut_of"):
            branch = shortcut = module.shortcut_of(*inputs, **options)
        if branch is None:
            branch, shortcut = module.parts(*inputs, **options)
        if shortcut is None and of_shortcut:
            raise ConfigError(f"{type(module).__name__} has no shortcut: it is a plain block, all branch")
        for one in of_branch:
            branch = one.act(branch)
        for one in of_shortcut:
            shortcut = one.act(shortcut)
        return module.join(branch, shortcut)


def run(module: Any, inputs: Any, options: Any) -> Any:
    """Run a module in the place of another, with all that stands around it, but for what stands in its own
    place."""
    around = vars(module).get(NAME)
    if around is None:
        return module.forward(*inputs, **options)
    return around(module, inputs, options, is_moved=True)


class Handle:
    """What ``register_forward_hook`` gives: ``remove()`` takes the hook away, and so does the end of a
    ``with`` block.

    >>> from minires.nn import ReLU
    >>> layer = ReLU()
    >>> with layer.register_forward_hook(lambda module, inputs, y: 2 * y):
    ...     layer(Tensor([-1.0, 3.0])).tolist()
    [0.0, 6.0]
    >>> layer(Tensor([-1.0, 3.0])).tolist()
    [0.0, 3.0]
    """

    def __init__(self, module: Any) -> None:
        self._module = weakref.ref(module)

    def remove(self) -> None:
        """Take the hook away; a second time does nothing."""
        if (module := self._module()) is not None:
            detach(self, [module])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()


def register(module: Any, function: Callable[..., Any]) -> Handle:
    """Call a function whenever a module has run: see ``Module.register_forward_hook``."""
    if not callable(function) or isinstance(function, type):
        raise ConfigError(
            "register_forward_hook takes a function of the module, its inputs and its output, not "
            f"{function!r:.80}"
        )
    handle = Handle(module)
    attach(module, [Entry(handle, "hook", function)])
    return handle


def is_moved(module: Any) -> bool:
    """Whether another module runs in the place of this one."""
    return any(one.part == "place" for one in entries_of(module))


def is_skipped(module: Any) -> bool:
    """Whether a module does not run, as the output of one after it is stored."""
    return any(one.part == "skip" for one in entries_of(module))


# ------------------------------------------------------------------------------------------ coming and going


def entries_of(module: Any) -> tuple[Entry, ...]:
    """What stands around a module now."""
    around = vars(module).get(NAME)
    return () if around is None else around.entries


def attach(module: Any, entries: Iterable[Entry]) -> None:
    """Put entries around a module, behind those that it has."""
    with _lock:
        _put(module, (*entries_of(module), *entries))


def detach(owner: object, modules: Iterable[Any]) -> None:
    """Take away all that is of an owner."""
    with _lock:
        for module in modules:
            _put(module, [one for one in entries_of(module) if one.owner is not owner])


def _put(module: Any, entries: Iterable[Entry]) -> None:
    _set(module, Around(entries))


def _set(module: Any, around: Around | None) -> None:
    if around is not None and around.entries:
        vars(module)[NAME] = around
    else:
        vars(module).pop(NAME, None)
    _Stamp.now = object()


def standing(model: Any) -> list[Around | None]:
    """What stands around each module of a model now, to be given to :func:`put_back`."""
    return [vars(module).get(NAME) for module in model.modules()]


def put_back(model: Any, before: Sequence[Around | None]) -> None:
    """Let stand around each module of a model what :func:`standing` gave."""
    with _lock:
        for module, around in zip(model.modules(), before, strict=True):
            if vars(module).get(NAME) is not around:
                _set(module, around)


# ---------------------------------------------------------------------------------------------- who must know


def found(model: Any) -> str:
    """The first module of a model that has a hook or is changed, in words; "" if there is none."""
    for path, module in [("", model), *model.named_modules()]:
        if words := _said(path, module):
            return words
    return ""


def refuse(model: Any, what: str, because: str) -> None:
    """See that a model has no hooks and is not changed, ``because`` of which ``what`` cannot be done.

    Raises: ConfigError if it has, or is.
    """
    if words := found(model):
        raise ConfigError(f"{what}: {words}, {because}; take it away first, or leave the `with` block")


def _said(path: str, module: Any) -> str:
    entries = entries_of(module)
    if not entries:
        return ""
    changes = [one.words for one in entries if one.part != "hook"]
    name = path or "the model itself"
    return f"minires.intervene changes {changes[0]}" if changes else f"{name} has a forward hook"


class Bare:
    """Whether a model still is without hooks and changes: for what runs it without calling its modules."""

    def __init__(self, model: Any) -> None:
        self._parts = [(path, weakref.ref(one)) for path, one in [("", model), *model.named_modules()]]
        self._stamp: object = None

    def found(self) -> str:
        """As :func:`found`; nearly free while nothing came and nothing went anywhere."""
        now = _Stamp.now
        if self._stamp is now:
            return ""
        for path, reference in self._parts:
            module = reference()
            if module is not None and (words := _said(path, module)):
                return words
        self._stamp = now
        return ""

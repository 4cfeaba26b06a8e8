"""A model that is used in another mode for a while and is left as it was.

``model.eval()`` and ``model.train()`` set every module inside, and forget what mode each had. Whoever needs a
mode for a while asks for it here, so that a batch norm that was put into inference mode by itself, say, is in
inference mode afterwards too.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from minires import backend
from minires.nn.module import Module


@dataclass(eq=False)
class _Turn:
    """A module in a block, and the mode that it had before."""

    module: Module
    before: bool
    thread: int

    def end(self) -> None:
        """Give the mode back; to the block that began next, where that has not ended yet."""
        turns = _turns[self.module]
        place = turns.index(self)
        if place + 1 < len(turns):
            turns[place + 1].before = self.before
        else:
            self.module.training = self.before
        del turns[place]
        if not turns:
            del _turns[self.module]


_turns: WeakKeyDictionary[Module, list[_Turn]] = WeakKeyDictionary()  # of each module, in their order
_lock = threading.Lock()


@contextmanager
def modes(model: Module, *, training: bool | None = None) -> Iterator[None]:
    """Inside this block the whole model trains (``training=True``) or does not (``False``); with None only
    what the block itself sets changes. Behind it each module has its own mode again, after an error, too.

    Several threads may be in such blocks of one mode at once; the last to leave gives the modes back.

    >>> from minires import nn
    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    >>> _ = model[0].eval()
    >>> with modes(model, training=False):
    ...     [module.training for module in model.modules()]
    [False, False, False]
    >>> [module.training for module in model.modules()]
    [True, False, True]
    """
    with _lock:
        turns = [_Turn(module, module.training, threading.get_ident()) for module in model.modules()]
        for turn in turns:
            _turns.setdefault(turn.module, []).append(turn)
        if training is not None:
            model.train(training)
    try:
        yield
    finally:
        with _lock:
            for turn in turns:
                turn.end()


def _start_anew() -> None:
    """In a forked child: the blocks of other threads are their parent's, and end at once."""
    global _lock
    _lock = threading.Lock()
    for turns in list(_turns.values()):
        for turn in list(turns):
            if turn.thread != threading.get_ident():
                turn.end()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)


@contextmanager
def left_as_it_is(model: Module) -> Iterator[None]:
    """Put modes, running statistics and random generators back at the end of this block, whether a layer has
    changed an array or put another in its place.

    >>> from minires import nn
    >>> from minires.tensor import Tensor
    >>> norm = nn.BatchNorm2d(1)
    >>> with left_as_it_is(norm):
    ...     y = norm(Tensor([[1.0], [3.0]]))
    >>> norm.running_mean
    array([0.], dtype=float32)
    """
    owners = {"": model, **dict(model.named_modules())}
    buffers = [(path.rpartition("."), buffer, buffer.copy()) for path, buffer in model.named_buffers()]
    generators = model.random_states()
    try:
        with modes(model):
            yield
    finally:
        for (owner, _, name), buffer, values in buffers:
            if backend.is_writable(buffer):
                buffer[...] = values
            if getattr(owners[owner], name, None) is not buffer:
                setattr(owners[owner], name, buffer)
        model.load_random_states(generators)

"""Settings of a thread: what a block of code sets for itself, and takes back when it ends.

``no_grad()``, ``unfused()``, ``reference()`` and ``precision()`` are such blocks. Each takes back what it set
itself and nothing else, in whatever order blocks end: a generator that is suspended inside one may end it
long after the code around it has ended its own.
"""

from __future__ import annotations

import functools
import inspect
import os
import threading
from collections.abc import Callable, Generator
from typing import Any, TypeVar

from minires.errors import MiniresError

F = TypeVar("F", bound=Callable[..., Any])


class Settings(threading.local):
    """Settings are the attributes of a subclass, each with its default; a thread begins with the defaults.

    >>> class Mode(Settings):
    ...     loud = False
    >>> mode = Mode()
    >>> with mode.within(loud=True):
    ...     print(mode.loud)
    True
    >>> mode.loud
    False
    """

    def within(self, **changes: Any) -> Block:
        """A block in which these settings are others, for ``with``, or above a function."""
        return Block(self, changes)

    def now(self, *names: str) -> dict[str, Any]:
        """The settings of these names as they are now."""
        return {name: getattr(self, name) for name in names}


# A generator that is suspended in a block may end in any thread, and at any moment: also while its own thread
# is in here.
_lock = threading.RLock()


def _start_anew() -> None:
    """In a forked child: the lock that another thread had is its parent's."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)


class _Stack:
    """The values that one setting of one thread has in the blocks that are open, the newest last."""

    def __init__(self, base: Any) -> None:
        self.base = base
        self.open: list[tuple[object, Any]] = []

    def value(self) -> Any:
        return self.open[-1][1] if self.open else self.base


class Block:
    """Some settings, changed while the block is open: ``with block:``, or ``@block`` above a function.

    It may be used again, also while it is open (then what was entered last ends first), and by several
    threads. Above a generator function it is open while the generator runs, and closed while it is suspended.
    """

    def __init__(self, settings: Settings, changes: dict[str, Any]) -> None:
        self._settings, self._changes = settings, changes
        # For each entry a mark, and the values of its thread.
        self._entered: dict[object, dict[str, Any]] = {}

    def __enter__(self) -> None:
        values, mark = vars(self._settings), object()
        with _lock:
            stacks: dict[str, _Stack] = values.setdefault("_stacks", {})
            for name, value in self._changes.items():
                stack = stacks.setdefault(name, _Stack(getattr(self._settings, name)))
                stack.open.append((mark, value))
                values[name] = value
            self._entered[mark] = values

    def __exit__(self, *_: object) -> None:
        here = vars(self._settings)
        with _lock:
            entered = list(self._entered.items())
            own = [one for one in entered if one[1] is here] or entered  # its thread may be another
            mark, values = own[-1]
            del self._entered[mark]
            stacks: dict[str, _Stack] = values["_stacks"]
            for name in self._changes:
                stack = stacks[name]
                stack.open = [one for one in stack.open if one[0] is not mark]
                values[name] = stack.value()
                if not stack.open:
                    del stacks[name]

    def __call__(self, function: F) -> F:
        """``function``, run inside this block. Raises: MiniresError if it is no function, or an async one.

        A block is one of its thread: what an async function leaves to others while it waits is inside, too.
        """
        asynchronous = inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
        if isinstance(function, type) or not callable(function) or asynchronous:
            what = "an async function" if asynchronous else repr(function)
            way = ", around code that does not await: what runs meanwhile would be inside, too"
            raise MiniresError(
                f"this can stand above a function, not above {what}; write `with` inside it"
                f"{way if asynchronous else ''}"
            )
        again = functools.partial(Block, self._settings, self._changes)
        wrapped: Any = _in_steps(function, again) if inspect.isgeneratorfunction(function) else None
        if wrapped is None:

            @functools.wraps(function)
            def wrapped(*arguments: Any, **options: Any) -> Any:
                with again():
                    return function(*arguments, **options)

        decorated: F = wrapped
        return decorated


def _in_steps(function: Callable[..., Any], block: Callable[[], Block]) -> Callable[..., Any]:
    """A generator function whose generators run inside a block, from one yield to the next."""

    @functools.wraps(function)
    def steps(*arguments: Any, **options: Any) -> Generator[Any, Any, Any]:
        with block():
            generator = function(*arguments, **options)
        resume, given = generator.send, None
        try:
            while True:
                with block():
                    value = resume(given)
                try:
                    given = yield value
                    resume = generator.send
                except GeneratorExit:
                    raise
                except BaseException as error:  # what the caller throws in is the generator's to handle
                    resume, given = generator.throw, error
        except StopIteration as stop:
            return stop.value
        finally:
            with block():
                generator.close()

    return steps

"""A debugger for a network: walk through one forward and one backward pass, operation by operation.

    s = minires.step(model, x, y)
    s.next()                          the next event; printing it shows its card
    s.goto("res3a_branch2b")          a module, an event's number or an operation
    s.find(op="add")                  the next addition
    s.explain(n=0, i=3, j=5, o=7)     one number of the result, product by product
    s.back()                          to the gradient of this very operation

There is an event for each operation on the way forward, the input first, and then one for each on the way
back, the input last. ``for event in s`` and ``s[i]`` go through them without moving ``s``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, overload

from minires.debug import card
from minires.debug.explain import Explanation, explain
from minires.debug.recording import Operation, Recording, record_passes
from minires.debug.tape import record_tape
from minires.errors import ConfigError, MiniresError, as_whole, nearest
from minires.nn.module import Module
from minires.tensor import Tensor


@dataclass(frozen=True, eq=False)
class Event:
    """One operation on the way forward or backward; ``repr`` of it is its card.

    ``number`` is its place among the events, ``last`` that of the last one.
    """

    number: int
    last: int
    backward: bool
    operation: Operation
    recording: Recording

    @property
    def op(self) -> str:
        """The operation's name: conv2d."""
        return self.operation.op

    @property
    def path(self) -> str:
        """The path of the module in which it ran; "" outside of modules."""
        return self.operation.path

    @property
    def direction(self) -> str:
        """Either "forward" or "backward"."""
        return "backward" if self.backward else "forward"

    def explain(self, **place: int) -> Explanation:
        """One number of the result, step by step: see :func:`minires.debug.explain.explain`.

        Raises: ConfigError for a backward event and for an operation that cannot be explained; ShapeError for
        a place that is not there, with the ranges.
        """
        if self.backward:
            raise ConfigError(
                f"event {self.number} is on the way back, and explain() shows how a result came about; "
                f"go to the forward event of this operation first: goto({self.operation.number})"
            )
        return explain(self.operation, **place)

    @property
    def _title(self) -> str:
        return f"event {self.number} of {self.last}, {self.direction}: {self.op} {self.path}".rstrip()

    def __repr__(self) -> str:
        return card.text(self.recording, self.operation, backward=self.backward, title=self._title)

    def _repr_html_(self) -> str:
        return card.page(self.recording, self.operation, backward=self.backward, title=self._title)


class NoEvent(MiniresError, IndexError):
    """There is no event of this number; for Python's own protocols it is an IndexError, too."""


class Stepper:
    """All events of a recording, and the one where we are, ``here``."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        operations = recording.operations
        ways = [(False, one) for one in operations]
        ways += [(True, operations[number]) for number in recording.order_back]
        self._events = [
            Event(i, len(ways) - 1, backward, one, recording) for i, (backward, one) in enumerate(ways)
        ]
        self._at = 0

    @property
    def here(self) -> Event:
        """The event where we are."""
        return self._events[self._at]

    def __len__(self) -> int:
        return len(self._events)

    @overload
    def __getitem__(self, number: int) -> Event: ...

    @overload
    def __getitem__(self, number: slice) -> list[Event]: ...

    def __getitem__(self, number: int | slice) -> Event | list[Event]:
        return self._events[number] if isinstance(number, slice) else self._events[self._place(number)]

    def __iter__(self) -> Iterator[Event]:
        return iter(self._events)

    def __repr__(self) -> str:
        return repr(self.here)

    def _repr_html_(self) -> str:
        return self.here._repr_html_()

    # ------------------------------------------------------------------------------------------- moving

    def next(self) -> Event:
        """Go to the next event. Raises: MiniresError at the last one."""
        return self._go(self._at + 1)

    def prev(self) -> Event:
        """Go to the event before. Raises: MiniresError at the first one."""
        return self._go(self._at - 1)

    def back(self) -> Event:
        """Go to the backward event of the operation where we are.

        Raises: MiniresError if no gradient flows through it.
        """
        return self._move(self._of(self.here.operation, backward=True))

    def goto(self, where: int | str | Operation | Event) -> Event:
        """Go to an event, by its number (-1 is the last), or to an operation or the first one in a module, on
        the way (forward or backward) where we are.

        A name that is no module's is that of an operation, mul: the next one after here, else the first.

        Raises: ConfigError if there is no such number or name, with the nearest names; MiniresError if no
        gradient flows there and we are on the way back.
        """
        if not isinstance(where, str | Event | Operation):
            if as_whole(where) is None:
                shown = getattr(where, "__name__", "") or f"a {type(where).__name__}"
                raise ConfigError(
                    f"goto: give the number of an event, the path of a module or the name of an operation "
                    f"as text, or an event or operation of this walk, not {shown}"
                )
            return self._move(self._events[self._place(where)])
        if isinstance(where, Event):
            return self._go(where.number)
        if isinstance(where, Operation):
            return self._move(self._of(where, backward=self.here.backward))
        names = {event.op for event in self._events}
        is_op = where in names and not self._is_module(where)
        inside = (lambda event: event.op == where) if is_op else self._inside(where, or_op=True)
        events = [event for event in self._events if inside(event) and event.backward == self.here.backward]
        if not events:
            raise MiniresError(f"no gradient flows through {where}, so the way back does not lead there")
        after = [event for event in events if is_op and event.number > self._at]
        return self._move((after or events)[0])

    def find(self, op: str | None = None, path: str | None = None) -> Event:
        """Go to the next event, after this one, of an operation and, or, in a module; on both ways.

        Raises: ConfigError if there is none of this name at all, with the nearest; MiniresError if there is
        none after this event.
        """
        if op is None and path is None:
            raise ConfigError("find: say what to look for, op= or path= or both")
        if op is not None:
            _known("operation", op, {event.op for event in self._events})
        inside = self._inside(path) if path is not None else None
        found = [
            event
            for event in self._events
            if (op is None or event.op == op) and (inside is None or inside(event))
        ]
        what = " in ".join(filter(None, (op, path)))
        if not found:
            raise MiniresError(f"find: there is no {what}")
        after = [event for event in found if event.number > self._at]
        if not after:
            numbers = ", ".join(str(event.number) for event in found[-5:])
            raise MiniresError(f"find: no {what} comes after event {self._at}; those before: {numbers}")
        return self._move(after[0])

    def explain(self, **place: int) -> Explanation:
        """One number of the result where we are, step by step: see :meth:`Event.explain`."""
        return self.here.explain(**place)

    def _go(self, number: int) -> Event:
        if number < 0:
            raise self._no_event(number)
        return self._move(self._events[self._place(number)])

    def _place(self, number: object) -> int:
        """The place of an event; -1 is that of the last. Raises: NoEvent if there is none."""
        place = as_whole(number)
        if place is None:
            raise ConfigError(f"give the number of an event, not a {type(number).__name__}")
        if not -len(self._events) <= place < len(self._events):
            raise self._no_event(place)
        return place

    def _no_event(self, number: int) -> NoEvent:
        return NoEvent(f"there is no event {number}: 0 is the first and {len(self._events) - 1} the last")

    def _move(self, event: Event) -> Event:
        self._at = event.number
        return event

    def _of(self, operation: Operation, *, backward: bool) -> Event:
        for event in self._events:
            if event.operation is operation and event.backward == backward:
                return event
        raise MiniresError(f"no gradient flows through {operation!r}, so the way back does not lead there")

    def _ran(self) -> set[str]:
        return {part for event in self._events for part in (*event.operation.within, event.path) if part}

    def _is_module(self, path: str) -> bool:
        return path in self._ran() or path in self.recording.modules

    def _inside(self, path: str, *, or_op: bool = False) -> Callable[[Event], bool]:
        """Whether an event is in the module at ``path``, one of its names.

        Raises: ConfigError if there is no such module, or (``or_op``) neither module nor operation, with the
        nearest; or if it is there and did not run.
        """
        first, ran = self.recording.modules.get(path, path), self._ran()
        if first not in ran and path in self.recording.modules:
            raise ConfigError(f"the module {path!r} is there, but no operation ran in it")
        if first not in ran and or_op:
            ops = {event.op for event in self._events}
            raise ConfigError(
                f"there is no module {path!r}; {nearest(path, ran)}. "
                f"Nor is there such an operation; {nearest(path, ops)}"
            )
        _known("module", first, ran)
        return lambda event: first == event.path or first in event.operation.within


def _known(kind: str, name: str, names: set[str]) -> None:
    if name not in names:
        raise ConfigError(f"there is no {kind} {name!r}; {nearest(name, names)}")


def step(
    model: Module | Callable[[Tensor], Tensor] | Tensor, x: Any = None, y: Any = None, *,
    changes: Mapping[str, Any] | None = None,
) -> Stepper:  # fmt: skip
    """Record one forward and one backward pass, and begin at the input.

    With a model, or any function, and a batch ``x`` (and labels ``y``): see
    :func:`minires.debug.recording.record_passes`. With a loss alone, what its tape has kept: see
    :func:`minires.debug.tape.record_tape`. ``changes`` of the model, ``{"res3b": "drop"}``, are made
    meanwhile, as ``minires.intervene`` makes them, and the cards say so. Either way model, gradients and tape
    stay as they were.

    Shapes: x (N, H, W, C) or what the model takes; y (N,) class numbers or (N, K) probabilities.
    Raises: ShapeError if the batch does not fit the model; ConfigError if ``x`` is missing, or a loss comes
    with one or with changes; MiniresError if no gradient flows.
    """
    if isinstance(model, Tensor):
        if x is not None or y is not None or changes:
            raise ConfigError("step: a loss is stepped through alone; leave x, y and changes out")
        return Stepper(record_tape(model))
    if x is None:
        raise ConfigError("step: give a batch, step(model, x, y), or a loss alone, step(loss)")
    return Stepper(record_passes(model, x, y, changes=changes))

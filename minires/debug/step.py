"""A debugger for a network: walk through one forward and one backward pass, operation by operation.

    s = minires.step(model, x, y)
    s.next()                          the next stop; printing it shows its card
    s.goto("res3a_branch2b")          a module, a stop's number or an operation
    s.find(op="add")                  the next addition
    s.explain(n=0, i=3, j=5, o=7)     one number of the result, product by product
    s.back()                          to the gradient of this very operation

There is a stop for each operation on the way forward, the input first, and then one for each on the way back,
the input last. ``for stop in s`` and ``s[i]`` go through them without moving ``s``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
class Stop:
    """One operation on the way forward or backward; ``repr`` of it is its card.

    ``number`` is its place among the stops, ``last`` that of the last one.
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

        Raises: ConfigError for a backward stop and for an operation that cannot be explained; ShapeError for
        a place that is not there, with the ranges.
        """
        if self.backward:
            raise ConfigError(
                f"stop {self.number} is on the way back, and explain() shows how a result came about; "
                f"go to the forward stop of this operation first: goto({self.operation.number})"
            )
        return explain(self.operation, **place)

    @property
    def _title(self) -> str:
        return f"stop {self.number} of {self.last}, {self.direction}: {self.op} {self.path}".rstrip()

    def __repr__(self) -> str:
        return card.text(self.recording, self.operation, backward=self.backward, title=self._title)

    def _repr_html_(self) -> str:
        return card.page(self.recording, self.operation, backward=self.backward, title=self._title)


class NoStop(MiniresError, IndexError):
    """There is no stop of this number; for Python's own protocols it is an IndexError, too."""


class Stepper:
    """All stops of a recording, and the one where we are, ``here``."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        operations = recording.operations
        ways = [(False, one) for one in operations]
        ways += [(True, operations[number]) for number in recording.order_back]
        self._stops = [
            Stop(i, len(ways) - 1, backward, one, recording) for i, (backward, one) in enumerate(ways)
        ]
        self._at = 0

    @property
    def here(self) -> Stop:
        """The stop where we are."""
        return self._stops[self._at]

    def __len__(self) -> int:
        return len(self._stops)

    @overload
    def __getitem__(self, number: int) -> Stop: ...

    @overload
    def __getitem__(self, number: slice) -> list[Stop]: ...

    def __getitem__(self, number: int | slice) -> Stop | list[Stop]:
        return self._stops[number] if isinstance(number, slice) else self._stops[self._place(number)]

    def __iter__(self) -> Iterator[Stop]:
        return iter(self._stops)

    def __repr__(self) -> str:
        return repr(self.here)

    def _repr_html_(self) -> str:
        return self.here._repr_html_()

    # ------------------------------------------------------------------------------------------- moving

    def next(self) -> Stop:
        """Go to the next stop. Raises: MiniresError at the last one."""
        return self._go(self._at + 1)

    def prev(self) -> Stop:
        """Go to the stop before. Raises: MiniresError at the first one."""
        return self._go(self._at - 1)

    def back(self) -> Stop:
        """Go to the backward stop of the operation where we are.

        Raises: MiniresError if no gradient flows through it.
        """
        return self._move(self._of(self.here.operation, backward=True))

    def goto(self, where: int | str | Operation | Stop) -> Stop:
        """Go to a stop, by its number (-1 is the last), or to an operation or the first one in a module, on
        the way (forward or backward) where we are.

        A name that is no module's is that of an operation, mul: the next one after here, else the first.

        Raises: ConfigError if there is no such number or name, with the nearest names; MiniresError if no
        gradient flows there and we are on the way back.
        """
        if not isinstance(where, str | Stop | Operation):
            if as_whole(where) is None:
                shown = getattr(where, "__name__", "") or f"a {type(where).__name__}"
                raise ConfigError(
                    f"goto: give the number of a stop, the path of a module or the name of an operation "
                    f"as text, or a stop or operation of this walk, not {shown}"
                )
            return self._move(self._stops[self._place(where)])
        if isinstance(where, Stop):
            return self._go(where.number)
        if isinstance(where, Operation):
            return self._move(self._of(where, backward=self.here.backward))
        names = {stop.op for stop in self._stops}
        is_op = where in names and not self._is_module(where)
        inside = (lambda stop: stop.op == where) if is_op else self._inside(where, or_op=True)
        stops = [stop for stop in self._stops if inside(stop) and stop.backward == self.here.backward]
        if not stops:
            raise MiniresError(f"no gradient flows through {where}, so the way back does not lead there")
        after = [stop for stop in stops if is_op and stop.number > self._at]
        return self._move((after or stops)[0])

    def find(self, op: str | None = None, path: str | None = None) -> Stop:
        """Go to the next stop, after this one, of an operation and, or, in a module; on both ways.

        Raises: ConfigError if there is none of this name at all, with the nearest; MiniresError if there is
        none after this stop.
        """
        if op is None and path is None:
            raise ConfigError("find: say what to look for, op= or path= or both")
        if op is not None:
            _known("operation", op, {stop.op for stop in self._stops})
        inside = self._inside(path) if path is not None else None
        found = [
            stop for stop in self._stops if (op is None or stop.op == op) and (inside is None or inside(stop))
        ]
        what = " in ".join(filter(None, (op, path)))
        if not found:
            raise MiniresError(f"find: there is no {what}")
        after = [stop for stop in found if stop.number > self._at]
        if not after:
            numbers = ", ".join(str(stop.number) for stop in found[-5:])
            raise MiniresError(f"find: no {what} comes after stop {self._at}; those before: {numbers}")
        return self._move(after[0])

    def explain(self, **place: int) -> Explanation:
        """One number of the result where we are, step by step: see :meth:`Stop.explain`."""
        return self.here.explain(**place)

    def _go(self, number: int) -> Stop:
        if number < 0:
            raise self._no_stop(number)
        return self._move(self._stops[self._place(number)])

    def _place(self, number: object) -> int:
        """The place of a stop; -1 is that of the last. Raises: NoStop if there is none."""
        place = as_whole(number)
        if place is None:
            raise ConfigError(f"give the number of a stop, not a {type(number).__name__}")
        if not -len(self._stops) <= place < len(self._stops):
            raise self._no_stop(place)
        return place

    def _no_stop(self, number: int) -> NoStop:
        return NoStop(f"there is no stop {number}: 0 is the first and {len(self._stops) - 1} the last")

    def _move(self, stop: Stop) -> Stop:
        self._at = stop.number
        return stop

    def _of(self, operation: Operation, *, backward: bool) -> Stop:
        for stop in self._stops:
            if stop.operation is operation and stop.backward == backward:
                return stop
        raise MiniresError(f"no gradient flows through {operation!r}, so the way back does not lead there")

    def _ran(self) -> set[str]:
        return {part for stop in self._stops for part in (*stop.operation.within, stop.path) if part}

    def _is_module(self, path: str) -> bool:
        return path in self._ran() or path in self.recording.modules

    def _inside(self, path: str, *, or_op: bool = False) -> Callable[[Stop], bool]:
        """Whether a stop is in the module at ``path``, one of its names.

        Raises: ConfigError if there is no such module, or (``or_op``) neither module nor operation, with the
        nearest; or if it is there and did not run.
        """
        first, ran = self.recording.modules.get(path, path), self._ran()
        if first not in ran and path in self.recording.modules:
            raise ConfigError(f"the module {path!r} is there, but no operation ran in it")
        if first not in ran and or_op:
            ops = {stop.op for stop in self._stops}
            raise ConfigError(
                f"there is no module {path!r}; {nearest(path, ran)}. "
                f"Nor is there such an operation; {nearest(path, ops)}"
            )
        _known("module", first, ran)
        return lambda stop: first == stop.path or first in stop.operation.within


def _known(kind: str, name: str, names: set[str]) -> None:
    if name not in names:
        raise ConfigError(f"there is no {kind} {name!r}; {nearest(name, names)}")


def step(model: Module | Callable[[Tensor], Tensor] | Tensor, x: Any = None, y: Any = None) -> Stepper:
    """Record one forward and one backward pass, and begin at the input.

    With a model, or any function, and a batch ``x`` (and labels ``y``): see
    :func:`minires.debug.recording.record_passes`. With a loss alone, what its tape has kept: see
    :func:`minires.debug.tape.record_tape`. Either way model, gradients and tape stay as they were.

    Shapes: x (N, H, W, C) or what the model takes; y (N,) class numbers or (N, K) probabilities.
    Raises: ShapeError if the batch does not fit the model; ConfigError if ``x`` is missing, or a loss comes
    with one; MiniresError if no gradient flows.
    """
    if isinstance(model, Tensor):
        if x is not None or y is not None:
            raise ConfigError("step: a loss is stepped through alone; leave x and y out")
        return Stepper(record_tape(model))
    if x is None:
        raise ConfigError("step: give a batch, step(model, x, y), or a loss alone, step(loss)")
    return Stepper(record_passes(model, x, y))

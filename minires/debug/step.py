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
        return self._stops[number]

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
        """Go to a stop, by its number, or to an operation or the first one in a module, on the way (forward
        or backward) where we are.

        Raises: ConfigError if there is no such number or module, with the nearest names; MiniresError if no
        gradient flows there and we are on the way back.
        """
        if not isinstance(where, str | Stop | Operation):
            number = as_whole(where)
            if number is None:
                raise ConfigError(f"goto: give the number of a stop, an operation or a path, not {where!r}")
            return self._go(number)
        if isinstance(where, Stop):
            return self._go(where.number)
        if isinstance(where, Operation):
            return self._move(self._of(where, backward=self.here.backward))
        inside = self._inside(where)
        stops = [stop for stop in self._stops if inside(stop) and stop.backward == self.here.backward]
        if not stops:
            raise MiniresError(f"no gradient flows through {where}, so the way back does not lead there")
        return self._move(stops[0])

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
        last = len(self._stops) - 1
        if not 0 <= number <= last:
            raise MiniresError(f"there is no stop {number}: 0 is the first and {last} the last")
        return self._move(self._stops[number])

    def _move(self, stop: Stop) -> Stop:
        self._at = stop.number
        return stop

    def _of(self, operation: Operation, *, backward: bool) -> Stop:
        for stop in self._stops:
            if stop.operation is operation and stop.backward == backward:
                return stop
        raise MiniresError(f"no gradient flows through {operation!r}, so the way back does not lead there")

    def _inside(self, path: str) -> Callable[[Stop], bool]:
        """Whether a stop is in the module at ``path``. Raises: ConfigError if there is no such module."""
        known = {part for stop in self._stops for part in (*stop.operation.within, stop.path) if part}
        _known("module", path, known)
        return lambda stop: path == stop.path or path in stop.operation.within


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

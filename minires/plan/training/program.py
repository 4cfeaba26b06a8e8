"""From the steps of a model to the program of a training step: forward, and back again.

The steps are gone through once forward and once backward, as on the tape, and each writes its lines. A value
keeps its place as long as a line needs it, and so does a gradient; what several steps give to the gradient of
one value is added by the kernels that compute it. What no line knows (a pool, the last layers) is *called*:
the operation itself, on a little tape of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from minires import backend
from minires.errors import ConfigError
from minires.ops.dropout import dropout
from minires.plan.steps import Read, Step, Traced, called
from minires.plan.training.batch_norm import BatchNorms
from minires.plan.training.convolution import Convolutions
from minires.plan.training.lines import Place, Program
from minires.plan.training.walk import Do
from minires.tensor import Tensor


@dataclass
class _Called:
    """An operation that is called, its inputs and its result, while the step goes on."""

    inputs: dict[str, Tensor] = field(default_factory=dict)
    y: Tensor | None = None


class Writer(Convolutions, BatchNorms):
    """Writes the program of a training step.

    exact: the statistics of a history are added up anew for each batch norm, as the model does.
    pictures: convolutions take the ways that are the fastest for so many.
    """

    def __init__(
        self, traced: Traced, dtype: Any, generators: Mapping[str, np.random.Generator], *, exact: bool,
        pictures: int,
    ) -> None:  # fmt: skip
        super().__init__(traced, dtype, pictures)
        self.generators, self.exact = generators, exact
        self.calls: dict[int, _Called] = {}

    # ----------------------------------------------------------------------------------------- the whole

    def program(self) -> Program:
        traced, steps = self.traced, self.traced.steps
        last = self._last_uses()
        first = {step.writes: number for number, step in reversed(list(enumerate(steps)))}
        self._place(traced.input)
        at_input = self.where[traced.input].at
        for number, step in enumerate(steps):
            if step.writes not in self.where and step.op != "pad_channels":
                self._place(step.writes)
            lines = self._lines_of(step)
            if lines is None:
                self._call(number, step)
            else:
                lines(step)
            self._release([*(read.value for read in step.reads.values()), step.writes], last, number)
        output = traced.output.value
        y = self.where[output].at, math.prod(traced.output.shape)
        self._end_lines()
        forward, self.items = self.items, []
        self.gradients[output] = self._new(math.prod(output.shape))
        dy = self.gradients[output].at, math.prod(output.shape)
        for number, step in reversed(list(enumerate(steps))):
            back = 2 * len(steps) - 1 - number
            if step in self.leading and step.writes in self.gradients and step.writes in self.needs:
                lines = self._lines_of(step, "_back")
                if lines is None:
                    self._call_back(number, step)
                else:
                    lines(step)
                if number == first[step.writes]:  # of the parts of a history all others came before
                    self._drop(self.gradients.pop(step.writes))
            self._release([*(read.value for read in step.reads.values()), step.writes], last, back)
        self._end_lines()
        return self._laid_out(forward, (at_input, math.prod(traced.input.shape)), y, dy)

    # ------------------------------------------------------------------------------------------- called

    def _lines_of(self, step: Step, way: str = "") -> Callable[[Step], None] | None:
        """What writes the lines of a step; None of one that is called."""
        found: Callable[[Step], None] | None = getattr(self, f"_{step.op}{way}", None) if step.known else None
        return found

    def _call(self, number: int, step: Step) -> None:
        self._end_lines()
        places = {name: (self._at(read), read.shape) for name, read in step.reads.items()}
        y, call = self.where[step.writes].at, _Called()
        learns = step.writes in self.needs and self._lines_of(step, "_back") is None
        self.calls[number] = call
        learned = {name: tensor.requires_grad for name, tensor in step.tensors.items()}
        if step.op == "dropout":
            if step.path not in self.generators:
                raise ConfigError("no plan of training knows a dropout that is not a layer of its own")
            options = {**step.options, "rng": self.generators[step.path]}
            step = replace(step, function=dropout, options=options)

        def forward() -> None:
            call.inputs = {
                name: Tensor(
                    self._view(*places[name]), requires_grad=learns and step.reads[name].value in self.needs
                )
                if name in places
                else Tensor(step.tensors[name].data, requires_grad=learned[name])
                for name in (*step.reads, *step.tensors)
            }
            result = called(step, call.inputs)
            backend.copy(result.data, self._view(y, step.writes.shape))
            result.data = self._view(y, step.writes.shape)  # it need not have numbers of its own
            call.y = result if learns else None

        self.items.append(forward)

    def _call_back(self, number: int, step: Step) -> None:
        self._end_lines()
        call, dy = self.calls[number], self.gradients[step.writes].at
        targets: dict[str, tuple[int, int, tuple[int, ...]]] = {}
        for name, read in step.reads.items():
            if read.value in self.needs:

                def give(at: int, added: int, name: str = name, shape: tuple[int, ...] = read.shape) -> None:
                    targets[name] = at, added, shape

                self._grows(read.value, give)
        numbers = {
            name: next(i for i, one in enumerate(self.parameters) if one is tensor)
            for name, tensor in step.tensors.items()
            if tensor.requires_grad
        }

        def backward() -> None:
            assert call.y is not None
            call.y.backward(self._view(dy, step.writes.shape))
            for name, (at, added, shape) in targets.items():
                gradient, target = call.inputs[name].grad, self._view(at, shape)
                if gradient is None:  # it does not hang on it
                    gradient = np.zeros(shape, self.dtype)
                if added < 0:
                    backend.copy(gradient, target)
                else:
                    backend.add(self._view(added, shape), gradient, out=target)
            for name, number in numbers.items():
                gradient = call.inputs[name].grad
                if gradient is not None:
                    self.called[number] = gradient
            call.inputs, call.y = {}, None

        self.items.append(backward)

    # -------------------------------------------------------------------------------------- all the others

    def _add(self, step: Step) -> None:
        a, *b = (self._at(read) for read in step.reads.values())
        count = math.prod(step.writes.shape)
        y = self.where[step.writes].at
        self._line(Do.ADD, self._pieces(count, count), a, b[0] if b else -1, y, count, step.op == "relu")

    _relu = _add

    def _relu_back(self, step: Step) -> None:
        count, dy = math.prod(step.writes.shape), self.gradients[step.writes]
        masked = self._new(count)
        self._line(Do.PASS, self._pieces(count, count), dy.at, self.where[step.writes].at, masked.at, count)
        self._share_all(step, masked)
        self._drop(masked)

    def _mul(self, step: Step) -> None:
        x, gate = _gated(step)
        n, h, w, c = x.shape
        where = self._at(x), self._at(gate), self.where[step.writes].at
        self._line(Do.GATE, self._pieces(n * h * w * c, n * h * w), *where, n, h * w, c, -1)

    def _mul_back(self, step: Step) -> None:
        """dx and dgate, in one go where both are asked for, and are not those of one value."""
        x, gate = _gated(step)
        if x.value not in self.needs or gate.value not in self.needs or x.value is gate.value:
            if x.value in self.needs:
                self._grows(x.value, lambda at, added: self._gate_back(step, (at, added), (-1, -1)))
            if gate.value in self.needs:
                self._grows(gate.value, lambda at, added: self._gate_back(step, (-1, -1), (at, added)))
            return

        def give(*dx: int) -> None:
            self._grows(gate.value, lambda *dgate: self._gate_back(step, dx, dgate))

        self._grows(x.value, give)

    def _gate_back(self, step: Step, dx: tuple[int, ...], dgate: tuple[int, ...]) -> None:
        """dx and dgate: where each belongs, and what is added to it, or -1."""
        x, gate = _gated(step)
        n, h, w, c = x.shape
        pieces, where = self._pieces(n * h * w * c, n), (self._at(x), self._at(gate))
        dy, sums = self.gradients[step.writes].at, self._sums(pieces * c)
        self._line(Do.GATE_BACK, pieces, dy, *where, n, h * w, c, *dx, *dgate, sums)

    def _global_avg_pool2d_back(self, step: Step) -> None:
        read, dy = step.reads["x"], self.gradients[step.writes].at
        n, h, w, c = read.shape

        def give(at: int, added: int) -> None:
            pieces = self._pieces(n * h * w * c, n * h * w)
            self._line(Do.GLOBAL_AVG_BACK, pieces, dy, at, n, h * w, c, added)

        if read.value in self.needs:
            self._grows(read.value, give)

    def _pad_channels(self, step: Step) -> None:
        """Its zeros stay: the place is nobody else's."""
        size = math.prod(step.writes.shape)
        self.where[step.writes] = Place(self.memory.add(size), size, users=2)
        (_, h, w, c), (n, oh, ow, wide), stride = *_padded(step), step.options["stride"]
        to, x = self.where[step.writes].at + step.options["before"], self._at(step.reads["x"])
        self._line(
            Do.COPY, self._pieces(n * oh * ow * c, n * oh), x, h * w * c, stride * w * c, stride * c, to,
            oh * ow * wide, ow * wide, wide, n, oh, ow, c,
        )  # fmt: skip

    def _pad_channels_back(self, step: Step) -> None:
        read = step.reads["x"]
        (_, h, w, c), (n, oh, ow, wide), stride = *_padded(step), step.options["stride"]
        place, count = self.gradients.get(read.value), n * h * w * c
        if place is None:
            place = self.gradients[read.value] = self._new(count)
            self._fill(place, n * h * w, c)
        elif place.users > 1:
            place = self._own(read.value, count)
        dy = self.gradients[step.writes].at + step.options["before"]
        self._line(
            Do.COPY, self._pieces(n * oh * ow * c, n * oh), dy, oh * ow * wide, ow * wide, wide, place.at,
            h * w * c, stride * w * c, stride * c, n, oh, ow, c, 1,
        )  # fmt: skip

    def _add_back(self, step: Step) -> None:
        self._share_all(step, self.gradients[step.writes])

    def _share_all(self, step: Step, place: Place) -> None:
        for read in step.reads.values():
            if read.value in self.needs:
                self._shares(read.value, place)

    def _copy(self, step: Step) -> None:
        read, row = step.reads["x"], step.writes.shape[-1]
        rows, c, to = math.prod(read.shape[:-1]), read.shape[-1], self.where[step.writes].at + step.at
        x, pieces = self._at(read), self._pieces(rows * c, rows)
        self._line(Do.COPY, pieces, x, 0, read.row, 0, to, 0, row, 0, 1, rows, 1, c)
        if not self.exact and self._is_normalized(step.writes):
            if step.writes not in self.known:
                self.known[step.writes] = self.memory.add(row), self.memory.add(row)
            mean, var = self.known[step.writes]
            self._moments(x, c, rows, c, mean + step.at, var + step.at)

    def _copy_back(self, step: Step) -> None:
        read, row, dy = step.reads["x"], step.writes.shape[-1], self.gradients[step.writes].at + step.at
        if read.value not in self.needs:
            return
        rows, c = math.prod(read.shape[:-1]), read.shape[-1]
        if not read.is_whole:
            raise ConfigError("no plan of training knows a copy of a part of a history")

        def give(at: int, added: int) -> None:
            if added >= 0:
                count = rows * c
                self._line(Do.ADD, self._pieces(count, count), added, -1, at, count, 0)
            pieces = self._pieces(rows * c, rows)
            self._line(Do.COPY, pieces, dy, 0, row, 0, at, 0, c, 0, 1, rows, 1, c, added >= 0)

        self._grows(read.value, give)


def _padded(step: Step) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes before and after channels were added."""
    return step.reads["x"].shape, step.writes.shape


def _gated(step: Step) -> list[Read]:
    """The pictures and the gate of a product."""
    return sorted(step.reads.values(), key=lambda read: read.shape[1:3], reverse=True)

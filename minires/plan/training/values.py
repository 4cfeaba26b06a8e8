"""What a planned training step computes: where each value and its gradient lies, and how long."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from minires.errors import ConfigError
from minires.plan.steps import Read, Step, Traced, Value, leading, zeros_of
from minires.plan.training.lines import Lines, Place
from minires.plan.training.walk import Do
from minires.tensor import Tensor


class Values(Lines):
    """Lines about values and their gradients."""

    def __init__(self, traced: Traced, dtype: Any) -> None:
        super().__init__(dtype, zeros_of(traced))
        self.traced, self.where = traced, dict[Value, Place]()
        self.gradients: dict[Value, Place] = {}
        self.leading = leading(traced.steps, traced.output)
        self.needs = self._needs()

    # ------------------------------------------------------------------------------------ what is needed

    def _needs(self) -> set[Value]:
        """The values whose gradients are needed: those on the way from something that is learned."""
        needed: set[Value] = set()
        for step in self.traced.steps:
            if step not in self.leading:
                continue
            for name, tensor in step.tensors.items():
                if tensor.requires_grad:
                    self._add_parameter(step, name, tensor)
            if any(read.value in needed for read in step.reads.values()) or any(
                tensor.requires_grad for tensor in step.tensors.values()
            ):
                needed.add(step.writes)
        return needed

    def _add_parameter(self, step: Step, name: str, tensor: Tensor) -> None:
        where = f"{step.op} in {step.path or 'the model'}"
        if tensor.node is None or tensor.node.op != "leaf":
            raise ConfigError(
                f"no plan of training is made where {name} of {where} is computed from parameters anew in "
                "each step; train the model itself"
            )
        if any(one is tensor for one in self.parameters):
            raise ConfigError(
                f"no plan of training is made where two layers share a parameter, {name} of {where}; train "
                "the model itself"
            )
        if tensor.dtype != self.dtype or not tensor.data.flags.c_contiguous:
            raise ConfigError(
                f"a plan of training needs parameters of {self.dtype} without gaps, but {name} of {where} is "
                f"{tensor.dtype} {tensor.shape}"
            )
        self.parameters.append(tensor)

    def _last_uses(self) -> dict[Value, int]:
        """The number of the step that needs a value last: forward 0, 1, ..., backward on from there."""
        steps, last = self.traced.steps, dict[Value, int]()
        for number, step in enumerate(steps):
            for read in step.reads.values():
                last[read.value] = number
            last.setdefault(step.writes, number)
        for number, step in enumerate(steps):
            back = 2 * len(steps) - 1 - number
            if step.writes not in self.needs:
                continue
            for value in self._kept(step):
                last[value] = max(last[value], back)
        last[self.traced.output.value] = 2 * len(steps)  # who asked reads it
        return last

    def _kept(self, step: Step) -> list[Value]:
        """The values that the way back through a step needs."""
        reads = step.reads
        if not step.known:
            return [read.value for read in reads.values()]
        relu = bool(step.options.get("relu"))
        if step.op in ("conv2d", "linear"):
            kept = [reads["x"].value] if step.tensors["w"].requires_grad else []
            return kept + ([step.writes] if relu else [])
        if step.op == "batch_norm":
            return [reads["x"].value] + ([step.writes] if "add" in reads and relu else [])
        if step.op == "mul":
            return [read.value for read in reads.values()]
        return [step.writes] if step.op in ("relu", "sigmoid") else []

    def _place(self, value: Value) -> None:
        self.where[value] = self._new(math.prod(value.shape))

    def _release(self, values: list[Value], last: dict[Value, int], number: int) -> None:
        for value in dict.fromkeys(values):
            if last[value] == number and value in self.where:
                self._drop(self.where.pop(value))

    def _at(self, read: Read) -> int:
        return self.where[read.value].at

    # ------------------------------------------------------------------------------------ the gradients

    def _grows(self, value: Value, give: Callable[[int, int], None]) -> None:
        """``give(place, added)`` writes the lines for a gradient of a value: at a place, and what others
        gave before, at ``added`` (or -1), is added to it."""
        before, place = self.gradients.get(value), self._new(math.prod(value.shape))
        give(place.at, -1 if before is None else before.at)
        self.gradients[value] = place
        if before is not None:
            self._drop(before)

    def _shares(self, value: Value, place: Place) -> None:
        """The gradient of a value is one that there is already, or that and what others gave before."""
        if value not in self.gradients:
            place.users += 1
            self.gradients[value] = place
            return
        count = math.prod(value.shape)

        def give(at: int, added: int) -> None:
            self._line(Do.ADD, self._pieces(count, count), added, place.at, at, count, 0)

        self._grows(value, give)

    def _fill(self, place: Place, rows: int, row: int) -> None:
        """Zeros."""
        pieces = self._pieces(rows * row, rows)
        self._line(Do.COPY, pieces, self.zeros, 0, 0, 0, place.at, 0, row, 0, 1, rows, 1, row)

    def _own(self, value: Value, count: int) -> Place:
        """A gradient that is that of others, too, as a copy of its own."""
        before, own = self.gradients[value], self._new(count)
        self._line(Do.ADD, self._pieces(count, count), before.at, -1, own.at, count, 0)
        self.gradients[value] = own
        self._drop(before)
        return own

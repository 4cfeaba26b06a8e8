"""The lines of batch norms, as ``minires.ops.batch_norm.numba_kernels`` computes them."""

from __future__ import annotations

import math
from typing import Any

from minires.backend import Array
from minires.errors import ConfigError
from minires.ops.batch_norm.numba_kernels import sharing
from minires.plan.steps import Step, Value
from minires.plan.training.lines import Place
from minires.plan.training.values import Values
from minires.plan.training.walk import Do


class BatchNorms(Values):
    """Writes the lines of batch norms."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.known: dict[Value, tuple[int, int]] = {}  # mean and variance of a history's channels
        self.moments: dict[Step, tuple[int, int]] = {}  # ... of a batch norm's

    def _batch_norm(self, step: Step) -> None:
        read, o, c = step.reads["x"], step.options, step.reads["x"].shape[-1]
        rows, x, row = math.prod(read.shape[:-1]), self._at(read), read.row
        replaced, factor = _moved(o, rows)
        numbers = self._numbers(1 - replaced, replaced, factor)
        if read.value in self.known and row == read.value.shape[-1]:
            mean, var = self.known[read.value]
            line = self._line(Do.MOMENTS_END, 1, 0, 0, c, 1, x, rows, mean, var, -1, -1, numbers)
        else:
            mean, var = self.memory.add(c), self.memory.add(c)
            line = self._moments(x, row, rows, c, mean, var, numbers)
        self.moments[step] = mean, var
        for column, name in ((10, "running_mean"), (11, "running_var")):
            if o[name] is not None:
                self._running(line, column, o[name], step)
        added = self._at(step.reads["add"]) if "add" in step.reads else -1
        pieces, y, eps = self._pieces(rows * c, rows), self.where[step.writes].at, self._numbers(o["eps"])
        line = self._line(
            Do.NORMALIZE, pieces, x, row, y, rows, c, mean, var, 0, 0, added, bool(o.get("relu")), eps,
            self._room("scale", c),
        )  # fmt: skip
        self._of(line, 9, step.tensors["gamma"])
        self._of(line, 10, step.tensors["beta"])

    def _moments(
        self, x: int, row: int, rows: int, c: int, mean: int, var: int, numbers: int = 0
    ) -> int:  # fmt: skip
        """Mean and variance of the channels of x (rows, c). Returns the line that ends with them."""
        together, pieces = sharing(rows, c)
        copied = self._beside(x, row, rows, c) if together > 1 else None
        if copied is not None:
            x, row = copied.at, c
        sums, room = self._sums(pieces * 2 * together * c), self._room("shift", together * c)
        self._line(Do.MOMENTS, pieces, x, row, rows, c, together, sums, room)
        line = self._line(Do.MOMENTS_END, 1, 0, pieces, c, together, x, rows, mean, var, -1, -1, numbers)
        if copied is not None:
            self._drop(copied)
        return line

    def _beside(self, x: int, row: int, rows: int, c: int) -> Place | None:
        """The first c channels of a history, row by row side by side; None where they are so already."""
        if row == c:
            return None
        place = self._new(rows * c)
        self._line(Do.COPY, self._pieces(rows * c, rows), x, 0, row, 0, place.at, 0, c, 0, 1, rows, 1, c)
        return place

    def _running(self, line: int, column: int, array: Array, step: Step) -> None:
        if array.dtype != self.dtype or not array.flags.c_contiguous:
            raise ConfigError(
                f"a plan of training needs running statistics of {self.dtype} without gaps; those of "
                f"{step.path} are {array.dtype}"
            )
        self.buffers.append((line, column, array))

    def _batch_norm_back(self, step: Step) -> None:
        read, o, c = step.reads["x"], step.options, step.reads["x"].shape[-1]
        rows, x, row, dy = math.prod(read.shape[:-1]), self._at(read), read.row, self.gradients[step.writes]
        (together, pieces), relu = sharing(rows, c), bool(o.get("relu"))
        gamma, beta, (mean, var) = step.tensors["gamma"], step.tensors["beta"], self.moments[step]
        y = self.where[step.writes].at if relu and "add" in step.reads else -1
        wide, eps = together * c, self._numbers(o["eps"])
        copied = self._beside(x, row, rows, c) if together > 1 else None
        line = self._line(
            Do.SLOPES, pieces, dy.at, *((x, row) if copied is None else (copied.at, c)), y, rows, c, together,
            mean, var, 0, 0, relu, eps, self._sums(pieces * 2 * wide), self._room("shift", 4 * wide),
        )  # fmt: skip
        if copied is not None:
            self._drop(copied)
        self.read_again += [gamma, beta]
        self._of(line, 11, gamma)
        self._of(line, 12, beta)
        scale, slope, offset = (self.memory.add(c) for _ in range(3))
        line = self._line(
            Do.SLOPES_END, 1, 0, pieces, c, together, rows, var, 0, eps, -1, -1, scale, slope, offset
        )
        self._of(line, 8, gamma)
        for column, tensor in ((10, gamma), (11, beta)):
            if tensor.requires_grad:
                self._of(line, column, tensor, "gradient")
        add = step.reads.get("add")
        shortcut: Place | None = None
        if add is not None and add.value in self.needs and relu:
            shortcut = self._new(rows * c)
        needs_x = read.value in self.needs

        dx, nowhere = self.gradients.get(read.value), None
        grows = dx is not None
        if not needs_x:
            dx = nowhere = self._new(rows * row)
        elif dx is None:
            dx = self.gradients[read.value] = self._new(rows * row)
            if row > c:  # the first channels of a history, of which nobody has read the others
                grows = True
                self._fill(dx, rows, row)
        elif dx.users > 1:
            dx = self._own(read.value, rows * row)
        line = self._line(
            Do.GRADIENT, self._pieces(rows * c, rows), dy.at, x, row, y, rows, c, mean, scale, 0, relu, slope,
            offset, dx.at, row, grows, -1 if shortcut is None else shortcut.at,
        )  # fmt: skip
        self._of(line, 10, beta)
        if nowhere is not None:
            self._drop(nowhere)
        if add is not None and add.value in self.needs:
            self._shares(add.value, shortcut or dy)
        if shortcut is not None:
            self._drop(shortcut)

    def _is_normalized(self, value: Value) -> bool:
        """Whether batch norms read a history as it was put together."""
        steps, row = self.traced.steps, value.shape[-1]
        reads = [step.reads["x"] for step in steps if step.op == "batch_norm"]
        parts = [step.reads["x"] for step in steps if step.op == "copy" and step.writes is value]
        asked = any(read.value is value and read.row == row for read in reads)
        return asked and all(part.is_whole for part in parts)


def _moved(options: Any, rows: int) -> tuple[float, float]:
    """By what share running statistics move, and the factor of the variance: see minires.ops.batch_norm."""
    momentum = float(options["momentum"])
    return (momentum, rows / (rows - 1)) if options["convention"] == "torch" else (1 - momentum, 1.0)

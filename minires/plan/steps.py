"""What a plan is made from: steps, and the values that they read and write.

A step is an operation, the values that it reads, the one that it writes, its constants and its options. A
value is an array that does not exist yet.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from minires.backend import Array, simd
from minires.errors import ConfigError, ShapeError
from minires.modes import with_settings
from minires.ops.window import Window, window
from minires.tensor import Tensor

Shape = tuple[int, ...]
RESULT = object()  # in the options of a step: the shape of what it writes


def given(x: Any, shape: Shape, dtype: Any, *, fewer: bool) -> Array:
    """The pictures that a plan was called with. Raises: ShapeError if it was not made for such."""
    x = x.data if isinstance(x, Tensor) else np.asarray(x, dtype if isinstance(x, list | tuple) else None)
    if x.dtype != dtype:
        raise ShapeError(
            f"this plan computes with {dtype}, not with {x.dtype}: give it x.astype({str(dtype)!r}), scaled "
            "as the model wants its pictures"
        )
    if x.shape[1:] != shape[1:] or len(x) > shape[0] or (len(x) < shape[0] and not fewer):
        raise ShapeError(
            f"this plan was made for pictures {shape}{', or fewer of them' if fewer else ''}, not for "
            f"{x.shape}; minires.compile makes one for these"
        )
    return x


def row_of(shape: Shape) -> int:
    """The numbers of a row, those along the last axis."""
    return shape[-1] if shape else 1


@dataclass(eq=False)
class Value:
    """An array of a plan."""

    shape: Shape


@dataclass(frozen=True)
class Read:
    """A value as a step reads it: in a shape of its own, of its first channels only, perhaps."""

    value: Value
    shape: Shape

    @property
    def is_whole(self) -> bool:
        """Whether all numbers of the value are read, so that they lie side by side."""
        return math.prod(self.shape) == math.prod(self.value.shape)

    @property
    def row(self) -> int:
        """From one pixel to the next: more numbers than there are channels in the first part of a history."""
        return row_of(self.shape if self.is_whole else self.value.shape)


@dataclass(frozen=True, eq=False)
class Step:
    """An operation: the values it reads by name, the value it writes, from which channel of it on, in which
    shape, its constants and its options. ``known`` says whether plans have a kernel for it; ``function`` is
    the operation itself, if a call of it can be made anew from all that it declares."""

    op: str
    reads: dict[str, Read]
    writes: Value
    at: int = 0
    tensors: dict[str, Tensor] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    path: str = ""
    known: bool = True
    function: Callable[..., Tensor] | None = None

    @property
    def constants(self) -> dict[str, Array]:
        """The numbers of its constants."""
        return {name: tensor.data for name, tensor in self.tensors.items()}

    @property
    def values(self) -> list[Value]:
        """All that it reads and writes, each once."""
        return list(dict.fromkeys([*(read.value for read in self.reads.values()), self.writes]))


@dataclass(frozen=True)
class Traced:
    """The steps from ``input`` to ``output``."""

    steps: list[Step]
    input: Value
    output: Read
    meeting: str = ""  # where something is not as long as there are pictures, times a number

    def of(self, pictures: int) -> Traced:
        """The same steps for another number of pictures.

        Raises: ConfigError where a value has not a row for each picture, or as many for each.
        """
        before = self.input.shape[0]
        if self.meeting:
            raise ConfigError(self.meeting)
        values = dict.fromkeys([self.input, *(value for step in self.steps for value in step.values)])
        found = {value: Value((value.shape[0] * pictures // before, *value.shape[1:])) for value in values}

        def moved(read: Read) -> Read:
            return Read(found[read.value], (read.shape[0] * pictures // before, *read.shape[1:]))

        steps = []
        for step in self.steps:
            reads = {name: moved(read) for name, read in step.reads.items()}
            steps.append(replace(step, reads=reads, writes=found[step.writes]))
        return Traced(steps, found[self.input], moved(self.output))


def window_of(options: Mapping[str, Any], x: Shape) -> Window:
    """The window of a call on pictures of shape x."""
    asked = (options[name] for name in ("kernel", "stride", "padding", "dilation"))
    return window("a plan", (x[1], x[2]), *asked)


_CACHE = 1 << 22  # numbers that the caches of a processor hold, about


def at_a_time(traced: Traced) -> Traced:
    """The steps for some of the pictures only, where the values of all would not stay in the caches from one
    step to the next, and the weights, which each time are read anew, are few."""
    n = traced.input.shape[0]
    values = [sum(math.prod(value.shape) for value in step.values) for step in traced.steps]
    weights = sum(array.size for step in traced.steps for array in step.constants.values())
    written = sum(math.prod(step.writes.shape) for step in traced.steps)
    least = max(1, _CACHE * n // max([*values, 1]), -(-4 * weights * n // max(1, written)))
    # As few pictures as possible are computed for nothing.
    few = min([*range(least, min(2 * least, n)), n], key=lambda some: -(-n // some) * some)
    try:
        return traced if few >= n else traced.of(few)
    except ConfigError:  # pictures meet
        return traced


def zeros_of(traced: Traced) -> int:
    """The numbers of the longest row that lies outside a picture, or line of one by Winograd's way."""
    rows = [simd.width(simd.shapes()[0], np.float32)]
    for step in traced.steps:
        rows += [row_of(read.shape) for read in step.reads.values()]
        if step.op == "conv2d":
            rows += [math.prod(shape[2:]) for shape in (step.reads["x"].shape, step.writes.shape)]
    return max(rows)


def leading(steps: list[Step], output: Read, others: Sequence[Step] = ()) -> set[Step]:
    """The steps whose results lead to the output, or to one of the ``others``, and these themselves."""
    found = set(others)
    channels = {output.value: row_of(output.value.shape)}  # that are read; a history may have more behind
    for step in reversed(steps):
        if step in found or step.at < channels.get(step.writes, 0):
            found.add(step)
            for read in step.reads.values():
                row = row_of(read.value.shape if read.is_whole else read.shape)
                channels[read.value] = max(row, channels.get(read.value, 0))
    return found


def called(step: Step, arguments: Mapping[str, Any]) -> Tensor:
    """The operation of a step, called with these and its options.

    Raises: ConfigError if its result has another shape than when the model was watched.
    """
    assert step.function is not None
    options = {name: step.writes.shape if value is RESULT else value for name, value in step.options.items()}
    with with_settings(watcher=None):
        y = step.function(**arguments, **options)
    if y.shape != step.writes.shape:
        raise ConfigError(
            f"no plan knows {step.op!r} as {step.path or 'the model'} calls it: it gave {y.shape}, and not "
            f"{step.writes.shape}; use the model itself"
        )
    return y

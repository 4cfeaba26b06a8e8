"""Arithmetic of what computes nothing: each number of the result is one of an input, or a number that fills.

Where a number comes from is found by moving the places instead of the values: the operation, done with arrays
that hold 1, 2, 3, ... says for each place which of them has come there, and 0 where none has.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minires.backend import Array
from minires.ops.forms.values import Index, Shape, Values, floats, kept


@dataclass(frozen=True)
class Taken:
    """A number that was handed on: from which input and which place of it; no input is what fills."""

    result: float
    input: str | None = None
    place: Index = ()


@dataclass(frozen=True)
class Moved:
    """y = numbers of the inputs in other places.

    move: the operation itself on plain arrays: ``move(*inputs, **options)``. It puts 0 where nothing comes
    from an input.
    fill: the option that says what is there instead, if not 0.
    channelwise: whether channel c of the result is channel c of the input.
    """

    move: Callable[..., Array]
    fill: str = ""
    channelwise: bool = False
    last = "c"

    def origins(self, shapes: Mapping[str, Shape], options: Mapping[str, Any]) -> NDArray[np.int64]:
        """For each number of the result, which number it is of all those of the inputs, counted in their
        order; -1 where it is none."""
        starts = itertools.accumulate(map(math.prod, shapes.values()), initial=0)
        places = [
            np.arange(start + 1, start + 1 + math.prod(shape)).reshape(shape)
            for start, shape in zip(starts, shapes.values(), strict=False)
        ]
        return np.asarray(self.move(*places, **options), np.int64) - 1

    def whole(self, values: Values) -> Array:
        """The result, all of it. Raises: NotKept."""
        arrays = [kept(name, array) for name, array in values.inputs.items()]
        if not self.fill:
            return self.move(*arrays, **values.options)
        shapes = {name: array.shape for name, array in zip(values.inputs, arrays, strict=True)}
        origins = self.origins(shapes, values.options)
        numbers = np.concatenate([array.reshape(-1) for array in arrays])
        return np.where(origins < 0, values.options.get(self.fill, 0.0), numbers[origins])

    def number(self, values: Values, index: Index) -> Taken:
        shapes = {name: np.shape(kept(name, array)) for name, array in values.inputs.items()}
        at = int(self.origins(shapes, values.options)[index])
        if at < 0:
            return Taken(float(values.options.get(self.fill, 0.0)))
        for name, shape in shapes.items():
            if at < math.prod(shape):
                place = tuple(int(i) for i in np.unravel_index(at, shape))
                return Taken(float(values.input(name)[place]), name, place)
            at -= math.prod(shape)
        raise AssertionError  # there is no such number

    def gradient(self, values: Values, name: str, index: Index) -> float:
        """dy at all places where this number was put."""
        shapes = {one: np.shape(kept(one, array)) for one, array in values.inputs.items()}
        before = itertools.takewhile(lambda one: one != name, shapes)
        at = sum(math.prod(shapes[one]) for one in before)
        at += int(np.ravel_multi_index(index, shapes[name])) if shapes[name] else 0
        dy = floats(kept("dy", values.dy))
        return math.fsum(dy[self.origins(shapes, values.options) == at].reshape(-1))

    def macs(self, shapes: Mapping[str, Shape], options: Mapping[str, Any], shape: Shape) -> int:
        return 0

"""What one call of an operation was given and made, for those who compute its numbers again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from minires.backend import Array
from minires.errors import MiniresError

Index = tuple[int, ...]
Shape = tuple[int, ...]


class NotKept(MiniresError):
    """A number that the arithmetic needs was not kept."""

    def __init__(self, name: str) -> None:
        super().__init__(f"the values of {name} were not kept")
        self.name = name


@dataclass(frozen=True)
class Values:
    """The arrays of one call, on the CPU: ``inputs`` by name, None for one that was not kept; ``options`` and
    ``saved`` as they were declared; the result ``y``, of the ``shape``, and its gradient ``dy``."""

    inputs: Mapping[str, Array | None]
    options: Mapping[str, Any]
    shape: Shape
    saved: Mapping[str, Array] = field(default_factory=dict)
    y: Array | None = None
    dy: Array | None = None
    result: str = "y"

    def input(self, name: str) -> Array:
        """An input. Raises: NotKept."""
        return kept(name, self.inputs.get(name))


def kept(name: str, array: Array | None) -> Array:
    if array is None:
        raise NotKept(name)
    return array


class Form(Protocol):
    """A kind of arithmetic: how one number of a result, and of a gradient, is computed from others.

    Each has one implementation here, and one on the trace page that reads what ``plain`` gives.
    """

    @property
    def channelwise(self) -> bool:
        """Whether channel c of the result is made of channel c of each input that has as many."""
        ...

    @property
    def last(self) -> str:
        """What the last axis of the result is called: c, o for the outputs of a product, k for classes."""
        ...

    def number(self, values: Values, index: Index) -> Any:
        """How the number at ``index`` of the result comes about; its ``result`` is that number."""
        ...

    def gradient(self, values: Values, name: str, index: Index) -> float:
        """The gradient of the number at ``index`` of the input ``name``."""
        ...

    def macs(self, shapes: Mapping[str, Shape], options: Mapping[str, Any], shape: Shape) -> int:
        """How many products are added up, for inputs and a result of these shapes."""
        ...


def floats(array: Any) -> Array:
    return np.asarray(array, np.float64)


def moved(index: Index, shape: Sequence[int], to: Sequence[int]) -> Index:
    """The place of a number in an array of as many numbers and of another shape."""
    flat = int(np.ravel_multi_index(index, tuple(shape))) if shape else 0
    return tuple(int(i) for i in np.unravel_index(flat, tuple(to)))

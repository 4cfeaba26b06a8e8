"""The memory of a plan: one array, in which each value has its place while somebody needs it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minires.backend import Array, empty

ALIGNED = 16  # numbers: a line of the cache


@dataclass
class Memory:
    """The one array while it is laid out."""

    size: int = 0
    constants: list[tuple[int, Array]] = field(default_factory=list)
    free: list[tuple[int, int]] = field(default_factory=list)  # place and size

    def add(self, size: int) -> int:
        """A place that stays."""
        at, self.size = self.size, self.size + -(-size // ALIGNED) * ALIGNED
        return at

    def keep(self, array: Array) -> int:
        at = self.add(array.size)
        self.constants.append((at, array.reshape(-1)))
        return at

    def numbers(self, behind: int, dtype: Any) -> Array:
        """The array itself, with its constants, and so many zeros behind."""
        found = empty((self.size + behind,), dtype)
        found[:] = 0
        for at, array in self.constants:
            found[at : at + array.size] = array
        return found

    def take(self, size: int) -> tuple[int, int]:
        """A place for a value: the smallest that is free and large enough, or a new one."""
        size = -(-size // ALIGNED) * ALIGNED
        fitting = [one for one in self.free if one[1] >= size]
        if not fitting:
            return self.add(size), size
        at, whole = min(fitting, key=lambda one: one[1])
        self.free.remove((at, whole))
        if whole > size:
            self.free.append((at + size, whole - size))
        return at, size

    def give_back(self, at: int, size: int) -> None:
        """A value is not needed any more; places side by side become one."""
        for other in list(self.free):
            assert at + size <= other[0] or other[0] + other[1] <= at, "no place is given back twice"
            if other[0] + other[1] == at:
                self.free.remove(other)
                at, size = other[0], other[1] + size
            elif at + size == other[0]:
                self.free.remove(other)
                size += other[1]
        self.free.append((at, size))


def flat(arrays: list[Array], dtype: Any) -> Array:
    """All their numbers, one array after the other."""
    return np.concatenate(arrays).astype(dtype, copy=False) if arrays else np.zeros(0, dtype)

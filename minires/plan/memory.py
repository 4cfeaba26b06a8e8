"""The memory of a plan: one array, in which each value has its place while somebody needs it.

While lines are written, a place is only a promise: a number far beyond all that there are. What is taken and
given back says how long each is needed, and once all is known they are laid out: the largest first, each in
the smallest gap that is free all the time that it lives.

Source: Pisarchyk and Lee 2020, Efficient memory management for deep neural net inference, arXiv:2001.03288
(greedy by size for offsets).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minires.backend import Array, empty

ALIGNED = 16  # numbers: a line of the cache
_APART = 40  # bits: places that are promised lie further apart than any array is long
_NEVER = 1 << 62


@dataclass
class Memory:
    """The one array while it is laid out."""

    size: int = 0
    constants: list[tuple[int, Array]] = field(default_factory=list)
    lives: list[tuple[int, int, int]] = field(default_factory=list)  # size, from when on, until when
    now: int = 0
    places: Array | None = None

    def add(self, size: int) -> int:
        """A place that stays."""
        at, self.size = self.size, self.size + _whole(size)
        return at

    def keep(self, array: Array) -> int:
        at = self.add(array.size)
        self.constants.append((at, array.reshape(-1)))
        return at

    def take(self, size: int) -> int:
        """A place for a value, as it is until all are laid out; inside it, one counts on from here."""
        self.now += 1
        self.lives.append((_whole(size), self.now, _NEVER))
        return len(self.lives) << _APART

    def give_back(self, at: int) -> None:
        """A value is not needed any more: what is taken from now on may lie there. One that stays, stays."""
        promised = at >> _APART
        if promised:
            size, since, until = self.lives[promised - 1]
            assert until == _NEVER and promised << _APART == at, "no place is given back twice"
            self.now += 1
            self.lives[promised - 1] = size, since, self.now

    def numbers(self, behind: int, dtype: Any) -> Array:
        """The array itself, with its constants, and so many zeros behind. Places are known from now on."""
        places, size = laid_out(self.lives)
        self.places = np.concatenate([[0], self.add(size) + places])
        found = empty((self.size + behind,), dtype)
        found[:] = 0
        for at, array in self.constants:
            found[at : at + array.size] = array
        return found

    def real(self, at: int) -> int:
        """Where the place is that was promised."""
        assert self.places is not None, "they are not laid out"
        promised = max(at, 0) >> _APART  # -1 is no place
        return int(self.places[promised]) + at - (promised << _APART)

    def all_real(self, numbers: Array) -> Array:
        """The same of all places that an array has; its other numbers stay."""
        assert self.places is not None, "they are not laid out"
        promised = np.maximum(numbers, 0) >> _APART
        return self.places[promised] + numbers - (promised << _APART)


def _whole(size: int) -> int:
    return -(-size // ALIGNED) * ALIGNED


def laid_out(lives: list[tuple[int, int, int]]) -> tuple[Array, int]:
    """Where each lies, of (size, from when on, until when), and how long the whole is.

    >>> laid_out([(16, 0, 2), (32, 1, 4), (16, 3, 5)])  # the third lies where the first was
    (array([32,  0, 32]), 48)
    """
    sizes, since, until = np.array(lives, np.int64).reshape(-1, 3).T
    order, places = np.argsort(-sizes, kind="stable"), np.zeros(len(lives), np.int64)
    for number, one in enumerate(order):
        others = order[:number]
        others = others[(since[others] < until[one]) & (since[one] < until[others])]
        others = others[np.argsort(places[others])]
        ends = np.maximum.accumulate(np.concatenate([[0], places[others] + sizes[others]]))
        gaps = places[others] - ends[:-1]
        fitting = np.flatnonzero(gaps >= sizes[one])
        places[one] = ends[fitting[np.argmin(gaps[fitting])]] if len(fitting) else ends[-1]
    return places, int((places + sizes).max(initial=0))


def flat(arrays: list[Array], dtype: Any) -> Array:
    """All their numbers, one array after the other."""
    return np.concatenate(arrays).astype(dtype, copy=False) if arrays else np.zeros(0, dtype)

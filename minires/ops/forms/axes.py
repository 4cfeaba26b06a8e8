"""The axes over which a formula sums, as it names them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from minires.backend import Array


@dataclass(frozen=True)
class AllBut:
    """All axes but these."""

    axes: tuple[int, ...] = ()

    def __init__(self, *axes: int) -> None:
        object.__setattr__(self, "axes", axes)


@dataclass(frozen=True)
class Near:
    """So many neighbours along an axis as an option says, the number itself in their middle."""

    axis: int
    size: str


Axes = int | tuple[int, ...] | str | AllBut | Near


def numbered(axes: Axes, count: int, options: Mapping[str, Any]) -> tuple[int, ...]:
    """Some axes of ``count``, counted from the front."""
    if isinstance(axes, str):
        axes = tuple(options[axes])
    if isinstance(axes, AllBut):
        spared = {axis % count for axis in axes.axes}
        return tuple(axis for axis in range(count) if axis not in spared)
    several = (axes.axis,) if isinstance(axes, Near) else (axes,) if isinstance(axes, int) else axes
    return tuple(axis % count for axis in several)


def banded(value: Array, axis: int, reach: int) -> Array:
    """The sum of each number and its neighbours along an axis."""
    value = np.moveaxis(value, axis, -1)
    total = value.copy()
    for step in range(1, min(reach, value.shape[-1] - 1) + 1):
        total[..., step:] += value[..., :-step]
        total[..., :-step] += value[..., step:]
    return np.moveaxis(total, -1, axis)

"""Arithmetic of a pool: of the numbers under a window the largest, or their mean."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from minires.backend import Array
from minires.ops.forms.values import Index, Shape, Values, floats, kept
from minires.ops.forms.windows import Windows


@dataclass(frozen=True)
class Pooled:
    """One number of a pool.

    Shapes: ``window`` (KH, KW) and ``inside``, False in the border; ``winner`` (row, column) in the window of
    a max pool; ``count`` what the mean of an average pool is over.
    """

    window: Array
    inside: Array
    corner: tuple[int, int]
    winner: tuple[int, int] | None
    count: int

    @property
    def result(self) -> float:
        if self.winner is not None:
            return float(self.window[self.winner])
        return float(self.window[self.inside].sum() / self.count)


@dataclass(frozen=True)
class Pool:
    """y = the largest number of x under the window, the first of equal ones; or, with ``mean``, their mean.

    counted: the option that says whether a mean is over the pixels of the border, too, which count as 0.
    """

    mean: bool = False
    counted: str = "count_padding"
    channelwise = True
    last = "c"

    def number(self, values: Values, index: Index) -> Pooled:
        (x,) = values.inputs.values()
        n, i, j, c = index
        picture, windows = kept("x", x)[n, :, :, c], Windows.of(values.options)
        window, inside = np.zeros(windows.size), np.zeros(windows.size, bool)
        for kh, kw in itertools.product(*map(range, windows.size)):
            row, column = windows.under(i, j, kh, kw)
            if 0 <= row < picture.shape[0] and 0 <= column < picture.shape[1]:
                window[kh, kw], inside[kh, kw] = picture[row, column], True
        count = inside.size if self.mean and values.options.get(self.counted) else int(inside.sum())
        winner = None if self.mean else _first_largest(window, inside)
        return Pooled(window, inside, windows.corner(i, j), winner, count)

    def gradient(self, values: Values, name: str, index: Index) -> float:
        """What the windows over a pixel send it: a share of each dy, or the dy of those in which it won."""
        n, row, column, c = index
        dy, windows = floats(kept("dy", values.dy)), Windows.of(values.options)
        sent = []
        for i, j, kh, kw in windows.over(row, column, dy.shape[1:3]):
            found = self.number(values, (n, i, j, c))
            if self.mean:
                sent.append(dy[n, i, j, c] / found.count)
            elif found.winner == (kh, kw):
                sent.append(dy[n, i, j, c])
        return math.fsum(sent)

    def macs(self, shapes: Mapping[str, Shape], options: Mapping[str, Any], shape: Shape) -> int:
        return 0


def _first_largest(window: Array, inside: Array) -> tuple[int, int]:
    """Of equal pixels the first in reading order; the border never wins, NaN does."""
    candidates = np.argwhere(inside)
    row, column = candidates[np.argmax(window[inside])].tolist()
    return row, column

"""Arithmetic of sums of products under a window: a convolution, its adjoint, and a dense layer (one place).

A convolution has a large side, the picture that its windows stand on, and a small side with a number for each
window. Its result is the small side. That of a transposed convolution is the large one, and so is the
gradient that a convolution sends back: both are the same sums.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from minires.backend import Array
from minires.ops.forms.values import Index, Shape, Values, floats, kept
from minires.ops.forms.windows import Windows


@dataclass(frozen=True)
class Multiplied:
    """One number of a convolution or of a dense layer.

    Shapes: for a convolution ``window`` is what is multiplied, zeros outside the picture, and ``kernel`` what
    with, both (KH, KW, channels of the group); for a dense layer both are (C,). ``corner`` is the row and
    column in the picture where the window starts (None of a transposed one), ``channel`` its first channel.
    """

    window: Array
    kernel: Array
    bias: float | None
    relu: bool = False
    corner: tuple[int, int] | None = None
    channel: int = 0

    @property
    def row(self) -> Array:
        """The window as a row of the im2col matrix."""
        return self.window.reshape(-1)

    @property
    def column(self) -> Array:
        """The kernel as a column of the kernel's matrix."""
        return self.kernel.reshape(-1)

    @property
    def products(self) -> Array:
        return self.window * self.kernel

    @property
    def sum(self) -> float:
        return float(self.products.sum())

    @property
    def result(self) -> float:
        total = self.sum if self.bias is None else self.sum + self.bias
        return max(total, 0.0) if self.relu else total


@dataclass(frozen=True)
class Products:
    """y = sum of x * w under the window + b; then max(y, 0) where the option ``relu`` is set.

    x, w, b: what the inputs are called. The window is the one of the options ``kernel``, ``stride``,
    ``padding`` and ``dilation``; without them x is (N, C) and w (C, O). ``groups`` is an option, too.
    transposed: x is the small side and y the large one, w (KH, KW, O/groups, C).
    """

    x: str = "x"
    w: str = "w"
    b: str = "b"
    transposed: bool = False
    channelwise = False
    last = "o"

    def number(self, values: Values, index: Index) -> Multiplied:
        x, w = values.input(self.x), values.input(self.w)
        b = values.input(self.b) if self.b in values.inputs else None
        bias = None if b is None else float(b[index[-1]])
        relu = bool(values.options.get("relu"))
        if w.ndim == 2:
            n, o = index
            return Multiplied(floats(x[n]), floats(w[:, o]), bias, relu)
        sides = _Sides(w, values.options)
        if self.transposed:
            window, kernel, group = sides.of_large(x, index)
            return Multiplied(window, kernel, bias, relu, channel=group.start)
        window, kernel, group = sides.of_small(x, index)
        return Multiplied(window, kernel, bias, relu, sides.windows.corner(*index[1:3]), group.start)

    def gradient(self, values: Values, name: str, index: Index) -> float:
        """Sums of products again: of x all dy * w that it had a part in, of w all x * dy, of b all dy."""
        dy = _passed(values)
        if name == self.b:
            return math.fsum(dy[..., index[0]].reshape(-1))
        x, w = values.input(self.x), values.input(self.w)
        if dy.ndim == 2:
            at, to = index
            first, second = (x[:, at], dy[:, to]) if name == self.w else (dy[at], w[to])
            return math.fsum(floats(first) * floats(second))
        sides = _Sides(w, values.options)
        if name == self.w:
            large, small = (dy, x) if self.transposed else (x, dy)
            return math.fsum(a * b for a, b in sides.of_kernel(large, small, index))
        of_side = sides.of_small if self.transposed else sides.of_large
        window, kernel, _ = of_side(dy, index)
        return math.fsum((window * kernel).reshape(-1))

    def macs(self, shapes: Mapping[str, Shape], options: Mapping[str, Any], shape: Shape) -> int:
        """Each weight is used once per place of the small side."""
        small = shapes[self.x] if self.transposed else shape
        return math.prod(shapes[self.w]) * math.prod(small[:-1])


class _Sides:
    """The two sides of a convolution with the kernel w (KH, KW, large channels/groups, small channels)."""

    def __init__(self, w: Array, options: Mapping[str, Any]) -> None:
        self.w, self.windows = w, Windows.of(options)
        self.depth = w.shape[2]
        self.width = w.shape[3] // options.get("groups", 1)  # small channels of a group

    def of_small(self, large: Array, index: Index) -> tuple[Array, Array, slice]:
        """For a number of the small side: what lies under its window, its kernel, and their channels."""
        n, i, j, o = index
        group = slice(o // self.width * self.depth, (o // self.width + 1) * self.depth)
        window = np.zeros((*self.windows.size, self.depth))
        for kh, kw in itertools.product(*map(range, self.windows.size)):
            row, column = self.windows.under(i, j, kh, kw)
            if 0 <= row < large.shape[1] and 0 <= column < large.shape[2]:
                window[kh, kw] = large[n, row, column, group]
        return window, floats(self.w[..., o]), group

    def of_large(self, small: Array, index: Index) -> tuple[Array, Array, slice]:
        """For a number of the large side: the numbers whose windows are over it, by their place in these."""
        n, row, column, c = index
        group = slice(c // self.depth * self.width, (c // self.depth + 1) * self.width)
        window = np.zeros((*self.windows.size, self.width))
        for i, j, kh, kw in self.windows.over(row, column, small.shape[1:3]):
            window[kh, kw] = small[n, i, j, group]
        return window, floats(self.w[:, :, c % self.depth, group]), group

    def of_kernel(self, large: Array, small: Array, index: Index) -> Iterator[tuple[float, float]]:
        """For a number of the kernel: what it was multiplied with, on both sides."""
        kh, kw, c, o = index
        channel = o // self.width * self.depth + c
        for n, i, j in itertools.product(*map(range, small.shape[:3])):
            row, column = self.windows.under(i, j, kh, kw)
            if 0 <= row < large.shape[1] and 0 <= column < large.shape[2]:
                yield float(large[n, row, column, channel]), float(small[n, i, j, o])


def _passed(values: Values) -> Array:
    """dy; behind a ReLU only where y > 0."""
    dy = floats(kept("dy", values.dy))
    return dy * (floats(kept("y", values.y)) > 0) if values.options.get("relu") else dy

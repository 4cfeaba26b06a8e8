"""Arithmetic of sums of products under a window: a convolution; a dense layer, whose window is one place."""

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

    Shapes: for a convolution ``window`` is what lies under the kernel, zeros outside the picture, and
    ``kernel`` that of the output channel, both (KH, KW, C/groups); for a dense layer both are (C,).
    ``corner`` is the row and column in the picture where the window starts, ``channel`` its first channel.
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
    """

    x: str = "x"
    w: str = "w"
    b: str = "b"
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
        n, i, j, o = index
        windows, group = Windows.of(values.options), self._group(w.shape, values.options, o)
        window = np.zeros((*windows.size, w.shape[2]))
        for kh, kw in itertools.product(*map(range, windows.size)):
            row, column = windows.under(i, j, kh, kw)
            if 0 <= row < x.shape[1] and 0 <= column < x.shape[2]:
                window[kh, kw] = x[n, row, column, group]
        return Multiplied(window, floats(w[..., o]), bias, relu, windows.corner(i, j), group.start)

    def gradient(self, values: Values, name: str, index: Index) -> float:
        return math.fsum(a * b for a, b in self.terms(values, name, index))

    def terms(self, values: Values, name: str, index: Index) -> Iterator[tuple[float, float]]:
        """The products that a gradient is the sum of: of a kernel x * dy, of a bias 1 * dy, of x dy * w."""
        dy = _passed(values)
        if name == self.b:
            yield from ((1.0, float(one)) for one in dy[..., index[0]].reshape(-1))
        elif name == self.w and dy.ndim == 2:
            x = values.input(self.x)
            yield from zip(floats(x[:, index[0]]), dy[:, index[1]], strict=True)
        elif name == self.w:
            yield from self._kernel_terms(values, dy, *index)
        elif dy.ndim == 2:
            n, c = index
            yield from zip(dy[n], floats(values.input(self.w)[c]), strict=True)
        else:
            yield from self._picture_terms(values, dy, *index)

    def _kernel_terms(
        self, values: Values, dy: Array, kh: int, kw: int, c: int, o: int
    ) -> Iterator[tuple[float, float]]:
        x, windows = values.input(self.x), Windows.of(values.options)
        channel = self._group(values.input(self.w).shape, values.options, o).start + c
        for n, i, j in itertools.product(*map(range, dy.shape[:3])):
            row, column = windows.under(i, j, kh, kw)
            if 0 <= row < x.shape[1] and 0 <= column < x.shape[2]:
                yield float(x[n, row, column, channel]), float(dy[n, i, j, o])

    def _picture_terms(
        self, values: Values, dy: Array, n: int, row: int, column: int, c: int
    ) -> Iterator[tuple[float, float]]:
        w, windows = values.input(self.w), Windows.of(values.options)
        width = w.shape[3] // values.options.get("groups", 1)
        outputs = slice(c // w.shape[2] * width, (c // w.shape[2] + 1) * width)
        for i, j, kh, kw in windows.over(row, column, dy.shape[1:3]):
            yield from zip(dy[n, i, j, outputs], floats(w[kh, kw, c % w.shape[2], outputs]), strict=True)

    def _group(self, w: Shape, options: Mapping[str, Any], output: int) -> slice:
        """The input channels that an output channel reads."""
        first = output // (w[3] // options.get("groups", 1)) * w[2]
        return slice(first, first + w[2])

    def multiply_adds(self, shapes: Mapping[str, Shape], options: Mapping[str, Any], shape: Shape) -> int:
        """Each weight is used once per place of the result."""
        return math.prod(shapes[self.w]) * math.prod(shape[:-1])


def _passed(values: Values) -> Array:
    """dy; behind a ReLU only where y > 0."""
    dy = floats(kept("dy", values.dy))
    return dy * (floats(kept("y", values.y)) > 0) if values.options.get("relu") else dy

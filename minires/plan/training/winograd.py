"""The lines of convolutions by Winograd's way, as ``minires.ops.conv2d.winograd`` computes them."""

from __future__ import annotations

import math
from collections.abc import Callable

from minires.backend import simd
from minires.backend.tile_products import Sizes, rows_of
from minires.ops.conv2d import winograd
from minires.ops.conv2d.winograd import Cut
from minires.ops.window import Window
from minires.plan.training.lines import Place
from minires.plan.training.products import Products, Weights
from minires.plan.training.walk import Do
from minires.tensor import Tensor

Shape = tuple[int, ...]


class Winograds(Products):
    """Writes the lines of Winograd's way."""

    def _winograd(
        self, win: Window, x: int, picture: Shape, w: Weights, y: int, outputs: int, *,
        bias: Tensor | None = None, added: int = -1, relu: bool = False, turned: bool = False,
    ) -> None:  # fmt: skip
        """y of pictures (N, H, W, C), or, turned, dx of dy."""
        n, *shape = picture
        depth, tile = shape[-1], simd.shape(outputs, self.dtype)
        width = simd.width(tile, self.dtype)
        cut = winograd.cut(win, picture, outputs, self.dtype, self.threads)
        u = self._panels(w, depth, outputs, width, turned)
        blocks, lines = self._blocks_of(cut)
        line = self._line(
            Do.WINOGRAD, len(cut.blocks), simd.shapes().index(tile), x, math.prod(picture), u.at, -1, added,
            y, n * math.prod(win.out) * outputs, relu, blocks, len(cut.blocks), lines, cut.lines.size, *shape,
            *win.out, outputs, win.left, width, self._room("winograd", cut.room), 0, cut.room,
        )  # fmt: skip
        if bias is not None:
            self._of(line, 6, bias)
        self._drop(u)

    def _panels(self, w: Weights, depth: int, outputs: int, width: int, turned: bool) -> Place:
        """The kernel, transformed and packed."""
        lanes = simd.lanes(self.dtype)
        units, room = winograd.units(depth, outputs, width, lanes), 16 * lanes * lanes
        g = self._constant(winograd.transform(self.dtype, turned=turned))
        u = self._new(16 * depth * -(-outputs // width) * width)
        line = self._line(
            Do.PANELS, self._pieces(u.size, units), w.at, w.size, g, u.at, u.size, turned, depth, outputs,
            width, lanes, units, self._room("turn", room), 0, room,
        )  # fmt: skip
        if w.tensor is not None:
            self._of(line, 2, w.tensor)
        return u

    def _correlate(
        self, win: Window, x: int, picture: Shape, dy: int, outputs: int, gives: Callable[[int, int], None]
    ) -> None:
        """dw, of which ``gives(line, column)`` says where it belongs."""
        n, *shape = picture
        depth = shape[-1]
        cut = winograd.cut(win, picture, outputs, self.dtype, self.threads)
        parts, size = len(cut.parts), depth * outputs
        blocks, begins = self._blocks_of(cut)
        totals = self._new(parts * 16 * size)
        self._line(
            Do.CORRELATE, parts, 0, x, math.prod(picture), dy, n * math.prod(win.out) * outputs, totals.at,
            16 * size, blocks, len(cut.blocks), begins, cut.lines.size, *shape, *win.out, outputs, win.left,
            simd.width(winograd.square(), self.dtype), self._room("winograd", cut.room), 0, cut.room,
        )  # fmt: skip
        # G^T s G of all parts: a product of two matrices.
        back, tile = winograd.back(cut, self.dtype), simd.shape(size, self.dtype)
        sizes = Sizes(16 * parts, size, 1, 0, 0, 0, 16 * parts * size, size)
        lines = self._products(
            tile, rows_of(9, 16 * parts, size, len(tile[0])), sizes, (self._constant(back), back.size),
            Weights(totals.at, parts * 16 * size), -1, -1, (0, 9 * size),
        )  # fmt: skip
        for line in lines:
            gives(line, 9)
        self._drop(totals)

    def _blocks_of(self, cut: Cut) -> tuple[int, ...]:
        """Where blocks and lines are."""

        def write() -> tuple[int, ...]:
            blocks = sum(a.size for a in self.offsets)
            self.offsets += [cut.blocks.reshape(-1), cut.lines]
            return blocks, blocks + cut.blocks.size

        return self._once(cut.blocks, write)

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
        depth, width = shape[-1], simd.width(winograd.tile(), self.dtype)
        cut = winograd.cut(win, n, depth, outputs, self.dtype, self.threads)
        u = self._panels(w, depth, outputs, width, turned)
        table, out, sees = self._tiles_of(cut)
        line = self._line(
            Do.WINOGRAD, len(cut.blocks), 0, x, math.prod(picture), u.at, -1, added,
            y, n * math.prod(win.out) * outputs, relu, self._blocks_of(cut)[0], len(cut.blocks), table, out,
            cut.table.size, sees, cut.sees.size, *shape, *win.out, outputs, win.top, win.left, width,
            self._room("winograd", cut.room), 0, cut.room,
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
        cut = winograd.cut(win, n, depth, outputs, self.dtype, self.threads, winograd.SUMMED)
        parts, size, (blocks, starts, runs, rows) = len(cut.parts), depth * outputs, self._blocks_of(cut)
        totals = self._new(parts * 16 * size)
        self._line(
            Do.CORRELATE, parts, 0, x, math.prod(picture), dy,
            n * math.prod(win.out) * outputs, totals.at, 16 * size, blocks, len(cut.blocks), rows, starts,
            runs, *shape, *win.out, outputs, win.top, win.left,
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

    def _tiles_of(self, cut: Cut) -> tuple[int, int, int]:
        """Where the tables of tiles are, and what they see."""

        def write() -> tuple[int, ...]:
            table, sees = sum(a.size for a in self.offsets), sum(a.size for a in self.sees)
            self.offsets += [cut.table, cut.out]
            self.sees.append(cut.sees)
            return table, table + cut.table.size, sees

        table, out, sees = self._once(cut.table, write)
        return table, out, sees

    def _blocks_of(self, cut: Cut) -> tuple[int, ...]:
        """Where blocks are, and where starts, runs and rows of their sums."""

        def write() -> tuple[int, ...]:
            blocks, rows = sum(a.size for a in self.offsets), sum(a.size for a in self.longs)
            self.offsets += [cut.blocks.reshape(-1), cut.starts.reshape(-1), cut.runs.reshape(-1)]
            self.longs.append(cut.rows.reshape(-1))
            starts = blocks + cut.blocks.size
            return blocks, starts, starts + cut.starts.size, rows

        return self._once(cut.blocks, write)

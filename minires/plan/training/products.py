"""The lines of products by tiles, as ``minires.backend.tile_products`` computes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from minires.backend import simd, tile_products
from minires.backend.tile_products import Part, Sizes
from minires.plan.training.values import Values
from minires.plan.training.walk import Do
from minires.tensor import Tensor


class Weights(NamedTuple):
    """What rows are multiplied with: numbers of the plan, or those of a parameter where they are."""

    at: int
    size: int
    tensor: Tensor | None = None


class Products(Values):
    """Writes the lines of products."""

    def _products(
        self, tile: simd.Shape, parts: Sequence[Part], sizes: Sizes, x: tuple[int, int],
        w: Weights, bias: int, added: int, y: tuple[int, int], *, relu: bool = False, turned: bool = False,
    ) -> list[int]:  # fmt: skip
        """The numbers of the lines. x, y: where each lies, and its size."""
        width, lines = simd.width(tile, self.dtype), list[int]()
        panels, kind = sizes.groups * -(-sizes.outputs // width), simd.shapes().index(tile)
        threads = tile_products.share(parts, sizes)
        by_panel = w.size > x[1] and panels >= threads
        self.most_panels = max(self.most_panels, panels * width)
        for place, at, to, times, x_step, y_step in parts:
            tiles, taps = place.sees.shape[1], len(place.taps)
            long = taps * sizes.depth * width
            room = min(max(tile_products.PANELS, long), panels * long)
            total = panels if by_panel else times * tiles
            pieces = min(threads, total)
            line = self._line(
                Do.PRODUCTS, pieces, kind, x[0] + at, x[1] - at, w.at, w.size,
                bias, added if added < 0 else added + to, y[0] + to, y[1] - to, *self._table(place), relu,
                turned, place.many, x_step, y_step, sizes.depth, sizes.outputs, sizes.x_group, sizes.y_group,
                sizes.w_group, sizes.tap, sizes.row, width, times * tiles, panels, by_panel,
                self._room("panels", room), room, waits=False,
            )  # fmt: skip
            lines.append(line)
            if w.tensor is not None:
                self._of(line, 5, w.tensor)
        self._wait()
        return lines

"""The lines of convolutions: y, dx, dw and db, as ``minires.ops.conv2d.indirect`` computes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from minires.backend import simd, tile_groups, tile_sums
from minires.backend.tile_products import Part, Places, Sizes
from minires.ops.conv2d import adjoint, choose, indirect, joined_groups, places
from minires.ops.window import Window
from minires.plan.steps import Step, Traced, window_of
from minires.plan.training.lines import Place
from minires.plan.training.products import Weights
from minires.plan.training.walk import Do
from minires.plan.training.winograd import Winograds
from minires.tensor import Tensor


class Convolutions(Winograds):
    """Writes the lines of convolutions."""

    def __init__(self, traced: Traced, dtype: Any, pictures: int) -> None:
        super().__init__(traced, dtype)
        self.pictures = pictures
        self.joined: dict[Step, int] = {}  # the kernels of joined groups
        self.borders: dict[Step, int] = {}  # pictures with their border

    def _ways(self, step: Step) -> choose.Ways:
        (_, *picture), w = step.reads["x"].shape, step.tensors["w"].shape
        win, like = window_of(step.options, step.reads["x"].shape), np.empty(0, self.dtype)
        return choose.ways(like, (self.pictures, *picture), w, win, step.options["groups"])

    def _weights(self, step: Step, sizes: Sizes) -> Weights:
        w = step.tensors["w"]
        if step in self.joined:
            return Weights(self.joined[step], math.prod(w.shape[:2]) * math.prod(sizes[:3]))
        return Weights(0, w.size, w)

    def _conv2d(self, step: Step) -> None:
        read, w, groups = step.reads["x"], step.tensors["w"], step.options["groups"]
        win, shape, x = window_of(step.options, read.shape), read.shape, self._at(read)
        n, outputs_all = shape[0], w.shape[-1]
        y, b, relu = self.where[step.writes].at, step.tensors.get("b"), bool(step.options.get("relu"))
        left = joined_groups.left(groups, w.shape, joined_groups.MOST)
        if self._ways(step).forward.name == "narrow":
            parts = places.forward(n, tuple(shape[1:]), outputs_all, win, 0, len(tile_groups.shape()[0]))
            out = y, math.prod(step.writes.shape)
            pixels, weights = (x, math.prod(shape)), Weights(0, w.size, w)
            self._groups(parts, pixels, weights, out, w.shape[2:], bias=b, relu=relu)
            return
        depth, outputs = w.shape[2] * groups // left, outputs_all // left
        if left < groups:
            self.joined[step] = self._join(w, groups, left)
        if self._ways(step).forward.name == "winograd":
            weights = self._weights(step, indirect.sizes(depth, outputs, left))
            self._winograd(win, x, shape, weights, y, outputs, bias=b, relu=relu)
            return
        tile = simd.shape(outputs, self.dtype)
        if indirect.is_joined(shape[-1], win, left):
            x, shape, win, depth = self._bordered(step, x, shape, win)
        parts = places.forward(n, tuple(shape[1:]), outputs_all, win, depth, len(tile[0]))
        sizes, out = indirect.sizes(depth, outputs, left), (y, math.prod(step.writes.shape))
        bias = -1 if b is None else self._padded(b, left, outputs, simd.width(tile, self.dtype))
        weights = self._weights(step, sizes)
        self._products(tile, parts, sizes, (x, math.prod(shape)), weights, bias, -1, out, relu=relu)

    def _conv2d_back(self, step: Step) -> None:
        read, w, count = step.reads["x"], step.tensors["w"], math.prod(step.writes.shape)
        dy, b = self.gradients[step.writes], step.tensors.get("b")
        if step.options.get("relu"):
            masked = self._new(count)
            pieces = self._pieces(count, count)
            self._line(Do.PASS, pieces, dy.at, self.where[step.writes].at, masked.at, count)
            dy = masked
        pieces = self._pieces(count, count // w.shape[-1])
        if b is not None and b.requires_grad:
            sums = self._sums(pieces * w.shape[-1])
            self._line(Do.COLUMNS, pieces, dy.at, count // w.shape[-1], w.shape[-1], sums, waits=False)
        if w.requires_grad:
            self._weights_back(step, dy.at)
        if read.value in self.needs:
            self.read_again.append(w)
            self._grows(read.value, lambda at, added: self._pictures_back(step, dy.at, at, added))
        self._wait()
        if b is not None and b.requires_grad:
            line = self._line(Do.COLUMNS_END, 1, 0, pieces, w.shape[-1], 0)
            self._of(line, 5, b, "gradient")
        if step.options.get("relu"):
            self._drop(dy)

    def _pictures_back(self, step: Step, dy: int, at: int, added: int) -> None:
        """dx."""
        w, groups, shape = step.tensors["w"], step.options["groups"], step.reads["x"].shape
        win, left = window_of(step.options, shape), joined_groups.left(groups, w.shape, joined_groups.MOST)
        if self._ways(step).backward_x.name == "narrow":
            rows, turned = len(tile_groups.shape()[0]), self._turned(w)
            parts = places.backward(shape[0], tuple(shape[1:]), w.shape[-1], win, 0, rows)
            x, dx = (dy, math.prod(step.writes.shape)), (at, math.prod(shape))
            self._groups(parts, x, Weights(turned.at, w.size), dx, w.shape[2:], added=added)
            self._drop(turned)
            return
        outputs, depth = w.shape[2] * groups // left, w.shape[-1] // left
        sizes, tile = indirect.sizes(depth, outputs, left, turned=True), simd.shape(outputs, self.dtype)
        weights, dy_shape = self._weights(step, sizes), step.writes.shape
        if self._ways(step).backward_x.name == "winograd":
            win = adjoint.window(win, shape)
            self._winograd(win, dy, dy_shape, weights, at, outputs, added=added, turned=True)
            return
        parts = places.backward(shape[0], tuple(shape[1:]), w.shape[-1], win, depth, len(tile[0]))
        x, dx = (dy, math.prod(dy_shape)), (at, math.prod(shape))
        self._products(tile, parts, sizes, x, weights, -1, added, dx, turned=True)

    def _groups(
        self, parts: Sequence[Part], x: tuple[int, int], w: Weights, y: tuple[int, int],
        group: tuple[int, ...], *, bias: Tensor | None = None, added: int = -1, relu: bool = False,
    ) -> None:  # fmt: skip
        """Groups of so many channels, of so many in all. x, y: where each lies, and its size."""
        many, channels = group
        pieces = tile_groups.share(parts, many, channels)
        for place, at, to, times, x_step, y_step in parts:
            line = self._line(
                Do.GROUPS, pieces, many, x[0] + at, x[1] - at, w.at, w.size, self.zeros,
                added if added < 0 else added + to, y[0] + to, y[1] - to, *self._table(place), relu,
                place.many, x_step, y_step, channels, simd.lanes(self.dtype), times * place.sees.shape[1],
                waits=False,
            )  # fmt: skip
            if w.tensor is not None:
                self._of(line, 5, w.tensor)
            if bias is not None:
                self._of(line, 7, bias)
        self._wait()

    def _group_sums(self, step: Step, dy: int) -> None:
        """dw of narrow groups."""
        (n, *picture), w, x = step.reads["x"].shape, step.tensors["w"], self._at(step.reads["x"])
        (kh, kw, group, channels), win = w.shape, window_of(step.options, step.reads["x"].shape)
        rows, lanes = len(tile_groups.sums_shape(group)[2]), simd.lanes(self.dtype)
        parts = places.by_place(n, tuple(picture), channels, win, rows)
        units, summed = -(-kh * kw // rows) * (channels // lanes), tile_groups.together(parts)
        pieces = min(units, tile_groups.share(parts, group, channels))
        size, count = n * math.prod(picture), math.prod(step.writes.shape)
        for number, (place, at, to, *steps) in enumerate(parts):
            table, out = self._table_by_place(place)
            line = self._line(
                Do.GROUP_SUMS, pieces, group, x + at, size - at, dy + to, count - to, 0, w.size, number == 0,
                table, *place.table.shape, out, *steps, kh * kw, channels, lanes, summed, units,
            )  # fmt: skip
            self._of(line, 7, w, "gradient")

    def _table_by_place(self, place: Places) -> tuple[int, ...]:
        def write() -> tuple[int, ...]:
            table = sum(a.size for a in self.offsets)
            self.offsets += [place.table.reshape(-1), place.out]
            return table, table + place.table.size

        return self._once(place, write)

    def _turned(self, w: Tensor) -> Place:
        """A kernel of narrow groups (KH, KW, G, C), inputs and outputs of each group changed places."""
        kh, kw, group, channels = w.shape
        place, size = self._new(w.size), group * channels
        for k in range(group):
            # (tap, n, group, one): number n of the outputs of each group meets number k of its inputs
            line = self._line(
                Do.COPY, 1, 0, size, 1, group, place.at + k, size, channels, group, kh * kw, group,
                channels // group, 1, waits=k == group - 1,
            )  # fmt: skip
            self._of(line, 2, w, skipped=k * channels)
        return place

    def _bordered(
        self, step: Step, x: int, shape: tuple[int, ...], win: Window
    ) -> tuple[int, Any, Window, int]:
        """The pictures with their border, which stays zero, as the place is nobody else's."""
        (n, h, w, c), picture = shape, (shape[1] + win.top + win.bottom, shape[2] + win.left + win.right)
        size, line = math.prod(picture) * c, picture[1] * c
        at = self.memory.add(n * size + 64)
        self.borders[step] = at
        inside = at + win.top * line + win.left * c
        pieces = self._pieces(n * h * w * c, n * h)
        self._line(Do.COPY, pieces, x, h * w * c, w * c, c, inside, size, line, c, n, h, w, c)
        return at, (n, *picture, c), indirect.column(win), win.size[1] * c

    def _padded(self, b: Tensor, groups: int, outputs: int, width: int) -> int:
        """A bias, with zeros behind the numbers of each group up to whole panels."""
        wide = -(-outputs // width) * width
        at = self.memory.add(groups * wide)
        line = self._line(Do.COPY, 1, 0, 0, outputs, 0, at, 0, wide, 0, 1, groups, 1, outputs)
        self._of(line, 2, b)
        return at

    def _join(self, w: Tensor, groups: int, left: int) -> int:
        """The kernel of joined groups, (KH, KW, C/left, O): zero where they do not meet, as it stays."""
        kh, kw, depth, outputs = w.shape
        many, each, taps = groups // left, outputs // groups, kh * kw
        at = self.memory.add(taps * many * depth * outputs)
        for i in range(many):
            to, last = at + i * depth * outputs + i * each, i == many - 1
            # (tap, k, left, each): the taps and the k are the lines, the groups that are left the pixels
            line = self._line(
                Do.COPY, 1, 0, depth * outputs, outputs, many * each, to, many * depth * outputs, outputs,
                many * each, taps, depth, left, each, waits=last,
            )  # fmt: skip
            self._of(line, 2, w, skipped=i * each)
        return at

    def _weights_back(self, step: Step, dy: int) -> None:
        """dw."""
        read, w, groups = step.reads["x"], step.tensors["w"], step.options["groups"]
        if self._ways(step).backward_w.name == "narrow":
            self._group_sums(step, dy)
            return
        left = joined_groups.left(groups, w.shape, joined_groups.MOST)
        joined = self._new(w.size * groups // left) if left < groups else None
        if self._ways(step).backward_w.name == "winograd":
            win, x = window_of(step.options, read.shape), self._at(read)
            gives = partial(self._gives, w=w, joined=joined)
            self._correlate(win, x, read.shape, dy, w.shape[-1], gives)
        else:
            self._sums_back(step, dy, left, joined)
        if joined is not None:
            self._wait()
            self._part(w, groups, left, joined.at)
            self._wait()
            self._drop(joined)

    def _sums_back(self, step: Step, dy: int, left: int, joined: Place | None) -> None:
        """dw, for which sums of some blocks are taken by themselves: see ``tile_sums.sums_over_places``."""
        (n, *picture), w, groups = step.reads["x"].shape, step.tensors["w"], step.options["groups"]
        win, x = window_of(step.options, step.reads["x"].shape), self._at(step.reads["x"])
        depth, outputs_all = w.shape[2] * groups // left, w.shape[-1]
        seen: Place | None = None
        if indirect.is_joined(picture[-1], win, left):
            x = self.borders[step]
            (h, wide, c), kw = picture, win.size[1]
            picture = [h + win.top + win.bottom, wide + win.left + win.right, c]
            win, depth = indirect.column(win), kw * c
        elif indirect.is_gathered(win):
            (h, wide, c), (oh, ow), (sh, sw) = picture, win.out, win.stride
            seen = self._new(n * oh * ow * c)
            pieces = self._pieces(n * oh * ow * c, n * oh)
            self._line(
                Do.COPY, pieces, x, h * wide * c, sh * wide * c, sw * c, seen.at, oh * ow * c, ow * c, c, n,
                oh, ow, c,
            )  # fmt: skip
            x, picture, win = seen.at, [oh, ow, c], indirect.beside(win)
        blocks = places.blocks(n, tuple(picture), win)
        sizes = indirect.sizes(depth, outputs_all // left, left)
        task = tile_sums.task(blocks, sizes, self.dtype)
        size, count = math.prod(win.size) * depth * outputs_all, math.prod(step.writes.shape)
        parts = len(task.lists) if task.by_list else len(task.lists) > 1
        totals = self._new(parts * size) if parts else None
        x_room, y_room = task.x_room(sizes, picture[-1]), task.y_room(sizes, outputs_all)
        for number, some in enumerate(task.lists):
            is_total = task.by_list or number > 0
            for first, part in enumerate(some):
                rows, starts, runs, *at = part
                one_by_one = first + 1 < len(some) or (not task.by_list and len(task.lists) > 1)
                line = self._line(
                    Do.SUMS, task.pieces, task.kind, x, n * math.prod(picture), dy, count, 0, size,
                    first == 0, *self._blocks(part), *at, picture[-1], outputs_all, sizes.depth,
                    sizes.outputs, *sizes[3:], task.width, task.units, task.panels, task.by_panel,
                    self._room("x", x_room), x_room, 0, self._room("y", y_room), y_room, waits=one_by_one,
                )  # fmt: skip
                if is_total:
                    assert totals is not None
                    self.lines[line][7] = totals.at + (number * size if task.by_list else 0)
                else:
                    self._gives(line, 7, w, joined)
            if not task.by_list and number:
                assert totals is not None
                line = self._line(Do.TOTAL, self._pieces(2 * size, size), totals.at, 1, 0, size, 1)
                self._gives(line, 4, w, joined)
        if task.by_list:
            assert totals is not None
            self._wait()
            pieces = self._pieces(size * len(task.lists), size)
            line = self._line(Do.TOTAL, pieces, totals.at, len(task.lists), 0, size, 0)
            self._gives(line, 4, w, joined)
        for place in (seen, totals):
            if place is not None:
                self._wait()
                self._drop(place)

    def _gives(self, line: int, column: int, w: Tensor, joined: Place | None) -> None:
        """There belongs the place of dw: that of joined groups, or the gradient's own."""
        if joined is None:
            self._of(line, column, w, "gradient")
        else:
            self.lines[line][column] = joined.at

    def _part(self, w: Tensor, groups: int, left: int, at: int) -> None:
        """The adjoint of _join."""
        kh, kw, depth, outputs = w.shape
        many, each, taps = groups // left, outputs // groups, kh * kw
        for i in range(many):
            source = at + i * depth * outputs + i * each
            line = self._line(
                Do.COPY, 1, source, many * depth * outputs, outputs, many * each, 0, depth * outputs, outputs,
                many * each, taps, depth, left, each, waits=i == many - 1,
            )  # fmt: skip
            self._of(line, 6, w, "gradient", i * each)

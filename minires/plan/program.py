"""From steps to a program: where each array lies, and a line for each step.

What no kernel of plans knows is *called*: the operation itself, between the lines before and those behind.

All numbers lie in one array: zeros, the constants (kernels packed in panels, biases, batch norms), what has a
border of zeros, and then the values, which share their memory as soon as nobody reads them any more.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from minires import backend
from minires.backend import Array, simd, tile_groups, tile_products
from minires.backend.tile_products import Part, Sizes, rows_of
from minires.ops.conv2d import choose, indirect, joined_groups, narrow, places, winograd
from minires.ops.window import Window
from minires.plan.memory import ALIGNED, Memory, flat
from minires.plan.steps import Shape, Step, Traced, Value, called, window_of, zeros_of
from minires.plan.walk import COLUMNS, Do
from minires.tensor import Tensor

_PIECE = 1 << 16  # numbers that are worth a piece of their own


@dataclass
class Called:
    """An operation that is called, and where what it reads and writes lies among the numbers of a plan."""

    step: Step
    constants: Mapping[str, Tensor]
    reads: Mapping[str, tuple[int, Shape]]
    writes: tuple[int, Shape]

    def placed(self, memory: Memory) -> Called:
        """The same, once places are known."""
        reads = {name: (memory.real(at), shape) for name, (at, shape) in self.reads.items()}
        return replace(self, reads=reads, writes=(memory.real(self.writes[0]), self.writes[1]))

    def __call__(self, floats: Array) -> None:
        reads = {name: Tensor(_view(floats, *place)) for name, place in self.reads.items()}
        backend.copy(called(self.step, {**reads, **self.constants}).data, _view(floats, *self.writes))


def _view(floats: Array, at: int, shape: Shape) -> Array:
    return floats[at : at + math.prod(shape)].reshape(shape)


@dataclass
class Program:
    """What :func:`minires.plan.walk.walk_numba` walks through, and where input and output lie.

    ``items`` are lines first..last, and what is called between them.
    """

    items: list[tuple[int, int] | Called]
    lines: Array
    floats: Array
    offsets: Array
    sees: Array
    every: Array
    sums: Array
    x: slice
    y: slice
    y_shape: tuple[int, ...]
    tiles: Any


class _Writer:
    """Writes the lines of a program."""

    def __init__(self, traced: Traced, dtype: Any) -> None:
        self.traced, self.dtype = traced, np.dtype(dtype)
        self.memory, self.where = Memory(), dict[Value, int]()
        self.lines: list[list[int]] = []
        self.items: list[tuple[int, int] | Called] = []
        self.first_line = 0
        self.offsets: list[Array] = []
        self.sees: list[Array] = []
        self.tables: dict[int, tuple[int, int, int, Any]] = {}  # by id of the places, which are kept
        self.threads = backend.threads()
        self.taps, self.widest, self.room, self.columns = 1, 1, 0, 0
        self.memory.add(zeros_of(traced))  # at the very beginning, where the kernels look for zeros

    def program(self) -> Program:
        traced = self.traced
        last = {value: number for number, step in enumerate(traced.steps) for value in step.values}
        last |= {traced.output.value: len(traced.steps)}
        self.histories = self._straight()
        self._place(traced.input)
        self.input = self._at(traced.input)
        for number, step in enumerate(traced.steps):
            target = self.histories[step.writes].writes if step.writes in self.histories else step.writes
            if target not in self.where and step.op != "pad_channels":
                self._place(target)
            if not step.known:
                self._call(step)
            elif step not in self.histories.values():
                getattr(self, f"_{step.op}")(step)
            for value in step.values:
                if last[value] == number and value in self.where:
                    self.memory.give_back(self.where.pop(value))
        return self._laid_out()

    def _straight(self) -> dict[Value, Step]:
        """What convolutions write straight to where it would be copied to, and that copy."""
        uses = Counter(read.value for step in self.traced.steps for read in step.reads.values())
        uses[self.traced.output.value] += 1
        makers = {step.writes: step for step in self.traced.steps if step.op == "conv2d"}
        return {
            step.reads["x"].value: step
            for step in self.traced.steps
            if step.op == "copy" and uses[value := step.reads["x"].value] == 1 and value in makers
            and step.reads["x"].shape == (*value.shape[:3], makers[value].constants["w"].shape[-1])
            and not (makers[value].reads.keys() - {"x"} or self._is_winograd(makers[value]))
        }  # fmt: skip

    def _end_lines(self) -> None:
        if len(self.lines) > self.first_line:
            self.items.append((self.first_line, len(self.lines)))
            self.first_line = len(self.lines)

    def _call(self, step: Step) -> None:
        self._end_lines()
        reads = {name: (self._at(read.value), read.shape) for name, read in step.reads.items()}
        constants = {name: Tensor(array.copy()) for name, array in step.constants.items()}
        writes = self._at(step.writes), step.writes.shape
        self.items.append(Called(replace(step, tensors={}), constants, reads, writes))

    def _laid_out(self) -> Program:
        self._end_lines()
        traced, memory = self.traced, self.memory
        room, numbers = memory.add(self.threads * self.room), self.room
        columns = memory.add(self.threads * self.columns)
        for line in self.lines:
            if line[0] == Do.WINOGRAD:
                line[21:23] = room, numbers
            elif line[0] == Do.AVG_POOL:
                line[19] = columns
        floats = memory.numbers(self.widest, self.dtype)
        x, y = (memory.real(at) for at in (self.input, self._at(traced.output.value)))
        tiles = simd.shapes()
        return Program(
            [item.placed(memory) if isinstance(item, Called) else item for item in self.items],
            memory.all_real(np.array(self.lines, np.int64).reshape(-1, COLUMNS)), floats,
            flat(self.offsets, np.int32), flat(self.sees, np.uint8), np.arange(self.taps),
            np.zeros(self.threads * self.widest),
            slice(x, x + math.prod(traced.input.shape)), slice(y, y + math.prod(traced.output.shape)),
            traced.output.shape, tuple((*tiles, tiles[-1])[:3]),
        )  # fmt: skip

    def _place(self, value: Value) -> None:
        self.where[value] = self.memory.take(math.prod(value.shape))

    def _at(self, value: Value) -> int:
        return self.where[value]

    def _line(self, do: Do, pieces: int, *numbers: int) -> None:
        line = [int(do), max(1, pieces), *map(int, numbers)]
        self.lines.append(line + [0] * (COLUMNS - len(line)))

    def _pieces(self, count: int, units: int) -> int:
        """In how many pieces ``count`` numbers are written: one a thread, but none that are too small."""
        return max(1, min(self.threads, units, count // _PIECE + 1))

    # ------------------------------------------------------------------------------- convolutions

    @staticmethod
    def _is_winograd(step: Step) -> bool:
        w, x, groups = step.constants["w"].shape, step.reads["x"].shape, step.options["groups"]
        if narrow.fits(w, groups, step.constants["w"].dtype):
            return False
        left = joined_groups.left(groups, w, joined_groups.MOST)
        joined = joined_groups.joined_shape(w, groups, left)
        return choose.is_planned_winograd(x, joined, window_of(step.options, x), left)

    def _conv2d(self, step: Step) -> None:
        w, b = step.constants["w"], step.constants.get("b")
        read, groups = step.reads["x"], step.options["groups"]
        win, x, shape = window_of(step.options, read.shape), self._at(read.value), read.shape
        if narrow.fits(w.shape, groups, self.dtype):
            self._groups(step, w, win)
            return
        left = joined_groups.left(groups, w.shape, joined_groups.MOST)
        w = joined_groups.join(np, w, groups, left)
        if self._is_winograd(step):
            self._winograd(step, w, win)
            return
        depth, outputs = w.shape[2], w.shape[-1] // left
        tile = simd.shape(outputs, self.dtype)
        if indirect.is_joined(shape[-1], win, left):
            x, shape, win, depth = self._bordered(x, shape, win)
        added = self._at(step.reads["add"].value) if "add" in step.reads else -1
        (y, row), relu = self._target(step), bool(step.options.get("relu"))
        parts = places.forward(shape[0], tuple(shape[1:]), row, win, depth, len(tile[0]))
        self._products(tile, parts, indirect.sizes(depth, outputs, left), x, w, b, added, y, relu)

    def _target(self, step: Step) -> tuple[int, int]:
        """Where a convolution writes to, and how far apart its pixels are."""
        copy = self.histories.get(step.writes)
        if copy is None:
            return self._at(step.writes), step.constants["w"].shape[-1]
        return self._at(copy.writes) + copy.at, copy.writes.shape[-1]

    def _groups(self, step: Step, w: Array, win: Window) -> None:
        read, (y, row), relu = step.reads["x"], self._target(step), bool(step.options.get("relu"))
        n, *picture = read.shape
        group, channels = w.shape[2:]
        parts = places.forward(n, tuple(picture), row, win, 0, len(tile_groups.shape()[0]))
        kernel = self.memory.keep(np.ascontiguousarray(w))
        bias = self.memory.keep(step.constants["b"]) if "b" in step.constants else 0  # zeros
        added = self._at(step.reads["add"].value) if "add" in step.reads else -1
        pieces = tile_groups.share(parts, group, channels)
        for place, at, to, times, x_step, y_step in parts:
            table, long, out, sees = self._table(place)
            taps, tiles = place.sees.shape
            self.taps = max(self.taps, taps)
            self._line(
                Do.GROUPS, pieces, group, self._at(read.value) + at, kernel, bias,
                added if added < 0 else added + to, y + to, table, long, out, taps, sees, tiles, relu,
                place.many, x_step, y_step, channels, simd.lanes(self.dtype), times * tiles,
            )  # fmt: skip

    def _winograd(self, step: Step, w: Array, win: Window) -> None:
        read, outputs, relu = step.reads["x"], w.shape[-1], bool(step.options.get("relu"))
        picture = read.shape[1:]
        depth = picture[-1]
        cut = winograd.cut(win, read.shape, outputs, self.dtype, self.threads)
        u = self.memory.keep(winograd.panels(np.ascontiguousarray(w), depth, outputs, turned=False))
        bias = self.memory.keep(step.constants["b"]) if "b" in step.constants else -1
        added = self._at(step.reads["add"].value) if "add" in step.reads else -1
        blocks = sum(a.size for a in self.offsets)
        self.offsets += [cut.blocks.reshape(-1), cut.lines]
        self.room = max(self.room, cut.room)
        tile = simd.shape(outputs, self.dtype)
        self._line(
            Do.WINOGRAD, min(self.threads, len(cut.blocks)), simd.shapes().index(tile), self._at(read.value),
            u, bias, added, self._at(step.writes), relu, blocks, len(cut.blocks), blocks + cut.blocks.size,
            cut.lines.size, *picture, *win.out, outputs, win.left, simd.width(tile, self.dtype),
        )  # fmt: skip

    def _linear(self, step: Step) -> None:
        w, read = step.constants["w"], step.reads["x"]
        (n, depth), outputs = read.shape, w.shape[-1]
        tile, x, y = simd.shape(outputs, self.dtype), self._at(read.value), self._at(step.writes)
        parts = rows_of(n, depth, outputs, len(tile[0]))
        sizes = Sizes(depth, outputs, 1, 0, 0, 0, depth * outputs, outputs)
        relu, b = bool(step.options.get("relu")), step.constants.get("b")
        self._products(tile, parts, sizes, x, w, b, -1, y, relu)

    def _bordered(self, x: int, shape: tuple[int, ...], win: Any) -> tuple[int, tuple[int, ...], Any, int]:
        """The pictures with their border, which stays zero, as the place is nobody else's."""
        (n, h, w, c), picture = shape, (shape[1] + win.top + win.bottom, shape[2] + win.left + win.right)
        at = self.memory.add(n * math.prod(picture) * c + ALIGNED)
        size, line = math.prod(picture) * c, picture[1] * c
        inside = at + win.top * line + win.left * c
        pieces = self._pieces(n * h * w * c, n * h)
        self._line(Do.COPY, pieces, x, h * w * c, w * c, c, inside, size, line, c, n, h, w, c)
        return at, (n, *picture, c), indirect.column(win), win.size[1] * c

    def _products(
        self, tile: simd.Shape, parts: Sequence[Part], sizes: Sizes, x: int, w: Array, b: Array | None,
        added: int, y: int, relu: bool,
    ) -> None:  # fmt: skip
        width = simd.width(tile, self.dtype)
        panels = sizes.groups * -(-sizes.outputs // width)
        taps = len(parts[0].places.taps)
        panel = self.memory.keep(tile_products.pack(tile, np.ascontiguousarray(w), sizes, taps=taps))
        bias = self.memory.keep(tile_products.padded_bias(b, sizes, panels, width, self.dtype))
        kind = simd.shapes().index(tile)
        self.taps = max(self.taps, taps)
        for place, at, to, times, x_step, y_step in parts:
            table, long, out, sees = self._table(place)
            tiles = place.sees.shape[1]
            pieces = tile_products.share([Part(place, times=times)], sizes)
            by_panel = (
                panels >= pieces and taps * sizes.depth * sizes.outputs > times * place.many * sizes.depth
            )
            self._line(
                Do.PRODUCTS, pieces, kind, x + at, panel, bias, added if added < 0 else added + to, y + to,
                table, long, out, taps, sees, tiles, relu, place.many, x_step, y_step,
                sizes.depth, sizes.outputs, sizes.x_group, sizes.y_group, width, times * tiles, panels,
                by_panel, panels * taps * sizes.depth * width,
            )  # fmt: skip

    def _table(self, place: tile_products.Places) -> tuple[int, int, int, int]:
        """Where the table of places begins, its length, where its line of outputs begins and what its tiles
        see. Each is written once."""
        if id(place) not in self.tables:
            found = (sum(a.size for a in self.offsets), place.table.shape[1])
            self.offsets += [place.table.reshape(-1), place.out]
            self.tables[id(place)] = (*found, sum(a.size for a in self.sees), place)
            self.sees.append(place.sees.reshape(-1))
        table, long, sees, _ = self.tables[id(place)]
        return table, long, table + place.table.size, sees

    # ------------------------------------------------------------------------------- all the others

    def _copy(self, step: Step) -> None:
        read, to, row = step.reads["x"], self._at(step.writes) + step.at, step.writes.shape[-1]
        rows, c, from_row = math.prod(read.shape[:-1]), read.shape[-1], read.row
        x = self._at(read.value)
        self._line(Do.COPY, self._pieces(rows * c, rows), x, 0, from_row, 0, to, 0, row, 0, 1, rows, 1, c)

    def _pad_channels(self, step: Step) -> None:
        read, (n, oh, ow, wide) = step.reads["x"], step.writes.shape
        # Its zeros stay: the place is nobody else's.
        at = self.where[step.writes] = self.memory.add(n * oh * ow * wide)
        (_, h, w, c), stride = read.shape, step.options["stride"]
        self._line(
            Do.COPY, self._pieces(n * oh * ow * c, n * oh), self._at(read.value), h * w * c, stride * w * c,
            stride * c, at + step.options["before"], oh * ow * wide, ow * wide, wide, n, oh, ow, c,
        )  # fmt: skip

    def _pool(self, step: Step, do: Do) -> None:
        read, win = step.reads["x"], window_of(step.options, step.reads["x"].shape)
        n, h, w, c = read.shape
        pieces = self._pieces(math.prod(step.writes.shape) * math.prod(win.size), n * win.out[0])
        self.columns = max(self.columns, c)
        self._line(
            do, pieces, self._at(read.value), self._at(step.writes), n, h, w, c, *win.out, *win.size,
            *win.stride, *win.dilation, win.top, win.left, bool(step.options.get("count_padding")),
        )  # fmt: skip

    def _max_pool2d(self, step: Step) -> None:
        self._pool(step, Do.MAX_POOL)

    def _avg_pool2d(self, step: Step) -> None:
        self._pool(step, Do.AVG_POOL)

    def _global_avg_pool2d(self, step: Step) -> None:
        read = step.reads["x"]
        n, h, w, c = read.shape
        self.widest = max(self.widest, c)
        pieces = self._pieces(n * h * w * c, n)
        self._line(Do.GLOBAL_AVG, pieces, self._at(read.value), self._at(step.writes), n, h * w, c)

    def _batch_norm(self, step: Step) -> None:
        read, options, constants = step.reads["x"], step.options, step.constants
        mean, var = (np.array(options[name], self.dtype) for name in ("running_mean", "running_var"))
        scale = constants["gamma"] * (1 / np.sqrt(var + var.dtype.type(options["eps"]))).astype(var.dtype)
        kept = [self.memory.keep(array.astype(self.dtype)) for array in (scale, mean, constants["beta"])]
        rows, c = math.prod(read.shape[:-1]), read.shape[-1]
        added = self._at(step.reads["add"].value) if "add" in step.reads else -1
        self.widest = max(self.widest, read.row)
        self._line(
            Do.NORMALIZE, self._pieces(rows * c, rows), self._at(read.value), read.row,
            self._at(step.writes), rows, c, *kept, added, bool(options.get("relu")),
        )  # fmt: skip

    def _add(self, step: Step) -> None:
        a, *b = (self._at(read.value) for read in step.reads.values())
        count = math.prod(step.writes.shape)
        pieces, other, y = self._pieces(count, count), b[0] if b else -1, self._at(step.writes)
        self._line(Do.ADD, pieces, a, other, y, count, step.op == "relu")

    _relu = _add

    def _mul(self, step: Step) -> None:
        factors = [read for name, read in step.reads.items() if name != "add"]
        x, gate = sorted(factors, key=lambda read: read.shape[1:3], reverse=True)
        n, h, w, c = x.shape
        added = self._at(step.reads["add"].value) if "add" in step.reads else -1
        where = self._at(x.value), self._at(gate.value), self._at(step.writes)
        pieces, relu = self._pieces(n * h * w * c, n * h * w), bool(step.options.get("relu"))
        self._line(Do.GATE, pieces, *where, n, h * w, c, added, relu)

    def _sigmoid(self, step: Step) -> None:
        count = math.prod(step.writes.shape)
        x, y = self._at(step.reads["x"].value), self._at(step.writes)
        self._line(Do.SIGMOID, self._pieces(count, count), x, y, count)


def write(traced: Traced, dtype: Any) -> Program:
    """Write the program of a model that was watched with its batch norms folded."""
    return _Writer(traced, dtype).program()

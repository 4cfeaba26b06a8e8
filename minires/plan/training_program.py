"""From the steps of a model to the program of a training step: forward, and back again.

The steps are gone through once forward and once backward, as on the tape, and each writes its lines. A value
keeps its place as long as a line needs it, and so does a gradient; what several steps give to the gradient of
one value is added by the kernels that compute it. What no line knows (a pool, the last layers, a convolution
by Winograd's way) is *called*: the operation itself, on a little tape of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minires import backend, ops
from minires.backend import Array, simd, tile_products, tile_sums
from minires.backend.tile_products import Part, Sizes
from minires.errors import ConfigError
from minires.ops.conv2d import choose, indirect, joined_groups, places
from minires.ops.window import Window
from minires.plan.trace import Read, Step, Traced, Value, window_of
from minires.plan.training_lines import Lines, Place, Program
from minires.plan.training_walk import Do
from minires.tensor import Tensor

_WIDE = 64  # numbers in a row that make a kernel's inner loop worth its beginning and end
_ROOM = 1 << 17  # numbers that a thread packs at a time

# What is called, with its inputs by name and its options.
_CALLS: dict[str, Callable[..., Tensor]] = {
    "conv2d": lambda x, o, y: ops.conv2d(
        x["x"], x["w"], x.get("b"), stride=o["stride"], padding=o["padding"], dilation=o["dilation"],
        groups=o["groups"], relu=bool(o.get("relu")),
    ),
    "linear": lambda x, o, y: ops.linear(x["x"], x["w"], x.get("b")),
    "max_pool2d": lambda x, o, y: ops.max_pool2d(x["x"], **o),
    "avg_pool2d": lambda x, o, y: ops.avg_pool2d(x["x"], **o),
    "global_avg_pool2d": lambda x, o, y: ops.global_avg_pool2d(x["x"]),
    "dropout": lambda x, o, y: ops.dropout(x["x"], o["rate"], rng=o["rng"]),
    "sigmoid": lambda x, o, y: ops.sigmoid(x["x"]),
    "mul": lambda x, o, y: ops.mul(*x.values()),
}  # fmt: skip


@dataclass
class _Called:
    """An operation that is called, its inputs and its result, while the step goes on."""

    step: Step
    inputs: dict[str, Tensor] = field(default_factory=dict)
    y: Tensor | None = None


class Writer(Lines):
    """Writes the program of a training step."""

    def __init__(self, traced: Traced, dtype: Any, generators: Mapping[str, np.random.Generator]) -> None:
        depths = [read.shape[-1] for step in traced.steps for read in step.reads.values()]
        outputs = [step.writes.shape[-1] for step in traced.steps]
        super().__init__(dtype, max(*depths, *outputs, simd.width(simd.shapes()[0], np.float32)))
        self.traced, self.generators, self.where = traced, generators, dict[Value, Place]()
        self.gradients: dict[Value, Place] = {}
        self.calls: dict[int, _Called] = {}
        self.joined: dict[Step, int] = {}  # the kernels of joined groups
        self.borders: dict[Step, int] = {}  # pictures with their border
        self.known: dict[Value, tuple[int, int]] = {}  # mean and variance of a history's channels
        self.moments: dict[Step, tuple[int, int]] = {}  # ... of a batch norm's
        self.needs = self._needs()

    # ------------------------------------------------------------------------------------ what is needed

    def _needs(self) -> set[Value]:
        """The values whose gradients are needed: those that something hangs on which is learned."""
        needed: set[Value] = set()
        for step in self.traced.steps:
            for name, tensor in step.tensors.items():
                if tensor.requires_grad:
                    self._add_parameter(step, name, tensor)
            if any(read.value in needed for read in step.reads.values()) or any(
                tensor.requires_grad for tensor in step.tensors.values()
            ):
                needed.add(step.writes)
        return needed

    def _add_parameter(self, step: Step, name: str, tensor: Tensor) -> None:
        where = step.path or "the model"
        if tensor.node is None or tensor.node.op != "leaf":
            raise ConfigError(
                f"no plan of training knows what {where} does: its {name} is computed from parameters anew in "
                "each step; train the model itself"
            )
        if any(one is tensor for one in self.parameters):
            raise ConfigError(
                f"no plan of training is made where two layers share a parameter, {name} of {where}; train "
                "the model itself"
            )
        if tensor.dtype != self.dtype or not tensor.data.flags.c_contiguous:
            raise ConfigError(
                f"a plan of training needs parameters of {self.dtype} without gaps, but {name} of {where} is "
                f"{tensor.dtype} {tensor.shape}"
            )
        self.parameters.append(tensor)

    def _last_uses(self) -> dict[Value, int]:
        """The number of the step that needs a value last: forward 0, 1, ..., backward on from there."""
        steps, last = self.traced.steps, dict[Value, int]()
        for number, step in enumerate(steps):
            back = 2 * len(steps) - 1 - number
            for read in step.reads.values():
                last[read.value] = number
            last.setdefault(step.writes, number)
        for number, step in enumerate(steps):
            back = 2 * len(steps) - 1 - number
            if step.writes not in self.needs:
                continue
            for value in self._kept(step):
                last[value] = max(last[value], back)
        last[self.traced.output.value] = 2 * len(steps)  # who asked reads it
        return last

    def _kept(self, step: Step) -> list[Value]:
        """The values that the way back through a step needs."""
        reads = step.reads
        relu = bool(step.options.get("relu"))
        if step.op in ("conv2d", "linear"):
            kept = [reads["x"].value] if step.tensors["w"].requires_grad else []
            return kept + ([step.writes] if relu else [])
        if step.op == "batch_norm":
            return [reads["x"].value] + ([step.writes] if "add" in reads and relu else [])
        if step.op == "mul":
            return [read.value for read in reads.values()]
        return [step.writes] if step.op in ("relu", "sigmoid") else []

    # ----------------------------------------------------------------------------------------- the whole

    def program(self) -> Program:
        traced, steps = self.traced, self.traced.steps
        last = self._last_uses()
        self._place(traced.input)
        at_input = self.where[traced.input].at
        for number, step in enumerate(steps):
            if step.writes not in self.where and step.op != "pad_channels":
                self._place(step.writes)
            if self._is_called(step):
                self._call(number, step)
            else:
                getattr(self, f"_{step.op}")(step)
            self._release([*(read.value for read in step.reads.values()), step.writes], last, number)
        output = traced.output.value
        y = self._slice(self.where[output], math.prod(traced.output.shape))
        self._end_lines()
        forward, self.items = self.items, []
        self.gradients[output] = self._new(math.prod(output.shape))
        dy = self._slice(self.gradients[output], math.prod(output.shape))
        for number, step in reversed(list(enumerate(steps))):
            back = 2 * len(steps) - 1 - number
            if step.writes in self.gradients and step.writes in self.needs:
                if self._is_called(step):
                    self._call_back(number, step)
                else:
                    getattr(self, f"_{step.op}_back")(step)
                is_first_part = step.op != "copy" or step.at == 0
                if is_first_part:  # of a history, all others came before
                    self._drop(self.gradients.pop(step.writes))
            self._release([*(read.value for read in step.reads.values()), step.writes], last, back)
        self._end_lines()
        return self._laid_out(forward, slice(at_input, at_input + math.prod(traced.input.shape)), y, dy)

    def _place(self, value: Value) -> None:
        self.where[value] = self._new(math.prod(value.shape))

    def _release(self, values: list[Value], last: dict[Value, int], number: int) -> None:
        for value in dict.fromkeys(values):
            if last[value] == number and value in self.where:
                self._drop(self.where.pop(value))

    def _at(self, read: Read) -> int:
        return self.where[read.value].at

    # ------------------------------------------------------------------------------------ the gradients

    def _grows(self, value: Value, give: Callable[[int, int], None], size: int = 0) -> None:
        """``give(place, added)`` writes the lines for a gradient of a value: at a place, with what others gave
        before, at ``added``, or -1, added to it."""
        before, place = self.gradients.get(value), self._new(size or math.prod(value.shape))
        give(place.at, -1 if before is None else before.at)
        self.gradients[value] = place
        if before is not None:
            self._drop(before)

    def _shares(self, value: Value, place: Place) -> None:
        """The gradient of a value is one that there is already, or that and what others gave before."""
        if value not in self.gradients:
            place.users += 1
            self.gradients[value] = place
            return
        count = math.prod(value.shape)

        def give(at: int, added: int) -> None:
            self._line(Do.ADD, self._pieces(count, count), added, place.at, at, count, 0)

        self._grows(value, give)

    def _fill(self, place: Place, rows: int, row: int) -> None:
        """Zeros."""
        pieces = self._pieces(rows * row, rows)
        self._line(Do.COPY, pieces, self.zeros, 0, 0, 0, place.at, 0, row, 0, 1, rows, 1, row)

    def _own(self, value: Value, count: int) -> Place:
        """A gradient that is that of others, too, as a copy of its own."""
        before, own = self.gradients[value], self._new(count)
        self._line(Do.ADD, self._pieces(count, count), before.at, -1, own.at, count, 0)
        self.gradients[value] = own
        self._drop(before)
        return own

    # ------------------------------------------------------------------------------------------- called

    def _is_called(self, step: Step) -> bool:
        if step.op == "conv2d":
            x, w = step.reads["x"].shape, step.tensors["w"].shape
            win, like = window_of(step.options, x), np.empty(0, self.dtype)
            ways = choose.ways(like, x, w, win, step.options["groups"])
            return any(way.name != "indirect" for way in ways) or set(step.reads) != {"x"}
        return step.op not in ("batch_norm", "relu", "add", "copy", "pad_channels")

    def _call(self, number: int, step: Step) -> None:
        self._end_lines()
        places = {name: (self._at(read), read.shape) for name, read in step.reads.items()}
        y, call, learns = self.where[step.writes].at, _Called(step), step.writes in self.needs
        self.calls[number] = call
        function, options = _CALLS[step.op], step.options
        if step.op == "dropout":
            if step.path not in self.generators:
                raise ConfigError("no plan of training knows a dropout that is not a layer of its own")
            options = {**options, "rng": self.generators[step.path]}

        def forward() -> None:
            call.inputs = {
                name: Tensor(self._view(*places[name]), requires_grad=step.reads[name].value in self.needs)
                if name in places
                else Tensor(step.tensors[name].data, requires_grad=step.tensors[name].requires_grad)
                for name in (*step.reads, *step.tensors)
            }
            result = function(call.inputs, options, step.writes.shape)
            backend.copy(result.data, self._view(y, step.writes.shape))
            result.data = self._view(y, step.writes.shape)  # it need not have numbers of its own
            call.y = result if learns else None

        self.items.append(forward)

    def _call_back(self, number: int, step: Step) -> None:
        self._end_lines()
        call, dy = self.calls[number], self.gradients[step.writes].at
        targets: dict[str, tuple[int, int, tuple[int, ...]]] = {}
        for name, read in step.reads.items():
            if read.value in self.needs:

                def give(at: int, added: int, name: str = name, shape: tuple[int, ...] = read.shape) -> None:
                    targets[name] = at, added, shape

                self._grows(read.value, give)
        numbers = {
            name: next(i for i, one in enumerate(self.parameters) if one is tensor)
            for name, tensor in step.tensors.items()
            if tensor.requires_grad
        }

        def backward() -> None:
            assert call.y is not None
            call.y.backward(self._view(dy, step.writes.shape))
            for name, (at, added, shape) in targets.items():
                gradient, target = call.inputs[name].grad, self._view(at, shape)
                assert gradient is not None
                if added < 0:
                    backend.copy(gradient, target)
                else:
                    backend.add(self._view(added, shape), gradient, out=target)
            for name, number in numbers.items():
                gradient = call.inputs[name].grad
                assert gradient is not None
                self.called[number] = gradient
            call.inputs, call.y = {}, None

        self.items.append(backward)

    # ------------------------------------------------------------------------------------ convolutions

    def _conv2d(self, step: Step) -> None:
        read, w, groups = step.reads["x"], step.tensors["w"], step.options["groups"]
        win, shape, x = window_of(step.options, read.shape), read.shape, self._at(read)
        n, outputs_all = shape[0], w.shape[-1]
        left = joined_groups.left(groups, w.shape, joined_groups.MOST)
        depth, outputs = w.shape[2] * groups // left, outputs_all // left
        tile = simd.shape(outputs, self.dtype)
        if indirect.is_joined(shape[-1], win, left):
            x, shape, win, depth = self._bordered(step, x, shape, win)
        parts = places.forward(n, tuple(shape[1:]), outputs_all, win, len(tile[0]))
        sizes, size = indirect.sizes(depth, outputs, left), math.prod(step.writes.shape)
        bias = -1
        if "b" in step.tensors:
            bias = self._padded(step.tensors["b"], left, outputs, simd.width(tile, self.dtype))
        if left < groups:
            self.joined[step] = self._join(w, groups, left)
        relu = bool(step.options.get("relu"))
        self._products(
            tile, parts, sizes, (x, math.prod(shape)), (step, w), bias, -1, (self.where[step.writes].at, size),
            relu=relu,
        )  # fmt: skip

    def _conv2d_back(self, step: Step) -> None:
        read, w, groups = step.reads["x"], step.tensors["w"], step.options["groups"]
        win, shape, x = window_of(step.options, read.shape), read.shape, self._at_or_none(read)
        dy, count = self.gradients[step.writes], math.prod(step.writes.shape)
        if step.options.get("relu"):
            masked = self._new(count)
            pieces = self._pieces(count, count)
            self._line(Do.PASS, pieces, dy.at, self.where[step.writes].at, masked.at, count)
            dy = masked
        left = joined_groups.left(groups, w.shape, joined_groups.MOST)
        b = step.tensors.get("b")
        if b is not None and b.requires_grad:
            pieces = self._pieces(count, count // w.shape[-1])
            sums = self._sums(pieces * w.shape[-1])
            self._line(Do.COLUMNS, pieces, dy.at, count // w.shape[-1], w.shape[-1], sums, waits=False)
        if w.requires_grad:
            self._weights_back(step, x, dy.at, left, win)
        if read.value in self.needs:
            outputs, depth = w.shape[2] * groups // left, w.shape[-1] // left
            tile = simd.shape(outputs, self.dtype)
            parts = places.backward(shape[0], tuple(shape[1:]), w.shape[-1], win, len(tile[0]))
            sizes = indirect.sizes(depth, outputs, left, turned=True)

            def give(at: int, added: int) -> None:
                dx = at, math.prod(shape)
                self._products(tile, parts, sizes, (dy.at, count), (step, w), -1, added, dx, turned=True)

            self._grows(read.value, give)
        self._wait()
        if b is not None and b.requires_grad:
            line = self._line(Do.COLUMNS_END, 1, 0, pieces, w.shape[-1], 0)
            self._of(line, 5, b, "gradient")
        if step.options.get("relu"):
            self._drop(dy)

    def _at_or_none(self, read: Read) -> int:
        return self.where[read.value].at if read.value in self.where else -1

    def _bordered(
        self, step: Step, x: int, shape: tuple[int, ...], win: Window
    ) -> tuple[int, Any, Window, int]:
        """The pictures with their border, which stays zero, as the place is nobody else's."""
        (n, h, w, c), picture = shape, (shape[1] + win.top + win.bottom, shape[2] + win.left + win.right)
        size, line = math.prod(picture) * c, picture[1] * c
        at = self.memory.add(n * size + 64)
        self.borders[step] = at
        inside = at + win.top * line + win.left * c
        self._line(
            Do.COPY,
            self._pieces(n * h * w * c, n * h),
            x,
            h * w * c,
            w * c,
            c,
            inside,
            size,
            line,
            c,
            n,
            h,
            w,
            c,
        )
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

    def _products(
        self, tile: simd.Shape, parts: Sequence[Part], sizes: Sizes, x: tuple[int, int],
        w: tuple[Step, Tensor], bias: int, added: int, y: tuple[int, int], *, relu: bool = False,
        turned: bool = False,
    ) -> None:  # fmt: skip
        width, (step, weights) = simd.width(tile, self.dtype), w
        panels, kind = sizes.groups * -(-sizes.outputs // width), simd.shapes().index(tile)
        threads = tile_products.share(parts, sizes)
        joined = self.joined.get(step)
        w_size = (
            weights.size
            if joined is None
            else sizes.groups * sizes.depth * sizes.outputs * math.prod(weights.shape[:2])
        )
        by_panel = w_size > x[1] and panels >= threads
        self.most_panels = max(self.most_panels, panels * width)
        for place, at, to, times, x_step, y_step in parts:
            tiles, taps = place.sees.shape[1], len(place.taps)
            long = taps * sizes.depth * width
            room = min(max(_ROOM, long), panels * long)
            total = panels if by_panel else times * tiles
            pieces = min(threads, total)
            line = self._line(
                Do.PRODUCTS, pieces, kind, x[0] + at, x[1] - at, 0 if joined is None else joined, w_size, bias,
                added if added < 0 else added + to, y[0] + to, y[1] - to, *self._table(place), relu, turned,
                place.many, x_step, y_step, sizes.depth, sizes.outputs, sizes.x_group, sizes.y_group,
                sizes.w_group, sizes.tap, sizes.row, width, times * tiles, panels, by_panel,
                self._room("panels", room), room, waits=False,
            )  # fmt: skip
            if joined is None:
                self._of(line, 5, weights)
        self._wait()

    def _weights_back(self, step: Step, x: int, dy: int, left: int, win: Window) -> None:
        """dw, for which sums of some blocks are taken by themselves: see ``tile_sums.sums_over_places``."""
        (n, *picture), w, groups = step.reads["x"].shape, step.tensors["w"], step.options["groups"]
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
            self._line(
                Do.COPY, self._pieces(n * oh * ow * c, n * oh), x, h * wide * c, sh * wide * c, sw * c, seen.at,
                oh * ow * c, ow * c, c, n, oh, ow, c,
            )  # fmt: skip
            x, picture, win = seen.at, [oh, ow, c], indirect.beside(win)
        blocks = places.blocks(n, tuple(picture), win)
        sizes = indirect.sizes(depth, outputs_all // left, left)
        task = tile_sums.task(blocks, sizes, self.dtype)
        size, count = math.prod(win.size) * depth * outputs_all, math.prod(step.writes.shape)
        joined = self._new(size) if left < groups else None
        parts = len(task.lists) if task.by_list else len(task.lists) > 1
        totals = self._new(parts * size) if parts else None
        x_room, y_room = task.x_room(sizes, picture[-1]), task.y_room(sizes, outputs_all)
        for number, some in enumerate(task.lists):
            is_total = task.by_list or number > 0
            for first, part in enumerate(some):
                rows, starts, runs, *at = part
                line = self._line(
                    Do.SUMS, task.pieces, task.kind, x, n * math.prod(picture), dy, count, 0, size, first == 0,
                    *self._blocks(part), *at, picture[-1], outputs_all, sizes.depth, sizes.outputs,
                    *sizes[3:], task.width, task.units, task.panels, task.by_panel,
                    self._room("x", x_room), x_room, 0, self._room("y", y_room), y_room, waits=first + 1 < len(some) or (not task.by_list and len(task.lists) > 1),
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
        if joined is not None:
            self._wait()
            self._part(w, groups, left, joined.at)
        for place in (seen, joined, totals):
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

    # ----------------------------------------------------------------------------------------- batch norm

    def _batch_norm(self, step: Step) -> None:
        read, o, c = step.reads["x"], step.options, step.reads["x"].shape[-1]
        rows, x, row = math.prod(read.shape[:-1]), self._at(read), read.row
        replaced, factor = _moved(o, rows)
        numbers = self._numbers(1 - replaced, replaced, factor)
        if read.value in self.known:
            mean, var = self.known[read.value]
            line = self._line(Do.MOMENTS_END, 1, 0, 0, c, 1, x, rows, mean, var, -1, -1, numbers)
        else:
            mean, var = self.memory.add(c), self.memory.add(c)
            line = self._moments(x, rows, c, mean, var, numbers)
        self.moments[step] = mean, var
        for column, name in ((10, "running_mean"), (11, "running_var")):
            if o[name] is not None:
                self._running(line, column, o[name], step)
        added = self._at(step.reads["add"]) if "add" in step.reads else -1
        line = self._line(
            Do.NORMALIZE, self._pieces(rows * c, rows), x, row, self.where[step.writes].at, rows, c, mean, var,
            0, 0, added, bool(o.get("relu")), self._numbers(o["eps"]), self._room("scale", c),
        )  # fmt: skip
        self._of(line, 9, step.tensors["gamma"])
        self._of(line, 10, step.tensors["beta"])

    def _moments(self, x: int, rows: int, c: int, mean: int, var: int, numbers: int = 0) -> int:
        """Mean and variance of the channels of x (rows, c). Returns the line that ends with them."""
        together = self._together(rows, c)
        pieces, wide = self._pieces(rows * c, rows // together), together * c
        sums, room = self._sums(pieces * 2 * wide), self._room("shift", wide)
        self._line(Do.MOMENTS, pieces, x, c, rows, c, together, sums, room)
        return self._line(Do.MOMENTS_END, 1, 0, pieces, c, together, x, rows, mean, var, -1, -1, numbers)

    def _running(self, line: int, column: int, array: Array, step: Step) -> None:
        if array.dtype != self.dtype or not array.flags.c_contiguous:
            raise ConfigError(
                f"a plan of training needs running statistics of {self.dtype} without gaps; those of "
                f"{step.path} are {array.dtype}"
            )
        self.buffers.append((line, column, array))

    @staticmethod
    def _together(rows: int, c: int) -> int:
        """How many rows are taken as one, where they are short."""
        together = 1
        while together * c < _WIDE and rows % (2 * together) == 0:
            together *= 2
        return together

    def _batch_norm_back(self, step: Step) -> None:
        read, o, c = step.reads["x"], step.options, step.reads["x"].shape[-1]
        rows, x, row, dy = math.prod(read.shape[:-1]), self._at(read), read.row, self.gradients[step.writes]
        together, relu = self._together(rows, c) if row == c else 1, bool(o.get("relu"))
        gamma, beta, (mean, var) = step.tensors["gamma"], step.tensors["beta"], self.moments[step]
        y = self.where[step.writes].at if relu and "add" in step.reads else -1
        pieces, wide, eps = self._pieces(rows * c, rows // together), together * c, self._numbers(o["eps"])
        line = self._line(
            Do.SLOPES, pieces, dy.at, x, row, y, rows, c, together, mean, var, 0, 0, relu, eps,
            self._sums(pieces * 2 * wide), self._room("shift", 4 * wide),
        )  # fmt: skip
        self._of(line, 11, gamma)
        self._of(line, 12, beta)
        scale, slope, offset = (self.memory.add(c) for _ in range(3))
        line = self._line(
            Do.SLOPES_END, 1, 0, pieces, c, together, rows, var, 0, eps, -1, -1, scale, slope, offset
        )
        self._of(line, 8, gamma)
        for column, tensor in ((10, gamma), (11, beta)):
            if tensor.requires_grad:
                self._of(line, column, tensor, "gradient")
        add = step.reads.get("add")
        shortcut: Place | None = None
        if add is not None and add.value in self.needs and relu:
            shortcut = self._new(rows * c)
        needs_x = read.value in self.needs

        dx, nowhere = self.gradients.get(read.value), None
        grows = dx is not None
        if not needs_x:
            dx = nowhere = self._new(rows * row)
        elif dx is None:
            dx = self.gradients[read.value] = self._new(rows * row)
            if row > c:  # the first channels of a history, of which nobody has read the others
                grows = True
                self._fill(dx, rows, row)
        elif dx.users > 1:
            dx = self._own(read.value, rows * row)
        line = self._line(
            Do.GRADIENT, self._pieces(rows * c, rows), dy.at, x, row, y, rows, c, mean, scale, 0, relu, slope,
            offset, dx.at, row, grows, -1 if shortcut is None else shortcut.at,
        )  # fmt: skip
        self._of(line, 10, beta)
        if nowhere is not None:
            self._drop(nowhere)
        if add is not None and add.value in self.needs:
            self._shares(add.value, shortcut or dy)
        if shortcut is not None:
            self._drop(shortcut)

    # -------------------------------------------------------------------------------------- all the others

    def _add(self, step: Step) -> None:
        a, *b = (self._at(read) for read in step.reads.values())
        count = math.prod(step.writes.shape)
        y = self.where[step.writes].at
        self._line(Do.ADD, self._pieces(count, count), a, b[0] if b else -1, y, count, step.op == "relu")

    _relu = _add

    def _relu_back(self, step: Step) -> None:
        count, dy = math.prod(step.writes.shape), self.gradients[step.writes]
        masked = self._new(count)
        self._line(Do.PASS, self._pieces(count, count), dy.at, self.where[step.writes].at, masked.at, count)
        self._share_all(step, masked)
        self._drop(masked)

    def _pad_channels(self, step: Step) -> None:
        """Its zeros stay: the place is nobody else's."""
        size = math.prod(step.writes.shape)
        self.where[step.writes] = Place(self.memory.add(size), size, users=2)
        (_, h, w, c), (n, oh, ow, wide), stride = *_padded(step), step.options["stride"]
        to, pieces = self.where[step.writes].at + step.options["before"], self._pieces(n * oh * ow * c, n * oh)
        self._line(
            Do.COPY, pieces, self._at(step.reads["x"]), h * w * c, stride * w * c, stride * c, to, oh * ow * wide,
            ow * wide, wide, n, oh, ow, c,
        )  # fmt: skip

    def _pad_channels_back(self, step: Step) -> None:
        read = step.reads["x"]
        (_, h, w, c), (n, oh, ow, wide), stride = *_padded(step), step.options["stride"]
        place, count = self.gradients.get(read.value), n * h * w * c
        if place is None:
            place = self.gradients[read.value] = self._new(count)
            self._fill(place, n * h * w, c)
        elif place.users > 1:
            place = self._own(read.value, count)
        dy = self.gradients[step.writes].at + step.options["before"]
        self._line(
            Do.COPY, self._pieces(n * oh * ow * c, n * oh), dy, oh * ow * wide, ow * wide, wide, place.at,
            h * w * c, stride * w * c, stride * c, n, oh, ow, c, 1,
        )  # fmt: skip

    def _add_back(self, step: Step) -> None:
        self._share_all(step, self.gradients[step.writes])

    def _share_all(self, step: Step, place: Place) -> None:
        for read in step.reads.values():
            if read.value in self.needs:
                self._shares(read.value, place)

    def _copy(self, step: Step) -> None:
        read, row = step.reads["x"], step.writes.shape[-1]
        rows, c, to = math.prod(read.shape[:-1]), read.shape[-1], self.where[step.writes].at + step.at
        self._line(
            Do.COPY,
            self._pieces(rows * c, rows),
            self._at(read),
            0,
            read.row,
            0,
            to,
            0,
            row,
            0,
            1,
            rows,
            1,
            c,
        )
        if read.is_whole and self._is_normalized(step.writes):
            if step.writes not in self.known:
                self.known[step.writes] = self.memory.add(row), self.memory.add(row)
            mean, var = self.known[step.writes]
            self._moments(self._at(read), rows, c, mean + step.at, var + step.at)

    def _is_normalized(self, value: Value) -> bool:
        """Whether batch norms read a history."""
        return any(step.op == "batch_norm" and step.reads["x"].value is value for step in self.traced.steps)

    def _copy_back(self, step: Step) -> None:
        read, row, dy = step.reads["x"], step.writes.shape[-1], self.gradients[step.writes].at + step.at
        if read.value not in self.needs:
            return
        rows, c = math.prod(read.shape[:-1]), read.shape[-1]
        if not read.is_whole:
            raise ConfigError("no plan of training knows a copy of a part of a history")

        def give(at: int, added: int) -> None:
            if added >= 0:
                count = rows * c
                self._line(Do.ADD, self._pieces(count, count), added, -1, at, count, 0)
            pieces = self._pieces(rows * c, rows)
            self._line(Do.COPY, pieces, dy, 0, row, 0, at, 0, c, 0, 1, rows, 1, c, added >= 0)

        self._grows(read.value, give)


def _padded(step: Step) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes before and after channels were added."""
    return step.reads["x"].shape, step.writes.shape


def _moved(options: Any, rows: int) -> tuple[float, float]:
    """By what share running statistics move, and the factor of the variance: see minires.ops.batch_norm."""
    momentum = float(options["momentum"])
    return (momentum, rows / (rows - 1)) if options["convention"] == "torch" else (1 - momentum, 1.0)

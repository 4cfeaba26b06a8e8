"""A model layer by layer: output shape, parameters, MACs, memory, all seen while pictures pass.

What the tape keeps for the backward pass is measured, too: each operation leaves a closure on the tape, and
the arrays that it holds stay in memory until the gradient comes back. See :func:`_measure`.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from html import escape
from typing import Any

import numpy as np

from minires.backend import Array
from minires.errors import ConfigError, ShapeError
from minires.nn.intervene import changes_of
from minires.nn.module import Module
from minires.nn.restored import left_as_it_is as left_as_it_is  # others have it from here
from minires.ops.plot_labels import filled, times
from minires.ops.registry import describe
from minires.tape import reachable
from minires.tensor import Call, Tensor, no_grad, watching, with_settings

Shape = tuple[int, ...]
Row = tuple[str, ...]
LONGEST = 24  # letters for what a block is made of, so that a table fits in 100 columns


@dataclass(frozen=True)
class Layer:
    """One call of one layer.

    Units: ``params`` counts numbers, running statistics included; ``params_trainable`` those that are
    learned; ``macs`` the MACs (a multiplication and an addition each) for one picture, of
    convolutions and matrix products only;
    ``output_bytes`` the bytes of its output for one picture in float32; ``saved`` the bytes that the tape
    keeps for its backward, per picture, None where that was not measured.
    Shapes: ``output`` is that of one picture, without the batch axis.
    """

    name: str
    block: str  # the part of the model it belongs to: res2a, or its own name
    kind: str  # in words, with kernel and stride
    output: Shape
    params: int
    params_trainable: int
    macs: int
    output_bytes: int
    saved: int | None = None
    kernel: str = ""  # and stride, of a convolution: 3x3 /2


@dataclass(frozen=True)
class Summary:
    """What a model is made of; printed it is a table, with equal blocks in one line.

    ``outputs`` has what each part directly inside the model hands on: block1 -> (32, 32, 216).
    ``shared`` has the paths of what is held under several names (counted once), and these names.
    ``in_no_row`` has the sizes of the parameters and buffers that belong to no row, by path: those of the
    model or a block itself, and of layers that did not run.
    ``saved_between`` has what the tape keeps for operations in none of the layers, by the part in which they
    are (an addition behind a gate, say; "" is the model itself).

    Units: ``params_total`` counts what Keras calls total parameters, with the running statistics of batch
    norm; ``parameters`` what torch calls parameters, without these; ``params_trainable`` those of them that
    are not frozen. ``output_bytes`` and ``saved`` are sums, for one picture; see :class:`Layer`.
    """

    model: str
    input: Shape
    layers: tuple[Layer, ...]
    outputs: dict[str, Shape]
    params_total: int
    parameters: int
    params_trainable: int
    macs: int
    output_bytes: int
    saved: int | None = None
    saved_between: Mapping[str, int] = field(default_factory=dict)
    macs_between: Mapping[str, int] = field(default_factory=dict)
    shared: Mapping[str, Sequence[str]] = field(default_factory=dict)
    in_no_row: Mapping[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Give everything as plain data for JSON."""
        return asdict(self)

    def stages(self) -> Iterator[tuple[Shape, list[Layer]]]:
        """Yield the layers in groups of blocks that end in one picture size, as the papers' tables do."""
        blocks = [list(group) for _, group in itertools.groupby(self.layers, key=lambda layer: layer.block)]
        # A block belongs to the size that it hands on: its first layers may still see the larger one.
        for size, group in itertools.groupby(blocks, key=lambda block: self.outputs[block[0].block][:-1]):
            yield size, [layer for block in group for layer in block]

    def table(self, *, full: bool = False) -> str:
        """Give a table: one line per block and one for a run of equal blocks; ``full``, one per layer.

        A line for several blocks has the sums of them all.
        """
        statistics = self.params_total - self.parameters
        fixed = self.params_total - self.params_trainable
        figures = [
            ("parameters", self.params_total, "as Keras counts, running statistics of batch norm included"),
            ("  in torch", self.parameters, f"without the {statistics:,} running statistics (buffers)"),
            ("  trainable", self.params_trainable, ""),
            ("  not trained", fixed, "running statistics, frozen layers"),
            *self._rest(),
            ("MACs", self.macs, "of convolutions and dense layers, one picture"),
            *self._outside(self.macs_between),
            ("output bytes", self.output_bytes, "of all layers, one picture, float32"),
        ]
        if self.saved is not None:
            figures.append(("saved bytes", self.saved, "activations kept for the backward, per picture"))
            figures += self._outside(self.saved_between)
        lines = [f"{name:<13} {figure:>14,}  {note}".rstrip() for name, figure, note in figures]
        lines += [f"{'shared':<13} {' = '.join((first, *others))}" for first, others in self.shared.items()]
        return "\n".join([
            f"{self.model}, input {times(self.input)}", "", *_table(self, full=full), "", *lines
        ])  # fmt: skip

    def _rest(self) -> Iterator[tuple[str, int, str]]:
        """What the rows leave out of the parameters, if they do."""
        if self.in_no_row:
            shown = ", ".join(itertools.islice(self.in_no_row, 3))
            shown += ", ..." if len(self.in_no_row) > 3 else ""
            yield "  in no row", sum(self.in_no_row.values()), f"{shown}: outside of the layers that ran"

    def _outside(self, between: Mapping[str, int]) -> Iterator[tuple[str, int, str]]:
        """What is done between the layers of no block, if anything is."""
        blocks = {layer.block for layer in self.layers}
        if outside := sum(size for part, size in between.items() if part not in blocks):
            yield "  in no row", outside, "between the layers, outside of the blocks"

    def __repr__(self) -> str:
        return self.table()

    def _repr_html_(self) -> str:
        return f"<pre>{escape(self.table())}</pre>"


def summarize(model: Module, input: Shape, *, name: str | None = None, memory: bool = False) -> Summary:
    """List the layers of ``model`` in the order in which one zero picture passes through them.

    The model runs once, in inference mode and without gradients, and is left as it was. A layer that is
    called twice has two rows, and its parameters in the first. With ``memory`` it runs twice more, in
    training mode, to measure what the tape keeps: see ``saved`` of :class:`Layer`.

    Shapes: input (H, W, C), without the batch axis.
    Raises: ShapeError if such a picture does not fit the model; ConfigError for one that is changed by
    ``minires.intervene``.
    """
    if changes := changes_of(model):
        raise ConfigError(
            f"summary: the model is changed ({changes[0]}), and a summary lists what it is made of; call it "
            "outside of the `with` block"
        )
    with left_as_it_is(model):
        model.eval()
        with _observed(model) as seen, no_grad(), watching(seen.note):
            handed_on(model(_pictures(model, input, 1)), model)
        per_picture = _saved_per_picture(model, input) if memory else None
    layers, between, macs_between = tuple(seen.layers), {}, Counter[str]()
    for call in seen.calls:
        macs_between[call.part] += 0 if call.counted else call.macs
    if per_picture is not None:
        layers = tuple(replace(layer, saved=per_picture[index]) for index, layer in enumerate(layers))
        between = {place: size for place, size in per_picture.items() if isinstance(place, str) and size}
    sizes = [(parameter.size, parameter.requires_grad) for parameter in model.parameters()]
    total = sum(size for size, _ in sizes)
    return Summary(
        model=name or type(model).__name__, input=tuple(input), layers=layers, outputs=seen.outputs,
        params_total=total + sum(int(buffer.size) for _, buffer in model.named_buffers()), parameters=total,
        params_trainable=sum(size for size, trained in sizes if trained),
        macs=sum(call.macs for call in seen.calls),
        output_bytes=sum(layer.output_bytes for layer in layers),
        saved=None if per_picture is None else sum(per_picture.values()), saved_between=between,
        macs_between={part: macs for part, macs in macs_between.items() if macs},
        shared=model.shared_names(),
        in_no_row={
            path: int(one.size)
            for path, one in (*model.named_parameters(), *model.named_buffers())
            if id(one) not in seen.counted
        },
    )  # fmt: skip


def handed_on(result: Any, module: object, path: str = "") -> Any:
    """What a module returned, if it is one tensor. Raises: ShapeError that names the module."""
    if hasattr(result, "shape"):
        return result
    name = f"{path} ({type(module).__name__})" if path else getattr(module, "__name__", type(module).__name__)
    if result is None:
        raise ShapeError(f"{name} returned None; does its forward end in return?")
    kind = type(result).__name__
    many = f" of {len(result)}" if isinstance(result, tuple | list | dict) else ""
    raise ShapeError(f"{name} returned a {kind}{many}; to look inside, it must return one tensor")


# ------------------------------------------------------------------------------------- watching a model run


@dataclass
class _Called:
    """One call of an operation: its label, what it costs, and of a convolution its kernel as papers write it.

    ``counted`` says that it was in a layer, ``part`` in which part directly inside the model, if in none.
    """

    label: str
    macs: int
    kernel: str
    counted: bool = False
    part: str = ""


@dataclass
class _Seen:
    """What happened in a forward pass.

    ``calls`` are those of all operations, if they are noted.
    A span is the range of the tape's numbers that were given out meanwhile: in the call of the layer with the
    same index, or in a part directly inside the model.
    """

    layers: list[Layer] = field(default_factory=list)
    calls: list[_Called] = field(default_factory=list)
    outputs: dict[str, Shape] = field(default_factory=dict)
    spans: list[range] = field(default_factory=list)
    spans_of_parts: list[tuple[str, range]] = field(default_factory=list)
    counted: set[int] = field(default_factory=set)  # the parameters and buffers of the rows

    def note(self, call: Call) -> None:
        """Write down a call of an operation, as the operation describes itself."""
        known, shape = describe(call.op), call.y.shape
        label = known.called(call.options, shape, call.inputs)
        shapes = {name: x.shape for name, x in call.inputs.items()}
        form = known.arithmetic
        macs = form.macs(shapes, call.options, shape) if form else 0
        kernel = filled("{kernel}{stride}", call.options, shape, ()) if macs else ""
        self.calls.append(_Called(label, macs, kernel))


@contextmanager
def _observed(model: Module) -> Iterator[_Seen]:
    """Yield what is filled as long as this block lasts: the calls of layers, and what each part hands on."""
    seen = _Seen()
    wrapped: list[Module] = []

    def observe(path: str, block: str, module: Module, forward: Callable[..., Tensor], x: Tensor,
                **options: Any) -> Tensor:  # fmt: skip
        start, before = _number(), len(seen.calls)
        y: Tensor = handed_on(forward(x, **options), module, path)
        total, trainable = _own_parameters(module, seen.counted)
        output = tuple(y.shape[1:])
        seen.outputs[block] = output  # until the block itself hands on something, if it is ever called
        calls = seen.calls[before:]
        macs = sum(call.macs for call in calls)
        seen.layers.append(
            Layer(path, block, _kind(module, calls), output, total, trainable, macs, 4 * math.prod(output),
                  kernel=next((call.kernel for call in calls if call.kernel), ""))
        )  # fmt: skip
        seen.spans.append(range(start, _number()))
        for call in calls:
            call.counted = True
        return y

    def hand_on(name: str, forward: Callable[..., Tensor], *args: Any, **options: Any) -> Tensor:
        start, before = _number(), len(seen.calls)
        y: Tensor = handed_on(forward(*args, **options), named[name], name)
        seen.outputs[name] = tuple(y.shape[1:])
        seen.spans_of_parts.append((name, range(start, _number())))
        for call in seen.calls[before:]:
            if not call.counted:
                call.part = name
        return y

    # A single layer is its own and only part.
    named = dict(model.children()) or {type(model).__name__: model}
    for top, child in named.items():
        prefix = f"{top}." if child.in_path else ""
        for path, module in ((top, child), *child.named_modules(prefix)):
            if next(module.children(), None) is None and "forward" not in vars(module):
                vars(module)["forward"] = functools.partial(observe, path, top, module, module.forward)
                wrapped.append(module)
        vars(child)["forward"] = functools.partial(hand_on, top, child.forward)
        wrapped.append(child)
    try:
        yield seen
    finally:
        for module in wrapped:
            vars(module).pop("forward", None)


def _pictures(model: Module, input: Shape, count: int) -> Tensor:
    parameter = next(model.parameters())
    return Tensor(np.zeros((count, *input), parameter.dtype)).to(parameter.device)


def _number() -> int:
    """The number that the tape has reached: every node made from now on has a higher one."""
    node = Tensor(0.0, requires_grad=True).node
    assert node is not None
    return node.number


# ------------------------------------------------------------------------------------- what the tape keeps


def _saved_per_picture(model: Module, input: Shape) -> Counter[int | str]:
    """The bytes that one picture more makes the tape keep, by index of the call or name of the part.

    It is the difference between three pictures and two. So parameters and the statistics of a batch, which
    are as large for any number of pictures, fall away; and with one picture, batch norm may have a single
    value per channel, which it refuses.
    """
    model.train()
    three, two = _measure(model, input, 3), _measure(model, input, 2)
    three.subtract(two)
    return three


def _measure(model: Module, input: Shape, count: int) -> Counter[int | str]:
    """The bytes of the arrays that operations have saved after a forward pass of ``count`` pictures.

    Each piece of memory is counted once, for the first operation that holds it or a view of it.
    """
    with _observed(model) as seen, with_settings(recording=True):
        y = model(_pictures(model, input, count))
    places: dict[int, int | str] = {}
    for index, span in enumerate(seen.spans):  # a call inside another call ends first
        for number in span:
            places.setdefault(number, index)
    for part, span in seen.spans_of_parts:
        for number in span:
            places.setdefault(number, part)
    saved: Counter[int | str] = Counter()
    counted: set[int] = set()
    for node in sorted(reachable(y.node) if y.node else (), key=lambda node: node.number):
        for array in map(_memory, node.saved.values()):
            if id(array) not in counted:
                counted.add(id(array))
                saved[places.get(node.number, "")] += array.nbytes
    return saved


def _memory(array: Array) -> Array:
    """The array whose memory ``array`` is a view of."""
    while getattr(array, "base", None) is not None and hasattr(array.base, "nbytes"):
        array = array.base
    return array


# --------------------------------------------------------------------------------------------- the table


def _table(summary: Summary, *, full: bool) -> Iterator[str]:
    """The lines of the table: a heading per stage with its sums, then its blocks."""
    rows: list[Row] = [("layer", "what", "output", "size", "saved", "parameters", "MACs")]
    for size, stage in summary.stages():
        blocks = [list(block) for _, block in itertools.groupby(stage, key=lambda layer: layer.block)]
        title = f"output {times(size)}" if size else "scores"
        rows.append((title, "", "", *_figures(summary, blocks)))
        rows += _layer_rows(summary, blocks) if full else _block_rows(summary, blocks)
    if summary.saved is None:
        rows = [(*row[:4], *row[5:]) for row in rows]
    head, *lines = aligned(rows, left=3)
    yield head
    for number, line in enumerate(lines):
        if not line.startswith(" "):
            yield "" if number else "-" * len(head)
        yield line


def aligned(rows: list[Row], *, left: int) -> Iterator[str]:
    """The rows as lines of one table: the first ``left`` columns to the left, the figures to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def _layer_rows(summary: Summary, blocks: list[list[Layer]]) -> Iterator[Row]:
    """A row per layer, and a heading for each block that has more than itself."""
    for layers in blocks:
        name, indent = layers[0].block, " "
        if layers[0].name != name:
            yield (f" {name}", "", times(summary.outputs[name]), "", "", "", "")
            indent = "  "
        for one in layers:
            figures = (_bytes(one.output_bytes), _bytes(one.saved), count(one.params), count(one.macs))
            yield (indent + one.name.removeprefix(name + "."), one.kind, times(one.output), *figures)
        saved, macs = summary.saved_between.get(name), summary.macs_between.get(name, 0)
        if saved or macs:
            yield (f"{indent}(between layers)", "", "", "", _bytes(saved), "", count(macs))


def _block_rows(summary: Summary, blocks: list[list[Layer]]) -> Iterator[Row]:
    """A row per block, or per run of blocks that are made of the same layers."""
    for _, group in itertools.groupby(blocks, key=lambda block: _made_of(summary, block)):
        run = list(group)
        first, last = run[0][0].block, run[-1][0].block
        name = f" {first}" if len(run) == 1 else f" {first}-{last}  x{len(run)}"
        yield (name, in_short(run[0]), times(summary.outputs[first]), *_figures(summary, run))


def _made_of(summary: Summary, block: list[Layer]) -> tuple[Any, ...]:
    """What two blocks must have in common to be shown as one."""
    layers = [(one.kind, one.output, one.params, one.params_trainable, one.macs) for one in block]
    return summary.outputs[block[0].block], layers


def in_short(block: list[Layer]) -> str:
    """The kernels and strides of a block's convolutions: 1x1 /2, 3x3, 1x1; a repeated pattern once."""
    if len(block) == 1:
        return block[0].kind
    kernels = [one.kernel for one in block if one.kernel]
    if not kernels:
        return f"{len(block)} layers"
    total = len(kernels)
    period = next(n for n in range(1, total + 1) if kernels == kernels[:n] * (total // n))
    text = ", ".join(kernels[:period])
    if total > 2 * period:
        text = f"{total // period} x ({text})"
    else:
        text = ", ".join(kernels)
    return text if len(text) <= LONGEST else f"{total} convolutions"


def _figures(summary: Summary, blocks: list[list[Layer]]) -> Row:
    """The sums over all layers of ``blocks``: bytes of outputs, bytes saved, parameters, MACs."""
    layers = [layer for block in blocks for layer in block]
    saved = sum(summary.saved_between.get(block[0].block, 0) for block in blocks)
    saved += sum(layer.saved or 0 for layer in layers)
    params = sum(layer.params for layer in layers)
    macs = sum(layer.macs for layer in layers)
    macs += sum(summary.macs_between.get(block[0].block, 0) for block in blocks)
    return _bytes(sum(layer.output_bytes for layer in layers)), _bytes(saved), count(params), count(macs)


def _own_parameters(module: Module, counted: set[int]) -> tuple[int, int]:
    """How many numbers a layer holds that were not counted before, and how many of them are learned."""
    parameters = [one for one in module.parameters() if id(one) not in counted]
    buffers = [one for _, one in module.named_buffers() if id(one) not in counted]
    counted.update(map(id, (*parameters, *buffers)))
    trainable = sum(one.size for one in parameters if one.requires_grad)
    return sum(int(one.size) for one in (*parameters, *buffers)), trainable


def _kind(module: Module, calls: Sequence[_Called]) -> str:
    """A layer in a few words: those of its only operation; else the name of its class."""
    if len(calls) == 1:
        return calls[0].label
    return type(module).__name__ + ("" if calls else ", nothing to do")  # a dropout at inference


def count(number: int) -> str:
    """A figure with commas, nothing where it is zero."""
    return f"{number:,}" if number else ""


def _bytes(number: int | None) -> str:
    """Two or three digits and a unit, K for 1024: 3.1M. Nothing where it is zero or unknown."""
    if not number:
        return ""
    size, unit = float(number), ""
    for larger in "KMGT":
        if size < 999.5:
            break
        size, unit = size / 1024, larger
    return f"{size:.{1 if unit and size < 9.95 else 0}f}{unit}"

"""A model layer by layer: output shape, parameters, multiply-adds, all seen in one forward pass."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from minires.nn import layers as nn
from minires.nn.fuse import AddReLU
from minires.nn.module import Module, Parameter
from minires.tensor import Tensor, no_grad

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """One call of one layer.

    Units: ``params`` counts numbers, running statistics included; ``params_trainable`` those that are
    learned; ``madds`` the multiply-adds for one picture, of convolutions and dense layers only.
    Shapes: ``output`` is that of one picture, without the batch axis.
    """

    name: str
    block: str  # the part of the model it belongs to: res2a, or its own name
    kind: str  # in words, with kernel and stride
    output: Shape
    params: int
    params_trainable: int
    madds: int


@dataclass(frozen=True)
class Summary:
    """What a model is made of; ``str`` of it is a table.

    ``outputs`` has what each part directly inside the model hands on: block1 -> (32, 32, 216).
    """

    model: str
    input: Shape
    layers: tuple[Layer, ...]
    outputs: dict[str, Shape]
    params_total: int
    params_trainable: int
    madds: int

    def to_dict(self) -> dict[str, Any]:
        """Give everything as plain data for JSON."""
        return asdict(self)

    def stages(self) -> Iterator[tuple[Shape, list[Layer]]]:
        """Yield the layers in groups of blocks that end in one picture size, as the papers' tables do."""
        blocks = [list(group) for _, group in itertools.groupby(self.layers, key=lambda layer: layer.block)]
        # A block belongs to the size that it hands on: its first layers may still see the larger one.
        for size, group in itertools.groupby(blocks, key=lambda block: self.outputs[block[0].block][:-1]):
            yield size, [layer for block in group for layer in block]

    def __str__(self) -> str:
        fixed = self.params_total - self.params_trainable
        return "\n".join([
            f"{self.model}, input {_times(self.input)}",
            "",
            *_table(self),
            "",
            f"parameters     {self.params_total:>13,}",
            f"  trainable    {self.params_trainable:>13,}",
            f"  not trained  {fixed:>13,}  (running statistics of batch norm, frozen layers)",
            f"multiply-adds  {self.madds:>13,}  (convolutions and dense layers, one picture)",
        ])  # fmt: skip


def summarize(model: Module, input: Shape, *, name: str | None = None) -> Summary:
    """List the layers of ``model`` in the order in which one zero picture passes through them.

    The model runs once, in inference mode and without gradients, and is left as it was. A layer that is
    called twice has two rows, and its parameters in the first.

    Shapes: input (H, W, C), without the batch axis.
    Raises: ShapeError if such a picture does not fit the model.
    """
    parameters = list(model.parameters())
    dtype, device = parameters[0].dtype, parameters[0].device
    modes = [(module, module.training) for module in (model, *(part for _, part in model.named_modules()))]
    model.eval()
    try:
        with _observed(model) as (calls, outputs), no_grad():
            model(Tensor(np.zeros((1, *input), dtype)).to(device))
    finally:
        for module, training in modes:
            module.training = training
    buffers = sum(int(buffer.size) for _, buffer in model.named_buffers())
    total = sum(parameter.size for parameter in parameters)
    trainable = sum(parameter.size for parameter in parameters if parameter.requires_grad)
    return Summary(
        name or type(model).__name__, tuple(input), tuple(calls), outputs, total + buffers, trainable,
        sum(layer.madds for layer in calls),
    )  # fmt: skip


@contextmanager
def _observed(model: Module) -> Iterator[tuple[list[Layer], dict[str, Shape]]]:
    """Yield what is filled as long as this block lasts: the calls of layers, and what each part hands on."""
    calls: list[Layer] = []
    outputs: dict[str, Shape] = {}
    seen: set[int] = set()
    wrapped: list[Module] = []

    def observe(path: str, block: str, module: Module, forward: Callable[..., Tensor], x: Tensor,
                **options: Any) -> Tensor:  # fmt: skip
        y = forward(x, **options)
        total, trainable = (0, 0) if id(module) in seen else _own_parameters(module)
        seen.add(id(module))
        output = tuple(y.shape[1:])
        kind, madds = _kind(module, options), _madds(module, output)
        calls.append(Layer(path, block, kind, output, total, trainable, madds))
        return y

    def hand_on(name: str, forward: Callable[..., Tensor], *args: Any, **options: Any) -> Tensor:
        y = forward(*args, **options)
        outputs[name] = tuple(y.shape[1:])
        return y

    for top, child in model.children():
        prefix = f"{top}." if child.in_path else ""
        for path, module in ((top, child), *child.named_modules(prefix)):
            if next(module.children(), None) is None and "forward" not in vars(module):
                vars(module)["forward"] = functools.partial(observe, path, top, module, module.forward)
                wrapped.append(module)
        vars(child)["forward"] = functools.partial(hand_on, top, child.forward)
        wrapped.append(child)
    try:
        yield calls, outputs
    finally:
        for module in wrapped:
            vars(module).pop("forward", None)


def _table(summary: Summary) -> Iterator[str]:
    """The lines of the table: a heading per stage with its sums, one per block, one per layer."""
    rows = [("layer", "what", "output", "parameters", "multiply-adds")]
    for size, stage in summary.stages():
        title = f"output {_times(size)}" if size else "scores"
        rows.append((title, "", "", _sum(stage, "params"), _sum(stage, "madds")))
        for name, block in itertools.groupby(stage, key=lambda layer: layer.block):
            layers = list(block)
            indent = "  "
            if layers[0].name != name:
                rows.append((f"  {name}", "", _times(summary.outputs[name]), "", ""))
                indent = "    "
            rows += [
                (indent + one.name, one.kind, _times(one.output), _sum([one], "params"), _sum([one], "madds"))
                for one in layers
            ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for number, row in enumerate(rows):
        if number and not row[0].startswith(" "):
            yield "-" * (sum(widths) + 8) if number == 1 else ""
        left = [cell.ljust(width) for cell, width in zip(row[:3], widths, strict=False)]
        right = [cell.rjust(width) for cell, width in zip(row[3:], widths[3:], strict=True)]
        yield "  ".join(left + right).rstrip()


def _own_parameters(module: Module) -> tuple[int, int]:
    """How many numbers a layer holds, and how many of them are learned."""
    parameters = [value for value in vars(module).values() if isinstance(value, Parameter)]
    buffers = sum(int(buffer.size) for _, buffer in module.named_buffers())
    total = sum(parameter.size for parameter in parameters)
    return total + buffers, sum(parameter.size for parameter in parameters if parameter.requires_grad)


def _madds(module: Module, output: Shape) -> int:
    """Multiply-adds for one picture: each weight is used once per output place."""
    if isinstance(module, nn.Conv2d):
        return module.weight.size * output[0] * output[1]
    if isinstance(module, nn.Linear):
        return module.weight.size
    return 0


def _kind(module: Module, options: dict[str, Any]) -> str:
    """A layer in a few words; what is fused into a batch norm (addition, ReLU) is named with it."""
    if isinstance(module, nn.Conv2d):
        groups = f", {module.groups} groups" if module.groups > 1 else ""
        relu = ", ReLU" if module.relu else ""
        return f"conv {_times(module.weight.shape[:2])}{_by(module.stride)}{groups}{relu}"
    if isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
        word = "max pool" if isinstance(module, nn.MaxPool2d) else "average pool"
        return f"{word} {_times(_pair(module.kernel))}{_by(module.stride or module.kernel)}"
    if isinstance(module, nn.BatchNorm2d):
        added = " + shortcut" if options.get("add") is not None else ""
        return f"batch norm{added}{', ReLU' if module.relu else ''}"
    if isinstance(module, AddReLU):
        rest = ["+ shortcut"] if options.get("add") is not None else []
        return ", ".join(rest + ["ReLU"] * module.relu) or "nothing left (folded)"
    words = {nn.Linear: "dense", nn.ReLU: "ReLU", nn.GlobalAvgPool2d: "global average pool",
             nn.Flatten: "flatten", nn.Dropout: "dropout",
             nn.LocalResponseNorm: "local response norm"}  # fmt: skip
    return words.get(type(module), type(module).__name__)


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


def _by(stride: int | tuple[int, int]) -> str:
    """The stride as the papers write it: /2."""
    high, wide = _pair(stride)
    return "" if high == wide == 1 else f" /{high}" if high == wide else f" /{high}x{wide}"


def _times(shape: Shape) -> str:
    return "x".join(map(str, shape))


def _sum(layers: list[Layer], what: str) -> str:
    """The sum over ``layers``, nothing where it is zero."""
    total = sum(getattr(layer, what) for layer in layers)
    return f"{total:,}" if total else ""

"""A network as a graph of plain layers, in one form for Keras's and ours, and what two of them have in
common.

Names say nothing of a layer's options, and layers without names nothing of their place. So the graph that a
file of Keras's describes and that of our model are brought to one form, and compared from the picture on: two
layers are the same if they are of one kind, have the same options, and read the same. What comes out is which
layer of theirs is which of ours, or the first that is different.

The form: batch norm, addition and ReLU stand apart; zeros that are added before a convolution, or before a
max pool behind a ReLU, are its padding; padding is that of the four sides; an average over all places is a
global one; what does nothing in use (dropout, flattening a vector) is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from minires.errors import CheckpointError
from minires.ops.window import window

Sides = tuple[tuple[int, int], tuple[int, int]]
NONE: Sides = ((0, 0), (0, 0))
MOST_PARTS = 1000  # of one concatenation
SYMMETRIC = ("add",)  # kinds whose inputs may change places


@dataclass(eq=False)
class Node:
    """A layer: its ``kind`` and ``options`` are what must be equal.

    ``shape`` is that of its output, (H, W, C) or (C,). ``layer`` is its name where it comes from, ``keeps``
    the share of its running statistics that a batch norm keeps.
    """

    kind: str
    inputs: Sequence[Node] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    shape: tuple[int, ...] = ()
    layer: str = ""
    keeps: float | None = None

    @property
    def has_weights(self) -> bool:
        return self.kind in ("convolution", "batch norm", "dense")

    def __str__(self) -> str:
        options = ", ".join(f"{name} {value}" for name, value in self.options.items())
        name = f" {self.layer!r}" if self.layer else ""
        return f"{self.kind}{name}" + (f" ({options})" if options else "")


# ------------------------------------------------------------------------------------------ making the form


def convolution(x: Node, *, channels: int, kernel: Any, stride: Any, padding: Any, dilation: Any, groups: int,
                bias: bool, layer: str) -> Node:  # fmt: skip
    """Shapes: x (H, W, C) -> (OH, OW, channels). ``padding``: sides, or "same"."""
    x, sides, out = _windowed("conv2d", x, kernel, stride, padding, dilation, zeros=True)
    options = {"kernel": tuple(kernel), "channels": channels, "stride": tuple(stride), "padding": sides,
               "dilation": tuple(dilation), "groups": groups, "bias": bool(bias)}  # fmt: skip
    return Node("convolution", (x,), options, (*out, channels), layer)


def max_pool(
    x: Node, *, kernel: Any, stride: Any, padding: Any, dilation: Any = (1, 1), layer: str = ""
) -> Node:
    """The border never wins."""
    x, sides, out = _windowed("max_pool2d", x, kernel, stride, padding, dilation, zeros=never_below_zero(x))
    options = {
        "kernel": tuple(kernel),
        "stride": tuple(stride),
        "padding": sides,
        "dilation": tuple(dilation),
    }
    return Node("max pool", (x,), options, (*out, x.shape[2]), layer)


def average_pool(
    x: Node,
    *,
    kernel: Any,
    stride: Any,
    padding: Any,
    dilation: Any = (1, 1),
    counted: bool = False,
    layer: str = "",
) -> Node:
    """The border counts as zeros if ``counted``."""
    if tuple(kernel) == x.shape[:2] and padding in (NONE, "same", "valid") and tuple(dilation) == (1, 1):
        found = window("avg_pool2d", (x.shape[0], x.shape[1]), kernel, stride, _sides(padding))
        if found.out == (1, 1) and not found.has_border:
            return global_average_pool(x, layer=layer)
    x, sides, out = _windowed("avg_pool2d", x, kernel, stride, padding, dilation, zeros=False)
    options: dict[str, Any] = {"kernel": tuple(kernel), "stride": tuple(stride), "padding": sides,
                               "dilation": tuple(dilation)}  # fmt: skip
    if sides != NONE:
        options["zeros count"] = counted
    return Node("average pool", (x,), options, (*out, x.shape[2]), layer)


def global_average_pool(x: Node, *, layer: str = "") -> Node:
    return Node("global average pool", (x,), {}, (x.shape[-1],), layer)


def batch_norm(x: Node, *, epsilon: float, keeps: float, layer: str, **more: Any) -> Node:
    """``more``: options that ours never have."""
    return Node("batch norm", (x,), {"epsilon": float(epsilon), **more}, x.shape, layer, keeps)


def dense(x: Node, *, channels: int, bias: bool, layer: str) -> Node:
    return Node("dense", (x,), {"channels": channels, "bias": bool(bias)}, (*x.shape[:-1], channels), layer)


def flatten(x: Node, *, layer: str = "") -> Node:
    """A picture of one place, or a vector, is one already."""
    if len(x.shape) == 1:
        return x
    height, width, channels = x.shape
    if (height, width) == (1, 1):
        return Node(x.kind, x.inputs, x.options, (channels,), x.layer, x.keeps)
    return Node("flatten", (x,), {}, (height * width * channels,), layer)


def pad(x: Node, sides: Sides, *, layer: str = "") -> Node:
    """Zeros around a picture."""
    (top, bottom), (left, right) = sides
    if x.kind == "zero padding":
        (above, below), (before, behind) = x.options["padding"]
        return pad(x.inputs[0], ((top + above, bottom + below), (left + before, right + behind)), layer=layer)
    shape = (x.shape[0] + top + bottom, x.shape[1] + left + right, x.shape[2])
    return Node("zero padding", (x,), {"padding": sides}, shape, layer)


def simple(kind: str, *inputs: Node, layer: str = "", **options: Any) -> Node:
    """A layer that keeps the shape, or of which no more is known."""
    return Node(kind, inputs, options, inputs[0].shape if inputs else (), layer)


def concatenation(*inputs: Node, layer: str = "") -> Node:
    """Channels behind each other; a concatenation of concatenations is one."""
    parts = [part for x in inputs for part in (x.inputs if x.kind == "concatenation" else (x,))]
    if len(parts) > MOST_PARTS:
        raise CheckpointError(f"a concatenation of more than {MOST_PARTS} parts")
    return Node("concatenation", parts, {}, (*parts[0].shape[:-1], sum(x.shape[-1] for x in parts)), layer)


def never_below_zero(x: Node) -> bool:
    """Whether there are only ReLUs behind it, and what takes means, sums and maxima."""
    rest, seen = [x], set()
    while rest:
        node = rest.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.kind in ("max pool", "average pool", "zero padding", "add", "concatenation"):
            rest.extend(node.inputs)
        elif node.kind not in ("relu", "softmax"):
            return False
    return True


def _sides(padding: Any) -> Any:
    return NONE if padding == "valid" else padding


def _windowed(
    op: str, x: Node, kernel: Any, stride: Any, padding: Any, dilation: Any, *, zeros: bool
) -> tuple[Node, Sides, tuple[int, int]]:
    """What a window slides over, the border that it adds, and the places where it stands."""
    found = window(
        op, (x.shape[0], x.shape[1]), tuple(kernel), tuple(stride), _sides(padding), tuple(dilation)
    )
    (top, bottom), (left, right) = (found.top, found.bottom), (found.left, found.right)
    if zeros and x.kind == "zero padding":
        (above, below), (before, behind) = x.options["padding"]
        top, bottom, left, right = top + above, bottom + below, left + before, right + behind
        x = x.inputs[0]
    return x, ((top, bottom), (left, right)), found.out


# ----------------------------------------------------------------------------------------------- comparing


def layers_of(output: Node) -> list[Node]:
    """The nodes up to ``output``, what is read before what reads it."""
    order: list[Node] = []
    seen: set[Node] = set()
    rest: list[tuple[Node, Iterator[Node]]] = [(output, iter(output.inputs))]
    while rest:
        node, inputs = rest[-1]
        for before in inputs:
            if before not in seen:
                rest.append((before, iter(before.inputs)))
                break
        else:
            rest.pop()
            if node not in seen:
                seen.add(node)
                order.append(node)
    return order


def matched(theirs: Node, ours: Node) -> dict[str, str]:
    """The layer of ``theirs`` for each of ``ours`` that has weights, by name.

    Raises: CheckpointError that names the first layer that is different, with its options here and there.
    """
    numbers: dict[Any, int] = {}
    there, here = _numbered(theirs, numbers), _numbered(ours, numbers)
    if there[theirs] != here[ours]:
        raise CheckpointError(_difference(there, here))
    partner: dict[Node, Node] = {}
    rest = [(theirs, ours)]
    while rest:
        one, other = rest.pop()
        if other in partner:
            if partner[other] is not one and one.has_weights:
                raise CheckpointError(f"our layer {other.layer!r} is used twice, but theirs are two layers")
            continue
        partner[other] = one
        pairs = [(there, one.inputs), (here, other.inputs)]
        if one.kind in SYMMETRIC:
            pairs = [(known, sorted(inputs, key=known.__getitem__)) for known, inputs in pairs]
        rest.extend(zip(pairs[0][1], pairs[1][1], strict=True))
    return {other.layer: one.layer for other, one in partner.items() if other.has_weights}


def _numbered(output: Node, numbers: dict[Any, int]) -> dict[Node, int]:
    """A number for each node: the same for what gives the same of the same, in any graph."""
    found: dict[Node, int] = {}
    for node in layers_of(output):
        inputs = [found[before] for before in node.inputs]
        if node.kind in SYMMETRIC:
            inputs.sort()
        key = (node.kind, tuple(sorted(node.options.items())), tuple(inputs))
        found[node] = numbers.setdefault(key, len(numbers))
    return found


def _difference(there: Mapping[Node, int], here: Mapping[Node, int]) -> str:
    """The first layers that read the same and are not the same."""

    def first(those: Mapping[Node, int], others: Iterable[int]) -> list[Node]:
        known = set(others)
        return [
            node for node, number in those.items()
            if number not in known and all(those[before] in known for before in node.inputs)
        ]  # fmt: skip

    strange, missing = first(there, here.values()), first(here, there.values())
    for one in strange:
        inputs = sorted(there[before] for before in one.inputs)
        peers = [other for other in missing if sorted(here[before] for before in other.inputs) == inputs]
        for other in sorted(peers, key=lambda other: (other.kind != one.kind, _unlike(one, other))):
            if other.kind != one.kind:
                return f"where the file has {one}, our model has {other}"
            options = [name for name in {**one.options, **other.options}
                       if one.options.get(name) != other.options.get(name)]  # fmt: skip
            differ = ", ".join(f"{name} {_shown(one, name)}, ours {_shown(other, name)}" for name in options)
            return f"layer {one.layer!r} ({one.kind}) has {differ}" + (
                f" (our {other.layer})" if other.layer else ""
            )
    if strange:
        return f"the file has {strange[0]}, and our model has nothing there"
    return (
        f"our model has {missing[0]}, and the file has nothing there" if missing else "they end differently"
    )


def _unlike(one: Node, other: Node) -> int:
    return sum(one.options.get(name) != value for name, value in other.options.items())


def _shown(node: Node, name: str) -> str:
    value = node.options.get(name, "none")
    if name == "padding" and isinstance(value, tuple):
        (top, bottom), (left, right) = value
        return f"{top}" if top == bottom == left == right else f"({top}, {bottom}), ({left}, {right})"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value[0]}" if isinstance(value, tuple) and len(set(value)) == 1 else f"{value}"


# ------------------------------------------------------------------------------------------ Keras's order


def in_order(output: Node, *, shortcut_first: bool) -> list[Node]:
    """The nodes in the order in which Keras lists a model's layers.

    The farthest from the output come first; of those as far, the one that is met first when one walks from
    the output back, through the first input of an addition before its second. Of the additions of a residual
    network the first is the branch, or with ``shortcut_first`` the shortcut: whoever writes the model
    chooses.

    Source: keras/src/models/functional.py (and function.py, map_graph), Keras 3.15.
    """
    nodes = layers_of(output)
    depth = dict.fromkeys(nodes, 0)
    for node in reversed(nodes):
        for before in node.inputs:
            depth[before] = max(depth[before], depth[node] + 1)
    met: dict[Node, int] = {}
    rest = [output]
    while rest:
        node = rest.pop()
        if node not in met:
            met[node] = len(met)
            rest.extend(node.inputs if node.kind == "add" and shortcut_first else reversed(node.inputs))
    return sorted(nodes, key=lambda node: (-depth[node], met[node]))

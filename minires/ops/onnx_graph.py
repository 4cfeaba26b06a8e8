"""What an operation needs of an ONNX graph, to write itself as nodes of it.

ONNX has the channels before the height and the width. In the graph every tensor of four axes is (N, C, H, W)
where ours is (N, H, W, C). The graph itself is in :mod:`minires.weights.onnx`.

Source: ONNX operators, https://onnx.ai/onnx/operators/.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

from minires.tensor import Call, Tensor

Size = TypeVar("Size")
CHANNELS_FIRST, CHANNELS_LAST = (0, 3, 1, 2), (0, 2, 3, 1)  # axes of the other order, in their new order


class Graph(Protocol):
    """The graph as the operations see it: they add nodes, and name what these read."""

    opset: int  # the version of the operators

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node. Returns the name of its result."""
        ...

    def value(self, x: Tensor) -> str:
        """The name of a tensor that is computed here, or of a parameter, channels first."""
        ...

    def ours(self, x: Tensor) -> str:
        """The name of a tensor or parameter with its axes in our order, channels last."""
        ...

    def kernel(self, w: Tensor, axes: tuple[int, ...]) -> str:
        """The name of the kernels of a convolution with their axes, of our order, in this one."""
        ...

    def weight(self, array: Any, axes: tuple[int, ...] | None = None) -> str:
        """The name of a parameter or buffer of the model, or of a number; with ``axes`` in this order."""
        ...

    def integers(self, name: str, values: Sequence[int]) -> str:
        """The name of a constant that holds shapes or places."""
        ...

    def operand(self, x: Tensor, y: Tensor) -> str:
        """The name of ``x`` where it is broadcast to ``y``."""
        ...


def elementwise(graph: Graph, call: Call, kind: str) -> str:
    """An operator that works number by number, of operands that may be broadcast."""
    return graph.add(kind, *(graph.operand(x, call.y) for x in call.inputs.values()))


def theirs(graph: Graph, name: str, y: Tensor) -> str:
    """The name of ``y``, which is called ``name`` in our order of axes, in the order of the graph."""
    return graph.add("Transpose", name, perm=CHANNELS_FIRST) if y.ndim == 4 else name


def reduction(graph: Graph, call: Call, kind: str) -> str:
    """An operator that leaves axes out, or makes them 1."""
    (x,) = call.inputs.values()
    axes, keepdims = call.options["axis"], call.options["keepdims"]
    if not axes:
        return graph.add("Identity", graph.value(x))
    kept = [axis for axis in (CHANNELS_FIRST if x.ndim == 4 else range(x.ndim)) if axis not in axes]
    if x.ndim == 4 and (keepdims or kept == sorted(kept)):  # what is left is in our order as well
        places = tuple(CHANNELS_FIRST.index(axis) for axis in axes)
        return reduce(graph, graph.value(x), kind, places, keepdims)
    return theirs(graph, reduce(graph, graph.ours(x), kind, axes, keepdims), call.y)


def reduce(graph: Graph, value: str, kind: str, axes: Sequence[int], keepdims: bool) -> str:
    """A node that reduces. From opset 18 on the axes are an input, which those of a sum were before."""
    if kind == "ReduceSum" or graph.opset >= 18:
        return graph.add(kind, value, graph.integers("axes", axes), keepdims=int(keepdims))
    return graph.add(kind, value, axes=axes, keepdims=int(keepdims))


def along_channels(graph: Graph, call: Call, kind: str) -> str:
    """An operator along the channels, our last axis."""
    (x,) = call.inputs.values()
    return graph.add(kind, graph.value(x), axis=1 if call.y.ndim == 4 else -1)


def window(call: Call) -> dict[str, Any]:
    """What ONNX calls the window of a convolution or a pool."""
    (top, bottom), (left, right) = call.options["padding"]
    named = {"kernel_shape": "kernel", "strides": "stride", "dilations": "dilation"}
    given = {theirs: call.options[ours] for theirs, ours in named.items()}
    if given["dilations"] == (1, 1):  # which not every opset knows everywhere
        del given["dilations"]
    return {**given, "pads": [top, left, bottom, right]}


def channels_first(shape: tuple[Size, ...]) -> tuple[Size, ...]:
    return tuple(shape[axis] for axis in CHANNELS_FIRST) if len(shape) == 4 else shape

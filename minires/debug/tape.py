"""What a tape still knows: the recording of a backward pass whose forward pass was not watched.

A tape keeps no result alive by itself. But each operation's closure holds the arrays that its gradient
needs: a convolution the picture that it read, a batch norm its result, too. Put together they are most of the
forward pass. What they are called in the closures stands in :data:`KEPT`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import FunctionType
from typing import Any

from minires import backend
from minires.backend import Array
from minires.debug.recording import (
    INPUT,
    Recording,
    Seen,
    Source,
    plain_options,
    put_together,
    walk_back,
)
from minires.nn.module import Parameter
from minires.tensor import Node, Tensor, reachable

RESULT = -1
# The variables of an operation's closure that hold one of its inputs (by place) or its result.
KEPT: dict[str, dict[str, int]] = {
    "conv2d": {"xdata": 0, "wdata": 1, "rectified": RESULT}, "linear": {"xdata": 0, "wdata": 1},
    "matmul": {"adata": 0, "bdata": 1}, "batch_norm": {"rows": 0, "weights": 1, "bias": 2, "y_rows": RESULT},
    "local_response_norm": {"data": 0, "y": RESULT}, "max": {"xdata": 0, "y": RESULT},
    **dict.fromkeys(("mul", "div"), {"adata": 0, "bdata": 1, "y": RESULT}),
    **dict.fromkeys(("neg", "exp", "log", "sqrt", "pow"), {"xdata": 0, "y": RESULT}),
    **dict.fromkeys(("relu", "softmax", "log_softmax", "sigmoid"), {"y": RESULT}),
}  # fmt: skip
OPTIONS = {"win", "groups", "training", "relu", "axis", "axes", "size", "alpha", "beta"}


def record_tape(loss: Tensor) -> Recording:
    """Walk back from ``loss`` and write down every gradient, and what the tape still has of the values.

    The tape and all gradients stay as they are. A value that nobody has kept is None. Fused operations stay
    fused, there are no forward times, and of the options only those that the way back needs.

    Raises: MiniresError if no gradient flows to the loss or its tape was freed; ShapeError if it is not a
    single value.
    """
    nodes = sorted(reachable(loss._on_tape("step")), key=lambda node: node.number)
    # What the user made (a picture, a kernel of his own) is an input; a layer's parameters are not.
    inputs = [node for node in nodes if _is_input(node)]
    nodes = [*inputs, *(node for node in nodes if node.op != "leaf")]
    numbers = {node: number for number, node in enumerate(nodes)}
    values = _values(nodes)
    seen = [
        Seen(
            INPUT if node.op == "leaf" else node.op, node.path, node,
            tuple(_source(node, place, numbers, values) for place in range(len(node.parents))),
            values.get(node), node.shape, _options(node),
        )
        for node in nodes
    ]  # fmt: skip
    back = walk_back(loss, seen)
    x = values[inputs[0]] if len(inputs) == 1 else None
    return put_together(None, seen, back, x=x, labels=None, loss=float(loss.item()), logits=None)


def _is_input(node: Node) -> bool:
    return node.op == "leaf" and not isinstance(node.output(), Parameter)


def _source(
    node: Node, place: int, numbers: Mapping[Node, int], values: Mapping[Node, Array | None]
) -> Source:
    parent = node.parents[place]
    if parent is not None and parent in numbers:
        return Source(INPUT if parent.op == "leaf" else "operation", numbers[parent], None, values[parent])
    value = _closed_over(node).get(place)
    if parent is None:
        return Source("constant", None, None, value)
    tensor = parent.output()
    return Source("parameter", None, tensor.name if tensor else None, tensor.numpy() if tensor else value)


def _values(nodes: Sequence[Node]) -> dict[Node, Array | None]:
    """The result of each node: from its tensor, its own closure, that of a reader, or its inputs."""
    values: dict[Node, Array | None] = dict.fromkeys(nodes)
    for node in nodes:
        for place, array in _closed_over(node).items():
            owner = node if place == RESULT else node.parents[place]
            if owner in values:
                values[owner] = array.reshape(owner.shape)
    for node in nodes:
        tensor = node.output()
        if tensor is not None:
            values[node] = tensor.numpy()
        elif values[node] is None:
            values[node] = _from_inputs(node, [values.get(parent) for parent in node.parents if parent])
    return values


def _from_inputs(node: Node, inputs: Sequence[Array | None]) -> Array | None:
    """What needs no more than the inputs."""
    known = [array for array in inputs if array is not None]
    if node.op == "add" and len(known) == 2:
        return known[0] + known[1]
    return known[0].reshape(node.shape) if node.op == "reshape" and known else None


def _closed_over(node: Node) -> dict[int, Array]:
    """The inputs, by place, and the result that a node's closure holds, on the CPU."""
    variables, names = _variables(node), KEPT.get(node.op, {})
    found = {place: variables.get(name) for name, place in names.items()}
    return {place: backend.to_device(array, "cpu") for place, array in found.items() if array is not None}


def _options(node: Node) -> dict[str, Any]:
    variables = _variables(node)
    options = plain_options({name: value for name, value in variables.items() if name in OPTIONS})
    # A convolution keeps its result only where a ReLU ends it.
    return options if variables.get("rectified") is None else {**options, "relu": True}


def _variables(node: Node) -> dict[str, Any]:
    """The variables around a node's backward function."""
    if not isinstance(node.backward, FunctionType):
        return {}
    cells = [cell.cell_contents for cell in node.backward.__closure__ or ()]
    return dict(zip(node.backward.__code__.co_freevars, cells, strict=True))

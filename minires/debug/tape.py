"""What a tape still knows: the recording of a backward pass whose forward pass was not watched.

A tape keeps no result alive by itself. But each operation has saved the arrays that its gradient needs: a
convolution the picture that it read, a batch norm its result, too. Put together they are most of the forward
pass. An operation declares what it saves: see :func:`minires.tensor.record`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

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
    wanted,
)
from minires.nn.module import Parameter
from minires.ops.forms import Formula, Moved, NotKept, Values
from minires.ops.registry import describe
from minires.tape import Node, reachable
from minires.tensor import Tensor

RESULT = "y"  # the name under which an operation saves its result


def record_tape(loss: Tensor) -> Recording:
    """Walk back from ``loss`` and write down every gradient, and what the tape still has of the values.

    The tape and all gradients stay as they are. A value that nobody has kept is None. Fused operations stay
    fused, and there are no forward times. Running statistics are as they are now.

    Raises: MiniresError if no gradient flows to the loss or its tape was freed; ShapeError if it is not a
    single value.
    """
    nodes = sorted(reachable(loss.on_tape("step")), key=lambda node: node.number)
    # What the user made (a picture, a kernel of his own) is an input; a layer's parameters are not.
    inputs = [node for node in nodes if _is_input(node)]
    nodes = [*inputs, *(node for node in nodes if node.op != "leaf")]
    numbers = {node: number for number, node in enumerate(nodes)}
    values = _values(nodes)
    seen = [
        Seen(
            INPUT if node.op == "leaf" else node.op, node.path, node, node.names,
            tuple(_source(node, place, numbers, values) for place in range(len(node.parents))),
            values.get(node), node.shape, plain_options(node.options), wanted(node.op, node.saved),
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
    value = _saved(node).get(node.names[place])
    if parent is None:
        return Source("constant", None, None, value)
    tensor = parent.output()
    if tensor is None:
        return Source("parameter", None, None, value)
    return Source("parameter", None, tensor.name, tensor.numpy())


def _values(nodes: Sequence[Node]) -> dict[Node, Array | None]:
    """The result of each node: from its tensor, what it or a reader has saved, or its inputs."""
    values: dict[Node, Array | None] = dict.fromkeys(nodes)
    for node in nodes:
        owners = dict(zip(node.names, node.parents, strict=True)) | {RESULT: node}
        for name, array in _saved(node).items():
            owner = owners.get(name)
            if owner in values:
                values[owner] = array.reshape(owner.shape)
    for node in nodes:
        tensor = node.output()
        if tensor is not None:
            values[node] = tensor.numpy()
        elif values[node] is None:
            values[node] = _worked_out(node, values)
    return values


def _worked_out(node: Node, values: Mapping[Node, Array | None]) -> Array | None:
    """The result again from its inputs, by what the operation says of its arithmetic; None without them."""
    known, saved = describe(node.op), _saved(node)
    if not isinstance(known.arithmetic, Formula | Moved):
        return None
    parents = zip(node.names, node.parents, strict=True)
    inputs = {name: values.get(parent) if parent else saved.get(name) for name, parent in parents}
    options, kept = plain_options(node.options), wanted(node.op, node.saved)
    try:
        whole = known.arithmetic.whole(Values(inputs, options, node.shape, kept, result=known.result))
    except NotKept:
        return None
    return np.asarray(whole, node.dtype)


def _saved(node: Node) -> dict[str, Array]:
    """The arrays that a node has saved, on the CPU."""
    return {name: backend.to_device(array, "cpu") for name, array in node.saved.items()}

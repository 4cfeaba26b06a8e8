"""Join tensors along a new axis, and take one apart along an axis: stack and split.

    y = [x1, x2, ...], the parts side by side along a new axis     dx1, dx2, ... = the parts of dy
    y1, y2, ... = parts of x                                       dx = dy1, dy2, ... side by side

``split`` is made of indexing, which is on the tape then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from minires import backend
from minires.backend import Array
from minires.errors import MOST, ShapeError, as_whole
from minires.ops import checks
from minires.ops.forms import Moved
from minires.ops.onnx_graph import Graph, theirs
from minires.ops.registry import Case, Words, operation
from minires.ops.reshape import getitem
from minires.tensor import Call, Tensor, record


def _forward(xp: Any, xs: list[Array], axis: int) -> Array:
    return xp.stack(xs, axis=axis)


def _backward(xp: Any, dy: Array, axis: int) -> list[Array]:
    return list(xp.moveaxis(dy, axis, 0))


def _stacked(op: Callable[..., Tensor], *tensors: Tensor, axis: int) -> Tensor:
    return op(tensors, axis=axis)


def _cases() -> Iterator[Case]:
    for axis in (0, 1, -1):
        yield Case(f"axis={axis}", {"a": (2, 3), "b": (2, 3), "c": (2, 3)}, {"axis": axis}, _stacked)
    yield Case("single values", {"a": (), "b": ()}, {"axis": 0}, _stacked)


def _onnx(graph: Graph, call: Call) -> str:
    axis = call.options["axis"]
    names = [graph.ours(x) for x in call.inputs.values()]
    parts = [graph.add("Unsqueeze", name, graph.integers("axes", [axis])) for name in names]
    return theirs(graph, graph.add("Concat", *parts, axis=axis), call.y)


@operation(
    math="y = [{inputs}] along a new axis",
    backward="{gradients} = the parts of dy that came from {inputs}",
    arithmetic=Moved(lambda *xs, axis: np.stack(xs, axis)),
    english=Words("Stack", "Tensors are joined along a new axis.", "Each gets its part of the gradient."),
    chinese=Words("堆叠", "沿新的轴连接张量。", "每个张量得到梯度中属于它的部分。"),
    join="stack",
    onnx=_onnx,
    cases=_cases,
)
def stack(tensors: Sequence[Tensor], *, axis: int = 0) -> Tensor:
    """Join tensors of one shape along a new axis.

    axis: where the new axis is in the result; -1 for the last.

    Shapes: k tensors (A, B, ...) -> y (k, A, B, ...), k at the place of ``axis``.
    Raises: ShapeError if there is no tensor, or shapes, dtypes or devices differ, or the axis does not fit.

    >>> stack([Tensor([1.0, 2.0]), Tensor([3.0, 4.0])], axis=1).tolist()
    [[1.0, 3.0], [2.0, 4.0]]
    """
    tensors = [checks.as_tensor(tensor) for tensor in tensors]
    if not tensors:
        raise ShapeError("stack: there is nothing to join; give at least one tensor")
    named: dict[str, Any] = {f"tensors[{i}]": tensor for i, tensor in enumerate(tensors)}
    checks.same_floats("stack", **named)
    first = tensors[0]
    for i, tensor in enumerate(tensors):
        if tensor.shape != first.shape:
            raise ShapeError(
                f"stack: tensors[0] is {first.shape} but tensors[{i}] is {tensor.shape}; they must be equal"
            )
    along = checks.one_axis("stack", axis, first.ndim + 1)
    xp = backend.array_module(first.data)
    return record(
        "stack",
        _forward(xp, [tensor.data for tensor in tensors], along),
        inputs={f"x{i}": tensor for i, tensor in enumerate(tensors, 1)},
        options={"axis": along},
        backward=lambda dy: _backward(xp, dy, along),
    )


def split(x: Tensor, parts: int | Sequence[int], *, axis: int = 0) -> list[Tensor]:
    """The parts of a tensor along ``axis``, as ``numpy.split`` has them.

    parts: how many equal parts; or the places where a new part begins.

    Math: y_k = x[start_k : stop_k] along ``axis``. Backward: dx = dy_k at the elements of each part.
    Raises: ShapeError if the axis does not exist, there are no equal parts of it, or the places are not in
    order.
    Differs: PyTorch's split takes the sizes of the parts instead.

    >>> [part.tolist() for part in split(Tensor([1.0, 2.0, 3.0, 4.0]), 2)]
    [[1.0, 2.0], [3.0, 4.0]]
    >>> [part.tolist() for part in split(Tensor([1.0, 2.0, 3.0, 4.0]), [1])]
    [[1.0], [2.0, 3.0, 4.0]]
    """
    x = checks.as_tensor(x)
    along = checks.one_axis("split", axis, x.ndim)
    size = x.shape[along]
    edges = _edges(size, parts)
    before = (slice(None),) * along
    return [getitem(x, (*before, slice(start, stop))) for start, stop in pairwise(edges)]


def _edges(size: int, parts: Any) -> list[int]:
    """Where the parts begin, and where the last one ends."""
    count = as_whole(parts)
    if count is not None:
        if not 1 <= count <= MOST or size % count:
            raise ShapeError(f"split: an axis of {size} cannot be cut into {count} equal parts")
        return list(range(0, size + 1, size // count)) if size else [0] * (count + 1)
    if not hasattr(parts, "__iter__") or getattr(parts, "ndim", 1) == 0:
        raise ShapeError(f"split: parts must be a whole number, or the places where to cut, not {parts!r}")
    inner = [checks.whole("split", "a place where a part begins", place, least=0) for place in parts]
    edges = [0, *inner, size]
    if edges != sorted(edges):
        raise ShapeError(f"split: the places {inner} must be in order and at most the axis's size {size}")
    return edges

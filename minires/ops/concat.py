"""Put tensors side by side along one axis, by default the channels.

    y = [x1, x2, ...]
    dx1, dx2, ... = the parts of dy that came from x1, x2, ...

Shapes: equal but for the axis along which they are joined; y has the sum of the sizes there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from math import prod
from typing import Any

import numpy as np

from minires import backend
from minires.backend import Array, cuda
from minires.errors import ShapeError
from minires.ops import checks
from minires.ops.forms import Moved
from minires.ops.onnx_graph import CHANNELS_FIRST, Graph
from minires.ops.registry import Case, Words, operation
from minires.tensor import Call, Tensor, record

# ------------------------------------------------------------------------------ reference implementation


def _forward(xp: Any, xs: list[Array], axis: int) -> Array:
    return xp.concatenate(xs, axis=axis)


def _backward(xp: Any, dy: Array, sizes: list[int], axis: int) -> list[Array]:
    parts: list[Array] = xp.split(dy, list(accumulate(sizes))[:-1], axis=axis)
    return parts


# ------------------------------------------------------------------------------------------- fast, on GPU
# Four tensors in one launch. CuPy takes a launch for each, or, for more than eight small ones, first sends a
# list of their addresses to the GPU.

_CUDA = cuda.Source(r"""
// y has rows of `width` numbers; `joined` of them, from `start` on, are a row of a, then one of b, c, and d.
// The row of a ends before number to_a of these, that of b before to_b, that of c before to_c.
#define JOINED int to_a, int to_b, int to_c, int joined, int rows, int start, int width
#define NUMBER(k) k < to_a ? a + row * to_a + k                    \
                : k < to_b ? b + row * (to_b - to_a) + k - to_a    \
                : k < to_c ? c + row * (to_c - to_b) + k - to_b    \
                           : d + row * (joined - to_c) + k - to_c

extern "C" __global__ void concat(
    const T* a /* rows * to_a */, const T* b /* rows * (to_b - to_a) */,
    const T* c /* rows * (to_c - to_b) */, const T* d /* rows * (joined - to_c) */,
    T* y /* rows * width */, JOINED
) {
    EACH(i, rows * joined) {
        int row = i / joined, k = i % joined;
        const T* number = NUMBER(k);
        y[row * width + start + k] = *number;
    }
}

extern "C" __global__ void concat_gradient(
    T* a /* rows * to_a */, T* b /* rows * (to_b - to_a) */, T* c /* rows * (to_c - to_b) */,
    T* d /* rows * (joined - to_c) */, const T* dy /* rows * width */, JOINED
) {
    EACH(i, rows * joined) {
        int row = i / joined, k = i % joined;
        T* number = NUMBER(k);
        *number = dy[row * width + start + k];
    }
}
""")


def _launch(kernel: str, parts: list[Array], whole: Array, axis: int) -> None:
    """Copy between ``parts`` and the array ``whole`` that they are the parts of, in rows from ``axis`` on."""
    rows, widths = prod(whole.shape[:axis]), [prod(part.shape[axis:]) for part in parts]
    for first in range(0, len(parts), 4):
        ends = list(accumulate(widths[first : first + 4]))
        missing = 4 - len(ends)
        arrays = (*parts[first : first + 4], *[None] * missing, whole)
        ends += ends[-1:] * missing
        start = sum(widths[:first])
        _CUDA(kernel, cuda.over(rows * ends[-1]), *arrays, *ends, rows, start, sum(widths))


def _forward_cuda(xp: Any, xs: list[Array], axis: int) -> Array:
    shape = list(xs[0].shape)
    shape[axis] = sum(x.shape[axis] for x in xs)
    y = xp.empty(shape, xs[0].dtype)
    _launch("concat", [xp.ascontiguousarray(x) for x in xs], y, axis)
    return y


def _backward_cuda(xp: Any, dy: Array, sizes: list[int], axis: int) -> list[Array]:
    dxs = [xp.empty((*dy.shape[:axis], size, *dy.shape[axis + 1 :]), dy.dtype) for size in sizes]
    _launch("concat_gradient", dxs, xp.ascontiguousarray(dy), axis)
    return dxs


# ----------------------------------------------------------------------------------------------- public


def _join(concat: Callable[..., Tensor], *tensors: Tensor, axis: int = -1) -> Tensor:
    return concat(tensors, axis=axis)


def _cases() -> Iterator[Case]:
    yield Case("channels", {"a": (2, 3, 4, 2), "b": (2, 3, 4, 1), "c": (2, 3, 4, 3)}, call=_join)
    yield Case("pictures", {"a": (2, 3), "b": (1, 3)}, {"axis": 0}, _join)
    yield Case("one tensor", {"a": (2, 3)}, {"axis": 1}, _join)


def _onnx(graph: Graph, call: Call) -> str:
    axis = call.options["axis"]
    axis = CHANNELS_FIRST.index(axis) if call.y.ndim == 4 else axis
    return graph.add("Concat", *map(graph.value, call.inputs.values()), axis=axis)


@operation(
    math="y = [{inputs}]",
    backward="{gradients} = the parts of dy that came from {inputs}",
    english=Words(
        "Concatenation",
        "{axis == ndim - 1?The channels of several tensors side by side|Several tensors side by side, along "
        "axis {axis}}.",
        "Each tensor gets back the gradient of its own {axis == ndim - 1?channels|part}.",
    ),
    chinese=Words(
        "拼接",
        "{axis == ndim - 1?把几个张量的通道并排放在一起|沿第 {axis} 轴把几个张量并排放在一起}。",
        "每个张量取回自己{axis == ndim - 1?通道|部分}的梯度。",
    ),
    arithmetic=Moved(lambda *xs, axis: np.concatenate(xs, axis)),
    join="concat",
    onnx=_onnx,
    cases=_cases,
)
def concat(tensors: Sequence[Tensor], *, axis: int = -1) -> Tensor:
    """Join tensors along ``axis``, by default the channels.

    Shapes: equal but for ``axis``; y has the sum of the sizes there.
    Raises: ShapeError if there is no tensor, or shapes differ elsewhere than at ``axis``, or dtypes or
    devices differ.

    >>> concat([Tensor([[1.0, 2.0]]), Tensor([[3.0]])]).tolist()
    [[1.0, 2.0, 3.0]]
    """
    tensors = [checks.as_tensor(tensor) for tensor in tensors]
    if not tensors:
        raise ShapeError("concat: there is nothing to join; give at least one tensor")
    named: dict[str, Any] = {f"tensors[{i}]": tensor for i, tensor in enumerate(tensors)}
    checks.same_floats("concat", **named)
    first = tensors[0]
    axis = checks.one_axis("concat", axis, first.ndim)
    for i, tensor in enumerate(tensors):
        if _without(tensor.shape, axis) != _without(first.shape, axis) or tensor.ndim != first.ndim:
            raise ShapeError(
                f"concat: tensors[0] is {first.shape} but tensors[{i}] is {tensor.shape}; "
                f"they may differ at axis {axis} only"
            )
    xp = backend.array_module(first.data)
    sizes = [tensor.shape[axis] for tensor in tensors]
    arrays = [tensor.data for tensor in tensors]
    if cuda.usable(*arrays):
        y, back = _forward_cuda(xp, arrays, axis), _backward_cuda
    else:
        y, back = _forward(xp, arrays, axis), _backward
    return record(
        "concat",
        y,
        inputs={f"x{i}": tensor for i, tensor in enumerate(tensors, 1)},
        options={"axis": axis},
        backward=lambda dy: back(xp, dy, sizes, axis),
    )


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return shape[:axis] + shape[axis + 1 :]

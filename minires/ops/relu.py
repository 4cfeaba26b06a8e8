"""Rectified linear unit: negative values become zero. An addition may go before it in the same pass.

    y = max(x, 0)                 or, with a shortcut, y = max(x + add, 0)
    dx = dadd = dy where y > 0, else 0

Shapes: any; add and y have the shape of x.
Source: Nair and Hinton 2010, Rectified linear units improve restricted Boltzmann machines.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from minires import backend
from minires.backend import Array, cuda, kernel
from minires.errors import ShapeError
from minires.ops import checks
from minires.ops.arithmetic import add as add_tensors
from minires.ops.forms import Formula
from minires.ops.mixed_precision import mixed
from minires.ops.onnx_graph import Graph
from minires.ops.registry import Case, Words, apart, operation
from minires.tensor import Call, Tensor, is_fused, record

# ------------------------------------------------------------------------------ reference implementation


def _forward(xp: Any, x: Array, add: Array | None) -> Array:
    return xp.maximum(x if add is None else x + add, xp.zeros((), x.dtype))


def _backward(dy: Array, y: Array) -> Array:
    return dy * (y > 0)


# ----------------------------------------------------------------------------------------- fast, on CPU
# One pass on all threads. NumPy takes one core, two passes with an addition, and two in the backward.


@kernel(x="(n)", add="maybe (n)", y="out (n)")
def _relu_numba(x: Array, add: Array, y: Array) -> None:
    zero = x.dtype.type(0)
    for i in range(len(y)):
        value = x[i]
        if len(add):
            value += add[i]
        y[i] = zero if value < zero else value  # NaN stays NaN


@kernel(dy="(n)", y="(n)", dx="out (n)")
def _gradient_numba(dy: Array, y: Array, dx: Array) -> None:
    zero = dy.dtype.type(0)
    for i in range(len(dx)):
        dx[i] = dy[i] if y[i] > zero else zero


_GRAIN = 1 << 17  # numbers; fewer are not worth a second thread


def _forward_numba(x: Array, add: Array | None) -> Array:
    y = np.empty(x.shape, x.dtype)
    from_x, to_y = np.ascontiguousarray(x).reshape(-1), y.reshape(-1)
    added = from_x[:0] if add is None else np.ascontiguousarray(add).reshape(-1)

    def chunk(start: int, stop: int) -> None:
        _relu_numba(from_x[start:stop], added[start:stop], to_y[start:stop])

    backend.parallel_for(chunk, y.size, _GRAIN)
    return y


def _backward_numba(dy: Array, y: Array) -> Array:
    dx = np.empty(y.shape, y.dtype)
    from_dy, from_y, to_dx = np.ascontiguousarray(dy).reshape(-1), y.reshape(-1), dx.reshape(-1)

    def chunk(start: int, stop: int) -> None:
        _gradient_numba(from_dy[start:stop], from_y[start:stop], to_dx[start:stop])

    backend.parallel_for(chunk, dx.size, _GRAIN)
    return dx


# ------------------------------------------------------------------------------------------- fast, on GPU

_CUDA = cuda.Source(r"""
extern "C" __global__ void relu(const T* x /* n */, const T* add /* n */, T* y /* n */, int n) {
    EACH(i, n) {
        A value = x[i];
        if (add) value += add[i];
        y[i] = value < 0 ? A(0) : value;  // NaN stays NaN
    }
}

extern "C" __global__ void relu_gradient(const T* dy /* n */, const T* y /* n */, T* dx /* n */, int n) {
    EACH(i, n) dx[i] = y[i] > 0 ? dy[i] : T(0);
}
""")


def _forward_cuda(xp: Any, x: Array, add: Array | None) -> Array:
    y = xp.empty(x.shape, x.dtype)
    added = None if add is None else xp.ascontiguousarray(add)
    _CUDA("relu", cuda.over(y.size), xp.ascontiguousarray(x), added, y, y.size)
    return y


def _backward_cuda(xp: Any, dy: Array, y: Array) -> Array:
    dx = xp.empty(y.shape, y.dtype)
    _CUDA("relu_gradient", cuda.over(dx.size), xp.ascontiguousarray(dy), y, dx, dx.size)
    return dx


# ----------------------------------------------------------------------------------------------- public


def gradient(dy: Array, y: Array) -> Array:
    """dx for operations that end in a ReLU, from their result ``y``."""
    if cuda.usable(dy, y):
        return _backward_cuda(backend.array_module(dy), dy, y)
    return _backward_numba(dy, y) if backend.fast(dy) else _backward(dy, y)


def _cases() -> Iterator[Case]:
    for shape in [(), (3,), (2, 1, 3)]:
        yield Case(f"shape {shape}", {"x": apart(shape)})
    for shape in [(), (2, 1, 3)]:  # a sum of two numbers of apart is never near zero
        inputs = {"x": apart(shape), "add": apart(shape)}
        yield Case(f"shape {shape}, add", inputs, call=lambda relu, x, add: relu(x, add=add))


def _onnx(graph: Graph, call: Call) -> str:
    x, *add = map(graph.value, call.inputs.values())
    return graph.add("Relu", graph.add("Add", x, *add) if add else x)


@operation(
    math="y = max(x{add? + add}, 0)",
    backward="dx{add? = dadd} = dy where y > 0, else 0",
    arithmetic=Formula(
        """
        y = max(x + add, 0)
        dx = dy if y > 0 else 0
        dadd = dy if y > 0 else 0
        """,
        optional=["add"],
    ),
    english=Words(
        "ReLU",
        "{add?The shortcut is added, then negative|Negative} numbers become zero, others stay.",
        "The gradient passes where the output is above zero, and stops elsewhere.",
    ),
    chinese=Words(
        "ReLU",
        "{add?先加上捷径，然后}负数变为零，其余不变。",
        "输出大于零处梯度通过，其余处为零。",
    ),
    label="{added}ReLU",
    short="ReLU",
    role="small",
    onnx=_onnx,
    cases=_cases,
)
@mixed(kernels=True)
def relu(x: Tensor, *, add: Tensor | None = None) -> Tensor:
    """Add ``add`` where given, then set negative values to zero.

    add: another tensor, a shortcut. Under ``minires.unfused()`` its addition is a node of its own on the
        tape.

    At exactly zero the gradient is zero.
    Shapes: any; add and y as x.
    Raises: ShapeError if ``x`` is not a float, or ``add`` has another shape or dtype.

    >>> x = Tensor([-1.0, 2.0])
    >>> relu(x).tolist(), relu(x, add=Tensor([3.0, -3.0])).tolist()
    ([0.0, 2.0], [2.0, 0.0])
    """
    x = checks.as_tensor(x)
    checks.same_floats("relu", x=x)
    if add is not None:
        add = checks.as_tensor(add)
        checks.same_floats("relu", x=x, add=add)
        if add.shape != x.shape:
            raise ShapeError(f"relu: add has shape {add.shape}, but x has {x.shape}; they must be equal")
        if not is_fused():
            return relu(add_tensors(x, add))
    xp = backend.array_module(x.data)
    added = None if add is None else add.data
    if cuda.usable(x.data):
        y = _forward_cuda(xp, x.data, added)
    else:
        y = _forward_numba(x.data, added) if backend.fast(x.data) else _forward(xp, x.data, added)
    needs_x, needs_add = x.requires_grad, add is not None and add.requires_grad

    def backward(dy: Array) -> tuple[Array | None, ...]:
        dx = gradient(dy, y)
        # Each gets an array of its own: a gradient may be changed by who receives it.
        return dx if needs_x else None, (dx.copy() if needs_x else dx) if needs_add else None

    return record("relu", y, inputs={"x": x, "add": add}, saved={"y": y}, backward=backward)

"""Fully connected layer.

    y = x @ w + b
    dx = dy @ w^T
    dw = x^T @ dy
    db = sum of dy over N            added up in float64, rounded once: see minires.backend.sums

Shapes: x (N, C), w (C, O), b (O,) -> y (N, O); of more axes than two, or one, the last is C.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from minires import backend
from minires.backend import Array
from minires.errors import ShapeError
from minires.ops import checks
from minires.ops.forms import Products
from minires.ops.mixed_precision import mixed
from minires.ops.onnx_graph import Graph
from minires.ops.registry import Case, Words, operation
from minires.ops.reshape import reshape
from minires.tensor import Call, Tensor, record


def _forward(xp: Any, x: Array, w: Array, b: Array | None) -> Array:
    return backend.matmul(x, w, backend.accumulator(x.dtype), bias=b).astype(x.dtype, copy=False)


def _backward_x(xp: Any, dy: Array, w: Array) -> Array:
    return backend.matmul(dy, w.T)


def _backward_w(xp: Any, dy: Array, x: Array) -> Array:
    return backend.matmul(x.T, dy, backend.accumulator(x.dtype))


def _backward_b(dy: Array) -> Array:
    return backend.total(dy, 0, dtype=backend.accumulator(dy.dtype))


def _cases() -> Iterator[Case]:
    yield Case("bias", {"x": (3, 4), "w": (4, 2), "b": (2,)})
    yield Case("no bias", {"x": (3, 4), "w": (4, 2)})
    yield Case("one row, one output", {"x": (1, 3), "w": (3, 1), "b": (1,)})
    yield Case("sequences", {"x": (2, 3, 4), "w": (4, 2), "b": (2,)})
    yield Case("a vector", {"x": (4,), "w": (4, 2)})


def _onnx(graph: Graph, call: Call) -> str:
    x, *weights = call.inputs.values()
    return graph.add("Gemm", graph.value(x), *map(graph.value, weights))


@operation(
    math="y = x @ w{b? + b}",
    backward="dx = dy @ w^T, dw = x^T @ dy{b?, db = sum of dy over N}",
    english=Words(
        "Dense layer",
        "Each output is a weighted sum of all inputs{b?, plus a bias}.",
        "Each input gets the sum of all dy, weighted; each weight gets its input times "
        "dy{b?; the bias gets the sum of dy}.",
    ),
    chinese=Words(
        "全连接层",
        "每个输出是全部输入的加权和{b?，再加偏置}。",
        "每个输入得到全部 dy 的加权和；每个权重得到其输入与 dy 的乘积{b?；偏置得到 dy 之和}。",
    ),
    arithmetic=Products(),
    label="dense",
    short="dense {channels}",
    onnx=_onnx,
    cases=_cases,
)
def linear(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """Multiply rows with a matrix and add a bias.

    Shapes: x (N, C), w (C, O), b (O,) -> y (N, O). Of other axes, x (..., C) -> y (..., O), the rows are
    along the last one.
    Rounding: db is added up in float64 and rounded once, right to 1e-7 of the sum of absolute values; the
    products in float32, some thousand at a time, right to 3e-6 of it, over ten million rows, too.
    Raises: ShapeError if ranks, sizes, dtypes or devices do not fit.

    >>> x, w = Tensor([[1.0, 2.0]]), Tensor([[1.0, 0.0, 3.0], [0.0, 1.0, 4.0]])
    >>> linear(x, w, Tensor([0.5, 0.5, 0.0])).tolist()
    [[1.5, 2.5, 11.0]]
    """
    x, w = checks.as_tensor(x), checks.as_tensor(w)
    if x.ndim and w.ndim == 2 and x.shape[-1] != w.shape[0]:
        hint = "; flatten(x) makes a row of each picture" if math.prod(x.shape[1:]) == w.shape[0] else ""
        raise ShapeError(
            f"linear: x {x.shape} has {x.shape[-1]} features but w {w.shape} expects {w.shape[0]}{hint}"
        )
    if x.ndim in (0, 2):
        return _linear(x, w, b)
    rows = reshape(x, (math.prod(x.shape[:-1]), x.shape[-1]))
    return reshape(_linear(rows, w, b), (*x.shape[:-1], w.shape[-1]))


@mixed(kernels=True, parameters=("b",), factors=("w",))
def _linear(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    b = None if b is None else checks.as_tensor(b)
    checks.rank("linear", "x", x, "(N, C)")
    checks.rank("linear", "w", w, "(C, O)")
    checks.same_floats("linear", parameters=("b",), w=w, b=b, x=x)
    if b is not None and b.shape != (w.shape[1],):
        raise ShapeError(f"linear: b must have shape ({w.shape[1]},), one per output, not {b.shape}")

    xp = backend.array_module(x.data)
    xdata, wdata = x.data, w.data
    need_x, need_w, need_b = x.requires_grad, w.requires_grad, b is not None and b.requires_grad
    saved = {"x": xdata if need_w else None, "w": wdata if need_x else None}

    def backward(dy: Array) -> tuple[Array | None, ...]:
        dx = _backward_x(xp, dy, saved["w"]) if need_x else None
        dw = _backward_w(xp, dy, saved["x"]) if need_w else None
        db = _backward_b(dy) if need_b else None
        return dx, dw, db

    y = _forward(xp, xdata, wdata, None if b is None else b.data)
    return record("linear", y, inputs={"x": x, "w": w, "b": b}, saved=saved, backward=backward)

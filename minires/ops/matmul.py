"""Matrix product, of matrices, stacks of matrices, and vectors.

    y = a @ b
    da = dy @ b^T
    db = a^T @ dy

Shapes: a (..., M, K), b (..., K, P) -> y (..., M, P). The leading axes are broadcast as in NumPy, so one
matrix meets every matrix of a stack; its gradient is then summed over the stack. A vector a (K,) is a matrix
of one row, a vector b (K,) one of a single column, and the axis that y would have from it is left out; on the
tape these are reshapes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from minires import backend
from minires.backend import Array
from minires.errors import ShapeError
from minires.ops import checks
from minires.ops.elementwise import unbroadcast
from minires.ops.forms import Formula, Values
from minires.ops.mixed_precision import mixed
from minires.ops.onnx_graph import Graph, theirs
from minires.ops.registry import Case, Shape, Words, operation
from minires.ops.reshape import reshape
from minires.tensor import Call, Operand, Tensor, record


def _forward(xp: Any, a: Array, b: Array) -> Array:
    return backend.matmul(a, b)


def _backward_a(xp: Any, dy: Array, b: Array, shape: Shape) -> Array:
    return unbroadcast(backend.matmul(dy, b.swapaxes(-1, -2)), shape)


def _backward_b(xp: Any, dy: Array, a: Array, shape: Shape) -> Array:
    return unbroadcast(backend.matmul(a.swapaxes(-1, -2), dy), shape)


def _onnx(graph: Graph, call: Call) -> str:
    return theirs(graph, graph.add("MatMul", *map(graph.ours, call.inputs.values())), call.y)


def _facts(call: Values) -> dict[str, bool]:
    """Which of the two met several matrices of the other."""
    stack = math.prod(call.shape[:-2])
    return {
        f"{name}_stretched": array is not None and math.prod(array.shape[:-2]) < stack
        for name, array in call.inputs.items()
    }


def _cases() -> Iterator[Case]:
    stacks: list[tuple[str, Shape, Shape]] = [
        ("matrices", (3, 4), (4, 2)),
        ("one row, one column", (1, 3), (3, 1)),
        ("stacks", (2, 3, 4), (2, 4, 2)),
        ("one matrix for a stack", (2, 3, 2), (2, 3)),
        ("stack for one matrix", (3, 2), (2, 2, 3)),
        ("stretched stacks", (2, 1, 2, 3), (3, 3, 2)),
        ("vectors", (3,), (3,)),
        ("vector and matrix", (3,), (3, 2)),
        ("matrix and vector", (2, 3), (3,)),
        ("vector and stack", (3,), (2, 3, 2)),
        ("stack and vector", (2, 2, 3), (3,)),
    ]
    for name, a, b in stacks:
        yield Case(name, {"a": a, "b": b})


@operation(
    math="y = a @ b",
    backward="""
        da = dy @ b^T{a_stretched?, summed over the matrices that met a||}
        db = a^T @ dy{b_stretched?, summed over the matrices that met b||}
    """,
    facts=_facts,
    arithmetic=Formula(
        """
        y = sum(a * b, k)
        da = sum(dy * b, p)
        db = sum(a * dy, m)
        """,
        axes={"m": -3, "k": -2, "p": -1},
        insert={"a": -1, "b": -3},  # (..., M, K, 1) * (..., 1, K, P)
    ),
    english=Words(
        "Matrix product",
        "Rows of the first times columns of the second.",
        "Each number gets all dy that it had a part in, times what it was multiplied with there.",
    ),
    chinese=Words(
        "矩阵乘法",
        "第一个矩阵的行乘以第二个矩阵的列。",
        "每个数得到它参与的全部 dy，各乘以当时的另一因子。",
    ),
    label="matrix product",
    onnx=_onnx,
    cases=_cases,
)
@mixed()
def matmul(a: Operand, b: Operand) -> Tensor:
    """The matrix product ``a @ b``.

    Shapes: a (..., M, K), b (..., K, P) -> y (..., M, P), the leading axes broadcast as in NumPy. A vector a
    (K,) is a matrix of one row, a vector b (K,) one of a single column, and y has no axis for it.
    Raises: ShapeError if an operand is a single number, the inner sizes differ, the leading axes cannot be
    broadcast, or dtypes or devices differ.

    >>> w = Tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> (w @ w).tolist(), (w @ Tensor([1.0, -1.0])).tolist()
    ([[7.0, 10.0], [15.0, 22.0]], [-1.0, -1.0])
    """
    a, b = checks.as_tensor(a), checks.as_tensor(b)
    checks.same_floats("matmul", a=a, b=b)
    for name, operand in (("a", a), ("b", b)):
        if operand.ndim == 0:
            raise ShapeError(f"matmul: {name} is a single number; multiply with * instead of @")
    inner = b.shape[0 if b.ndim == 1 else -2]
    if a.shape[-1] != inner:
        raise ShapeError(
            f"matmul: a {a.shape} has {a.shape[-1]} columns but b {b.shape} has {inner} rows; "
            "they must be equal"
        )
    if a.ndim == 1 or b.ndim == 1:
        rows = a if a.ndim > 1 else reshape(a, (1, -1))
        columns = b if b.ndim > 1 else reshape(b, (-1, 1))
        y = matmul(rows, columns)  # (..., M, P), with M = 1 of a vector a, P = 1 of a vector b
        *stack, m, p = y.shape
        return reshape(y, (*stack, *([m] if a.ndim > 1 else []), *([p] if b.ndim > 1 else [])))
    try:
        np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    except ValueError:
        raise ShapeError(f"matmul: the stacks of a {a.shape} and b {b.shape} cannot be broadcast") from None

    xp = backend.array_module(a.data)
    need_a, need_b, a_shape, b_shape = a.requires_grad, b.requires_grad, a.shape, b.shape
    saved = {"a": a.data if need_b else None, "b": b.data if need_a else None}

    def backward(dy: Array) -> tuple[Array | None, Array | None]:
        da = _backward_a(xp, dy, saved["b"], a_shape) if need_a else None
        db = _backward_b(xp, dy, saved["a"], b_shape) if need_b else None
        return da, db

    return record(
        "matmul",
        _forward(xp, a.data, b.data),
        inputs={"a": a, "b": b},
        saved=saved,
        backward=backward,
    )

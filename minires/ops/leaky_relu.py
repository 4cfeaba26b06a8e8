"""Leaky rectified linear unit: negative numbers are made small instead of zero, so that none of them is dead.

Shapes: any; y has the shape of x.
Source: Maas, Hannun, Ng 2013, Rectifier nonlinearities improve neural network acoustic models.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from minires import backend
from minires.backend import Array, cuda, kernel
from minires.errors import ConfigError
from minires.ops import checks
from minires.ops.forms import Formula
from minires.ops.mixed_precision import mixed
from minires.ops.onnx_graph import Graph
from minires.ops.registry import Case, Words, apart, operation
from minires.tensor import Call, Tensor, record

# ------------------------------------------------------------------------------ reference implementation
# The sign of y is that of x, and y is what the next layer keeps anyway: so the way back reads y.


def _forward(xp: Any, x: Array, slope: float) -> Array:
    return xp.where(x > 0, x, x * slope)


def _backward(xp: Any, dy: Array, y: Array, slope: float) -> Array:
    return xp.where(y > 0, dy, dy * slope)


# ----------------------------------------------------------------------------------------------- public


def _cases() -> Iterator[Case]:
    for shape in [(), (3,), (2, 1, 3)]:
        yield Case(f"shape {shape}", {"x": apart(shape)})
    for slope in (0.3, 0, 1):
        yield Case(f"slope {slope}", {"x": apart((2, 3))}, {"slope": slope})


def _onnx(graph: Graph, call: Call) -> str:
    (x,) = call.inputs.values()
    return graph.add("LeakyRelu", graph.value(x), alpha=call.options["slope"])


@operation(
    arithmetic=Formula("""
        y = x if x > 0 else slope * x
        dx = dy if y > 0 else slope * dy
    """),
    english=Words(
        "Leaky ReLU",
        "Negative numbers are multiplied by a small slope, others stay.",
        "The gradient passes where the output is above zero; elsewhere it is multiplied by the slope.",
    ),
    chinese=Words("Leaky ReLU", "负数乘以一个小斜率，其余不变。", "输出大于零处梯度通过，其余处乘以该斜率。"),
    label="leaky ReLU",
    role="small",
    onnx=_onnx,
    cases=_cases,
)
@mixed(kernels=True)
def leaky_relu(x: Tensor, *, slope: float = 0.01) -> Tensor:
    """Multiply negative numbers by ``slope``.

    slope: what is left of a negative number; not below 0. At exactly zero the gradient is that of the left.

    Shapes: any; y as x.
    Raises: ShapeError if ``x`` is not a float; ConfigError if the slope is no number, or below 0.

    >>> leaky_relu(Tensor([-2.0, 3.0]), slope=0.5).tolist()
    [-1.0, 3.0]
    """
    x = checks.as_tensor(x)
    checks.same_floats("leaky_relu", x=x)
    slope = checks.number("leaky_relu", "slope", slope)
    if not slope >= 0:
        raise ConfigError(f"leaky_relu: slope must not be below 0, which would change signs, but is {slope}")
    xp, data = backend.array_module(x.data), x.data
    if cuda.usable(data):
        y = _run_cuda(xp, "leaky_relu", slope, data)
    else:
        y = _run_numba(_leaky_relu_numba, slope, data) if backend.fast(data) else _forward(xp, data, slope)

    def backward(dy: Array) -> tuple[Array]:
        if cuda.usable(dy):
            return (_run_cuda(xp, "leaky_relu_gradient", slope, dy, y),)
        if backend.fast(dy):
            return (_run_numba(_gradient_numba, slope, dy, y),)
        return (_backward(xp, dy, y, slope),)

    return record(
        "leaky_relu", y, inputs={"x": x}, options={"slope": slope}, saved={"y": y}, backward=backward
    )


# ----------------------------------------------------------------------------------------- fast, on CPU
# One pass on all threads, as in relu.py.


@kernel(x="(n)", y="out (n)")
def _leaky_relu_numba(slope: float, x: Array, y: Array) -> None:
    for i in range(len(y)):
        y[i] = x[i] if x[i] > 0 else x[i] * slope


@kernel(dy="(n)", y="(n)", dx="out (n)")
def _gradient_numba(slope: float, dy: Array, y: Array, dx: Array) -> None:
    for i in range(len(dx)):
        dx[i] = dy[i] if y[i] > 0 else dy[i] * slope


_GRAIN = 1 << 17  # numbers; fewer are not worth a second thread


def _run_numba(kernel: Any, slope: float, *arrays: Array) -> Array:
    result = np.empty(arrays[0].shape, arrays[0].dtype)
    flat = [np.ascontiguousarray(array).reshape(-1) for array in arrays]
    to, narrow = result.reshape(-1), result.dtype.type(slope)

    def chunk(start: int, stop: int) -> None:
        kernel(narrow, *(array[start:stop] for array in flat), to[start:stop])

    backend.parallel_for(chunk, result.size, _GRAIN)
    return result


# ------------------------------------------------------------------------------------------- fast, on GPU

_CUDA = cuda.Source(r"""
extern "C" __global__ void leaky_relu(const T* x /* n */, T* y /* n */, A slope, int n) {
    EACH(i, n) {
        A value = x[i];
        y[i] = value > 0 ? value : value * slope;
    }
}

extern "C" __global__ void leaky_relu_gradient(
    const T* dy /* n */, const T* y /* n */, T* dx /* n */, A slope, int n
) {
    EACH(i, n) {
        A value = dy[i];
        dx[i] = A(y[i]) > 0 ? value : value * slope;
    }
}
""")


def _run_cuda(xp: Any, name: str, slope: float, *arrays: Array) -> Array:
    result = xp.empty(arrays[0].shape, arrays[0].dtype)
    _CUDA(name, cuda.over(result.size), *map(xp.ascontiguousarray, arrays), result, slope, result.size)
    return result

"""Softmax and its logarithm, along the last axis or another one.

    y = exp(x) / sum exp(x)              dx = y * (dy - sum(dy * y))
    y = x - log sum exp(x)               dx = dy - exp(y) * sum(dy)           (log_softmax)

The largest x is subtracted first: the result is the same and nothing overflows, whatever the size of x. Of
the logarithm first the half is computed: the difference of two numbers may be too large for the dtype, that
of their halves never is, and halving is exact. The sums are added up in float64, and the logarithm is taken
of them there, so that it is right to its last digits where one x outweighs all others.

Shapes: x (..., K); y has the shape of x. Another axis than the last is brought there by a transposition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from minires import backend
from minires.backend import Array, cuda
from minires.errors import ShapeError
from minires.ops import checks
from minires.ops.forms import Formula
from minires.ops.mixed_precision import mixed
from minires.ops.onnx_graph import Graph, along_channels
from minires.ops.registry import Case, Words, operation
from minires.ops.reshape import transpose
from minires.tensor import Call, Tensor, record

# ------------------------------------------------------------------------------ reference implementation


def _shifted(xp: Any, x: Array) -> Array:
    """x minus the largest of its row. What is too far below it for the dtype becomes minus infinity: its
    exponential is 0 all the same."""
    with np.errstate(over="ignore"):
        return x - xp.max(x, axis=-1, keepdims=True)


def _forward(xp: Any, x: Array) -> Array:
    e = xp.exp(_shifted(xp, x))
    return e / backend.total(e, -1, keepdims=True)


def _backward(xp: Any, dy: Array, y: Array) -> Array:
    return y * (dy - backend.total(dy * y, -1, keepdims=True))


def half_of_log(xp: Any, x: Array) -> Array:
    """Half the logarithm of the softmax: finite wherever x is."""
    half = x / 2 - xp.max(x, axis=-1, keepdims=True) / 2
    log_sum = xp.log(backend.total(xp.exp(doubled(half)), -1, keepdims=True, dtype=np.float64))
    return half - (log_sum / 2).astype(x.dtype)


def doubled(half: Array) -> Array:
    """Twice the numbers; infinite where that is too large."""
    with np.errstate(over="ignore"):
        return half * 2


def _forward_log(xp: Any, x: Array) -> Array:
    return doubled(half_of_log(xp, x))


def _backward_log(xp: Any, dy: Array, y: Array) -> Array:
    return dy - xp.exp(y) * backend.total(dy, -1, keepdims=True)


# ------------------------------------------------------------------------------------------- fast, on GPU
# A block for each row. A number that is not finite needs no care: it makes the sum of its row NaN, and so the
# whole row, as above.

# What every kernel over rows of classes needs; cross entropy has it too.
ROW_CODE = r"""
// Shares 0 <= k < n out among the threads of a block.
#define EACH_IN_BLOCK(k, n) for (int k = threadIdx.x; k < (n); k += blockDim.x)

enum Joining { SUM, LARGEST };

template <Joining how, class N>
__device__ N join(N a, N b) {
    if (how == SUM) return a + b;
    return b > a ? b : a;
}

// The sum or the largest of what the threads of the block bring, in an order that is always the same: first
// within each warp, in pairs, then warp by warp. Every thread learns the result.
template <Joining how, class N>
__device__ N over_block(N value) {
    __shared__ N of_warp[32];
    for (int by = 16; by > 0; by /= 2) value = join<how>(value, __shfl_xor_sync(0xffffffff, value, by));
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = value;
    __syncthreads();
    value = of_warp[0];
    for (int warp = 1; warp < blockDim.x / 32; warp++) value = join<how>(value, of_warp[warp]);
    __syncthreads();  // who is first at the next call must not write yet
    return value;
}

__device__ T largest(const T* x, int classes) {
    T mine = x[0];
    EACH_IN_BLOCK(k, classes) mine = join<LARGEST>(mine, x[k]);
    return over_block<LARGEST>(mine);
}

// Half of log sum exp(x - shift), and half of x - shift, which is never too large for T.
__device__ T half_of_log_sum(const T* x, T shift, int classes) {
    double mine = 0;
    EACH_IN_BLOCK(k, classes) mine += exp(x[k] - shift);
    return log(over_block<SUM>(mine)) / 2;
}

__device__ T half_of_difference(T a, T b) { return a / 2 - b / 2; }
"""

_CUDA = cuda.Source(
    ROW_CODE
    + r"""
extern "C" __global__ void softmax(
    const T* x /* blocks * classes */, T* y /* blocks * classes */, int classes
) {
    int row = blockIdx.x * classes;
    x += row; y += row;
    T shift = largest(x, classes);
    double mine = 0;
    EACH_IN_BLOCK(k, classes) {
        y[k] = exp(x[k] - shift);
        mine += y[k];
    }
    T sum = over_block<SUM>(mine);
    EACH_IN_BLOCK(k, classes) y[k] /= sum;
}

extern "C" __global__ void softmax_gradient(
    const T* dy /* blocks * classes */, const T* y /* blocks * classes */, T* dx /* blocks * classes */,
    int classes
) {
    int row = blockIdx.x * classes;
    dy += row; y += row; dx += row;
    double mine = 0;
    EACH_IN_BLOCK(k, classes) mine += dy[k] * y[k];
    T sum = over_block<SUM>(mine);
    EACH_IN_BLOCK(k, classes) dx[k] = y[k] * (dy[k] - sum);
}

extern "C" __global__ void log_softmax(
    const T* x /* blocks * classes */, T* y /* blocks * classes */, int classes
) {
    int row = blockIdx.x * classes;
    x += row; y += row;
    T shift = largest(x, classes);
    T half_log_sum = half_of_log_sum(x, shift, classes);
    EACH_IN_BLOCK(k, classes) y[k] = 2 * (half_of_difference(x[k], shift) - half_log_sum);
}

extern "C" __global__ void log_softmax_gradient(
    const T* dy /* blocks * classes */, const T* y /* blocks * classes */, T* dx /* blocks * classes */,
    int classes
) {
    int row = blockIdx.x * classes;
    dy += row; y += row; dx += row;
    double mine = 0;
    EACH_IN_BLOCK(k, classes) mine += dy[k];
    T sum = over_block<SUM>(mine);
    EACH_IN_BLOCK(k, classes) dx[k] = dy[k] - exp(y[k]) * sum;
}
"""
)


def row_grid(rows: int, classes: int) -> tuple[int, int]:
    """A block for each row, of so many warps that a thread has about four numbers, but 16 at most."""
    return rows, 32 * min(16, -(-classes // 128))


def _rows_cuda(xp: Any, kernel: str, *inputs: Array) -> Array:
    """The result of one of the kernels above, which take arrays (..., K) and make one."""
    out = xp.empty(inputs[0].shape, inputs[0].dtype)
    classes = out.shape[-1]
    if out.size:
        grid = row_grid(out.size // classes, classes)
        _CUDA(kernel, grid, *(xp.ascontiguousarray(array) for array in inputs), out, classes)
    return out


# ----------------------------------------------------------------------------------------------- public


def _checked(op: str, x: Tensor, axis: int) -> tuple[Tensor, int]:
    """x as a tensor, and the axis counted from the front."""
    x = checks.as_tensor(x)
    checks.same_floats(op, x=x)
    along = checks.one_axis(op, axis, x.ndim) if x.ndim else 0
    if x.ndim == 0 or x.shape[along] == 0:
        raise ShapeError(f"{op}: x must be (..., K) with at least one class, not of shape {x.shape}")
    return x, along


def _along(operation: Callable[[Tensor], Tensor], x: Tensor, axis: int) -> Tensor:
    """An operation along the last axis, done along another one."""
    order = tuple(i for i in range(x.ndim) if i != axis) + (axis,)
    back = tuple(order.index(i) for i in range(x.ndim))
    return transpose(operation(transpose(x, order)), back)


def _cases() -> Iterator[Case]:
    for shape in [(3, 4), (5,), (2, 2, 3), (2, 1)]:
        yield Case(f"shape {shape}", {"x": shape})
    yield Case("first axis", {"x": (3, 2, 2)}, {"axis": 0})


def _onnx(graph: Graph, call: Call) -> str:
    return along_channels(graph, call, "Softmax")


def _onnx_log(graph: Graph, call: Call) -> str:
    return along_channels(graph, call, "LogSoftmax")


@operation(
    arithmetic=Formula(
        """
        e = exp(x - max(x, classes))
        y = e / sum(e, classes)
        dx = y * (dy - sum(dy * y, classes))
        """,
        axes={"classes": -1},
        last="k",
    ),
    english=Words(
        "Softmax",
        "Scores become probabilities, which sum to 1.",
        "Each gets its gradient less the mean of all, weighted with y, times y.",
    ),
    chinese=Words("Softmax", "得分变成和为 1 的概率。", "每个梯度减去以 y 加权的平均，再乘以 y。"),
    onnx=_onnx,
    cases=_cases,
)
@mixed()
def softmax(x: Tensor, axis: int = -1) -> Tensor:
    """Turn scores into probabilities that sum to one along ``axis``, by default the last.

    Scores may have any size, and some may be minus infinity. A row of nothing else, or with a NaN or plus
    infinity, is NaN, as in PyTorch.
    Shapes: any with at least one class along ``axis``; y as x.
    Raises: ShapeError if ``x`` has no classes or is not a float, or the axis does not exist.

    >>> softmax(Tensor([[1.0, 1.0], [1000.0, 0.0]])).tolist()
    [[0.5, 0.5], [1.0, 0.0]]
    """
    x, along = _checked("softmax", x, axis)
    if along != x.ndim - 1:
        return _along(softmax, x, along)
    xp = backend.array_module(x.data)
    if cuda.usable(x.data):
        y = _rows_cuda(xp, "softmax", x.data)
        back = partial(_rows_cuda, xp, "softmax_gradient")
    else:
        y, back = _forward(xp, x.data), partial(_backward, xp)
    return record("softmax", y, inputs={"x": x}, saved={"y": y}, backward=lambda dy: (back(dy, y),))


@operation(
    arithmetic=Formula(
        """
        shifted = x - max(x, classes)
        y = shifted - log(sum(exp(shifted), classes))
        dx = dy - exp(y) * sum(dy, classes)
        """,
        axes={"classes": -1},
        last="k",
    ),
    english=Words(
        "Log-softmax",
        "The logarithms of the probabilities.",
        "Each gets its gradient less the sum of all, times its probability.",
    ),
    chinese=Words("对数 Softmax", "概率的对数。", "每个梯度减去全部梯度之和与其概率的乘积。"),
    onnx=_onnx_log,
    cases=_cases,
)
@mixed()
def log_softmax(x: Tensor, axis: int = -1) -> Tensor:
    """The logarithm of :func:`softmax`, exact where a probability would round to zero.

    Shapes, Raises: as :func:`softmax`.

    >>> log_softmax(Tensor([1000.0, 0.0])).tolist()
    [0.0, -1000.0]
    """
    x, along = _checked("log_softmax", x, axis)
    if along != x.ndim - 1:
        return _along(log_softmax, x, along)
    xp = backend.array_module(x.data)
    if cuda.usable(x.data):
        y = _rows_cuda(xp, "log_softmax", x.data)
        back = partial(_rows_cuda, xp, "log_softmax_gradient")
    else:
        y, back = _forward_log(xp, x.data), partial(_backward_log, xp)
    return record("log_softmax", y, inputs={"x": x}, saved={"y": y}, backward=lambda dy: (back(dy, y),))

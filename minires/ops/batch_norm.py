"""Batch normalisation, with an optional addition and ReLU in the same pass.

Every channel is brought to mean 0 and variance 1 over the batch (M values a channel), then scaled by gamma
and moved by beta, two parameters that are learned:

    mean = sum(x) / M      var = sum((x - mean)^2) / M      inv = 1 / sqrt(var + eps)
    xhat = (x - mean) * inv
    y = gamma * xhat + beta            then, where asked, y = y + add, and y = max(y, 0)

Backward, with g = dy (where y > 0 if there was a ReLU, else 0):

    dbeta = sum(g)         dgamma = sum(g * xhat)         dadd = g
    dx = gamma * inv * (g - dbeta / M - xhat * dgamma / M)

The last two terms say that moving one x also moves the mean and the variance of all. In inference the mean
and the variance are constants, kept from training, and the two terms fall away: dx = gamma * inv * g.

A trap: with an upstream gradient of all ones, the true dx and dgamma are zero, so such a check passes a
backward that returns zeros.

Source: Ioffe and Szegedy 2015, Batch normalization, arXiv:1502.03167.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from minires import backend
from minires.backend import Array, kernel
from minires.errors import ShapeError
from minires.ops import checks
from minires.ops.arithmetic import add as add_tensors
from minires.ops.relu import relu as relu_tensor
from minires.tensor import Tensor, is_fused, record

# What the two conventions mean by momentum, their usual values, and whether the running variance is the
# biased one (over M, as in the formula above) or the unbiased one (over M - 1).
CONVENTIONS = {
    "keras": {"momentum": 0.99, "eps": 1e-3},  # momentum is the share of the old value that is kept; biased
    "torch": {"momentum": 0.1, "eps": 1e-5},  # momentum is the share that is replaced; unbiased
}

# ---------------------------------------------------------------------------------------- specification


def _statistics(xp: Any, x: Array) -> tuple[Array, Array]:
    """Mean and biased variance of each channel of x (M, C), as (C,) each."""
    mean = x.mean(axis=0)
    return mean, xp.square(x - mean).mean(axis=0)


def _forward(
    xp: Any, x: Array, gamma: Array, beta: Array, mean: Array, inv: Array, add: Array | None, relu: bool
) -> Array:
    y = gamma * ((x - mean) * inv) + beta
    if add is not None:
        y = y + add
    return xp.maximum(y, xp.zeros((), y.dtype)) if relu else y


def _backward(
    dy: Array, x: Array, y: Array, gamma: Array, mean: Array, inv: Array, relu: bool, training: bool
) -> tuple[Array, Array, Array, Array]:
    """dx, dgamma, dbeta and g, the gradient of what was added."""
    g = dy * (y > 0) if relu else dy
    xhat = (x - mean) * inv
    dgamma, dbeta = (g * xhat).sum(axis=0), g.sum(axis=0)
    dx = g - (dbeta + xhat * dgamma) / len(x) if training else g
    return gamma * inv * dx, dgamma, dbeta, g


# ----------------------------------------------------------------------------------------- fast, on CPU
# Plain NumPy makes a pass over the memory for each operator. These kernels make two forward and two
# backward. Sums are kept in float64, to which four rows at a time are added, since going from one type to the
# other costs more than the sum; they are taken of x minus its first row, so that a large common mean does not
# eat the digits of the variance.
#
# In the kernels x may have more columns than there are channels, as the array of a dense block's history
# has; those behind belong to others. (Numba takes a view of the first columns as well, but then it no longer
# knows that the channels lie one after the other, and its code was measured up to ten times slower.)


@kernel
def _sums_numba(x, shift, start, stop, total, squares):
    channels = total.size
    whole = stop - (stop - start) % 4
    for m in range(start, whole, 4):
        for c in range(channels):
            d0, d1 = x[m, c] - shift[c], x[m + 1, c] - shift[c]
            d2, d3 = x[m + 2, c] - shift[c], x[m + 3, c] - shift[c]
            total[c] += (d0 + d1) + (d2 + d3)
            squares[c] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)
    for m in range(whole, stop):
        for c in range(channels):
            d = x[m, c] - shift[c]
            total[c] += d
            squares[c] += d * d


@kernel
def _normalize_numba(x, scale, mean, beta, add, relu, y, start, stop):
    zero = x.dtype.type(0)
    for m in range(start, stop):
        for c in range(len(mean)):
            value = (x[m, c] - mean[c]) * scale[c] + beta[c]
            if add.shape[0]:
                value += add[m, c]
            y[m, c] = zero if relu and value < zero else value  # NaN stays NaN


# Where no shortcut was added, the sign of y follows from x, which the backward reads anyway. Then y, an array
# as large, is not read: it is given without rows.


@kernel
def _gradient_sums_numba(dy, x, y, mean, scale, beta, relu, start, stop, total, products):
    zero, channels, from_x = x.dtype.type(0), total.size, y.shape[0] == 0
    whole = stop - (stop - start) % 4
    for m in range(start, whole, 4):
        for c in range(channels):
            d0, d1 = x[m, c] - mean[c], x[m + 1, c] - mean[c]
            d2, d3 = x[m + 2, c] - mean[c], x[m + 3, c] - mean[c]
            g0, g1, g2, g3 = dy[m, c], dy[m + 1, c], dy[m + 2, c], dy[m + 3, c]
            if relu:
                g0 = g0 if (d0 * scale[c] + beta[c] if from_x else y[m, c]) > zero else zero
                g1 = g1 if (d1 * scale[c] + beta[c] if from_x else y[m + 1, c]) > zero else zero
                g2 = g2 if (d2 * scale[c] + beta[c] if from_x else y[m + 2, c]) > zero else zero
                g3 = g3 if (d3 * scale[c] + beta[c] if from_x else y[m + 3, c]) > zero else zero
            total[c] += (g0 + g1) + (g2 + g3)
            products[c] += (g0 * d0 + g1 * d1) + (g2 * d2 + g3 * d3)
    for m in range(whole, stop):
        for c in range(channels):
            d, g = x[m, c] - mean[c], dy[m, c]
            if relu:
                g = g if (d * scale[c] + beta[c] if from_x else y[m, c]) > zero else zero
            total[c] += g
            products[c] += g * d


@kernel
def _gradient_numba(dy, x, y, mean, scale, beta, relu, slope, offset, dx, dadd, start, stop):
    zero, channels, from_x = x.dtype.type(0), mean.size, y.shape[0] == 0
    for m in range(start, stop):
        for c in range(channels):
            d, g = x[m, c] - mean[c], dy[m, c]
            if relu:
                g = g if (d * scale[c] + beta[c] if from_x else y[m, c]) > zero else zero
            dx[m, c] = scale[c] * g + slope[c] * d + offset[c]
            if dadd.shape[0]:
                dadd[m, c] = g


_GRAIN = 16384  # numbers; fewer are not worth a second thread


_WIDE = 64  # numbers in a row that make a kernel's inner loop worth its beginning and end


def _reduce(task: Any, rows: Array, *given: Array) -> tuple[Array, Array]:
    """The two sums of each channel: ``task(rows, *given, start, stop, a, b)`` on shards of the rows, each
    with sums of its own, added up at the end.

    ``given`` have a number per channel. Where there are few channels, several rows are taken as one.
    """
    count, channels = rows.shape
    together = 1
    while together * channels < _WIDE and count % (2 * together) == 0 and rows.flags.c_contiguous:
        together *= 2
    rows = rows.reshape(count // together, -1) if together > 1 else _wide(rows)
    tiled = [np.tile(numbers, together) for numbers in given]
    parts = backend.shards(len(rows), max(1, _GRAIN // (together * channels)))
    sums = np.zeros((len(parts), 2, together * channels))  # float64
    calls = [partial(task, rows, *tiled, *part, *pair) for part, pair in zip(parts, sums, strict=True)]
    backend.parallel_calls(calls)
    first, second = sums.reshape(len(parts), 2, together, channels).sum(axis=(0, 2))
    return first, second


def _statistics_numba(x: Array) -> tuple[Array, Array]:
    total, squares = _reduce(_sums_numba, x, x[0])
    offset = total / len(x)
    mean = x[0] + offset
    var = np.maximum(squares / len(x) - offset * offset, 0)
    return mean.astype(x.dtype), var.astype(x.dtype)


def _forward_numba(
    x: Array, gamma: Array, beta: Array, mean: Array, inv: Array, add: Array | None, relu: bool
) -> Array:
    wide, y = _wide(x), np.empty(x.shape, x.dtype)
    scale, added = gamma * inv, _none(x) if add is None else add

    def shard(start: int, stop: int) -> None:
        _normalize_numba(wide, scale, mean, beta, added, relu, y, start, stop)

    backend.parallel_for(shard, len(x), max(1, _GRAIN // x.shape[1]))
    return y


def _backward_numba(
    dy: Array,
    x: Array,
    y: Array,
    gamma: Array,
    beta: Array,
    mean: Array,
    inv: Array,
    relu: bool,
    training: bool,
    added: bool,
    need_g: bool,
) -> tuple[Array, Array, Array, Array]:
    signs = y if added and relu else _none(x)
    scale = gamma * inv

    def sums(rows: Array, means: Array, scales: Array, betas: Array, *where: Any) -> None:
        shape = (len(rows), means.size)
        y_rows = signs.reshape(shape) if len(signs) else signs
        _gradient_sums_numba(dy.reshape(shape), rows, y_rows, means, scales, betas, relu, *where)

    dbeta, products = _reduce(sums, x, mean, scale, beta)
    dgamma = products * inv
    slope = -scale * inv * dgamma / len(x) if training else np.zeros_like(dgamma)
    offset = -scale * dbeta / len(x) if training else np.zeros_like(dbeta)
    slope, offset = slope.astype(x.dtype), offset.astype(x.dtype)
    wide, dx, g = _wide(x), np.empty_like(y), np.empty_like(y) if need_g else _none(x)

    def shard(start: int, stop: int) -> None:
        _gradient_numba(dy, wide, signs, mean, scale, beta, relu, slope, offset, dx, g, start, stop)

    backend.parallel_for(shard, len(x), max(1, _GRAIN // x.shape[1]))
    return dx, dgamma.astype(x.dtype), dbeta.astype(x.dtype), g


def _wide(rows: Array) -> Array:
    """The rows (M, C) of ``_rows`` without the gaps: each goes on to where the next one begins, (M, wider).

    Behind the last row that may be beyond the end of the memory; only the first C columns are ever read.
    """
    if rows.flags.c_contiguous:
        return rows
    return np.lib.stride_tricks.as_strided(rows, (len(rows), rows.strides[0] // rows.itemsize))


def _none(x: Array) -> Array:
    """Stands for an array that a kernel does not get: no rows, but of a type Numba can compile for."""
    return np.empty((0, 0), x.dtype)


# ----------------------------------------------------------------------------------------------- public


def batch_norm(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    *,
    training: bool,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    momentum: float | None = None,
    eps: float | None = None,
    convention: str = "keras",
    add: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """Normalise each channel; then add ``add`` and apply ReLU where asked.

    In training the statistics are those of the batch, and ``running_mean`` and ``running_var`` are updated
    in place where given; in inference they are used, and not changed. ``convention`` says what ``momentum``
    means, what it and ``eps`` are if left out, and which variance is kept: see CONVENTIONS. Under
    ``minires.unfused()`` the addition and the ReLU are nodes of their own on the tape.

    Math and Backward: see the head of this file.
    Shapes: x (..., C), any axes before the channels; gamma, beta, running_mean, running_var (C,); add and y
    as x.
    Raises: ShapeError if shapes or dtypes do not fit, if inference has no running statistics, or if training
    has a single value per channel (its variance says nothing).
    Source: arXiv:1502.03167.
    """
    x, gamma, beta = checks.as_tensor(x), checks.as_tensor(gamma), checks.as_tensor(beta)
    _check(x, gamma, beta, running_mean, running_var, training, convention)
    if add is not None:
        add = checks.as_tensor(add)
        checks.same_floats("batch_norm", x=x, add=add)
        if add.shape != x.shape:
            raise ShapeError(
                f"batch_norm: add has shape {add.shape}, but x has {x.shape}; they must be equal"
            )
    momentum = CONVENTIONS[convention]["momentum"] if momentum is None else momentum
    eps = CONVENTIONS[convention]["eps"] if eps is None else eps
    if not is_fused() and (add is not None or relu):
        y = batch_norm(
            x, gamma, beta, training=training, running_mean=running_mean, running_var=running_var,
            momentum=momentum, eps=eps, convention=convention,
        )  # fmt: skip
        y = y if add is None else add_tensors(y, add)
        return relu_tensor(y) if relu else y

    xp = backend.array_module(x.data)
    rows = _rows(xp, x.data)  # (..., C) -> (M, C)
    add_rows = None if add is None else xp.ascontiguousarray(add.data).reshape(rows.shape)
    fast = backend.fast(rows)
    if training:
        mean, var = _statistics_numba(rows) if fast else _statistics(xp, rows)
        _update(running_mean, running_var, mean, var, len(rows), momentum, convention)
    else:
        # Copies of the dtype of x: what is updated in place later must not change this backward.
        mean, var = (xp.array(running, x.dtype) for running in (running_mean, running_var))
    inv = (1 / xp.sqrt(var + x.dtype.type(eps))).astype(x.dtype)
    run = (rows, gamma.data, beta.data, mean, inv, add_rows, relu)
    y_rows = _forward_numba(*run) if fast else _forward(xp, *run)
    weights, bias, added = gamma.data, beta.data, add is not None
    needs_add = add is not None and add.requires_grad

    def backward(dy: Array) -> tuple[Array | None, ...]:
        dy = xp.ascontiguousarray(dy).reshape(rows.shape)
        if backend.fast(dy):
            dx, dgamma, dbeta, g = _backward_numba(
                dy, rows, y_rows, weights, bias, mean, inv, relu, training, added, needs_add
            )
        else:
            dx, dgamma, dbeta, g = _backward(dy, rows, y_rows, weights, mean, inv, relu, training)
        gradients = (dx.reshape(x.shape), dgamma, dbeta)
        return gradients if add is None else (*gradients, g.reshape(x.shape) if needs_add else None)

    parents = (x, gamma, beta) if add is None else (x, gamma, beta, add)
    return record("batch_norm", y_rows.reshape(x.shape), parents, backward)


def _rows(xp: Any, x: Array) -> Array:
    """x (..., C) as (M, C): a view where its numbers lie in order, also with gaps between the rows, as in the
    first channels of a wider array; else a copy."""
    rows = x.reshape(-1, x.shape[-1])
    to_next_row, to_next = rows.strides
    in_order = to_next == x.itemsize and to_next_row % to_next == 0 and to_next_row >= x.shape[-1] * to_next
    return rows if in_order else xp.ascontiguousarray(rows)


def _update(
    running_mean: Array | None,
    running_var: Array | None,
    mean: Array,
    var: Array,
    count: int,
    momentum: float,
    convention: str,
) -> None:
    """Move the running statistics towards those of this batch, in place."""
    replaced = momentum if convention == "torch" else 1 - momentum
    if convention == "torch":
        var = var * (count / (count - 1))
    for running, new in ((running_mean, mean), (running_var, var)):
        if running is not None:
            running += replaced * (new - running)


def _check(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    running_mean: Array | None,
    running_var: Array | None,
    training: bool,
    convention: str,
) -> None:
    if convention not in CONVENTIONS:
        raise ShapeError(f"batch_norm: convention must be 'keras' or 'torch', not {convention!r}")
    if x.ndim < 2:
        raise ShapeError(
            f"batch_norm: x must have a batch axis and channels last, but its shape is {x.shape}"
        )
    checks.same_floats("batch_norm", x=x, gamma=gamma, beta=beta)
    channels = x.shape[-1]
    parts = {"gamma": gamma, "beta": beta, "running_mean": running_mean, "running_var": running_var}
    for name, part in parts.items():
        if part is not None and part.shape != (channels,):
            raise ShapeError(
                f"batch_norm: {name} has shape {part.shape}, but x {x.shape} has {channels} channels"
            )
    if training and x.size // channels < 2:
        raise ShapeError(
            f"batch_norm: training needs at least two values per channel, but x has shape {x.shape}. "
            "Use a larger batch, or eval()"
        )
    if not training and (running_mean is None or running_var is None):
        raise ShapeError("batch_norm: inference needs running_mean and running_var")

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

How it is done fast stands in numba_kernels.py for the CPU, and in cuda_kernels.py for the GPU.

Source: Ioffe and Szegedy 2015, Batch normalization, arXiv:1502.03167.
"""

from __future__ import annotations

from typing import Any

from minires import backend
from minires.backend import Array, cuda
from minires.errors import ShapeError
from minires.ops import checks
from minires.ops.arithmetic import add as add_tensors
from minires.ops.batch_norm import cuda_kernels, numba_kernels
from minires.ops.mixed_precision import mixed
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


# ----------------------------------------------------------------------------------------------- public


@mixed(kernels=True, parameters=("gamma", "beta"))
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
    on_gpu, fast = cuda.usable(rows), backend.fast(rows)
    if training:
        moved = (running_mean, running_var, *_move(convention, momentum, len(rows)))
    if on_gpu and training:
        mean, inv = cuda_kernels.statistics(xp, rows, *moved, eps)
    elif on_gpu:
        mean, inv = cuda_kernels.constants(xp, gamma.dtype, running_mean, running_var, eps)
    else:
        if training:
            mean, var = numba_kernels.statistics(rows) if fast else _statistics(xp, rows)
            _update(mean, var, *moved)
        else:
            # Copies of the dtype of x: what is updated in place later must not change this backward.
            mean, var = (xp.array(running, x.dtype) for running in (running_mean, running_var))
        inv = (1 / xp.sqrt(var + x.dtype.type(eps))).astype(x.dtype)
    run = (rows, gamma.data, beta.data, mean, inv, add_rows, relu)
    if on_gpu:
        y_rows = cuda_kernels.forward(xp, *run)
    else:
        y_rows = numba_kernels.forward(*run) if fast else _forward(xp, *run)
    weights, bias, added = gamma.data, beta.data, add is not None
    needs_add = add is not None and add.requires_grad

    def backward(dy: Array) -> tuple[Array | None, ...]:
        dy = xp.ascontiguousarray(dy).reshape(rows.shape)
        run = (dy, rows, y_rows, weights, bias, mean, inv, relu, training, added, needs_add)
        if cuda.usable(dy):
            dx, dgamma, dbeta, g = cuda_kernels.backward(xp, *run)
        elif backend.fast(dy):
            dx, dgamma, dbeta, g = numba_kernels.backward(*run)
        else:
            dx, dgamma, dbeta, g = _backward(dy, rows, y_rows, weights, mean, inv, relu, training)
        return dx.reshape(x.shape), dgamma, dbeta, g.reshape(x.shape) if needs_add else None

    options = {"training": training, "momentum": momentum, "eps": eps, "convention": convention}
    options |= {"running_mean": running_mean, "running_var": running_var, **({"relu": True} if relu else {})}
    return record(
        "batch_norm",
        y_rows.reshape(x.shape),
        inputs={"x": x, "gamma": gamma, "beta": beta, "add": add},
        options=options,
        saved={"x": rows, "gamma": weights, "beta": bias, "mean": mean, "inv": inv, "y": y_rows},
        backward=backward,
    )


def _rows(xp: Any, x: Array) -> Array:
    """x (..., C) as (M, C): a view where its numbers lie in order, also with gaps between the rows, as in the
    first channels of a wider array; else a copy."""
    rows = x.reshape(-1, x.shape[-1])
    to_next_row, to_next = rows.strides
    in_order = to_next == x.itemsize and to_next_row % to_next == 0 and to_next_row >= x.shape[-1] * to_next
    return rows if in_order else xp.ascontiguousarray(rows)


def _move(convention: str, momentum: float, count: int) -> tuple[float, float]:
    """By what share the running statistics move towards those of a batch, and the factor of its variance."""
    return (momentum, count / (count - 1)) if convention == "torch" else (1 - momentum, 1.0)


def _update(
    mean: Array,
    var: Array,
    running_mean: Array | None,
    running_var: Array | None,
    replaced: float,
    correction: float,
) -> None:
    """Move the running statistics towards those of this batch, in place."""
    for running, new in ((running_mean, mean), (running_var, var * correction)):
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
    checks.same_floats("batch_norm", parameters=("gamma", "beta"), x=x, gamma=gamma, beta=beta)
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

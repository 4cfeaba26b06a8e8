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

The sums over M are added up in float64 (the kernels add four numbers in float32 first) and rounded once: in
float32 mean, variance and dbeta are right to 1e-6 of the sum of absolute values, whatever M is. So is dgamma
of the mean as it is kept, in float32: where the mean is many times larger than the standard deviation, its
rounding, 6e-8 of it, is a larger share of what is left of x.

A trap: with an upstream gradient of all ones, the true dx and dgamma are zero, so such a check passes a
backward that returns zeros.

Shapes: x, add, y (..., C), any axes before the channels; gamma, beta, mean, var (C,).
Source: Ioffe and Szegedy 2015, Batch normalization, arXiv:1502.03167.

This is the idea. Beside it stand

    numba_kernels.py    the same on the CPU in few passes over the memory
    cuda_kernels.py     ... and on a GPU
    arguments.py        what is asked of the arguments; x as a matrix (M, C)
    over_ranks.py       the statistics of all processes of a run together
"""

from __future__ import annotations

from typing import Any

from minires import backend
from minires.backend import Array, cuda
from minires.errors import ShapeError
from minires.modes import across
from minires.ops import checks
from minires.ops.arithmetic import add as add_tensors
from minires.ops.batch_norm import arguments, cuda_kernels, numba_kernels, over_ranks
from minires.ops.batch_norm.cases import cases
from minires.ops.batch_norm.onnx import write
from minires.ops.forms import AllBut, Formula
from minires.ops.mixed_precision import mixed
from minires.ops.registry import Words, operation
from minires.ops.relu import relu as relu_tensor
from minires.tensor import Tensor, is_fused, record

# What the two conventions mean by momentum, their usual values, and whether the running variance is the
# biased one (over M, as in the formula above) or the unbiased one (over M - 1).
CONVENTIONS = {
    "keras": {"momentum": 0.99, "eps": 1e-3},  # momentum is the share of the old value that is kept; biased
    "torch": {"momentum": 0.1, "eps": 1e-5},  # momentum is the share that is replaced; unbiased
}

# ------------------------------------------------------------------------------ reference implementation


def _statistics(xp: Any, x: Array) -> tuple[Array, Array]:
    """Mean and biased variance of each channel of x (M, C), as (C,) each."""
    mean = backend.mean(x, 0)
    centred = x - mean  # a little of a large mean, as much as it was rounded, is left in it
    return mean, backend.mean(xp.square(centred - backend.mean(centred, 0)), 0)


def _inv(xp: Any, var: Array, eps: float) -> Array:
    return (1 / xp.sqrt(var + var.dtype.type(eps))).astype(var.dtype)


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
            running *= 1 - replaced
            running += replaced * new  # all of it where all is replaced, however small it is


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
    dgamma, dbeta = backend.total(g * xhat, 0), backend.total(g, 0)
    dx = g - (dbeta + xhat * dgamma) / len(x) if training else g
    return gamma * inv * dx, dgamma, dbeta, g


# ----------------------------------------------------------------------------------------------- public


@operation(
    english=Words(
        "Batch norm",
        "Each channel is shifted and scaled {training?to mean 0 and variance 1 over this batch|by its "
        "running mean and variance, which training has left}, then scaled by gamma and moved by beta, which "
        "are learned.{add? The shortcut is added.}{relu? Then negative numbers become zero.}",
        "{training?The gradient is scaled by gamma over the standard deviation. Moving one value also moves "
        "mean and variance of the batch, so two more terms appear|Mean and variance are constants here, so "
        "the gradient is only scaled, by gamma over the standard deviation}.{add? That of the shortcut is "
        "not scaled.}{relu? Behind the ReLU it passes only where the output is above zero.}",
    ),
    chinese=Words(
        "批归一化",
        "{training?把每个通道平移、缩放到本批次上均值 0、方差 1"
        "|用训练留下的滑动均值和方差平移、缩放每个通道}，"
        "再乘以可学习的 gamma，加上可学习的 beta。{add?然后加上捷径。}{relu?最后负数变为零。}",
        "{training?梯度乘以 gamma 再除以标准差。改变一个值也会改变批次的均值和方差，因此多出两项"
        "|这里均值和方差是常数，梯度只是乘以 gamma 再除以标准差}。"
        "{add?捷径的梯度不缩放。}{relu?在 ReLU 之后，只有输出大于零处梯度通过。}",
    ),
    arithmetic=Formula(
        """
        mean = mean(x, batch) if training else running_mean
        var = mean((x - mean) ** 2, batch) if training else running_var
        inv = 1 / sqrt(var + eps)
        xhat = (x - mean) * inv
        y = max(gamma * xhat + beta + add, 0) if relu else gamma * xhat + beta + add
        g = dy * (y > 0) if relu else dy
        dadd = g
        dbeta = sum(g, batch)
        dgamma = sum(g * xhat, batch)
        slope = (dbeta + xhat * dgamma) / count(batch)
        dx = gamma * inv * (g - slope) if training else gamma * inv * g
        """,
        axes={"batch": AllBut(-1)},
        optional=["add", "relu", "running_mean", "running_var"],
    ),
    moves=["running_mean", "running_var"],
    label="batch norm{shortcut}{relu}",
    short="BN",
    role="small",
    onnx=write,
    cases=cases,
)
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

    training: take the statistics of the batch, and move the running ones towards them, in place, where they
        are given; in inference the running ones are used, and not changed.
    momentum: the share of the running statistics that is kept (Keras) or replaced (PyTorch).
    eps: is added to the variance, so that nothing is divided by zero.
    convention: "keras" or "torch". It says what ``momentum`` means, what it and ``eps`` are if left out, and
        which variance is kept: see CONVENTIONS.
    add, relu: y = y + add, then y = max(y, 0), in the same pass. Under ``minires.unfused()`` they are nodes
        of their own on the tape.

    Under ``minires.modes.synchronised(ranks)`` a batch in training is that of all ranks of a run together.

    Rounding: all sums over the batch are kept in float64; mean, variance, dgamma and dbeta are right to 1e-6
    of the sums of absolute values in float32, of any batch.
    Shapes: x (..., C), any axes before the channels; gamma, beta, running_mean, running_var (C,); add and y
    as x.
    Raises: ShapeError if shapes or dtypes do not fit, if inference has no running statistics, or if training
    has a single value per channel (its variance says nothing).
    Source: arXiv:1502.03167.

    >>> x, gamma, beta = Tensor([[1.0], [3.0]]), Tensor([1.0]), Tensor([5.0])
    >>> batch_norm(x, gamma, beta, training=True, eps=0.0).numpy().tolist()
    [[4.0], [6.0]]
    """
    x, gamma, beta = checks.as_tensor(x), checks.as_tensor(gamma), checks.as_tensor(beta)
    add = None if add is None else checks.as_tensor(add)
    if not isinstance(convention, str) or convention not in CONVENTIONS:
        raise ShapeError(f"batch_norm: convention must be 'keras' or 'torch', not {convention!r}")
    training = checks.truth("batch_norm", "training", training)
    relu = checks.truth("batch_norm", "relu", relu)
    ranks = across() if training else None
    arguments.check(
        x, gamma, beta, add, training=training, running_mean=running_mean, running_var=running_var,
        alone=ranks is None,
    )  # fmt: skip
    momentum = CONVENTIONS[convention]["momentum"] if momentum is None else momentum
    eps = CONVENTIONS[convention]["eps"] if eps is None else eps
    momentum, eps = arguments.momentum(momentum), arguments.eps(eps)
    if not is_fused() and (add is not None or relu):
        y = batch_norm(
            x, gamma, beta, training=training, running_mean=running_mean, running_var=running_var,
            momentum=momentum, eps=eps, convention=convention,
        )  # fmt: skip
        y = y if add is None else add_tensors(y, add)
        return relu_tensor(y) if relu else y

    xp = backend.array_module(x.data)
    rows = arguments.rows(xp, x.data)  # (..., C) -> (M, C)
    add_rows = None if add is None else xp.ascontiguousarray(add.data).reshape(rows.shape)
    count = len(rows)
    if ranks:
        mean, var = _local_statistics(xp, rows)
        mean, var, count = over_ranks.statistics(ranks, mean, var, count, running_mean)
        arguments.several(x, count)
        _update(mean, var, running_mean, running_var, *_move(convention, momentum, count))
        inv = _inv(xp, var, eps)
    elif training:
        moved = _move(convention, momentum, count)
        mean, inv = _of_batch(xp, rows, running_mean, running_var, *moved, eps)
    else:
        mean, inv = _of_running(xp, rows, gamma.dtype, running_mean, running_var, eps)
    y_rows = _normalized(xp, rows, gamma.data, beta.data, mean, inv, add_rows, relu)
    weights, bias, added = gamma.data, beta.data, add is not None
    needs_add = add is not None and add.requires_grad

    def backward(dy: Array) -> tuple[Array | None, ...]:
        dy = xp.ascontiguousarray(dy).reshape(rows.shape)
        run = (dy, rows, y_rows, weights, bias, mean, inv, relu, training, added, needs_add)
        if _is_cuda(dy) and not ranks:
            dx, dgamma, dbeta, g = cuda_kernels.backward(xp, *run)
        elif _is_fast(dy):
            dx, dgamma, dbeta, g = numba_kernels.backward(*run, ranks, count)
        else:
            alone = training and not ranks
            dx, dgamma, dbeta, g = _backward(dy, rows, y_rows, weights, mean, inv, relu, alone)
            if ranks:
                dx -= over_ranks.slope(ranks, count, rows, weights, mean, inv, dgamma, dbeta)
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


# ------------------------------------------------------------------------------------------- the choice
# Where there is no value or no channel there is no work for a kernel.


def _is_cuda(x: Array) -> bool:
    return x.size > 0 and cuda.usable(x)


def _is_fast(x: Array) -> bool:
    return x.size > 0 and backend.fast(x)


def _of_batch(
    xp: Any,
    x: Array,
    running_mean: Array | None,
    running_var: Array | None,
    replaced: float,
    correction: float,
    eps: float,
) -> tuple[Array, Array]:
    """mean and inv of the batch x (M, C), after which the running statistics are moved."""
    if _is_cuda(x):
        return cuda_kernels.statistics(xp, x, running_mean, running_var, replaced, correction, eps)
    mean, var = _local_statistics(xp, x)
    _update(mean, var, running_mean, running_var, replaced, correction)
    return mean, _inv(xp, var, eps)


def _local_statistics(xp: Any, x: Array) -> tuple[Array, Array]:
    return numba_kernels.statistics(x) if _is_fast(x) else _statistics(xp, x)


def _of_running(
    xp: Any, x: Array, dtype: Any, running_mean: Array, running_var: Array, eps: float
) -> tuple[Array, Array]:
    """mean and inv for inference, as copies: what is moved in place later must not change this backward."""
    if _is_cuda(x):
        return cuda_kernels.constants(xp, dtype, running_mean, running_var, eps)
    mean, var = (xp.array(running, x.dtype) for running in (running_mean, running_var))
    return mean, _inv(xp, var, eps)


def _normalized(xp: Any, x: Array, *given: Any) -> Array:
    if _is_cuda(x):
        return cuda_kernels.forward(xp, x, *given)
    return numba_kernels.forward(x, *given) if _is_fast(x) else _forward(xp, x, *given)

"""What batch_norm asks of its arguments, and the matrix that it makes of x."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minires import backend, errors
from minires.backend import Array
from minires.errors import ShapeError
from minires.ops import checks
from minires.tensor import Tensor


def check(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    add: Tensor | None,
    *,
    training: bool,
    running_mean: Array | None,
    running_var: Array | None,
    alone: bool = True,
) -> None:
    """Raises: ShapeError for what does not fit."""
    if x.ndim < 2:
        raise ShapeError(
            f"batch_norm: x must have a batch axis and channels last, but its shape is {x.shape}"
        )
    checks.same_floats("batch_norm", parameters=("gamma", "beta"), x=x, gamma=gamma, beta=beta)
    channels = x.shape[-1]
    for name, statistic in (("running_mean", running_mean), ("running_var", running_var)):
        if statistic is not None:
            _check_statistic(name, statistic, x, training)
    parts = {"gamma": gamma, "beta": beta, "running_mean": running_mean, "running_var": running_var}
    for name, part in parts.items():
        if part is not None and part.shape != (channels,):
            raise ShapeError(
                f"batch_norm: {name} has shape {part.shape}, but x {x.shape} has {channels} channels"
            )
    if training and alone:
        several(x, math.prod(x.shape[:-1]))
    if not training and (running_mean is None or running_var is None):
        raise ShapeError("batch_norm: inference needs running_mean and running_var")
    checks.same_floats("batch_norm", x=x, add=add)
    if add is not None and add.shape != x.shape:
        raise ShapeError(f"batch_norm: add has shape {add.shape}, but x has {x.shape}; they must be equal")


def several(x: Tensor, count: int) -> None:
    """Raises: ShapeError if there is but one value per channel."""
    if count < 2:
        raise ShapeError(
            f"batch_norm: training needs at least two values per channel, but x has shape {x.shape}. "
            "Use a larger batch, or eval(); where the last batch of an epoch is too small, leave it out: "
            "Loader(drop_last=True)"
        )


def _check_statistic(name: str, statistic: Any, x: Tensor, training: bool) -> None:
    if not isinstance(statistic, np.ndarray) and not backend.is_cupy(statistic):
        raise ShapeError(f"batch_norm: {name} must be an array, not a {type(statistic).__name__}")
    if statistic.dtype not in checks.FLOATS or backend.device_of(statistic) != x.device:
        raise ShapeError(
            f"batch_norm: {name} is {statistic.dtype} on {backend.device_of(statistic)}, but beside x, "
            f"{x.dtype} on {x.device}, it must be float32 or float64 there, too"
        )
    if training and not backend.is_writable(statistic):
        raise ShapeError(f"batch_norm: {name} is read-only, but training changes it; give a copy")


def momentum(value: Any) -> float:
    """Raises: ConfigError unless it is a number from 0 to 1."""
    return errors.number("batch_norm: momentum", value, least=0, most=1)


def eps(value: Any) -> float:
    """Raises: ConfigError unless it is a finite number of at least 0."""
    return errors.number("batch_norm: eps", value, least=0)


def rows(xp: Any, x: Array) -> Array:
    """x (..., C) as (M, C): a view where its numbers lie in order, also with gaps between the rows, as in the
    first channels of a wider array; else a copy."""
    matrix = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    to_next_row, to_next = matrix.strides
    in_order = to_next == x.itemsize and to_next_row % to_next == 0 and to_next_row >= x.shape[-1] * to_next
    return matrix if in_order else xp.ascontiguousarray(matrix)

"""Operations on tensors, one per file: ``minires.ops.conv2d.conv2d``, ``minires.ops.relu.relu``, ...

The table below gives :class:`~minires.tensor.Tensor` its operators and methods.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minires.ops import (
    arithmetic,
    avg_pool2d,
    batch_norm,
    concat,
    conv2d,
    cross_entropy,
    dense_buffer,
    dropout,
    linear,
    local_response_norm,
    matmul,
    max_pool2d,
    mixed_precision,
    pad,
    pad_channels,
    reduce,
    relu,
    reshape,
    sigmoid,
    softmax,
)
from minires.tensor import Tensor

__all__ = [
    "arithmetic",
    "avg_pool2d",
    "batch_norm",
    "concat",
    "conv2d",
    "cross_entropy",
    "dense_buffer",
    "dropout",
    "linear",
    "local_response_norm",
    "matmul",
    "max_pool2d",
    "pad",
    "pad_channels",
    "reduce",
    "relu",
    "reshape",
    "sigmoid",
    "softmax",
]


def _reflected(operation: Callable[[Any, Any], Tensor]) -> Callable[[Any, Any], Tensor]:
    """The operation as Python asks the right operand for it: ``2 - x`` calls ``x.__rsub__(2)``."""
    return lambda self, other: operation(other, self)


def _sequence(values: tuple[Any, ...]) -> tuple[int, ...]:
    """``(2, 3)`` from both ``f(2, 3)`` and ``f((2, 3))``."""
    return tuple(values[0]) if len(values) == 1 and isinstance(values[0], tuple | list) else values


def _reshape(self: Tensor, *shape: Any) -> Tensor:
    return reshape.reshape(self, _sequence(shape))


def _transpose(self: Tensor, *axes: Any) -> Tensor:
    return reshape.transpose(self, _sequence(axes) if axes else None)


_METHODS: dict[str, Callable[..., Tensor]] = {
    "__add__": arithmetic.add,
    "__radd__": _reflected(arithmetic.add),
    "__sub__": arithmetic.sub,
    "__rsub__": _reflected(arithmetic.sub),
    "__mul__": arithmetic.mul,
    "__rmul__": _reflected(arithmetic.mul),
    "__truediv__": arithmetic.div,
    "__rtruediv__": _reflected(arithmetic.div),
    "__pow__": arithmetic.pow,
    "__neg__": arithmetic.neg,
    "__matmul__": matmul.matmul,
    "__rmatmul__": _reflected(matmul.matmul),
    "__getitem__": reshape.getitem,
    "sum": reduce.sum,
    "mean": reduce.mean,
    "max": reduce.max,
    "exp": arithmetic.exp,
    "log": arithmetic.log,
    "sqrt": arithmetic.sqrt,
    "astype": mixed_precision.astype,
    "reshape": _reshape,
    "transpose": _transpose,
}

for _name, _method in _METHODS.items():
    setattr(Tensor, _name, _method)

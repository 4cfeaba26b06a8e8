"""Operations on tensors: ``ops.conv2d(x, w)``, ``ops.relu(x)``, ``ops.add(a, b)``, ...

Each lives in a file of its own, small relatives in one. The file of an operation is called like it: see
:mod:`minires.ops.callable_module`. The table below gives :class:`~minires.tensor.Tensor` its operators and
methods.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minires.ops.arithmetic import add as add
from minires.ops.arithmetic import div as div
from minires.ops.arithmetic import exp as exp
from minires.ops.arithmetic import log as log
from minires.ops.arithmetic import mul as mul
from minires.ops.arithmetic import neg as neg
from minires.ops.arithmetic import pow as pow
from minires.ops.arithmetic import sqrt as sqrt
from minires.ops.arithmetic import sub as sub
from minires.ops.avg_pool2d import avg_pool2d as avg_pool2d
from minires.ops.avg_pool2d import global_avg_pool2d as global_avg_pool2d
from minires.ops.batch_norm import batch_norm as batch_norm
from minires.ops.callable_module import put_in_place
from minires.ops.compare import COMPARISONS
from minires.ops.compare import all as all
from minires.ops.compare import any as any
from minires.ops.compare import argmax as argmax
from minires.ops.compare import argmin as argmin
from minires.ops.concat import concat as concat
from minires.ops.conv2d import conv2d as conv2d
from minires.ops.conv_transpose2d import conv_transpose2d as conv_transpose2d
from minires.ops.cross_entropy import cross_entropy as cross_entropy
from minires.ops.dense_buffer import DenseBuffer as DenseBuffer
from minires.ops.dropout import dropout as dropout
from minires.ops.in_place import augmented, set_item
from minires.ops.leaky_relu import leaky_relu as leaky_relu
from minires.ops.linear import linear as linear
from minires.ops.local_response_norm import local_response_norm as local_response_norm
from minires.ops.matmul import matmul as matmul
from minires.ops.max_pool2d import max_pool2d as max_pool2d
from minires.ops.mixed_precision import astype as astype
from minires.ops.nll_loss import nll_loss as nll_loss
from minires.ops.numpy_functions import array_function, array_ufunc
from minires.ops.pad import pad as pad
from minires.ops.pad_channels import pad_channels as pad_channels
from minires.ops.piecewise import abs as abs
from minires.ops.piecewise import clip as clip
from minires.ops.piecewise import maximum as maximum
from minires.ops.piecewise import minimum as minimum
from minires.ops.piecewise import where as where
from minires.ops.reduce import max as max
from minires.ops.reduce import mean as mean
from minires.ops.reduce import min as min
from minires.ops.reduce import sum as sum
from minires.ops.relu import relu as relu
from minires.ops.repeat import broadcast_to as broadcast_to
from minires.ops.repeat import repeat as repeat
from minires.ops.repeat import tile as tile
from minires.ops.reshape import expand_dims as expand_dims
from minires.ops.reshape import flatten as flatten
from minires.ops.reshape import getitem as getitem
from minires.ops.reshape import reshape as reshape
from minires.ops.reshape import squeeze as squeeze
from minires.ops.reshape import transpose as transpose
from minires.ops.sigmoid import sigmoid as sigmoid
from minires.ops.softmax import log_softmax as log_softmax
from minires.ops.softmax import softmax as softmax
from minires.ops.stack import split as split
from minires.ops.stack import stack as stack
from minires.ops.tanh import tanh as tanh
from minires.ops.to import to as to
from minires.ops.variance import std as std
from minires.ops.variance import var as var
from minires.tensor import Tensor


def _reflected(operation: Callable[[Any, Any], Tensor]) -> Callable[[Any, Any], Tensor]:
    """The operation as Python asks the right operand for it: ``2 - x`` calls ``x.__rsub__(2)``."""
    return lambda self, other: operation(other, self)


def _sequence(values: tuple[Any, ...]) -> tuple[int, ...]:
    """``(2, 3)`` from both ``f(2, 3)`` and ``f((2, 3))``."""
    return tuple(values[0]) if len(values) == 1 and isinstance(values[0], tuple | list) else values


def _reshape(self: Tensor, *shape: Any) -> Tensor:
    return reshape(self, _sequence(shape))


def _transpose(self: Tensor, *axes: Any) -> Tensor:
    return transpose(self, _sequence(axes) if axes else None)


def _reversed(self: Tensor) -> Tensor:
    """The tensor with its axes in reverse order; of a matrix its transpose."""
    return transpose(self)


def _broadcast_to(self: Tensor, *shape: Any) -> Tensor:
    return broadcast_to(self, _sequence(shape))


_METHODS: dict[str, Any] = {
    "__add__": add,
    "__radd__": _reflected(add),
    "__iadd__": augmented("+", add),
    "__sub__": sub,
    "__rsub__": _reflected(sub),
    "__isub__": augmented("-", sub),
    "__mul__": mul,
    "__rmul__": _reflected(mul),
    "__imul__": augmented("*", mul),
    "__truediv__": div,
    "__rtruediv__": _reflected(div),
    "__itruediv__": augmented("/", div),
    "__pow__": pow,
    "__rpow__": _reflected(pow),
    "__ipow__": augmented("**", pow),
    "__neg__": neg,
    "__pos__": lambda x: x,
    "__abs__": abs,
    "__matmul__": matmul,
    "__rmatmul__": _reflected(matmul),
    "__imatmul__": augmented("@", matmul),
    "__lt__": COMPARISONS["less"],
    "__le__": COMPARISONS["less_equal"],
    "__gt__": COMPARISONS["greater"],
    "__ge__": COMPARISONS["greater_equal"],
    "__eq__": COMPARISONS["equal"],
    "__ne__": COMPARISONS["not_equal"],
    "__getitem__": getitem,
    "__setitem__": set_item,
    "__array_ufunc__": array_ufunc,
    "__array_function__": array_function,
    "sum": sum,
    "mean": mean,
    "max": max,
    "min": min,
    "var": var,
    "std": std,
    "argmax": argmax,
    "argmin": argmin,
    "any": any,
    "all": all,
    "abs": abs,
    "exp": exp,
    "log": log,
    "sqrt": sqrt,
    "tanh": tanh,
    "sigmoid": sigmoid,
    "relu": relu,
    "softmax": softmax,
    "log_softmax": log_softmax,
    "clip": clip,
    "astype": astype,
    "to": to,
    "reshape": _reshape,
    "flatten": flatten,
    "squeeze": squeeze,
    "expand_dims": expand_dims,
    "broadcast_to": _broadcast_to,
    "repeat": repeat,
    "transpose": _transpose,
    "split": split,
    "T": property(_reversed),
}

for _name, _method in _METHODS.items():
    setattr(Tensor, _name, _method)

put_in_place(globals())

"""NumPy's functions on tensors: ``np.exp(x)``, ``np.add(array, x)``, ``np.sum(x)``, ``np.stack([x, y])``.

NumPy asks an argument that is no array of its own what it has to say (NEP 13 for functions that work element
by element, and so for the operators of arrays; NEP 18 for the others). A tensor has one of three answers:

    an operation    Where minires has one that means the same, it is done, and the gradient goes on.
    a question      What has no gradient (np.isnan, np.argsort, np.allclose, np.shape, np.save, ...) is asked
                    of the numbers alone, and NumPy's own answer is given.
    a refusal       Anything else would give numbers that no gradient flows through, and nobody would notice.
                    The error names what to write instead.

>>> import numpy as np
>>> x = Tensor([0.0, 1.0], requires_grad=True)
>>> np.sum(np.exp(x) * np.ones(2, np.float32)).backward()
>>> [round(number, 4) for number in x.grad.tolist()]
[1.0, 2.7183]
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from minires.errors import MiniresError, as_number
from minires.ops import arithmetic, compare, piecewise, reduce
from minires.ops.compare import values
from minires.ops.concat import concat
from minires.ops.matmul import matmul
from minires.ops.repeat import broadcast_to, repeat, tile
from minires.ops.reshape import expand_dims, reshape, squeeze, transpose
from minires.ops.stack import split, stack
from minires.ops.tanh import tanh
from minires.ops.variance import std, var
from minires.tensor import Tensor

# ------------------------------------------------------------------------------------ element by element

_UFUNCS: dict[np.ufunc, Callable[..., Any]] = {
    np.add: arithmetic.add,
    np.subtract: arithmetic.sub,
    np.multiply: arithmetic.mul,
    np.true_divide: arithmetic.div,
    np.power: arithmetic.pow,
    np.negative: arithmetic.neg,
    np.positive: lambda x: x,
    np.square: lambda x: arithmetic.pow(x, 2),
    np.reciprocal: lambda x: arithmetic.div(1, x),
    np.exp: arithmetic.exp,
    np.log: arithmetic.log,
    np.sqrt: arithmetic.sqrt,
    np.tanh: tanh,
    np.absolute: piecewise.abs,
    np.fabs: piecewise.abs,
    np.maximum: piecewise.maximum,
    np.minimum: piecewise.minimum,
    np.matmul: matmul,
    **{getattr(np, name): answer for name, answer in compare.COMPARISONS.items()},
}
# Where they have a slope, it is zero: no gradient is lost.
_UFUNC_QUESTIONS = {
    np.isnan, np.isfinite, np.isinf, np.signbit, np.sign, np.floor, np.ceil, np.trunc, np.rint,
    np.logical_not, np.logical_and, np.logical_or, np.logical_xor,
}  # fmt: skip


def array_ufunc(self: Tensor, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
    """What ``ufunc(*inputs)`` gives of a tensor; NumPy calls this as ``__array_ufunc__``."""
    name = ufunc.__name__ if method == "__call__" else f"{ufunc.__name__}.{method}"
    if "out" in options:
        raise MiniresError(
            f"numpy.{name}: no tape follows numbers that are written into an array (out=, array += tensor). "
            "Write array + tensor for a new tensor; array += tensor.numpy() for the numbers alone"
        )
    known = ufunc in _UFUNCS or ufunc in _UFUNC_QUESTIONS
    if method != "__call__" or not known:
        raise _refusal(name)
    if options:
        raise MiniresError(f"numpy.{name} of a tensor takes no {', '.join(f'{one}=' for one in options)}")
    if ufunc in _UFUNCS:
        return _UFUNCS[ufunc](*inputs)
    numbers = [values(x) for x in inputs]
    return NotImplemented if any(x is None for x in numbers) else ufunc(*numbers)


# ------------------------------------------------------------------------------------------- all others
# Each takes the arguments of NumPy's function that have a meaning here.


def _concatenate(arrays: Sequence[Any], axis: int | None = 0) -> Tensor:
    parts = [reshape(x, -1) for x in arrays] if axis is None else arrays
    return concat(parts, axis=0 if axis is None else axis)


def _stack(arrays: Sequence[Any], axis: int = 0) -> Tensor:
    return stack(arrays, axis=axis)


def _split(x: Any, parts: Any, axis: int = 0) -> list[Tensor]:
    return split(x, parts, axis=axis)


def _clip(x: Any, a_min: Any = None, a_max: Any = None, *, min: Any = None, max: Any = None) -> Tensor:
    low, high = (a_min if min is None else min), (a_max if max is None else max)
    if (low is None or as_number(low) is not None) and (high is None or as_number(high) is not None):
        return piecewise.clip(x, low, high)
    x = x if low is None else piecewise.maximum(x, low)
    return x if high is None else piecewise.minimum(x, high)


def _var(x: Any, axis: Any = None, *, ddof: float = 0, keepdims: bool = False) -> Tensor:
    return var(x, axis, keepdims=keepdims, correction=ddof)


def _std(x: Any, axis: Any = None, *, ddof: float = 0, keepdims: bool = False) -> Tensor:
    return std(x, axis, keepdims=keepdims, correction=ddof)


def _dot(a: Any, b: Any) -> Tensor:
    if np.ndim(a) == 0 or np.ndim(b) == 0:
        return arithmetic.mul(a, b)
    if np.ndim(b) > 2:
        raise _refusal("dot")  # it pairs every matrix of a with every one of b, unlike @
    return matmul(a, b)


def _repeat(x: Any, repeats: int, axis: int | None = None) -> Tensor:
    return repeat(reshape(x, -1), repeats, 0) if axis is None else repeat(x, repeats, axis)


def _ravel(x: Any) -> Tensor:
    return reshape(x, -1)


def _swapaxes(x: Tensor, axis1: int, axis2: int) -> Tensor:
    order = list(range(x.ndim))
    order[axis1], order[axis2] = order[axis2], order[axis1]
    return transpose(x, tuple(order))


def _broadcast_arrays(*arrays: Any) -> tuple[Any, ...]:
    shape = np.broadcast_shapes(*(np.shape(x) for x in arrays))
    return tuple((broadcast_to if isinstance(x, Tensor) else np.broadcast_to)(x, shape) for x in arrays)


def _where(condition: Any, *choices: Any) -> Any:
    return piecewise.where(condition, *choices) if choices else np.where(values(condition))


_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    np.sum: reduce.sum,
    np.mean: reduce.mean,
    np.max: reduce.max,
    np.amax: reduce.max,
    np.min: reduce.min,
    np.amin: reduce.min,
    np.var: _var,
    np.std: _std,
    np.argmax: compare.argmax,
    np.argmin: compare.argmin,
    np.any: compare.any,
    np.all: compare.all,
    np.clip: _clip,
    np.where: _where,
    np.dot: _dot,
    np.reshape: reshape,
    np.ravel: _ravel,
    np.transpose: transpose,
    np.swapaxes: _swapaxes,
    np.squeeze: squeeze,
    np.expand_dims: expand_dims,
    np.broadcast_to: broadcast_to,
    np.broadcast_arrays: _broadcast_arrays,
    np.tile: tile,
    np.repeat: _repeat,
    np.concatenate: _concatenate,
    np.stack: _stack,
    np.split: _split,
}
_QUESTIONS = {
    np.shape, np.ndim, np.size, np.iscomplexobj, np.isrealobj, np.result_type, np.can_cast,
    np.array_equal, np.array_equiv, np.allclose, np.isclose, np.isin,
    np.argsort, np.argpartition, np.nonzero, np.flatnonzero, np.argwhere, np.count_nonzero, np.searchsorted,
    np.digitize, np.histogram, np.bincount, np.round, np.around,
    np.zeros_like, np.ones_like, np.empty_like, np.full_like, np.copyto,
    np.array_repr, np.array_str, np.array2string, np.save, np.savez, np.savez_compressed, np.savetxt,
    np.may_share_memory, np.shares_memory,
}  # fmt: skip


def array_function(
    self: Tensor, function: Any, types: Any, inputs: Sequence[Any], options: Mapping[str, Any]
) -> Any:
    """What a function of NumPy gives of a tensor; NumPy calls this as ``__array_function__``."""
    name = f"{function.__module__}.{function.__name__}".removeprefix("numpy.")
    if function in _QUESTIONS:
        return function(*_numbers(inputs), **_numbers(options))
    if function not in _FUNCTIONS:
        raise _refusal(name)
    ours = _FUNCTIONS[function]
    taken = inspect.signature(ours)
    options = {one: x for one, x in options.items() if x is not None or one in taken.parameters}
    try:
        taken.bind(*inputs, **options)
    except TypeError as error:
        known = ", ".join(taken.parameters)
        raise MiniresError(f"numpy.{name} of a tensor: {error}; those it can take are {known}") from None
    return ours(*inputs, **options)


def _numbers(given: Any) -> Any:
    """The same arguments with the numbers of tensors in place of the tensors."""
    if isinstance(given, Tensor):
        return values(given)
    if isinstance(given, list | tuple):
        return type(given)(_numbers(one) for one in given)
    return {name: _numbers(one) for name, one in given.items()} if isinstance(given, dict) else given


# --------------------------------------------------------------------------------------------- refusals

# Only what gives NumPy's own numbers on every shape that both take.
_INSTEAD = {
    "add.reduce": "x.sum(axis)", "maximum.reduce": "x.max(axis)", "minimum.reduce": "x.min(axis)",
    "cumsum": "x @ np.triu(np.ones((n, n), x.dtype))", "multiply.outer": "a[:, None] * b",
    "outer": "a[:, None] * b",
    "log1p": "np.log(1 + x)", "log2": "np.log(x) / math.log(2)", "log10": "np.log(x) / math.log(10)",
    "expm1": "np.exp(x) - 1", "exp2": "2 ** x", "hypot": "np.sqrt(a * a + b * b)", "float_power": "a ** b",
    "linalg.norm": "np.sqrt((x * x).sum(axis))", "linalg.vector_norm": "np.sqrt((x * x).sum(axis))",
    "linalg.matmul": "a @ b", "dot": "a @ b", "ptp": "x.max(axis) - x.min(axis)",
    "average": "(x * weights).sum(axis) / weights.sum()", "diff": "x[..., 1:] - x[..., :-1]",
    "flipud": "x[::-1]", "fliplr": "x[:, ::-1]", "copy": "x + 0", "moveaxis": "x.transpose(axes)",
    "rollaxis": "x.transpose(axes)", "pad": "minires.ops.pad(x, padding) for pictures (N, H, W, C)",
    "nan_to_num": "np.where(np.isnan(x), 0, x)",
}  # fmt: skip


def _refusal(name: str) -> MiniresError:
    instead = _INSTEAD.get(name)
    return MiniresError(
        f"numpy.{name} is no operation of minires: no gradient would flow through its result. "
        + (f"Write {instead} instead" if instead else "Write it with the operations of minires.ops")
        + f", or numpy.{name} of x.numpy() for the numbers alone"
    )

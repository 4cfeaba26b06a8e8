"""Questions about the numbers of a tensor: which are less, equal, the largest; are any not zero, are all.

The answers are arrays of truth values or of whole numbers, on the device of the tensor. They are no tensors:
a small change of the numbers does not change an answer, so nothing flows back through it. They are made to
be looked at, to choose with (:func:`~minires.ops.piecewise.where`) and to index with:

>>> from minires import Tensor
>>> x = Tensor([3.0, -1.0, 2.0])
>>> (x > 0).tolist()
[True, False, True]
>>> x[x > 0].tolist()
[3.0, 2.0]
"""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import Any

import numpy as np

from minires import backend
from minires.backend import Array
from minires.errors import ShapeError
from minires.ops import checks
from minires.tensor import Tensor, array_of


def values(x: Any) -> Any:
    """The numbers of what can be compared with a tensor; None if it has none.

    bfloat16 becomes float32, which changes no number: neither NumPy nor CuPy has all functions of bfloat16.
    """
    if isinstance(x, Tensor):
        x = x.data
    elif isinstance(x, list | tuple):
        x = np.asarray(x)
    if isinstance(x, numbers.Real):
        return x
    if not hasattr(x, "dtype"):
        return None
    x = x if isinstance(x, np.generic) else array_of(x)
    if backend.is_bfloat16(x.dtype):
        x = x.astype(np.float32)
    return x if x.dtype.kind in "biuf" else None


def comparison(name: str) -> Callable[[Any, Any], Any]:
    """NumPy's ``name`` of two operands, of which one is a tensor, broadcast as in NumPy: an array of bool.

    Any two dtypes can be compared. If an operand has no numbers, the answer is NotImplemented, and Python
    goes on to ask the other operand.

    Raises (the comparison): ShapeError if shapes cannot be broadcast or devices differ.
    """

    def compare(a: Any, b: Any) -> Any:
        a, b = values(a), values(b)
        if a is None or b is None:
            return NotImplemented
        # A single number in memory of the CPU goes with arrays on any device.
        a, b = (x[()] if isinstance(x, np.ndarray) and x.ndim == 0 else x for x in (a, b))
        arrays = [x for x in (a, b) if not isinstance(x, numbers.Real | np.generic)]
        devices = {backend.device_of(x) for x in arrays}
        if len(devices) > 1:
            raise ShapeError(f"{name}: the operands are on {' and '.join(sorted(devices))}; use .to()")
        try:
            np.broadcast_shapes(*(x.shape for x in arrays))
        except ValueError:
            raise ShapeError(f"{name}: shapes {a.shape} and {b.shape} cannot be broadcast") from None
        xp = backend.array_module(*arrays)
        return xp.asarray(getattr(xp, name)(a, b))

    return compare


def _ask(name: str, x: Any, axis: Any, keepdims: bool) -> Array:
    data, keepdims = values(checks.as_tensor(x)), checks.truth(name, "keepdims", keepdims)
    xp = backend.array_module(data)
    return xp.asarray(getattr(xp, name)(data, axis=axis, keepdims=keepdims))


def _place(name: str, x: Any, axis: int | None, keepdims: bool) -> Array:
    x = checks.as_tensor(x)
    if x.size == 0:
        raise ShapeError(f"{name}: there is nothing to choose from in shape {x.shape}")
    return _ask(name, x, None if axis is None else checks.one_axis(name, axis, x.ndim), keepdims)


def argmax(x: Tensor, axis: int | None = None, *, keepdims: bool = False) -> Array:
    """Where the largest number along ``axis`` is, an array of whole numbers; the first one of equal numbers.

    axis: one axis; None counts through the whole tensor as if it were one row.

    Raises: ShapeError if the axis does not exist or there is nothing to choose from.

    >>> argmax(Tensor([[1.0, 5.0, 2.0], [9.0, 0.0, 9.0]]), axis=1).tolist()
    [1, 0]
    """
    return _place("argmax", x, axis, keepdims)


def argmin(x: Tensor, axis: int | None = None, *, keepdims: bool = False) -> Array:
    """Where the smallest number along ``axis`` is; otherwise as :func:`argmax`.

    >>> argmin(Tensor([[1.0, 5.0, 2.0], [9.0, 0.0, 9.0]]), axis=1).tolist()
    [0, 1]
    """
    return _place("argmin", x, axis, keepdims)


def any(x: Tensor, axis: int | tuple[int, ...] | None = None, *, keepdims: bool = False) -> Array:
    """Whether any number along ``axis`` (an axis, several, or None for all) is not zero: an array of bool.

    Raises: ShapeError if an axis does not exist.

    >>> any(Tensor([[0.0, 5.0], [0.0, 0.0]]), axis=1).tolist()
    [True, False]
    """
    x = checks.as_tensor(x)
    return _ask("any", x, checks.axes("any", axis, x.ndim), keepdims)


def all(x: Tensor, axis: int | tuple[int, ...] | None = None, *, keepdims: bool = False) -> Array:
    """Whether all numbers along ``axis`` (an axis, several, or None for all) are not zero: an array of bool.

    Raises: ShapeError if an axis does not exist.

    >>> all(Tensor([[0.0, 5.0], [1.0, 1.0]]), axis=1).tolist()
    [False, True]
    """
    x = checks.as_tensor(x)
    return _ask("all", x, checks.axes("all", axis, x.ndim), keepdims)


COMPARISONS = {
    name: comparison(name)
    for name in ("less", "less_equal", "greater", "greater_equal", "equal", "not_equal")
}

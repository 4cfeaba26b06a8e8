"""Sum, mean, maximum and minimum over some axes, or over all.

    y = sum of x          dx = dy, at every place that was summed
    y = mean of x         dx = dy / count
    y = max of x          dx = dy / ties at the places that are the maximum, else 0
    y = min of x          dx = dy / ties at the places that are the minimum, else 0

Ties share the gradient evenly, as in torch.amax: of all the subgradients the one that does
not depend on the order of the elements. (Max pooling gives it all to the first, as every framework does.)

Sums and means are added up in float64 and rounded once (see minires.backend.sums): of numbers of one sign
they are right to 1e-7 in float32, however many there are and whatever the axis.

Shapes: x any; y without the axes reduced, or with 1 in their place if ``keepdims``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from minires import backend
from minires.backend import Array
from minires.errors import ShapeError
from minires.ops import checks
from minires.ops.forms import Formula
from minires.ops.mixed_precision import mixed
from minires.ops.onnx_graph import reduction
from minires.ops.registry import Case, Make, Shape, Words, apart, normal, operation
from minires.tensor import Tensor, record

Axis = int | tuple[int, ...] | None


def spread(xp: Any, dy: Array, shape: tuple[int, ...], axes: tuple[int, ...]) -> Array:
    """The adjoint of a sum: the gradient of the sum at every place of ``shape`` (a view)."""
    kept = tuple(1 if axis in axes else size for axis, size in enumerate(shape))
    return xp.broadcast_to(dy.reshape(kept), shape)


def _cases(make: Callable[[Shape], Make]) -> Callable[[], Iterator[Case]]:
    def cases() -> Iterator[Case]:
        for axis in (None, 0, -1, (0, 2), (1,), ()):
            for keepdims in (False, True):
                name = f"axis={axis}{', keepdims' if keepdims else ''}"
                yield Case(name, {"x": make((2, 3, 2))}, {"axis": axis, "keepdims": keepdims})
        yield Case("single value", {"x": make(())})

    return cases


@operation(
    arithmetic=Formula(
        """
        y = sum(x, axis)
        dx = dy
        """,
        axes={"axis": "axis"},
    ),
    english=Words("Sum", "Numbers are added up.", "Each gets the same gradient."),
    chinese=Words("求和", "把数相加。", "每个数得到相同的梯度。"),
    onnx=partial(reduction, kind="ReduceSum"),
    cases=_cases(normal),
)
@mixed()
def sum(x: Tensor, axis: Axis = None, *, keepdims: bool = False) -> Tensor:
    """The sum over ``axis`` (an axis, several, or None for all).

    Rounding: float32 is added up in float64 and rounded once; the result is off by at most 1e-7 of the sum of
    absolute values, of 10**8 numbers as of ten, along any axis.
    Shapes: x any; y without the axes reduced, or with 1 in their place if ``keepdims``.
    Raises: ShapeError if an axis does not exist or ``x`` is not a float.

    >>> x = Tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> sum(x).item(), sum(x, axis=0).tolist(), sum(x, axis=1, keepdims=True).tolist()
    (10.0, [4.0, 6.0], [[3.0], [7.0]])
    """
    x = checks.as_tensor(x)
    checks.same_floats("sum", x=x)
    keepdims = checks.truth("sum", "keepdims", keepdims)
    axes = checks.axes("sum", axis, x.ndim)
    xp, shape = backend.array_module(x.data), x.shape
    y = backend.total(x.data, axes, keepdims=keepdims)
    return record(
        "sum",
        y,
        inputs={"x": x},
        options={"axis": axes, "keepdims": keepdims},
        backward=lambda dy: (spread(xp, dy, shape, axes),),
    )


@operation(
    arithmetic=Formula(
        """
        y = mean(x, axis)
        dx = dy / count(axis)
        """,
        axes={"axis": "axis"},
    ),
    english=Words("Mean", "The mean of some numbers.", "Each gets an even share of the gradient."),
    chinese=Words("平均", "求平均值。", "每个数平均分得梯度。"),
    onnx=partial(reduction, kind="ReduceMean"),
    cases=_cases(normal),
)
@mixed()
def mean(x: Tensor, axis: Axis = None, *, keepdims: bool = False) -> Tensor:
    """The mean over ``axis`` (an axis, several, or None for all).

    Rounding: as of :func:`sum`; the sum itself may be too large for the dtype.
    Shapes: x any; y without the axes reduced, or with 1 in their place if ``keepdims``.
    Raises: ShapeError if an axis does not exist, there is nothing to average, or ``x`` is not a float.

    >>> mean(Tensor([[1.0, 2.0], [3.0, 4.0]]), axis=0).tolist()
    [2.0, 3.0]
    """
    x = checks.as_tensor(x)
    checks.same_floats("mean", x=x)
    keepdims = checks.truth("mean", "keepdims", keepdims)
    axes = checks.axes("mean", axis, x.ndim)
    xp, shape = backend.array_module(x.data), x.shape
    count = _count("mean", shape, axes)
    y = backend.mean(x.data, axes, keepdims=keepdims)
    return record(
        "mean",
        y,
        inputs={"x": x},
        options={"axis": axes, "keepdims": keepdims},
        backward=lambda dy: (spread(xp, dy / count, shape, axes),),
    )


@operation(
    arithmetic=Formula(
        """
        y = max(x, axis)
        dx = dy * (x == y) / sum(x == y, axis)
        """,
        axes={"axis": "axis"},
    ),
    english=Words("Maximum", "The largest of some numbers.", "The largest gets the gradient."),
    chinese=Words("最大值", "取最大的数。", "最大的数得到梯度。"),
    onnx=partial(reduction, kind="ReduceMax"),
    cases=_cases(apart),
)
@mixed()
def max(x: Tensor, axis: Axis = None, *, keepdims: bool = False) -> Tensor:
    """The maximum over ``axis`` (an axis, several, or None for all); equal ones share the gradient evenly.

    Shapes: x any; y without the axes reduced, or with 1 in their place if ``keepdims``.
    Raises: ShapeError if an axis does not exist, there is nothing to choose from, or ``x`` is not a float.

    >>> x = Tensor([[3.0, 1.0], [2.0, 2.0]], requires_grad=True)
    >>> y = max(x, axis=1)
    >>> y.sum().backward()
    >>> y.tolist(), x.grad.tolist()
    ([3.0, 2.0], [[1.0, 0.0], [0.5, 0.5]])
    """
    return _extreme("max", x, axis, keepdims)


@operation(
    arithmetic=Formula(
        """
        y = min(x, axis)
        dx = dy * (x == y) / sum(x == y, axis)
        """,
        axes={"axis": "axis"},
    ),
    english=Words("Minimum", "The smallest of some numbers.", "The smallest gets the gradient."),
    chinese=Words("最小值", "取最小的数。", "最小的数得到梯度。"),
    onnx=partial(reduction, kind="ReduceMin"),
    cases=_cases(apart),
)
@mixed()
def min(x: Tensor, axis: Axis = None, *, keepdims: bool = False) -> Tensor:
    """The minimum over ``axis`` (an axis, several, or None for all); equal ones share the gradient evenly.

    Shapes: x any; y without the axes reduced, or with 1 in their place if ``keepdims``.
    Raises: ShapeError if an axis does not exist, there is nothing to choose from, or ``x`` is not a float.

    >>> min(Tensor([[3.0, 1.0], [2.0, 5.0]]), axis=1).tolist()
    [1.0, 2.0]
    """
    return _extreme("min", x, axis, keepdims)


def _extreme(op: str, x: Tensor, axis: Axis, keepdims: bool) -> Tensor:
    x = checks.as_tensor(x)
    checks.same_floats(op, x=x)
    keepdims = checks.truth(op, "keepdims", keepdims)
    axes = checks.axes(op, axis, x.ndim)
    xp, xdata = backend.array_module(x.data), x.data
    _count(op, x.shape, axes)
    y = getattr(xp, op)(xdata, axis=axes, keepdims=keepdims)

    def backward(dy: Array) -> tuple[Array]:
        there = (xdata == spread(xp, y, xdata.shape, axes)).astype(xdata.dtype)
        ties = backend.total(there, axes, keepdims=keepdims)
        return (spread(xp, dy / ties, xdata.shape, axes) * there,)

    return record(
        op,
        y,
        inputs={"x": x},
        options={"axis": axes, "keepdims": keepdims},
        saved={"x": xdata, "y": y},
        backward=backward,
    )


def _count(op: str, shape: tuple[int, ...], axes: tuple[int, ...]) -> int:
    count = math.prod(shape[axis] for axis in axes)
    if count == 0:
        raise ShapeError(f"{op}: there is nothing to reduce in shape {shape} over axes {axes}")
    return count

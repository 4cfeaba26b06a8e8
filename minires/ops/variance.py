"""Variance and standard deviation over some axes, or over all.

    y = sum of (x - mean)^2 / (count - correction)                (var)
    dx = dy * 2 (x - mean) / (count - correction)

    y = sqrt(sum of (x - mean)^2 / (count - correction))          (std)
    dx = dy * (x - mean) / ((count - correction) y), 0 where y = 0

The mean is taken off first, so that numbers far from zero lose nothing. (That the mean depends on x changes
nothing on the way back: the sum of x - mean is 0.) Both sums are added up in float64 and rounded once (see
minires.backend.sums): in float32 the variance is right to 1e-6, and std to half of that, of any count, if the
squares are within the range of the dtype: numbers that are 1e-18 to 1e19 apart.

Shapes: x any; y without the axes reduced, or with 1 in their place if ``keepdims``.
Differs: PyTorch's correction is 1 where none is given; its gradient of std is NaN where all are equal.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import numpy as np

from minires import backend
from minires.backend import Array
from minires.errors import ConfigError, ShapeError
from minires.ops import checks
from minires.ops.forms import Formula
from minires.ops.mixed_precision import mixed
from minires.ops.onnx_graph import Graph, reduce, theirs
from minires.ops.reduce import Axis, spread
from minires.ops.registry import Case, Words, operation
from minires.tensor import Call, Tensor, record


def _centred(x: Array, axes: tuple[int, ...]) -> Array:
    """x - mean, twice: of numbers far from zero the mean itself is rounded, and a little of it is left."""
    once: Array = x - backend.mean(x, axes, keepdims=True)
    once -= backend.mean(once, axes, keepdims=True)
    return once


def _forward(x: Array, axes: tuple[int, ...], keepdims: bool, divisor: float) -> Array:
    squares = _centred(x, axes)
    squares *= squares
    return backend.total(squares, axes, keepdims=keepdims, divisor=divisor)


def _divisor(op: str, x: Tensor, axes: tuple[int, ...], correction: float) -> float:
    count = math.prod(x.shape[axis] for axis in axes)
    divisor = count - correction
    if divisor <= 0:
        raise ShapeError(
            f"{op}: {count} numbers of shape {x.shape} over axes {axes} are too few for a correction of "
            f"{correction}"
        )
    return divisor


def _cases() -> Iterator[Case]:
    axes: list[tuple[Axis, float]] = [(None, 0), (1, 0), ((0, -1), 1), (0, 0.5)]
    for axis, correction in axes:
        for keepdims in (False, True):
            name = f"axis={axis}, correction {correction}{', keepdims' if keepdims else ''}"
            options = {"axis": axis, "correction": correction, "keepdims": keepdims}
            yield Case(name, {"x": (2, 3, 2)}, options)


def _onnx(graph: Graph, call: Call, *, root: bool) -> str:
    (x,), y = call.inputs.values(), call.y
    axes, keepdims = call.options["axis"], call.options["keepdims"]
    if not axes:
        raise ConfigError(f"{call.op} over no axis cannot be written")
    value = graph.ours(x)
    centred = graph.add("Sub", value, reduce(graph, value, "ReduceMean", axes, True))
    total = reduce(graph, graph.add("Mul", centred, centred), "ReduceSum", axes, keepdims)
    divisor = _divisor(call.op, x, axes, call.options["correction"])
    result = graph.add("Div", total, graph.weight(np.array(divisor)))
    return theirs(graph, graph.add("Sqrt", result) if root else result, y)


@operation(
    arithmetic=Formula(
        """
        d = x - mean(x, axis)
        y = sum(d * d, axis) / (count(axis) - correction)
        dx = dy * 2 * d / (count(axis) - correction)
        """,
        axes={"axis": "axis"},
    ),
    english=Words(
        "Variance",
        "How far the numbers are from their mean: the mean of the squares.",
        "Each number gets a gradient that pushes it away from the mean, or towards it.",
    ),
    chinese=Words("方差", "各数与平均值之差的平方的平均。", "每个数的梯度与它和平均值之差成正比。"),
    onnx=partial(_onnx, root=False),
    cases=_cases,
)
@mixed()
def var(x: Tensor, axis: Axis = None, *, keepdims: bool = False, correction: float = 0) -> Tensor:
    """The variance over ``axis`` (an axis, several, or None for all).

    correction: what is taken off the count that the sum is divided by: 0 as in batch norm and NumPy, 1 for
        the variance of what these numbers are a sample of.

    Rounding: right to 1e-6 in float32, also where the numbers are far from zero, as far as they show it, and
    as the squares of x - mean are within the range of the dtype.
    Shapes: the axes are left out of y, or 1 in it if ``keepdims``.
    Raises: ShapeError if an axis does not exist, there are not more numbers than ``correction``, or ``x`` is
    not a float.

    >>> var(Tensor([[1.0, 3.0], [2.0, 2.0]]), axis=1).tolist()
    [1.0, 0.0]
    """
    x = checks.as_tensor(x)
    checks.same_floats("var", x=x)
    keepdims = checks.truth("var", "keepdims", keepdims)
    axes = checks.axes("var", axis, x.ndim)
    correction = checks.number("var", "correction", correction)
    divisor = _divisor("var", x, axes, correction)
    xp, data = backend.array_module(x.data), x.data

    def backward(dy: Array) -> tuple[Array]:
        return (spread(xp, dy * (2 / divisor), data.shape, axes) * _centred(data, axes),)

    return record(
        "var",
        _forward(data, axes, keepdims, divisor),
        inputs={"x": x},
        options={"axis": axes, "keepdims": keepdims, "correction": correction},
        saved={"x": data},
        backward=backward,
    )


@operation(
    arithmetic=Formula(
        """
        d = x - mean(x, axis)
        y = sqrt(sum(d * d, axis) / (count(axis) - correction))
        dx = dy * d / ((count(axis) - correction) * y) if y != 0 else 0
        """,
        axes={"axis": "axis"},
    ),
    english=Words(
        "Standard deviation",
        "How far the numbers are from their mean: the root of the variance.",
        "As that of the variance, divided by 2 y.",
    ),
    chinese=Words("标准差", "方差的平方根。", "方差的梯度除以 2 y。"),
    onnx=partial(_onnx, root=True),
    cases=_cases,
)
@mixed()
def std(x: Tensor, axis: Axis = None, *, keepdims: bool = False, correction: float = 0) -> Tensor:
    """The standard deviation over ``axis``, the root of :func:`var`, with the same arguments.

    Rounding, Shapes, Raises: as :func:`var`.

    >>> std(Tensor([[1.0, 3.0], [2.0, 2.0]]), axis=1).tolist()
    [1.0, 0.0]
    """
    x = checks.as_tensor(x)
    checks.same_floats("std", x=x)
    keepdims = checks.truth("std", "keepdims", keepdims)
    axes = checks.axes("std", axis, x.ndim)
    correction = checks.number("std", "correction", correction)
    divisor = _divisor("std", x, axes, correction)
    xp, data = backend.array_module(x.data), x.data
    y = xp.sqrt(_forward(data, axes, keepdims, divisor))

    def backward(dy: Array) -> tuple[Array]:
        share = dy / xp.where(y == 0, xp.ones((), y.dtype), y) / divisor  # times x - mean, which is 0 then
        return (spread(xp, share, data.shape, axes) * _centred(data, axes),)

    return record(
        "std",
        y,
        inputs={"x": x},
        options={"axis": axes, "keepdims": keepdims, "correction": correction},
        saved={"x": data, "y": y},
        backward=backward,
    )

"""The same numbers in another shape or order: reshape, flatten, squeeze, expand_dims, transpose, indexing.

    y = x.reshape(shape)      dx = dy.reshape(the shape of x)           (flatten, squeeze, expand_dims, too)
    y = x.transpose(axes)     dx = dy.transpose(the inverse order)
    y = x[index]              dx = zeros, plus dy at index (an element read twice gets both gradients)

Reshape, transpose and slices give views, as in NumPy: no number is copied.
Shapes: see each function. Any dtype, since nothing is computed.
"""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Iterator
from typing import Any

import numpy as np

from minires import backend
from minires.backend import Array
from minires.errors import ConfigError, ShapeError, as_whole
from minires.ops import checks
from minires.ops.forms import Moved
from minires.ops.onnx_graph import CHANNELS_FIRST, Graph, channels_first, theirs
from minires.ops.registry import Case, Words, operation
from minires.tensor import Call, Tensor, array_of, record


def _reshape_cases() -> Iterator[Case]:
    for shape in [(4, 6), (-1,), (2, 1, -1, 2)]:
        yield Case(f"{shape}", {"x": (2, 3, 4)}, {"shape": shape})
    yield Case("single value", {"x": ()}, {"shape": (1, 1)})


def _flatten_cases() -> Iterator[Case]:
    yield Case("pictures", {"x": (2, 3, 4, 2)})
    yield Case("rows of one", {"x": (3,)})


def _onnx(graph: Graph, call: Call) -> str:
    """The numbers in our order, channels last, are brought into another shape."""
    (x,), y = call.inputs.values(), call.y
    value = graph.value(x) if _of_one_place(x) else graph.ours(x)
    if y.ndim == 2 and x.shape[:1] == y.shape[:1]:
        return graph.add("Flatten", value, axis=1)
    # The first axis is what is left over: it depends on how many pictures there are.
    shape = channels_first(y.shape) if _of_one_place(y) else y.shape
    value = graph.add("Reshape", value, graph.integers("shape", (-1, *shape[1:]) if shape else ()))
    return value if _of_one_place(y) else theirs(graph, value, y)


def _of_one_place(x: Tensor) -> bool:
    """Whether a tensor is of one pixel: its numbers are in the same order, whichever that of the axes."""
    return x.ndim == 4 and x.shape[1:3] == (1, 1)


@operation(
    math="y = x in another shape",
    backward="dx = dy in the shape of x",
    arithmetic=Moved(lambda x, *, shape: x.reshape(shape)),
    english=Words("Reshape", "The same numbers in another shape.", "The gradient in the shape from before."),
    chinese=Words("变形", "同样的数，换一种形状。", "梯度恢复原来的形状。"),
    role="silent",
    onnx=_onnx,
    cases=_reshape_cases,
)
def reshape(x: Tensor, shape: int | tuple[int, ...]) -> Tensor:
    """The same numbers, in the same order, in another shape; one size may be -1: what is left over.

    Shapes: x any -> y ``shape``.
    Raises: ShapeError if the number of elements differs.

    >>> reshape(Tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), (3, -1)).tolist()
    [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
    """
    x = checks.as_tensor(x)
    try:
        y = x.data.reshape(shape)
    except (ValueError, TypeError):
        raise ShapeError(f"reshape: {x.size} numbers of shape {x.shape} do not fit in {shape}") from None
    return _reshaped("reshape", x, y)


def _reshaped(op: str, x: Tensor, y: Array, **options: Any) -> Tensor:
    before = x.shape
    return record(
        op,
        y,
        inputs={"x": x},
        options={"shape": y.shape, **options},
        backward=lambda dy: (dy.reshape(before),),
    )


@operation(
    math="y = x, each picture as a row",
    backward="dx = dy in the shape of x",
    arithmetic=Moved(lambda x, *, shape: x.reshape(shape)),
    english=Words(
        "Flatten", "The numbers of each picture in one row.", "The gradient in the shape from before."
    ),
    chinese=Words("展平", "把每张图片的数排成一行。", "梯度恢复原来的形状。"),
    role="small",
    onnx=_onnx,
    cases=_flatten_cases,
)
def flatten(x: Tensor) -> Tensor:
    """One row per picture: all axes but the first become one.

    Shapes: x (N, ...) -> y (N, the product of the others).
    Raises: ShapeError if ``x`` has no axis.
    Differs: NumPy's and PyTorch's make one row of everything; that is ``reshape(x, -1)``.

    >>> flatten(Tensor(np.zeros((2, 4, 4, 3)))).shape
    (2, 48)
    """
    x = checks.as_tensor(x)
    if x.ndim == 0:
        raise ShapeError("flatten: x is a single value; it must be (N, ...), at least one axis")
    return _reshaped("flatten", x, x.data.reshape(x.shape[0], math.prod(x.shape[1:])))


def _squeeze_cases() -> Iterator[Case]:
    for axis in (None, 1, (1, -1)):
        yield Case(f"axis={axis}", {"x": (2, 1, 3, 1)}, {"axis": axis})


@operation(
    math="y = x without axes of size 1",
    backward="dx = dy in the shape of x",
    arithmetic=Moved(lambda x, *, shape, axis: x.reshape(shape)),
    english=Words("Squeeze", "Axes of size 1 are left out.", "The gradient in the shape from before."),
    chinese=Words("去轴", "去掉长度为 1 的轴。", "梯度恢复原来的形状。"),
    role="silent",
    onnx=_onnx,
    cases=_squeeze_cases,
)
def squeeze(x: Tensor, axis: int | tuple[int, ...] | None = None) -> Tensor:
    """Leave out axes of size 1: those in ``axis`` (one or several), or all there are.

    Shapes: x (N, 1, C) -> y (N, C).
    Raises: ShapeError if an axis does not exist or is larger than 1.

    >>> squeeze(Tensor([[[1.0], [2.0]]]), axis=-1).shape
    (1, 2)
    """
    x = checks.as_tensor(x)
    chosen = checks.axes("squeeze", axis, x.ndim)
    if axis is None:
        chosen = tuple(i for i in chosen if x.shape[i] == 1)
    if any(x.shape[i] != 1 for i in chosen):
        raise ShapeError(f"squeeze: axis={axis} of shape {x.shape} is not of size 1")
    shape = tuple(size for i, size in enumerate(x.shape) if i not in chosen)
    return _reshaped("squeeze", x, x.data.reshape(shape), axis=chosen)


def _expand_dims_cases() -> Iterator[Case]:
    for axis in (0, -1, (0, -2)):
        yield Case(f"axis={axis}", {"x": (2, 3)}, {"axis": axis})


@operation(
    math="y = x with new axes of size 1",
    backward="dx = dy in the shape of x",
    arithmetic=Moved(lambda x, *, shape, axis: x.reshape(shape)),
    english=Words("New axes", "Axes of size 1 are put in.", "The gradient in the shape from before."),
    chinese=Words("增轴", "加入长度为 1 的轴。", "梯度恢复原来的形状。"),
    role="silent",
    onnx=_onnx,
    cases=_expand_dims_cases,
)
def expand_dims(x: Tensor, axis: int | tuple[int, ...]) -> Tensor:
    """Put in axes of size 1.

    axis: where they are in the result, one or several; -1 for the last.

    Shapes: x (N, C) with axis 1 -> y (N, 1, C).
    Raises: ShapeError if ``axis`` does not fit the result.

    >>> expand_dims(Tensor([1.0, 2.0]), -1).shape
    (2, 1)
    """
    x = checks.as_tensor(x)
    several = tuple(axis) if isinstance(axis, tuple | list) else (axis,)
    ndim = x.ndim + len(several)
    new, sizes = checks.axes("expand_dims", several, ndim), iter(x.shape)
    shape = tuple(1 if i in new else next(sizes) for i in range(ndim))
    return _reshaped("expand_dims", x, x.data.reshape(shape), axis=new)


def _transpose_cases() -> Iterator[Case]:
    for axes in [None, (0, 2, 1), (-1, 0, 1)]:
        yield Case(f"axes={axes}", {"x": (2, 3, 4)}, {"axes": axes})


def _transpose_onnx(graph: Graph, call: Call) -> str:
    (x,), axes = call.inputs.values(), call.options["axes"]
    if x.ndim == 4:  # both are channels first there
        axes = [CHANNELS_FIRST.index(axes[axis]) for axis in CHANNELS_FIRST]
    return graph.add("Transpose", graph.value(x), perm=axes)


@operation(
    math="y = x with its axes in another order",
    backward="dx = dy with its axes in the inverse order",
    arithmetic=Moved(lambda x, *, axes: x.transpose(axes)),
    english=Words("Transpose", "The axes in another order.", "The gradient with its axes put back."),
    chinese=Words("转置", "交换轴的次序。", "梯度的轴恢复原来次序。"),
    onnx=_transpose_onnx,
    cases=_transpose_cases,
)
def transpose(x: Tensor, axes: tuple[int, ...] | None = None) -> Tensor:
    """The axes in another order; without ``axes`` in reverse.

    Shapes: axis i of y is axis ``axes[i]`` of x.
    Raises: ShapeError if ``axes`` does not name every axis once.

    >>> transpose(Tensor(np.zeros((2, 4, 5, 3))), (0, 3, 1, 2)).shape
    (2, 3, 4, 5)
    """
    x = checks.as_tensor(x)
    is_list = isinstance(axes, tuple | list) or (isinstance(axes, np.ndarray) and axes.ndim == 1)
    if axes is not None and not is_list:
        raise ShapeError(f"transpose: axes must be whole numbers, one for each axis, not {axes!r}")
    order = tuple(reversed(range(x.ndim))) if axes is None else tuple(axes)
    if len(checks.axes("transpose", order, x.ndim)) != x.ndim:
        raise ShapeError(f"transpose: axes {order} must name each of the {x.ndim} axes of {x.shape} once")
    order = tuple(axis % x.ndim for axis in order)
    inverse = tuple(order.index(axis) for axis in range(x.ndim))
    return record(
        "transpose",
        x.data.transpose(order),
        inputs={"x": x},
        options={"axes": order},
        backward=lambda dy: (dy.transpose(inverse),),
    )


def _getitem_cases() -> Iterator[Case]:
    indices: list[tuple[str, Any]] = [
        ("number", 1), ("slices", (slice(None), slice(2, None, -2))), ("dots and new axis", (..., None, 0)),
        ("list, an element twice", [1, 0, 1]), ("pairs of lists", ([0, 1, 1, 1], [2, 0, 0, 1])),
        ("booleans", np.array([True, False])), ("list and slice", (slice(1, None), [2, 2, 0])),
    ]  # fmt: skip
    for name, index in indices:
        yield Case(name, {"x": (2, 3, 2)}, {"index": index})


_END = 2**63 - 1  # in ONNX, beyond any end


def _bounds(part: slice) -> tuple[int, int, int]:
    """Start, stop and step, for axes of any size."""
    step = 1 if part.step is None else operator.index(part.step)
    first, end = (0, _END) if step > 0 else (_END, -_END)
    start = first if part.start is None else operator.index(part.start)
    return start, end if part.stop is None else operator.index(part.stop), step


def _getitem_onnx(graph: Graph, call: Call) -> str:
    """A slice, of which axes are left out where a number was given, and new ones put in for None."""
    (x,), y, index = call.inputs.values(), call.y, list(call.options["index"])
    if not all(map(_is_plain, index)):
        raise ConfigError("of what stands in x[...], lists and arrays cannot be written, nor comparisons")
    if y.size == 0:
        raise ConfigError(f"a selection of nothing, {y.shape}, cannot be written")
    if Ellipsis in index:
        place, given = index.index(Ellipsis), sum(1 for part in index if part is not None) - 1
        index[place : place + 1] = [slice(None)] * (x.ndim - given)
    steps: dict[int, tuple[int, int, int]] = {}
    axis, left_out, new, kept = 0, [], [], 0
    for part in index:
        if part is None:
            new.append(kept)
        elif isinstance(part, slice):
            if (bounds := _bounds(part)) != (0, _END, 1):
                steps[axis] = bounds
        else:
            steps[axis] = int(part), _END if part == -1 else int(part) + 1, 1
            left_out.append(axis)
        axis += part is not None
        kept += part is None or isinstance(part, slice)
    as_it_is = x.ndim == 4 and not left_out and not new
    value = graph.value(x) if as_it_is else graph.ours(x)
    if steps:
        places = [CHANNELS_FIRST.index(axis) if as_it_is else axis for axis in steps]
        starts, stops, strides = zip(*steps.values(), strict=True)
        parts = {"starts": starts, "ends": stops, "axes": places, "steps": strides}
        value = graph.add("Slice", value, *(graph.integers(name, part) for name, part in parts.items()))
    if left_out:
        value = graph.add("Squeeze", value, graph.integers("axes", left_out))
    if new:
        value = graph.add("Unsqueeze", value, graph.integers("axes", new))
    return value if as_it_is else theirs(graph, value, y)


@operation(
    math="y = x[index]",
    backward="dx = dy at the elements that were read, else 0; one that is read twice gets both",
    arithmetic=Moved(lambda x, *, index: x[index]),
    english=Words("Selection", "Some of the numbers.", "The gradient goes back to where they were read."),
    chinese=Words("取出", "取出其中一部分数。", "梯度送回被读取的位置。"),
    label="selection",
    onnx=_getitem_onnx,
    cases=_getitem_cases,
)
def getitem(x: Tensor, index: Any) -> Tensor:
    """The elements at ``index``: numbers, slices, ``...``, None, lists or arrays of numbers or of booleans.

    Shapes: as in NumPy.
    Raises: IndexError, with NumPy's message, if the index does not fit.

    >>> x = Tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    >>> x[0, 1:].tolist(), x[[1, 1], [0, 2]].tolist(), x[x > 4].tolist()
    ([2.0, 3.0], [4.0, 6.0], [5.0, 6.0])
    """
    x = checks.as_tensor(x)
    parts = index if isinstance(index, tuple) else (index,)
    parts = tuple(
        backend.own(array_of(part), x.device) if hasattr(part, "dtype") else copy.deepcopy(part)  # lists
        for part in parts
    )
    plain = all(map(_is_plain, parts))
    xp, shape = backend.array_module(x.data), x.shape
    arrays = {f"index {i}": part for i, part in enumerate(parts) if hasattr(part, "dtype")}
    try:
        y = x.data[parts]
    except (OverflowError, ValueError) as error:  # numbers too large for any axis, lists of unequal lengths
        raise IndexError(f"x[{index!r}]: {error}") from None
    return record(
        "getitem",
        y,
        inputs={"x": x},
        options={"index": parts},
        saved=arrays,
        backward=lambda dy: (_backward_getitem(xp, dy, shape, parts, plain),),
    )


def _is_plain(part: Any) -> bool:
    """Whether a part of an index names no element twice."""
    if hasattr(part, "dtype"):
        return bool(part.ndim == 0 and part.dtype.kind in "iu")
    return part is None or part is Ellipsis or isinstance(part, slice) or as_whole(part) is not None


def _backward_getitem(xp: Any, dy: Array, shape: tuple[int, ...], index: Any, plain: bool) -> Array:
    dx = xp.zeros(shape, dy.dtype if plain else np.float64)
    if plain:
        dx[index] = dy
    else:  # a list may name an element twice, or ten million times: it gets the sum of all its gradients
        xp.add.at(dx, index, dy.astype(np.float64))
    return dx.astype(dy.dtype, copy=False)

"""The same numbers several times: broadcast_to, tile and repeat.

    y = x, read again along axes of size 1 and along new axes in front      (broadcast_to)
    dx = the sum of dy over all places where an element was read

``tile`` and ``repeat`` are made of reshape and broadcast_to, which are on the tape then.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from minires import backend
from minires.errors import ShapeError, as_whole
from minires.ops import checks
from minires.ops.elementwise import unbroadcast
from minires.ops.forms import Moved
from minires.ops.registry import Case, Words, operation
from minires.ops.reshape import reshape
from minires.tensor import Tensor, record


def _cases() -> Iterator[Case]:
    for before, shape in [((3,), (2, 3)), ((2, 1), (2, 3)), ((), (2,)), ((1, 2, 1), (3, 2, 2))]:
        yield Case(f"{before} to {shape}", {"x": before}, {"shape": shape})


@operation(
    math="y = x, read again along axes of size 1 and along new axes in front",
    backward="dx = the sum of dy over the places where an element was read",
    arithmetic=Moved(lambda x, *, shape: np.broadcast_to(x, shape)),
    english=Words(
        "Broadcast",
        "Axes of size 1 are stretched: the same number is read again and again.",
        "A number gets the sum of the gradients of all its places.",
    ),
    chinese=Words("广播", "长度为 1 的轴被拉长：同一个数被反复读取。", "每个数得到其所有位置的梯度之和。"),
    cases=_cases,
)
def broadcast_to(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """``x`` stretched to ``shape`` as NumPy does when two shapes meet; no number is copied.

    Shapes: x any -> y ``shape``.
    Raises: ShapeError if ``x`` cannot be stretched so, or is not a float.

    >>> broadcast_to(Tensor([[1.0], [2.0]]), (2, 3)).tolist()
    [[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]]
    """
    x = checks.as_tensor(x)
    checks.same_floats("broadcast_to", x=x)
    before, wanted = x.shape, _sizes("broadcast_to", "shape", shape)
    try:
        fits = np.broadcast_shapes(before, wanted) == wanted
    except ValueError:
        fits = False
    if not fits:
        raise ShapeError(
            f"broadcast_to: {before} cannot be stretched to {wanted}. Counted from the last, each axis of x "
            "must be equal or 1"
        )
    if before == wanted:
        return x
    xp = backend.array_module(x.data)
    return record(
        "broadcast_to",
        xp.broadcast_to(x.data, wanted),
        inputs={"x": x},
        options={"shape": wanted},
        backward=lambda dy: (unbroadcast(dy, before),),
    )


def tile(x: Tensor, counts: int | Sequence[int]) -> Tensor:
    """``x`` laid side by side, ``counts`` times along each of its axes.

    counts: a number for each axis; fewer are those of the last axes, and more make new axes in front.

    Math: y[i, j, ...] = x[i mod H, j mod W, ...]. Backward: dx = the sum of dy over the copies.
    Shapes: x (H, W, ...) -> y (counts[0] * H, counts[1] * W, ...).
    Raises: ShapeError if a count is not a whole number of at least 1, or ``x`` is not a float.

    >>> tile(Tensor([1.0, 2.0]), 3).tolist()
    [1.0, 2.0, 1.0, 2.0, 1.0, 2.0]
    """
    x = checks.as_tensor(x)
    times = _sizes("tile", "counts", counts)
    shape = (1,) * (len(times) - x.ndim) + x.shape
    times = (1,) * (len(shape) - len(times)) + times
    # (H, W) -> (1, H, 1, W) -> (times, H, times, W) -> (times * H, times * W)
    apart = reshape(x, tuple(size for one in shape for size in (1, one)))
    copies = broadcast_to(apart, tuple(size for pair in zip(times, shape, strict=True) for size in pair))
    return reshape(copies, tuple(count * size for count, size in zip(times, shape, strict=True)))


def repeat(x: Tensor, count: int, axis: int) -> Tensor:
    """Every element ``count`` times in a row along ``axis``.

    With ``axis`` 1 and then 2, pictures grow to a whole multiple of their size.

    Math: y[..., i, ...] = x[..., i // count, ...]. Backward: dx = the sum of dy over the copies.
    Raises: ShapeError if the axis does not exist, ``count`` is not a whole number of at least 1, or ``x`` is
    not a float.
    Differs: PyTorch calls this repeat_interleave, and its repeat is :func:`tile`.

    >>> repeat(Tensor([1.0, 2.0]), 3, axis=0).tolist()
    [1.0, 1.0, 1.0, 2.0, 2.0, 2.0]
    """
    x = checks.as_tensor(x)
    along = checks.one_axis("repeat", axis, x.ndim)
    times = checks.whole("repeat", "count", count, least=1)
    front, size, back = x.shape[:along], x.shape[along], x.shape[along + 1 :]
    # (..., W, ...) -> (..., W, 1, ...) -> (..., W, count, ...) -> (..., W * count, ...)
    copies = broadcast_to(reshape(x, (*front, size, 1, *back)), (*front, size, times, *back))
    return reshape(copies, (*front, size * times, *back))


def _sizes(op: str, name: str, sizes: Any) -> tuple[int, ...]:
    least = 1 if name == "counts" else 0
    one = as_whole(sizes)
    if one is None and not isinstance(sizes, tuple | list | np.ndarray):
        raise ShapeError(f"{op}: {name} must be whole numbers, not {sizes!r}")
    several = (one,) if one is not None else sizes
    found = tuple(checks.whole(op, name, size, least=least) for size in several)
    checks.size(op, found)
    return found

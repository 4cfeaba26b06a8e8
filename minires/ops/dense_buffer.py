"""A history of feature maps that grows by channels, in one array: concatenation without copies.

A dense block reads, at each of its layers, everything that came before: x0, then [x0, x1], then [x0, x1, x2],
... Plain concatenation writes the whole history anew each time, and the tape keeps all of these copies: with
l layers of k channels, about k l^2 / 2 channels in all. Here one array has room for the whole history. Each
layer writes just its own channels behind those before, and what the next layer reads is a view:

    array   [ x0 | x1 | x2 | ...room... ]         (N, H, W, room)
    latest    x0   x1   x2                        the view array[..., :c]

    append(new):   array[..., c:c+k] = new,   latest = array[..., :c+k]
    backward:      dlatest = dy[..., :c],     dnew = dy[..., c:]

An append touches only channels behind the latest, which no earlier view contains: what was read once never
changes. That is why new channels always go behind the latest, and an append to an older view does not exist.

Shapes: x0 (N, H, W, C0), each new one (N, H, W, K) with a K of its own, all in room channels.
Source: Huang, Liu, van der Maaten, Weinberger 2017, arXiv:1608.06993; Pleiss et al. 2017, Memory-efficient
implementation of DenseNets, arXiv:1707.06990, section 3 ("shared memory storage").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from minires import backend
from minires.backend import Array
from minires.errors import ShapeError
from minires.ops import checks
from minires.ops.forms import Moved
from minires.ops.onnx_graph import Graph
from minires.ops.registry import Case, Make, Shape, Words, operation
from minires.tensor import Call, Tensor, record


def _forward(array: Array, new: Array, used: int) -> Array:
    """Write ``new`` behind the first ``used`` channels; a view of all that are used now."""
    more = used + new.shape[-1]
    backend.copy(new, array[..., used:more])
    return array[..., :more]


def _backward(dy: Array, used: int) -> tuple[Array, Array]:
    return dy[..., :used], dy[..., used:]


def _grow(buffer: Callable[..., DenseBuffer], first: Tensor, *others: Tensor, room: int) -> Tensor:
    history = buffer(first, room)
    for new in others:
        history.append(new)
    return history.latest


def _cases() -> Iterator[Case]:
    grown: dict[str, Shape | Make] = {"a": (2, 3, 4, 2), "b": (2, 3, 4, 1), "c": (2, 3, 4, 3)}
    yield Case("full", grown, {"room": 6}, _grow)
    yield Case("room is left", grown, {"room": 9}, _grow)
    yield Case("no append", {"a": (2, 3, 4, 2)}, {"room": 2}, _grow)


def _onnx(graph: Graph, call: Call) -> str:
    """A history that begins is its first part; one that goes on is a concatenation."""
    parts = [graph.value(x) for x in call.inputs.values()]
    return parts[0] if len(parts) == 1 else graph.add("Concat", *parts, axis=1)


@operation(
    name="dense_buffer",
    math="y = {new?[latest, new]|x|[latest, new]; of the first x, y = x}",
    backward="""
        {new?dlatest, dnew = the parts of dy that came from latest and new|dx = dy\
|dlatest, dnew = the parts of dy that came from latest and new; of the first x, dx = dy}
    """,
    english=Words(
        "Concatenation",
        "{new?New channels are put behind all that came before|A history of channels begins}: each layer of "
        "a dense block reads everything.",
        "The gradient {new?is cut where the channels were joined|passes unchanged}.",
    ),
    chinese=Words("拼接", "{new?新通道接在此前所有通道之后|通道的历史由此开始}：密集块的每一层都能读到全部。",
        "{new?梯度在拼接处切开|梯度原样通过}。",
    ),
    arithmetic=Moved(lambda *xs: np.concatenate(xs, -1)),
    label="concat",
    role="silent",
    join="concat",
    onnx=_onnx,
    cases=_cases,
)
class DenseBuffer:
    """A growing history that starts with a copy of ``x`` and has room for ``room`` channels.

    ``latest`` is the tensor of everything so far; its memory is that of every ``latest`` before it, too.

    Shapes: x (N, H, W, C); ``latest`` (N, H, W, channels so far).
    Raises: ShapeError if x is not (N, H, W, C) or has more channels than there is room for.
    Source: arXiv:1608.06993; arXiv:1707.06990, section 3.

    >>> history = DenseBuffer(Tensor([[[[1.0, 2.0]]]]), room=4)
    >>> history.append(Tensor([[[[3.0]]]])).tolist()
    [[[[1.0, 2.0, 3.0]]]]
    """

    latest: Tensor

    def __init__(self, x: Tensor, room: int) -> None:
        x = checks.as_tensor(x)
        checks.rank("dense_buffer", "x", x, "(N, H, W, C)")
        checks.same_floats("dense_buffer", x=x)
        room = checks.whole("dense_buffer", "room", room, least=0)
        if x.shape[-1] > room:
            raise ShapeError(f"dense_buffer: x {x.shape} has {x.shape[-1]} channels, but room is {room}")
        self._array = backend.array_module(x.data).empty((*x.shape[:-1], room), x.dtype)
        y = _forward(self._array, x.data, 0)
        self.latest = record("dense_buffer", y, inputs={"x": x}, backward=lambda dy: (dy,))

    def append(self, new: Tensor) -> Tensor:
        """Put the channels of ``new`` behind the latest. Returns the new ``latest``.

        Raises: ShapeError if there is not room for them, or pictures, dtype or device are not those of the
        history.
        """
        new, before = checks.as_tensor(new), self.latest
        used, room = before.shape[-1], self._array.shape[-1]
        checks.same_floats("dense_buffer", history=before, new=new)
        if new.shape[:-1] != before.shape[:-1]:
            raise ShapeError(
                f"dense_buffer: the history is {before.shape} but new is {new.shape}; "
                "they may differ in their channels (the last axis) only"
            )
        if used + new.shape[-1] > room:
            raise ShapeError(
                f"dense_buffer: {used} of {room} channels are used, there is no room for the "
                f"{new.shape[-1]} of new {new.shape}; make the buffer with a larger room"
            )
        y = _forward(self._array, new.data, used)
        self.latest = record(
            "dense_buffer",
            y,
            inputs={"latest": before, "new": new},
            backward=lambda dy: _backward(dy, used),
        )
        return self.latest

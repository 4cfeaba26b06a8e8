"""One number of an operation's result, computed again from the recorded inputs, step by step.

``explain(operation, n=0, i=3, j=5, o=7)`` of a convolution has the window, the kernel, every product of the
im2col row and the kernel's column, their sum, the bias, and the result beside the number that was stored; it
prints as text. Everything is computed in float64, so the stored number may differ by its own rounding.

Places are named as in the formulas: n the picture, i and j the row and the column of the result, o or c its
channel, k a class. What is left out is 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minires.backend import Array
from minires.debug.recording import Operation
from minires.errors import ConfigError, MiniresError, ShapeError
from minires.inspect.summary import Row, aligned

SHOWN = 8  # of a long list of products so many are printed, the largest
ALL = 12  # a list of at most so many is printed whole
AXES = {0: "", 1: "n", 2: "nc", 3: "nic", 4: "nijc"}  # of a result, by the number of its axes


@dataclass(frozen=True, eq=False)
class Explanation:
    """How one number came about; ``str`` of it is for reading.

    ``place`` says which number of the result it is, ``result`` is what comes out here, ``stored`` what the
    operation had stored.
    """

    operation: Operation
    place: dict[str, int]
    result: float
    stored: float

    def lines(self) -> Iterator[str]:
        """The steps, without heading and result."""
        raise NotImplementedError

    def __str__(self) -> str:
        at = ", ".join(f"{axis}={index}" for axis, index in self.place.items())
        head = f"{self.operation.op} {self.operation.path}".strip() + (f" at {at}" if at else "")
        ends: list[Row] = [("result", _number(self.result)), ("stored", _number(self.stored)),
                ("difference", f"{self.result - self.stored:.1e}")]  # fmt: skip
        return "\n".join([head, *(f"  {line}" for line in (*self.lines(), *aligned(ends, left=1)))])


@dataclass(frozen=True, eq=False)
class Products(Explanation):
    """A sum of products and a bias: one number of a convolution or of a dense layer.

    Shapes: for a convolution ``window`` is what lies under the kernel, zeros outside the picture, and
    ``kernel`` that of the output channel, both (KH, KW, C/groups); for a dense layer both are (C,).
    ``corner`` is the row and column in the picture where the window starts, ``channel`` its first channel.
    """

    window: Array
    kernel: Array
    products: Array
    sum: float
    bias: float | None
    corner: tuple[int, int] | None = None
    channel: int = 0

    @property
    def row(self) -> Array:
        """The window as a row of the im2col matrix."""
        return self.window.reshape(-1)

    @property
    def column(self) -> Array:
        """The kernel as a column of the kernel's matrix."""
        return self.kernel.reshape(-1)

    def lines(self) -> Iterator[str]:
        if self.corner is not None:
            (kh, kw, depth), (top, left) = self.window.shape, self.corner
            yield f"the window: rows {_range(top, kh)}, columns {_range(left, kw)}, channels " + _range(
                self.channel, depth
            )
            yield f"{self.row.size} products, row of im2col ({self.row.size},) times column of the kernel"
            if kh * kw > 1 and depth > 1:
                yield "sums over the channels, for each place of the window:"
                rows = [tuple(map(_number, row)) for row in self.products.sum(axis=2)]
                yield from (f"  {line}" for line in aligned(rows, left=0))
        yield from _product_lines(self)
        yield f"sum {_number(self.sum)}"
        if self.bias is not None:
            yield f"bias {_number(self.bias)}"
        if self.operation.options.get("relu"):
            yield "then ReLU: what is negative becomes 0"


@dataclass(frozen=True, eq=False)
class BatchNorm(Explanation):
    """One number of a batch norm: ``x`` and its channel's statistics; ``normalised`` is xhat."""

    training: bool
    count: int
    x: float
    mean: float
    var: float
    eps: float
    inv: float
    normalised: float
    gamma: float
    beta: float

    def lines(self) -> Iterator[str]:
        of = f"of the batch, {self.count} values" if self.training else "running, of training"
        yield f"statistics of this channel ({of}):"
        yield f"  mean {_number(self.mean)}, variance {_number(self.var)}, eps {self.eps:g}"
        yield f"  inv = 1 / sqrt(variance + eps) = {_number(self.inv)}"
        x, mean = _number(self.x), _number(self.mean)
        yield f"xhat = (x - mean) * inv = ({x} - {mean}) * {_number(self.inv)}"
        xhat, gamma, beta = _number(self.normalised), _number(self.gamma), _number(self.beta)
        yield f"     = {xhat}"
        yield f"gamma * xhat + beta = {gamma} * {xhat} + {beta}"


@dataclass(frozen=True, eq=False)
class Pool(Explanation):
    """One number of a pool.

    Shapes: ``window`` (KH, KW) and ``inside``, False in the border; ``winner`` (row, column) in the window of
    a max pool; ``count`` what the mean of an average pool is over.
    """

    window: Array
    inside: Array
    corner: tuple[int, int]
    winner: tuple[int, int] | None = None
    count: int | None = None

    def lines(self) -> Iterator[str]:
        (kh, kw), (top, left) = self.window.shape, self.corner
        yield f"the window: rows {_range(top, kh)}, columns {_range(left, kw)}"
        if self.window.size <= ALL**2:
            mark = {self.winner: "*"} if self.winner else {}
            rows = [
                tuple(
                    _number(self.window[i, j]) + mark.get((i, j), "") if self.inside[i, j] else "border"
                    for j in range(kw)
                )
                for i in range(kh)
            ]
            yield from (f"  {line}" for line in aligned(rows, left=0))
        if self.winner is not None:
            i, j = self.winner
            yield f"the largest (*) is at row {top + i}, column {left + j} of the picture"
        else:
            total = self.window[self.inside].sum()
            yield f"sum {_number(total)} / count {self.count}"


@dataclass(frozen=True, eq=False)
class Sum(Explanation):
    """One number of an addition, and its summands."""

    summands: tuple[float, ...]

    def lines(self) -> Iterator[str]:
        for name, source, value in zip(
            self.operation.names, self.operation.inputs, self.summands, strict=True
        ):
            origin = source.name or (
                f"operation {source.number}" if source.number is not None else "constant"
            )
            yield f"{name} = {_number(value)}  ({origin})"


@dataclass(frozen=True, eq=False)
class ReLU(Explanation):
    """One number of a ReLU, with what was added before, if anything."""

    x: float
    add: float | None

    def lines(self) -> Iterator[str]:
        added = "" if self.add is None else f" + {_number(self.add)}"
        yield f"max({_number(self.x)}{added}, 0)"


@dataclass(frozen=True, eq=False)
class Softmax(Explanation):
    """One number of a softmax or its logarithm.

    Shapes: ``scores`` and ``exponentials`` (K,), the latter of the scores minus the largest, ``shift``.
    """

    scores: Array
    shift: float
    exponentials: Array
    sum: float

    def lines(self) -> Iterator[str]:
        yield f"the largest score, subtracted first: {_number(self.shift)}"
        yield from _class_lines(("score", "exp"), self.scores, self.exponentials)
        yield f"sum of the exponentials {_number(self.sum)}"


@dataclass(frozen=True, eq=False)
class CrossEntropy(Explanation):
    """The loss, and one picture's part in it.

    Shapes: ``scores``, ``p``, ``target`` (K,) of picture n; ``losses`` (N,) of all pictures, the result is
    their mean.
    """

    scores: Array
    p: Array
    target: Array
    losses: Array

    def lines(self) -> Iterator[str]:
        n = self.place["n"]
        yield from _class_lines(("score", "p", "target"), self.scores, self.p, self.target)
        yield f"loss of picture {n}: -sum of target * log p = {_number(self.losses[n])}"
        yield f"the result is the mean over {len(self.losses)} pictures"


# ----------------------------------------------------------------------------------------------- public


def explain(operation: Operation, **place: int) -> Explanation:
    """Compute one number of the result of ``operation`` again, step by step.

    Raises: ConfigError for an operation that cannot be explained; ShapeError for a place that is not there,
    with the ranges; MiniresError if a value that is needed was not kept.
    """
    if operation.op not in _EXPLAIN:
        raise ConfigError(
            f"{operation.op} cannot be explained number by number; these can: {', '.join(_EXPLAIN)}"
        )
    if operation.output is None or any(source.value is None for source in operation.inputs):
        raise MiniresError(
            f"{operation.op} {operation.path}: its values were not kept on the tape; "
            "give step() the model and x instead"
        )
    return _EXPLAIN[operation.op](operation, _checked(operation, place))


def _checked(operation: Operation, place: dict[str, int]) -> dict[str, int]:
    """Every axis of the result with an index."""
    names, shape = _axes(operation)
    found = {axis: place.get(axis, 0) for axis in names}
    wrong = [axis for axis in place if axis not in found]
    wrong += [axis for axis, size in zip(names, shape, strict=True) if not _fits(found[axis], size)]
    if wrong:
        ranges = ", ".join(f"{axis} 0 to {size - 1}" for axis, size in zip(names, shape, strict=True))
        given = ", ".join(f"{axis}={place[axis]!r}" for axis in wrong)
        raise ShapeError(f"explain {operation.op}: there is no {given}; it has {ranges or 'a single value'}")
    return found


def _fits(index: Any, size: int) -> bool:
    return isinstance(index, int | np.integer) and bool(0 <= index < size)


def _axes(operation: Operation) -> tuple[str, tuple[int, ...]]:
    """A letter for each axis of the result, and the result's shape."""
    if operation.op == "cross_entropy":  # a single value, of which each picture has a part
        return "n", operation.inputs[0].value.shape[:1]
    names = AXES.get(len(operation.shape))
    if names is None:
        raise ShapeError(f"explain {operation.op}: results of {len(operation.shape)} axes are not explained")
    last = {"conv2d": "o", "linear": "o", "softmax": "k", "log_softmax": "k"}.get(operation.op, "c")
    return names.replace("c", last), operation.shape


# ------------------------------------------------------------------------------------------- operations


def _floats(array: Array) -> Array:
    return np.asarray(array, np.float64)


def _inputs(operation: Operation) -> list[Array]:
    return [source.value for source in operation.inputs]


def _at(array: Array, operation: Operation, place: dict[str, int]) -> float:
    """A number of an array that is broadcast to the result."""
    return float(np.broadcast_to(array, operation.shape)[tuple(place.values())])


def _window(
    operation: Operation, n: int, i: int, j: int, channels: slice
) -> tuple[Array, Array, tuple[int, int]]:
    """What lies under the window at (i, j) in picture n, which of its places are inside the picture, and
    where it starts. In the border there are zeros."""
    (kh, kw), (sh, sw) = operation.options["kernel"], operation.options["stride"]
    rows, columns = operation.options["padding"]
    x = operation.inputs[0].value[n, :, :, channels]
    padded = np.pad(x, (rows, columns, (0, 0)))
    inside = np.pad(np.ones(x.shape[:2], bool), (rows, columns))
    here = slice(i * sh, i * sh + kh), slice(j * sw, j * sw + kw)
    return _floats(padded[here]), inside[here], (i * sh - rows[0], j * sw - columns[0])


def _conv2d(operation: Operation, place: dict[str, int]) -> Explanation:
    _, w, *b = _inputs(operation)
    n, i, j, o = place.values()
    depth = w.shape[2]
    channel = o // (w.shape[3] // operation.options["groups"]) * depth  # the first of the group's
    window, _, corner = _window(operation, n, i, j, slice(channel, channel + depth))
    return _products(operation, place, window, _floats(w[..., o]), b, corner=corner, channel=channel)


def _linear(operation: Operation, place: dict[str, int]) -> Explanation:
    x, w, *b = _inputs(operation)
    return _products(operation, place, _floats(x[place["n"]]), _floats(w[:, place["o"]]), b)


def _products(
    operation: Operation, place: dict[str, int], window: Array, kernel: Array, b: list[Array], **others: Any
) -> Products:
    products = window * kernel
    total = float(products.sum())
    bias = float(b[0][place["o"]]) if b else None
    result = total if bias is None else total + bias
    result = max(result, 0.0) if operation.options.get("relu") else result
    stored = _at(operation.output, operation, place)
    return Products(operation, place, result, stored, window, kernel, products, total, bias, **others)


def _batch_norm(operation: Operation, place: dict[str, int]) -> Explanation:
    options = operation.options
    if len(operation.inputs) > 3:
        raise MiniresError("batch_norm: on the tape it is one with its addition; give step() the model and x")
    x, gamma, beta = _inputs(operation)
    c = list(place.values())[-1]
    channel = _floats(x[..., c])
    if options["training"]:
        mean, var = float(channel.mean()), float(channel.var())
    else:
        mean, var = float(options["running_mean"][c]), float(options["running_var"][c])
    inv = 1 / math.sqrt(var + options["eps"])
    one = _at(x, operation, place)
    xhat = (one - mean) * inv
    return BatchNorm(
        operation, place, float(gamma[c]) * xhat + float(beta[c]), _at(operation.output, operation, place),
        options["training"], channel.size, one, mean, var, options["eps"], inv, xhat, float(gamma[c]),
        float(beta[c]),
    )  # fmt: skip


def _max_pool2d(operation: Operation, place: dict[str, int]) -> Explanation:
    n, i, j, c = place.values()
    window, inside, corner = _window(operation, n, i, j, slice(c, c + 1))
    candidates = np.argwhere(inside)  # the border never wins; of equal pixels the first one does
    row, column = candidates[np.argmax(window[inside])].tolist()
    stored = _at(operation.output, operation, place)
    return Pool(
        operation, place, float(window[row, column, 0]), stored, window[..., 0], inside, corner,
        winner=(row, column),
    )  # fmt: skip


def _avg_pool2d(operation: Operation, place: dict[str, int]) -> Explanation:
    n, i, j, c = place.values()
    window, inside, corner = _window(operation, n, i, j, slice(c, c + 1))
    count = inside.size if operation.options["count_padding"] else int(inside.sum())
    return _mean(operation, place, window[..., 0], inside, corner, count)


def _global_avg_pool2d(operation: Operation, place: dict[str, int]) -> Explanation:
    window = _floats(operation.inputs[0].value[place["n"], :, :, place["c"]])
    return _mean(operation, place, window, np.ones(window.shape, bool), (0, 0), window.size)


def _mean(
    operation: Operation,
    place: dict[str, int],
    window: Array,
    inside: Array,
    corner: tuple[int, int],
    count: int,
) -> Pool:
    result = float(window[inside].sum() / count)
    stored = _at(operation.output, operation, place)
    return Pool(operation, place, result, stored, window, inside, corner, count=count)


def _add(operation: Operation, place: dict[str, int]) -> Explanation:
    summands = tuple(_at(value, operation, place) for value in _inputs(operation))
    return Sum(operation, place, sum(summands), _at(operation.output, operation, place), summands)


def _relu(operation: Operation, place: dict[str, int]) -> Explanation:
    x, *add = (_at(value, operation, place) for value in _inputs(operation))
    result = max(x + sum(add), 0.0)
    return ReLU(operation, place, result, _at(operation.output, operation, place), x, add[0] if add else None)


def _softmax(operation: Operation, place: dict[str, int]) -> Explanation:
    *rest, k = place.values()
    scores = _floats(operation.inputs[0].value[tuple(rest)])
    shift, exponentials = float(scores.max()), np.exp(scores - scores.max())
    total = float(exponentials.sum())
    log_p = scores[k] - shift - np.log(total)
    result = float(log_p if operation.op == "log_softmax" else exponentials[k] / total)
    stored = _at(operation.output, operation, place)
    return Softmax(operation, place, result, stored, scores, shift, exponentials, total)


def _cross_entropy(operation: Operation, place: dict[str, int]) -> Explanation:
    scores, labels = _floats(operation.inputs[0].value), np.asarray(operation.options["labels"])
    classes, smoothing = scores.shape[1], operation.options["label_smoothing"]
    target = np.eye(classes)[labels] if labels.ndim == 1 else labels.astype(np.float64)
    target = (1 - smoothing) * target + smoothing / classes
    shifted = scores - scores.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    losses, n = -(target * log_p).sum(axis=1), place["n"]
    return CrossEntropy(
        operation, place, float(losses.mean()), float(operation.output), scores[n], np.exp(log_p[n]),
        target[n], losses,
    )  # fmt: skip


_EXPLAIN: dict[str, Callable[[Operation, dict[str, int]], Explanation]] = {
    "conv2d": _conv2d, "linear": _linear, "batch_norm": _batch_norm, "max_pool2d": _max_pool2d,
    "avg_pool2d": _avg_pool2d, "global_avg_pool2d": _global_avg_pool2d, "add": _add, "relu": _relu,
    "softmax": _softmax, "log_softmax": _softmax, "cross_entropy": _cross_entropy,
}  # fmt: skip


# ------------------------------------------------------------------------------------------------- text


def _number(value: float) -> str:
    return f"{value + 0.0:.6g}"  # which makes -0 a 0


def _range(start: int, count: int) -> str:
    return f"{start} to {start + count - 1}" if count > 1 else str(start)


def _product_lines(found: Products) -> Iterator[str]:
    """All products, or the largest of many and the sum of the others."""
    size = found.products.size
    flat = found.products.reshape(-1)
    order = np.arange(size) if size <= ALL else np.argsort(-abs(flat), kind="stable")[:SHOWN]
    places = ("kh", "kw", "c") if found.products.ndim == 3 else ("c",)
    rows: list[Row] = [(*places, "x", "w", "x * w")]
    for at in order:
        index = [int(part) for part in np.unravel_index(at, found.products.shape)]
        index[-1] += found.channel
        rows.append((*map(str, index), *(_number(part.reshape(-1)[at]) for part in
                     (found.window, found.kernel, found.products))))  # fmt: skip
    if size > ALL:
        yield f"the {SHOWN} largest products:"
    yield from (f"  {line}" for line in aligned(rows, left=0))
    if size > ALL:
        yield f"the other {size - SHOWN} products sum to {_number(float(flat.sum() - flat[order].sum()))}"


def _class_lines(heads: Sequence[str], *columns: Array) -> Iterator[str]:
    """A line per class, of many those with the largest scores."""
    scores = columns[0]
    order = range(len(scores)) if len(scores) <= ALL else np.argsort(-scores, kind="stable")[:SHOWN]
    rows: list[Row] = [("class", *heads)]
    rows += [(str(k), *(_number(column[k]) for column in columns)) for k in order]
    yield from (f"  {line}" for line in aligned(rows, left=0))
    if len(scores) > ALL:
        yield f"and {len(scores) - SHOWN} classes with lower scores"

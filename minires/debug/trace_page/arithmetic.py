"""What the trace page needs to compute one number of an operation: its declared arithmetic, as plain data.

Each kind of arithmetic (see :mod:`minires.ops.forms`) has one part here, which says what it is and keeps the
arrays it needs, and one in the page's script, which computes. Of large arrays only the channels are kept that
the page shows. What all others add to a sum of products is computed here, in float64 from the recorded
arrays, and kept as one number for each place: so the sums on the page are complete.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minires.backend import Array
from minires.debug.recording import Operation
from minires.ops.forms import Form, Formula, Moved, NotKept, Pool, Products
from minires.ops.forms.applied import Applied
from minires.ops.forms.axes import Near
from minires.ops.forms.expressions import ABSENT, Tree, names, written
from minires.ops.forms.windows import Windows
from minires.ops.registry import describe

VECTOR = 4096  # numbers of a vector that are kept
EXACT = 1 << 24  # whole numbers up to here are exact in float32


@dataclass(frozen=True)
class Choice:
    """The channels of an operation's output that are kept; the first ``shown`` of them are drawn as maps.

    ``detail`` are the output channels of a convolution or dense layer whose kernels are kept.
    """

    kept: tuple[int, ...]
    shown: int
    detail: tuple[int, ...]


Add = Callable[[Array], int]  # keeps an array and gives its number


def form_of(one: Operation) -> Form | None:
    """How the numbers of an operation are computed, if the page has what that needs."""
    form = describe(one.op).arithmetic
    needs_channels = isinstance(form, Products | Pool)
    # Of a constant, or of several pictures, no channels are kept.
    return None if needs_channels and (one.inputs[0].number is None or one.shape[0] != 1) else form


def is_picture(array: Array) -> bool:
    """Whether it is (1, H, W, C), known by channels; anything else is known by its numbers in their order."""
    return array.ndim == 4 and len(array) == 1


def is_map(array: Array) -> bool:
    """Whether it has places, so that it is drawn as pictures; else its numbers are listed."""
    return is_picture(array) and array.shape[1] * array.shape[2] > 1


def planes(array: Array, channels: Sequence[int]) -> NDArray[Any]:
    """(1, H, W, C) -> (channels, H, W); of a vector, (numbers, 1, 1)."""
    if is_picture(array):
        return np.moveaxis(np.asarray(array)[0][..., list(channels)], -1, 0)
    return np.asarray(array).reshape(-1)[list(channels)].reshape(-1, 1, 1)


def packed(one: Operation, choices: Sequence[Choice], add: Add) -> dict[str, Any] | None:
    """The arithmetic of an operation for the page; None where there is none."""
    form = form_of(one)
    try:
        if isinstance(form, Products):
            return _products(form, one, choices, add)
        if isinstance(form, Pool):
            counted = form.mean and bool(one.options.get(form.counted))
            windows = Windows.of(one.options).plain()
            return {"kind": "pool", "mean": form.mean, "counted": counted, "windows": windows}
        if isinstance(form, Formula):
            return _formula(form, one, choices[one.number], add)
        if isinstance(form, Moved):
            return _moved(form, one, choices, add)
    except NotKept:
        return None
    return None


# ------------------------------------------------------------------------------------------------ formulas


def _formula(form: Formula, one: Operation, choice: Choice, add: Add) -> dict[str, Any]:
    """The lines of the formula as trees, and where each name's numbers are."""
    values = one.values()
    applied = form.of(values)
    lines = {name: tree for name, tree in applied.trees.items() if tree != ABSENT}
    return {
        "kind": "formula", "result": applied.result, "incoming": applied.incoming,
        "space": list(applied.space), "full": list(applied.full),
        "lines": [[name, _plain(tree), written(tree)] for name, tree in lines.items()],
        "shapes": {name: list(applied.shape_of(tree)) for name, tree in lines.items()},
        "axes": {name: list(axes) for name, axes in applied.axes.items()},
        "near": {name: int(values.options[axes.size]) // 2
                 for name, axes in form.axes.items() if isinstance(axes, Near)},
        "operands": dict(_operands(applied, one, choice, add)),
    }  # fmt: skip


def _plain(tree: Tree) -> Any:
    """A tree as plain data: lists for tuples."""
    return [_plain(part) for part in tree] if isinstance(tree, tuple) else tree


def _operands(applied: Applied, one: Operation, choice: Choice, add: Add) -> Iterator[tuple[str, Any]]:
    """Where the page finds the numbers of each name that was given: with an operation, here, or nowhere."""
    numbers = dict(zip(one.names, one.inputs, strict=True))
    for name in dict.fromkeys(name for tree in applied.trees.values() for name in names(tree)):
        shape = list(np.shape(applied.given[name])) if name in applied.given else []
        insert = applied.form.insert.get(name)
        if name in numbers and numbers[name].number is not None:
            yield name, {"input": one.names.index(name), "shape": shape, "insert": insert}
        elif name in applied.given:
            array = np.asarray(applied.given[name])
            yield name, {"shape": shape, **_numbers(array, one, choice, add)}
        elif name in applied.numbers and not isinstance(applied.numbers[name], str):
            yield name, {"shape": [], "value": float(applied.numbers[name])}


def _numbers(array: Array, one: Operation, choice: Choice, add: Add) -> dict[str, Any]:
    """A single number; a whole array; or of one that has the channels of the result, those that are kept."""
    if array.size == 1:
        value = float(array.reshape(-1)[0])
        return {"value": value} if math.isfinite(value) else {"array": add(array)}
    if is_map(one.output) and array.shape[-1] == one.shape[-1]:
        return {"array": add(np.moveaxis(array, -1, 0)[list(choice.kept)]), "byChannel": True}
    return {"array": add(array)} if array.size <= VECTOR else {}


# ------------------------------------------------------------------------------------------- moved numbers


def _moved(form: Moved, one: Operation, choices: Sequence[Choice], add: Add) -> dict[str, Any] | None:
    """Where each kept number comes from: its input, the channel of it and the place.

    Where whole channels are handed on, a plane of places for all of them and the source of each channel; else
    the place of every single number. ``reads`` says how often each number of an input is read in all, so that
    the page knows whether it has all that makes a gradient. ``given`` are inputs that no operation made.
    """
    shapes = {name: np.shape(source.value) for name, source in zip(one.names, one.inputs, strict=True)}
    sizes = [math.prod(shape) for shape in shapes.values()]
    if sum(sizes) > EXACT:
        return None
    origins = form.origins(shapes, one.options)
    starts = [0, *itertools.accumulate(sizes)]
    fill = float(one.options.get(form.fill, 0.0))
    table: dict[str, Any] = {
        "kind": "moved", "fill": fill, "starts": starts[:-1], "shapes": list(map(list, shapes.values())),
    }  # fmt: skip
    counts = np.bincount(origins[origins >= 0].reshape(-1), minlength=starts[-1])
    table["reads"] = [
        _reads(counts[starts[k] : starts[k + 1]].reshape(shape), source.number, choices, add)
        for k, (source, shape) in enumerate(zip(one.inputs, shapes.values(), strict=True))
    ]
    table["given"] = [
        add(np.asarray(source.value).reshape(-1)) if source.number is None and size <= VECTOR else None
        for source, size in zip(one.inputs, sizes, strict=True)
    ]
    kept = choices[one.number].kept
    by_channel = _by_channel(origins, list(shapes.values()), starts) if is_map(one.output) else None
    if by_channel is None:
        return {**table, "origins": add(planes(origins, kept))}
    channels, plane = by_channel
    return {**table, "places": add(plane), "channels": [channels[c] for c in kept]}


def _reads(counts: NDArray[Any], number: int | None, choices: Sequence[Choice], add: Add) -> int | None:
    """How often the numbers of an input are read: of an operation's, those of the channels that are shown."""
    if number is not None:
        return add(planes(counts, choices[number].kept[: choices[number].shown]))
    return add(counts.reshape(-1)) if counts.size <= VECTOR else None


def _by_channel(
    origins: NDArray[np.int64], shapes: Sequence[tuple[int, ...]], starts: Sequence[int]
) -> tuple[list[list[int] | None], NDArray[np.int64]] | None:
    """The input and the channel that each channel of a map is, None for one that is filled; and the place in
    it of each place, -1 where that is filled. None if it does not go by whole channels."""
    if any(len(shape) != 4 or shape[:3] != (1, *shapes[0][1:3]) for shape in shapes):
        return None
    plane: NDArray[np.int64] | None = None
    channels: list[list[int] | None] = []
    for c in range(origins.shape[-1]):
        own = origins[0, :, :, c]
        there = own >= 0
        if not there.any():
            channels.append(None)
            continue
        k = int(np.searchsorted(starts, own[there][0], side="right")) - 1
        local = np.where(there, own - starts[k], -1)
        depth = shapes[k][-1]
        channel = local[there] % depth
        places = np.where(there, local // depth, -1)
        one_input = local.max() < math.prod(shapes[k]) and local[there].min() >= 0
        one_channel = one_input and (channel == channel[0]).all()
        if not one_channel or (plane is not None and not np.array_equal(places, plane)):
            return None
        plane = places
        channels.append([k, int(channel[0])])
    return None if plane is None else (channels, plane)


# ------------------------------------------------------------------------- what a sum of products is made of


def weight(one: Operation) -> NDArray[np.float64]:
    """(KH, KW, large channels/groups, small channels); of a dense layer (1, 1, C, O)."""
    w = np.asarray(one.inputs[1].value, np.float64)
    return w if w.ndim == 4 else w.reshape(1, 1, *w.shape)


def by_input(form: Products, one: Operation) -> NDArray[np.float64]:
    """How large the weights are that each channel of the input meets."""
    squares = weight(one) ** 2
    if form.transposed:
        found: NDArray[np.float64] = np.sqrt(squares.sum(axis=(0, 1, 2)))
        return found
    return np.tile(np.sqrt(squares.sum(axis=(0, 1, 3))), one.options.get("groups", 1))


def _part(w: NDArray[Any], groups: int, large: Sequence[int], small: Sequence[int]) -> NDArray[Any]:
    """The kernels between some channels of both sides, (KH, KW, large, small).

    Zero where the two are in different groups.
    """
    larges, smalls = np.asarray(large, int), np.asarray(small, int)
    depth, width = w.shape[2], w.shape[3] // groups
    same = (larges // depth)[:, None] == (smalls // width)[None, :]
    return np.where(same, w[:, :, (larges % depth)[:, None], smalls[None, :]], 0)


def _products(form: Products, one: Operation, choices: Sequence[Choice], add: Add) -> dict[str, Any]:
    """The kernels of the channels in detail with their gradients, and what all other channels add.

    Shapes: kernel (detail, kept inputs, KH, KW); kernel_gradient (detail, shown inputs, KH, KW); bias
    (detail, 1, 1); rest (detail, OH, OW), absent where every input channel is kept; rest_back (shown inputs,
    H, W), absent where every output channel is in detail.
    """
    source, choice = one.inputs[0], choices[one.number]
    assert source.number is not None and source.value is not None
    before, detail = choices[source.number], choice.detail
    w, groups, windows = weight(one), one.options.get("groups", 1), Windows.of(one.options)
    shown = before.kept[: before.shown]
    x = _picture(source.value)

    def kernels(weights: NDArray[Any], inputs: Sequence[int], outputs: Sequence[int]) -> NDArray[Any]:
        """(KH, KW, inputs, outputs)"""
        if form.transposed:
            return _part(weights, groups, outputs, inputs).swapaxes(2, 3)
        return _part(weights, groups, inputs, outputs)

    def forward(x: NDArray[Any], part: NDArray[Any], places: Sequence[int]) -> NDArray[Any]:
        if form.transposed:
            return _adjoint(x, part.swapaxes(2, 3), windows, places)
        return _forward(x, part, windows, places)

    def back(dy: NDArray[Any], part: NDArray[Any], places: Sequence[int]) -> NDArray[Any]:
        if form.transposed:
            return _forward(dy, part.swapaxes(2, 3), windows, places)
        return _adjoint(dy, part, windows, places)

    arrays = {"kernel": np.transpose(kernels(w, before.kept, detail), (3, 2, 0, 1))}
    others = _without(x.shape[-1], before.kept)
    places = one.shape[1:3] if len(one.shape) == 4 else (1, 1)
    if others:
        rest = forward(x[..., others], kernels(w, others, detail), places)
        arrays["rest"] = np.moveaxis(rest, -1, 0)
    if len(one.inputs) > 2:
        arrays["bias"] = planes(np.asarray(one.inputs[2].value), detail)
    if one.incoming is not None:
        dy = _picture(one.incoming)
        missing = _without(dy.shape[-1], detail)
        if missing and one.outgoing[0] is not None:
            rest = back(dy[..., missing], kernels(w, shown, missing), x.shape[:2])
            arrays["rest_back"] = np.moveaxis(rest, -1, 0)
        if one.outgoing[1] is not None:
            dw = np.asarray(one.outgoing[1]).reshape(w.shape)
            arrays["kernel_gradient"] = np.transpose(kernels(dw, shown, detail), (3, 2, 0, 1))
    depth, width = w.shape[2], w.shape[3] // groups
    of_input, of_output = (width, depth) if form.transposed else (depth, width)
    return {
        "kind": "products", "transposed": form.transposed, "windows": windows.plain(),
        "ofInput": of_input, "ofOutput": of_output,  # channels of a group, on both ends
        "arrays": {name: add(array) for name, array in arrays.items()},
    }  # fmt: skip


def _picture(array: Array) -> NDArray[np.float64]:
    """(1, H, W, C) -> (H, W, C); a vector (1, C) -> (1, 1, C)."""
    values = np.asarray(array, np.float64)
    return values[0] if values.ndim == 4 else values.reshape(1, 1, -1)


def _without(count: int, chosen: Sequence[int]) -> list[int]:
    """The channels that are not chosen."""
    return sorted(set(range(count)) - set(chosen))


def _taps(
    windows: Windows, large: Sequence[int], small: Sequence[int]
) -> Iterator[tuple[int, int, tuple[Any, ...], tuple[Any, ...]]]:
    """For each pixel of the window, where it is on the large side and the places whose window it is in."""
    for kh, kw in itertools.product(*map(range, windows.size)):
        rows, columns = (np.arange(n) * step for n, step in zip(small[:2], windows.stride, strict=True))
        row, column = windows.under(0, 0, kh, kw)
        i, j = (np.flatnonzero((at >= 0) & (at < n))
                for at, n in zip((rows + row, columns + column), large, strict=False))  # fmt: skip
        yield kh, kw, np.ix_(rows[i] + row, columns[j] + column), np.ix_(i, j)


def _forward(large: NDArray[Any], w: NDArray[Any], windows: Windows, places: Sequence[int]) -> NDArray[Any]:
    """The convolution of (H, W, C) with w (KH, KW, C, O) -> (OH, OW, O)."""
    small = np.zeros((*places, w.shape[3]))
    for kh, kw, under, over in _taps(windows, large.shape, places):
        small[over] += large[under] @ w[kh, kw]
    return small


def _adjoint(small: NDArray[Any], w: NDArray[Any], windows: Windows, places: Sequence[int]) -> NDArray[Any]:
    """The adjoint of :func:`_forward`: (OH, OW, O) -> (H, W, C) for the C channels of w."""
    large = np.zeros((*places, w.shape[2]))
    for kh, kw, under, over in _taps(windows, places, small.shape):
        large[under] += small[over] @ w[kh, kw].T
    return large


# ----------------------------------------------------------------------------------- gradients of parameters


def parameter_gradients(one: Operation, choice: Choice, add: Add) -> Iterator[dict[str, Any]]:
    """The gradients of parameters that are shown as lists of numbers: which of the numbers, and their array.

    Of one number for each channel, those of the channels that are kept.
    """
    form = form_of(one)
    for place, (name, source) in enumerate(zip(one.names, one.inputs, strict=True)):
        gradient = one.outgoing[place] if place < len(one.outgoing) else None
        if source.number is not None or gradient is None:
            continue
        numbers: Sequence[int]
        if isinstance(form, Products):
            if name == form.w:
                continue  # it has a panel of its own
            numbers = choice.detail
        elif is_map(one.output) and np.shape(gradient)[-1:] == (np.size(gradient),) == one.shape[-1:]:
            numbers = choice.kept[: choice.shown]
        elif np.size(gradient) <= VECTOR:
            numbers = range(np.size(gradient))
        else:
            continue
        array = add(np.asarray(gradient).reshape(-1)[list(numbers)].reshape(-1, 1, 1))
        yield {"label": name, "input": place, "array": array, "numbers": list(numbers),
               "shape": list(np.shape(gradient))}  # fmt: skip

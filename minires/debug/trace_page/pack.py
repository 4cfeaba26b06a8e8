"""What the trace page shows of a recording, made small: some channels, in float32, and the facts around.

A ResNet-50 has millions of values and a page must open fast, so of each feature map only some channels are
kept: those that are largest over all operations that hand channels on as they are (batch norm, ReLU,
addition, pooling), so that one channel can be followed through a whole stage. For the arithmetic of a
convolution more channels of its input are kept where there is room; what the others add is a number for each
place: see :mod:`minires.debug.trace_page.arithmetic`.

Arrays lie in chunks, one for each operation, which the page unpacks when it comes to them. In a chunk the
first bytes of all numbers come first, then all second bytes, and so on, which packs better.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import math
import os
import zlib
from collections.abc import Container, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minires.backend import Array
from minires.debug.card import statistics
from minires.debug.recording import Operation, Recording
from minires.debug.trace_page.arithmetic import (
    VECTOR,
    Choice,
    by_input,
    form_of,
    is_map,
    is_picture,
    packed,
    parameter_gradients,
    planes,
)
from minires.errors import MiniresError
from minires.inspect.graph import crossings
from minires.ops.forms import Formula, Moved, Products
from minires.ops.forms.windows import Windows
from minires.ops.registry import describe

# Channels of a map that are shown, and input channels of a convolution that are kept (None: all of them).
PLANS = [
    (16, None), (16, 256), (16, 64), (16, 16), (12, 12), (8, 8), (6, 6), (4, 4), (3, 3), (2, 2), (1, 1),
]  # fmt: skip
DETAIL = 10  # numbers of a vector with their weights, at least
CHARACTERS = 4.4  # that a number takes in base64 after packing, as measured


def pack(recording: Recording, about: dict[str, Any], limit: int) -> list[str]:
    """Everything the page shows, as chunks in base64; the first one holds JSON: ``about`` and what is where.

    As many channels are kept as fit into ``limit`` characters: see PLANS.

    Shapes: the recording is that of one picture, N = 1.
    Raises: MiniresError if even one channel of each operation is too much.
    """
    families = _families(recording.operations)
    orders, wanted = _orders(recording.operations, families), _wanted(recording.operations)
    size = 0.0
    for plan in PLANS:
        choices = [_choose(one, orders, wanted, *plan) for one in recording.operations]
        size = _estimate(recording.operations, choices)
        if size <= limit:
            chunks = _packed(recording, {**about, "channels": plan[0]}, choices, families)
            size = sum(map(len, chunks))
            if size <= limit:
                return chunks
    raise MiniresError(
        f"the page would have about {size / 1e6:.0f} MB with a single channel of each of the "
        f"{len(recording.operations)} operations, and the limit is {limit / 1e6:.0f} MB; "
        "take a smaller picture or a smaller model"
    )


def _packed(
    recording: Recording, about: dict[str, Any], choices: Sequence[Choice], families: Sequence[int]
) -> list[str]:
    arrays = _Arrays(len(recording.operations))
    said = [describe(one.op).said(one.values()) for one in recording.operations]
    texts = list(dict.fromkeys(said))  # each once: many operations say the same
    operations = [
        {**_operation(one, choices, arrays), "family": families[one.number],
         "said": texts.index(said[one.number])}
        for one in recording.operations
    ]
    table = {
        **about,
        "said": [{"forward": one.math, "backward": one.backward, "words": [one.english, one.chinese]}
                 for one in texts],
        "operations": operations, "back": list(recording.order_back), "blocks": list(blocks(recording)),
        "stages": [list(size) for size in recording.stages], "loss": _number(recording.loss),
        "scores": _scores(recording),
        "arrays": arrays.places,
    }  # fmt: skip
    text = json.dumps(table, allow_nan=False, separators=(",", ":"))
    return [_encoded(text.encode()), *(_encoded(_shuffled(chunk)) for chunk in arrays.chunks)]


def _scores(recording: Recording) -> int | None:
    """The number of the operation that gives the scores of the classes, if the loss is of such."""
    last = recording.operations[-1]
    form = describe(last.op).arithmetic
    return last.inputs[0].number if isinstance(form, Formula) and "k" in form.also else None


def _estimate(operations: Sequence[Operation], choices: Sequence[Choice]) -> float:
    """About how many characters the arrays take."""
    numbers = 0
    for one, choice in zip(operations, choices, strict=True):
        places = math.prod(one.shape[1:3]) if is_map(one.output) else 1
        numbers += places * (len(choice.kept) + choice.shown * max(1, len(one.contributions)))
        if isinstance(form_of(one), Products) and one.inputs[0].number is not None:
            before, size = choices[one.inputs[0].number], Windows.of(one.options).size
            numbers += len(choice.detail) * (len(before.kept) + before.shown) * math.prod(size)
            if len(before.kept) < operations[one.inputs[0].number].shape[-1]:
                numbers += len(choice.detail) * places
    return CHARACTERS * numbers


def _encoded(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data, 6)).decode()


def _shuffled(parts: Sequence[NDArray[np.float32]]) -> bytes:
    """All first bytes, all second bytes, ... of the numbers, which are little-endian."""
    numbers = np.concatenate([part.reshape(-1) for part in parts]) if parts else np.zeros(0, np.float32)
    return numbers.astype("<f4").view(np.uint8).reshape(-1, 4).T.tobytes()


class _Arrays:
    """The arrays of the page, each kept once: in the chunk of the operation that first had it."""

    def __init__(self, chunks: int) -> None:
        self.chunks: list[list[NDArray[np.float32]]] = [[] for _ in range(chunks)]
        self.places: list[list[Any]] = []  # of each array: chunk, where it starts there, shape
        self._known: dict[tuple[Any, ...], int] = {}
        self._used = [0] * chunks

    def add(self, chunk: int, array: Array) -> int:
        """Keep an array in float32. Returns its number."""
        values = np.ascontiguousarray(array, np.float32)
        key = (values.shape, hashlib.sha256(values.data).digest())
        if key not in self._known:
            self._known[key] = len(self.places)
            self.places.append([chunk, self._used[chunk], list(values.shape)])
            self.chunks[chunk].append(values)
            self._used[chunk] += values.size
        return self._known[key]


# ------------------------------------------------------------------------------------ which channels


def _choose(
    one: Operation, orders: Sequence[NDArray[Any]], wanted: dict[int, NDArray[Any]],
    shown: int, kept: int | None,
) -> Choice:  # fmt: skip
    """The channels of an operation, by one of PLANS."""
    order = orders[one.number]
    if not is_map(one.output):
        largest = np.sort(order[:VECTOR])
        return Choice(_ints(largest), len(largest), _ints(order[: max(shown, DETAIL)]))
    first = order[:shown]
    more = order[:0]
    if one.number in wanted:
        by_use = np.argsort(-wanted[one.number], kind="stable")
        count = len(order) if kept is None else kept
        more = by_use[~np.isin(by_use, first)][: max(0, count - len(first))]
    return Choice(_ints([*first, *more]), len(first), _ints(first))


def _ints(values: Iterable[Any]) -> tuple[int, ...]:
    return tuple(int(value) for value in values)


def _families(operations: Sequence[Operation]) -> list[int]:
    """By operation, the first of those whose channels stand for the same, because one hands them on."""
    first = list(range(len(operations)))
    for one in operations:
        for source in one.inputs:
            if describe(one.op).works_by_channel and source.number is not None and is_map(one.output):
                before = operations[source.number].output
                if is_map(before) and before.shape[-1] == one.output.shape[-1]:
                    old, new = sorted((first[one.number], first[source.number]), reverse=True)
                    first = [new if number == old else number for number in first]
    return first


def _orders(operations: Sequence[Operation], families: Sequence[int]) -> list[NDArray[np.int64]]:
    """The channels of each operation, those first that are largest over its family."""
    sizes: dict[int, Any] = {}
    for one in operations:
        values = np.nan_to_num(_rows(one.output))
        energy = np.einsum("mc,mc->c", values, values)
        family = families[one.number]
        sizes[family] = sizes.get(family, 0.0) + energy / max(energy.sum(), np.finfo(np.float64).tiny)
    orders = {family: np.argsort(-size, kind="stable") for family, size in sizes.items()}
    for one in operations:
        parts = [orders[families[source.number]] for source in one.inputs if source.number is not None]
        by_channels = is_map(one.output) and sum(map(len, parts)) == one.shape[-1]
        joins = isinstance(form_of(one), Moved) and len(parts) > 1
        if joins and families[one.number] == one.number and by_channels:
            orders[one.number] = _joined(parts)
    return [orders[family] for family in families]


def _joined(orders: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """The order of channels that stand side by side: the first of each input, then the second, and so on.

    So what is shown of the whole is shown of its parts.
    """
    starts = np.cumsum([0, *(len(order) for order in orders)])
    channels = np.concatenate([order + start for order, start in zip(orders, starts, strict=False)])
    ranks = np.concatenate([np.arange(len(order)) for order in orders])
    return channels[np.argsort(ranks, kind="stable")]


def _rows(array: Array) -> NDArray[np.float64]:
    """(1, H, W, C) -> (H*W, C); anything else is one row."""
    values = np.asarray(array, np.float64)
    return values.reshape(-1, values.shape[-1]) if is_picture(values) else values.reshape(1, -1)


def _wanted(operations: Sequence[Operation]) -> dict[int, NDArray[np.float64]]:
    """By operation that a convolution reads: how much each of its channels adds to the result, by size."""
    wanted: dict[int, NDArray[np.float64]] = {}
    for one in operations:
        form = form_of(one)
        if isinstance(form, Products) and one.inputs[0].number is not None:
            number = one.inputs[0].number
            x = np.sqrt((_rows(operations[number].output) ** 2).mean(axis=0))
            wanted[number] = wanted.get(number, 0.0) + np.nan_to_num(x * by_input(form, one))
    return wanted


# ------------------------------------------------------------------------------------------ one operation


def _operation(one: Operation, choices: Sequence[Choice], arrays: _Arrays) -> dict[str, Any]:
    """What the page knows of an operation, as plain data for JSON; its arrays by number."""
    choice = choices[one.number]

    def add(array: Array) -> int:
        return arrays.add(one.number, array)

    ids: dict[str, int] = {"output": add(planes(one.output, choice.kept))}
    shown = choice.kept[: choice.shown]
    if one.incoming is not None:
        ids["incoming"] = add(planes(one.incoming, shown))
    outgoing = []
    for source, gradient in zip(one.inputs, one.outgoing, strict=False):
        kept = source.number is not None and gradient is not None
        entry: dict[str, Any] = {"size": _size(gradient)}
        if kept:
            before = choices[source.number]  # type: ignore[index]
            entry["array"] = add(planes(gradient, before.kept[: before.shown]))
        outgoing.append(entry)
    return {
        "op": one.op, "label": describe(one.op).called(one.options, one.shape, one.names, short=True),
        "join": describe(one.op).join if sum(source.number is not None for source in one.inputs) > 1 else "",
        "arithmetic": packed(one, choices, add), "parameters": list(parameter_gradients(one, choice, add)),
        "path": one.path, "within": list(one.within), "stage": one.stage,
        "shape": list(one.shape), "options": _plain(dict(one.options)),
        "inputs": [
            {"kind": source.kind, "number": source.number, "name": source.name, "label": label,
             "shape": list(np.shape(source.value)),
             **({} if source.number is not None else _given(source.value))}
            for source, label in zip(one.inputs, one.names, strict=True)
        ],
        "reads": [
            {"label": name, "shape": list(np.shape(array)), "size": _size(array)}
            for name, array in describe(one.op).reads(one.values()).items()
        ],
        "kept": list(choice.kept), "shown": choice.shown, "detail": list(choice.detail),
        "size": _size(one.output), "incoming": _size(one.incoming), "outgoing": outgoing,
        "contributions": [
            {"from": number, "size": _size(part), "array": add(planes(part, shown))}
            for number, part in one.contributions
        ],
        "arrays": ids, "seconds": _number(one.seconds), "backwardSeconds": _number(one.backward_seconds),
    }  # fmt: skip


def _given(value: Array) -> dict[str, Any]:
    """What is said of a parameter or a constant; a single number itself, too."""
    return {"size": _size(value), **({"value": _number(value.reshape(())[()])} if value.size == 1 else {})}


def _size(array: Array | None) -> dict[str, Any] | None:
    """The statistics of an array for JSON."""
    if array is None or np.size(array) == 0:
        return None
    with np.errstate(all="ignore"):  # numbers that are not finite are shown as such
        return {name: _number(value) for name, value in statistics(array)._asdict().items()}


def _number(value: Any) -> float | str:
    """A number for JSON, which has no NaN and no infinity: these are words, which the page can read."""
    value = float(value)
    if math.isfinite(value):
        return float(f"{value:.9g}")
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _plain(value: Any) -> Any:
    """Options as plain data for JSON."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items() if not isinstance(one, np.ndarray)}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if value is None or isinstance(value, bool | str | int):
        return value
    return _number(value) if isinstance(value, float | np.floating) else str(value)


# ------------------------------------------------------------------------------------------------- the map


def blocks(recording: Recording) -> Iterator[dict[str, Any]]:
    """The parts of the network in order, for the map: each with its name, its stage and its operations.

    The operations are cut wherever all paths go through one of them: what lies between two cuts, a residual
    block for instance, belongs together. Neighbours in the same module are one part.
    """
    holders = {path for one in recording.operations for path in one.within[:-1]}
    named = ((_name(part, holders), part) for part in _parts(recording.operations))
    for name, group in itertools.groupby(named, key=lambda pair: pair[0]):
        members = [one for _, part in group for one in part]
        yield {
            "name": name, "stage": members[-1].stage, "operations": [one.number for one in members],
            "joins": any(sum(source.number is not None for source in one.inputs) > 1 for one in members),
        }  # fmt: skip


def _parts(operations: Sequence[Operation]) -> Iterator[Sequence[Operation]]:
    used = [[source.number for source in one.inputs if source.number is not None] for one in operations]
    ends = [place + 1 for place in crossings(used)]
    for start, end in itertools.pairwise(sorted({0, *ends, len(operations)})):
        yield operations[start:end]


def _name(part: Sequence[Operation], holders: Container[str]) -> str:
    """The innermost module that holds all of a part; a layer that stands alone gives its own name."""
    inside = part[:-1] or part  # what joins branches may stand in the module around
    chains = [[path for path in one.within if path in holders] for one in inside]
    around = os.path.commonprefix(chains)
    return around[-1] if around else part[-1].path

"""One event of the stepper as a card: text for a terminal, HTML with pictures for a notebook."""

from __future__ import annotations

import base64
import functools
import html
import importlib
import io
import math
import re
import textwrap
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from minires.backend import Array
from minires.debug.recording import INPUT, Operation, Recording, Source
from minires.ops.plot_labels import times
from minires.ops.registry import describe

WIDTH = 80  # columns of a terminal
CORNER = 4, 6  # rows and columns of the values that are shown
CHANGES = 3  # of the model that are named on each card
MAPS, SMALLEST, LARGEST = 16, 64, 96  # feature maps that are shown, and the sides of one in pixels
COLUMNS = "{:<23} {:>9} {:>9} {:>6} {:>9} {:>9} {:>9}"
NOT_KEPT = "not kept: give the model and x instead"


class Statistics(NamedTuple):
    """What an array is like. Units: ``zeros`` is the share of zeros; ``norm`` is the Euclidean one."""

    mean: float
    std: float
    zeros: float
    min: float
    max: float
    norm: float


def statistics(array: Array) -> Statistics:
    """The statistics of an array, computed in float64."""
    values = np.asarray(array, np.float64)
    if values.size == 0:
        return Statistics(math.nan, math.nan, math.nan, math.nan, math.nan, 0.0)
    zeros = 1 - np.count_nonzero(values) / values.size
    norm = math.sqrt(np.square(values).sum())
    return Statistics(
        float(values.mean()), float(values.std()), zeros, float(values.min()), float(values.max()), norm
    )


# ------------------------------------------------------------------------------------------------- text


def text(recording: Recording, one: Operation, *, backward: bool, title: str) -> str:
    """The card of the forward or the backward event at operation ``one``, at most WIDTH columns wide."""
    said = describe(one.op).said(one.values())
    formulas = said.backward if backward else said.math
    seconds = one.backward_seconds if backward else one.seconds
    name, array = ("d" + _result(one), one.incoming) if backward else (_result(one), one.output)
    parts = [
        [*_wrapped(title), *_wrapped(_where(recording, one, backward)), *_changed(recording)],
        [*(part for line in formulas.splitlines() for part in _wrapped(line, "  ")), *_options(one)],
        [*(_backward(recording, one) if backward else _forward(recording, one)),
         *([f"took {1000 * seconds:.2f} ms"] if seconds else [])],
        list(_corner(name, array)),
    ]  # fmt: skip
    return "\n\n".join("\n".join(part) for part in parts if part)


def _where(recording: Recording, one: Operation, backward: bool) -> str:
    """In which part of the model we are, in which mode it is, and whether its gradients say anything."""
    places = []
    if one.stage:
        size = times(recording.stages[one.stage - 1]) or "scores"
        places.append(f"stage {one.stage} of {len(recording.stages)} ({size})")
    places += [f"block {one.block}"] if one.block else []
    if recording.training is not None:
        places.append("training mode" if recording.training else "inference mode")
    if one is recording.operations[-1] and recording.guessed:
        places.append("no labels given, so the loss is that of the model's own guess")
    if recording.noise and (backward or one is recording.operations[-1]):
        places.append(f"loss about 0 ({recording.loss:.2g}): the gradients are noise, give other labels")
    return ", ".join(places)


def _changed(recording: Recording) -> list[str]:
    """What was changed of the model; of many changes the first ones."""
    lines = [f"changed: {one}" for one in recording.changes[:CHANGES]]
    if (more := len(recording.changes) - CHANGES) > 0:
        lines.append(f"changed: and {more} more")
    return [part for line in lines for part in _wrapped(line)]


def _options(one: Operation) -> list[str]:
    """What the operation was called with; of arrays only the shape."""
    known = describe(one.op)
    moved = [name for name in known.moves if name not in known.reads(one.values())]
    shown = {name: f"{name} {_option(name, value)}" for name, value in one.options.items()}
    after = [shown.pop(name) for name in moved if one.options.get(name) is not None]
    lines = [", ".join(shown.values()), f"after this call: {', '.join(after)}" if after else ""]
    return [part for line in lines for part in _wrapped(line, "  ")]


def _option(name: str, value: Any) -> str:
    if isinstance(value, np.ndarray):
        return str(value.tolist()) if value.size <= 8 and value.ndim == 1 else f"({times(value.shape)} array)"
    if name == "padding" and isinstance(value, tuple) and isinstance(value[0], tuple):
        (top, bottom), (left, right) = value
        same = top == bottom == left == right
        return str(top) if same else f"{top} top, {bottom} bottom, {left} left, {right} right"
    pair = name in ("kernel", "stride", "dilation") and isinstance(value, tuple)
    return times(value) if pair else str(value)


def _forward(recording: Recording, one: Operation) -> Iterator[str]:
    rows = [(name, source.value) for name, source in zip(one.names, one.inputs, strict=True)]
    reads = describe(one.op).reads(one.values())
    yield from _table([*rows, *reads.items(), (_result(one), one.output)])
    for name, source in zip(one.names, one.inputs, strict=True):
        yield from _wrapped(f"{name} is {_origin(recording, source)}", "  ")
    for name in reads:
        given = "an option of this call" if name in one.options else "made in this call"
        yield f"  {name} is {given}, and no gradient flows to it"
    readers = [
        other
        for other in recording.operations
        for source in other.inputs
        if source.number == one.number  # twice where it is multiplied by itself
    ]
    if len(readers) > 1:
        names = "; ".join(map(_name, readers))
        yield from _wrapped(f"a fork: {_result(one)} is read {len(readers)} times, by {names}", "  ")
    parts = [array for _, array in rows]
    if describe(one.op).join and len(parts) > 1 and one.output is not None and not _missing(parts):
        *norms, whole = (_short(statistics(array).norm) for array in (*parts, one.output))
        yield f"  a join: the inputs have norm {' and '.join(norms)}, the result {whole}"


def _missing(arrays: list[Array]) -> bool:
    return any(array is None for array in arrays)


def _backward(recording: Recording, one: Operation) -> Iterator[str]:
    result = _result(one)
    gradients = list(zip((f"d{name}" for name in one.names), one.inputs, one.outgoing, strict=False))
    given = [(name, source, gradient) for name, source, gradient in gradients if gradient is not None]
    yield from _table([(f"d{result}", one.incoming), *((name, gradient) for name, _, gradient in given)])
    parts = [(_name(recording.operations[number]), gradient) for number, gradient in one.contributions]
    if len(parts) == 1:
        yield from _wrapped(f"d{result} comes from {parts[0][0]}", "  ")
    elif parts:
        yield f"  a fork: d{result} is the sum of {len(parts)} contributions"
        total = functools.reduce(np.add, [gradient for _, gradient in parts])
        rows = [(f"from {name}", gradient) for name, gradient in parts] + [("their sum", total)]
        widest = min(max(len(name) for name, _ in rows), WIDTH - 24)
        for name, gradient in rows:
            yield f"    {name[:widest]:<{widest}}  norm {_short(statistics(gradient).norm)}"
    for name, source, _ in given:
        yield from _wrapped(f"{name} goes to {_origin(recording, source)}", "  ")


def _result(one: Operation) -> str:
    """What the formula calls the result."""
    return describe(one.op).result


def _origin(recording: Recording, source: Source) -> str:
    if source.number is not None:
        return _name(recording.operations[source.number])
    return f"the {source.kind} {source.name}" if source.name else f"a {source.kind}"


def _name(one: Operation) -> str:
    return f"{one.number} {one.op} {one.path}".rstrip()


def _table(rows: list[tuple[str, Array]]) -> Iterator[str]:
    yield COLUMNS.format(f"{'':<8} shape", "mean", "std", "zeros", "min", "max", "norm")
    for name, array in rows:
        if array is None:
            yield f"{name:<8} {NOT_KEPT}"
            continue
        found = statistics(array)
        figures = [_short(found.mean), _short(found.std), f"{found.zeros:.1%}"]
        figures += map(_short, (found.min, found.max, found.norm))
        yield COLUMNS.format(f"{name:<8} {times(array.shape) or 'one value'}", *figures)


def _corner(name: str, array: Array | None) -> Iterator[str]:
    """The first values, of pictures those of the first channel of the first."""
    if array is None:
        yield f"{name}: {NOT_KEPT}"
        return
    if array.ndim == 0:
        yield f"{name} = {_value(array)}"
        return
    rows, columns = CORNER
    if array.ndim == 4:
        plane, where = array[0, :, :, 0], f"0, :{rows}, :{columns}, 0"
    elif array.ndim == 1:
        plane, where = array[None], f":{columns}"
    else:
        first = (0,) * (array.ndim - 2)
        plane, where = array[first], ", ".join([*map(str, first), f":{rows}", f":{columns}"])
    yield f"{name}[{where}]"
    for row in plane[:rows, :columns]:
        yield "  " + " ".join(f"{_value(value):>11}" for value in row)


def _value(value: Any) -> str:
    return f"{float(value) + 0.0:.5g}"  # which makes -0 a 0


def _short(value: float) -> str:
    return f"{value + 0.0:.3g}"


def _wrapped(line: str, indent: str = "") -> list[str]:
    """A line in as many as it takes; of formulas side by side each begins a new one."""
    if len(indent + line) <= WIDTH:
        return [indent + line] if line else []
    return [
        wrapped
        for part in re.split(" {3,}", line)
        for wrapped in textwrap.wrap(
            part, WIDTH, initial_indent=indent, subsequent_indent=f"{indent}  ", break_on_hyphens=False
        )
    ]


# ------------------------------------------------------------------------------------------------- HTML


def page(recording: Recording, one: Operation, *, backward: bool, title: str) -> str:
    """The card as a piece of HTML, with the first picture's feature maps or their gradients."""
    card = text(recording, one, backward=backward, title=title)
    shown = {"d" + _result(one): one.incoming} if backward else {_result(one): one.output}
    if backward and one.outgoing:
        shown[f"d{one.names[0]}"] = one.outgoing[0]
    colours = one.op == INPUT and not backward and one.shape[-1:] == (3,)
    pictures = "".join(
        _figure(name, *(photograph(array) if colours else maps(array)))
        for name, array in shown.items()
        if array is not None and array.ndim == 4 and array.size
    )
    return f'<div><pre style="line-height:1.3">{html.escape(card)}</pre>{pictures}</div>'


def _figure(name: str, png: bytes, caption: str) -> str:
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    label = html.escape(f"{name}: {caption}")
    return (
        f'<figure style="margin:0.5em 0"><img src="{source}" alt="{label}">'
        f"<figcaption>{label}</figcaption></figure>"
    )


def photograph(array: Array) -> tuple[bytes, str]:
    """The first picture in its colours as a PNG, its smallest number black and its largest white.

    Shapes: array (N, H, W, 3).
    """
    first = np.nan_to_num(np.asarray(array[0], np.float64))
    step = -(-max(first.shape[:2]) // (2 * LARGEST))
    first = first[::step, ::step]
    low, high = float(first.min()), float(first.max())
    scale = max(1, 2 * SMALLEST // max(first.shape[:2]))
    levels = np.rint(255 * (first - low) / ((high - low) or 1.0)).astype(np.uint8)
    levels = levels.repeat(scale, axis=0).repeat(scale, axis=1)
    return _png(levels), f"picture 0, from {low:.3g} (black) to {high:.3g} (white){_every(step)}"


def maps(array: Array) -> tuple[bytes, str]:
    """The first channels of the first picture side by side as a PNG, and what it shows.

    Zero is white, positive numbers are red and negative ones blue, the largest in size darkest.

    Shapes: array (N, H, W, C).
    """
    first = np.asarray(array[0, :, :, :MAPS], np.float64)
    step = -(-max(first.shape[:2]) // LARGEST)
    first = first[::step, ::step]
    height, width, count = first.shape
    finite = np.where(np.isfinite(first), first, 0.0)
    top = float(abs(finite).max())
    scale = max(1, SMALLEST // max(height, width))
    levels = np.rint(127 + 127 * finite / (top or 1.0)).astype(np.uint8)
    levels = levels.repeat(scale, axis=0).repeat(scale, axis=1)
    columns = min(count, 8)
    rows, high, wide = -(-count // columns), height * scale + 2, width * scale + 2
    sheet = np.full((rows * high, columns * wide), 255, np.uint8)  # 255 is the gap between maps
    for channel in range(count):
        row, column = divmod(channel, columns)
        sheet[row * high : (row + 1) * high - 2, column * wide : (column + 1) * wide - 2] = levels[
            ..., channel
        ]
    of = f"{count} of {array.shape[-1]} channels" if count < array.shape[-1] else f"{count} channels"
    return _png(sheet), f"{of} of picture 0, from {-top:.3g} (blue) to {top:.3g} (red){_every(step)}"


def _every(step: int) -> str:
    return f", one of {step} rows and columns" if step > 1 else ""


def _png(sheet: Array) -> bytes:
    """Colours (H, W, 3), or levels (H, W): 0 to 254 from blue over white to red, 255 grey."""
    image = importlib.import_module("PIL.Image").fromarray(sheet)
    if sheet.ndim == 2:
        image.putpalette(_palette())
    file = io.BytesIO()
    image.save(file, format="PNG", optimize=True)
    return file.getvalue()


def _palette() -> list[int]:
    ends, white = (np.array([33, 102, 172]), np.array([178, 24, 43])), np.array([255, 255, 255])
    colours = [white + (ends[level > 127] - white) * abs(level - 127) / 127 for level in range(255)]
    return [int(part) for colour in colours for part in colour] + [150, 150, 150]

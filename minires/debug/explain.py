"""One number of an operation's result, computed again from the recorded inputs, step by step.

``explain(operation, n=0, i=3, j=5, o=7)`` of a convolution has the window, the kernel, every product of the
im2col row and the kernel's column, their sum, the bias, and the result beside the number that was stored; it
prints as text. Everything is computed in float64, so the stored number may differ by its own rounding.

How a number is computed is what the operation itself declares: see :mod:`minires.ops.forms`. Here it only
becomes text. Places are named as in the formulas: n the picture, i and j the row and the column of the
result, o or c its channel, k a class. What is left out is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from minires.debug.recording import Operation
from minires.errors import ConfigError, MiniresError, ShapeError, as_whole
from minires.inspect.summary import Row, aligned
from minires.ops.forms import Formula, NotKept
from minires.ops.forms.applied import Line, Worked
from minires.ops.forms.applied import Row as Summed
from minires.ops.forms.expressions import reductions, written
from minires.ops.forms.moved import Taken
from minires.ops.forms.pool import Pooled
from minires.ops.forms.products import Multiplied
from minires.ops.forms.windows import Windows
from minires.ops.registry import describe

SHOWN = 8  # of a long list of products so many are printed, the largest
ALL = 12  # a list of at most so many is printed whole
AXES = {0: "", 1: "n", 2: "nc", 3: "nic", 4: "nijc", 5: "nijkc", 6: "nijklc"}  # by the number of axes


@dataclass(frozen=True, eq=False)
class Explanation:
    """How one number came about; ``str`` of it is for reading.

    ``place`` says which number of the result it is, ``result`` is what comes out here, ``stored`` what the
    operation had stored. ``found`` has the numbers on the way, by the kind of arithmetic: of a convolution
    the window, the kernel and the products (:class:`minires.ops.forms.products.Multiplied`), of a pool
    :class:`minires.ops.forms.pool.Pooled`, of a formula :class:`minires.ops.forms.applied.Worked`, of what
    only hands numbers on :class:`minires.ops.forms.moved.Taken`.
    """

    operation: Operation
    place: dict[str, int]
    result: float
    stored: float
    found: Any

    def __repr__(self) -> str:
        return f"<explanation of {self._head}: {_number(self.result)}>"

    @property
    def _head(self) -> str:
        at = ", ".join(f"{axis}={index}" for axis, index in self.place.items())
        return f"{self.operation.op} {self.operation.path}".strip() + (f" at {at}" if at else "")

    def lines(self) -> Iterator[str]:
        """The steps, without heading and result."""
        yield from _LINES[type(self.found)](self.operation, self.found)

    def __str__(self) -> str:
        ends: list[Row] = [("result", _number(self.result)), ("stored", _number(self.stored)),
                ("difference", f"{self.result - self.stored:.1e}")]  # fmt: skip
        lines = [*self.lines(), *aligned(ends, left=1)]
        if self.differs:
            lines.append("these differ: the formula is not what the operation computes")
        return "\n".join([self._head, *(f"  {line}" for line in lines)])

    @property
    def differs(self) -> bool:
        """Whether result and stored number differ by more than rounding: half of the dtype's digits, of the
        largest number of the result."""
        output = np.asarray(self.operation.output)
        if self.result == self.stored or output.dtype.kind in "iub":
            return self.result != self.stored
        if not (np.isfinite(self.result) and np.isfinite(self.stored)):
            return not (np.isnan(self.result) and np.isnan(self.stored))
        largest = float(np.abs(output[np.isfinite(output)].astype(np.float64)).max(initial=abs(self.result)))
        digits = {2: 2.0**-8, 4: 2.0**-23}.get(output.dtype.itemsize, 2.0**-52)
        return bool(abs(self.result - self.stored) > digits**0.5 * largest)


# ----------------------------------------------------------------------------------------------- public


def explain(operation: Operation, **place: int) -> Explanation:
    """Compute one number of the result of ``operation`` again, step by step.

    Raises: ConfigError for an operation that does not say how it is computed; ShapeError for a place that is
    not there, with the ranges; MiniresError if a value that is needed was not kept.
    """
    form = describe(operation.op).arithmetic
    if form is None:
        raise ConfigError(
            f"{operation.op} cannot be explained number by number: it does not say how they are computed. An "
            "own operation says it with minires.ops.registry.operation(arithmetic=...)"
        )
    found = _checked(operation, place, form.last, form.also if isinstance(form, Formula) else {})
    values = operation.values()
    shape = operation.shape
    index = tuple(found[axis] for axis in _letters(shape, form.last))
    try:
        if operation.output is None:
            raise NotKept(values.result)
        stored = float(np.asarray(operation.output)[index])
        if isinstance(form, Formula):
            made: Any = form.number(values, index, {axis: found[axis] for axis in form.also})
        else:
            made = form.number(values, index)
    except NotKept:
        raise MiniresError(
            f"{operation.op} {operation.path}: its values were not kept on the tape; "
            "give step() the model and x instead"
        ) from None
    return Explanation(operation, found, made.result, stored, made)


def _checked(
    operation: Operation, place: dict[str, int], last: str, also: Mapping[str, int]
) -> dict[str, int]:
    """Every axis that a place of the result has, with an index."""
    shape = operation.shape
    sizes = dict(zip(_letters(shape, last), shape, strict=True))
    sizes |= {letter: operation.inputs[0].value.shape[axis] for letter, axis in also.items()}
    found = {axis: place.get(axis, 0) for axis in sizes}
    wrong = [axis for axis in place if axis not in found]
    wrong += [axis for axis, size in sizes.items() if not _fits(found[axis], size)]
    if wrong:
        ranges = ", ".join(f"{axis} 0 to {size - 1}" for axis, size in sizes.items())
        given = ", ".join(f"{axis}={found.get(axis, place.get(axis))!r}" for axis in wrong)
        raise ShapeError(f"explain {operation.op}: there is no {given}; it has {ranges or 'a single value'}")
    return found


def _fits(index: Any, size: int) -> bool:
    place = as_whole(index)
    return place is not None and 0 <= place < size


def _letters(shape: tuple[int, ...], last: str) -> str:
    """A letter for each axis of a result."""
    names = AXES.get(len(shape))
    if names is None:
        raise ShapeError(f"explain: results of {len(shape)} axes are not explained")
    return names.replace("c", last)


# ------------------------------------------------------------------------------------------------- text


def _number(value: float) -> str:
    return f"{value + 0.0:.6g}"  # which makes -0 a 0


def _range(start: int, count: int, apart: int = 1) -> str:
    """So many rows, columns or channels: 1 to 3; of those that are not side by side each."""
    if count == 1:
        return str(start)
    if apart > 1:
        return " ".join(str(start + apart * k) for k in range(count))
    return f"{start} to {start + count - 1}"


def _of_products(operation: Operation, found: Multiplied) -> Iterator[str]:
    if found.corner is not None:
        (kh, kw, depth), (top, left) = found.window.shape, found.corner
        high, wide = Windows.of(operation.options).dilation
        rows, columns = _range(top, kh, high), _range(left, kw, wide)
        yield f"the window: rows {rows}, columns {columns}, channels {_range(found.channel, depth)}"
        yield f"{found.row.size} products, row of im2col ({found.row.size},) times column of the kernel"
        if kh * kw > 1 and depth > 1:
            yield "sums over the channels, for each place of the window:"
            sums = [tuple(map(_number, row)) for row in found.products.sum(axis=2)]
            yield from (f"  {line}" for line in aligned(sums, left=0))
    elif found.window.ndim == 3:
        yield f"{found.row.size} products: numbers of x whose windows are over this place, and weights"
    yield from _product_lines(found)
    yield f"sum {_number(found.sum)}"
    if found.bias is not None:
        yield f"bias {_number(found.bias)}"
    if found.relu:
        yield "then ReLU: what is negative becomes 0"


def _product_lines(found: Multiplied) -> Iterator[str]:
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


def _of_pool(operation: Operation, found: Pooled) -> Iterator[str]:
    (kh, kw), (top, left) = found.window.shape, found.corner
    yield f"the window: rows {_range(top, kh)}, columns {_range(left, kw)}"
    if found.window.size <= ALL**2:
        mark = {found.winner: "*"} if found.winner else {}
        rows = [
            tuple(
                _number(found.window[i, j]) + mark.get((i, j), "") if found.inside[i, j] else "border"
                for j in range(kw)
            )
            for i in range(kh)
        ]
        yield from (f"  {line}" for line in aligned(rows, left=0))
    if found.winner is not None:
        i, j = found.winner
        yield f"the largest (*) is at row {top + i}, column {left + j} of the picture"
    else:
        yield f"sum {_number(found.window[found.inside].sum())} / count {found.count}"


def _of_formula(operation: Operation, found: Worked) -> Iterator[str]:
    sources = dict(zip(operation.names, operation.inputs, strict=True))
    known = {line.name: _number(line.value) for line in found.lines}
    for line in found.lines:
        if line.tree is not None:
            yield _worked_line(line, known)
        elif line.name in sources:
            source = sources[line.name]
            made_by = f"operation {source.number}" if source.number is not None else "constant"
            yield f"{line.name} = {known[line.name]}  ({source.name or made_by})"
        else:
            yield f"{line.name} = {known[line.name]}"
    for row in found.rows:
        yield from _row_lines(row)


def _of_move(operation: Operation, found: Taken) -> Iterator[str]:
    if found.input is None:
        yield "no number of an input: it fills the place"
    else:
        yield f"{found.input}[{', '.join(map(str, found.place))}], handed on as it is"


def _worked_line(line: Line, known: dict[str, str]) -> str:
    """A line of the formula, with its numbers, and what comes out: y = max(x, 0) = max(-2, 0) = 0."""
    parts = [line.name, written(line.tree)]
    if not any(reductions(line.tree)):
        parts.append(written(line.tree, lambda name: known[name]))
    parts.append(_number(line.value))
    return " = ".join(dict.fromkeys(parts))


def _row_lines(row: Summed) -> Iterator[str]:
    """A line per place along the axis, of many those with the largest shares of the sums."""
    size = len(row.shares)
    order = range(size) if size <= ALL else np.argsort(-row.shares, kind="stable")[:SHOWN]
    rows: list[Row] = [(row.axis, *row.columns)]
    rows += [(str(k), *(_number(column[k]) for column in row.columns.values())) for k in order]
    yield from (f"  {line}" for line in aligned(rows, left=0))
    if size > ALL:
        yield f"and {size - SHOWN} with smaller shares of the sums"


_LINES: dict[type, Callable[[Operation, Any], Iterator[str]]] = {
    Multiplied: _of_products, Pooled: _of_pool, Worked: _of_formula, Taken: _of_move,
}  # fmt: skip

"""Arithmetic that a formula says: number by number, with sums and the like over some axes.

    Formula("y = max(x, 0)
             dx = dy if y > 0 else 0")

The inputs are broadcast as in NumPy, and all arrays are seen in the axes of what that gives, the *space* of
the formula. A sum over some axes keeps them, with length 1; the result has its own shape again in the end.
The gradient of an input that was stretched is summed over where it was stretched.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minires.backend import Array
from minires.ops.forms.applied import Applied, Worked
from minires.ops.forms.axes import AllBut, Axes, Near
from minires.ops.forms.expressions import (
    ABSENT,
    Tree,
    names,
    parse,
    plain,
    reductions,
    specialised,
    written,
)
from minires.ops.forms.values import Index, Shape, Values


@dataclass(frozen=True)
class Formula:
    """Arithmetic as a formula, in the language of :mod:`minires.ops.forms.expressions`.

    The lines up to the one of the result are the way forward, a line ``dx = ...`` is the way back to the
    input x. Names are inputs, options, saved arrays named in ``saved``, the result, its gradient (``dy``),
    and what a line before gave. What is named in ``optional`` may be missing: it then falls out, see
    ``specialised``.

    ``axes`` names the axes of sums: some of the space, ``AllBut`` some, ``Near`` ones, or those that an
    option holds. ``values`` are further arrays, computed from what the call was given. ``insert`` gives an
    input a new axis of length 1 at a place of its shape, so that a product of matrices is a sum over the
    middle axis of three. ``last`` is what the last axis of the result is called; ``also`` gives letters to
    axes of the space that the result does not have, so that a place may say them, too.

    Raises: ConfigError for what cannot be read.

    >>> square = Formula("y = x * x\\ndx = 2 * x * dy")
    >>> values = Values({"x": np.array([3.0])}, {}, (1,), dy=np.array([0.5]))
    >>> square.number(values, (0,)).result, square.gradient(values, "x", (0,))
    (9.0, 3.0)
    """

    text: str
    axes: Mapping[str, Axes] = field(default_factory=dict)
    optional: Collection[str] = ()
    saved: Collection[str] = ()
    values: Mapping[str, Callable[[Values], Any]] = field(default_factory=dict)
    insert: Mapping[str, int] = field(default_factory=dict)
    last: str = "c"
    also: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _ = self.trees  # what cannot be read is refused where it is written

    @functools.cached_property
    def trees(self) -> dict[str, Tree]:
        return parse(self.text, self.axes)

    @property
    def channelwise(self) -> bool:
        """Unless a sum is over the last axis."""
        full = (axes for axes in self.axes.values() if not isinstance(axes, Near))
        return not self.insert and not any(_has_last(axes) for axes in full)

    def texts(self, result: str, call: Values | None = None) -> tuple[str, str]:
        """The lines of both ways, as text; of one call those that it needs, for what was given there."""
        lines = self.trees if call is None else self.lines(call)
        ways: tuple[list[str], list[str]] = ([], [])
        back = False
        for name, tree in lines.items():
            summed = call is not None and self._is_summed(name, call, lines)
            more = f", summed over all places that read {name[1:]}" if summed else ""
            ways[back].append(f"{name} = {written(tree)}{more}")
            back = back or name == result
        return "\n".join(ways[0]), "\n".join(ways[1])

    def lines(self, call: Values) -> dict[str, Tree]:
        """The lines that lead to the result of a call and to the gradients of its inputs; what is absent
        there has fallen out."""
        lines = self.specialised(call.inputs, call.options, call.saved)
        wanted = {call.result, *(f"d{name}" for name in call.inputs)}
        for name, tree in reversed(lines.items()):
            if name in wanted:
                wanted |= set(names(tree))
        return {name: tree for name, tree in lines.items() if name in wanted and tree != ABSENT}

    def reads(self, call: Values) -> dict[str, Array]:
        """The arrays that the formula of a call reads besides its inputs, by name: options and saved ones."""
        used = {name for tree in self.lines(call).values() for name in names(tree)}
        arrays = {name: array for name, array in call.options.items() if isinstance(array, np.ndarray)}
        arrays |= {name: call.saved[name] for name in self.saved if name in call.saved}
        return {name: array for name, array in arrays.items() if name in used and name not in call.inputs}

    def specialised(
        self, inputs: Collection[str], options: Mapping[str, Any], saved: Collection[str] = ()
    ) -> dict[str, Tree]:
        """The lines for a call with these inputs, options and saved arrays."""
        given = {*inputs, *saved, *(name for name, value in options.items() if value is not None)}
        absent = [name for name in self.optional if name not in given]
        return {name: specialised(tree, absent, plain(options)) for name, tree in self.trees.items()}

    def _is_summed(self, name: str, call: Values, lines: Mapping[str, Tree]) -> bool:
        """Whether a line gives a number for each place of an input that is stretched, for its gradient."""
        array = call.inputs.get(name[1:]) if name[:1] == "d" else None
        if array is None or self.insert or np.shape(array) == call.shape:
            return False
        waiting, reduced = [name], False
        while waiting:
            tree = lines.get(waiting.pop())
            reduced = reduced or any(reductions(tree))
            waiting += [one for one in names(tree) if one in lines and one[0] == "d"]
        return not reduced and np.size(array) < math.prod(call.shape)

    def of(self, values: Values) -> Applied:
        """The formula for one call."""
        return Applied(self, values)

    def number(self, values: Values, index: Index, also: Mapping[str, int] | None = None) -> Worked:
        """The number at ``index`` of the result; ``also`` has indices by the letters of ``self.also``."""
        return self.of(values).number(index, also or {})

    def gradient(self, values: Values, name: str, index: Index) -> float:
        return self.of(values).gradient(name, index).result

    def whole(self, values: Values) -> Array:
        """The result, all of it. Raises: NotKept."""
        return self.of(values).whole()

    def macs(self, shapes: Mapping[str, Shape], options: Mapping[str, Any], shape: Shape) -> int:
        if not self.insert:
            return 0
        wide = (np.expand_dims(np.empty(shapes[name]), place) for name, place in self.insert.items())
        return math.prod(np.broadcast_shapes(*(array.shape for array in wide)))


def _has_last(axes: Axes) -> bool:
    if isinstance(axes, AllBut):
        return -1 not in axes.axes
    return isinstance(axes, str) or axes == -1 or (isinstance(axes, tuple) and -1 in axes)

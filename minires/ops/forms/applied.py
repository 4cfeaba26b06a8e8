"""A formula for one call of its operation: the axes are numbers, and what is absent there has fallen out."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from minires.backend import Array
from minires.errors import ConfigError
from minires.ops.forms.axes import Axes, Near, banded, numbered
from minires.ops.forms.expressions import ABSENT, Tree, evaluate, names, plain, reductions
from minires.ops.forms.values import Index, NotKept, Shape, Values, floats, kept, moved

Cut = tuple[slice, ...]


class Declared(Protocol):
    """What a formula declares; :class:`minires.ops.forms.formula.Formula` says what that is."""

    @property
    def trees(self) -> Mapping[str, Tree]: ...
    @property
    def axes(self) -> Mapping[str, Axes]: ...
    @property
    def optional(self) -> Collection[str]: ...
    @property
    def saved(self) -> Collection[str]: ...
    @property
    def values(self) -> Mapping[str, Callable[[Values], Any]]: ...
    @property
    def insert(self) -> Mapping[str, int]: ...
    @property
    def also(self) -> Mapping[str, int]: ...
    def specialised(
        self, inputs: Collection[str], options: Mapping[str, Any], saved: Collection[str] = ()
    ) -> dict[str, Tree]: ...


@dataclass(frozen=True)
class Line:
    """A name in a formula, what it stands for (nothing for what was given), and its value at a place."""

    name: str
    tree: Tree
    value: float


@dataclass(frozen=True)
class Row:
    """What a formula adds up along one axis: a column for each array that varies along it, and how much of
    the sums each place has."""

    axis: str
    columns: dict[str, Array]
    shares: Array


@dataclass(frozen=True)
class Worked:
    """A number worked out: the lines of the formula with their values there, and rows where it sums."""

    result: float
    lines: tuple[Line, ...]
    rows: tuple[Row, ...] = ()

    def __getitem__(self, name: str) -> float:
        return next(line.value for line in self.lines if line.name == name)


class Applied:
    """A formula for one call: what is absent there has fallen out, and the axes are numbers.

    Raises: NotKept for an input without which nothing says how large the space is.
    """

    def __init__(self, form: Declared, values: Values) -> None:
        self.form, self.values = form, values
        self.result, self.incoming = values.result, f"d{values.result}"
        self.given = self._given()
        self._check()
        self.trees = form.specialised(values.inputs, values.options, (*values.saved, *self.given))
        missing = next((name for name, array in values.inputs.items() if array is None), None)
        # The shape of the result says how large what is missing may be, where nothing is summed up.
        unkept = [values.shape] if missing and not form.axes else []
        self.space = np.broadcast_shapes(*map(np.shape, self.given.values()), *unkept)
        if missing and form.axes and not self.space:
            raise NotKept(missing)
        self.axes = {
            name: numbered(axes, len(self.space), values.options) for name, axes in form.axes.items()
        }
        self.full = self._full(missing)

    # ------------------------------------------------------------------------------------- what there is

    @functools.cached_property
    def numbers(self) -> dict[str, Any]:
        """The options that are no arrays: numbers, words, yes and no."""
        return plain(self.values.options)

    @functools.cached_property
    def used(self) -> tuple[str, ...]:
        """The names that the formula reads."""
        return tuple(dict.fromkeys(name for tree in self.form.trees.values() for name in names(tree)))

    def _given(self) -> dict[str, Array]:
        """The arrays that were given, in the axes of the space: inputs, options, saved ones, further ones."""
        form, values = self.form, self.values
        arrays = {name: array for name, array in values.options.items() if isinstance(array, np.ndarray)}
        arrays |= {name: values.saved[name] for name in form.saved if name in values.saved}
        for name, make in form.values.items():
            with suppress(NotKept):
                arrays[name] = np.asarray(make(values))
        arrays |= {name: array for name, array in values.inputs.items() if array is not None}
        return {
            name: np.expand_dims(array, form.insert[name]) if name in form.insert else array
            for name, array in arrays.items()
            if name in self.used
        }

    def _check(self) -> None:
        """Raises: ConfigError for a name that nobody knows."""
        known = {*self.given, *self.numbers, *self.form.trees, *self.form.values, *self.values.inputs}
        missing = [name for name in self.used if name not in (*known, self.result, self.incoming)]
        wrong = [name for name in missing if name not in self.form.optional and name not in self.form.saved]
        if wrong:
            raise ConfigError(
                f"formula: there is no {', '.join(wrong)}; the inputs are {', '.join(self.values.inputs)}, "
                f"the options {', '.join(self.values.options) or 'none'}. optional= names what may be missing"
            )

    def _full(self, missing: str | None) -> Shape:
        """The shape of the result, with the axes that were summed up."""
        if missing is None:
            return self.shape_of(self.trees[self.result])
        with suppress(ValueError):  # shapes that do not fit, as one of them is not known
            full = self.shape_of(self.trees[self.result])
            if len(full) <= len(self.space) and math.prod(full) == math.prod(self.values.shape):
                return full
        raise NotKept(missing)

    def shape_of(self, tree: Tree) -> Shape:
        """The shape of what a tree gives, in the space."""
        if isinstance(tree, str):
            if tree in self.given:
                return np.shape(self.given[tree])
            if tree in (self.result, self.incoming):
                return self.full
            return self.shape_of(self.trees[tree]) if tree in self.trees else self._unknown(tree)
        if not isinstance(tree, tuple) or tree[0] in ("text", "count"):
            return ()
        if tree[0] != "reduce":
            return np.broadcast_shapes(*map(self.shape_of, tree[1:]))
        inner = self.shape_of(tree[2])
        shape = (1,) * (len(self.space) - len(inner)) + inner
        if isinstance(self.form.axes[tree[3]], Near):
            return shape
        return tuple(1 if axis in self.axes[tree[3]] else size for axis, size in enumerate(shape))

    def _unknown(self, name: str) -> Shape:
        return () if name in self.numbers else self.values.shape  # a number, or an input that was not kept

    # ----------------------------------------------------------------------------------------- computing

    def _array(self, name: str, cut: Cut) -> Array:
        """An array that was given, its part that ``cut`` of the space needs. Raises: NotKept."""
        if name in self.given:
            array = self.given[name]
        else:
            made = {self.result: self.values.y, self.incoming: self.values.dy}
            array = kept(name, made.get(name))
            array = np.reshape(array, self.full)
        own = cut[len(cut) - array.ndim :]
        part = (slice(None) if n == 1 else one for n, one in zip(array.shape, own, strict=True))
        return floats(array[tuple(part)])

    def _reduced(self, cut: Cut, how: str, value: Any, axes: str) -> Any:
        along = self.axes[axes]
        sizes = [self.space[axis] for axis in along]
        if how == "count":
            return float(math.prod(sizes))
        value = floats(value)
        value = value.reshape((1,) * (len(self.space) - value.ndim) + value.shape)
        near = self.form.axes[axes]
        if isinstance(near, Near):
            return banded(value, near.axis, int(self.values.options[near.size]) // 2)
        whole = [self.space[axis] if axis in along else size for axis, size in enumerate(value.shape)]
        reduce: Callable[..., Any] = getattr(np, how)
        return reduce(np.broadcast_to(value, whole), axis=along, keepdims=True)

    def _work(self, root: Tree, cut: Cut, before: Iterable[str] = ()) -> tuple[Array, dict[str, Any]]:
        """What a tree gives in a part of the space, and the values of all names that it needs, in order,
        and of those in ``before``."""
        found: dict[str, Any] = {}

        def value(name: str) -> Any:
            if name not in found:
                line = name in self.trees and name != self.result
                if line:
                    made = self.run(self.trees[name], value, cut)
                elif name in self.numbers:
                    made = float(self.numbers[name])
                else:
                    made = self._array(name, cut)
                found[name] = made
            return found[name]

        for name in before:
            value(name)
        return floats(self.run(root, value, cut)), found

    def run(self, tree: Tree, value: Callable[[str], Any], cut: Cut) -> Any:
        return evaluate(tree, value, functools.partial(self._reduced, cut))

    def _cut(self, root: Tree, place: Index) -> Cut:
        """The part of the space that the number at ``place`` needs: all of the axes that are summed over."""
        whole: set[int] = set()
        for tree in self._needed(root):
            for _, _, axes in reductions(tree):
                whole |= set(self.axes[axes])
        return tuple(slice(None) if axis in whole else slice(i, i + 1) for axis, i in enumerate(place))

    def _needed(self, root: Tree) -> Iterable[Tree]:
        """A tree and those of the lines that it needs."""
        waiting, seen = [root], set()
        while waiting:
            tree = waiting.pop()
            yield tree
            for name in names(tree):
                if name in self.trees and name != self.result and name not in seen:
                    seen.add(name)
                    waiting.append(self.trees[name])

    # -------------------------------------------------------------------------------------- one number

    def whole(self) -> Array:
        everywhere = (slice(None),) * len(self.space)
        value, _ = self._work(self.trees[self.result], everywhere)
        return np.broadcast_to(value, self.full).reshape(self.values.shape)

    def number(self, index: Index, also: Mapping[str, int]) -> Worked:
        place = moved(index, self.values.shape, self.full)
        place = (0,) * (len(self.space) - len(place)) + place
        for letter, i in also.items():
            axis = self.form.also[letter] % len(place)
            place = (*place[:axis], i, *place[axis + 1 :])
        spared = {axis % len(place) for axis in self.form.also.values()}
        return self._worked(self.result, self.trees[self.result], place, self.full, spared)

    def gradient(self, name: str, index: Index) -> Worked:
        """Of an input that was stretched, the sum over where it was, and the lines of the first place."""
        tree = self.trees.get(f"d{name}", ABSENT)
        if tree == ABSENT:
            raise ConfigError(f"formula: it does not say what d{name} is")
        raw = self.values.input(name)
        full = np.shape(self.given[name]) if name in self.given else raw.shape
        own = moved(index, raw.shape, full)
        lead = len(self.space) - len(full)
        free = [*range(lead), *(lead + axis for axis, size in enumerate(full) if size == 1)]
        place = (0,) * lead + own
        first = self._worked(f"d{name}", tree, place, full, set())
        cut = tuple(slice(None) if axis in free else part for axis, part in enumerate(self._cut(tree, place)))
        value, _ = self._work(tree, cut)
        value = value.reshape((1,) * (len(self.space) - value.ndim) + value.shape)
        at = tuple(slice(None) if axis in free else _inside(i, n) for axis, (i, n) in
                   enumerate(zip(place, value.shape, strict=True)))  # fmt: skip
        return Worked(float(value[at].sum()), first.lines, first.rows)

    def _before_result(self) -> list[str]:
        """The names of the lines that lead to the result."""
        lines = itertools.takewhile(lambda name: name != self.result, self.trees)
        return [name for name in lines if self.trees[name] != ABSENT]

    def _worked(self, name: str, tree: Tree, place: Index, target: Shape, spared: Collection[int]) -> Worked:
        """A number of an array of the shape ``target``. What varies along an axis that it has not, and is
        not ``spared``, has no value of its own at the place: it is in the rows."""
        cut = self._cut(tree, place)
        value, found = self._work(tree, cut, self._before_result() if name == self.result else ())
        at = tuple(i if part == slice(None) else 0 for i, part in zip(place, cut, strict=True))
        whole = (1,) * (len(self.space) - len(target)) + target
        summed = {axis for axis, size in enumerate(whole) if size == 1} - set(spared)
        lines = [Line(known, self.trees.get(known) if known != self.result else None, _pick(v, at))
                 for known, v in found.items()
                 if all(_along(v, axis, at) is None for axis in summed)]  # fmt: skip
        result = _pick(value, at)
        rows = tuple(self._rows(tree, cut, at, found))
        return Worked(result, (*lines, Line(name, tree, result)), rows)

    def _rows(self, root: Tree, cut: Cut, at: Index, found: Mapping[str, Any]) -> Iterator[Row]:
        """For each single axis that is summed over: what is there, place by place."""
        sums: dict[str, list[Array]] = {}
        for tree in self._needed(root):
            for how, inner, axes in reductions(tree):
                if len(self.axes[axes]) == 1 and not isinstance(self.form.axes[axes], Near) and how == "sum":
                    sums.setdefault(axes, []).append(floats(self.run(inner, found.__getitem__, cut)))
        for axes in filter(sums.__contains__, self.axes):  # in the order in which they are declared
            terms = sums[axes]
            (axis,) = self.axes[axes]
            columns = {name: _along(value, axis, at) for name, value in found.items()}
            columns = {name: column for name, column in columns.items() if column is not None}
            shares = np.zeros(self.space[axis])
            for term in terms:
                column = _along(term, axis, at)
                size = 0.0 if column is None else np.abs(column).sum()
                shares = shares if column is None or not size else shares + np.abs(column) / size
            if columns:
                yield Row(axes, columns, shares)


def _inside(i: int, size: int) -> int:
    return i if i < size else 0


def _pick(value: Any, at: Index) -> float:
    """The number at a place of a part of the space."""
    array = floats(value)
    own = at[len(at) - array.ndim :]
    return float(array[tuple(_inside(i, n) for i, n in zip(own, array.shape, strict=True))])


def _along(value: Any, axis: int, at: Index) -> Array | None:
    """The numbers along an axis at a place; None where they do not vary along it."""
    array = floats(value)
    array = array.reshape((1,) * (len(at) - array.ndim) + array.shape)
    if array.shape[axis] == 1:
        return None
    index = tuple(slice(None) if a == axis else _inside(i, n)
                  for a, (i, n) in enumerate(zip(at, array.shape, strict=True)))  # fmt: skip
    column: Array = array[index]
    return column

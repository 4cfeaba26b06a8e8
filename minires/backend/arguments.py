"""What a kernel is handed, checked against its declaration before it runs.

A compiled kernel asks nothing: an array that is too short is read beyond its end. So a kernel declares its
arrays, and each call is held to that:

    @kernel(x="(M, >= C)", mean="(C)", add="maybe (M, C)", y="out (M, C)", where="0 <= start <= stop <= M")
    def _normalize_numba(x, mean, add, y, start, stop): ...

    (M, C)     the sizes of the axes: a name stands for one size wherever it stands, ``_`` for any; all else
               is an expression of these names and of the kernel's arguments; ``>= C`` is at least as large
    out        the kernel writes to it
    maybe      an array whose first axis is empty stands for one that is not given
    flat       there are no gaps between its numbers
    float64    its dtype; ``float`` is float32 or float64, and so it is where none stands, but then the same
               for all

and ``where`` is what else must hold of the arguments; in it ``lanes_of(dtype_)`` is how many numbers of their
type a vector holds.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from minires.backend.simd import lanes
from minires.errors import MiniresError

Check = Callable[..., None]
_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
_LINE = re.compile(r"((?:\w+ )*)\((.*)\)")
_WORDS = {"out", "maybe", "flat"}


@dataclass(frozen=True)
class _Array:
    """One line of a declaration."""

    name: str
    words: frozenset[str]
    dtype: str
    axes: tuple[str, ...]

    @classmethod
    def parse(cls, name: str, line: str) -> _Array:
        found = _LINE.fullmatch(line)
        if found is None:
            raise MiniresError(f"{name}={line!r} is no declaration of an array, such as 'out float64 (N, C)'")
        words = set(found[1].split())
        dtype = next(iter(words - _WORDS), "")
        axes = tuple(axis.strip() for axis in found[2].split(",") if axis.strip())
        return cls(name, frozenset(words & _WORDS), dtype, axes)

    def conditions(self) -> Iterator[tuple[str, str]]:
        """What must hold of the array, as an expression, and how it is said."""
        kind, name = f"dtype_{self.name}" if self.dtype else "dtype_", self.name
        said = f"be {self.dtype or 'of the dtype of all'}"
        any_float, equal = f"{name}.dtype in FLOATS", f"({name}.dtype is {kind} or {name}.dtype == {kind})"
        yield any_float if self.dtype == "float" else equal, said
        if "out" in self.words:
            yield f"{name}.flags.writeable", "be writable"
        if "flat" in self.words:
            yield f"{name}.flags.c_contiguous", "be without gaps"
        said = f"be of shape ({', '.join(self.axes)})"
        if all(axis != "_" and not axis.startswith(">=") for axis in self.axes):
            fit = f"shape_{name} == ({''.join(f'{axis}, ' for axis in self.axes)})"
        else:
            fit = " and ".join([
                f"len(shape_{name}) == {len(self.axes)}",
                *(
                    f"shape_{name}[{place}] {axis if axis.startswith('>=') else f'== {axis}'}"
                    for place, axis in enumerate(self.axes)
                    if axis != "_"
                ),
            ])  # fmt: skip
        if "maybe" in self.words:
            fit = f"{fit} or (len(shape_{name}) == {len(self.axes)} and not shape_{name}[0])"
            said += " or empty"
        yield f"({fit})", said

    def sizes(self, named: Mapping[str, str]) -> str:
        """The names of sizes that are those of this array, and ``_`` for its other axes; "" for none."""
        names = [axis if named.get(axis) == self.name else "_" for axis in self.axes]
        return "".join(f"{name}, " for name in names) if set(names) - {"_"} else ""


def checker(function: Callable[..., Any], declared: Mapping[str, str], where: str = "True") -> Check:
    """A function of a kernel's arguments that raises MiniresError, with numbers, if they do not fit.

    It is made as the text of a function, as it goes before every call of a kernel: in this form it takes
    about a microsecond.

    >>> def double(x, y):
    ...     y[:] = 2 * x
    >>> check = checker(double, {"x": "(N)", "y": "out (N)"})
    >>> check(np.ones(3), np.ones(3))
    >>> check(np.ones(3), np.ones(4))
    Traceback (most recent call last):
    ...
    minires.errors.MiniresError: kernel double: y is float64 (4,), but must be of shape (N); N = 3
    """
    parameters = list(inspect.signature(function).parameters)
    arrays = [_Array.parse(name, line) for name, line in declared.items()]
    named: dict[str, str] = {}  # in which array each name of a size is found first
    for array in arrays:
        for axis in array.axes:
            if axis.isidentifier() and axis != "_" and "maybe" not in array.words and axis not in parameters:
                named.setdefault(axis, array.name)
    same = next((array.name for array in arrays if not array.dtype), None)
    conditions = [(array, *one) for array in arrays for one in array.conditions()]
    are_arrays = [f"(type({a.name}) is ndarray or isinstance({a.name}, ndarray))" for a in arrays]
    text = "\n    ".join([
        f"def check({', '.join(parameters)}):",
        f"if {' and '.join(are_arrays)}:",
        *(f"    shape_{array.name} = {array.name}.shape" for array in arrays),
        f"    dtype_ = {same}.dtype" if same else "    dtype_ = None",
        "    try:",
        *(f"        {sizes}= shape_{array.name}" for array in arrays if (sizes := array.sizes(named))),
        f"        if {'dtype_ in FLOATS and ' if same else ''}"
        f"{' and '.join(code for _, code, _ in conditions)} and ({where}): return",
        "    except (ValueError, ZeroDivisionError): pass  # too few axes; no groups, for one",
        "refuse(locals())",
    ])  # fmt: skip

    def refuse(given: dict[str, Any]) -> None:
        raise MiniresError(f"kernel {function.__name__}: {_wrong(given, arrays, conditions, where)}")

    namespace: dict[str, Any] = {"ndarray": np.ndarray, "FLOATS": _FLOATS, "refuse": refuse}
    namespace |= {"lanes_of": lanes, **_dtypes(arrays)}
    exec(text, namespace)
    check: Check = namespace["check"]
    return check


def _dtypes(arrays: list[_Array]) -> dict[str, np.dtype[Any]]:
    """What stands for the dtypes that were declared."""
    return {f"dtype_{array.name}": np.dtype(array.dtype) for array in arrays if array.dtype}


def _wrong(
    given: dict[str, Any], arrays: list[_Array], conditions: list[tuple[_Array, str, str]], where: str
) -> str:
    """What does not fit, with the numbers."""
    for array in arrays:
        value = given[array.name]
        if not isinstance(value, np.ndarray):
            return f"{array.name} is a {type(value).__name__}, but must be a NumPy array"
    known = {name: value for name, value in given.items() if isinstance(value, int | tuple)}
    shown = "".join(f"; {n} = {v}" for n, v in known.items() if not n.startswith("shape_"))
    names = {"FLOATS": _FLOATS, **_dtypes(arrays)}
    for array, code, said in conditions:
        try:
            holds = eval(code, names | given)
        except (NameError, ZeroDivisionError):  # a size that is not known, as an array has too few axes; or
            holds = True  # one that nothing can be divided by, which ``where`` says
        if not holds:
            value = given[array.name]
            return f"{array.name} is {value.dtype} {value.shape}, but must {said}{shown}"
    dtype = given["dtype_"]
    if dtype not in (None, *_FLOATS):
        return f"its numbers must be float32 or float64, not {dtype}"
    return f"this must hold: {where}{shown}"

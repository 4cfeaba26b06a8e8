"""The formula of an operation, as its own documentation gives it.

A function says it under "Math:" and "Backward:", or the head of its file does, in indented lines; those that
begin with a gradient (dx, dw, dbeta, ...) are of the way back.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Iterator
from types import ModuleType
from typing import NamedTuple

from minires import ops

_HEADINGS = "Math|Shapes|Units|Backward|Raises|Source|Differs"
_GRADIENT = re.compile(r"(backward: +)?d\w+(\[\w+\])?( =|:|,)")


class Formula(NamedTuple):
    """What an operation computes, and how its gradients are had; one or more lines each."""

    forward: str
    backward: str


@functools.cache
def formula(op: str) -> Formula | None:
    """The formula of the operation ``op`` as it is called on the tape; None if it is none of ours."""
    for module in _modules():
        function = getattr(module, op, None)
        mine = inspect.isfunction(function) and function.__module__ == module.__name__
        if mine or module.__name__.endswith(f".{op}"):
            head = _head(module)
            return Formula(
                _section(function, "Math") or "\n".join(head.forward),
                _section(function, "Backward") or "\n".join(head.backward),
            )
    return None


def _modules() -> Iterator[ModuleType]:
    yield from (value for value in vars(ops).values() if isinstance(value, ModuleType))


def _section(function: object, heading: str) -> str:
    """What a docstring says under a heading; nothing where it refers to the head of its file."""
    text = " ".join((inspect.getdoc(function) or "").split()) if inspect.isfunction(function) else ""
    found = re.search(rf"\b{heading}: (.*?)\.?(?= (?:{_HEADINGS})[:,]| ``|$)", text)
    return "" if found is None or found[1].startswith("see the head") else found[1]


class _Head(NamedTuple):
    forward: list[str]
    backward: list[str]


def _head(module: ModuleType) -> _Head:
    """The indented lines at the head of a file, before its shapes."""
    head = _Head([], [])
    for line in (module.__doc__ or "").splitlines():
        text = line.strip()
        if line.startswith(("Shapes:", "Source:")):
            break
        if line.startswith("Backward, "):  # what the formulas below call by a letter
            head.backward.append(text.removeprefix("Backward, ").rstrip(":"))
        elif line.startswith(" "):
            (head.backward if _GRADIENT.match(text) else head.forward).append(text)
    return head

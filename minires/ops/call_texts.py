"""What is said of one call: a text in which only those parts stand that hold for its inputs and options.

    "y = x @ w{b? + b}"                          " + b" stands where the input b was given
    "sum / {count_padding?KH*KW|inside}"         the one or the other, as the option says
    "{relu?then ReLU||with relu then ReLU}"      the third part is for `help`, which knows of no call
    "y = [{inputs}]"                             the names of the inputs; {axis} is the option's value

A condition is one in the language of formulas (see :mod:`minires.ops.forms.expressions`): names of inputs and
options, numbers, words, comparisons, and, or, not. What was not given is ``none``; of several numbers the
largest counts (``padding > 0``); an input or an array that was given holds. There are besides ``inputs`` and
``gradients``, their names; ``ndim`` of the result; ``stretched``, whether an input has fewer numbers than it;
and what the operation adds itself (``facts``).
Such parts may stand in each other. Without a third part `help` shows the first, or "first if condition else
second".
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from minires.errors import ConfigError
from minires.ops.forms import Values
from minires.ops.forms.expressions import Tree, evaluate, names, parse

_PART = re.compile(r"\{(\w+)\}|\{([^{}?]+)\?([^{}]*)\}")
Facts = Mapping[str, Any]


def facts_of(call: Values, more: Callable[[Values], Facts] | None) -> dict[str, Any]:
    """What the conditions of a text may ask of a call."""
    facts: dict[str, Any] = {name: _plain(value) for name, value in call.options.items()}
    facts |= dict.fromkeys(call.inputs, True)
    facts |= {
        "inputs": ", ".join(call.inputs),
        "gradients": ", ".join(f"d{name}" for name in call.inputs),
        "ndim": len(call.shape),
        "stretched": any(x is not None and np.size(x) < math.prod(call.shape) for x in call.inputs.values()),
    }
    return facts | dict(more(call) if more else {})


def _plain(value: Any) -> Any:
    """An option as a condition has it."""
    if isinstance(value, tuple | list):
        numbers = list(_numbers(value))
        return max(numbers) if numbers else True
    return True if isinstance(value, np.ndarray) else value


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, tuple | list):
        for part in value:
            yield from _numbers(part)
    elif isinstance(value, int | float):
        yield value


def of_call(text: str, facts: Facts) -> str:
    """The text for a call of which ``facts`` are known; lines of which nothing is left fall out."""

    def part(found: re.Match[str]) -> str:
        name, condition, parts = found.groups()
        if name:
            known = name in facts and facts[name] is not True
            return ("" if facts[name] is None else str(facts[name])) if known else found[0]
        first, other, _ = _three(parts)
        return first if _holds(condition, facts) else other or ""

    return _filled(text, part)


def of_all(text: str) -> str:
    """The text for all calls, as `help` shows it."""

    def part(found: re.Match[str]) -> str:
        name, condition, parts = found.groups()
        if name:
            return {"inputs": "x1, x2, ...", "gradients": "dx1, dx2, ..."}.get(name, found[0])
        first, other, general = _three(parts)
        if general is not None:
            return general
        return first if other is None else f"{first} if {condition} else {other}"

    return _filled(text, part)


def check(text: str) -> None:
    """Raises: ConfigError for a condition that cannot be read, or parts that are more than three."""

    def part(found: re.Match[str]) -> str:
        if found[2]:
            _three(found[3])
            _test(found[2])
        return ""

    _filled(text, part)


def _filled(text: str, part: Callable[[re.Match[str]], str]) -> str:
    """The innermost parts first, until there are none; what is empty then was not so before."""
    lines = text.splitlines()
    for at, line in enumerate(lines):
        while (new := _PART.sub(part, line)) != line:
            line = new
        lines[at] = line.rstrip()
    return "\n".join(line for line in lines if line)


def _three(parts: str) -> tuple[str, str | None, str | None]:
    found = parts.split("|")
    if len(found) > 3:
        raise ConfigError(f"text {parts!r}: there are {len(found)} parts, but at most three may stand: a|b|c")
    first, other, general = (*found, None, None)[:3]
    return str(first), other, general


def _test(condition: str) -> Tree:
    return parse(f"holds = {condition.strip()}")["holds"]


def _holds(condition: str, facts: Facts) -> bool:
    tree = _test(condition)
    known = {**dict.fromkeys(names(tree)), **facts}
    try:
        return bool(evaluate(tree, known.__getitem__, _no_reduction))
    except TypeError:  # a comparison with what was not given
        return False


def _no_reduction(how: str, value: Any, axes: str) -> Any:
    raise ConfigError(f"text: {how} over {axes} is no condition")

"""What ``print(model)`` shows, and a notebook: a line for each module, blocks before what is in them."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any, NamedTuple


class Line(NamedTuple):
    """One module: how deep it stands, what it is, what it holds itself, and the size of all parameters."""

    depth: int
    what: str
    held: str
    size: int


def arguments(thing: Any) -> str:
    """The arguments with which something was made, as far as it keeps them in attributes of the same name.

    Those that may be given by position come first; of the others, and of those with a default, only what
    differs from the default is shown.

    >>> class Pool:
    ...     def __init__(self, kernel, *, stride=2, padding=0):
    ...         self.kernel, self.stride, self.padding = kernel, stride, padding
    >>> arguments(Pool(3, padding=1))
    '3, padding=1'
    """
    shown, in_order = [], True
    for one in inspect.signature(type(thing)).parameters.values():
        if isinstance(getattr(type(thing), one.name, None), property):
            continue  # a user's own may do anything
        value = getattr(thing, one.name, inspect.Parameter.empty)
        if value is None and isinstance(one.default, bool):
            value = False  # bias=False makes a layer without one
        known = one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY) and _is_plain(value)
        by_place = one.kind is one.POSITIONAL_OR_KEYWORD and one.default is one.empty
        if known and by_place and in_order:
            shown.append(repr(value))
        elif known and not (_is_plain(one.default) and value == one.default):
            shown.append(f"{one.name}={value!r}")
        in_order = in_order and known and by_place
    return ", ".join(shown)


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def as_text(lines: Sequence[Line], total: str) -> str:
    """The lines as a tree of text, ``total`` behind the first."""
    left = [f"{'  ' * line.depth}{line.what}" for line in lines]
    figures = [f"{line.size:,}" if line.size else "" for line in lines]
    widths = [max(map(len, column)) for column in (left[1:] or [""], [line.held for line in lines], figures)]
    rows = [
        f"{what:<{widths[0]}}  {line.held:<{widths[1]}}  {figure:>{widths[2]}}".rstrip()
        for what, line, figure in zip(left, lines, figures, strict=True)
    ]
    first = lines[0]
    return "\n".join([", ".join(filter(None, (first.what, first.held, total))), *rows[1:]])


def as_html(lines: Sequence[Line], total: str) -> str:
    """The lines as a tree that can be folded, blocks folded at first."""
    open_at: list[int] = []
    parts = ['<div style="font-family: monospace">']
    for number, line in enumerate(lines):
        while open_at and open_at[-1] >= line.depth:
            parts.append("</div></details>")
            open_at.pop()
        words = [line.what, line.held, total if number == 0 else f"{line.size:,}" if line.size else ""]
        text = escape(", ".join(filter(None, words)))
        if number + 1 < len(lines) and lines[number + 1].depth > line.depth:
            opened = " open" if number == 0 else ""
            parts.append(f'<details{opened}><summary>{text}</summary><div style="margin-left: 2em">')
            open_at.append(line.depth)
        else:
            parts.append(f"<div>{text}</div>")
    return "".join([*parts, "</div></details>" * len(open_at), "</div>"])


def shapes(held: Iterable[tuple[str, str]]) -> str:
    """weight (3, 3, 3, 16), bias (16,)"""
    return ", ".join(f"{name} {what}" for name, what in held)

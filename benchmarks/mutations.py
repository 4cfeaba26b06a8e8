"""Small faults in source text: where one can be put in, and what the text is with it.

A mutant changes a place: an operator or a comparison becomes another one, a condition its opposite, a
number one more, zero, or twice as much; True becomes False; a minus, a ``not``, a ``break`` or ``continue``
goes; a function returns None; a default is another one. All other text stays as it is.

Left out: texts, types, messages of errors, words by which an operation says what it is, and the cases and
inputs that it names for its checks.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Not drawn: words and texts of a declaration; inputs that are made to be checked on.
WORDS = {"english", "chinese", "label", "math", "backward", "arithmetic", "shapes", "source", "role"}
INPUTS = re.compile(r"(^|_)cases?($|_)|^(apart|TYPE_CHECKING|__all__|__getattr__)$")

SWAPPED = {"+": "-", "-": "+", "*": "/", "/": "*", "//": "*", "%": "*", "**": "*"}
OPPOSITE = {
    "<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==",
    "is": "is not", "is not": "is", "in": "not in", "not in": "in", "and": "or", "or": "and",
}  # fmt: skip
_OPERATOR = re.compile(r"is\s+not|not\s+in|is|in|and|or|\*\*|//|[<>=!]=|[-+*/%<>]")


@dataclass(frozen=True)
class Mutant:
    """One change: bytes ``start`` to ``stop`` of a file become ``new``."""

    file: str
    line: int
    start: int
    stop: int
    new: str
    change: str
    code: str
    column: int  # in ``code``
    function: str

    def described(self) -> dict[str, Any]:
        """What is kept of it."""
        return {key: value for key, value in vars(self).items() if key not in ("start", "stop", "new")}


def mutants_of(path: Path, root: Path) -> list[Mutant]:
    """All mutants of a file, in the order of their places."""
    data = path.read_bytes()
    lines = data.splitlines(keepends=True)
    begins = [0]
    for line in lines:
        begins.append(begins[-1] + len(line))
    found: list[Mutant] = []

    def at(row: int, column: int) -> int:
        return begins[row - 1] + column

    def span(node: Any) -> tuple[int, int]:
        return at(node.lineno, node.col_offset), at(node.end_lineno, node.end_col_offset)

    def change(start: int, stop: int, new: str, function: str) -> None:
        row = data.count(b"\n", 0, start) + 1
        old = " ".join(data[start:stop].decode().split())
        line = lines[row - 1]
        column = start - begins[row - 1] - (len(line) - len(line.lstrip()))
        name, what = path.relative_to(root).as_posix(), f"{old} -> {new or 'nothing'}"
        found.append(Mutant(name, row, start, stop, new, what, line.decode().strip(), column, function))

    def between(left: Any, right: Any, table: dict[str, str], function: str) -> None:
        start, stop = span(left)[1], span(right)[0]
        gap = data[start:stop].decode()
        operator = _OPERATOR.search(gap)
        if operator and "#" not in gap and (new := table.get(" ".join(operator[0].split()))):
            change(start + operator.start(), start + operator.end(), new, function)

    def visit(node: ast.AST, function: str) -> None:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            if INPUTS.search(node.name):
                return
            function = f"{function}.{node.name}" if function else node.name
        if isinstance(node, ast.FunctionDef):
            for default in [*node.args.defaults, *node.args.kw_defaults]:
                value = default.value if isinstance(default, ast.Constant) else ...
                if value is None or isinstance(value, str):  # numbers are constants like others
                    change(*span(default), "0" if value is None else f'"{value}x"', function)
        if isinstance(node, ast.BinOp | ast.Compare):
            sides = [node.left, node.right] if isinstance(node, ast.BinOp) else [node.left, *node.comparators]
            table = SWAPPED if isinstance(node, ast.BinOp) else OPPOSITE
            if isinstance(node, ast.Compare) or not any(map(_is_text, sides)):
                for left, right in zip(sides, sides[1:], strict=False):
                    between(left, right, table, function)
        elif isinstance(node, ast.AugAssign):
            between(node.target, node.value, SWAPPED, function)
        elif isinstance(node, ast.BoolOp):
            for left, right in zip(node.values, node.values[1:], strict=False):
                between(left, right, OPPOSITE, function)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
            start = span(node)[0]
            change(start, start + (3 if isinstance(node.op, ast.Not) else 1), "", function)
        elif isinstance(node, ast.Return) and node.value and not _is_none(node.value):
            change(*span(node), "return None", function)
        elif isinstance(node, ast.Break | ast.Continue):
            change(*span(node), "pass", function)
        elif isinstance(node, ast.Constant):
            for new in _other_values(node.value):
                change(*span(node), new, function)
        if isinstance(node, ast.If | ast.While | ast.IfExp) and not INPUTS.search(ast.unparse(node.test)):
            start, stop = span(node.test)
            change(start, stop, f"(not ({data[start:stop].decode()}))", function)
        for name, value in ast.iter_fields(node):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST) and not _left_out(child, name):
                    visit(child, function)

    visit(ast.parse(data), "")
    return sorted(found, key=lambda one: (one.start, one.stop, one.new))


def _left_out(node: ast.AST, field: str) -> bool:
    """Types, texts, words, messages, and what is declared to be checked on."""
    if field in ("annotation", "returns", "cause") or isinstance(node, ast.JoinedStr | ast.Raise):
        return True
    if isinstance(node, ast.Assign):
        return any(INPUTS.search(ast.unparse(target)) for target in node.targets)
    return isinstance(node, ast.keyword) and node.arg in WORDS or (
        isinstance(node, ast.Call) and bool(INPUTS.search(ast.unparse(node.func)))
    )  # fmt: skip


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or isinstance(getattr(node, "value", None), str)


def _other_values(value: Any) -> Iterator[str]:
    if isinstance(value, bool):
        yield str(not value)
    elif isinstance(value, int | float):
        yield from dict.fromkeys(str(other) for other in (value + 1, 0, value * 2) if other != value)


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two descriptions are of one change, though lines may have moved."""
    return all(one[key] == other[key] for key in ("file", "code", "column", "change"))

"""The small language in which an operation writes its formula: parsed once, computed here and on a page.

    xhat = (x - mean) / sqrt(var + eps)
    y = gamma * xhat + beta
    dgamma = sum(dy * xhat, batch)

Each line gives a name to an expression: numbers, names, ``+ - * / **``, comparisons, ``and or not``,
``a if test else b``, the functions in FUNCTIONS; and ``sum``, ``mean``, ``max``, ``min`` over the places of a
named set of axes (``row``, ``batch``), which keep their axes with length 1, and ``count(batch)``, their
number. It is Python's syntax, read by ``ast`` and never run.

A tree is a number, a text (a name), or a tuple: a function's name and its arguments. So it is plain data,
which a page in another language can compute too.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np

from minires.errors import ConfigError

Tree = Any  # float | str | tuple[str, *Tree]
Reduced = Callable[[str, Any, str], Any]  # how, of what, over which axes

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "exp": np.exp, "log": np.log, "sqrt": np.sqrt, "abs": np.abs, "sign": np.sign, "tanh": np.tanh,
    "max": np.maximum, "min": np.minimum,
}  # fmt: skip
OPERATORS: dict[str, Callable[..., Any]] = {
    "+": np.add, "-": np.subtract, "*": np.multiply, "/": np.divide, "**": np.power, "neg": np.negative,
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq,
    "!=": operator.ne, "and": np.logical_and, "or": np.logical_or, "not": np.logical_not, "if": np.where,
}  # fmt: skip
REDUCTIONS = ("sum", "mean", "max", "min")
_SIGNS: dict[type, str] = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.Pow: "**", ast.USub: "neg", ast.Not: "not",
    ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!=", ast.And: "and",
    ast.Or: "or",
}  # fmt: skip


# ------------------------------------------------------------------------------------------------ reading


def parse(text: str, axes: Collection[str] = ()) -> dict[str, Tree]:
    """The lines of a formula, by the name that each gives; ``axes`` are the named sets of axes.

    Raises: ConfigError with what cannot be read.
    """
    try:
        module = ast.parse(_dedented(text))
    except SyntaxError as error:
        raise ConfigError(f"formula {text.strip()!r}: {error.msg}, line {error.lineno}") from None
    lines: dict[str, Tree] = {}
    for line in module.body:
        target = line.targets[0] if isinstance(line, ast.Assign) and len(line.targets) == 1 else None
        if not isinstance(line, ast.Assign) or not isinstance(target, ast.Name):
            raise ConfigError(f"formula: {ast.unparse(line)!r} gives no name; write y = ...")
        if target.id in lines:
            raise ConfigError(f"formula: {target.id} is given twice; take another name for the second")
        lines[target.id] = _tree(line.value, axes)
    return lines


def _dedented(text: str) -> str:
    return "\n".join(line.strip() for line in text.strip().splitlines())


def _tree(node: ast.expr, axes: Collection[str]) -> Tree:
    """One expression as a tree."""

    def read(part: ast.expr) -> Tree:
        return _tree(part, axes)

    match node:
        case ast.Constant(value=bool() | int() | float() as number):
            return float(number)
        case ast.Constant(value=str() as text):
            return ("text", text)
        case ast.Name(id=name):
            return name
        case ast.UnaryOp(op=op, operand=part) if type(op) in _SIGNS:
            inner = read(part)
            return (
                -inner if isinstance(op, ast.USub) and isinstance(inner, float) else (_SIGNS[type(op)], inner)
            )
        case ast.BinOp(left=a, op=op, right=b) if type(op) in _SIGNS:
            return (_SIGNS[type(op)], read(a), read(b))
        case ast.BoolOp(op=op, values=parts):
            return _joined(_SIGNS[type(op)], [read(part) for part in parts])
        case ast.Compare(left=first, ops=ops, comparators=others) if all(type(op) in _SIGNS for op in ops):
            parts = [first, *others]
            pairs = zip(ops, parts, others, strict=False)
            return _joined("and", [(_SIGNS[type(op)], read(a), read(b)) for op, a, b in pairs])
        case ast.IfExp(test=test, body=then, orelse=other):
            return ("if", read(test), read(then), read(other))
        case ast.Call(func=ast.Name(id=name), args=parts, keywords=[]):
            last = parts[-1].id if parts and isinstance(parts[-1], ast.Name) else ""
            if name == "count" and len(parts) == 1 and last in axes:
                return ("count", last)
            if name in REDUCTIONS and len(parts) == 2 and last in axes:
                return ("reduce", name, read(parts[0]), last)
            if name in FUNCTIONS and parts:
                return (name, *map(read, parts))
    raise ConfigError(
        f"formula: {ast.unparse(node)!r} cannot be read. There are numbers, names, + - * / **, comparisons, "
        f"and, or, not, if else; {', '.join(FUNCTIONS)}; {', '.join(REDUCTIONS)} over named axes, here "
        f"{', '.join(axes) or 'none'}; and count"
    )


def _joined(sign: str, parts: list[Tree]) -> Tree:
    tree = parts[0]
    for part in parts[1:]:
        tree = (sign, tree, part)
    return tree


def names(tree: Tree) -> Iterator[str]:
    """The names that a tree reads, each once, in their order."""
    yield from dict.fromkeys(_names(tree))


def _names(tree: Tree) -> Iterator[str]:
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, tuple) and tree[0] not in ("text", "count"):
        for part in tree[2:3] if tree[0] == "reduce" else tree[1:]:
            yield from _names(part)


def reductions(tree: Tree) -> Iterator[tuple[str, Tree, str]]:
    """The reductions in a tree: how, of what, over which axes."""
    if isinstance(tree, tuple):
        if tree[0] == "reduce":
            yield tree[1:]
        for part in tree[1:]:
            yield from reductions(part)


# ----------------------------------------------------------------------- what is left of it for one call

ABSENT = ("absent",)


def plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are no arrays: numbers, words, yes and no."""
    kinds = (bool, int, float, str, np.generic)
    return {name: value for name, value in options.items() if isinstance(value, kinds)}


def specialised(tree: Tree, absent: Collection[str], options: Mapping[str, Any]) -> Tree:
    """The tree without the names in ``absent``, and with the questions answered that options alone decide.

    What is not there falls out of a sum, a product, a maximum; a comparison with it holds. A tree of which
    nothing is left is ABSENT.
    """
    if isinstance(tree, str):
        return ABSENT if tree in absent else tree
    if not isinstance(tree, tuple) or tree[0] in ("text", "count"):
        return tree
    if tree[0] == "reduce":
        inner = specialised(tree[2], absent, options)
        return ABSENT if inner == ABSENT else ("reduce", tree[1], inner, tree[3])
    answer = _answer(tree[1], absent, options) if tree[0] == "if" else None
    if answer is not None:
        return specialised(tree[2 if answer else 3], absent, options)
    sign, *before = tree
    parts = [specialised(part, absent, options) for part in before]
    if sign == "and" and 1.0 in parts:  # what holds anyway, as a comparison with what is absent does
        first, second = parts
        return second if first == 1.0 else first
    if ABSENT not in parts:
        return (sign, *parts)
    there = [part for part in parts if part != ABSENT]
    if sign in ("<", "<=", ">", ">=", "==", "!="):
        return 1.0
    if sign == "-" and parts[0] == ABSENT and there:
        return ("neg", *there)
    if sign in ("+", "-", "*", "/", "max", "min", "and", "or") and there:
        return there[0] if len(there) == 1 else (sign, *there)
    return ABSENT


def _answer(test: Tree, absent: Collection[str], options: Mapping[str, Any]) -> bool | None:
    """Whether a test holds, if options that are no arrays decide that; else None. What is absent is false."""
    known: dict[str, Any] = {name: False for name in absent}
    known |= {name: value for name, value in options.items() if not isinstance(value, np.ndarray)}
    if not all(name in known for name in names(test)):
        return None
    return bool(evaluate(test, known.__getitem__, _no_reduction))


def _no_reduction(how: str, value: Any, axes: str) -> Any:
    raise ConfigError(f"formula: {how} over {axes} cannot decide which formula holds")


# ---------------------------------------------------------------------------------------------- computing


def evaluate(tree: Tree, value: Callable[[str], Any], reduced: Reduced) -> Any:
    """What a tree gives. ``value`` gives what a name stands for; ``reduced`` computes the reductions."""
    if isinstance(tree, str):
        return value(tree)
    if not isinstance(tree, tuple):
        return tree
    if tree[0] == "text":
        return tree[1]
    if tree[0] == "count":
        return reduced("count", 0.0, tree[1])
    if tree[0] == "reduce":
        return reduced(tree[1], evaluate(tree[2], value, reduced), tree[3])
    parts = [evaluate(part, value, reduced) for part in tree[1:]]
    with np.errstate(all="ignore"):  # a branch that is not taken may divide by zero
        function = OPERATORS.get(tree[0]) or FUNCTIONS[tree[0]]
        if tree[0] in ("max", "min"):
            return _joined_values(function, parts)
        return function(*parts)


def _joined_values(function: Callable[..., Any], parts: list[Any]) -> Any:
    result = parts[0]
    for part in parts[1:]:
        result = function(result, part)
    return result


# ------------------------------------------------------------------------------------------------- writing

_BINDING = {"if": 0, "or": 1, "and": 2, "not": 3, "<": 4, "<=": 4, ">": 4, ">=": 4, "==": 4, "!=": 4,
            "+": 5, "-": 5, "*": 6, "/": 6, "neg": 7, "**": 8}  # fmt: skip


def written(tree: Tree, name: Callable[[str], str] = str) -> str:
    """A tree as text again, with ``name(x)`` for the name x."""
    return _written(tree, name)[0]


def _written(tree: Tree, name: Callable[[str], str]) -> tuple[str, int]:
    """The text, and how tightly its outermost sign binds."""
    if isinstance(tree, str):
        text = name(tree)
        return text, 7 if text.startswith("-") else 9
    if not isinstance(tree, tuple):
        return f"{tree:.6g}", 7 if tree < 0 else 9
    sign, *parts = tree
    if sign == "text":
        return repr(parts[0]), 9
    if sign == "count":
        return f"count({parts[0]})", 9
    if sign == "reduce":
        return f"{parts[0]}({written(parts[1], name)}, {parts[2]})", 9
    if sign not in _BINDING:
        return f"{sign}({', '.join(written(part, name) for part in parts)})", 9
    binding = _BINDING[sign]

    def inside(part: Tree, least: int) -> str:
        text, tight = _written(part, name)
        return text if tight >= least else f"({text})"

    if sign == "if":
        test, then, other = parts
        return f"{inside(then, 1)} if {inside(test, 1)} else {inside(other, 0)}", 0
    if sign == "neg":
        return f"-{inside(parts[0], 8)}", 7  # -(-2)
    if sign == "not":
        return f"not {inside(parts[0], 3)}", 3
    left, right = parts
    # a - (b - c), a / (b * c); but (a ** b) ** c and a ** -b; (a < b) < c, as a < b < c means another thing
    compared = binding == _BINDING["<"]
    rules = {"**": (9, 7)}.get(sign, (binding + compared, binding + (sign in "-/" or compared)))
    return f"{inside(left, rules[0])} {sign} {inside(right, rules[1])}", binding

"""Check the answers to the exercises of the tutorials: each claim is right, not yet right, or still open."""

from __future__ import annotations

import ast
import inspect
import textwrap
import traceback
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType
from typing import Any

import numpy as np


def check(claim: str, test: Callable[[], bool]) -> None:
    """Print whether ``claim`` holds: "right", "not yet", or "open" while an answer is still ``...``.

    ``test`` takes no argument and returns True or False. It is not called while a function or a value that
    it uses still has ``...`` in the place of an answer. An error in the answer is not raised: it is printed
    as the reason why the claim does not hold yet.
    """
    if _is_open(test, set()):
        print(f"open: {claim}")
        return
    try:
        result = test()
    except Exception as error:
        print(f"not yet: {claim} ({type(error).__name__}: {error}{_place(error, test)})")
        return
    if isinstance(result, bool | np.bool_):
        print(f"{'right' if result else 'not yet'}: {claim}")
    else:
        print(f"not yet: {claim} (the test gives {type(result).__name__}, not True or False)")


def _is_open(value: Any, seen: set[int]) -> bool:
    """Whether ``value`` is an answer that was not given, or a function or class that uses one."""
    if value is ... or value is None:
        return True
    if id(value) in seen:
        return False
    seen.add(id(value))
    if isinstance(value, type):
        return any(_is_open(f, seen) for f in vars(value).values() if isinstance(f, FunctionType))
    if isinstance(value, FunctionType):
        return _has_gap(value) or any(_is_open(used, seen) for used in _used(value))
    return False


def _used(function: FunctionType) -> Iterator[Any]:
    """What a function reads: values, and the functions and classes that were written where it was."""
    read = dict(inspect.getclosurevars(function).nonlocals)
    for code in _codes(function.__code__):
        read |= {name: function.__globals__[name] for name in code.co_names if name in function.__globals__}
    for value in read.values():
        if not isinstance(value, FunctionType | type) or value.__module__ == function.__module__:
            yield value


def _codes(code: CodeType) -> Iterator[CodeType]:
    """The code of a function and of the functions inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _has_gap(function: FunctionType) -> bool:
    """Whether ``...`` stands in a function for what is to be written; in an index it means all axes."""
    if function.__name__ == "<lambda>":
        return False
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, SyntaxError):  # typed at a prompt, its text is not kept
        return False
    indices = {id(n) for s in ast.walk(tree) if isinstance(s, ast.Subscript) for n in ast.walk(s.slice)}
    return any(
        isinstance(n, ast.Constant) and n.value is ... and id(n) not in indices for n in ast.walk(tree)
    )


def _place(error: Exception, test: Callable[[], bool]) -> str:
    """Where in the answer ``error`` was raised: ", in NAME, line 3", or nothing."""
    place = ""
    claimed = list(_codes(test.__code__))
    for frame, line in traceback.walk_tb(error.__traceback__):
        if frame.f_globals is test.__globals__ and frame.f_code not in claimed:
            place = f", in {frame.f_code.co_name}, line {line}"
    return place

"""How plain functions get a meaning in compiled kernels.

Numba names compiled code by its module, its name and types, and a number that counts in each process. Code
that two processes kept on disk under one name is one to a third that loads both: whichever comes first is
called for the other (numba issue 10486). So each of our functions has its own name there, too.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any


def overload(function: Callable[..., Any], typed: Callable[..., Any]) -> None:
    """In a kernel Numba compiles ``typed(*types)`` where ``function`` is called, under that name,
    unless it is None."""
    extending: Any = importlib.import_module("numba.extending")

    @functools.wraps(typed)
    def named(*types: Any) -> Callable[..., Any] | None:
        implementation: Callable[..., Any] | None = typed(*types)
        if implementation is not None:
            implementation.__name__ = implementation.__qualname__ = function.__name__
        return implementation

    extending.overload(function, inline="never")(named)

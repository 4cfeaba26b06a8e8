"""Counters that several threads change at once, for kernels.

    before = fetch_add(counters, i, n)      counters[i] grows by n, and nobody else sees it half done
    now = look(counters, i)                 counters[i] as it is now, not as it was read before

``counters`` is a flat array of int64. Here the functions stand as plain code, which is what they mean for one
thread; in a kernel Numba compiles each to one instruction of the processor.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from minires.backend.overloads import overload

Array = Any


def fetch_add(counters: Array, i: int, n: int) -> int:
    before = int(counters[i])
    counters[i] += n
    return before


def look(counters: Array, i: int) -> int:
    return int(counters[i])


def set_up() -> None:
    """Tell Numba how to compile these functions. Called once, before the first kernel is compiled."""
    types: Any = importlib.import_module("numba.core.types")
    extending: Any = importlib.import_module("numba.extending")
    intrinsic: Callable[[Callable[..., Any]], Any] = extending.intrinsic

    def place(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.gep(data, [arguments[1]], inbounds=True)

    @intrinsic
    def _fetch_add(_: Any, counters: Any, i: Any, n: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            at = place(context, builder, signature, arguments)
            return builder.atomic_rmw("add", at, arguments[2], "seq_cst")

        return types.int64(counters, types.int64, types.int64), build

    @intrinsic
    def _look(_: Any, counters: Any, i: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.load_atomic(place(context, builder, signature, arguments), "acquire", 8)

        return types.int64(counters, types.int64), build

    overload(fetch_add, lambda counters, i, n: lambda counters, i, n: _fetch_add(counters, i, n))
    overload(look, lambda counters, i: lambda counters, i: _look(counters, i))

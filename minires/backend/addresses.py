"""Arrays by their address, for kernels that walk through a table of what lies where.

    numbers = numbers_at(like, address, count)

is the flat array of ``count`` numbers, of the type of ``like``, that begins at a place in memory. Nobody
checks that there is one, and who keeps the address must keep the array, too. Here the function stands as
plain code; in a kernel Numba compiles it to nothing at all.

In a table of offsets an address is marked by a bit, ``place_of(array) >= MARK``: where memory begins, and so
which numbers are addresses, hangs on the machine.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from minires.backend.overloads import overload

Array = Any
MARK = 1 << 62


def numbers_at(like: Array, address: int, count: int) -> Array:
    memory = (ctypes.c_char * (count * like.itemsize)).from_address(address)
    return np.frombuffer(memory, like.dtype)


def address_of(array: Array) -> int:
    """Where an array begins."""
    address: int = array.__array_interface__["data"][0]
    return address


def place_of(array: Array) -> int:
    """Where an array begins, marked as an address."""
    return MARK + address_of(array)


def set_up() -> None:
    """Tell Numba how to compile this. Called once, before the first kernel is compiled."""
    types: Any = importlib.import_module("numba.core.types")
    extending: Any = importlib.import_module("numba.extending")
    arrays: Any = importlib.import_module("numba.np.arrayobj")
    intrinsic: Callable[[Callable[..., Any]], Any] = extending.intrinsic

    @intrinsic
    def _numbers_at(_: Any, like: Any, address: Any, count: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            size = context.get_constant(types.intp, signature.return_type.dtype.bitwidth // 8)
            array = context.make_array(signature.return_type)(context, builder)
            data = builder.inttoptr(arguments[1], array.data.type)
            arrays.populate_array(
                array, data=data, shape=[arguments[2]], strides=[size], itemsize=size, meminfo=None
            )
            return array._getvalue()

        return like(like, types.int64, types.int64), build

    overload(
        numbers_at,
        lambda like, address, count: lambda like, address, count: _numbers_at(like, address, count),
    )

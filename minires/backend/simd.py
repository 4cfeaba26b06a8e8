"""Tiles: blocks of sums that a kernel keeps in the processor's vector registers.

A product of small matrices is fast only while its sums stay in registers: each number that is read then meets
many others. Numba's compiler turns the inner loop of a kernel into vector instructions by itself, but it
does not keep sums in registers over an outer loop. Five functions do that, on a tile of ROWS x LANES sums:

    tile = spread(b, o)                             every row is b[o : o + LANES]
    tile = multiply_add(tile, a, at, step, b, o)    row r grows by a[at + r*step] * b[o : o + LANES]
    tile = rectify(tile)                            ReLU
    store(tile, y, at, step)                        y[at + r*step : at + r*step + LANES] becomes row r
    add(tile, y, at, step)                          ... or grows by row r

The arrays are flat (one axis, no gaps) and of one type. No index is checked: all must lie inside. Here the
functions stand as plain NumPy code, which is what they mean; in a kernel Numba compiles each to the vector
instructions of the processor. (Numba's cache on disk looks at the file of a kernel only: who changes this
file empties it, with the folders ``__pycache__``.)
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

Array = Any

LANES = 16  # numbers in a row: one register of AVX-512 holds 16 of float32
ROWS = 8  # as many as there are registers for; set_up() knows better


def spread(b: Array, o: int) -> Array:
    return np.tile(b[o : o + LANES], (ROWS, 1))


def multiply_add(tile: Array, a: Array, at: int, step: int, b: Array, o: int) -> Array:
    return tile + a[at + step * np.arange(ROWS), None] * b[o : o + LANES]


def rectify(tile: Array) -> Array:
    return np.where(tile < 0, tile.dtype.type(0), tile)  # NaN stays NaN


def store(tile: Array, y: Array, at: int, step: int) -> None:
    y[_places(at, step)] = tile


def add(tile: Array, y: Array, at: int, step: int) -> None:
    y[_places(at, step)] += tile


def _places(at: int, step: int) -> Array:
    return at + step * np.arange(ROWS)[:, None] + np.arange(LANES)


def set_up() -> None:
    """Tell Numba how to compile these functions. Called once, before the first kernel is compiled."""
    binding: Any = importlib.import_module("llvmlite.binding")
    ir: Any = importlib.import_module("llvmlite.ir")
    types: Any = importlib.import_module("numba.core.types")
    extending: Any = importlib.import_module("numba.extending")
    intrinsic: Callable[[Callable[..., Any]], Callable[..., Any]] = extending.intrinsic
    global ROWS
    ROWS = 8 if binding.get_host_cpu_features().get("avx512f") else 4

    class Tile(types.Type):  # type: ignore[misc]  # Numba comes without types
        def __init__(self, dtype: Any) -> None:
            self.dtype = dtype
            super().__init__(name=f"Tile({dtype}, {ROWS}, {LANES})")

    @extending.register_model(Tile)
    class _TileModel(extending.models.PrimitiveModel):  # type: ignore[misc]
        def __init__(self, manager: Any, tile: Any) -> None:
            number = ir.FloatType() if tile.dtype == types.float32 else ir.DoubleType()
            super().__init__(manager, tile, ir.ArrayType(ir.VectorType(number, LANES), ROWS))

    def pointer(context: Any, builder: Any, kind: Any, array: Any, index: Any, whole: Any = None) -> Any:
        """To a number of ``array``, or to the vector of type ``whole`` that begins with it."""
        if kind.ndim != 1 or kind.layout != "C":
            raise TypeError(f"a tile reads and writes flat arrays without gaps, not {kind}")
        place = builder.gep(context.make_array(kind)(context, builder, array).data, [index])
        return place if whole is None else builder.bitcast(place, whole.as_pointer())

    def rows(builder: Any, at: Any, step: Any) -> Any:
        for row in range(ROWS):
            yield row, at
            at = builder.add(at, step)

    def broadcast(builder: Any, vector: Any, number: Any) -> Any:
        index = ir.IntType(32)
        first = builder.insert_element(ir.Constant(vector, ir.Undefined), number, index(0))
        zeros = ir.Constant(ir.VectorType(index, LANES), None)
        return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), zeros)

    @intrinsic
    def _spread(_: Any, b: Any, o: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            whole = context.get_value_type(signature.return_type)
            b, o = arguments
            place = pointer(context, builder, signature.args[0], b, o, whole.element)
            row = builder.load(place, align=4)
            tile = ir.Constant(whole, ir.Undefined)
            for index in range(ROWS):
                tile = builder.insert_value(tile, row, index)
            return tile

        return Tile(b.dtype)(b, o), build

    @intrinsic
    def _multiply_add(_: Any, tile: Any, a: Any, at: Any, step: Any, b: Any, o: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            tile, a, at, step, b, o = arguments
            vector = context.get_value_type(signature.return_type).element
            name = f"llvm.fma.v{LANES}f{signature.return_type.dtype.bitwidth}"
            kind = ir.FunctionType(vector, [vector] * 3)
            fma = builder.module.declare_intrinsic(name, (), kind)
            numbers = builder.load(pointer(context, builder, signature.args[4], b, o, vector), align=4)
            for row, place in rows(builder, at, step):
                factor = builder.load(pointer(context, builder, signature.args[1], a, place))
                total = [broadcast(builder, vector, factor), numbers, builder.extract_value(tile, row)]
                tile = builder.insert_value(tile, builder.call(fma, total), row)
            return tile

        return tile(tile, a, at, step, b, o), build

    @intrinsic
    def _rectify(_: Any, tile: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            (tile,) = arguments
            zero = ir.Constant(context.get_value_type(signature.return_type).element, None)
            for row in range(ROWS):
                numbers = builder.extract_value(tile, row)
                negative = builder.fcmp_ordered("<", numbers, zero)
                tile = builder.insert_value(tile, builder.select(negative, zero, numbers), row)
            return tile

        return tile(tile), build

    @intrinsic
    def _store(_: Any, tile: Any, y: Any, at: Any, step: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            tile, y, at, step = arguments
            vector = context.get_value_type(signature.args[0]).element
            for row, place in rows(builder, at, step):
                place = pointer(context, builder, signature.args[1], y, place, vector)
                builder.store(builder.extract_value(tile, row), place, align=4)
            return context.get_dummy_value()

        return types.void(tile, y, at, step), build

    @intrinsic
    def _add(_: Any, tile: Any, y: Any, at: Any, step: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            tile, y, at, step = arguments
            vector = context.get_value_type(signature.args[0]).element
            for row, place in rows(builder, at, step):
                place = pointer(context, builder, signature.args[1], y, place, vector)
                total = builder.fadd(builder.load(place, align=4), builder.extract_value(tile, row))
                builder.store(total, place, align=4)
            return context.get_dummy_value()

        return types.void(tile, y, at, step), build

    extending.overload(spread)(lambda b, o: lambda b, o: _spread(b, o))
    extending.overload(multiply_add)(
        lambda tile, a, at, step, b, o: lambda tile, a, at, step, b, o: _multiply_add(tile, a, at, step, b, o)
    )
    extending.overload(rectify)(lambda tile: lambda tile: _rectify(tile))
    extending.overload(store)(lambda tile, y, at, step: lambda tile, y, at, step: _store(tile, y, at, step))
    extending.overload(add)(lambda tile, y, at, step: lambda tile, y, at, step: _add(tile, y, at, step))

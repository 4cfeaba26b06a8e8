"""What the functions of ``simd.py`` become in a kernel: vector instructions.

A tile is a value of its own for Numba: an array of vectors, which LLVM keeps in registers. Each function is
written down as what LLVM shall do, and LLVM writes it for the processor at hand.
"""

from __future__ import annotations

import importlib
import operator
from collections.abc import Callable
from typing import Any

from minires.backend.overloads import overload
from minires.backend.simd import (
    add,
    beside,
    expect,
    fetch,
    lanes,
    listed,
    multiply_add,
    multiply_each,
    multiply_groups,
    plus,
    processor,
    read,
    rectify,
    spread,
    store,
    turn,
    write,
)


def set_up() -> None:
    """Tell Numba how to compile these functions. Called once, before the first kernel is compiled."""
    ir: Any = importlib.import_module("llvmlite.ir")
    types: Any = importlib.import_module("numba.core.types")
    cgutils: Any = importlib.import_module("numba.core.cgutils")
    extending: Any = importlib.import_module("numba.extending")
    intrinsic: Callable[[Callable[..., Any]], Any] = extending.intrinsic
    index, whole = ir.IntType(32), ir.IntType(64)

    def number(dtype: Any) -> Any:
        return ir.FloatType() if dtype == types.float32 else ir.DoubleType()

    def vector(dtype: Any) -> Any:
        return ir.VectorType(number(dtype), lanes(str(dtype)))

    class Tile(types.Type):  # type: ignore[misc]  # Numba comes without types
        def __init__(self, dtype: Any, rows: int, columns: int) -> None:
            self.dtype, self.rows, self.columns = dtype, rows, columns
            super().__init__(name=f"Tile({dtype}, {rows}, {columns}, {processor()[0]})")

    @extending.register_model(Tile)
    class _TileModel(extending.models.PrimitiveModel):  # type: ignore[misc]
        def __init__(self, manager: Any, tile: Any) -> None:
            super().__init__(manager, tile, ir.ArrayType(vector(tile.dtype), tile.rows * tile.columns))

    class LinesType(types.Type):  # type: ignore[misc]
        def __init__(self, dtype: Any, rows: int) -> None:
            self.dtype, self.rows = dtype, rows
            super().__init__(name=f"Lines({dtype}, {rows})")

    @extending.register_model(LinesType)
    class _LinesModel(extending.models.PrimitiveModel):  # type: ignore[misc]
        def __init__(self, manager: Any, lines: Any) -> None:
            super().__init__(manager, lines, ir.ArrayType(number(lines.dtype).as_pointer(), lines.rows))

    def pointer(context: Any, builder: Any, kind: Any, array: Any, at: Any) -> Any:
        """To a number of ``array``."""
        if kind.ndim != 1 or kind.layout != "C":
            raise TypeError(f"a tile reads and writes flat arrays without gaps, not {kind}")
        return builder.gep(context.make_array(kind)(context, builder, array).data, [at], inbounds=True)

    def place(builder: Any, dtype: Any, start: Any, at: int) -> Any:
        """To the vector that begins ``at`` numbers behind ``start``."""
        return builder.bitcast(builder.gep(start, [whole(at)], inbounds=True), vector(dtype).as_pointer())

    def align(dtype: Any) -> int:
        return int(dtype.bitwidth) // 8

    def broadcast(builder: Any, kind: Any, value: Any) -> Any:
        first = builder.insert_element(ir.Constant(kind, ir.Undefined), value, index(0))
        zeros = ir.Constant(ir.VectorType(index, kind.count), None)
        return builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), zeros)

    def mask(builder: Any, width: Any, count: int, start: int) -> Any:
        """Which of ``count`` numbers, the first of them number ``start`` of a row, lie within ``width``."""
        kind = ir.VectorType(index, count)
        left = broadcast(builder, kind, builder.trunc(builder.sub(width, whole(start)), index))
        return builder.icmp_signed("<", ir.Constant(kind, list(range(count))), left)

    def masked(builder: Any, what: str, kind: Any, arguments: list[Any]) -> Any:
        bits = kind.element.intrinsic_name[1:]
        given = [argument.type for argument in arguments]
        result = kind if what == "load" else ir.VoidType()
        name = f"llvm.masked.{what}.v{kind.count}f{bits}.p0"
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, given), name)
        return builder.call(function, arguments)

    def prefetch(builder: Any, at: Any) -> None:
        byte = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, index, index, index])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        how = [index(0), index(2), index(1)]  # to read, often, data
        builder.call(function, [builder.bitcast(at, byte), *how])

    def multiply(builder: Any, kind: Any, a: Any, b: Any, total: Any) -> Any:
        """total + a * b, rounded once."""
        numbers = vector(kind.dtype)
        name = f"llvm.fma.v{numbers.count}f{kind.dtype.bitwidth}"
        fma = builder.module.declare_intrinsic(name, (), ir.FunctionType(numbers, [numbers] * 3))
        return builder.call(fma, [a, b, total])

    def own_of_group(builder: Any, x: Any, k: int, many: int) -> Any:
        """Each number of a vector replaced by number k of its group."""
        wide = x.type.count
        picked = [(n // many * many + k) % wide for n in range(wide)]
        mask = ir.Constant(ir.VectorType(index, wide), picked)
        return builder.shuffle_vector(x, ir.Constant(x.type, None), mask)

    @intrinsic
    def _spread(_: Any, rows: Any, columns: Any, b: Any, o: Any) -> Any:
        result = Tile(b.dtype, rows.count, columns.count)

        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            _, _, b, o = arguments
            start = pointer(context, builder, signature.args[2], b, o)
            tile = ir.Constant(context.get_value_type(result), ir.Undefined)
            for j in range(result.columns):
                at = place(builder, b_type, start, j * lanes(str(b_type)))
                numbers = builder.load(at, align=align(b_type))
                for r in range(result.rows):
                    tile = builder.insert_value(tile, numbers, r * result.columns + j)
            return tile

        b_type = b.dtype
        return result(rows, columns, b, o), build

    @intrinsic
    def _beside(_: Any, rows: Any, x: Any, at: Any, step: Any) -> Any:
        result = LinesType(x.dtype, rows.count)

        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            _, x, at, step = arguments
            start = pointer(context, builder, signature.args[1], x, at)
            lines = ir.Constant(context.get_value_type(result), ir.Undefined)
            for r in range(result.rows):
                lines = builder.insert_value(lines, start, r)
                start = builder.gep(start, [step])
            return lines

        return result(rows, x, at, step), build

    @intrinsic
    def _listed(_: Any, rows: Any, x: Any, at: Any, table: Any, t: Any, zeros: Any) -> Any:
        result = LinesType(x.dtype, rows.count)

        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            _, x, at, table, t, zeros = arguments
            start = pointer(context, builder, signature.args[1], x, at)
            first = pointer(context, builder, signature.args[3], table, t)
            nothing = pointer(context, builder, signature.args[5], zeros, whole(0))
            lines = ir.Constant(context.get_value_type(result), ir.Undefined)
            for r in range(result.rows):
                offset = builder.load(builder.gep(first, [whole(r)], inbounds=True))
                outside = builder.icmp_signed("<", offset, offset.type(0))
                line = builder.select(outside, nothing, builder.gep(start, [builder.sext(offset, whole)]))
                lines = builder.insert_value(lines, line, r)
            return lines

        return result(rows, x, at, table, t, zeros), build

    @intrinsic
    def _multiply_add(_: Any, tile: Any, lines: Any, k: Any, b: Any, o: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            kind, (sums, lines, k, b, o) = signature.return_type, arguments
            numbers = vector(kind.dtype)
            start = pointer(context, builder, signature.args[3], b, o)
            row = [
                builder.load(place(builder, kind.dtype, start, j * numbers.count), align=align(kind.dtype))
                for j in range(kind.columns)
            ]
            for r in range(kind.rows):
                factor = builder.load(builder.gep(builder.extract_value(lines, r), [k], inbounds=True))
                factors = broadcast(builder, numbers, factor)
                for j in range(kind.columns):
                    at = r * kind.columns + j
                    total = multiply(builder, kind, factors, row[j], builder.extract_value(sums, at))
                    sums = builder.insert_value(sums, total, at)
            return sums

        return tile(tile, lines, k, b, o), build

    @intrinsic
    def _multiply_groups(_: Any, tile: Any, lines: Any, o: Any, group: Any, b: Any, p: Any, step: Any) -> Any:
        many = group.count

        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            kind, (sums, lines, o, _, b, p, step) = signature.return_type, arguments
            start, factors = pointer(context, builder, signature.args[4], b, p), []
            for _ in range(many):
                factors.append(builder.load(place(builder, kind.dtype, start, 0), align=align(kind.dtype)))
                start = builder.gep(start, [step])
            for r in range(kind.rows):
                line = builder.gep(builder.extract_value(lines, r), [o], inbounds=True)
                x = builder.load(place(builder, kind.dtype, line, 0), align=align(kind.dtype))
                for k in range(many):
                    numbers = own_of_group(builder, x, k, many)
                    total = multiply(builder, kind, numbers, factors[k], builder.extract_value(sums, r))
                    sums = builder.insert_value(sums, total, r)
            return sums

        return tile(tile, lines, o, group, b, p, step), build

    @intrinsic
    def _multiply_each(_: Any, tile: Any, lines: Any, o: Any, group: Any, b: Any, p: Any) -> Any:
        many = group.count

        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            kind, (sums, lines, o, _, b, p) = signature.return_type, arguments
            start = pointer(context, builder, signature.args[4], b, p)
            factors = builder.load(place(builder, kind.dtype, start, 0), align=align(kind.dtype))
            for r in range(kind.rows // many):
                line = builder.gep(builder.extract_value(lines, r), [o], inbounds=True)
                x = builder.load(place(builder, kind.dtype, line, 0), align=align(kind.dtype))
                for k in range(many):
                    at = r * many + k
                    numbers = own_of_group(builder, x, k, many)
                    total = multiply(builder, kind, numbers, factors, builder.extract_value(sums, at))
                    sums = builder.insert_value(sums, total, at)
            return sums

        return tile(tile, lines, o, group, b, p), build

    @intrinsic
    def _plus(_: Any, tile: Any, lines: Any, o: Any, width: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            kind, (sums, lines, o, width) = signature.return_type, arguments
            numbers = vector(kind.dtype)
            for r in range(kind.rows):
                start = builder.gep(builder.extract_value(lines, r), [o], inbounds=True)
                for j in range(kind.columns):
                    at, inside = r * kind.columns + j, mask(builder, width, numbers.count, j * numbers.count)
                    source = place(builder, kind.dtype, start, j * numbers.count)
                    none = ir.Constant(numbers, None)
                    added = masked(builder, "load", numbers, [source, index(align(kind.dtype)), inside, none])
                    total = builder.fadd(builder.extract_value(sums, at), added)
                    sums = builder.insert_value(sums, total, at)
            return sums

        return tile(tile, lines, o, width), build

    @intrinsic
    def _rectify(_: Any, tile: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            kind, (sums,) = signature.return_type, arguments
            zero = ir.Constant(vector(kind.dtype), None)
            for at in range(kind.rows * kind.columns):
                numbers = builder.extract_value(sums, at)
                negative = builder.fcmp_ordered("<", numbers, zero)
                sums = builder.insert_value(sums, builder.select(negative, zero, numbers), at)
            return sums

        return tile(tile), build

    def writer(grows: bool) -> Any:
        """The intrinsic of store, or that of add."""

        def write(context: Any, builder: Any, signature: Any, arguments: Any, is_whole: bool) -> None:
            kind, (sums, lines, o, count, width) = signature.args[0], arguments
            numbers, size = vector(kind.dtype), align(kind.dtype)
            for r in range(kind.rows):
                with builder.if_then(builder.icmp_signed("<", whole(r), count), likely=True):
                    start = builder.gep(builder.extract_value(lines, r), [o], inbounds=True)
                    for j in range(kind.columns):
                        target = place(builder, kind.dtype, start, j * numbers.count)
                        row = builder.extract_value(sums, r * kind.columns + j)
                        if is_whole:
                            if grows:
                                row = builder.fadd(builder.load(target, align=size), row)
                            builder.store(row, target, align=size)
                            continue
                        inside = mask(builder, width, numbers.count, j * numbers.count)
                        if grows:
                            none = ir.Constant(numbers, None)
                            there = masked(builder, "load", numbers, [target, index(size), inside, none])
                            row = builder.fadd(there, row)
                        masked(builder, "store", numbers, [row, target, index(size), inside])

        @intrinsic
        def _write_rows(_: Any, tile: Any, lines: Any, o: Any, count: Any, width: Any) -> Any:
            def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
                kind = signature.args[0]
                all_of_it = whole(kind.columns * lanes(str(kind.dtype)))
                is_whole = builder.icmp_signed(">=", arguments[4], all_of_it)
                with builder.if_else(is_whole, likely=True) as (then, otherwise):
                    with then:
                        write(context, builder, signature, arguments, True)
                    with otherwise:
                        write(context, builder, signature, arguments, False)
                return context.get_dummy_value()

            return types.void(tile, lines, o, count, width), build

        return _write_rows

    _store, _add = writer(False), writer(True)

    @intrinsic
    def _read(_: Any, lines: Any, o: Any) -> Any:
        result = types.UniTuple(Tile(lines.dtype, 1, 1), lines.rows)

        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            vectors = []
            for r in range(result.count):
                at = builder.gep(builder.extract_value(arguments[0], r), [arguments[1]], inbounds=True)
                numbers = builder.load(place(builder, lines_dtype, at, 0), align=align(lines_dtype))
                one = ir.Constant(context.get_value_type(result.dtype), ir.Undefined)
                vectors.append(builder.insert_value(one, numbers, 0))
            return context.make_tuple(builder, result, vectors)

        lines_dtype = lines.dtype
        return result(lines, o), build

    @intrinsic
    def _write(_: Any, vectors: Any, lines: Any, o: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            vectors, lines, o = arguments
            kind = signature.args[1]
            for r in range(kind.rows):
                at = builder.gep(builder.extract_value(lines, r), [o], inbounds=True)
                numbers = builder.extract_value(builder.extract_value(vectors, r), 0)
                builder.store(numbers, place(builder, kind.dtype, at, 0), align=align(kind.dtype))
            return context.get_dummy_value()

        return types.void(vectors, lines, o), build

    def both(what: str) -> Any:
        """The intrinsic of a + b, or of a - b."""

        @intrinsic
        def _both(_: Any, a: Any, b: Any) -> Any:
            def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
                result = arguments[0]
                for at in range(signature.return_type.rows * signature.return_type.columns):
                    pair = [builder.extract_value(tile, at) for tile in arguments]
                    result = builder.insert_value(result, getattr(builder, what)(*pair), at)
                return result

            return a(a, b), build

        return _both

    _sum, _difference = both("fadd"), both("fsub")

    @intrinsic
    def _turn(_: Any, x: Any, at: Any, step: Any, y: Any, to: Any, leap: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            x, at, step, y, to, leap = arguments
            kind, size = vector(signature.args[0].dtype), align(signature.args[0].dtype)
            source = pointer(context, builder, signature.args[0], x, at)
            block = []
            for _ in range(kind.count):
                block.append(builder.load(builder.bitcast(source, kind.as_pointer()), align=size))
                source = builder.gep(source, [step])
            half = kind.count // 2
            while half:  # rows that are so far apart exchange the halves of each 2 * half numbers
                for n in range(kind.count):
                    if not n & half:
                        one, two = block[n], block[n + half]
                        low = [i if not i & half else kind.count + i - half for i in range(kind.count)]
                        high = [i + half if not i & half else kind.count + i for i in range(kind.count)]
                        picked = [ir.Constant(ir.VectorType(index, kind.count), take) for take in (low, high)]
                        block[n], block[n + half] = (builder.shuffle_vector(one, two, p) for p in picked)
                half //= 2
            target = pointer(context, builder, signature.args[3], y, to)
            for row in block:
                builder.store(row, builder.bitcast(target, kind.as_pointer()), align=size)
                target = builder.gep(target, [leap])
            return context.get_dummy_value()

        return types.void(x, at, step, y, to, leap), build

    @intrinsic
    def _fetch(_: Any, x: Any, at: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            prefetch(builder, pointer(context, builder, signature.args[0], *arguments))
            return context.get_dummy_value()

        return types.void(x, at), build

    @intrinsic
    def _expect(_: Any, columns: Any, lines: Any, o: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            kind = signature.args[1]
            for r in range(kind.rows):
                start = builder.gep(builder.extract_value(arguments[1], r), [arguments[2]], inbounds=True)
                for j in range(signature.args[0].count):
                    prefetch(builder, place(builder, kind.dtype, start, j * lanes(str(kind.dtype))))
            return context.get_dummy_value()

        return types.void(columns, lines, o), build

    overload(spread, lambda rows, columns, b, o: lambda rows, columns, b, o: _spread(rows, columns, b, o))
    overload(beside, lambda rows, x, at, step: lambda rows, x, at, step: _beside(rows, x, at, step))
    overload(
        listed,
        lambda rows, x, at, table, t, zeros: (
            lambda rows, x, at, table, t, zeros: _listed(rows, x, at, table, t, zeros)
        ),
    )
    overload(
        multiply_add,
        lambda tile, lines, k, b, o: lambda tile, lines, k, b, o: _multiply_add(tile, lines, k, b, o),
    )
    overload(
        multiply_groups,
        lambda tile, lines, o, group, b, p, step: (
            lambda tile, lines, o, group, b, p, step: _multiply_groups(tile, lines, o, group, b, p, step)
        ),
    )
    overload(
        multiply_each,
        lambda tile, lines, o, group, b, p: (
            lambda tile, lines, o, group, b, p: _multiply_each(tile, lines, o, group, b, p)
        ),
    )
    overload(plus, lambda tile, lines, o, width: lambda tile, lines, o, width: _plus(tile, lines, o, width))
    overload(rectify, lambda tile: lambda tile: _rectify(tile))
    overload(
        store,
        lambda tile, lines, o, count, width: (
            lambda tile, lines, o, count, width: _store(tile, lines, o, count, width)
        ),
    )
    overload(
        add,
        lambda tile, lines, o, count, width: (
            lambda tile, lines, o, count, width: _add(tile, lines, o, count, width)
        ),
    )
    overload(
        turn,
        lambda x, at, step, y, to, leap: lambda x, at, step, y, to, leap: _turn(x, at, step, y, to, leap),
    )
    overload(read, lambda lines, o: lambda lines, o: _read(lines, o))
    overload(write, lambda vectors, lines, o: lambda vectors, lines, o: _write(vectors, lines, o))
    overload(operator.add, lambda a, b: (lambda a, b: _sum(a, b)) if isinstance(a, Tile) else None)
    overload(operator.sub, lambda a, b: (lambda a, b: _difference(a, b)) if isinstance(a, Tile) else None)
    overload(fetch, lambda x, at: lambda x, at: _fetch(x, at))
    overload(expect, lambda columns, lines, o: lambda columns, lines, o: _expect(columns, lines, o))

"""Tiles: blocks of sums that a kernel keeps in the processor's vector registers.

A product of small matrices is fast only while its sums stay in registers: each number that is read then meets
many others. Numba's compiler turns the inner loop of a kernel into vector instructions by itself, but it
does not keep sums in registers over an outer loop. These functions do that, on a tile of R rows of L sums:

    tile = spread(rows, columns, b, o)              every row is b[o : o + L]
    tile = multiply_add(tile, lines, k, b, o)       row r grows by lines[r][k] * b[o : o + L]
    tile = plus(tile, lines, o, width)              row r grows by lines[r][o : o + width]
    tile = rectify(tile)                            ReLU
    store(tile, lines, o, count, width)             lines[r][o : o + width] becomes row r, of the first rows
    add(tile, lines, o, count, width)               ... or grows by row r

``lines`` are R places in an array, one for each row, from which its numbers are counted:

    lines = beside(rows, x, at, step)               x[at + r*step :]
    lines = listed(rows, x, at, table, t, zeros)    x[at + table[t + r] :], or zeros where the table says < 0

``rows`` and ``columns`` are tuples, of as many zeros as the tile has rows, and vectors in a row: compiled
code is made for one size of tile, and the type of a tuple says how long it is. ``shape`` chooses them. And
a tile of one vector can meet groups of G numbers: what it adds is, for each k < G, number k of every group:

    tile = multiply_groups(tile, lines, o, group, b, p, step)
                                    row r grows by lines[r][o + n // G * G + k] * b[p + k*step + n], n < L
    tile = multiply_each(tile, lines, o, group, b, p)
                                    row r*G + k grows by lines[r][o + n // G * G + k] * b[p + n]

One function turns a block of numbers, so that a matrix can be read by columns as fast as by rows:

    turn(x, at, step, y, to, leap)                  y[to + k*leap + n] = x[at + n*step + k], n and k < lanes

And two have lines of the cache read that are needed soon, so that nobody waits for them:

    fetch(x, at)                                    the 64 bytes around x[at]
    expect(columns, lines, o)                       all that a tile is about to add or store at lines[r][o]

The arrays are flat (one axis, no gaps) and of one type. No index is checked: all must lie inside. Here the
functions stand as plain NumPy code, which is what they mean; in a kernel Numba compiles each to the vector
instructions of the processor.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import platform
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minires.backend.overloads import overload

Array = Any
Size = tuple[int, ...]  # zeros, as many as there are rows or vectors
Shape = tuple[Size, Size]  # rows and columns
Lines = Sequence[Array]

MOST_ROWS = 12
# Rows and columns of the tiles of sums over places, by how many sums the registers hold.
_SQUARES = {24: ((6, 4), (8, 3), (12, 2), (16, 1)), 12: ((4, 3), (6, 2), (12, 1))}


@functools.cache
def processor() -> tuple[int, int]:
    """The bytes in a vector register of this processor, and how many such registers it has."""
    if importlib.util.find_spec("llvmlite") is None:
        return 16, 16
    features = importlib.import_module("llvmlite.binding").get_host_cpu_features()
    if features.get("avx512f"):
        return 64, 32
    if features.get("avx2"):
        return 32, 16
    return 16, 32 if platform.machine().lower() in ("arm64", "aarch64") else 16


def lanes(dtype: Any) -> int:
    """How many numbers a vector register holds."""
    return processor()[0] // int(np.dtype(dtype).itemsize)


def shapes() -> list[Shape]:
    """The tiles of this processor, the widest first. Sums take three quarters of the registers, but no tile
    has more than twelve rows, or ten of one vector: their addresses are kept in other registers, and these
    are few."""
    sums = processor()[1] * 3 // 4
    wide = [4, 2, 1] if sums == 24 else [2, 1]
    return [((0,) * min(MOST_ROWS - 2 * (columns == 1), sums // columns), (0,) * columns) for columns in wide]


@functools.cache
def shape(outputs: int, dtype: Any) -> Shape:
    """The tile of products that is best for so many sums side by side."""

    def cost(found: Shape) -> float:
        (rows, columns), across = map(len, found), width(found, dtype)
        # A step multiplies rows * columns times, and reads rows + columns times: the more of these counts.
        return -(-outputs // across) * columns * max(1.0, 1.1 * (rows + columns) / (rows * columns))

    return min(shapes(), key=cost)


@functools.cache
def square(outputs: int, depth: int, dtype: Any) -> Shape:
    """The tile of sums over places that is best for so many sums side by side, and one below the other: those
    beyond either are computed for nothing."""
    sums = processor()[1] * 3 // 4

    def cost(found: tuple[int, int]) -> float:
        rows, columns = found
        # A step multiplies rows * columns times, and reads rows + columns times: the more of these counts.
        time = max(rows * columns, 1.1 * (rows + columns))
        return -(-depth // rows) * -(-outputs // (columns * lanes(dtype))) * time

    best = min(_SQUARES[sums], key=cost)
    return squares()[_SQUARES[sums].index(best)]


def squares() -> list[Shape]:
    """The tiles of sums over places of this processor."""
    return [((0,) * rows, (0,) * columns) for rows, columns in _SQUARES[processor()[1] * 3 // 4]]


def width(tile: Shape, dtype: Any) -> int:
    """How many sums stand side by side."""
    return len(tile[1]) * lanes(dtype)


def spread(rows: Size, columns: Size, b: Array, o: int) -> Array:
    return np.tile(b[o : o + len(columns) * lanes(b.dtype)], (len(rows), 1))


def beside(rows: Size, x: Array, at: int, step: int) -> Lines:
    return [x[at + r * step :] for r in range(len(rows))]


def listed(rows: Size, x: Array, at: int, table: Array, t: int, zeros: Array) -> Lines:
    return [x[at + table[t + r] :] if table[t + r] >= 0 else zeros for r in range(len(rows))]


def multiply_add(tile: Array, lines: Lines, k: int, b: Array, o: int) -> Array:
    return tile + np.array([line[k] for line in lines])[:, None] * b[o : o + tile.shape[1]]


def multiply_groups(tile: Array, lines: Lines, o: int, group: Size, b: Array, p: int, step: int) -> Array:
    wide, many = tile.shape[1], len(group)
    numbers = np.array([line[o : o + wide] for line in lines]).reshape(len(lines), -1, many)
    for k in range(many):
        tile = tile + np.repeat(numbers[..., k], many, axis=1) * b[p + k * step : p + k * step + wide]
    return tile


def multiply_each(tile: Array, lines: Lines, o: int, group: Size, b: Array, p: int) -> Array:
    wide, many = tile.shape[1], len(group)
    numbers = np.array([line[o : o + wide] for line in lines]).reshape(len(lines), -1, many)
    own = np.repeat(numbers, many, axis=1).reshape(len(lines), wide, many)
    return tile + own.swapaxes(1, 2).reshape(len(tile), wide) * b[p : p + wide]


def plus(tile: Array, lines: Lines, o: int, width: int) -> Array:
    added = tile.copy()
    for row, line in zip(added, lines, strict=True):
        row[:width] += line[o : o + min(width, tile.shape[1])]
    return added


def rectify(tile: Array) -> Array:
    return np.where(tile < 0, tile.dtype.type(0), tile)  # NaN stays NaN


def store(tile: Array, lines: Lines, o: int, count: int, width: int) -> None:
    for row, line in zip(tile[:count], lines, strict=False):
        line[o : o + min(width, len(row))] = row[:width]


def add(tile: Array, lines: Lines, o: int, count: int, width: int) -> None:
    for row, line in zip(tile[:count], lines, strict=False):
        line[o : o + min(width, len(row))] += row[:width]


def turn(x: Array, at: int, step: int, y: Array, to: int, leap: int) -> None:
    for n in range(lanes(x.dtype)):
        for k in range(lanes(x.dtype)):
            y[to + k * leap + n] = x[at + n * step + k]


def fetch(x: Array, at: int) -> None:
    pass  # it changes nothing but the time


def expect(columns: Size, lines: Lines, o: int) -> None:
    pass


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
        def _write(_: Any, tile: Any, lines: Any, o: Any, count: Any, width: Any) -> Any:
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

        return _write

    _store, _add = writer(False), writer(True)

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
    overload(fetch, lambda x, at: lambda x, at: _fetch(x, at))
    overload(expect, lambda columns, lines, o: lambda columns, lines, o: _expect(columns, lines, o))

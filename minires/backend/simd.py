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

Single vectors can be read, added up and written:

    a, b, ... = read(lines, o)              a vector of each line: lines[r][o : o + lanes]
    a + b, a - b
    write((a, b, ...), lines, o)            lines[r][o : o + lanes] becomes vector r

One function turns a block of numbers, so that a matrix can be read by columns as fast as by rows:

    turn(x, at, step, y, to, leap)                  y[to + k*leap + n] = x[at + n*step + k], n and k < lanes

And two have lines of the cache read that are needed soon, so that nobody waits for them:

    fetch(x, at)                                    the 64 bytes around x[at]
    expect(columns, lines, o)                       all that a tile is about to add or store at lines[r][o]

The arrays are flat (one axis, no gaps) and of one type. No index is checked: all must lie inside. Here the
functions stand as plain NumPy code, which is what they mean; in a kernel Numba compiles each to the vector
instructions of the processor (``simd_compiled.py``).
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import platform
from collections.abc import Sequence
from typing import Any

import numpy as np

Array = Any
Size = tuple[int, ...]  # zeros, as many as there are rows or vectors
Shape = tuple[Size, Size]  # rows and columns
Lines = Sequence[Array]

MOST_ROWS = 10
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
    """The tiles of this processor, the widest first. Sums take up to three quarters of the registers, but no
    tile has more than eight rows, or ten of one vector: where they begin is kept in other registers, and
    these are few."""
    sums = processor()[1] * 3 // 4
    wide = [4, 2, 1] if sums == 24 else [2, 1]
    return [((0,) * min(MOST_ROWS - 2 * (columns > 1), sums // columns), (0,) * columns) for columns in wide]


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


def read(lines: Lines, o: int) -> tuple[Array, ...]:
    return tuple(line[o : o + lanes(line.dtype)].copy() for line in lines)


def write(vectors: tuple[Array, ...], lines: Lines, o: int) -> None:
    for numbers, line in zip(vectors, lines, strict=True):
        line[o : o + len(numbers)] = numbers


def turn(x: Array, at: int, step: int, y: Array, to: int, leap: int) -> None:
    for n in range(lanes(x.dtype)):
        for k in range(lanes(x.dtype)):
            y[to + k * leap + n] = x[at + n * step + k]


def fetch(x: Array, at: int) -> None:
    pass  # it changes nothing but the time


def expect(columns: Size, lines: Lines, o: int) -> None:
    pass

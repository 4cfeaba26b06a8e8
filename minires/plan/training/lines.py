"""The lines of a planned training step while they are written: memory, rooms, tables and addresses.

What is to be done with a step says ``program.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from minires import backend
from minires.backend import Array, simd, tile_products, tile_sums
from minires.backend.addresses import place_of
from minires.plan.memory import ALIGNED, Memory, flat
from minires.plan.training.walk import COLUMNS, Do
from minires.tensor import Tensor

_PIECE = 1 << 16  # numbers that are worth a piece of their own


@dataclass(eq=False)
class Place:
    """Where numbers lie, and how many still need them there."""

    at: int
    size: int
    users: int = 1


Item = tuple[int, int] | Callable[[], None]  # lines first..last, or a function


@dataclass
class Program:
    """What is walked through and called, in turn: lines first..last, or a function. And the arrays of it."""

    forward: list[Item]
    backward: list[Item]
    lines: Array
    waits: Array
    floats: Array
    doubles: Array
    offsets: Array
    sees: Array
    longs: Array
    tiles: Any
    squares: Any
    x: slice
    y: slice
    dy: slice
    parameters: list[Tensor]
    constants: list[Tensor]
    read_again: list[Tensor]  # constants that lines of the way back read
    addresses: Array  # line, column, the number of the constant whose address that is, and bytes behind it
    gradients: Array  # ... of the parameter of whose gradient that is the address
    buffers: list[tuple[int, int, Array]]  # line, column, and the running statistics that begin there
    called: dict[int, Array]  # gradients of parameters, by number, that a call has left


# Of each line, where its room belongs, which, and where it belongs how far that of the next thread is.
_ROOMS = {
    Do.PRODUCTS: ((34, "panels", 36),), Do.SUMS: ((36, "x", 38), (39, "y", 41)),
    Do.PANELS: ((13, "turn", 14),), Do.WINOGRAD: ((23, "winograd", 24),),
    Do.CORRELATE: ((21, "winograd", 22),),
    Do.MOMENTS: ((8, "shift", 0),), Do.NORMALIZE: ((14, "scale", 0),), Do.SLOPES: ((16, "shift", 0),),
}  # fmt: skip


class Lines:
    """Takes down lines, and lays out what they are about."""

    def __init__(self, dtype: Any, zeros: int) -> None:
        self.dtype, self.threads, self.memory = np.dtype(dtype), backend.threads(), Memory()
        self.zeros = self.memory.add(zeros)  # at the very beginning, where the kernels look for them
        self.items: list[Item] = []
        self.lines: list[list[int]] = []
        self.waits: list[bool] = []
        self.first_line = 0
        self.doubles: list[float] = []
        self.offsets: list[Array] = []
        self.sees: list[Array] = []
        self.longs: list[Array] = []
        self.tables: dict[int, tuple[Any, tuple[int, ...]]] = {}  # by id of the arrays, which are kept
        self.kept: dict[bytes, int] = {}
        self.parameters: list[Tensor] = []  # that are learned
        self.constants: list[Tensor] = []  # these and others that lines read
        self.read_again: list[Tensor] = []
        self.found: dict[str, list[tuple[int, int, int, int]]] = {"address": [], "gradient": []}
        self.buffers: list[tuple[int, int, Array]] = []
        self.called: dict[int, Array] = {}
        self.scratch: dict[str, int] = {}
        self.most_sums, self.most_panels = 1, 1
        self.floats: Array | None = None

    def _laid_out(self, forward: list[Any], *ends: tuple[int, int]) -> Program:
        """The program; ``ends`` are the places of x, y and dy, and how long they are."""
        sums = len(self.doubles)
        for line in self.lines:  # the room for sums is behind the numbers, as nobody knew how many these are
            columns = {Do.COLUMNS: 5, Do.COLUMNS_END: 2, Do.MOMENTS: 7, Do.MOMENTS_END: 2}
            columns |= {Do.SLOPES: 15, Do.SLOPES_END: 2, Do.GATE_BACK: 12}
            if line[0] in columns:
                line[columns[Do(line[0])]] += sums
        # Room for each thread, as far apart for each line, as threads may be at different ones.
        nothing = self.memory.add(self.most_panels)
        apart = {name: -(-size // ALIGNED) * ALIGNED for name, size in self.scratch.items()}
        rooms = {name: self.memory.add(self.threads * size) for name, size in apart.items()}
        for line in self.lines:
            for column, name, step in _ROOMS.get(Do(line[0]), ()):
                line[column] = rooms[name]
                if step:
                    line[step] = apart[name]
            if line[0] == Do.PRODUCTS and line[7] < 0:
                line[7] = nothing
        self.floats = self.memory.numbers(64, self.dtype)
        tiles, squares = simd.shapes(), simd.squares()
        lines = self.memory.all_real(np.array(self.lines, np.int64).reshape(-1, COLUMNS))
        x, y, dy = (slice(at := self.memory.real(place), at + size) for place, size in ends)
        for number, column, array in self.buffers:
            lines[number, column] = place_of(array)
        return Program(
            forward, self.items, lines, np.array(self.waits, bool), self.floats,
            np.array([*self.doubles, *[0.0] * (self.most_sums)]), flat(self.offsets, np.int32),
            flat(self.sees, np.uint8), flat(self.longs, np.int64),
            tuple((*tiles, tiles[-1])[:3]), tuple((*squares, squares[-1])[:4]), x, y, dy, self.parameters,
            self.constants, self.read_again, _table(self.found["address"]), _table(self.found["gradient"]),
            self.buffers, self.called,
        )  # fmt: skip

    def _new(self, size: int) -> Place:
        return Place(self.memory.take(size), size)

    def _constant(self, array: Array) -> int:
        """Where numbers that stay the same are, each once."""
        key = array.tobytes()
        if key not in self.kept:
            self.kept[key] = self.memory.keep(array)
        return self.kept[key]

    def _drop(self, place: Place) -> None:
        place.users -= 1
        if place.users == 0:
            self.memory.give_back(place.at)

    def _view(self, at: int, shape: tuple[int, ...]) -> Array:
        assert self.floats is not None
        at = self.memory.real(at)
        return self.floats[at : at + math.prod(shape)].reshape(shape)

    def _room(self, name: str, size: int) -> int:
        """Room for what only one line needs at a time; where it is, is known at the end."""
        self.scratch[name] = max(self.scratch.get(name, 0), size)
        return 0

    def _sums(self, count: int) -> int:
        self.most_sums = max(self.most_sums, count)
        return 0

    def _numbers(self, *numbers: float) -> int:
        """Where these are among the doubles."""
        self.doubles += numbers
        return len(self.doubles) - len(numbers)

    def _line(self, do: Do, pieces: int, *numbers: int, waits: bool = True) -> int:
        line = [int(do), max(1, pieces), *map(int, numbers)]
        self.lines.append(line + [0] * (COLUMNS - len(line)))
        self.waits.append(waits)
        return len(self.lines) - 1

    def _wait(self) -> None:
        """What follows comes after all that was written."""
        self.waits[-1] = True

    def _end_lines(self) -> None:
        if len(self.lines) > self.first_line:
            self._wait()
            self.items.append((self.first_line, len(self.lines)))
            self.first_line = len(self.lines)

    def _pieces(self, count: int, units: int) -> int:
        return max(1, min(self.threads, units, count // _PIECE + 1))

    def _of(self, line: int, column: int, tensor: Tensor, what: str = "address", skipped: int = 0) -> None:
        """The address of a constant belongs there, or that of its gradient; the first numbers are skipped."""
        among = self.constants if what == "address" else self.parameters
        if not any(one is tensor for one in among):
            among.append(tensor)
        number = next(i for i, one in enumerate(among) if one is tensor)
        self.found[what].append((line, column, number, skipped * self.dtype.itemsize))

    def _table(self, place: tile_products.Places) -> tuple[int, ...]:
        """Where the table of places begins, its length, where its line of outputs begins, how many taps,
        where they stand, what its tiles see, and how many these are. Each is written once."""

        def write() -> tuple[int, ...]:
            table = sum(a.size for a in self.offsets)
            self.offsets += [place.table.reshape(-1), place.out]
            taps, sees = sum(a.size for a in self.longs), sum(a.size for a in self.sees)
            self.longs.append(place.taps)
            self.sees.append(place.sees.reshape(-1))
            out, tiles = table + place.table.size, place.sees.shape[1]
            return table, place.table.shape[1], out, len(place.taps), taps, sees, tiles

        return self._once(place, write)

    def _once(self, key: Any, write: Callable[[], tuple[int, ...]]) -> tuple[int, ...]:
        if id(key) not in self.tables:
            self.tables[id(key)] = (key, write())
        return self.tables[id(key)][1]

    def _blocks(self, part: tile_sums.Blocks) -> tuple[int, ...]:
        """Where rows, starts and runs of blocks are, and how many blocks, taps and runs."""

        def write() -> tuple[int, ...]:
            rows, offset = sum(a.size for a in self.longs), sum(a.size for a in self.offsets)
            self.longs.append(part.rows.reshape(-1))
            self.offsets += [part.start.reshape(-1), part.runs.reshape(-1)]
            taps = part.start.shape[1] - 1
            return rows, len(part.rows), offset, taps, offset + part.start.size, part.runs.shape[1]

        return self._once(part.runs, write)


def _table(rows: list[tuple[int, int, int, int]]) -> Array:
    return np.array(rows, np.int64).reshape(-1, 4)

"""The speed of each operation at the shapes that it meets in one training step of a model.

    python benchmarks/ops.py [--model resnet50_signs] [--batch 32] [--size 64] [--threads 2] [--rounds 7]
                             [--json FILE]

One forward pass is observed, and every distinct call of an operation (shapes, options, which inputs need a
gradient) is then repeated alone with the very arrays of that pass: forward and backward, on the fast path and
as the reference implementation. What the tape does besides, adding up the gradients of a value that is used
twice, is not in it.

GFLOP/s are those of convolutions and dense layers, held against a large float32 matrix product on as many
threads. Under a convolution stand the ways that its products take (``minires.ops.conv2d``), each timed alone,
without bias and ReLU, and held against the peak of this machine: tiles of sums in the registers of all
threads, ``minires.backend.simd``, that grow by numbers in the first cache. With Winograd's fewer
multiplications more than 100% are possible. GB/s count each array that a
formula reads or writes once, however often the code passes over it, held against a plain copy.

Units: milliseconds (medians).
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import pkgutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import machine
import numpy as np

from minires import backend, models, ops
from minires.backend import kernels, simd
from minires.ops.conv2d import conv2d, way
from minires.ops.cross_entropy import cross_entropy
from minires.ops.dense_buffer import DenseBuffer
from minires.tensor import Tensor

# -------------------------------------------------------------------------- the peak of the register tile

DEPTH = 256  # numbers that a sum grows by: with 16 + 8 of them beside each other they take 24 KiB


def _grow(rows: Any, columns: Any, width: int, a: Any, b: Any, y: Any, times: int) -> None:
    """Add up the products of a (rows, DEPTH) and b (DEPTH, width), flat, in one tile, and do so again."""
    for _ in range(times):
        tile = simd.spread(rows, columns, b, 0)
        lines = simd.beside(rows, a, 0, DEPTH)
        for k in range(DEPTH):
            tile = simd.multiply_add(tile, lines, k, b, k * width)
        simd.store(tile, simd.beside(rows, y, 0, width), 0, len(rows), width)


def tile_peak(times: int = 40_000) -> float:
    """GFLOP/s of the widest tile of ``minires.backend.simd`` on all threads, each with numbers of its own.

    Who changes the functions of simd changes :func:`_grow` with them.
    """
    grow = kernels.numba().njit(nogil=True)(_grow)  # not kept on disk: its cache would not see simd change
    rows, columns = simd.shapes()[0]
    width = simd.width((rows, columns), np.float32)
    flop = 2 * DEPTH * len(rows) * width * times * backend.threads()

    def call() -> None:
        sizes = (DEPTH * len(rows), DEPTH * width, len(rows) * width)
        grow(rows, columns, width, *(np.ones(size, np.float32) for size in sizes), times)

    return flop / 1e9 / seconds(lambda: backend.parallel_calls([call] * backend.threads()), 5)


# ------------------------------------------------------------------------------------------- observing


REST = 0.5  # seconds after BLAS or the reference: the threads of BLAS stay awake for a while
USUAL = ("training=", "momentum=", "eps=", "convention=")  # of all layers: not worth a word


@dataclass
class Call:
    """An operation with its inputs, and how often it was called like that."""

    op: str
    function: Callable[..., Tensor]
    args: tuple[Any, ...]
    options: dict[str, Any]
    count: int = 1

    def inputs(self) -> list[Tensor]:
        """The tensors among the inputs, those in a list too."""
        flat = [v for a in (*self.args, *self.options.values()) for v in (a if isinstance(a, list) else [a])]
        return [value for value in flat if isinstance(value, Tensor)]

    def key(self) -> tuple[Any, ...]:
        """What two calls have in common if they take the same time."""
        tensors = [(x.shape, x.data.strides, x.requires_grad) for x in self.inputs()]
        return self.op, tuple(tensors), tuple(self._plain())

    def _plain(self) -> Iterator[str]:
        """The inputs that are no arrays, in words; what is switched off is not mentioned."""
        for name, value in [*(("", value) for value in self.args), *self.options.items()]:
            if value is not False and isinstance(value, int | float | str | tuple):
                yield f"{name}={value}" if name else str(value)

    def __str__(self) -> str:
        shapes = ["x".join(map(str, x.shape)) for x in self.inputs() if x.ndim != 1]
        said = [text for text in self._plain() if not text.startswith(USUAL) and text != "dilation=1"]
        return " ".join([", ".join(shapes), *said])


def _operations() -> dict[Callable[..., Tensor], str]:
    """Every public function that makes a tensor, with its name."""
    found = {}
    for info in pkgutil.iter_modules(ops.__path__):
        module = importlib.import_module(f"minires.ops.{info.name}")
        if info.name not in ("checks", "cases"):
            for name, value in vars(module).items():
                own = getattr(value, "__module__", "") == module.__name__ and not name.startswith("_")
                if own and getattr(value, "__annotations__", {}).get("return") == "Tensor":
                    found[value] = name
    return found


@contextmanager
def observed() -> Iterator[list[Call]]:
    """Yield the list to which every call of an operation inside this block is added, with its arrays."""
    calls: list[Call] = []
    depth = 0  # of operations in operations: the outermost is noted

    def note(name: str, function: Callable[..., Tensor], args: Any, options: Any, run: Any) -> Tensor:
        nonlocal depth
        if depth == 0:
            calls.append(Call(name, function, args, options))
        depth += 1
        try:
            return run()
        finally:
            depth -= 1

    def noting(function: Callable[..., Tensor], name: str) -> Callable[..., Tensor]:
        @functools.wraps(function)
        def noted(*args: Any, **options: Any) -> Tensor:
            return note(name, function, args, options, lambda: function(*args, **options))

        return noted

    append = DenseBuffer.append

    def noted_append(self: DenseBuffer, new: Tensor) -> Tensor:
        return note("dense_buffer", _append, (self.latest, new, self), {}, lambda: append(self, new))

    instead = {function: noting(function, name) for function, name in _operations().items()}
    instead[append] = noted_append
    owners = [module for name, module in sys.modules.items() if name.startswith("minires.")]
    changed = []
    for owner in (*owners, Tensor, DenseBuffer):
        for name, value in list(vars(owner).items()):
            if callable(value) and getattr(value, "__hash__", None) and value in instead:
                changed.append((owner, name, value))
                setattr(owner, name, instead[value])
    try:
        yield calls
    finally:
        for owner, name, value in changed:
            setattr(owner, name, value)


def _append(before: Tensor, new: Tensor, history: DenseBuffer) -> Tensor:
    """The append to a dense block's history that follows ``before``, as a function that can be repeated."""
    history.latest = before
    return history.append(new)


def distinct(calls: list[Call]) -> list[Call]:
    """The first of all calls that are alike, with their number."""
    found: dict[tuple[Any, ...], Call] = {}
    for call in calls:
        if call.key() in found:
            found[call.key()].count += 1
        else:
            found[call.key()] = call
    return list(found.values())


# ------------------------------------------------------------------------------------------- measuring


def fresh(value: Any) -> Any:
    """An input for a call of its own: off the old tape, and running statistics as a copy."""
    if isinstance(value, Tensor):
        return Tensor(value.data, requires_grad=value.requires_grad)
    if isinstance(value, list):
        return [fresh(one) for one in value]
    return value.copy() if isinstance(value, np.ndarray) else value


def seconds(work: Callable[[], Any], rounds: int) -> float:
    """The median time, after a run that is not counted."""
    work()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure_call(call: Call, rounds: int) -> dict[str, Any]:
    """Forward and backward of one call, fast and as the reference implementation, and what work it was."""
    args = [fresh(value) for value in call.args]
    options = {name: fresh(value) for name, value in call.options.items()}
    row: dict[str, Any] = {"op": call.op, "what": str(call), "count": call.count}
    outgoing: list[Any] = []
    for prefix, mode in (("", nullcontext), ("reference ", backend.reference)):
        times = max(1, rounds // 3) if prefix else rounds
        with mode():
            row[f"{prefix}forward_ms"] = 1e3 * seconds(lambda: call.function(*args, **options), times)
            y = call.function(*args, **options)
            backward = None if y.node is None else y.node.backward
            row[f"{prefix}backward_ms"] = 0.0
            if backward is not None:
                dy = np.random.default_rng(0).standard_normal(y.shape).astype(y.dtype)
                row[f"{prefix}backward_ms"] = 1e3 * seconds(functools.partial(backward, dy), times)
                outgoing = [gradient for gradient in backward(dy) if gradient is not None]
    time.sleep(REST)
    if call.op == "conv2d":
        row["ways"] = measure_ways(call, rounds)
    once = row["forward_ms"] + row["backward_ms"]
    row["total_ms"] = call.count * once
    row["forward_gflop"] = _flop(call, y) / 1e9
    products = sum(x.requires_grad for x in call.inputs()[:2]) if row["forward_gflop"] else 0
    row["gflop_per_s"] = row["forward_gflop"] * (1 + products) / once * 1e3
    read = sum(x.data.nbytes for x in call.inputs())
    moved = read + y.data.nbytes + (read + y.data.nbytes + sum(g.nbytes for g in outgoing)) * bool(outgoing)
    row["gb_per_s"] = moved / 1e6 / once
    return row


def measure_ways(call: Call, rounds: int) -> list[dict[str, Any]]:
    """The products of a convolution, each alone: to what, which way, milliseconds and GFLOP/s."""
    x, w = call.args[:2]
    options = {**call.options, "relu": False}
    window = {name: options[name] for name in ("stride", "padding", "dilation", "groups") if name in options}
    ways = way(x.shape, w.shape, **window)
    forward = functools.partial(conv2d, Tensor(x.data), Tensor(w.data), **options)
    dy = np.random.default_rng(0).standard_normal(forward().shape).astype(x.dtype)

    def backward(*, to_x: bool) -> Callable[[], Any]:
        y = conv2d(Tensor(x.data, requires_grad=to_x), Tensor(w.data, requires_grad=not to_x), **options)
        assert y.node is not None
        return functools.partial(y.node.backward, dy)

    products = [("y", ways.forward, forward)]
    if x.requires_grad:
        products.append(("dx", ways.backward_x, backward(to_x=True)))
    if w.requires_grad:
        products.append(("dw", ways.backward_w, backward(to_x=False)))
    found = []
    for to, one, work in products:
        time_of_one = seconds(work, rounds)
        rate = _flop(call, forward()) / 1e9 / time_of_one
        found.append({"to": to, "way": one.name, "ms": 1e3 * time_of_one, "gflop_per_s": rate})
    return found


def _flop(call: Call, y: Tensor) -> int:
    """A multiplication and an addition for each use of a weight; nothing for what is no product."""
    if call.op == "conv2d":
        kh, kw, depth, _ = call.args[1].shape
        return 2 * y.size * kh * kw * depth
    return 2 * y.size * call.args[1].shape[0] if call.op == "linear" else 0


def peaks() -> dict[str, float]:
    """What this machine does at best: a matrix product, a tile in registers, a copy (bytes read, written)."""
    rng = np.random.default_rng(0)
    a, b = rng.random((2048, 2048), np.float32), rng.random((2048, 2048), np.float32)
    source, target = np.ones(1 << 25, np.float32), np.ones(1 << 25, np.float32)
    tiles = tile_peak()
    product = seconds(lambda: backend.matmul(a, b), 5)
    time.sleep(REST)
    copied = seconds(lambda: backend.copy(source, target), 5)
    return {
        "gemm_gflop_per_s": 2 * 2048**3 / 1e9 / product,
        "tile_gflop_per_s": tiles,
        "copy_gb_per_s": 2 * source.nbytes / 1e9 / copied,
    }


def measure(model: str, batch: int, size: int, threads: int, rounds: int) -> dict[str, Any]:
    """Every distinct call of one training step, in this process, the most expensive one first."""
    backend.set_threads(threads)
    entry = models.entry(model)
    network = models.build(model, **entry.fitted(size))
    rng = np.random.default_rng(0)
    x = Tensor(rng.standard_normal((batch, size, size, 3), np.float32))
    labels = rng.integers(0, entry.classes, batch)
    with observed() as calls:
        loss = network(x)
    calls.append(Call("cross_entropy", cross_entropy, (loss, labels), {}))
    del loss
    limits = peaks()
    rows = [measure_call(call, rounds) for call in distinct(calls)]
    for row in rows:
        row["share_of_gemm"] = row["gflop_per_s"] / limits["gemm_gflop_per_s"]
        row["share_of_copy"] = row["gb_per_s"] / limits["copy_gb_per_s"]
        for one in (row, *row.get("ways", [])):
            one["share_of_tile"] = one["gflop_per_s"] / limits["tile_gflop_per_s"]
    rows.sort(key=lambda row: -row["total_ms"])
    return {
        "what": f"{model}, batch {batch}, {size}x{size}, float32, {threads} threads, {rounds} rounds",
        "peaks": limits,
        "rows": rows,
    }


def show(report: dict[str, Any]) -> None:
    """Print the report as a table."""
    limits = report["peaks"]
    print(report["what"])
    print(
        f"at best {limits['gemm_gflop_per_s']:.0f} GFLOP/s in a product, {limits['tile_gflop_per_s']:.0f} in "
        f"tiles, {limits['copy_gb_per_s']:.1f} GB/s in a copy; the reference implementation in brackets; ms"
    )
    print(
        f"{'operation':16}{'times':>6}{'total':>9}{'forward':>19}{'backward':>19}{'GFLOP/s':>13}{'GB/s':>13}"
    )
    for row in report["rows"]:
        pairs = [
            f"{row[f'{way}_ms']:.2f} ({row[f'reference {way}_ms']:.2f})" for way in ("forward", "backward")
        ]
        product = f"{row['gflop_per_s']:.0f} {row['share_of_gemm']:4.0%}" if row["gflop_per_s"] else ""
        moved = f"{row['gb_per_s']:.1f} {row['share_of_copy']:4.0%}"
        print(
            f"{row['op']:16}{row['count']:6}{row['total_ms']:9.2f}{pairs[0]:>19}{pairs[1]:>19}{product:>13}"
            f"{moved:>13}  {row['what']}"
        )
        for one in row.get("ways", []):
            rate = f"{one['gflop_per_s']:.0f} GFLOP/s, {one['share_of_tile']:.0%} of the tiles' peak"
            print(f"{'':16}{one['to']:>6}{one['ms']:9.2f}  {one['way']}: {rate}")
    print(f"{'together':22}{sum(row['total_ms'] for row in report['rows']):9.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="resnet50_signs")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, help="height and width of the pictures (default: the model's)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report here")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        print(json.dumps(measure(**json.loads(options.job))))
        return
    job = {name: getattr(options, name) for name in ("model", "batch", "size", "threads", "rounds")}
    job["size"] = job["size"] or models.entry(options.model).size
    command = [sys.executable, __file__, "--job", json.dumps(job)]
    # The reference implementations multiply with BLAS, which has threads of its own.
    environment = {**machine.without_pins(), "OMP_NUM_THREADS": str(options.threads)}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    report = {"machine": machine.describe(), **json.loads(done.stdout)}
    show(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()

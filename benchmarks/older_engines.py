"""minires against two older engines on NumPy, Chainer and DeZero: a training step of the SIGNS ResNet-50.

    python benchmarks/older_engines.py --chainer PYTHON --dezero PYTHON [--batch 32] [--rounds 5]
                                       [--threads 2] [--json benchmarks/results/older_engines.json]

PYTHON is the interpreter of an environment in which that engine is installed. Both engines use names that
NumPy 1.24 took away (DeZero cannot even be imported with it), so each gets an environment of its own, of
Python 3.11 at most:

    python3.11 -m venv with_chainer
    with_chainer/bin/pip install "setuptools<81" wheel numpy==1.23.5
    with_chainer/bin/pip install --no-build-isolation chainer==7.8.1

    python3.11 -m venv with_dezero
    with_dezero/bin/pip install dezero==0.0.13 numpy==1.23.5 "matplotlib<3.9"

minires runs under the interpreter of this program, each peer as a child process (``older_peers.py``) that
gets the network as a list of layers and waits while the others work. All have the same weights, pictures and
number of threads, and nothing is timed before logits, loss and gradients agree. Each round runs every engine
once, in turn: a step that is not counted and one that is, forward, backward and Adam; minires as the model is
and as a plan (``minires.compile(..., training=True)``). What counts is the ratio of the medians, the smaller
the better for minires.

All use OpenBLAS, and all with the kernels that the newest of them, that of minires, finds for this processor:
the one in NumPy 1.23 does not know processors younger than itself, and would use SSE3 on them.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import compare
import numpy as np
import workloads
from compare import Peer
from machine import describe
from workloads import Job

import minires
from minires.errors import ConfigError
from minires.nn import layers
from minires.nn.blocks import ResidualBlock
from minires.nn.module import Module
from minires.ops.cross_entropy import cross_entropy

PROGRAM = (sys.executable, compare.__file__)
OURS = "minires"
WAYS = {OURS: "train", "minires, planned": "train, planned"}  # what our peer is asked for
CHILD = str(Path(__file__).with_name("older_peers.py"))
BOUNDS = {"training": 1e-3, "loss": 1e-3, "gradient": 5e-2}
COLUMNS = ("train", "forward", "backward", "optimizer")

# --------------------------------------------------------------------------------- the network as a list


def described(model: Module) -> list[dict[str, Any]]:
    """The layers of a chain in order, as plain data that another engine can follow.

    Raises: ConfigError if there is a layer, or an option, that the other engines are not told of.
    """
    return [one for name, module in model.children() for one in _layer(name, module)]


def _layer(name: str, module: Module) -> list[dict[str, Any]]:
    """One module of ours; a batch norm that ends in a ReLU is two layers there, and so is a block."""
    if isinstance(module, ResidualBlock):
        return _block(name, module)
    what: dict[str, Any]
    match module:
        case layers.Conv2d(groups=1, padding=int(), relu=False):
            what = {"kind": "conv", "stride": module.stride, "padding": module.padding}
        case layers.BatchNorm2d(convention="keras"):
            what = {"kind": "batch_norm", "eps": module.eps, "momentum": module.momentum}
        case layers.MaxPool2d(padding=0) | layers.AvgPool2d(padding=0):
            what = _pool(module)
        case layers.AvgPool2d(padding="same", kernel=2, stride=None | 2):
            # It pads odd sides only. Here the side is even; otherwise the logits would differ.
            what = _pool(module)
        case layers.Flatten():
            what = {"kind": "flatten"}
        case layers.Linear():
            what = {"kind": "linear"}
        case _:
            raise ConfigError(f"{name}: the older engines are not told of this {type(module).__name__}")
    what["arrays"] = {short: f"{name}.{short}" for short in module.state_dict()}
    relu = [{"kind": "relu", "arrays": {}}] if getattr(module, "relu", False) else []
    return [what, *relu]


def _pool(pool: layers.MaxPool2d | layers.AvgPool2d) -> dict[str, Any]:
    kind = "max_pool" if isinstance(pool, layers.MaxPool2d) else "avg_pool"
    return {"kind": kind, "kernel": pool.kernel, "stride": pool.stride or pool.kernel}


def _block(name: str, block: ResidualBlock) -> list[dict[str, Any]]:
    """The branch and the shortcut; the ReLU in which the branch's last batch norm ends is after their sum."""
    if block._shortcut not in ("identity", "B", "C") or block.placement != "none":
        raise ConfigError(f"{name}: the older engines are told of blocks without a gate, shortcut B or C")
    chains: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
    for child, module in block.children():
        chains[child.endswith("_branch1")] += _layer(child, module)
    *branch, relu = chains[False]
    return [{"kind": "residual", "arrays": {}, "branch": branch, "shortcut": chains[True]}, relu]


# ----------------------------------------------------------------------------------------- the referee


def prepare(folder: Path, job: Job) -> None:
    """Write what compare.py's peers get, and the network."""
    workloads.prepare(folder, job)
    (folder / "network.json").write_text(json.dumps(described(job.build(initializer="zeros"))))


def same_kernels(blas: list[str]) -> tuple[str, ...]:
    """How a command begins whose OpenBLAS takes the processor for what ours, described by ``blas``, does."""
    found = [one.removeprefix("openblas ") for one in blas if one.startswith("openblas ")]
    return ("env", f"OPENBLAS_CORETYPE={found[0]}") if found else ()


def measure(
    job: Job, rounds: int, programs: Mapping[str, tuple[str, ...]], ours: tuple[str, ...] = PROGRAM
) -> dict[str, Any]:
    """Check that the engines agree, then time them in turn; ``programs`` says how each peer is started."""
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary)
        prepare(folder, job)
        peers = [stack.enter_context(Peer(OURS, folder, job, ours))]
        blas = peers[0].ask("blas")
        for name, program in programs.items():
            peers.append(stack.enter_context(Peer(name, folder, job, (*same_kernels(blas), *program))))
        found = {}
        for peer in peers:
            peer.ask("check")
            found[peer.name] = dict(np.load(folder / f"{peer.name}.npz"))
        mine = found.pop(OURS)
        labels = np.load(folder / "inputs.npz")["labels"]
        mine["loss"] = cross_entropy(minires.Tensor(mine["training"]), labels).data
        agreement = {}
        for name, theirs in found.items():
            apart = compare.difference(mine, theirs, ("training", "loss"))
            compare.verify(apart, BOUNDS, name)
            agreement[f"minires against {name}"] = apart
        times: dict[str, list[Any]] = {}
        for number in range(rounds):
            for peer in peers[number % len(peers) :] + peers[: number % len(peers)]:
                for name, way in (WAYS if peer.name == OURS else {peer.name: "train"}).items():
                    peer.ask(way)
                    times.setdefault(name, []).append(peer.ask(way))
        versions = {peer.name: peer.ask("versions") for peer in peers[1:]}
    results = {name: compare._row({"train": seconds}) for name, seconds in times.items()}
    how = f"{job.size}x{job.size}, float32, Adam, {job.threads} threads, {rounds} rounds"
    return {
        "what": f"{job.model}, batch {job.batch}, {how}",
        "job": asdict(job),
        "machine": {**describe(), "blas": blas, "peers": versions},
        "agreement": agreement,
        "results": results,
        **{_ratio_of(way, name): ratios(results, way, name) for way in WAYS for name in found},
    }


def _ratio_of(way: str, peer: str) -> str:
    return f"{way.replace(', ', '_')}_over_{peer}"


def ratios(results: dict[str, Any], way: str, peer: str) -> dict[str, float]:
    """Our medians over those of a peer; below 1 is better."""
    ours, theirs = results[way], results[peer]
    return {what: round(ours[what]["median_ms"] / theirs[what]["median_ms"], 3) for what in COLUMNS}


def show(report: dict[str, Any]) -> None:
    """Print the report as a table."""
    print(report["what"])
    print(f"{report['machine']['processor']}; BLAS {', '.join(report['machine']['blas'])}")
    for versions in report["machine"]["peers"].values():
        print(", ".join(f"{what} {version}" for what, version in versions.items()))
    for pair, apart in report["agreement"].items():
        print(f"{pair}: {', '.join(f'{what} {apart[what]:.0e}' for what in BOUNDS)}")
    print(f"{'ms, median (quartiles)':26}" + "".join(f"{column:>26}" for column in COLUMNS))
    for name, row in report["results"].items():
        cells = "".join(f"{compare._cell(row[column]):>26}" for column in COLUMNS)
        print(f"{name:26}{cells}")
    for name in report["machine"]["peers"]:
        for way in WAYS:
            row = report[_ratio_of(way, name)]
            print(f"{way + ' / ' + name:26}" + "".join(f"{row[column]:>26.3f}" for column in COLUMNS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--chainer", metavar="PYTHON", help="an interpreter that has Chainer")
    parser.add_argument("--dezero", metavar="PYTHON", help="an interpreter that has DeZero")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report here")
    options = parser.parse_args()
    interpreters = {"chainer": options.chainer, "dezero": options.dezero}
    programs = {name: (python, CHILD) for name, python in interpreters.items() if python}
    if not programs:
        parser.error("name an interpreter with --chainer, with --dezero, or with both")
    job = Job(batch=options.batch, threads=options.threads)
    report = measure(job, options.rounds, programs)
    show(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()

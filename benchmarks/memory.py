"""The memory of one training step: the deepest networks, and what DenseNet's shared buffer saves.

    python benchmarks/memory.py [--json benchmarks/results/memory.json]

Each row runs in a process of its own: build the model, read the memory it stands at, do one forward and one
backward pass on random pictures, read the peak. A second step is timed.

Units: MiB of resident memory, seconds.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import machine

JOBS: list[dict[str, Any]] = [
    {"model": "resnet1202_cifar", "batch": 16, "side": 32},
    {"model": "preresnet1001_cifar", "batch": 16, "side": 32},
    {"model": "densenet_bc100_k12_cifar", "batch": 32, "side": 32, "variant": {"shared": True}},
    {"model": "densenet_bc100_k12_cifar", "batch": 32, "side": 32, "variant": {"shared": False}},
    {"model": "densenet121", "batch": 4, "side": 224, "variant": {"shared": True}},
    {"model": "densenet121", "batch": 4, "side": 224, "variant": {"shared": False}},
]


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """One row, in this process."""
    import numpy as np

    from minires import Tensor, models
    from minires.ops.cross_entropy import cross_entropy

    model = models.build(job["model"], **job.get("variant", {}))
    rng = np.random.default_rng(0)
    x = rng.standard_normal((job["batch"], job["side"], job["side"], 3), np.float32)
    labels = rng.integers(0, 10, job["batch"])

    def step() -> None:
        model.zero_grad()
        cross_entropy(model(Tensor(x)), labels).backward()

    before = _resident()
    step()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux counts in KiB
    start = time.perf_counter()
    step()
    return {
        **job,
        "model_MiB": round(before),
        "peak_MiB": round(peak),
        "step_seconds": round(time.perf_counter() - start, 2),
    }


def _resident() -> float:
    """The memory this process stands at, in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the result here")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        print(json.dumps(measure(json.loads(options.job))))
        return
    rows = []
    for job in JOBS:
        command = [sys.executable, __file__, "--job", json.dumps(job)]
        done = subprocess.run(
            command, env=machine.without_pins(), check=True, stdout=subprocess.PIPE, text=True
        )
        rows.append(json.loads(done.stdout))
        print(rows[-1], flush=True)
    if options.json:
        report = {"machine": machine.describe(), "rows": rows}
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()

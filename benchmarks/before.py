"""This checkout against another one of minires: the same numbers first, then the time of a training step.

    git worktree add ../before COMMIT
    python benchmarks/before.py ../before [--rounds 15] [--threads 2] [--json FILE]

Each checkout runs its own ``compare.py`` in a process of its own, under this Python and with this
environment's packages, and waits while the other works. They take turns: a step that is not counted, then one
that is. What counts is the ratio of the medians.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from compare import BOUNDS, WARM_UP, Peer, difference, summary, verify
from machine import describe
from workloads import Job, prepare

HERE = Path(__file__).resolve().parents[1]
JOBS = (Job(), Job("resnet20_cifar", 128, 32))


def measure(job: Job, before: Path, rounds: int) -> dict[str, Any]:
    """Check that both compute the same, then time them in turn. Raises: SystemExit if they do not."""
    times: dict[str, list[float]] = {"before": [], "now": []}
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary)
        prepare(folder, job)
        peers, found = {}, {}
        for name, checkout in (("before", before.resolve()), ("now", HERE)):
            program = (sys.executable, str(checkout / "benchmarks/compare.py"))
            peer = Peer("minires", folder, job, program, {"PYTHONPATH": str(checkout)})
            peers[name] = stack.enter_context(peer)
            peers[name].ask("check")
            found[name] = dict(np.load(folder / "minires.npz"))
        agreement = difference(found["now"], found["before"])
        # Sums in another order round elsewhere: batch norms make some 1e-7 of that 1e-3 in gradients.
        verify(agreement, {**dict.fromkeys(BOUNDS, 1e-4), "gradient": 2e-3}, "the other checkout")
        for number in range(-WARM_UP, rounds):
            for name in ("before", "now") if number % 2 else ("now", "before"):
                peers[name].ask("train")
                seconds = sum(peers[name].ask("train"))
                if number >= 0:
                    times[name].append(seconds)
    step = {name: summary(seconds) for name, seconds in times.items()}
    return {
        "what": f"training step of {job.model}, batch {job.batch}, {job.size}x{job.size}, Adam, "
        f"{job.threads} threads, {rounds} rounds",
        "job": asdict(job),
        "machine": describe(),
        "agreement": agreement,
        "results": step,
        "now_over_before": round(step["now"]["median_ms"] / step["before"]["median_ms"], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("before", type=Path, help="folder of the other checkout")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the reports here")
    options = parser.parse_args()
    reports = []
    for job in JOBS:
        report = measure(Job(**{**asdict(job), "threads": options.threads}), options.before, options.rounds)
        print(report["what"], *(f"{name} {row['median_ms']} ms" for name, row in report["results"].items()),
              f"now / before {report['now_over_before']}", sep=", ")  # fmt: skip
        reports.append(report)
    if options.json:
        options.json.write_text(json.dumps(reports, indent=1) + "\n")


if __name__ == "__main__":
    main()

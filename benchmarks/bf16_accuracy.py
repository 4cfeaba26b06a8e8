"""What bfloat16 does to accuracy: the same runs in float32 and in bfloat16, one for each seed.

    python benchmarks/bf16_accuracy.py [--data signs] [--seeds 0 1 2]

Each run is the command a user would type, ``minires train --precision ...``, of the small ResNet-20 on
pictures of 32x32, in a process of its own. It needs no GPU: the CPU rounds the results of each operation to
bfloat16, as a GPU does. The model of each run is tested in float32. The figures go to
``benchmarks/results/bf16_accuracy.json``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import accuracy
from machine import describe

PRECISIONS = ("fp32", "bf16")
FIGURES = ("test_accuracy", "test_loss", "val_accuracy", "train_loss")


def compare(recipe: str, data: str, seeds: list[int], options: list[str]) -> dict[str, Any]:
    """The figures of every run, by precision and seed, and the medians of each precision."""
    found: dict[str, Any] = {}
    for precision in PRECISIONS:
        runs = {}
        for seed in seeds:
            with tempfile.TemporaryDirectory() as temporary:
                out = Path(temporary, "run")
                summary = accuracy.run(recipe, data, seed, out, *options, "--precision", precision)
            runs[seed] = {key: summary[key] for key in FIGURES}
        medians = {f"median_{key}": statistics.median(run[key] for run in runs.values()) for key in FIGURES}
        found[precision] = {"seeds": runs, **medians}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", default="signs")
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    options = ["--model", "resnet20_cifar", "--size", "32"]
    found = compare(arguments.recipe, arguments.data, arguments.seeds, options)
    command = f"minires train --data {arguments.data} --recipe {arguments.recipe} {' '.join(options)}"
    report = {"what": f"{command} --precision ...", "machine": describe(), **found}
    (accuracy.RESULTS / "bf16_accuracy.json").write_text(json.dumps(report, indent=1) + "\n")
    for precision in PRECISIONS:
        accuracies = [run["test_accuracy"] for run in found[precision]["seeds"].values()]
        median = found[precision]["median_test_accuracy"]
        print(f"{precision}: test accuracy {accuracies}, median {median:.4f}")


if __name__ == "__main__":
    main()

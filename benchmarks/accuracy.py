"""How well a recipe does: train it from scratch once per seed, keep every seed's figures.

    python benchmarks/accuracy.py two-epoch --data signs --seeds 0 1 2 3 4

Each run is the command a user would type, ``minires train``, in a process of its own. The figures go to
``benchmarks/results/<data>_<recipe>.json``, the pictures of the median run beside it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from machine import describe, without_pins

RESULTS = Path(__file__).parent / "results"
PICTURES = ("curves.png", "confusion.png", "mistakes.png")


def run(recipe: str, data: str, seed: int, out: Path, *options: str) -> dict[str, Any]:
    """Train once; the run's own summary."""
    command = [sys.executable, "-m", "minires", "train", "--data", data, "--recipe", recipe]
    command += ["--seed", str(seed), "--out", str(out), *options]
    subprocess.run(command, check=True, env=without_pins())
    return json.loads((out / "summary.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("recipe")
    parser.add_argument("--data", default="signs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    name = f"{arguments.data}_{arguments.recipe}"
    with tempfile.TemporaryDirectory() as temporary:
        runs = {}
        for seed in arguments.seeds:
            folder = Path(temporary, str(seed))
            runs[seed] = (run(arguments.recipe, arguments.data, seed, folder), folder)
        median = statistics.median_low(summary["test_accuracy"] for summary, _ in runs.values())
        typical = next(folder for summary, folder in runs.values() if summary["test_accuracy"] == median)
        for picture in PICTURES:
            if (typical / picture).exists():
                shutil.copy(typical / picture, RESULTS / f"{name}_{picture}")
        config = json.loads((typical / "config.json").read_text())
    figures = ("test_accuracy", "test_loss", "seconds")
    seeds = {seed: {key: summary[key] for key in figures} for seed, (summary, _) in runs.items()}
    accuracies = [entry["test_accuracy"] for entry in seeds.values()]
    report = {
        "what": f"minires train --data {arguments.data} --recipe {arguments.recipe}",
        "machine": describe(),
        "config": {key: value for key, value in config.items() if key != "seed"},
        "seeds": seeds,
        "median_test_accuracy": statistics.median(accuracies),
        "median_seconds": statistics.median(entry["seconds"] for entry in seeds.values()),
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    print(f"{report['what']}: test accuracy {accuracies}, median {report['median_test_accuracy']:.4f}")


if __name__ == "__main__":
    main()

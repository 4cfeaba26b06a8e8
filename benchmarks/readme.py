"""Write the README's tables of figures anew from the result files.

    python benchmarks/readme.py [--check]

With ``--check`` nothing is written; the exit status is 1 if the README is not what the results say.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parent.parent / "README.md"
BLOCK = re.compile(r"(<!-- results: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def load(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())


def percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def accuracy() -> str:
    """Every recipe that has a result, with all its seeds."""
    lines = ["| command | test accuracy, median | every seed | time of one run |", "|---|---|---|---|"]
    for path in sorted(RESULTS.glob("*_*.json")):
        report = load(path.stem)
        if "median_test_accuracy" not in report:
            continue
        seeds = ", ".join(percent(seed["test_accuracy"]) for seed in report["seeds"].values())
        minutes = report["median_seconds"] / 60
        row = (f"`{report['what']}`", f"**{percent(report['median_test_accuracy'])}**", seeds)
        lines.append(f"| {' | '.join(row)} | {minutes:.1f} min |")
    return "\n".join(lines) + f"\n\n{_where(report)}\n"


def speed() -> str:
    """The training step and inference beside PyTorch."""
    report = load("compare_batch32")
    columns = {"train": "training step", "forward": "forward", "backward": "backward",
               "optimizer": "Adam", "inference": "inference"}  # fmt: skip
    lines = [
        "| ms, median | " + " | ".join(columns.values()) + " | peak memory |",
        "|---" * (len(columns) + 2) + "|",
    ]
    for name, row in report["results"].items():
        cells = " | ".join(f"{row[column]['median_ms']:.0f}" for column in columns)
        lines.append(f"| {name} | {cells} | {row['peak_memory_MiB']} MiB |")
    ratios = report["minires_time_over_pytorch_best"]
    cells = " | ".join(f"**{ratios[column]:.2f}**" for column in columns)
    lines.append(f"| minires / the faster PyTorch | {cells} | |")
    return "\n".join(lines) + f"\n\n{report['what']}. {_where(report)}\n"


def agreement() -> str:
    """Distance from PyTorch with the same weights."""
    report = load("agreement")
    lines = ["| | logits | worst gradient of a parameter |", "|---|---|---|"]
    for start in ("last_gamma 0.25", "last_gamma 1.0"):
        for what, row in report[start].items():
            lines.append(f"| {start}, {what} | {row['logits']:.0e} | {row['worst_gradient']:.0e} |")
    return "\n".join(lines) + "\n"


def _where(report: dict[str, Any]) -> str:
    machine = report["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    return f"Measured {machine['date']} on {machine['processor']}, {machine['cores']} cores; {versions}."


TABLES = {"accuracy": accuracy, "speed": speed, "agreement": agreement}


def rewritten(text: str) -> str:
    """The README's text with every table as the results say."""
    return BLOCK.sub(lambda match: match[1] + TABLES[match[2]]() + match[3], text)


def main() -> None:
    text = README.read_text()
    if "--check" in sys.argv[1:]:
        sys.exit(rewritten(text) != text)
    README.write_text(rewritten(text))


if __name__ == "__main__":
    main()

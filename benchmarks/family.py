"""Every registered model counted and held against the rows of figures of the papers.

    python benchmarks/family.py [--json benchmarks/results/family.json]

``tests/models/counts.json`` holds the rows: parameters, MACs and output sizes, each with its source;
``tests/models/test_tables.py`` holds us to them. This writes down what was found, for the README.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import machine

from minires import models
from minires.inspect import summarize

TESTS = Path(__file__).parent.parent / "tests" / "models"
ROWS = json.loads((TESTS / "counts.json").read_text())
# A word that a test file holds if it compares with this independent implementation.
ORACLES = {"pytorchcv": "pytorchcv", "applications": "Keras", "Twin": "a twin in PyTorch"}
ORACLES["agreement"] = ORACLES["Twin"]  # the twin of benchmarks/agreement.py


def picture(text: str) -> tuple[int, int, int]:
    """``224x224x3`` -> (224, 224, 3)."""
    height, width, channels = map(int, text.split("x"))
    return height, width, channels


def part_of(stage: str, parts: list[str]) -> str:
    """The part of a network whose output is that of a row's stage."""
    if stage == "features":
        return next(name for name in reversed(parts) if name.startswith("pool"))
    if stage.startswith("conv") and stage.endswith("_x"):  # conv2_x: blocks res2a, res2b, ...
        return next(name for name in reversed(parts) if name.startswith(f"res{stage[4]}"))
    if stage.startswith("stage"):  # of a CIFAR network; the first is called 2, as in the larger ones
        return next(name for name in reversed(parts) if name.startswith(f"res{int(stage[5:]) + 1}"))
    return stage  # conv1, pool1, block1


def figures(name: str, options: dict[str, Any], classes: int, shape: tuple[int, int, int]) -> dict[str, Any]:
    """The figures of a model of ours, counted while a picture passes through it."""
    model = models.build(name, classes=classes, initializer="zeros", **options)
    summary = summarize(model, shape)
    parts = list(summary.outputs)
    last = parts[next(i for i, part in enumerate(parts) if part in ("avg_pool", "flatten")) - 1]
    return {
        "params_total": summary.params_total,
        "params_trainable": summary.params_trainable,
        "macs": summary.macs,
        "final_feature": summary.outputs[last],
        "outputs": lambda stage: summary.outputs[part_of(stage, parts)],
    }


def holds(row: dict[str, Any]) -> list[str]:
    """What of ours differs from a row of figures, in words; nothing if it holds."""
    found = figures(row["build"], row["options"], row["classes"], picture(row["input"]))
    wrong = [
        f"{figure} is {found[figure]}, not {row[figure]}"
        for figure in ("params_total", "params_trainable", "macs")
        if found[figure] != row[figure]
    ]
    sizes = {stage: found["outputs"](stage) for stage in row["stage_outputs"]}
    wanted = dict(row["stage_outputs"])
    sizes["the last feature"], wanted["the last feature"] = found["final_feature"], row["final_feature"]
    wrong += [
        f"{stage} is {size}, not {wanted[stage]}"
        for stage, size in sizes.items()
        if size != picture(wanted[stage])
    ]
    return wrong


def paper_of(name: str) -> str:
    """The file a model stands in: ``resnet_v2``."""
    return models.entry(name).make.__module__.rsplit(".", 1)[1]


def survey() -> dict[str, Any]:
    """Every model with its figures, every file with how many rows hold and what its tests compare with."""
    report: dict[str, Any] = {"models": {}, "papers": {}}
    for name in models.names():
        entry, paper = models.entry(name), paper_of(name)
        found = figures(name, {}, entry.classes, (entry.size, entry.size, 3))
        report["models"][name] = {
            "paper": paper, "input": entry.size, "classes": entry.classes,
            **{figure: found[figure] for figure in ("params_total", "params_trainable", "macs")},
        }  # fmt: skip
        if paper not in report["papers"]:
            text = (TESTS / f"test_{paper}.py").read_text()
            oracles = [oracle for word, oracle in ORACLES.items() if word in text]
            report["papers"][paper] = {"rows": 0, "hold": 0, "published": 0, "oracles": oracles}
    for row in ROWS:
        paper = report["papers"][paper_of(row["build"])]
        good = not holds(row)
        paper["rows"] += 1
        paper["hold"] += good
        paper["published"] += good and row["verified"]
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the result here")
    options = parser.parse_args()
    report = {"machine": machine.describe(), **survey()}
    for name, row in report["models"].items():
        print(f"{name:28} {row['params_total']:>13,} {row['macs']:>15,}  {row['input']}")
    for paper, row in report["papers"].items():
        print(f"{paper:28} {row['hold']} of {row['rows']} rows hold")
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()

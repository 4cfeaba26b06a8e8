"""``minires evaluate``: a trained model, tested."""

from __future__ import annotations

import argparse
import sys

from minires.commands.loading import data_of_run, load_trained, print_json, run_options, speaker
from minires.commands.registry import Command
from minires.errors import DataError

TEXT = """\
Test a trained model: how many pictures it gets right, and the mean cross-entropy.

  minires evaluate runs/signs-default-1
  minires evaluate runs/signs-default-1 --data hands --split val"""


def add_options(parser: argparse.ArgumentParser) -> None:
    run_options(parser)
    parser.add_argument(
        "--data", metavar="NAME", help="a data set or path (default: what the run was trained on)"
    )
    parser.add_argument("--split", choices=("train", "val", "test"), default="test", help="default: test")


def run(options: argparse.Namespace) -> int:
    from minires import backend, data, train

    trained, side = load_trained(options)
    splits = data.load(options.data or data_of_run(options.model), size=side)
    dataset = getattr(splits, options.split)
    if dataset.classes != trained.classes:
        raise DataError(
            f"{options.model} knows the classes {', '.join(trained.classes)}, but {splits.source} has "
            f"{', '.join(dataset.classes)}; choose a data set with the same classes"
        )
    with backend.before_compiling(speaker(sys.stderr)):
        result = train.evaluate(trained.model, dataset, trained.normalize)
    correct = round(result.accuracy * len(dataset))
    if options.json:
        print_json({
            "model": trained.name, "data": dataset.name, "source": splits.source, "split": options.split,
            "correct": correct, "total": len(dataset), "accuracy": result.accuracy, "loss": result.loss,
        })  # fmt: skip
        return 0
    print(f"{trained.name} on {splits.source}, {options.split} pictures:")
    print(f"{correct} of {len(dataset)} right, accuracy {100 * result.accuracy:.2f}%, loss {result.loss:.4f}")
    return 0


COMMAND = Command("test a trained model on a data set", TEXT, run, add_options)

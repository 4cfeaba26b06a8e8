"""``minires evaluate``: a trained model, tested."""

from __future__ import annotations

import argparse
import sys
from contextlib import suppress

from minires.commands.loading import load_trained, print_json, run_options, speaker
from minires.commands.pictures import SPLITS, labelled, learnt, warn_of_learnt
from minires.commands.registry import Command
from minires.errors import MiniresError

TEXT = """\
Test a trained model: how many pictures it gets right, and the mean cross-entropy.

  minires evaluate runs/signs-default-1
  minires evaluate runs/signs-default-1 --data photos.zip
  minires evaluate runs/signs-default-1 --data hands --split val

The pictures stand in folders that are named like the classes, in a folder, a zip or a tar (.tar, .tar.gz,
.tgz, .tar.xz, .tar.bz2). Without folders for train, val and test all of them are used; else those of test, or
of the only part. A class may be missing, and the order of the classes does not matter."""


def add_options(parser: argparse.ArgumentParser) -> None:
    run_options(parser)
    parser.add_argument(
        "--data", metavar="NAME", help="a data set or path (default: what the run was trained on)"
    )
    parser.add_argument("--split", choices=SPLITS, help="default: see above")


def run(options: argparse.Namespace) -> int:
    from minires import backend, data, train

    trained, side = load_trained(options)
    asked = options.model, options.data, options.split, trained, side
    part = labelled(*asked)
    dataset = part.pictures
    if options.split != "train" and (options.data is not None or part.split == "all"):
        known, known_by_files = learnt(options.model, side), dataset
        if known.files and not isinstance(dataset.images, data.Stream):
            with suppress(MiniresError):  # what is no files is none of theirs
                known_by_files = labelled(*asked, stream=True).pictures
        if known:
            warn_of_learnt(options.model, *known.among(known_by_files))
    with backend.before_compiling(speaker(sys.stderr)):
        result = train.evaluate(trained.model, dataset, trained.normalize)
    correct = round(result.accuracy * len(dataset))
    if options.json:
        print_json({
            "model": trained.name, "data": dataset.name, "source": part.source, "split": part.split,
            "correct": correct, "total": len(dataset), "accuracy": result.accuracy, "loss": result.loss,
        })  # fmt: skip
        return 0
    print(f"{trained.name} on {part.source}, {part.split} pictures:")
    print(f"{correct} of {len(dataset)} right, accuracy {100 * result.accuracy:.2f}%, loss {result.loss:.4f}")
    return 0


COMMAND = Command("test a trained model on a data set", TEXT, run, add_options)

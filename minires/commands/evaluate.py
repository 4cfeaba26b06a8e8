"""``minires evaluate``: a trained model, tested."""

from __future__ import annotations

import argparse
import sys
from contextlib import suppress

from minires.commands.loading import (
    change_option,
    changes_of,
    load_trained,
    print_changes,
    print_json,
    run_options,
    speaker,
)
from minires.commands.pictures import SPLITS, labelled, learnt, warn_of_learnt
from minires.commands.registry import Command
from minires.errors import ConfigError, MiniresError

TEXT = """\
Test a trained model: how many pictures it gets right, and the mean cross-entropy.

  minires evaluate runs/signs-default-1
  minires evaluate runs/signs-default-1 --data photos.zip
  minires evaluate runs/signs-default-1 --data hands --split val
  minires evaluate runs/mine --crops 10                           corners, middle, and these mirrored
  minires evaluate runs/mine --crops full --scales 224,256,384    whole pictures at several sizes
  minires evaluate runs/mine --change res3b=drop                  without the branch of a block

The pictures stand in folders that are named like the classes, in a folder, a zip or a tar (.tar, .tar.gz,
.tgz, .tar.xz, .tar.bz2). Without folders for train, val and test all of them are used; else those of test, or
of the only part. A class may be missing, and the order of the classes does not matter.

With --crops the model sees several views of each picture, and the mean of its probabilities counts; --scales
are the shorter sides that pictures are resized to first (default: as 256 is to 224)."""


def add_options(parser: argparse.ArgumentParser) -> None:
    run_options(parser)
    parser.add_argument(
        "--data", metavar="NAME", help="a data set or path (default: what the run was trained on)"
    )
    parser.add_argument("--split", choices=SPLITS, help="default: see above")
    parser.add_argument("--crops", choices=("1", "10", "full"), help="views of each picture: see above")
    parser.add_argument("--scales", metavar="N,N", help="shorter sides, for --crops; several are averaged")
    change_option(parser)


def run(options: argparse.Namespace) -> int:
    from minires import backend, data, train
    from minires.distributed import world
    from minires.nn.intervene import intervene
    from minires.train import team

    scales = _scales(options)
    trained, side = load_trained(options, world())
    asked = options.model, options.data, options.split, trained, side
    part = labelled(*asked, stream=options.crops is not None or None)
    dataset = part.pictures
    if options.split != "train" and (options.data is not None or part.split != "test"):
        known, known_by_files = learnt(options.model, side), dataset
        if known.files and not isinstance(dataset.images, data.Stream):
            with suppress(MiniresError):  # what is no files is none of theirs
                known_by_files = labelled(*asked, stream=True).pictures
        if known:
            warn_of_learnt(options.model, *known.among(known_by_files))
    team.one_part(world(), dataset, part.source)
    with backend.before_compiling(speaker(sys.stderr)), intervene(trained.model, changes_of(options)) as done:
        if options.crops is None:
            result = train.evaluate(trained.model, dataset, trained.normalize, comm=world())
        else:
            crops = options.crops if options.crops == "full" else int(options.crops)
            result = train.evaluate_crops(
                trained.model, dataset, trained.normalize, side=side, crops=crops, scales=scales,
                comm=world(),
            )  # fmt: skip
    correct = round(result.accuracy * len(dataset))
    if options.json:
        print_json({
            "model": trained.name, "data": dataset.name, "source": part.source, "split": part.split,
            "correct": correct, "total": len(dataset), "accuracy": result.accuracy, "loss": result.loss,
            "crops": options.crops, "scales": list(scales), "changes": done.words,
        })  # fmt: skip
        return 0
    words = {"1": ", one crop", "10": ", ten crops", "full": ", whole pictures and mirrored"}
    views = words.get(options.crops, "")
    print(f"{trained.name} on {part.source}, {part.split} pictures{views}:")
    print_changes(done.words)
    print(f"{correct} of {len(dataset)} right, accuracy {100 * result.accuracy:.2f}%, loss {result.loss:.4f}")
    return 0


def _scales(options: argparse.Namespace) -> tuple[int, ...]:
    """The numbers of --scales."""
    if options.scales is None:
        return ()
    if options.crops is None:
        raise ConfigError("--scales is for --crops: say --crops 1, 10 or full")
    try:
        return tuple(int(one) for one in options.scales.split(","))
    except ValueError:
        raise ConfigError(f"--scales {options.scales}: give whole numbers, such as 224,256,384") from None


COMMAND = Command("test a trained model on a data set", TEXT, run, add_options, ranks=True)

"""``minires trace``: a page of every step of one picture."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minires.commands.loading import (
    TRAINED,
    TrainedModel,
    change_option,
    changes_of,
    print_changes,
    print_json,
    speaker,
    trained_or_fresh,
)
from minires.commands.pictures import SPLITS, labelled, pictures_of
from minires.commands.registry import Command
from minires.errors import ConfigError
from minires.files import PAGE, not_over, with_ending

if TYPE_CHECKING:
    from minires.train import Trained


TEXT = """\
Write a page in which you walk through a network with one picture, from its pixels to the loss and back to the
first kernel: every step with its values and gradients. The page is one file and needs no network.

  minires trace runs/signs-default-1
  minires trace runs/signs-default-1 --image hand.jpg --label 3 --html hand.html
  minires trace runs/signs-default-1 --data photos.zip --split val
  minires trace resnet50 --image hand.jpg         fresh weights, not trained
  minires trace runs/signs-default-1 --change res3b=drop --change res4a.shortcut=0.5

Without --label the loss is for the label of the test picture, or else for the model's own guess; where that
is so sure that its loss is about 0, for the class that the model finds second best."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", metavar="RUN", action=TrainedModel, help=f"{TRAINED}; or a model's name"
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--image", metavar="FILE",
        help="the picture, or the first in a folder, zip or tar (default: the first test picture of the run)",
    )  # fmt: skip
    which.add_argument(
        "--data", metavar="NAME", help="a data set or path, as for evaluate: its first picture and label"
    )
    parser.add_argument(
        "--split", choices=SPLITS, help="the part of which it is the first picture, as for evaluate"
    )
    parser.add_argument("--label", metavar="NAME", help="what is on it (default: see above)")
    parser.add_argument(
        "--html", metavar="FILE", help="where to write it (default: trace-MODEL.html in the run)"
    )
    change_option(parser)


def run(options: argparse.Namespace) -> int:
    from minires import backend, train
    from minires.debug.recording import ABOUT_ZERO
    from minires.debug.trace_page import trace
    from minires.nn.intervene import intervene

    if options.html is not None:
        with_ending("--html", options.html, PAGE, "a page")
        read = [one for one in (options.model, options.image, options.data) if one is not None]
        not_over("--html", options.html, read, "read for the page")
    trained, side = trained_or_fresh(options.model)
    seen, label, picture = _picture_to_trace(options, trained, side)
    changes = changes_of(options)
    with backend.before_compiling(speaker(sys.stderr)), intervene(trained.model, changes):
        probabilities = train.predict(trained.model, seen[None], trained.normalize)[0]
    second, best = map(int, probabilities.argsort()[-2:]) if len(probabilities) > 1 else (0, 0)
    sure = -math.log(probabilities[best]) < ABOUT_ZERO
    chosen = label is None and sure and second != best  # as the page does
    folder = Path(options.model) if Path(options.model).is_dir() else Path()
    out = options.html or str(folder / f"trace-{trained.name}.html")
    x = trained.normalize(seen[None])
    named = {"name": trained.name, "classes": trained.classes, "picture": seen}
    with backend.before_compiling(speaker(sys.stderr)), intervene(trained.model, changes) as done:
        trace(trained.model, x, label, out=out, **named)
    guess = trained.classes[best]
    taken = second if chosen else best if label is None else label
    noise = sure and taken == best
    size = Path(out).stat().st_size
    if options.json:
        print_json({"model": trained.name, "picture": picture, "html": out, "bytes": size, "guess": guess,
                     "probability": float(probabilities.max()), "chosen": chosen, "noise": noise,
                     "label": trained.classes[taken], "changes": done.words})  # fmt: skip
        return 0
    print(f"The picture: {picture}")
    print_changes(done.words)
    print(f"The model's guess: {guess}, {100 * probabilities.max():.1f}%")
    if chosen:
        second_guess = f"the loss is as if {trained.classes[taken]} were right, its second guess"
        print(f"No label given: {second_guess}. --label says what is on the picture.")
    if noise:
        print("The loss is about 0: the gradients are noise. Give another --label.")
    print(
        f"{out}: every step of this picture, {size / 1e6:.1f} MB. Open it in a browser; it needs no network."
    )
    return 0


def _picture_to_trace(
    options: argparse.Namespace, trained: Trained, side: int
) -> tuple[Any, int | None, str]:
    """The picture of --image, or the first of --data or of the run's test pictures; the label of --label, or
    that which the data set knows; the picture's name."""
    from minires.data.tree import is_picture

    label = None
    if options.label is not None:
        if options.label not in trained.classes:
            raise ConfigError(f"--label {options.label}: the model knows {', '.join(trained.classes)}")
        label = trained.classes.index(options.label)
    if options.image is not None:
        if options.split is not None:
            raise ConfigError(f"--split {options.split} is a part of a data set; leave it out beside --image")
        first = pictures_of([options.image])[0]
        return first.decode(size=side), label, first.name
    if options.data is None and not Path(options.model).exists():
        raise ConfigError(
            "which picture? --image FILE, or --data (a run has test pictures of its own, a fresh model none)"
        )
    if options.data is not None and Path(options.data).is_file() and is_picture(options.data):
        raise ConfigError(f"--data {options.data} is a picture by itself: use --image {options.data}")
    known = labelled(options.model, options.data, options.split, trained, side).pictures
    return known.images[0], int(known.labels[0]) if label is None else label, known.names[0]


COMMAND = Command("step through one picture, forward and backward, in a page", TEXT, run, add_options)

"""``minires responses``: how strong the layers of models respond, beside each other."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minires.commands.loading import (
    DEVICES,
    TRAINED,
    TrainedModel,
    change_option,
    changes_of,
    print_changes,
    print_json,
    speaker,
    trained_or_fresh,
)
from minires.commands.pictures import SPLITS, part_of_run
from minires.commands.registry import Command
from minires.errors import ConfigError, counted
from minires.files import not_over, with_ending

if TYPE_CHECKING:
    from minires.data import LabelledPart
    from minires.nn.responses import Response
    from minires.train import Trained

TEXT = """\
Measure how strong each layer of a model responds to pictures: the standard deviation of what it hands on,
behind its batch norm and before ReLU and addition, as in figure 7 of the ResNet paper.

  minires responses runs/signs-default-1
  minires responses runs/deep --against runs/plain runs/shallow --out responses.png
  minires responses resnet20_cifar --against plain20_cifar --data hands     fresh weights, not trained

The pictures are the test pictures of the first run, or those of --data, the same for all models. Models are
in inference mode; the batch norms of fresh weights take their statistics from these pictures. --change is of
the first one. --out draws the standard deviations in the order of the layers, and sorted by size, without
dense layers."""
PICTURES = 1000


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="RUN", action=TrainedModel, help=f"{TRAINED}; or a model's name")
    parser.add_argument(
        "--against", nargs="+", default=[], metavar="RUN", help="others, to be measured beside it"
    )
    parser.add_argument("--data", metavar="NAME", help="a data set or path, as for evaluate")
    parser.add_argument("--split", choices=SPLITS, help="the part of it, as for evaluate")
    parser.add_argument(
        "--pictures", type=int, default=PICTURES, metavar="N",
        help=f"at most so many of them, evenly spread (default: {PICTURES})",
    )  # fmt: skip
    change_option(parser)
    parser.add_argument("--device", default="cpu", metavar="NAME", help=DEVICES)
    parser.add_argument("--out", metavar="FILE", help="draw them, too: a .png or .svg")


def run(options: argparse.Namespace) -> int:
    from minires import backend
    from minires.distributed import Solo, devices
    from minires.inspect.layer_responses import draw_responses, responses_of
    from minires.nn.intervene import intervene
    from minires.train import continuing, evaluation

    if options.pictures < 1:
        raise ConfigError(f"--pictures is {options.pictures}; it must be at least 1")
    if options.out is not None:
        with_ending("--out", options.out, (".png", ".svg"), "a figure")
        continuing.not_in_run("--out", options.out)
        not_over("--out", options.out, [options.data] if options.data else [], "read")
    names = list(dict.fromkeys([options.model, *map(_path, options.against)]))
    models = {name: trained_or_fresh(name) for name in names}
    device = devices.chosen(Solo(), options.device)
    backend.make_current(device)
    found: dict[str, list[Response]] = {}
    changes = {options.model: changes_of(options)}
    changed: dict[str, Sequence[str]] = {}
    parts: dict[int, LabelledPart] = {}
    for name, (trained, side) in models.items():
        if side not in parts:
            parts[side] = _pictures(options, names, side)
        images = parts[side].pictures.images
        trained.model.to(device)
        with backend.before_compiling(speaker(sys.stderr)):
            fresh = evaluation.recalibrated(trained.model, images, trained.normalize)
            with (
                fresh if is_fresh(name) else nullcontext(),
                intervene(trained.model, changes.get(name, {})) as done,
            ):
                found[name] = responses_of(trained.model, images, trained.normalize)
        changed[name] = done.words
    if options.out is not None:
        draw_responses(options.out, found)
    part = parts[models[names[0]][1]]
    if options.json:
        print_json(_plain(found, models, part, changed, options.out))
        return 0
    print(f"{counted(len(part.pictures), 'picture')} of {part.source}, {part.split}; standard deviations:\n")
    print_changes(changed[options.model])
    print("\n".join(_table(found)))
    if untrained := [name for name in names if is_fresh(name)]:
        print(f"\nFresh weights, with batch statistics of these pictures: {', '.join(untrained)}")
    if options.out is not None:
        print(f"\nThe figure: {options.out}")
    return 0


def is_fresh(model: str) -> bool:
    """Whether this is no run but the name of a model, which is built anew."""
    return not Path(model).exists()


def _path(model: str) -> str:
    """As :class:`TrainedModel` takes it."""
    from minires.weights import path_of

    return model if os.path.lexists(model) else path_of(model)


def _pictures(options: argparse.Namespace, names: list[str], side: int) -> LabelledPart:
    """At most --pictures of --data, or of the first run's, at this size."""
    import numpy as np

    from minires.data import LabelledPart

    own = next((name for name in names if not is_fresh(name)), None)
    if own is None and options.data is None:
        raise ConfigError("on which pictures? use --data NAME or PATH (a fresh model has none of its own)")
    part = part_of_run(own or "", options.data, options.split, side)
    total = len(part.pictures)
    if total <= options.pictures:
        return part
    places = np.arange(options.pictures) * total // options.pictures  # sets come sorted by class
    return LabelledPart(part.pictures.take(places), part.split, part.source)


def _table(found: dict[str, list[Response]]) -> list[str]:
    """A line for each layer: one column for each model where all have the same layers, or else each with its
    own layers beside the others."""
    layers = [[(one.path, one.op) for one in each] for each in found.values()]
    shared = all(one == layers[0] for one in layers)
    columns: list[list[str]] = []
    for number, (name, each) in enumerate(found.items()):
        if number == 0 or not shared:
            columns += [["layer", *(one.path for one in each)], ["kind", *(one.op for one in each)]]
        columns.append([name, *(f"{one.std:.4g}" for one in each)])
    lines = max(map(len, columns))
    filled = [column + [""] * (lines - len(column)) for column in columns]
    widths = [max(map(len, column)) for column in filled]
    words = [column[0] in ("layer", "kind") for column in filled]
    return [
        "  ".join(
            f"{cell:<{wide}}" if is_word else f"{cell:>{wide}}"
            for cell, wide, is_word in zip(row, widths, words, strict=True)
        ).rstrip()
        for row in zip(*filled, strict=True)
    ]


def _plain(
    found: dict[str, list[Response]], models: dict[str, tuple[Trained, int]], part: LabelledPart,
    changed: Mapping[str, Sequence[str]], out: str | None,
) -> dict[str, Any]:  # fmt: skip
    return {
        "source": part.source, "split": part.split, "pictures": len(part.pictures), "out": out,
        "models": [
            {
                "run": name, "model": models[name][0].name, "fresh": is_fresh(name),
                "changes": changed[name],
                "layers": [
                    {**one._asdict(), "shape": one.shape[1:]} for one in each
                ],
            }
            for name, each in found.items()
        ],
    }  # fmt: skip


COMMAND = Command("how strong each layer of models responds to pictures", TEXT, run, add_options)

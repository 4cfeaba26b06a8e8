"""``minires plot``: a drawing of a model."""

from __future__ import annotations

import argparse

from minires.commands.loading import built, model_options, print_json, variant_of
from minires.commands.registry import Command
from minires.files import with_ending

TEXT = """\
Draw a model: stages, blocks with their repeats, skip paths and projections, the shapes between them.

  minires plot resnet50 --out resnet50.svg
  minires plot resnet34 --variant shortcut=A"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="NAME", help="the model")
    parser.add_argument("--out", metavar="FILE", help="where to write it, a .svg (default: NAME.svg)")
    model_options(parser)


def run(options: argparse.Namespace) -> int:
    from minires.inspect import plot

    out = options.out or f"{options.model}.svg"
    with_ending("--out", out, ".svg", "a drawing")
    model, side = built(
        options.model, input=options.input, classes=options.classes, variant=variant_of(options)
    )
    plot(model, (side, side, 3), out, name=options.model)
    if options.json:
        print_json({"model": options.model, "out": out})
    else:
        print(f"{out}: {options.model}, any browser shows it")
    return 0


COMMAND = Command("draw a model as a picture, an SVG file", TEXT, run, add_options)

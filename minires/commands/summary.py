"""``minires summary``: the layers of a model."""

from __future__ import annotations

import argparse

from minires.commands.loading import built, model_options, print_json, variant_of
from minires.commands.registry import Command

TEXT = """\
List what a model is made of, layer by layer, as one picture passes through it: the shape of each output,
parameters (running statistics of batch norm included) and MACs (multiply-accumulates) of convolutions and
dense layers.

  minires summary resnet34 --variant shortcut=A
  minires summary resnet20_cifar --classes 100"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="NAME", nargs="?", default="resnet50_signs",
                        help="the model (default: resnet50_signs)")  # fmt: skip
    parser.add_argument("--full", action="store_true", help="every layer, not a line for each block")
    model_options(parser)


def run(options: argparse.Namespace) -> int:
    from minires.inspect import summarize

    model, side = built(
        options.model, input=options.input, classes=options.classes, variant=variant_of(options)
    )
    summary = summarize(model, (side, side, 3), name=options.model, memory=True)
    if options.json:
        print_json(summary.to_dict())
    else:
        print(summary.table(full=options.full))
    return 0


COMMAND = Command("list a model's layers, parameters and MACs", TEXT, run, add_options)

"""``minires diff``: two models beside each other."""

from __future__ import annotations

import argparse

from minires.commands.loading import built, print_json
from minires.commands.registry import Command

TEXT = """\
Say what differs between two models: totals, layers, shapes, settings. Weights are not compared.

  minires diff resnet50 resnet50v2_keras
  minires diff "resnet34 shortcut=A" "resnet34 shortcut=B\""""


def add_options(parser: argparse.ArgumentParser) -> None:
    for which in ("a", "b"):
        parser.add_argument(
            which, metavar=which.upper(), help="a model, with its options: 'resnet34 shortcut=A'"
        )
    parser.add_argument("--input", type=int, metavar="N", help="picture side (default: what A is made for)")
    parser.add_argument(
        "--classes", type=int, metavar="N", help="how many classes (default: the models' usual)"
    )


def run(options: argparse.Namespace) -> int:
    from minires.inspect import diff, parse

    (name, variant), (other, other_variant) = parse(options.a), parse(options.b)
    model, side = built(name, input=options.input, classes=options.classes, variant=variant)
    # both see pictures of one size
    second, _ = built(other, input=side, classes=options.classes, variant=other_variant)
    found = diff(model, second, (side, side, 3), names=(options.a, options.b))
    if options.json:
        print_json(found.to_dict())
    else:
        print(found)
    return 0


COMMAND = Command("say what differs between two models", TEXT, run, add_options)

"""``minires models``: the models that there are."""

from __future__ import annotations

import argparse

from minires.commands.loading import built, print_json
from minires.commands.registry import Command
from minires.errors import ConfigError

TEXT = """\
List the models by the papers they come from: the side of the pictures that each is made for, its classes, and
how many parameters it learns.

  minires models
  minires models resnet50            those with resnet50 in their name
  minires models 'densenet*_cifar'   those that fit this pattern"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "pattern", nargs="?", default="*", metavar="NAME", help="a part of a name, or a pattern with *"
    )


def run(options: argparse.Namespace) -> int:
    from minires import models

    names = models.names(options.pattern)
    if not names:
        raise ConfigError(models.MODELS.unknown(options.pattern))
    rows = [(name, models.entry(name), _parameters(name)) for name in names]
    if options.json:
        listing = [
            {
                "name": name, "title": entry.title,
                "paper": entry.paper and {
                    "authors": entry.paper.authors, "year": entry.paper.year,
                    "title": entry.paper.title, "arxiv": entry.paper.arxiv,
                },
                "size": entry.size, "classes": entry.classes, "parameters": parameters,
            }
            for name, entry, parameters in rows
        ]  # fmt: skip
        print_json({"models": listing})
        return 0
    wide = max(len(name) for name, _, _ in rows)
    most = max(len(f"{parameters:,}") for _, _, parameters in rows)
    print(f"{'':<{wide}}  pictures  classes  {'parameters':>{most}}")
    for paper in dict.fromkeys(entry.paper for _, entry, _ in rows):
        print(f"\n{f'{paper}: {paper.title}' if paper else 'of no paper'}")
        for name, entry, parameters in (row for row in rows if row[1].paper == paper):
            side = f"{entry.size}x{entry.size}"
            print(f"{name:<{wide}}  {side:>8}  {entry.classes:>7}  {parameters:>{most},}  {entry.title}")
    print(f"\n{len(rows)} of {len(models.names())} models. `minires summary NAME` lists the layers of one.")
    return 0


def _parameters(name: str) -> int:
    model, _ = built(name)
    return sum(parameter.size for parameter in model.parameters())


COMMAND = Command("list the models, with their papers and sizes", TEXT, run, add_options)

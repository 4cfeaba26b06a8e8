"""``minires data``: the data sets, and what one holds."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from minires.commands.loading import print_json, searched
from minires.commands.registry import Command
from minires.errors import ConfigError

if TYPE_CHECKING:
    from minires.data import Splits

TEXT = """\
Show where the data sets are, or what one holds. They are looked for in MINIRES_DATA, ./data and the user's
cache, where --from and --download put them.

  minires data
  minires data signs --download
  minires data signs --from Downloads/signs.zip"""


def add_options(parser: argparse.ArgumentParser) -> None:
    from minires import data

    parser.add_argument(
        "name", nargs="?", metavar="NAME", help=f"{', '.join(data.names())} or a path (default: list all)"
    )
    fetched = ", ".join(name for name in data.names() if data.entry(name).download)
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--from", dest="source", metavar="PATH", help="verify the files at PATH, then keep a copy"
    )
    how.add_argument(
        "--download", action="store_true", help=f"fetch the public copy ({fetched} only) and verify it"
    )
    parser.add_argument("--size", type=int, metavar="N", help="resize the pictures to N x N")


def run(options: argparse.Namespace) -> int:
    from minires import data

    if options.name is None:
        if options.source or options.download:
            raise ConfigError("say which data set: minires data signs --download, for example")
        _list(as_json=options.json)
        return 0
    report = None
    if options.source:
        report = data.prepare(options.name, options.source)
    elif options.download:
        report = data.download(options.name)
    if report and not options.json:
        print(report)
    _show(data.load(options.name, size=options.size), report, as_json=options.json)
    return 0


def _list(*, as_json: bool) -> None:
    """Where each data set is."""
    from minires import data

    places = {name: data.find(name) for name in data.names()}
    made = {name for name in data.names() if data.entry(name).locate is None}
    if as_json:
        listing = [
            {"name": name, "title": data.entry(name).title, "available": name in made or place is not None,
             "path": place and str(place)}
            for name, place in places.items()
        ]  # fmt: skip
        print_json({"data": listing, "searched": [str(root) for root in searched()]})
        return
    width = max(map(len, places))
    for name, place in places.items():
        where = place or ("made when used, needs no file" if name in made else "not found")
        print(f"{name:<{width}}  {where}\n{'':<{width}}  {data.entry(name).title}")
    print(f"\nSearched: {', '.join(map(str, searched()))}. A picture folder or zip is used by its path.")


def _show(splits: Splits, report: str | None, *, as_json: bool) -> None:
    """What a data set holds: how many pictures of each class in each part."""
    classes = splits.train.classes
    parts = {"train": splits.train, "val": splits.val, "test": splits.test}
    _, high, wide, _ = splits.train.images.shape
    counts = {name: [int((part.labels == k).sum()) for k in range(len(classes))]
              for name, part in parts.items()}  # fmt: skip
    if as_json:
        print_json({
            "name": splits.train.name, "source": splits.source, "report": report, "size": [high, wide],
            "classes": classes, **{name: len(part) for name, part in parts.items()}, "per_class": counts,
        })  # fmt: skip
        return
    print(f"{splits.source}: pictures {wide} wide, {high} high")
    width = max(len("class"), *map(len, classes))
    print(f"{'class':<{width}}" + "".join(f"{name:>8}" for name in parts))
    for k, label in enumerate(classes):
        print(f"{label:<{width}}" + "".join(f"{counts[name][k]:>8}" for name in parts))
    print(f"{'all':<{width}}" + "".join(f"{len(part):>8}" for part in parts.values()))


COMMAND = Command("show, prepare or download a data set", TEXT, run, add_options)

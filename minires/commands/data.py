"""``minires data``: the data sets, and what one holds."""

from __future__ import annotations

import argparse
import warnings
from typing import TYPE_CHECKING

from minires.commands.loading import FAILED, print_json, searched
from minires.commands.registry import Command
from minires.errors import ConfigError, counted

if TYPE_CHECKING:
    from minires.data import Survey

TEXT = """\
Show where the data sets are, or what one holds. They are looked for in MINIRES_DATA, ./data and the user's
cache, where --from and --download put them.

  minires data
  minires data signs --download
  minires data signs --from Downloads/signs.zip
  minires data photos/
  minires data photos/ --check

Of a path the pictures are counted, of any size, and what is doubtful is said: few pictures, uneven classes,
pictures that are there twice in different parts, or nearly. --check decodes every picture once and names
each that cannot be read, so that no run comes to one."""


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
    how.add_argument(
        "--check", action="store_true", help="decode every picture once; exit with 1 if one cannot be read"
    )
    parser.add_argument("--size", type=int, metavar="N", help="as if resized to N x N")


def run(options: argparse.Namespace) -> int:
    from minires import data

    if options.name is None:
        if options.source or options.download or options.check:
            raise ConfigError("say which data set: minires data signs --download, for example")
        _list(as_json=options.json)
        return 0
    if options.check:
        return _check(options.name, as_json=options.json)
    report = None
    if options.source:
        report = data.prepare(options.name, options.source)
    elif options.download:
        report = data.download(options.name)
    if report and not options.json:
        print(report)
    found = data.survey(options.name, size=options.size)
    _show(found, report, options.size, as_json=options.json)
    if not options.json:
        for warning in found.warnings:
            warnings.warn(warning, stacklevel=2)
    return 0


def _check(name: str, *, as_json: bool) -> int:
    """Decode every picture once, and name those that cannot be read."""
    from tqdm import tqdm

    from minires import data

    with tqdm(unit=" pictures", disable=None, desc="decoding") as bar:

        def told(done: int, count: int) -> None:
            bar.total = count
            bar.update(done - bar.n)

        found = data.check(name, told=told)
    broken = len(found.unreadable)
    if as_json:
        print_json({"source": found.source, "pictures": found.count, "unreadable": found.unreadable})
    elif broken:
        them = "it" if broken == 1 else "them"
        count = counted(found.count, "picture")
        print(f"{found.source}: {broken:,} of {count} cannot be read; mend or remove {them}:")
        for line in found.unreadable:
            print(f"  {line}")
    else:
        print(f"{found.source}: all of {counted(found.count, 'picture')} can be read")
    return FAILED if broken else 0


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
    print(f"\nSearched: {', '.join(map(str, searched()))}. A picture folder, zip or tar is used by its path.")


def _show(found: Survey, report: str | None, size: int | None, *, as_json: bool) -> None:
    """What a data set holds: how many pictures of each class in each part, and how large they are."""
    sums = {name: sum(of_part) for name, of_part in found.counts.items()}
    smallest, largest = ((size, size),) * 2 if size else (found.smallest, found.largest)
    if as_json:
        keys = ("part", "class", "picture")
        pairs = [
            {
                "nearly": twin.nearly,
                "one": dict(zip(keys, twin.one, strict=True)),
                "other": dict(zip(keys, twin.other, strict=True)),
            }
            for twin in found.twins
        ]
        print_json({
            "name": found.name, "source": found.source, "report": report,
            "size": smallest if smallest == largest else None, "smallest": smallest, "largest": largest,
            "classes": found.classes, **sums, "per_class": found.counts, "warnings": found.warnings,
            "twins": pairs,
        })  # fmt: skip
        return
    one_size = f"{smallest[1]} wide, {smallest[0]} high"
    sizes = one_size if smallest == largest else f"from {one_size} to {largest[1]} wide, {largest[0]} high"
    print(f"{found.source}: pictures {sizes}")
    width = max(len("class"), *map(len, found.classes))
    print(f"{'class':<{width}}" + "".join(f"{name:>8}" for name in sums))
    for k, label in enumerate(found.classes):
        print(f"{label:<{width}}" + "".join(f"{of_part[k]:>8}" for of_part in found.counts.values()))
    print(f"{'all':<{width}}" + "".join(f"{count:>8}" for count in sums.values()))


COMMAND = Command("show, prepare or download a data set", TEXT, run, add_options)

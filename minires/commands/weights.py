"""``minires weights``: files of weights that are known, and how one comes here."""

from __future__ import annotations

import argparse
import shlex
from typing import TYPE_CHECKING, Any

from minires.commands.loading import print_json
from minires.commands.registry import Command
from minires.errors import ConfigError
from minires.files import not_there

if TYPE_CHECKING:
    from minires.weights import Known, Taken

TEXT = """\
List files of weights that others give away, show one, and bring it here: downloaded into your cache, checked
by its SHA-256, and made a model of ours. PyTorch's files need `pip install torch`.

  minires weights
  minires weights resnet50                                those with resnet50 in their name
  minires weights resnet20_cifar-akamaster                what is known of it
  minires weights resnet20_cifar-akamaster --fetch
  minires weights resnet20_cifar-akamaster --verify Downloads/resnet20-12fca82f.th
  minires train --start-from resnet20_cifar-akamaster --data my-pictures

--verify is for a file that came another way, as on a machine without a network; it stays as it is. Each file
belongs to who publishes it, under the licence that is shown; pictures that a network learnt from may have
conditions of their own, as those of ImageNet have."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name", nargs="?", metavar="NAME", help="a known file, or a part of its name (default: list all)"
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--fetch", action="store_true", help="download it, check it, and make a model of it")
    how.add_argument("--verify", metavar="FILE", help="check a file that is here, and make a model of it")
    parser.add_argument(
        "--out", metavar="FILE", help="where to write the model, a .safetensors (default: in your cache)"
    )
    parser.add_argument(
        "--class-names", metavar="NAMES",
        help="the classes in the order of the outputs, as for import-weights (default: those of CIFAR-10, "
        "or 0, 1, ...)",
    )  # fmt: skip


def run(options: argparse.Namespace) -> int:
    from minires import weights

    name = options.name
    if not options.fetch and options.verify is None:
        if given := [flag for flag in ("out", "class_names") if getattr(options, flag) is not None]:
            raise ConfigError(f"--{given[0].replace('_', '-')} goes with --fetch or --verify FILE")
        if name in weights.KNOWN:
            _show(name, as_json=options.json)
        else:
            _list(name, as_json=options.json)
        return 0
    if name is None:
        raise ConfigError("which file? minires weights NAME --fetch; `minires weights` lists the names")
    weights.KNOWN.find(name)
    if options.out is not None:
        not_there("--out", options.out)
    classes = None if options.class_names is None else weights.class_names(options.class_names)
    if options.fetch:
        taken = weights.fetch(name, options.out, classes=classes)
    else:
        taken = weights.take(name, options.verify, options.out, classes=classes)
    _tell(name, taken, in_cache=options.out is None, as_json=options.json)
    return 0


def _list(part: str | None, *, as_json: bool) -> None:
    """A line for each known file, or those with ``part`` in their names."""
    from minires import weights

    shown = {name: one for name, one in weights.KNOWN.items() if part is None or part in name}
    if not shown:
        weights.KNOWN.find(part)  # raises the error that names the nearest
    if as_json:
        print_json({"weights": [_plain(name, one) for name, one in shown.items()]})
        return
    rows = [("name", "model", "trained on", "right %", "licence", "MB", "here")]
    for name, one in shown.items():
        here = "yes" if weights.place_of(name).is_file() else ""
        rows.append(
            (name, one.model, one.trained_on, f"{one.accuracy:.1f}", one.licence, _megabytes(one), here)
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            f"{cell:>{wide}}" if place in (3, 5) else f"{cell:<{wide}}"
            for place, (cell, wide) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())
    print(
        f"\n{len(shown)} of {len(weights.KNOWN)} files. `minires weights NAME` says all that is known of "
        "one, `minires weights NAME --fetch` brings it here."
    )


def _show(name: str, *, as_json: bool) -> None:
    """What is known of one file."""
    from minires.weights import KNOWN, place_of
    from minires.weights.known import ways

    one, place = KNOWN[name], place_of(name)
    if as_json:
        print_json(_plain(name, one))
        return
    lines = {
        "model": " ".join([one.model, *(f"{option}={value}" for option, value in one.variant.items())]),
        "trained on": one.trained_on,
        "accuracy": f"{one.accuracy:g}% ({one.measured})",
        "licence": one.licence,
        "pictures": str(one.normalize) if one.normalize else "as the file says",
        "file": one.file + (f", {_megabytes(one)} MB" if one.mib is not None else ""),
        "from": one.url or "this package",
        "SHA-256": one.sha256 + ("" if one.whole_hash else f"... ({_whose_hash(one)})"),
        "here": str(place) if place.is_file() else "no",
    }
    print(name)
    for word, text in lines.items():
        print(f"  {word:<{max(map(len, lines))}}  {text}")
    if not place.is_file():
        print(f"\n{ways(name)}")
    else:
        _next(str(place), name)


def _tell(name: str, taken: Taken, *, in_cache: bool, as_json: bool) -> None:
    """What has come, and what to do with it."""
    from minires.weights import KNOWN

    one = KNOWN[name]
    if as_json:
        report = taken.report
        found = {} if report is None else {
            "source": report.source, "tensors": report.tensors, "numbers": report.numbers,
            "notes": list(report.notes),
        }  # fmt: skip
        print_json({**_plain(name, one), "digest": taken.sha256, **found, "out": str(taken.path)})
        return
    if taken.report is None:
        print(f"{name} was here already: {taken.path}")
    else:
        print(f"{one.file}: SHA-256 {taken.sha256}; known, and right: {_whose_hash(one)}")
        print(f"{taken.report}\nwritten to {taken.path}")
    _next(str(taken.path), name if in_cache else None)


def _next(path: str, name: str | None) -> None:
    place = shlex.quote(path)
    commands = {
        f"minires train --start-from {name or place} --data PATH": "go on from it with your own pictures",
        f"minires evaluate {place} --data PATH": "test it on pictures",
        f"minires predict {place} PICTURE...": "what is on these?",
    }
    print("Next:")
    for command, purpose in commands.items():
        print(f"  {command}   {purpose}")


def _whose_hash(one: Known) -> str:
    """Whether all of the hash is known."""
    return "all 64 digits" if one.whole_hash else "the first 8 digits, which its publisher put into its name"


def _megabytes(one: Known) -> str:
    return "" if one.mib is None else f"{one.mib * 2**20 / 1e6:.1f}"


def _plain(name: str, one: Known) -> dict[str, Any]:
    """All that is known of a file, for JSON."""
    from minires.weights import place_of

    place = place_of(name)
    normalize = one.normalize
    return {
        "name": name, "model": one.model, "variant": dict(one.variant), "trained_on": one.trained_on,
        "accuracy": one.accuracy, "measured": one.measured, "licence": one.licence,
        "normalize": normalize and {"mean": list(normalize.mean), "std": list(normalize.std)},
        "file": one.file, "source": one.source, "url": one.url or None, "mib": one.mib,
        "sha256": one.sha256, "whole_hash": one.whole_hash, "here": place.is_file(), "path": str(place),
    }  # fmt: skip


COMMAND = Command("list, fetch and check files of weights that others give away", TEXT, run, add_options)

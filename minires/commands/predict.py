"""``minires predict``: what a trained model takes pictures for."""

from __future__ import annotations

import argparse
import codecs
import csv
import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minires.commands.loading import (
    change_option,
    changes_of,
    load_trained,
    print_changes,
    print_json,
    run_options,
    speaker,
)
from minires.commands.pictures import (
    Shown,
    fingerprint,
    learnt,
    pictures_of,
    some,
    warn_of_learnt,
)
from minires.commands.registry import Command
from minires.errors import ConfigError, DataError
from minires.files import atomic_write, not_over, with_ending

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from minires.train import Trained

TEXT = """\
Say what is on each picture. The largest centred square of a picture is used, resized to what the model knows.

  minires predict runs/signs-default-1 hand.jpg other.png
  minires predict runs/signs-default-1 photos/ more.zip --csv table.csv

A folder, a zip or a tar stands for all pictures in it. Where they stand in folders named like the classes,
the true label is shown, too."""
AT_ONCE = 2**27  # bytes of decoded pictures
BEGINNING = b"picture,label,"  # of a table


def add_options(parser: argparse.ArgumentParser) -> None:
    run_options(parser)
    parser.add_argument(
        "pictures", nargs="+", metavar="PICTURE", help="picture files of any size, folders, zips, tars"
    )
    parser.add_argument(
        "--top", type=int, default=3, metavar="K", help="show the K likeliest labels (default: 3)"
    )
    parser.add_argument(
        "--csv",
        metavar="FILE",
        help="write a table, too, a .csv: picture, label, probability, all probabilities",
    )
    change_option(parser)


def run(options: argparse.Namespace) -> int:
    from minires import backend
    from minires.data.parts import matching
    from minires.nn.intervene import intervene
    from minires.train import continuing

    if options.top < 1:
        raise ConfigError(f"--top is {options.top}; it must be at least 1")
    if options.csv is not None:
        _check_table(Path(options.csv))
        not_over("--csv", options.csv, options.pictures, "among the pictures")
        continuing.not_in_run("--csv", options.csv)
    trained, side = load_trained(options)
    pictures = pictures_of(options.pictures)
    known = matching({label for one in pictures for label in one.labels}, trained.classes)
    truths = [next((known[name] for name in one.labels[::-1] if name in known), None) for one in pictures]
    with backend.before_compiling(speaker(sys.stderr)), intervene(trained.model, changes_of(options)) as done:
        results, prints = _predicted(pictures, trained, side)
    if any(truths):
        known_pictures = learnt(options.model, side)
        told_of = [place for place, truth in enumerate(truths) if truth is not None]
        if known_pictures.files:
            told_of = [told_of[at] for at in some(len(told_of))]
            count = sum(known_pictures.has_file(pictures[place].read) for place in told_of)
        else:
            count = sum(prints[place] in known_pictures.pixels for place in told_of)
        warn_of_learnt(options.model, count, len(told_of))
    found = []
    for one, truth, probabilities in zip(pictures, truths, results, strict=True):
        order = probabilities.argsort()[::-1][: options.top]
        best = [{"label": trained.classes[k], "probability": float(probabilities[k])} for k in order]
        labelled = {"true": truth} if any(truths) else {}
        found.append({"picture": one.name, **best[0], **labelled, "top": best})
    if options.csv is not None:
        _write_table(Path(options.csv), found, trained.classes, results)
    if options.json:
        print_json({"model": trained.name, "classes": trained.classes, "changes": done.words,
                    "predictions": found})  # fmt: skip
        return 0
    print_changes(done.words)
    width = max(len(one.name) for one in pictures)
    for guessed in found:
        guesses = [f"{guess['label']} {100 * guess['probability']:5.1f}%" for guess in guessed["top"]]
        wrong = guessed.get("true") not in (None, guessed["label"])
        true = f"   (it is {guessed['true']})" if wrong else ""
        print(f"{guessed['picture']:<{width}}  {'   '.join(guesses)}{true}")
    if told := [(guessed, one) for guessed, one in zip(found, pictures, strict=True) if guessed.get("true")]:
        right = sum(guessed["label"] == guessed["true"] for guessed, _ in told)
        how = "their names" if all(one.named for _, one in told) else "the folders that they stand in"
        print(f"{right} of {len(told)} right, by {how}")
    return 0


def _predicted(pictures: list[Shown], trained: Trained, side: int) -> tuple[NDArray[np.float64], list[bytes]]:
    """The probabilities and the fingerprint of each picture; so many are decoded at a time as need little
    memory."""
    import numpy as np

    from minires import train
    from minires.data.pictures import unreadable

    broken: list[str] = []
    results = []
    prints: list[bytes] = []
    step = max(1, AT_ONCE // (3 * side * side))
    for start in range(0, len(pictures), step):
        images = []
        for one in pictures[start : start + step]:
            try:
                images.append(one.decode(size=side))
            except DataError as error:
                broken.append(str(error))
        if not broken:
            prints += map(fingerprint, images)
            results.append(train.predict(trained.model, np.stack(images), trained.normalize))
    if len(broken) == 1:
        raise DataError(broken[0])
    if broken:
        raise DataError(unreadable(broken))
    return np.concatenate(results), prints


def _check_table(path: Path) -> None:
    """Raise ConfigError unless a table may be written at ``path``: over another table only."""
    with_ending("--csv", path, ".csv", "a table")
    if not path.parent.is_dir():
        raise ConfigError(f"--csv {path}: there is no folder {path.parent}")
    if not os.path.lexists(path):
        return
    if path.is_file():
        with open(path, "rb") as file:
            if file.read(len(BEGINNING) + 3).removeprefix(codecs.BOM_UTF8).startswith(BEGINNING):
                return
    raise ConfigError(f"--csv {path} is there already, and is no table of this command; give another name")


def _write_table(
    path: Path, found: list[dict[str, Any]], classes: tuple[str, ...], results: NDArray[np.float64]
) -> None:
    """A row for each picture; the file is there whole or not at all."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    true = ["true"] if "true" in found[0] else []
    table.writerow(["picture", "label", *true, "probability", *map(_plain, classes)])
    for one, probabilities in zip(found, results, strict=True):
        words = [_plain(one[name] or "") for name in ("picture", "label", *true)]
        table.writerow([*words, f"{one['probability']:.6f}", *(f"{p:.6f}" for p in probabilities)])
    with atomic_write(path) as file:
        file.write(text.getvalue().encode("utf-8-sig", "backslashreplace"))  # Excel wants the mark


def _plain(text: str) -> str:
    """A name that no spreadsheet takes for a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


COMMAND = Command("say what is on pictures, with probabilities", TEXT, run, add_options)

"""``minires predict``: what a trained model takes pictures for."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from minires.commands.loading import load_trained, print_json, run_options, speaker
from minires.commands.registry import Command
from minires.errors import ConfigError

TEXT = """\
Say what is on each picture. The largest centred square of a picture is used, resized to what the model knows.

  minires predict runs/signs-default-1 hand.jpg other.png"""


def add_options(parser: argparse.ArgumentParser) -> None:
    run_options(parser)
    parser.add_argument("pictures", nargs="+", metavar="PICTURE", help="picture files of any size")
    parser.add_argument(
        "--top", type=int, default=3, metavar="K", help="show the K likeliest labels (default: 3)"
    )


def run(options: argparse.Namespace) -> int:
    import numpy as np

    from minires import backend, data, train

    if options.top < 1:
        raise ConfigError(f"--top is {options.top}; it must be at least 1")
    trained, side = load_trained(options)
    images = np.stack([data.decode(Path(name), size=side) for name in options.pictures])
    with backend.before_compiling(speaker(sys.stderr)):
        results = train.predict(trained.model, images, trained.normalize)
    found = []
    for name, probabilities in zip(options.pictures, results, strict=True):
        order = probabilities.argsort()[::-1][: options.top]
        best = [{"label": trained.classes[k], "probability": float(probabilities[k])} for k in order]
        found.append({"picture": name, **best[0], "top": best})
    if options.json:
        print_json({"model": trained.name, "classes": trained.classes, "predictions": found})
        return 0
    width = max(map(len, options.pictures))
    for one in found:
        guesses = [f"{guess['label']} {100 * guess['probability']:5.1f}%" for guess in one["top"]]
        print(f"{one['picture']:<{width}}  {'   '.join(guesses)}")
    return 0


COMMAND = Command("say what is on pictures, with probabilities", TEXT, run, add_options)

"""What several subcommands share: options, printing, and loading what the user named."""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from minires import interrupt, quiet_start
from minires.errors import ConfigError, DataError, nearest

if TYPE_CHECKING:
    from minires.distributed import Communicator
    from minires.nn.module import Module
    from minires.train import Config, Trained

FAILED = 1
TRAINED = "a run folder, a model.safetensors file, or a name that `minires weights` lists"
DEVICES = "cpu (the default), cuda, cuda:1, or auto: the GPU if there is one"


_WIDEST = 1 << 16  # pixels of a side


def variant_option(parser: argparse.ArgumentParser) -> None:
    """The option ``--variant``, for a command that builds a model by name."""
    parser.add_argument("--variant", action="append", metavar="NAME=VALUE",
                        help="an option of the model, for example shortcut=A; can be repeated")  # fmt: skip


def model_options(parser: argparse.ArgumentParser) -> None:
    """``--input``, ``--classes`` and ``--variant``, for a command that looks at a model."""
    parser.add_argument(
        "--input", type=int, metavar="N", help="picture side (default: what the model is made for)"
    )
    parser.add_argument(
        "--classes", type=int, metavar="N", help="how many classes (default: the model's usual)"
    )
    variant_option(parser)


class TrainedModel(argparse.Action):
    """Takes the path of a trained model, or the name of a known file of weights: see ``minires weights``."""

    def __call__(self, parser: object, namespace: Any, value: Any, option: str | None = None) -> None:
        if not os.path.lexists(value):  # only then is the table of names read, which takes a moment
            from minires.weights import path_of

            value = path_of(value)
        setattr(namespace, self.dest, value)


def run_options(parser: argparse.ArgumentParser) -> None:
    """The trained model, and the device to use it on: see :func:`load_trained`."""
    parser.add_argument("model", metavar="RUN", action=TrainedModel, help=TRAINED)
    parser.add_argument("--device", default="cpu", metavar="NAME", help=DEVICES)


def change_option(parser: argparse.ArgumentParser) -> None:
    """The option ``--change``, for a command that runs a trained model."""
    parser.add_argument(
        "--change", action="append", metavar="NAME=WHAT",
        help="change a block or layer while the model runs: res3b=drop, res4a.shortcut=0.5, res3b[0:8]=0, "
        "swap=res2b,res2c, order=res2c,res2a,res2b; can be repeated",
    )  # fmt: skip


def changes_of(options: argparse.Namespace) -> dict[str, Any]:
    """The changes that ``--change NAME=WHAT`` asks for, as ``minires.intervene`` takes them."""
    changes: dict[str, Any] = {}
    for text in options.change or []:
        name, equals, what = text.partition("=")
        if not (name and equals and what):
            raise ConfigError(f"--change {text}: say what becomes of what, such as res3b=drop or res3b=0.5")
        if name == "swap":
            changes.setdefault(name, []).append(what.split(","))
            continue
        if name in changes:
            raise ConfigError(f"--change {name} is given twice")
        try:
            changes[name] = what.split(",") if name == "order" else float(what)
        except ValueError:
            changes[name] = what
    return changes


def print_changes(changes: Iterable[str]) -> None:
    """Say what was changed, a line each."""
    for one in changes:
        print(f"changed: {one}")


def variant_of(options: argparse.Namespace) -> dict[str, Any]:
    """The options of the model from ``--variant NAME=VALUE``."""
    from minires.models import option

    variant = dict(option(text) for text in options.variant or [])
    if name := next((name for name in ("classes", "seed") if name in variant), ""):
        way = f"use --{name}" if hasattr(options, name) else "leave it out"
        raise ConfigError(f"--variant cannot set {name}; {way}")
    return variant


def built(
    name: str,
    *,
    input: int | None = None,
    classes: int | None = None,
    variant: Mapping[str, Any] | None = None,
) -> tuple[Module, int]:
    """A model to look at, and the side of the pictures for it: ``input``, or what it is made for."""
    from minires import models

    entry = models.entry(name)
    side = entry.size if input is None else input
    if not 1 <= side <= _WIDEST:
        raise ConfigError(f"--input is {side}; it must be at least 1, and {_WIDEST} at most")
    options = {**entry.to_look_at(side), **(variant or {})}
    return models.build(name, classes=classes, **options), side


def load_trained(options: argparse.Namespace, comm: Communicator | None = None) -> tuple[Trained, int]:
    """A trained model on its device, and the side of the square pictures it learnt from. The ranks of
    ``comm`` each have a device of their own."""
    from minires import backend
    from minires.distributed import Solo, devices

    trained, side = load_square(options.model)
    device = devices.chosen(comm or Solo(), options.device)
    backend.make_current(device)
    trained.model.to(device)
    return trained, side


def load_square(model: str, *, finished: bool = False) -> tuple[Trained, int]:
    """A trained model, as ``minires.train.load_model`` gives it, and the side of its pictures."""
    from minires import train

    trained = train.load_model(model, finished=finished)
    high, wide = trained.size
    if high != wide:
        raise ConfigError(
            f"{model} learnt from pictures {high} high and {wide} wide; the command line prepares "
            "square ones only: use minires.train.predict, evaluate or start_from from Python"
        )
    return trained, high


def trained_or_fresh(model: str) -> tuple[Trained, int]:
    """A trained model with the side of its pictures; or, by the name of a model, one with fresh weights."""
    from minires import models, train
    from minires.data import Normalize

    if Path(model).exists():
        return load_square(model)
    if model not in models.names():
        raise ConfigError(
            f"{model} is neither a run folder, a model.safetensors file nor a model "
            f"({nearest(model, models.names(), listed='`minires models`')}); `minires train` makes a run"
        )
    entry = models.entry(model)
    classes = tuple(map(str, range(entry.classes)))
    fresh = models.build(model, seed=0).eval()
    centred = Normalize((0.5,) * 3, (0.25,) * 3)
    return train.Trained(fresh, model, {}, classes, centred, (entry.size,) * 2, "none"), entry.size


def folder_of(model: str) -> Path:
    """The folder of the run that made a model, which is that folder or a file in it."""
    return Path(model) if Path(model).is_dir() else Path(model).parent


def config_of_run(model: str) -> Config:
    """How a model was trained, and on what, as the configuration beside it says."""
    from minires.train import continuing

    folder = folder_of(model)
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"on which pictures? {folder} has no config.json that says so; use --data NAME or PATH"
        )
    return continuing.read_config(folder)


def check_is_there(config: Config, model: str, way: str = "") -> None:
    """Check that the pictures that a run was trained on are where they were.

    Raises: DataError that says what to do: to put them back, or what ``way`` names.
    """
    from minires import data

    if config.data not in data.names() and not data.is_there(config.data):
        raise DataError(
            f"the pictures that {model} was trained on are no more at {config.data}: put them back there, or "
            f"a link to where they are{way}"
        )


def searched() -> list[Path]:
    from minires.data.search_path import roots

    return [root.absolute() for root in roots()]


def speaker(stream: TextIO | None) -> Callable[[str], None]:
    """What prints a line at once. When nobody is there any more, as behind ``| head``, it says so once on
    standard error, and nothing is printed from then on."""

    def say(line: str) -> None:
        nonlocal stream
        try:
            if stream is not None:
                print(line, file=stream, flush=True)
        except (OSError, ValueError) as error:
            if not interrupt.is_gone(error):
                raise
            interrupt.to_nobody(stream)
            stream = None
            quiet_start.tell("minires: warning: nobody reads what is printed; going on without")

    return say


def print_json(content: dict[str, Any]) -> None:
    print(json.dumps(_finite(content), indent=2, allow_nan=False))


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: such a figure becomes null."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

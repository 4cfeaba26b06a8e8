"""What trains a model and what uses it: train, evaluate, predict."""

from __future__ import annotations

import argparse
import itertools
import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minires.commands.loading import (
    data_of_run,
    load_square,
    load_trained,
    print_json,
    searched,
    speaker,
    variant_of,
)
from minires.errors import ConfigError, DataError

if TYPE_CHECKING:
    from minires.train import Trainer


# Settings of a run that are options of the same name.
SETTINGS = ("model", "epochs", "batch_size", "seed", "device", "precision", "size", "train_on", "freeze")


def run_train(options: argparse.Namespace) -> int:
    say = speaker(sys.stderr if options.json else sys.stdout)
    trainer = _continued(options, say) if options.resume else _started(options, say)
    summary, out = trainer.run(), trainer.out
    if options.json:
        print_json({**summary, "out": str(out)})
        return 0
    labels, place = trainer.splits.test.classes, shlex.quote(str(out))
    shown = ", ".join(labels[:6]) + (", ..." if len(labels) > 6 else "")
    say(
        f"\nLook at {out / 'curves.png'}, confusion.png and mistakes.png. The model: model.safetensors. Next:"
    )
    commands = {
        f"minires predict {place} PICTURE...": f"is it {shown}?",
        f"minires evaluate {place}": "test it again; with --data on other pictures",
        f"minires trace {place}": "walk through it with a test picture, forward and backward",
        f"minires play {place}": "show it pictures in the browser",
        f"minires summary {trainer.config.model}": "its layers, parameters and multiply-adds",
    }
    for command, purpose in commands.items():
        say(f"  {command:<{max(map(len, commands))}}  {purpose}")
    return 0


def run_evaluate(options: argparse.Namespace) -> int:
    from minires import backend, data, train

    trained, side = load_trained(options)
    splits = data.load(options.data or data_of_run(options.model), size=side)
    dataset = getattr(splits, options.split)
    if dataset.classes != trained.classes:
        raise DataError(
            f"{options.model} knows the classes {', '.join(trained.classes)}, but {splits.source} has "
            f"{', '.join(dataset.classes)}; choose a data set with the same classes"
        )
    with backend.before_compiling(speaker(sys.stderr)):
        result = train.evaluate(trained.model, dataset, trained.normalize)
    correct = round(result.accuracy * len(dataset))
    if options.json:
        print_json({
            "model": trained.name, "data": dataset.name, "source": splits.source, "split": options.split,
            "correct": correct, "total": len(dataset), "accuracy": result.accuracy, "loss": result.loss,
        })  # fmt: skip
        return 0
    print(f"{trained.name} on {splits.source}, {options.split} pictures:")
    print(f"{correct} of {len(dataset)} right, accuracy {100 * result.accuracy:.2f}%, loss {result.loss:.4f}")
    return 0


def run_predict(options: argparse.Namespace) -> int:
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


def _started(options: argparse.Namespace, say: Callable[[str], None]) -> Trainer:
    """A new run: the recipe, the options on top of it, and a folder of its own."""
    from minires import models
    from minires.train import Config, Trainer

    recipe = options.recipe or "default"
    changes = {name: getattr(options, name) for name in SETTINGS if getattr(options, name) is not None}
    changes = {**_taken_over(options), **changes}
    base = Config.of(recipe, **changes)
    models.entry(base.model)  # an unknown model is named before the data set is read
    name, why = _choose_data(options.data, recipe)
    say(why)
    optimizer = base.optimizer if options.lr is None else {**base.optimizer, "lr": options.lr}
    variant = {**base.variant, **variant_of(options)}
    config = replace(base, data=name, optimizer=optimizer, variant=variant)
    trainer = Trainer(config, options.out or _new_folder(name, recipe), say=say)
    if name == "hands" and options.data is None:
        trainer.splits = replace(trainer.splits, source=f"{trainer.splits.source}: {why}")
    return trainer


def _taken_over(options: argparse.Namespace) -> dict[str, Any]:
    """What a run takes over from the trained model that it starts from."""
    if options.start_from is None:
        return {}
    trained, side = load_square(options.start_from)
    if options.model not in (None, trained.name):
        raise ConfigError(
            f"{options.start_from} is a {trained.name}, but --model is {options.model}; leave --model out"
        )
    return {
        "model": trained.name,
        "variant": trained.variant,
        "size": side,
        "normalize": {"mean": list(trained.normalize.mean), "std": list(trained.normalize.std)},
        "start_from": str(Path(options.start_from).resolve()),
    }


def _continued(options: argparse.Namespace, say: Callable[[str], None]) -> Trainer:
    """The run in a folder, from its newest checkpoint, with its own settings."""
    from minires.train import Trainer, run_folder

    out = options.resume if isinstance(options.resume, str) else options.out
    if out is None:
        raise ConfigError(
            "which run? minires train --resume FOLDER, for example --resume runs/signs-default-1"
        )
    own = ("data", "recipe", "lr", "variant", "start_from", *SETTINGS)
    settled = [name for name in own if getattr(options, name) is not None]
    if settled := [name for name in settled if name != "device"]:
        given = ", ".join(f"--{name.replace('_', '-')}" for name in settled)
        raise ConfigError(f"a run is continued with its own settings; leave out {given}, or start a new run")
    config = run_folder.read_json(Path(out) / "config.json")
    say(f"Continuing the run in {out}")
    if options.device is not None:
        config["device"] = options.device
    return Trainer(config, out, resume=True, say=say)


def _choose_data(asked: str | None, recipe: str) -> tuple[str, str]:
    """The data set to train on, and a sentence that says which it is and why."""
    from minires import data
    from minires.train.recipes import get

    if asked is not None:
        why = f"Training on {asked}, as asked for with --data"
        if asked not in data.names() and Path(asked).exists():
            asked = str(Path(asked).resolve())  # it must be found when the run is continued from elsewhere
        return asked, why
    if "data" in (settings := get(recipe)):
        return settings["data"], f"Training on {settings['data']}, the data set of the recipe {recipe}"
    if (found := data.find("signs")) is not None:
        return "signs", f"SIGNS was found in {found}: training on it"
    looked = ", ".join(str(root / "signs") for root in searched())
    return "hands", (
        f"SIGNS was not found in {looked}: training on the rendered stand-in `hands` "
        "(`minires data signs --download` fetches SIGNS)"
    )


def _new_folder(data: str, recipe: str) -> Path:
    """A folder for a run that does not exist yet: runs/<data>-<recipe>-<number>."""
    stem = re.sub(r"[^\w.-]+", "-", f"{Path(data).stem}-{recipe}")
    paths = (Path("runs") / f"{stem}-{number}" for number in itertools.count(1))
    return next(path for path in paths if not path.exists())

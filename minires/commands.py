"""What the subcommands of the program do: each calls the library and prints what comes back.

A function imports what it needs when it runs, so that ``minires --help`` answers at once and ``minires
doctor`` works where a package is missing. Each returns the exit status.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from minires.errors import ConfigError, DataError

if TYPE_CHECKING:
    from minires.nn import Module
    from minires.train import Trained, Trainer

FAILED = 1
# Settings of a run that are options of the same name.
SETTINGS = ("model", "epochs", "batch_size", "seed", "device", "precision", "size", "train_on", "freeze")


def run_train(options: argparse.Namespace) -> int:
    say = _speaker(sys.stderr if options.json else sys.stdout)
    trainer = _continued(options, say) if options.resume else _started(options, say)
    summary, out = trainer.run(), trainer.out
    if options.json:
        _print_json({**summary, "out": str(out)})
        return 0
    labels, place = trainer.splits.test.classes, shlex.quote(str(out))
    shown = ", ".join(labels[:6]) + (", ..." if len(labels) > 6 else "")
    say(
        f"\nLook at {out / 'curves.png'}, confusion.png and mistakes.png. The model: model.safetensors. Next:"
    )
    commands = {
        f"minires predict {place} PICTURE...": f"is it {shown}?",
        f"minires evaluate {place}": "test it again; with --data on other pictures",
        f"minires summary {trainer.config.model}": "its layers, parameters and multiply-adds",
    }
    for command, purpose in commands.items():
        say(f"  {command:<{max(map(len, commands))}}  {purpose}")
    return 0


def run_evaluate(options: argparse.Namespace) -> int:
    from minires import backend, data, train

    trained, side = _load(options)
    splits = data.load(options.data or _data_of_run(options.model), size=side)
    dataset = getattr(splits, options.split)
    if dataset.classes != trained.classes:
        raise DataError(
            f"{options.model} knows the classes {', '.join(trained.classes)}, but {splits.source} has "
            f"{', '.join(dataset.classes)}; choose a data set with the same classes"
        )
    with backend.before_compiling(_speaker(sys.stderr)):
        result = train.evaluate(trained.model, dataset, trained.normalize)
    correct = round(result.accuracy * len(dataset))
    if options.json:
        _print_json({
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
    trained, side = _load(options)
    images = np.stack([data.decode(Path(name), size=side) for name in options.pictures])
    with backend.before_compiling(_speaker(sys.stderr)):
        results = train.predict(trained.model, images, trained.normalize)
    found = []
    for name, probabilities in zip(options.pictures, results, strict=True):
        order = probabilities.argsort()[::-1][: options.top]
        best = [{"label": trained.classes[k], "probability": float(probabilities[k])} for k in order]
        found.append({"picture": name, **best[0], "top": best})
    if options.json:
        _print_json({"model": trained.name, "classes": trained.classes, "predictions": found})
        return 0
    width = max(map(len, options.pictures))
    for one in found:
        guesses = [f"{guess['label']} {100 * guess['probability']:5.1f}%" for guess in one["top"]]
        print(f"{one['picture']:<{width}}  {'   '.join(guesses)}")
    return 0


def run_summary(options: argparse.Namespace) -> int:
    from minires.inspect import summarize

    model, side = _built(options, options.model, _variant(options))
    summary = summarize(model, (side, side, 3), name=options.model, memory=True)
    if options.json:
        _print_json(summary.to_dict())
    else:
        print(summary.table(full=options.full))
    return 0


def run_diff(options: argparse.Namespace) -> int:
    from minires.inspect import diff, parse

    (name, variant), (other, other_variant) = parse(options.a), parse(options.b)
    model, side = _built(options, name, variant)
    options.input = side  # both see pictures of one size
    found = diff(
        model, _built(options, other, other_variant)[0], (side, side, 3), names=(options.a, options.b)
    )  # fmt: skip
    if options.json:
        _print_json(found.to_dict())
    else:
        print(found)
    return 0


def run_plot(options: argparse.Namespace) -> int:
    from minires.inspect import plot

    model, side = _built(options, options.model, _variant(options))
    out = options.out or f"{options.model}.svg"
    plot(model, (side, side, 3), out, name=options.model)
    if options.json:
        _print_json({"model": options.model, "out": out})
    else:
        print(f"{out}: {options.model}, any browser shows it")
    return 0


def run_import_weights(options: argparse.Namespace) -> int:
    from minires import weights
    from minires.weights import keras_files, keras_pretrained

    out = options.out or f"{options.model}.safetensors"
    classes = None if options.classes is None else [str(number) for number in range(options.classes)]
    if Path(options.source_file).suffix in keras_files.SUFFIXES:
        if options.source or options.variant:
            raise ConfigError("--source and --variant are for PyTorch's files; what Keras has is known")
        report = keras_pretrained.import_keras(options.source_file, options.model, out, classes=classes)
    else:
        report = weights.import_weights(
            options.source_file, options.model, out, source=options.source, classes=classes,
            variant=_variant(options),
        )  # fmt: skip
    if options.json:
        found = {"source": report.source, "tensors": report.tensors, "numbers": report.numbers}
        _print_json({"model": options.model, **found, "out": out})
        return 0
    place = shlex.quote(out)
    print(f"{report}\nwritten to {out}. Next:")
    print(f"  minires evaluate {place} --data PATH   test it on pictures")
    print(f"  minires predict {place} PICTURE...     what is on these?")
    return 0


def run_export(options: argparse.Namespace) -> int:
    from minires import train
    from minires.weights.onnx_export import export_onnx_run
    from minires.weights.torch_export import export_torch

    if options.onnx is None and options.torch is None:
        raise ConfigError("export to what? --onnx FILE.onnx, or --torch FILE.safetensors")
    written = {}
    if options.onnx is not None:
        export_onnx_run(options.model, options.onnx)
        written["onnx"] = options.onnx
    if options.torch is not None:
        export_torch(train.load_model(options.model).model, options.torch, options.names)
        written["torch"] = options.torch
    if options.json:
        _print_json(written)
    else:
        for kind, path in written.items():
            print(f"{path}: {options.model} for {'ONNX' if kind == 'onnx' else 'PyTorch'}")
    return 0


def run_gradcheck(options: argparse.Namespace) -> int:
    from minires.ops.cases import CASES, check_all

    rows, widths = (
        [],
        (max(map(len, CASES)), max(len(case.name) for table in CASES.values() for case in table)),
    )
    results = check_all(options.operations or None)
    if not options.json:
        print(f"{'operation':<{widths[0]}}  {'case':<{widths[1]}}  worst error  verdict  seconds")
    for row in results:
        rows.append(row)
        if not options.json:
            verdict = "right" if row.ok else "WRONG"
            print(f"{row.op:<{widths[0]}}  {row.case:<{widths[1]}}  {row.error:>11.1e}  {verdict:<7}  "
                  f"{row.seconds:>7.2f}", flush=True)  # fmt: skip
    wrong = [row for row in rows if not row.ok]
    seconds = sum(row.seconds for row in rows)
    if options.json:
        _print_json({
            "ok": not wrong, "seconds": seconds,
            "cases": [{"op": row.op, "case": row.case, "error": row.error, "ok": row.ok,
                       "seconds": row.seconds} for row in rows],
        })  # fmt: skip
        return FAILED if wrong else 0
    for row in wrong:
        print(f"\n{row.op}, {row.case}: {row.report}")
    tally = f"{len(wrong)} of {len(rows)} cases are WRONG" if wrong else f"all {len(rows)} cases are right"
    print(f"\n{tally}; {seconds:.1f} s. The error is relative, against numeric gradients in float64.")
    return FAILED if wrong else 0


def run_data(options: argparse.Namespace) -> int:
    from minires import data

    if options.name is None:
        if options.source or options.download:
            raise ConfigError("say which data set: minires data signs --download, for example")
        found = {name: data.find(name) for name in data.names()}
        listing = [
            {"name": name, "available": name == "hands" or place is not None, "path": place and str(place)}
            for name, place in found.items()
        ]
        if options.json:
            _print_json({"data": listing, "searched": [str(root) for root in _searched()]})
            return 0
        for one in listing:
            where = "rendered when used, needs no file" if one["name"] == "hands" else "not found"
            print(f"{one['name']:<8}  {one['path'] or where}")
        print(f"\nSearched: {', '.join(map(str, _searched()))}. A picture folder or zip is used by its path.")
        return 0
    report = None
    if options.source:
        report = data.prepare(options.name, Path(options.source))
    elif options.download:
        report = data.download(options.name)
    if report and not options.json:
        print(report)
    splits = data.load(options.name, size=options.size)
    parts = {name: getattr(splits, name) for name in ("train", "val", "test")}
    first, high, wide, _ = splits.train.images.shape
    counts = {name: [int((part.labels == k).sum()) for k in range(len(part.classes))]
              for name, part in parts.items()}  # fmt: skip
    if options.json:
        _print_json({
            "name": splits.train.name, "source": splits.source, "report": report, "size": [high, wide],
            "classes": splits.train.classes, **{name: len(part) for name, part in parts.items()},
            "per_class": counts,
        })  # fmt: skip
        return 0
    print(f"{splits.source}: pictures {wide} wide, {high} high")
    width = max(len("class"), *map(len, splits.train.classes))
    print(f"{'class':<{width}}" + "".join(f"{name:>8}" for name in parts))
    for k, label in enumerate(splits.train.classes):
        print(f"{label:<{width}}" + "".join(f"{counts[name][k]:>8}" for name in parts))
    print(f"{'all':<{width}}" + "".join(f"{len(part):>8}" for part in parts.values()))
    return 0


def run_doctor(options: argparse.Namespace) -> int:
    from minires import doctor

    report = doctor.examine()
    if options.json:
        _print_json(report)
    else:
        print(doctor.describe(report))
    return 0 if report["ok"] else FAILED


# -------------------------------------------------------------------------------------- parts of the above


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
    variant = {**base.variant, **_variant(options)}
    config = replace(base, data=name, optimizer=optimizer, variant=variant)
    trainer = Trainer(config, options.out or _new_folder(name, recipe), say=say)
    if name == "hands" and options.data is None:
        trainer.splits = replace(trainer.splits, source=f"{trainer.splits.source}: {why}")
    return trainer


def _taken_over(options: argparse.Namespace) -> dict[str, Any]:
    """What a run takes over from the trained model that it starts from."""
    if options.start_from is None:
        return {}
    trained, side = _load_square(options.start_from)
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
    from minires.train import Trainer, record

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
    config = record.read_json(Path(out) / "config.json")
    say(f"Continuing the run in {out}")
    if options.device is not None:
        config["device"] = options.device
    return Trainer(config, out, resume=True, say=say)


def _built(options: argparse.Namespace, name: str, variant: dict[str, Any]) -> tuple[Module, int]:
    """A model to look at, and the side of the pictures for it: --input, or what it is made for."""
    from minires import models

    entry = models.entry(name)
    side = entry.size if options.input is None else options.input
    if side < 1:
        raise ConfigError(f"--input is {side}; it must be at least 1")
    variant = {**entry.fitted(side), **variant}
    if "initializer" in entry.options:
        variant.setdefault("initializer", "zeros")  # nothing to see in random numbers, and VGG has many
    return models.build(name, classes=options.classes, **variant), side


def _variant(options: argparse.Namespace) -> dict[str, Any]:
    """The options of the model from ``--variant NAME=VALUE``."""
    from minires.models import option

    return dict(option(text) for text in options.variant or [])


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
    looked = ", ".join(str(root / "signs") for root in _searched())
    return "hands", (
        f"SIGNS was not found in {looked}: training on the rendered stand-in `hands` "
        "(`minires data signs --download` fetches SIGNS)"
    )


def _searched() -> list[Path]:
    from minires.data.places import roots

    return [root.absolute() for root in roots()]


def _new_folder(data: str, recipe: str) -> Path:
    """A folder for a run that does not exist yet: runs/<data>-<recipe>-<number>."""
    stem = re.sub(r"[^\w.-]+", "-", f"{Path(data).stem}-{recipe}")
    paths = (Path("runs") / f"{stem}-{number}" for number in itertools.count(1))
    return next(path for path in paths if not path.exists())


def _load(options: argparse.Namespace) -> tuple[Trained, int]:
    """A trained model on its device, and the side of the square pictures it learnt from."""
    from minires import backend

    trained, side = _load_square(options.model)
    trained.model.to(backend.choose_device(options.device))
    return trained, side


def _load_square(model: str) -> tuple[Trained, int]:
    from minires import train

    trained = train.load_model(model)
    high, wide = trained.size
    if high != wide:
        raise ConfigError(
            f"{model} learnt from pictures {high} high and {wide} wide; the command line prepares "
            "square ones only: use minires.train.predict, evaluate or start_from from Python"
        )
    return trained, high


def _data_of_run(model: str) -> str:
    """The data set that a model was trained on, as the configuration beside it says."""
    from minires.train import record

    folder = Path(model) if Path(model).is_dir() else Path(model).parent
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"on which pictures? {folder} has no config.json that says so; use --data NAME or PATH"
        )
    return record.read_json(folder / "config.json")["data"]


def _speaker(stream: TextIO) -> Callable[[str], None]:
    return lambda line: print(line, file=stream, flush=True)


def _print_json(content: dict[str, Any]) -> None:
    print(json.dumps(_finite(content), indent=2, allow_nan=False))


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: such a figure becomes null."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

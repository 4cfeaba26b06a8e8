"""``minires train``: a model, trained, tested and kept in a run folder."""

from __future__ import annotations

import argparse
import itertools
import json
import re
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minires.commands import given_settings
from minires.commands.loading import (
    DEVICES,
    TRAINED,
    check_is_there,
    load_square,
    print_json,
    searched,
    speaker,
    variant_of,
    variant_option,
)
from minires.commands.registry import Command
from minires.errors import ConfigError, unknown

if TYPE_CHECKING:
    from minires import data
    from minires.train import Config, Trainer

# Settings of a run that are options of the same name.
SETTINGS = (
    "model", "epochs", "batch_size", "accumulate", "drop_last", "plan", "balance", "patience", "recalibrate",
    "seed", "device", "precision", "size", "train_on", "pictures", "freeze", "watch", "keep", "stream",
    "draft", "cache", "batch_norm",
)  # fmt: skip
INSIDE = {"lr": ("optimizer", "lr"), "clip_norm": ("optimizer", "clip_norm")}  # options that lead into one
FREE = ("device", "watch", "keep")  # those that may change when a run is continued


TEXT = """\
Train a model and test it. Without options: ResNet-50 on SIGNS, or on the rendered stand-in `hands` where
SIGNS is not found. Ctrl-C stops after the step at hand and saves everything; so do SIGTERM and SIGHUP, which
comes when the terminal is closed, SIGUSR1, and a file STOP in the run folder. (mpirun ends its processes at
Ctrl-C before they could save: use SIGUSR1 or the file there.)

  minires train                                  the default recipe
  minires train --data signs --recipe two-epoch  as far as two epochs can get
  minires train --data my-pictures               a folder with one subfolder of pictures per class
  minires train --data my-pictures --epochs 100 --patience 10 --keep best --balance weights
                                                 until validation gets no better, the best epoch is kept
  minires train --set schedule.name=cosine --set ema=0.99   any setting of minires.train.Config
  minires train --resume runs/signs-default-1    go on with a run that was stopped"""


def add_options(parser: argparse.ArgumentParser) -> None:
    from minires import data
    from minires.train import Config, recipes

    usual = Config.data

    def option(name: str, metavar: str, help: str, kind: Callable[[str], Any] = str) -> None:
        parser.add_argument(name, metavar=metavar, help=help, type=kind)

    option("--data", "NAME", f"{', '.join(data.names())}, or the path of a picture folder, zip, tar or of "
           "WebDataset's shards, such as 'set-{000..009}.tar' (default: the recipe's; else "
           f"{usual} if found, else {data.entry(usual).stand_in})")  # fmt: skip
    option("--model", "NAME", "the model (default: that of the recipe)")
    variant_option(parser)
    option("--recipe", "NAME", f"settings that belong together: {', '.join(recipes.names())}; or auto, which "
           "looks at the pictures and chooses; the options below change single ones (default: auto for "
           "pictures at a path, else default)")  # fmt: skip
    option("--epochs", "N", "how many times to go through the pictures", int)
    option("--batch-size", "N", "pictures per step", int)
    option("--accumulate", "N", "let each batch go through the model in N parts, which takes less memory: "
           "the gradient is that of the batch, but batch norm sees each part by itself", int)  # fmt: skip
    parser.add_argument("--drop-last", action=argparse.BooleanOptionalAction, default=None,
                        help="leave out the last batch of an epoch if it is smaller, or train on it "
                        "(default: the recipe's)")  # fmt: skip
    parser.add_argument("--plan", action=argparse.BooleanOptionalAction, default=None,
                        help="step by a plan of the model (minires.compile), as long runs on the CPU do "
                        "where one can be made, or always by the model itself")  # fmt: skip
    option("--lr", "X", "the highest learning rate of the schedule", float)
    option("--clip-norm", "X", "the largest norm that the gradients of a step keep", float)
    option("--balance", "WAY", "for classes of uneven size: weights (the loss of a picture counts the more "
           "the rarer its class), sampler (each class is drawn as often), or none (default: the recipe's; "
           "that of auto follows the pictures)")  # fmt: skip
    option("--patience", "N", "stop after N epochs in which validation did not get better", int)
    parser.add_argument("--recalibrate", action=argparse.BooleanOptionalAction, default=None,
                        help="measure batch norm's running statistics anew for validation and at the end "
                        "(default: the recipe's; auto does)")  # fmt: skip
    option("--seed", "N", "of weights, order and augmentation (default: 0)", int)
    option("--size", "N", "resize the pictures to N x N (default: what the model is made for)", int)
    parser.add_argument("--stream", action=argparse.BooleanOptionalAction, default=None,
                        help="decode pictures while they are needed, or keep all in memory (default: in "
                        "memory where they take no more than 1 GiB, or a quarter of it)")  # fmt: skip
    parser.add_argument("--draft", action="store_true", default=None,
                        help="read JPEGs at a fraction of their size where that is twice what is needed: "
                        "faster, and other by a little; streams")  # fmt: skip
    parser.add_argument("--cache", choices=("pixels",), nargs="?", const="pixels",
                        help="keep the resized pictures in a file in the user's cache, for this run and "
                        "later ones; streams")  # fmt: skip
    option("--train-on", "PARTS", "train, or train+val: then nothing is validated")
    option("--pictures", "N", "learn from N of these pictures, of each class its share, the same ones for "
           "every seed; validation and test stay whole (default: all)", int)  # fmt: skip
    option("--device", "NAME", DEVICES)
    option("--precision", "NAME", "fp32 (the default); tf32: faster matrix products on a GPU; bf16: "
           "activations in bfloat16 while training, parameters in float32")  # fmt: skip
    option("--batch-norm", "WAY", "in a run of several processes (mpirun -n 4 --bind-to none minires train): "
           "local, over the pictures of each by themselves (the default), or sync, over those of all, which "
           "is slower, and the same run on any number of them")  # fmt: skip
    option("--start-from", "RUN", f"fine-tune {TRAINED}: its picture size and normalisation, and a new last "
           "layer if the classes are others; or none (default: the recipe's)")  # fmt: skip
    parser.add_argument(
        "--freeze", action="append", metavar="PART",
        help="a part that stays as it is, for example conv1, or 'res[23]*'; can be repeated",
    )  # fmt: skip
    option("--out", "FOLDER", "the run folder (default: runs/<data>-<recipe>-<number>)")
    parser.add_argument("--watch", action=argparse.BooleanOptionalAction, default=None,
                        help="write what `minires watch` shows of layers and classes (the default), or not")
    option("--keep", "WHICH", "checkpoints that stay when the run is finished: none, the last two "
           "(last), or all; with best none stay, and the model is that of the epoch with the best validation "
           "instead of the last (default: the recipe's; auto: best, if 100 are validated)")  # fmt: skip
    parser.add_argument("--tensorboard", action=argparse.BooleanOptionalAction, default=None,
                        help="write event files for TensorBoard, too, into tensorboard/ of the run; needs "
                        "tensorboardX (default: where the run that is continued did)")  # fmt: skip
    parser.add_argument(
        "--set", action="append", metavar="NAME=VALUE",
        help="any setting of minires.train.Config, for example ema=0.99, schedule.name=cosine or "
        "augment='[[\"shift\",{\"pixels\":2}],\"flip\"]'; can be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--resume",
        nargs="?",
        const=True,
        metavar="FOLDER",
        help="continue the run in FOLDER where it stopped",
    )


def run(options: argparse.Namespace) -> int:
    from minires.distributed import world
    from minires.train import Interrupted, continuing, run_folder, team

    team.same_settings(world(), {"resume": options.resume, "out": options.out})
    say = speaker(sys.stderr if options.json else sys.stdout)
    if options.resume and (
        words := world().first(lambda: continuing.finished(_resumed(options)), "run folder")
    ):
        resumed = _resumed(options)
        say(words[0].upper() + words[1:])  # so that who resumes until all is done comes to an end
        if options.json:
            print_json({**run_folder.read_json(Path(resumed) / continuing.SUMMARY), "out": resumed})
        return 0
    trainer = _continued(options, say) if options.resume else _started(options, say)
    out, place = trainer.given, shlex.quote(str(trainer.given))
    # What a module of the user's has registered is known only where it is imported.
    minires = " ".join(["minires", *(f"--import {shlex.quote(name)}" for name in options.imports)])
    try:
        summary = trainer.run()
    except Interrupted as stop:
        way = continuing.way_on(out).replace("minires", minires, 1)
        among = " (behind mpirun or srun, on as many processes or others)" if world().size > 1 else ""
        raise Interrupted(f"{stop}. Go on with{among}: {way}", stop.number) from None
    if options.json:
        print_json({**summary, "out": str(out)})
        return 0
    labels = trainer.splits.test.classes
    shown = ", ".join(labels[:6]) + (", ..." if len(labels) > 6 else "")
    say(
        f"\nLook at {out / 'curves.png'}, confusion.png and mistakes.png. The model: model.safetensors. Next:"
    )
    commands = {
        f"{minires} predict {place} PICTURE...": f"is it {shown}?",
        f"{minires} evaluate {place}": "test it again; with --data on other pictures",
        f"{minires} watch {place}": "how it went: curves, layers, classes",
        f"{minires} trace {place}": "walk through it with a test picture, forward and backward",
        f"{minires} play {place}": "show it pictures in the browser",
        f"{minires} summary {_named(trainer)}": "its layers, parameters and MACs",
    }
    *others, _ = map(len, commands)  # the last one may be long
    for command, purpose in commands.items():
        say(f"  {command:<{max(others)}}  {purpose}")
    return 0


def _named(trainer: Trainer) -> str:
    """The model of a run, as ``minires summary`` builds it."""
    test = trainer.splits.test
    words = [trainer.config.model, f"--classes {len(test.classes)} --input {test.images.shape[1]}"]
    for name, value in trainer.variant.items():
        text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
        words.append(f"--variant {shlex.quote(f'{name}={text}')}")
    return " ".join(words)


def _started(options: argparse.Namespace, say: Callable[[str], None]) -> Trainer:
    """A new run: the recipe, the options on top of it, and a folder of its own."""
    from minires import models
    from minires.distributed import world
    from minires.train import Config, TensorBoard, Trainer, auto, continuing, lock, recipes, team

    observers = [TensorBoard()] if options.tensorboard else []
    settings = given_settings.read(options.set)
    settings = given_settings.as_options(options, settings, ("data", "recipe", "start_from", *SETTINGS))
    recipe = options.recipe or _usual_recipe(options.data)
    changes = {name: getattr(options, name) for name in SETTINGS if getattr(options, name) is not None}
    changes = {**_taken_over(options), **changes}
    models.entry(changes.get("model", Config.model))  # an unknown one is named before the data set is read
    if recipe not in (known := [auto.NAME, *recipes.names()]):
        raise ConfigError(unknown("recipe", recipe, known))
    name, why, is_stand_in = _choose_data(options.data, recipe)
    say(why)
    team.same_settings(world(), {"data": name, "recipe": recipe})
    splits = None
    if recipe == auto.NAME:
        # Rank 0 chooses by its own; what else is given goes into the configuration, which is compared.
        team.same_settings(world(), changes)
        held: list[data.Splits] = []

        def chosen() -> dict[str, Any]:
            continuing.not_among_pictures(Path(options.out or "runs"), name)
            if options.out:
                continuing.check(options.out, resume=False)
                lock.Lock(options.out, make=True).remove_folder()  # is it to be had?
            found, tried_on = _chosen(name, settings, changes, options, say)
            held.extend([tried_on] if tried_on else [])
            return found

        with world().patiently():  # one tries, for all
            recipe_settings = world().first(chosen, "choice of settings")
        splits = held[0] if held else None
    else:
        recipe_settings = Config.settings_of(recipe, **changes)
    config, left_out = _with_given(recipe_settings, settings, options)
    for line in left_out:
        say(line)
    models.entry(config.model)
    config = replace(config, data=name)
    out = options.out or _new_folders(name, recipe)
    trainer = Trainer(config, out, splits=splits, say=say, observers=observers)
    if is_stand_in:
        trainer.splits = replace(trainer.splits, source=f"{trainer.splits.source}: {why}")
    return trainer


def _with_given(
    of_recipe: dict[str, Any], settings: list[given_settings.Given], options: argparse.Namespace
) -> tuple[Config, list[str]]:
    """The configuration of a recipe with what is given on top of it, and lines that say what was left out."""
    from minires.train import Config

    before = {**Config().to_dict(), **of_recipe}
    before, left_out = given_settings.without_leftovers(before, settings)
    given = {name: getattr(options, name) for name in INSIDE if getattr(options, name) is not None}
    own = [given_settings.option(name, INSIDE[name], value) for name, value in given.items()]
    own += [
        given_settings.Given(("variant", name), value, f"--variant {name}={value}")
        for name, value in variant_of(options).items()
    ]
    config = Config.from_dict(given_settings.applied(before, settings, own))
    recipes_own, kept = before["optimizer"], config.optimizer
    if kept.get("name") != recipes_own.get("name") and options.lr is None and "lr" in kept and not any(
        one.path in (("optimizer",), ("optimizer", "lr")) for one in settings
    ):  # fmt: skip
        left_out.append(f"the learning rate stays {kept['lr']}, that for {recipes_own['name']}: see --lr")
    return config, left_out


def _usual_recipe(asked: str | None) -> str:
    """The recipe, where none is named: pictures of the user's own are looked at."""
    from minires import data
    from minires.train import auto

    return "default" if asked is None or asked in data.names() else auto.NAME


def _chosen(
    name: str, settings: list[given_settings.Given], changes: dict[str, Any], options: argparse.Namespace,
    say: Callable[[str], None],
) -> tuple[dict[str, Any], data.Splits | None]:  # fmt: skip
    """What the recipe auto chooses for these pictures, beside what is given; it says so. The pictures, too,
    where some ways to train were tried on them."""
    from minires import data
    from minires.train import auto, state
    from minires.train.trial import FOLDS, STEPS, trial

    given = {one.path[0]: one.value for one in settings if len(one.path) == 1} | changes
    if options.variant or any(one.path[0] == "variant" for one in settings):  # of a model that is another
        given = {"variant": variant_of(options), **given}
    seen = data.glance(name)
    choice, splits = auto.choose(seen, given), None
    # Each is tried with all that is given, as the run that follows has it.
    ways = {way: _with_given(one, settings, options)[0] for way, one in auto.ways(seen, given).items()}
    for doubt in choice.seen.doubts():
        warnings.warn(doubt, stacklevel=2)
    if ways:
        config = replace(ways[auto.ALL], data=name)
        splits = state.pictures(config, size=state.size(config))
        pictures = state.trained_on(config, splits)
        say(
            f"trying on the {len(pictures)} pictures, some left out, whether {' or '.join(ways)} should "
            f"learn: {len(ways) * FOLDS * STEPS} steps (--set \"freeze=[]\" tries nothing)"
        )
        began = time.monotonic()
        tried = trial(pictures, ways, say=say)
        say(f"tried in {time.monotonic() - began:.0f} s")
        choice = auto.choose(seen, given, tried)
    for line in choice.lines:
        say(line)
    return {**choice.settings, "recipe": auto.NAME}, splits


def _taken_over(options: argparse.Namespace) -> dict[str, Any]:
    """What a run takes over from the trained model that it starts from."""
    from minires.train import starters

    if options.start_from is None:
        return {}
    if options.start_from == "none":
        return {"start_from": None}
    if options.start_from in starters.names():
        start = options.start_from  # a name that goes on meaning the same wherever the package is
        trained, side = load_square(str(starters.path_of(start)))
    else:
        from minires.weights import path_of

        start = str(Path(path_of(options.start_from)).resolve())
        trained, side = load_square(start, finished=True)
    if options.model not in (None, trained.name):
        raise ConfigError(
            f"{options.start_from} is a {trained.name}, but --model is {options.model}; leave --model out"
        )
    return {
        "model": trained.name,
        "variant": trained.variant,
        "size": side,
        "normalize": {"mean": list(trained.normalize.mean), "std": list(trained.normalize.std)},
        "start_from": start,
    }


def _continued(options: argparse.Namespace, say: Callable[[str], None]) -> Trainer:
    """The run in a folder, from its newest checkpoint, with its own settings."""
    from minires.distributed import world
    from minires.train import Config, TensorBoard, Trainer, continuing, tensorboard

    out = _resumed(options)

    def read() -> dict[str, Any]:
        continuing.check(out, resume=True)
        return continuing.read_config(out).to_dict()

    before = Config.from_dict(world().first(read, "configuration"))
    wanted = options.tensorboard
    if wanted is None and (wanted := tensorboard.was_written(out)) and (why := tensorboard.missing()):
        say(f"warning: {why}; going on without")  # nobody has asked for it now
        wanted = False
    observers = [TensorBoard()] if wanted else []
    settings = given_settings.as_options(options, given_settings.read(options.set), FREE)
    changes = {one.path[0]: one.value for one in settings}
    changes |= {name: value for name in FREE if (value := getattr(options, name)) is not None}
    config = replace(before, **changes)
    check_is_there(config, out)
    say(f"Continuing the run in {out}")
    return Trainer(config, out, resume=True, say=say, observers=observers)


def _resumed(options: argparse.Namespace) -> str:
    """The folder of the run that is to go on, once it is clear that nothing else is asked for."""
    from minires.train import state

    given = [one for one in (options.resume, options.out) if isinstance(one, str)]
    if not given:
        raise ConfigError(
            "which run? minires train --resume FOLDER, for example --resume runs/signs-default-1"
        )
    out = given[0]
    if len({Path(one).resolve() for one in given}) > 1:
        raise ConfigError(f"--resume {out} goes on in that folder, but --out is {given[1]}; leave --out out")
    own = ("data", "recipe", *INSIDE, "variant", "start_from", *SETTINGS)
    settled = [name for name in own if getattr(options, name) is not None and name not in FREE]
    given = [f"--{name.replace('_', '-')}" for name in settled]
    paths = [one.path for one in given_settings.read(options.set)]
    given += [f"--set {'.'.join(path)}" for path in paths if path[0] not in state.FREE or len(path) > 1]
    if given:
        raise ConfigError(
            f"a run is continued with its own settings; leave out {', '.join(given)}, or start a new run"
        )
    return out


def _choose_data(asked: str | None, recipe: str) -> tuple[str, str, bool]:
    """The data set to train on, a sentence that says which it is and why, and whether it is a stand-in."""
    from minires import data
    from minires.train import Config, auto, recipes

    if asked is not None:
        why = f"Training on {asked}, as asked for with --data"
        if asked not in data.names() and data.is_there(asked):
            asked = str(Path(asked).resolve())  # it must be found when the run is continued from elsewhere
        return asked, why, False
    if recipe != auto.NAME and (named := recipes.get(recipe).get("data")):
        return named, f"Training on {named}, the data set of the recipe {recipe}", False
    usual = Config.data
    if (found := data.find(usual)) is not None:
        return usual, f"{usual} was found in {found}: training on it", False
    entry = data.entry(usual)
    looked = ", ".join(str(root / usual) for root in searched())
    return entry.stand_in, (
        f"{usual} was not found in {looked}: training on its stand-in `{entry.stand_in}`, "
        f"{data.entry(entry.stand_in).title} (`minires data {usual} --download` fetches {usual})"
    ), True  # fmt: skip


def _new_folders(data: str, recipe: str) -> Iterator[Path]:
    """The folders for a new run: runs/<data>-<recipe>-<number>, from number 1 on."""
    stem = re.sub(r"[^\w.-]+", "-", f"{Path(data).stem[:60]}-{recipe}")
    return (Path("runs") / f"{stem}-{number}" for number in itertools.count(1))


COMMAND = Command(
    "train a model, test it, and keep everything in a run folder", TEXT, run, add_options, ranks=True
)

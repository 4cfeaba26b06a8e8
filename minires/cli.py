"""The command line: options in, exit status out; the subcommands stand in ``commands``.

Exit status: 0 done, 1 failed, 2 wrong use, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

<<<<<<< HEAD
import minires
from minires.commands import COMMANDS, FAILED, Command
=======
from minires import commands
>>>>>>> 3ddf69b (The distribution is called minires-engine, and no message sends a user to a stranger's package)
from minires.errors import ConfigError, MiniresError
from minires.version import __version__

WRONG_USE, INTERRUPTED = 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program and return its exit status; ``arguments`` are those of the shell if not given."""
    if hasattr(sys.stdout, "reconfigure"):  # a file name that the terminal cannot show must not end a run
        sys.stdout.reconfigure(errors="backslashreplace")
    options = argparse.Namespace(debug=False)
    try:
        with _plain_warnings():
            _parser().parse_args(arguments, options)
            status: int = options.run(options)
            sys.stdout.flush()
            return status
    except KeyboardInterrupt as stop:
        print(f"minires: {stop}" if str(stop) else "minires: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output, `head` for example, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (MiniresError, OSError, MemoryError, ImportError) as error:
        if options.debug:
            traceback.print_exc()
        print(f"minires: error: {_message(error)}", file=sys.stderr)
        return WRONG_USE if isinstance(error, ConfigError) else FAILED


def _message(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return f"not enough memory ({error or 'no figure given'}); try a smaller --batch-size or --size"
    if isinstance(error, ImportError):
        return f"{error}; `minires doctor` says how to install it"
    return str(error)


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Warnings as one line each, without the place in the source."""

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        print(f"minires: warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="minires",
        description="Train residual networks with a small engine written from scratch, and look into them.",
        epilog="`minires COMMAND --help` explains a command. Exit status: 0 done, 1 failed, 2 wrong use, "
        "130 interrupted.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"minires {__version__}")
    parser.add_argument("--debug", action="store_true", help="show where in the source an error arose")
    parser.add_argument(
        "--import", action=_Import, metavar="MODULE",
        help="import a module first, for the models, data sets, ... that it registers; can be repeated",
    )  # fmt: skip
    subparsers = parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, parser_class=_CommandParser
    )
    for name, command in COMMANDS.items():
        subparsers.add_parser(name, help=command.help, command=command)
    return parser


class _Import(argparse.Action):
    """Imports a module of the user's as soon as it is read, so that the help of a command knows its names."""

    def __call__(self, parser: object, namespace: object, name: Any, option: str | None = None) -> None:
        if (here := os.getcwd()) not in sys.path:
            sys.path.insert(0, here)
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # the module is there, and imports something that is not
            raise ConfigError(
                f"--import {name}: there is no such module, neither in {here} nor installed; "
                "give the name that stands behind import, without .py"
            ) from error


class _CommandParser(argparse.ArgumentParser):
    """The parser of a command, which is asked for its options only when it was chosen.

    Some options name what other rooms know, and these take a while to import.
    """

    def __init__(self, *, command: Command, **options: Any) -> None:
        as_written = argparse.RawDescriptionHelpFormatter
        super().__init__(
            description=command.text, allow_abbrev=False, formatter_class=as_written, **options
        )
        self._command: Command | None = command

<<<<<<< HEAD
    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        if command := self._command:
            self._command = None
            self.set_defaults(run=command.run)
            command.add_options(self)
            hidden = argparse.SUPPRESS
            self.add_argument("--debug", action="store_true", default=hidden, help=hidden)
            if command.json:
                text = "print the result as JSON, for programs"
                self.add_argument("--json", action="store_true", help=text)
        return super().parse_known_args(args, namespace)
=======

TRAIN = """\
Train a model and test it. Without options: ResNet-50 on SIGNS, or on the rendered stand-in `hands` where
SIGNS is not found. Ctrl-C stops after the step at hand and saves everything.

  minires train                                  the default recipe
  minires train --data signs --recipe two-epoch  as far as two epochs can get
  minires train --data my-pictures               a folder with one subfolder of pictures per class
  minires train --resume runs/signs-default-1    go on with a run that was stopped"""
EVALUATE = """\
Test a trained model: how many pictures it gets right, and the mean cross-entropy.

  minires evaluate runs/signs-default-1
  minires evaluate runs/signs-default-1 --data hands --split val"""
PREDICT = """\
Say what is on each picture. The largest centred square of a picture is used, resized to what the model knows.

  minires predict runs/signs-default-1 hand.jpg other.png"""
SUMMARY = """\
List what a model is made of, layer by layer, as one picture passes through it: the shape of each output,
parameters (running statistics of batch norm included) and multiply-adds of convolutions and dense layers.

  minires summary resnet34 --variant shortcut=A
  minires summary resnet20_cifar --classes 100"""
PLOT = """\
Draw a model: stages, blocks with their repeats, skip paths and projections, the shapes between them.

  minires plot resnet50 --out resnet50.svg
  minires plot resnet34 --variant shortcut=A"""
TRACE = """\
Write a page in which you walk through a network with one picture, from its pixels to the loss and back to the
first kernel: every step with its values and gradients. The page is one file and needs no network.

  minires trace runs/signs-default-1
  minires trace runs/signs-default-1 --image hand.jpg --label 3 --html hand.html
  minires trace resnet50 --image hand.jpg         fresh weights, not trained"""
PLAY = """\
Open a page in the browser in which you drop, draw or photograph pictures, and see what a trained model takes
them for, and which places of a picture made it think so. Only this machine can reach the page; Ctrl-C ends
it.

  minires play runs/signs-default-1"""
DIFF = """\
Say what differs between two models: totals, layers, shapes, settings. Weights are not compared.

  minires diff resnet50 resnet50v2_keras
  minires diff "resnet34 shortcut=A" "resnet34 shortcut=B\""""
IMPORT_WEIGHTS = """\
Bring trained weights in: names, layout, batch norm's conventions and the preparation of pictures come with
the source. Nothing is written unless every tensor fits. PyTorch's files need `pip install torch`.

  minires import-weights resnet50-0676ba61.pth --model resnet50
  minires import-weights resnet20-12fca82f.th --model resnet20_cifar --out trained.safetensors
  minires import-weights resnet50_weights.h5 --model resnet50_keras"""
EXPORT = """\
Take a trained model out. ONNX needs `pip install onnx`; Netron opens the file.

  minires export runs/signs-default-1 --onnx signs.onnx
  minires export trained.safetensors --torch theirs.safetensors --names akamaster"""
GRADCHECK = """\
Compare the gradients of every operation with numeric ones, in float64 and with a random upstream gradient,
in a table of cases: strides, paddings, groups, odd sizes. Exit status 1 if one is wrong."""
DATA = """\
Show where the data sets are, or what one holds. They are looked for in MINIRES_DATA, ./data and the user's
cache, where --from and --download put them.

  minires data
  minires data signs --download
  minires data signs --from Downloads/signs.zip"""
DOCTOR = """\
Look at Python, packages, BLAS, threads, GPU, data sets and disk; name what is missing or held back and the
command that mends it. Exit status 1 if minires cannot run as it is."""
>>>>>>> 3ddf69b (The distribution is called minires-engine, and no message sends a user to a stranger's package)

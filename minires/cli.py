"""The command line: options in, exit status out; what the subcommands do stands in ``commands``.

Exit status: 0 done, 1 failed, 2 wrong use, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import minires
from minires import commands
from minires.errors import ConfigError, MiniresError

DEVICES = "cpu (the default), cuda, cuda:1, or auto: the GPU if there is one"
FAILED, WRONG_USE, INTERRUPTED = commands.FAILED, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program and return its exit status; ``arguments`` are those of the shell if not given."""
    if hasattr(sys.stdout, "reconfigure"):  # a file name that the terminal cannot show must not end a run
        sys.stdout.reconfigure(errors="backslashreplace")
    options = _parser().parse_args(arguments)
    try:
        with _plain_warnings():
            status = options.run(options)
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
    parser.add_argument("--version", action="version", version=f"minires {minires.__version__}")
    parser.add_argument("--debug", action="store_true", help="show where in the source an error arose")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(
        name: str, run: Callable[[argparse.Namespace], int], help: str, text: str, json: bool = True
    ) -> argparse.ArgumentParser:
        sub = subparsers.add_parser(
            name, help=help, description=text, allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        sub.set_defaults(run=run)
        if json:
            sub.add_argument("--json", action="store_true", help="print the result as JSON, for programs")
        sub.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        return sub

    sub = command(
        "train", commands.run_train, "train a model, test it, and keep everything in a run folder", TRAIN
    )
    _train_options(sub)

    sub = command("evaluate", commands.run_evaluate, "test a trained model on a data set", EVALUATE)
    _model_argument(sub)
    sub.add_argument(
        "--data", metavar="NAME", help="a data set or path (default: what the run was trained on)"
    )
    sub.add_argument("--split", choices=("train", "val", "test"), default="test", help="default: test")

    sub = command("predict", commands.run_predict, "say what is on pictures, with probabilities", PREDICT)
    _model_argument(sub)
    sub.add_argument("pictures", nargs="+", metavar="PICTURE", help="picture files of any size")
    sub.add_argument(
        "--top", type=int, default=3, metavar="K", help="show the K likeliest labels (default: 3)"
    )

    sub = command(
        "summary", commands.run_summary, "list a model's layers, parameters and multiply-adds", SUMMARY
    )
    sub.add_argument("model", metavar="NAME", nargs="?", default="resnet50_signs",
                     help="the model (default: resnet50_signs)")  # fmt: skip
    sub.add_argument(
        "--input", type=int, metavar="N", help="picture side (default: what the model is made for)"
    )
    sub.add_argument("--classes", type=int, metavar="N", help="how many classes (default: the model's usual)")
    sub.add_argument("--full", action="store_true", help="every layer, not a line for each block")
    _variant_option(sub)

    sub = command("plot", commands.run_plot, "draw a model as a picture, an SVG file", PLOT)
    sub.add_argument("model", metavar="NAME", help="the model")
    sub.add_argument("--out", metavar="FILE", help="where to write it (default: NAME.svg)")
    sub.add_argument(
        "--input", type=int, metavar="N", help="picture side (default: what the model is made for)"
    )
    sub.add_argument("--classes", type=int, metavar="N", help="how many classes (default: the model's usual)")
    _variant_option(sub)

    sub = command(
        "trace", commands.run_trace, "step through one picture, forward and backward, in a page", TRACE
    )
    sub.add_argument("model", metavar="RUN", help="a run folder, a model.safetensors file, or a model's name")
    sub.add_argument(
        "--image", metavar="FILE", help="the picture (default: the first test picture of the run)"
    )
    sub.add_argument("--label", metavar="NAME", help="what is on it (default: the model's own guess)")
    sub.add_argument(
        "--html", metavar="FILE", help="where to write it (default: trace-MODEL.html in the run)"
    )

    sub = command(
        "play", commands.run_play, "show pictures to a trained model, in the browser", PLAY, json=False
    )
    _model_argument(sub)
    sub.add_argument("--port", type=int, default=0, metavar="N", help="the port (default: a free one)")
    sub.add_argument("--no-browser", dest="browser", action="store_false", help="only print the address")

    sub = command("diff", commands.run_diff, "say what differs between two models", DIFF)
    for which in ("a", "b"):
        sub.add_argument(
            which, metavar=which.upper(), help="a model, with its options: 'resnet34 shortcut=A'"
        )
    sub.add_argument("--input", type=int, metavar="N", help="picture side (default: what A is made for)")
    sub.add_argument("--classes", type=int, metavar="N", help="how many classes (default: the models' usual)")

    sub = command(
        "import-weights", commands.run_import_weights, "make a model of ours from a PyTorch or Keras file",
        IMPORT_WEIGHTS,
    )  # fmt: skip
    sub.add_argument("source_file", metavar="FILE", help=".pth .pt .th .bin .safetensors .h5 .keras")
    sub.add_argument("--model", metavar="NAME", required=True, help="which of our models it is")
    sub.add_argument("--out", metavar="FILE", help="where to write it (default: NAME.safetensors)")
    sub.add_argument("--source", metavar="WHOSE", help="whose names the file has (default: seen from them)")
    sub.add_argument("--classes", type=int, metavar="N", help="how many classes (default: the model's usual)")
    _variant_option(sub)

    sub = command("export", commands.run_export, "write a trained model for ONNX or PyTorch", EXPORT)
    sub.add_argument("model", metavar="RUN", help="a run folder, or a model.safetensors file")
    sub.add_argument("--onnx", metavar="FILE", help="write an ONNX file; the batch size is left free")
    sub.add_argument(
        "--torch", metavar="FILE", help="write a safetensors file with PyTorch's names and layout"
    )
    sub.add_argument("--names", metavar="WHOSE", default="torchvision",
                     help="whose names: torchvision (the default), akamaster or timm")  # fmt: skip

    sub = command(
        "gradcheck", commands.run_gradcheck, "check the gradients of all operations numerically", GRADCHECK
    )
    sub.add_argument("operations", nargs="*", metavar="OP", help="only these, for example conv2d batch_norm")

    sub = command("data", commands.run_data, "show, prepare or download a data set", DATA)
    sub.add_argument(
        "name", nargs="?", metavar="NAME", help="signs, hands, cifar10 or a path (default: list all)"
    )
    how = sub.add_mutually_exclusive_group()
    how.add_argument(
        "--from", dest="source", metavar="PATH", help="verify the files at PATH, then keep a copy"
    )
    how.add_argument(
        "--download", action="store_true", help="fetch the public copy (signs only) and verify it"
    )
    sub.add_argument("--size", type=int, metavar="N", help="resize the pictures to N x N")

    command(
        "doctor", commands.run_doctor, "say what is installed, what is missing, and what mends it", DOCTOR
    )
    return parser


def _train_options(parser: argparse.ArgumentParser) -> None:
    def option(name: str, metavar: str, help: str, kind: Callable[[str], Any] = str) -> None:
        parser.add_argument(name, metavar=metavar, help=help, type=kind)

    option("--data", "NAME", "signs, hands, cifar10, or the path of a picture folder or zip "
           "(default: the recipe's; else signs if found, else hands)")  # fmt: skip
    option("--model", "NAME", "the model (default: that of the recipe)")
    _variant_option(parser)
    option("--recipe", "NAME", "settings that belong together: default, two-epoch, blog or cifar; "
           "the options below change single ones")  # fmt: skip
    option("--epochs", "N", "how many times to go through the pictures", int)
    option("--batch-size", "N", "pictures per step", int)
    option("--lr", "X", "the highest learning rate of the schedule", float)
    option("--seed", "N", "of weights, order and augmentation (default: 0)", int)
    option("--size", "N", "resize the pictures to N x N (default: what the model is made for)", int)
    option("--train-on", "PARTS", "train, or train+val: then nothing is validated")
    option("--device", "NAME", DEVICES)
    option("--precision", "NAME", "fp32 (the default); tf32: faster matrix products on a GPU; bf16: "
           "activations in bfloat16 while training, parameters in float32")  # fmt: skip
    option("--start-from", "RUN", "fine-tune a trained model, of a run folder or a model.safetensors file: "
           "its picture size and normalisation, and a new last layer if the classes are others")  # fmt: skip
    parser.add_argument(
        "--freeze", action="append", metavar="PART",
        help="a part that stays as it is, for example conv1, or 'res[23]*'; can be repeated",
    )  # fmt: skip
    option("--out", "FOLDER", "the run folder (default: runs/<data>-<recipe>-<number>)")
    parser.add_argument("--resume", nargs="?", const=True, metavar="FOLDER",
                        help="continue the run in FOLDER, or in that of --out, where it stopped")  # fmt: skip


def _variant_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--variant", action="append", metavar="NAME=VALUE",
                        help="an option of the model, for example shortcut=A; can be repeated")  # fmt: skip


def _model_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="RUN", help="a run folder, or a model.safetensors file")
    parser.add_argument("--device", default="cpu", metavar="NAME", help=DEVICES)


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
the source. Nothing is written unless every tensor fits. PyTorch's files need pip install 'minires[torch]'.

  minires import-weights resnet50-0676ba61.pth --model resnet50
  minires import-weights resnet20-12fca82f.th --model resnet20_cifar --out trained.safetensors
  minires import-weights resnet50_weights.h5 --model resnet50_keras"""
EXPORT = """\
Take a trained model out. ONNX needs pip install 'minires[onnx]'; Netron opens the file.

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

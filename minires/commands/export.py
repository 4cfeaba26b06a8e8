"""``minires export``: a trained model for other programs."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from minires.commands.loading import TRAINED, TrainedModel, print_json
from minires.commands.registry import Command
from minires.errors import ConfigError
from minires.files import not_over, not_there, with_ending

TEXT = """\
Take a trained model out. ONNX needs `pip install onnx`; Netron opens the file. A model for PyTorch is refused
where that of the same name there would give other outputs with its weights.

  minires export runs/signs-default-1 --onnx signs.onnx
  minires export trained.safetensors --torch theirs.pth
  minires export trained.safetensors --torch theirs.safetensors --names akamaster
  minires export runs/signs-default-1 --keras signs.weights.h5"""


def add_options(parser: argparse.ArgumentParser) -> None:
    from minires.weights.torch.export import WRITTEN

    parser.add_argument("model", metavar="RUN", action=TrainedModel, help=TRAINED)
    parser.add_argument("--onnx", metavar="FILE", help="write an .onnx file; the batch size is left free")
    parser.add_argument(
        "--torch",
        metavar="FILE",
        help="write the weights with PyTorch's names and layout: a .safetensors "
        "file, or a .pth, .pt or .bin for torch.load",
    )
    parser.add_argument(
        "--keras", metavar="FILE", help="write a .weights.h5 file, for load_weights in Keras 3"
    )
    parser.add_argument("--names", default="torchvision", choices=WRITTEN,
                        help="whose names (default: torchvision)")  # fmt: skip


def _to_onnx(model: str, path: str, names: str) -> None:
    from minires.weights.onnx import export_onnx_run

    export_onnx_run(model, path)


def _to_torch(model: str, path: str, names: str) -> None:
    from minires import train
    from minires.weights.torch.export import export_torch

    export_torch(train.load_model(model), path, names)


def _to_keras(model: str, path: str, names: str) -> str:
    from minires import train
    from minires.weights.keras.export import export_keras

    return export_keras(train.load_model(model), path)


# option: the program that the file is for, what writes it and may return what is to be said of it, and the
# endings that its files have
FORMATS: dict[str, tuple[str, Callable[[str, str, str], str | None], tuple[str, ...]]] = {
    "onnx": ("ONNX", _to_onnx, (".onnx",)),
    "torch": ("PyTorch", _to_torch, (".safetensors", ".pth", ".pt", ".bin")),
    "keras": ("Keras", _to_keras, (".weights.h5",)),
}


def run(options: argparse.Namespace) -> int:
    from minires.train import continuing

    written = {option: getattr(options, option) for option in FORMATS if getattr(options, option) is not None}
    if not written:
        raise ConfigError(
            "export to what? --onnx FILE.onnx, --torch FILE.safetensors, or --keras FILE.weights.h5"
        )
    for option, path in written.items():  # before anything is written
        title, _, endings = FORMATS[option]
        with_ending(f"--{option}", path, endings, f"a file for {title}")
        what = "the model that is exported, or a file of its run"
        not_over(f"--{option}", path, continuing.files_of(options.model), what)
        continuing.not_in_run(f"--{option}", path)
        not_there(f"--{option}", path)
    notes = {
        option: FORMATS[option][1](options.model, path, options.names) for option, path in written.items()
    }
    if options.json:
        print_json(written)
    else:
        for option, path in written.items():
            note = f"; {notes[option]}" if notes[option] else ""
            print(f"{path}: {options.model} for {FORMATS[option][0]}{note}")
    return 0


COMMAND = Command("write a trained model for ONNX, PyTorch or Keras", TEXT, run, add_options)

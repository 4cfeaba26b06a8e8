"""``minires export``: a trained model for other programs."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from minires.commands.loading import print_json
from minires.commands.registry import Command
from minires.errors import ConfigError
from minires.files import with_ending

TEXT = """\
Take a trained model out. ONNX needs `pip install onnx`; Netron opens the file. A model for PyTorch is refused
where that of the same name there would give other outputs with its weights.

  minires export runs/signs-default-1 --onnx signs.onnx
  minires export trained.safetensors --torch theirs.pth
  minires export trained.safetensors --torch theirs.safetensors --names akamaster"""


def add_options(parser: argparse.ArgumentParser) -> None:
    from minires.weights.torch.export import WRITTEN

    parser.add_argument("model", metavar="RUN", help="a run folder, or a model.safetensors file")
    parser.add_argument("--onnx", metavar="FILE", help="write an .onnx file; the batch size is left free")
    parser.add_argument(
        "--torch",
        metavar="FILE",
        help="write the weights with PyTorch's names and layout: a .safetensors "
        "file, or a .pth, .pt or .bin for torch.load",
    )
    parser.add_argument("--names", metavar="WHOSE", default="torchvision",
                        help=f"whose names: {', '.join(WRITTEN)} (default: torchvision)")  # fmt: skip


def _to_onnx(model: str, path: str, names: str) -> None:
    from minires.weights.onnx import export_onnx_run

    export_onnx_run(model, path)


def _to_torch(model: str, path: str, names: str) -> None:
    from minires import train
    from minires.weights.torch.export import export_torch

    export_torch(train.load_model(model), path, names)


# option: the program that the file is for, what writes it, and the endings that its files have
FORMATS: dict[str, tuple[str, Callable[[str, str, str], None], tuple[str, ...]]] = {
    "onnx": ("ONNX", _to_onnx, (".onnx",)),
    "torch": ("PyTorch", _to_torch, (".safetensors", ".pth", ".pt", ".bin")),
}


def run(options: argparse.Namespace) -> int:
    written = {option: getattr(options, option) for option in FORMATS if getattr(options, option) is not None}
    if not written:
        raise ConfigError("export to what? --onnx FILE.onnx, or --torch FILE.safetensors")
    for option, path in written.items():  # before anything is written
        title, _, endings = FORMATS[option]
        with_ending(f"--{option}", path, endings, f"a file for {title}")
    for option, path in written.items():
        _, write, _ = FORMATS[option]
        write(options.model, path, options.names)
    if options.json:
        print_json(written)
    else:
        for option, path in written.items():
            print(f"{path}: {options.model} for {FORMATS[option][0]}")
    return 0


COMMAND = Command("write a trained model for ONNX or PyTorch", TEXT, run, add_options)

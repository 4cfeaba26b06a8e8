"""``minires import-weights``: weights that others trained."""

from __future__ import annotations

import argparse
import shlex

from minires.commands.loading import print_json, variant_of, variant_option
from minires.commands.registry import Command

TEXT = """\
Bring trained weights in: names, layout, batch norm's conventions and the preparation of pictures come with
the source. Nothing is written unless every tensor fits. PyTorch's files need `pip install torch`.

  minires import-weights resnet50-0676ba61.pth --model resnet50
  minires import-weights resnet20-12fca82f.th --model resnet20_cifar --out trained.safetensors
  minires import-weights resnet50_weights.h5 --model resnet50_keras"""


def add_options(parser: argparse.ArgumentParser) -> None:
    from minires.weights import SOURCES

    parser.add_argument("source_file", metavar="FILE", help=".pth .pt .th .bin .safetensors .h5 .keras")
    parser.add_argument("--model", metavar="NAME", required=True, help="which of our models it is")
    parser.add_argument("--out", metavar="FILE", help="where to write it (default: NAME.safetensors)")
    whose = f"whose names the file has: {', '.join(SOURCES)} (default: seen from them)"
    parser.add_argument("--source", metavar="WHOSE", help=whose)
    parser.add_argument(
        "--classes", type=int, metavar="N", help="how many classes (default: the model's usual)"
    )
    variant_option(parser)


def run(options: argparse.Namespace) -> int:
    from minires import weights

    out = options.out or f"{options.model}.safetensors"
    classes = None if options.classes is None else [str(number) for number in range(options.classes)]
    report = weights.import_weights(
        options.source_file, options.model, out, source=options.source, classes=classes,
        variant=variant_of(options),
    )  # fmt: skip
    if options.json:
        found = {"source": report.source, "tensors": report.tensors, "numbers": report.numbers}
        print_json({"model": options.model, **found, "out": out})
        return 0
    place = shlex.quote(out)
    print(f"{report}\nwritten to {out}. Next:")
    print(f"  minires evaluate {place} --data PATH   test it on pictures")
    print(f"  minires predict {place} PICTURE...     what is on these?")
    return 0


COMMAND = Command("make a model of ours from a PyTorch or Keras file", TEXT, run, add_options)

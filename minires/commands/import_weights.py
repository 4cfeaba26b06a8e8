"""``minires import-weights``: weights that others trained."""

from __future__ import annotations

import argparse
import shlex

from minires.commands.loading import print_json, variant_of, variant_option
from minires.commands.registry import Command
from minires.errors import ConfigError
from minires.files import not_there, same_file

TEXT = """\
Bring trained weights in: names, layout, batch norm's conventions and the preparation of pictures come with
the source. Nothing is written unless every tensor fits. PyTorch's files need `pip install torch`. What a file
is shows in its content, whatever its name; of a model in several files give the index or the folder.

  minires import-weights resnet50-0676ba61.pth --model resnet50
  minires import-weights resnet20-12fca82f.th --model resnet20_cifar --out trained.safetensors
  minires import-weights resnet50_weights.h5 --model resnet50_keras
  minires import-weights microsoft-resnet-50/ --model resnet50
  minires import-weights last.ckpt --model resnet18 --container ema --class-names cat,dog

Some networks have the same names and shapes and compute something else: timm's resnetblur50 and resnetaa50
(blurred strides), a ResNet-50 with the stride on its first 1x1. What a file states is compared, and what a
config.json of Hugging Face or timm beside it states: beside model.safetensors or pytorch_model.bin (also
model.fp16.safetensors, model-00001-of-00002.safetensors) always, beside a file of another name if no such
one is there and it says --model. Else, and if it says a network of no family known here, a note says that it
was left aside. Where nothing states it, be sure that --model and --variant are what was trained."""


def add_options(parser: argparse.ArgumentParser) -> None:
    from minires.weights import SOURCES

    parser.add_argument("source_file", metavar="FILE", help="of torch.save, .safetensors, .npz, of Keras; "
                        "or the folder or index of a model")  # fmt: skip
    parser.add_argument("--model", metavar="NAME", required=True, help="which of our models it is")
    parser.add_argument(
        "--out", metavar="FILE", help="where to write it, a .safetensors (default: NAME.safetensors)"
    )
    whose = f"whose names the file has: {', '.join(SOURCES)} (default: seen from them)"
    parser.add_argument("--source", metavar="WHOSE", help=whose)
    parser.add_argument(
        "--container", metavar="NAME",
        help="which model, if the file holds several, as one and its moving average: the name of an entry, "
        "or what its names begin with",
    )  # fmt: skip
    parser.add_argument(
        "--class-names", metavar="NAMES",
        help="the classes in the order of the outputs: cat,dog; or a file with one on each line, or JSON as "
        "id2label of Hugging Face (default: those in the file, if it has any)",
    )  # fmt: skip
    parser.add_argument(
        "--classes", type=int, metavar="N", help="how many classes (default: as the last layer has outputs)"
    )
    variant_option(parser)


def run(options: argparse.Namespace) -> int:
    from minires import weights

    out = options.out or f"{options.model}.safetensors"
    if same_file(out, options.source_file):
        raise ConfigError(f"{out} is the file that is imported; choose another --out")
    not_there("--out", out)
    names = None if options.class_names is None else weights.class_names(options.class_names)
    if options.classes is not None:
        if names is not None and len(names) != options.classes:
            raise ConfigError(
                f"--class-names has {len(names)} names, and --classes says {options.classes}. "
                + weights.classes.COMMAS
            )
        names = names or tuple(str(number) for number in range(options.classes))
    report = weights.import_weights(
        options.source_file, options.model, out, source=options.source, classes=names,
        variant=variant_of(options), container=options.container,
    )  # fmt: skip
    if options.json:
        found = {"source": report.source, "tensors": report.tensors, "numbers": report.numbers,
                 "notes": list(report.notes)}  # fmt: skip
        print_json({"model": options.model, **found, "out": out})
        return 0
    place = shlex.quote(out)
    print(f"{report}\nwritten to {out}. Next:")
    print(f"  minires evaluate {place} --data PATH   test it on pictures")
    print(f"  minires predict {place} PICTURE...     what is on these?")
    return 0


COMMAND = Command("make a model of ours from a PyTorch or Keras file", TEXT, run, add_options)

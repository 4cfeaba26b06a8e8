"""What looks at models and their weights: summary, diff, plot, import-weights, export."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minires.commands.loading import print_json, variant_of
from minires.errors import ConfigError

if TYPE_CHECKING:
    from minires.nn import Module


def run_summary(options: argparse.Namespace) -> int:
    from minires.inspect import summarize

    model, side = _built(options, options.model, variant_of(options))
    summary = summarize(model, (side, side, 3), name=options.model, memory=True)
    if options.json:
        print_json(summary.to_dict())
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
        print_json(found.to_dict())
    else:
        print(found)
    return 0


def run_plot(options: argparse.Namespace) -> int:
    from minires.inspect import plot

    model, side = _built(options, options.model, variant_of(options))
    out = options.out or f"{options.model}.svg"
    plot(model, (side, side, 3), out, name=options.model)
    if options.json:
        print_json({"model": options.model, "out": out})
    else:
        print(f"{out}: {options.model}, any browser shows it")
    return 0


def run_import_weights(options: argparse.Namespace) -> int:
    from minires import weights
    from minires.weights.keras import files as keras_files
    from minires.weights.keras import pretrained as keras_pretrained

    out = options.out or f"{options.model}.safetensors"
    classes = None if options.classes is None else [str(number) for number in range(options.classes)]
    if Path(options.source_file).suffix in keras_files.SUFFIXES:
        if options.source or options.variant:
            raise ConfigError("--source and --variant are for PyTorch's files; what Keras has is known")
        report = keras_pretrained.import_keras(options.source_file, options.model, out, classes=classes)
    else:
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


def run_export(options: argparse.Namespace) -> int:
    from minires import train
    from minires.weights.onnx import export_onnx_run
    from minires.weights.torch.export import export_torch

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
        print_json(written)
    else:
        for kind, path in written.items():
            print(f"{path}: {options.model} for {'ONNX' if kind == 'onnx' else 'PyTorch'}")
    return 0


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

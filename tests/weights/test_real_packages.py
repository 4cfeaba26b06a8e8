"""Weights go out to the real packages, and come in from them: the same outputs, with strict loading.

Where a package is not installed, names and shapes are held against those that it has, in names.json.
"""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path

import numpy as np
import oracle
import pytest
from weights import real
from weights.in_this_process import in_this_process

from minires import limits
from minires.models import build
from minires.tensor import Tensor, no_grad
from minires.train import load_model
from minires.weights import import_weights, recognise, variant_for
from minires.weights.name_tables import places_of
from minires.weights.torch.export import WRITTEN, export_torch, to_torch_layout
from minires.weights.torch.pretrained import behind_flatten

KNOWN = json.loads(real.NAMES.read_text())
ALL = [(source, ours) for source, networks in real.NETWORKS.items() for ours in networks]
SMALL_ENOUGH = [  # one of each family, to compute with
    ("torchvision", "resnet18"), ("torchvision", "resnet50"), ("torchvision", "resnext50_32x4d"),
    ("torchvision", "vgg11"), ("torchvision", "vgg11_bn"), ("torchvision", "densenet121"),
    ("timm", "resnet18"), ("timm", "resnet50"), ("timm", "vgg11"), ("timm", "vgg13_bn"),
    ("timm", "densenet121"),
    ("timm", "se_resnet50"), ("timm", "se_resnext50_32x4d"), ("timm", "preresnet18"), ("timm", "preresnet50"),
    ("timm", "resnext50_32x4d"), ("cadene", "se_resnet50"), ("cadene", "se_resnext50_32x4d"),
    ("huggingface", "resnet18"), ("huggingface", "resnet50"),
]  # fmt: skip


@pytest.mark.parametrize(("source", "name"), ALL)
def test_names_and_shapes_are_those_of_the_real_package(source, name):
    model = build(name, classes=KNOWN["classes"], initializer="zeros", **variant_for(source, name))
    there, flattened = places_of(source, model), behind_flatten(model)
    shapes = {
        there[ours][0]: to_torch_layout(
            np.broadcast_to(np.int8(0), array.shape), channels=flattened.get(ours),
            convolution=there[ours][1] and array.ndim == 2,
        ).shape
        for ours, array in [(n, p.data) for n, p in model.named_parameters()] + list(model.named_buffers())
    }  # fmt: skip
    assert real.digest(shapes.items()) == KNOWN[source][name]
    assert recognise(shapes) in (source, "torchvision")


def needs(source):
    pytest.importorskip("torch")
    return pytest.importorskip(real.PACKAGES[source])


@pytest.mark.parametrize(("source", "name"), ALL)
def test_the_installed_package_has_the_names_that_are_noted(source, name):
    needs(source)
    state = real.on_meta(source, name, KNOWN["classes"]).state_dict()
    assert real.digest((key, tensor.shape) for key, tensor in state.items()) == KNOWN[source][name]


def difference(ours, theirs, size):
    """The relative distance of the outputs for two pictures."""
    import torch

    x = np.random.default_rng(1).standard_normal((2, size, size, 3)).astype(np.float32)
    with torch.no_grad(), no_grad(), oracle.one_thread():
        y = theirs.eval()(torch.tensor(x.transpose(0, 3, 1, 2).copy()))
        expected = getattr(y, "logits", y).numpy()
        found = ours.eval()(Tensor(x)).numpy()
    assert expected.shape == found.shape
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize(("source", "name"), [one for one in SMALL_ENOUGH if one[0] in WRITTEN])
def test_what_is_exported_is_taken_by_the_real_package_and_gives_the_same_outputs(source, name, tmp_path):
    needs(source)
    import torch

    options = {"drop_rate": 0.0} if source == "timm" else {}
    theirs = real.make(source, name, 7, **options)
    size = 224 if name.startswith("vgg") else 64
    ours = oracle.shake(build(name, classes=7, **variant_for(source, name)))
    export_torch(ours, tmp_path / "w.pth", source)
    state = torch.load(tmp_path / "w.pth", weights_only=True)
    counters = {key: t for key, t in theirs.state_dict().items() if key.endswith("num_batches_tracked")}
    theirs.load_state_dict({**state, **counters}, strict=True)
    assert difference(ours, theirs, size) <= 1e-5


@pytest.mark.parametrize(("source", "name"), SMALL_ENOUGH)
def test_what_the_real_package_saves_comes_in_with_the_same_outputs(source, name, tmp_path, monkeypatch):
    needs(source)
    import torch

    monkeypatch.setattr(limits, "apart", in_this_process)
    theirs = shaken(real.make(source, name, 7))
    torch.save({"state_dict": theirs.state_dict(), "epoch": 1}, tmp_path / "w")
    import_weights(
        tmp_path / "w", name, tmp_path / "ours.safetensors", source="timm" if source == "timm" else None
    )
    trained = load_model(tmp_path / "ours.safetensors")
    size = 224 if name.startswith("vgg") else 64
    assert len(trained.classes) == 7 and difference(trained.model, theirs, size) <= 1e-5


def shaken(model):
    import torch

    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5, generator=draw)
            elif name.endswith(("running_mean", "bias")):
                tensor.uniform_(-0.1, 0.1, generator=draw)
            elif tensor.ndim == 1:
                tensor.uniform_(0.5, 1.0, generator=draw)
    return model


@pytest.mark.parametrize("in_bottleneck", [False, True])
def test_a_folder_of_hugging_face_comes_with_its_options_classes_and_shards(in_bottleneck, tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    theirs = shaken(real.make(
        "huggingface", "resnet50", 3, depths=[1, 2, 2, 1], hidden_sizes=[32, 64, 96, 128], embedding_size=8,
        downsample_in_bottleneck=in_bottleneck, id2label={0: "cat", 1: "dog", 2: "eel"},
    ))  # fmt: skip
    theirs.save_pretrained(tmp_path / "hub", max_shard_size="100kB")
    (tmp_path / "hub" / "preprocessor_config.json").write_text(
        '{"image_mean": [0.5, 0.4, 0.3], "image_std": [1, 1, 1]}'
    )
    variant = {"repeats": (1, 2, 2, 1), "widths": (8, 16, 24, 32)}
    report = import_weights(tmp_path / "hub", "resnet50", tmp_path / "ours.safetensors", variant=variant)
    trained = load_model(tmp_path / "ours.safetensors")
    assert report.source == "huggingface" and trained.classes == ("cat", "dog", "eel")
    assert trained.variant["stride_on"] == ("1x1" if in_bottleneck else "3x3")
    assert trained.normalize.mean == (0.5, 0.4, 0.3)
    assert difference(trained.model, theirs, 64) <= 1e-5


def test_the_repository_of_akamaster_takes_what_is_exported(tmp_path):
    torch = pytest.importorskip("torch")
    if "AKAMASTER" not in os.environ:
        pytest.skip("AKAMASTER names a folder with the resnet.py of akamaster/pytorch_resnet_cifar10")
    make = real.akamaster(Path(os.environ["AKAMASTER"]))
    for name in ("resnet20_cifar", "resnet32_cifar", "resnet110_cifar"):
        theirs = make(name, 10)
        ours = oracle.shake(build(name, **variant_for("akamaster", name)))
        export_torch(ours, tmp_path / "w.safetensors", "akamaster")
        state = importlib.import_module("safetensors.torch").load_file(tmp_path / "w.safetensors")
        counters = {key: t for key, t in theirs.state_dict().items() if key.endswith("num_batches_tracked")}
        theirs.load_state_dict({**state, **counters}, strict=True)
        assert difference(ours, theirs, 32) <= 1e-5
        torch.save(
            {"state_dict": {f"module.{k}": t for k, t in theirs.state_dict().items()}}, tmp_path / "w.th"
        )
        import_weights(tmp_path / "w.th", name, tmp_path / "ours.safetensors")
        assert difference(load_model(tmp_path / "ours.safetensors").model, theirs, 32) <= 1e-5

"""Weights under PyTorch's names: read back they are the same bits, and PyTorch's layers take them."""

from __future__ import annotations

import json
import os
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

from minires import Tensor
from minires.cli import main
from minires.data import Normalize
from minires.debug.trace_page import trace
from minires.errors import ConfigError
from minires.inspect import plot, plot_tape
from minires.models import build
from minires.train import Config, Trained, save_model
from minires.weights import load_pretrained, variant_for
from minires.weights.onnx import export_onnx
from minires.weights.torch.export import export_torch

MODELS = [
    ("torchvision", "resnet18", {"repeats": (1, 1, 1, 1), "widths": (4, 8, 12, 16)}),
    ("torchvision", "resnet50", {"repeats": (1, 2, 1, 1), "widths": (4, 8, 12, 16)}),
    ("torchvision", "densenet121", {"blocks": (2, 1, 1, 2)}),
    ("torchvision", "vgg11_bn", {"size": 64, "widths": (4, 4, 4, 4, 4), "hidden": 8}),
    ("akamaster", "resnet20_cifar", {}),
    ("timm", "se_resnet50", {"repeats": (1, 1, 1, 1), "widths": (16, 16, 16, 16)}),
    ("timm", "vgg11", {"size": 64, "widths": (4, 4, 4, 4, 4), "hidden": 8}),
    ("timm", "preresnet50", {"repeats": (1, 2, 1, 1), "widths": (4, 8, 12, 16)}),
    ("timm", "preresnet18", {"repeats": (1, 1, 1, 1), "widths": (4, 8, 12, 16)}),
]


@pytest.mark.parametrize(("source", "name", "options"), MODELS)
def test_what_goes_out_comes_in_again(tmp_path, source, name, options):
    options = {**variant_for(source, name), **options}
    model, other = (build(name, classes=7, seed=seed, **options) for seed in (0, 1))
    for array in (array for _, array in model.named_buffers()):
        array += np.random.default_rng(0).random(array.shape, np.float32)
    written = export_torch(model, tmp_path / "theirs.safetensors", source)
    assert written == len(model.state_dict()) == len(load_file(tmp_path / "theirs.safetensors"))
    load_pretrained(other, tmp_path / "theirs.safetensors", source=source)
    theirs = other.state_dict()
    assert all(np.array_equal(array, theirs[key]) for key, array in model.state_dict().items())


def test_the_files_of_a_run_stay(tmp_path):
    model = build("resnet18", classes=2, repeats=(1, 1, 1, 1), widths=(2, 2, 2, 2))
    (tmp_path / "config.json").write_text(json.dumps(Config().to_dict()))
    for name in ("model.safetensors", "checkpoint-00000001.safetensors"):
        with pytest.raises(ConfigError, match=f"{name} is a file of the run in .*: out must be another"):
            export_torch(model, tmp_path / name)
        assert not (tmp_path / name).exists()
    export_torch(model, tmp_path / "theirs.safetensors")


def test_pytorch_computes_the_same_with_them(tmp_path):
    torch = pytest.importorskip("torch")
    model = build("resnet18", classes=5, repeats=(1, 1, 1, 1), widths=(4, 8, 12, 16))
    export_torch(model, tmp_path / "theirs.safetensors")
    tensors = {key: torch.tensor(array) for key, array in load_file(tmp_path / "theirs.safetensors").items()}
    assert tensors["conv1.weight"].shape == (4, 3, 7, 7) and tensors["fc.weight"].shape == (5, 16)
    x = np.random.default_rng(0).standard_normal((2, 9, 9, 3)).astype(np.float32)
    ours = model.conv1(Tensor(x)).numpy()
    theirs = torch.nn.functional.conv2d(
        torch.tensor(x).permute(0, 3, 1, 2), tensors["conv1.weight"], stride=2, padding=3
    )
    np.testing.assert_allclose(ours, theirs.permute(0, 2, 3, 1).numpy(), rtol=1e-4, atol=1e-5)


def test_dense_layers_that_are_convolutions_there_are_written_as_convolutions(tmp_path):
    def shapes(name, **options):
        model = build(name, classes=7, **{**variant_for("timm", name), **options})
        export_torch(model, tmp_path / "w.safetensors", "timm")
        return {key: array.shape for key, array in load_file(tmp_path / "w.safetensors").items()}

    gates = shapes("se_resnet50", repeats=(1, 1, 1, 1), widths=(16, 16, 16, 16))
    assert gates["layer1.0.se.fc1.weight"] == (4, 64, 1, 1) and gates["layer1.0.se.fc1.bias"] == (4,)
    assert gates["layer1.0.se.fc2.weight"] == (64, 4, 1, 1) and gates["fc.weight"] == (7, 64)
    dense = shapes("vgg11", size=64, widths=(4, 4, 4, 4, 5), hidden=8)
    assert dense["pre_logits.fc1.weight"] == (8, 5, 2, 2) and dense["pre_logits.fc2.weight"] == (8, 8, 1, 1)
    assert dense["head.fc.weight"] == (7, 8)
    assert shapes("preresnet18", repeats=(1, 1, 1, 1), widths=(4, 4, 4, 8))["head.fc.weight"] == (7, 8, 1, 1)


@pytest.mark.parametrize("ending", [".pth", ".pt", ".bin", ".PTH"])
def test_the_ending_says_what_is_written(tmp_path, ending):
    torch = pytest.importorskip("torch")
    model = build("resnet18", classes=5, repeats=(1, 1, 1, 1), widths=(4, 8, 12, 16))
    export_torch(model, tmp_path / f"w{ending}")
    export_torch(model, tmp_path / "w.safetensors")
    found = torch.load(tmp_path / f"w{ending}", weights_only=True)
    same = load_file(tmp_path / "w.safetensors")
    assert found.keys() == same.keys() and all((found[key].numpy() == same[key]).all() for key in same)


@pytest.mark.parametrize("name", ["w.h5", "w", "w.onnx", "w.ckpt"])
def test_an_ending_that_says_something_else_is_refused(tmp_path, name):
    with pytest.raises(ConfigError, match=r"is written as .safetensors, .pth, .pt or .bin"):
        export_torch(build("resnet20_cifar"), tmp_path / name, "akamaster")
    assert not list(tmp_path.iterdir())


def test_without_pytorch_a_pickle_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ConfigError, match="pip install torch; a .safetensors file needs none"):
        export_torch(build("resnet20_cifar"), tmp_path / "w.pth", "akamaster")
    assert not list(tmp_path.iterdir())


def trained(name, **variant):
    model = build(name, **variant)
    classes = tuple(map(str, range(10)))
    return Trained(model, name, variant, classes, Normalize.imagenet(), (32, 32), "none")


def test_a_network_that_would_compute_something_else_there_is_not_written(tmp_path):
    small = {"classes": 10, "repeats": (1, 1, 1, 1), "widths": (4, 8, 12, 16)}
    one = trained("resnet50", **small)
    with pytest.raises(ConfigError, match="this resnet50 has stride_on='1x1', that of torchvision '3x3'"):
        export_torch(one, tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match="this resnet20_cifar has pad='after', that of akamaster 'both'"):
        export_torch(trained("resnet20_cifar"), tmp_path / "w.safetensors", "akamaster")
    gates = trained("se_resnet50", placement="pre", stride_on="3x3", **small | {"widths": (16,) * 4})
    with pytest.raises(ConfigError, match="has placement='pre', that of timm 'standard'"):
        export_torch(gates, tmp_path / "w.safetensors", "timm")
    with pytest.raises(ConfigError, match="bn_conv1 has eps=0.001, .* of torchvision have 1e-05"):
        export_torch(build("resnet18", bn_eps=1e-3, **small), tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match="torchvision has no network that is our resnet20_cifar"):
        export_torch(trained("resnet20_cifar"), tmp_path / "w.safetensors")
    assert not list(tmp_path.iterdir())
    assert export_torch(trained("resnet20_cifar", pad="both"), tmp_path / "w.safetensors", "akamaster") == 97


def test_the_command_writes_what_its_endings_say_or_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_model("m.safetensors", trained("resnet20_cifar", pad="both"))
    for option, name, words in (
        ("--torch", "w.onnx", "--torch is w.onnx, but a file for PyTorch is written as .safetensors, .pth"),
        ("--onnx", "w.pth", "--onnx is w.pth, but a file for ONNX is written as .onnx"),
    ):
        good = ["--torch", "good.safetensors", "--names", "akamaster"] if option == "--onnx" else []
        assert main(["export", "m.safetensors", option, name, *good]) == 2
        assert words in capsys.readouterr().err
    assert os.listdir() == ["m.safetensors"]
    assert main(["export", "m.safetensors", "--torch", "good.safetensors", "--names", "akamaster"]) == 0
    assert load_file("good.safetensors")["linear.weight"].shape == (10, 64)


def test_a_source_that_cannot_have_them(tmp_path):
    with pytest.raises(ConfigError, match="source must be one of 'timm', 'akamaster', 'torchvision', not"):
        export_torch(build("resnet20_cifar"), tmp_path / "out.safetensors", "tensorflow")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["x.png", "x", "x.svg.gz"])
def test_a_drawing_a_page_and_onnx_are_written_under_their_own_endings_only(tmp_path, name):
    model, x = build("resnet20_cifar", initializer="zeros"), np.zeros((32, 32, 3), np.float32)
    with pytest.raises(ConfigError, match=f"out is .*{name}, but a drawing is written as .svg"):
        plot(model, (32, 32, 3), tmp_path / name)
    with pytest.raises(ConfigError, match="a drawing is written as .svg"):
        plot_tape(model(Tensor(x[None])), tmp_path / name)
    with pytest.raises(ConfigError, match=f"out is .*{name}, but a page is written as .html or .htm"):
        trace(model, x, 0, out=tmp_path / name)
    pytest.importorskip("onnx")
    with pytest.raises(ConfigError, match=f"path is .*{name}, but a file of ONNX is written as .onnx"):
        export_onnx(model, tmp_path / name, (32, 32, 3))
    assert not list(tmp_path.iterdir())


def test_the_commands_refuse_other_endings_before_they_begin(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for command, words in {
        ("plot", "resnet18", "--out", "x.png"): "--out is x.png, but a drawing is written as .svg",
        ("trace", "none", "--html", "x.png"): "--html is x.png, but a page is written as .html or .htm",
    }.items():
        assert main(list(command)) == 2
        assert words in capsys.readouterr().err
    assert not os.listdir()

"""Weights of PyTorch's users in our models: the same outputs as theirs, and nothing loaded that does not fit.

pytorchcv is the real library. torchvision, timm and Cadene's models are written here once more, with the
names of their layers, from their published code.
"""

import os
import re
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import oracle
import pytest
from weights.in_this_process import in_this_process

from minires import data, limits, models
from minires.data import cifar
from minires.errors import CheckpointError, ConfigError, MiniresError
from minires.tensor import Tensor, no_grad
from minires.train import load_model, predict
from minires.weights import import_weights, load_pretrained, names_of, read, recognise, variant_for

torch = pytest.importorskip("torch")


@pytest.fixture(autouse=True)
def _pickles_in_this_process(monkeypatch):
    """Another process takes two seconds to import PyTorch; test_torch_files.py has that."""
    monkeypatch.setattr(limits, "apart", in_this_process)


nn, F = torch.nn, torch.nn.functional

# ------------------------------------------------------------------------------- others' networks, in PyTorch


class Gate(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(channels, channels // 16, 1), nn.Conv2d(channels // 16, channels, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True)))))


class Block(nn.Module):
    """A basic block, a bottleneck, or one of SENet-154; ``gate`` is the name that its gate has."""

    def __init__(self, inputs, n, stride, o):
        super().__init__()
        inner = o.groups * (n * o.base // 64)
        table = {
            "basic": [(n, 3, stride, 1), (n, 3, 1, 1)],
            "v1": [(inner, 1, stride, 1), (inner, 3, 1, o.groups), (4 * n, 1, 1, 1)],
            "v1.5": [(inner, 1, 1, 1), (inner, 3, stride, o.groups), (4 * n, 1, 1, 1)],
            "senet": [(2 * n, 1, 1, 1), (4 * n, 3, stride, o.groups), (4 * n, 1, 1, 1)],
        }[o.kind]
        self.count, self.out, self.gate, channels = len(table), table[-1][0], o.gate, inputs
        for i, (outputs, kernel, step, groups) in enumerate(table, 1):
            conv = nn.Conv2d(channels, outputs, kernel, step, kernel // 2, groups=groups, bias=False)
            self.add_module(f"conv{i}", conv)
            self.add_module(f"bn{i}", nn.BatchNorm2d(outputs))
            channels = outputs
        self.stride, self.more, self.pads = stride, self.out - inputs, o.pads
        if not o.pads and (stride > 1 or inputs != self.out):
            kernel = 3 if o.kind == "senet" and stride > 1 else 1
            conv = nn.Conv2d(inputs, self.out, kernel, stride, kernel // 2, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(self.out))
        if o.gate:
            self.add_module(o.gate, Gate(self.out))

    def forward(self, x):
        y = x
        for i in range(1, self.count + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            y = F.relu(y) if i < self.count else y
        if self.gate:
            y = getattr(self, self.gate)(y)
        if hasattr(self, "downsample"):
            x = self.downsample(x)
        elif self.pads and self.more:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.more // 2, self.more // 2))
        return F.relu(y + x)


class Residual(nn.Module):
    """A ResNet, ResNeXt or SENet with the names of torchvision, timm, cadene or akamaster."""

    def __init__(self, source, repeats, widths, *, stem=None, classes=10, **options):
        super().__init__()
        o = SimpleNamespace(**{"kind": "v1.5", "groups": 1, "base": 64, **options})
        o.gate = {"timm": "se", "cadene": "se_module"}.get(source)
        o.pads = source == "akamaster"
        channels = stem or widths[0]
        if o.pads:
            convs = [nn.Conv2d(3, channels, 3, 1, 1, bias=False)]
        elif o.kind == "senet":
            outs = [3, widths[0], widths[0], channels]
            convs = [nn.Conv2d(outs[i], outs[i + 1], 3, 2 - (i > 0), 1, bias=False) for i in range(3)]
        else:
            convs = [nn.Conv2d(3, channels, 7, 2, 3, bias=False)]
        place = self
        if source == "cadene":
            place = self.layer0 = nn.Module()
        self.stem, self.source = [], source
        for i, conv in enumerate(convs, 1):
            place.add_module(f"conv{i}", conv)
            place.add_module(f"bn{i}", nn.BatchNorm2d(conv.out_channels))
            self.stem.append((conv, getattr(place, f"bn{i}")))
        for stage, (n, count) in enumerate(zip(widths, repeats, strict=True), 1):
            blocks = []
            for i in range(count):
                blocks.append(Block(channels, n, 2 if i == 0 and stage > 1 else 1, o))
                channels = blocks[-1].out
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self.head = {"akamaster": "linear", "cadene": "last_linear"}.get(source, "fc")
        self.stages = len(widths)
        self.add_module(self.head, nn.Linear(channels, classes))

    def forward(self, x):
        for conv, bn in self.stem:
            x = F.relu(bn(conv(x)))
        if self.source == "cadene":
            x = F.max_pool2d(x, 3, 2, ceil_mode=True)
        elif self.source != "akamaster":
            x = F.max_pool2d(x, 3, 2, 1)
        for stage in range(1, self.stages + 1):
            x = getattr(self, f"layer{stage}")(x)
        return getattr(self, self.head)(x.mean((2, 3)))


class HuggingFace(Residual):
    """torchvision's ResNet under the names of transformers."""

    def state_dict(self):
        rules = {
            r"^conv1": "resnet.embedder.embedder.convolution",
            r"^bn1": "resnet.embedder.embedder.normalization",
            r"^fc": "classifier.1", r"downsample\.0": "shortcut.convolution",
            r"downsample\.1": "shortcut.normalization",
        }  # fmt: skip
        found = {}
        for name, tensor in super().state_dict().items():
            for pattern, there in rules.items():
                name = re.sub(pattern, there, name)
            if layer := re.match(r"layer(\d)\.(\d+)\.(.*)", name):
                stage, block, rest = layer.groups()
                if part := re.match(r"(conv|bn)(\d)(.*)", rest):
                    kind = {"conv": "convolution", "bn": "normalization"}[part[1]]
                    rest = f"layer.{int(part[2]) - 1}.{kind}{part[3]}"
                name = f"resnet.encoder.stages.{int(stage) - 1}.layers.{block}.{rest}"
            found[name] = tensor
        return found


class PreActivation(nn.Module):
    """The resnetv2 of timm: basic or with bottlenecks, a stem without batch norm, a convolution as head."""

    def __init__(self, repeats, widths, *, basic, classes=10):
        super().__init__()
        channels = widths[0]
        self.stem = nn.Module()
        self.stem.conv = nn.Conv2d(3, channels, 7, 2, 3, bias=False)
        self.stages = nn.ModuleList()
        for stage, (n, count) in enumerate(zip(widths, repeats, strict=True)):
            self.stages.append(nn.Module())
            self.stages[-1].blocks = nn.ModuleList()
            for i in range(count):
                stride, block = 2 if stage and i == 0 else 1, nn.Module()
                table = [(n, 3, stride), (n, 3, 1)] if basic else [(n, 1, 1), (n, 3, stride), (4 * n, 1, 1)]
                inputs = channels
                for k, (out, kernel, step) in enumerate(table, 1):
                    block.add_module(f"norm{k}", nn.BatchNorm2d(inputs))
                    conv = nn.Conv2d(inputs, out, kernel, step, kernel // 2, bias=False)
                    block.add_module(f"conv{k}", conv)
                    inputs = out
                if i == 0 and (stride > 1 or channels != inputs):
                    block.downsample = nn.Module()
                    block.downsample.conv = nn.Conv2d(channels, inputs, 1, stride, bias=False)
                channels = inputs
                self.stages[-1].blocks.append(block)
        self.norm, self.head = nn.BatchNorm2d(channels), nn.Module()
        self.head.fc = nn.Conv2d(channels, classes, 1)

    def forward(self, x):
        x = F.max_pool2d(self.stem.conv(x), 3, 2, 1)
        for block in (block for stage in self.stages for block in stage.blocks):
            y = F.relu(block.norm1(x))
            shortcut = block.downsample.conv(y) if hasattr(block, "downsample") else x
            y = block.conv2(F.relu(block.norm2(block.conv1(y))))
            if hasattr(block, "conv3"):
                y = block.conv3(F.relu(block.norm3(y)))
            x = y + shortcut
        return self.head.fc(F.relu(self.norm(x)).mean((2, 3), keepdim=True)).flatten(1)


class VGG(nn.Module):
    """torchvision's, or timm's with its dense layers as convolutions."""

    def __init__(self, source, counts, widths, *, bn, hidden, side, classes=10):
        super().__init__()
        layers, channels = [], 3
        for count, width in zip(counts, widths, strict=True):
            for _ in range(count):
                layers += [nn.Conv2d(channels, width, 3, padding=1), *([nn.BatchNorm2d(width)] if bn else [])]
                layers.append(nn.ReLU())
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features, self.source = nn.Sequential(*layers), source
        if source == "torchvision":
            dense = [nn.Linear(channels * side**2, hidden), nn.Linear(hidden, hidden)]
            quiet = [nn.ReLU(), nn.Dropout()]
            self.classifier = nn.Sequential(dense[0], *quiet, dense[1], *quiet, nn.Linear(hidden, classes))
        else:
            self.pre_logits, self.head = nn.Module(), nn.Module()
            self.pre_logits.fc1 = nn.Conv2d(channels, hidden, side)
            self.pre_logits.fc2 = nn.Conv2d(hidden, hidden, 1)
            self.head.fc = nn.Linear(hidden, classes)

    def forward(self, x):
        x = self.features(x)
        if self.source == "torchvision":
            return self.classifier(x.flatten(1))
        x = F.relu(self.pre_logits.fc2(F.relu(self.pre_logits.fc1(x))))
        return self.head.fc(x.flatten(1))


class DenseNet(nn.Module):
    """torchvision's."""

    def __init__(self, repeats, growth, first, *, classes=10):
        super().__init__()

        def unit(number, inputs, outputs, kernel):
            conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
            return {
                f"norm{number}": nn.BatchNorm2d(inputs),
                f"relu{number}": nn.ReLU(),
                f"conv{number}": conv,
            }

        self.features = nn.Module()
        self.features.conv0 = nn.Conv2d(3, first, 7, 2, 3, bias=False)
        self.features.norm0 = nn.BatchNorm2d(first)
        channels, self.repeats = first, repeats
        for stage, count in enumerate(repeats, 1):
            block = nn.Module()
            for i in range(count):
                layer = nn.Sequential()
                parts = unit(1, channels, 4 * growth, 1) | unit(2, 4 * growth, growth, 3)
                for name, part in parts.items():
                    layer.add_module(name, part)
                block.add_module(f"denselayer{i + 1}", layer)
                channels += growth
            self.features.add_module(f"denseblock{stage}", block)
            if stage < len(repeats):
                transition = nn.Sequential()
                for name, part in unit("", channels, channels // 2, 1).items():
                    transition.add_module(name, part)
                transition.add_module("pool", nn.AvgPool2d(2))
                self.features.add_module(f"transition{stage}", transition)
                channels //= 2
        self.features.norm5 = nn.BatchNorm2d(channels)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.features.norm0(self.features.conv0(x))), 3, 2, 1)
        for stage in range(1, len(self.repeats) + 1):
            for layer in getattr(self.features, f"denseblock{stage}").children():
                x = torch.cat([x, layer(x)], 1)
            if stage < len(self.repeats):
                x = getattr(self.features, f"transition{stage}")(x)
        return self.classifier(F.relu(self.features.norm5(x)).mean((2, 3)))


def pytorchcv(module, make, /, *args, any_size=True, **options):
    found = pytest.importorskip(f"pytorchcv.models.{module}")
    model = getattr(found, make)(*args, **{"num_classes": 10, **options})
    if any_size:
        model.features.final_pool = nn.AdaptiveAvgPool2d(1)  # theirs is for one size
    return model


# ------------------------------------------------------------------------------------- the same outputs

CHANNELS = [[64, 64], [128], [192], [256, 256]]  # bottlenecks of 16, 32, 48, 64
SMALL = {"repeats": (2, 1, 1, 2), "widths": (16, 32, 48, 64)}
REPEATS = {50: (3, 4, 6, 3)}
WIDE = (64, 128, 256, 512)
VGG_WIDTHS = (8, 12, 16, 20, 24)
NARROW = {"widths": VGG_WIDTHS, "hidden": 28, "size": 64}

# name of a test: our model, options on top of variant_for's, source, the other network, size of pictures
SMALL_NETWORKS = {
    "akamaster resnet20": (
        "resnet20_cifar", {}, "akamaster",
        partial(Residual, "akamaster", (3, 3, 3), (16, 32, 64), kind="basic"), 32,
    ),
    "torchvision resnet18": (
        "resnet18", SMALL, "torchvision", partial(Residual, "torchvision", **SMALL, kind="basic"), 49
    ),
    "torchvision resnet50": ("resnet50", SMALL, "torchvision", partial(Residual, "torchvision", **SMALL), 49),
    "torchvision resnet101, blocks b1, b2": (
        "resnet101", {"repeats": (2, 4, 7, 1), "widths": (8, 8, 8, 8)}, "torchvision",
        partial(Residual, "torchvision", (2, 4, 7, 1), (8, 8, 8, 8)), 49,
    ),
    "torchvision resnext50": (
        "resnext50_32x4d", {**SMALL, "cardinality": 4, "width": 16}, "torchvision",
        partial(Residual, "torchvision", **SMALL, stem=64, groups=4, base=16), 49,
    ),
    "torchvision vgg11": (
        "vgg11", NARROW, "torchvision",
        partial(VGG, "torchvision", (1, 1, 2, 2, 2), VGG_WIDTHS, bn=False, hidden=28, side=2), 64,
    ),
    "torchvision vgg16_bn": (
        "vgg16_bn", NARROW, "torchvision",
        partial(VGG, "torchvision", (2, 2, 3, 3, 3), VGG_WIDTHS, bn=True, hidden=28, side=2), 64,
    ),
    "timm vgg13": (
        "vgg13", NARROW, "timm", partial(VGG, "timm", (2,) * 5, VGG_WIDTHS, bn=False, hidden=28, side=2), 64
    ),
    "torchvision densenet121": (
        "densenet121", {"blocks": (2, 3, 1, 2), "growth": 8}, "torchvision",
        partial(DenseNet, (2, 3, 1, 2), 8, 16), 64,
    ),
    "huggingface resnet18": (
        "resnet18", SMALL, "huggingface", partial(HuggingFace, "torchvision", **SMALL, kind="basic"), 49
    ),
    "huggingface resnet50": (
        "resnet50", SMALL, "huggingface", partial(HuggingFace, "torchvision", **SMALL), 49
    ),
    "timm resnetv2_18": ("preresnet18", SMALL, "timm", partial(PreActivation, **SMALL, basic=True), 49),
    "timm resnetv2_50": ("preresnet50", SMALL, "timm", partial(PreActivation, **SMALL, basic=False), 49),
    "timm se_resnet50": ("se_resnet50", SMALL, "timm", partial(Residual, "timm", **SMALL), 49),
    "cadene se_resnet50": (
        "se_resnet50", SMALL, "cadene", partial(Residual, "cadene", **SMALL, kind="v1"), 56
    ),
    "cadene se_resnext50": (
        "se_resnext50_32x4d", {**SMALL, "cardinality": 4, "width": 16}, "cadene",
        partial(Residual, "cadene", **SMALL, groups=4, base=16), 56,
    ),
    "cadene senet154": (
        "senet154", {**SMALL, "cardinality": 8, "width": 32}, "cadene",
        partial(Residual, "cadene", **SMALL, kind="senet", stem=32, groups=8), 56,
    ),
    "pytorchcv resnet18": ("resnet18", {}, "pytorchcv", partial(pytorchcv, "resnet", "resnet18"), 49),
    "pytorchcv resnet20": (
        "resnet20_cifar", {}, "pytorchcv", partial(pytorchcv, "resnet_cifar", "resnet20_cifar10"), 32
    ),
    "pytorchcv preresnet164": (
        "preresnet164_cifar", {"repeats": (2, 2, 2)}, "pytorchcv",
        partial(pytorchcv, "preresnet_cifar", "CIFARPreResNet", [[64] * 2, [128] * 2, [256] * 2], 16, True),
        16,
    ),
    "pytorchcv resnext50": (
        "resnext50_32x4d", {**SMALL, "cardinality": 4, "width": 16}, "pytorchcv",
        partial(pytorchcv, "resnext", "ResNeXt", CHANNELS, 64, 4, 16), 49,
    ),
    "pytorchcv se_resnet50": (
        "se_resnet50", SMALL, "pytorchcv",
        partial(pytorchcv, "seresnet", "SEResNet", CHANNELS, 16, bottleneck=True, conv1_stride=True), 64,
    ),
    "pytorchcv se_resnext50": (
        "se_resnext50_32x4d", {**SMALL, "cardinality": 4, "width": 16}, "pytorchcv",
        partial(pytorchcv, "seresnext", "SEResNeXt", CHANNELS, 16, 4, 16), 64,
    ),
    "pytorchcv senet154": (
        "senet154", {**SMALL, "cardinality": 2, "width": 16}, "pytorchcv",
        partial(pytorchcv, "senet", "SENet", CHANNELS, 32, 2, 16), 64,
    ),
    "pytorchcv densenet40": (
        "densenet40_k12_cifar", {}, "pytorchcv",
        partial(pytorchcv, "densenet_cifar", "densenet40_k12_cifar10"), 16,
    ),
    "pytorchcv densenet_bc100": (
        "densenet_bc100_k12_cifar", {}, "pytorchcv",
        partial(pytorchcv, "densenet_cifar", "densenet100_k12_bc_cifar10"), 16,
    ),
    "pytorchcv vgg16_bn": (
        "vgg16_bn", {"widths": (2, 3, 4, 5, 6)}, "pytorchcv",
        partial(
            pytorchcv, "vgg", "VGG", [[n] * c for n, c in zip((2, 3, 4, 5, 6), (2, 2, 3, 3, 3), strict=True)],
            use_bn=True, any_size=False,
        ), 224,
    ),
}  # fmt: skip
FULL_NETWORKS = {
    "torchvision resnet50": (
        "resnet50", {}, "torchvision", partial(Residual, "torchvision", REPEATS[50], WIDE), 64
    ),
    "torchvision resnext50": (
        "resnext50_32x4d", {}, "torchvision",
        partial(Residual, "torchvision", REPEATS[50], WIDE, groups=32, base=4), 64,
    ),
    "torchvision vgg16, its first dense layer 64 wide": (
        "vgg16", {"hidden": 64}, "torchvision",
        partial(VGG, "torchvision", (2, 2, 3, 3, 3), (*WIDE, 512), bn=False, hidden=64, side=7), 224,
    ),
    "torchvision densenet121": (
        "densenet121", {}, "torchvision", partial(DenseNet, (6, 12, 24, 16), 32, 64), 64
    ),
    "timm se_resnext50": (
        "se_resnext50_32x4d", {}, "timm", partial(Residual, "timm", REPEATS[50], WIDE, groups=32, base=4), 64
    ),
    "cadene se_resnet50": (
        "se_resnet50", {}, "cadene", partial(Residual, "cadene", REPEATS[50], WIDE, kind="v1"), 64
    ),
    "pytorchcv resnet50": ("resnet50", {}, "pytorchcv", partial(pytorchcv, "resnet", "resnet50"), 64),
    "pytorchcv se_resnet50": (
        "se_resnet50", {}, "pytorchcv", partial(pytorchcv, "seresnet", "seresnet50"), 64
    ),
    "pytorchcv densenet121": (
        "densenet121", {}, "pytorchcv", partial(pytorchcv, "densenet", "densenet121"), 64
    ),
    "pytorchcv bn_inception": (
        "bn_inception", {}, "pytorchcv", partial(pytorchcv, "bninception", "bninception"), 64
    ),
}  # fmt: skip


def shaken(model, seed=0):
    """Random batch norms and biases, so that no two of them could be exchanged unseen."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor, low, high in (
                    (module.weight, 0.5, 1.0), (module.bias, -0.2, 0.2),
                    (module.running_mean, -0.1, 0.1), (module.running_var, 0.5, 1.5),
                ):  # fmt: skip
                    tensor.uniform_(low, high, generator=draw)
            elif getattr(module, "bias", None) is not None:
                module.bias.uniform_(-0.2, 0.2, generator=draw)
    return model.eval()


def distance(ours, theirs, size):
    """The relative distance of the outputs for two pictures."""
    x = np.random.default_rng(1).standard_normal((2, size, size, 3)).astype(np.float32)
    with torch.no_grad(), no_grad(), oracle.one_thread():
        expected = theirs(torch.tensor(x.transpose(0, 3, 1, 2).copy())).numpy()
        found = ours.eval()(Tensor(x)).numpy()
    assert expected.shape == found.shape == (2, 10)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("case", SMALL_NETWORKS)
def test_small_networks_give_the_same_outputs(case, tmp_path):
    name, options, source, make, size = SMALL_NETWORKS[case]
    theirs = shaken(make())
    torch.save({"epoch": 3, "state_dict": theirs.state_dict()}, tmp_path / "weights.pth")
    ours = models.build(name, classes=10, **{**variant_for(source, name), **options})
    report = load_pretrained(ours, tmp_path / "weights.pth")
    assert report.source == source
    assert report.tensors == len(ours.state_dict())
    assert distance(ours, theirs, size) <= 1e-4


@pytest.mark.parametrize("case", FULL_NETWORKS)
def test_full_networks_give_the_same_outputs_from_our_own_file(case, tmp_path):
    name, options, source, make, size = FULL_NETWORKS[case]
    theirs = shaken(make())
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    classes = tuple("abcdefghij")
    report = import_weights(
        tmp_path / "weights.pth", name, tmp_path / "model.safetensors", classes=classes, variant=options
    )
    assert report.source == source
    trained = load_model(tmp_path)
    assert trained.classes == classes
    assert trained.variant == {**variant_for(source, name), **options}
    assert distance(trained.model, theirs, size) <= 1e-4


PYTORCHCV = {
    # module: {our model: its function}
    "vgg": {**{f"vgg{n}": f"vgg{n}" for n in (11, 19)}, **{f"vgg{n}_bn": f"bn_vgg{n}b" for n in (13, 16)}},
    "resnet": {f"resnet{n}": f"resnet{n}" for n in (18, 34, 50, 101, 152, 200)},
    "resnet_cifar": {f"resnet{n}_cifar": f"resnet{n}_cifar10" for n in (20, 56, 110)},
    "preresnet_cifar": {"preresnet164_cifar": "preresnet164bn_cifar10"},
    "resnext": {f"resnext{kind}": f"resnext{kind}" for kind in ("50_32x4d", "101_32x4d", "101_64x4d")},
    "resnext_cifar": {f"resnext29_{kind}_cifar": f"resnext29_{kind}_cifar10" for kind in ("16x64d", "32x4d")},
    "seresnet": {f"se_resnet{n}": f"seresnet{n}" for n in (50, 101, 152)},
    "seresnet_cifar": {f"se_resnet{n}_cifar": f"seresnet{n}_cifar10" for n in (56, 110)},
    "seresnext": {f"se_resnext{kind}": f"seresnext{kind}" for kind in ("50_32x4d", "101_32x4d")},
    "senet": {"senet154": "senet154"},
    "densenet": {f"densenet{n}": f"densenet{n}" for n in (121, 161, 169, 201)},
    "densenet_cifar": {
        **{f"densenet{kind}_cifar": f"densenet{kind}_cifar10" for kind in ("40_k12", "100_k12", "100_k24")},
        **{
            f"densenet_bc{kind}_cifar": f"densenet{kind}_bc_cifar10"
            for kind in ("100_k12", "250_k24", "190_k40")
        },
    },
    "bninception": {"bn_inception": "bninception"},
}


@pytest.mark.parametrize("module", PYTORCHCV)
def test_every_network_of_pytorchcv_has_these_names_and_shapes(module):
    for ours, make in PYTORCHCV[module].items():
        model = models.build(ours, classes=10, initializer="zeros", **variant_for("pytorchcv", ours))
        with torch.device("meta"):  # no numbers
            theirs = pytorchcv(module, make, any_size=False).state_dict()
        shapes = {name: tuple(t.shape) for name, t in theirs.items() if "num_batches" not in name}
        assert recognise(shapes) == "pytorchcv"
        names, state = names_of("pytorchcv", model), model.state_dict()
        assert {names[name]: array.size for name, array in state.items()} == {
            name: int(np.prod(shape)) for name, shape in shapes.items()
        }, ours


def test_names_have_no_doubles_and_tell_their_source():
    for source, name in (
        ("torchvision", "resnet152"), ("torchvision", "densenet201"), ("cadene", "senet154"),
        ("timm", "se_resnet152"), ("akamaster", "resnet110_cifar"),
    ):  # fmt: skip
        model = models.build(name, initializer="zeros", **variant_for(source, name))
        found = names_of(source, model)
        assert len(set(found.values())) == len(found) == len(model.state_dict())
        assert recognise(found.values()) == source


# -------------------------------------------------------------------------------------- trained weights


@pytest.fixture(scope="module")
def resnet20():
    """The released file of akamaster's ResNet-20, and 500 test pictures of CIFAR-10, of all classes."""
    if "MINIRES_DATA" not in os.environ:
        pytest.skip("needs trained weights and CIFAR-10: set MINIRES_DATA")
    root, found = Path(os.environ["MINIRES_DATA"]), data.find("cifar10")
    places = [folder / "resnet20-12fca82f.th" for folder in (root / "weights", root.parent / "weights")]
    weights = next((place for place in places if place.is_file()), None)
    if found is None or not (found / "cifar10_jpeg_test.zip").is_file() or weights is None:
        pytest.skip("needs cifar10/cifar10_jpeg_test.zip and weights/resnet20-12fca82f.th at MINIRES_DATA")
    entries = cifar.archives.in_zip(found / "cifar10_jpeg_test.zip")[::20]
    labels = np.array([cifar.CLASSES.index(entry.parts[1]) for entry in entries])
    return weights, np.stack([data.decode(entry.read()) for entry in entries]), labels


def test_a_released_resnet20_sees_as_in_pytorch(resnet20, tmp_path):
    path, pictures, labels = resnet20
    report = import_weights(path, "resnet20_cifar", tmp_path / "model.safetensors")
    assert (report.source, report.numbers) == ("akamaster", 271_098)
    trained = load_model(tmp_path)
    assert (trained.classes, trained.variant, trained.size) == (cifar.CLASSES, {"pad": "both"}, (32, 32))
    probabilities = predict(trained.model, pictures, trained.normalize)
    theirs = Residual("akamaster", (3, 3, 3), (16, 32, 64), kind="basic").eval()
    saved = torch.load(path, weights_only=True, map_location="cpu")["state_dict"]
    theirs.load_state_dict({name.removeprefix("module."): value for name, value in saved.items()})
    x = (pictures / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    with torch.no_grad():
        expected = theirs(torch.tensor(x.transpose(0, 3, 1, 2).astype(np.float32).copy())).softmax(1).numpy()
    np.testing.assert_allclose(probabilities, expected, rtol=0, atol=1e-4)
    assert (probabilities.argmax(1) == expected.argmax(1)).all()
    assert np.mean(probabilities.argmax(1) == labels) > 0.75


# ----------------------------------------------------------------------------------- what does not fit


def small_state(classes=10):
    return Residual("torchvision", **SMALL, classes=classes).state_dict()


def small_model(**options):
    return models.build("resnet50", **{"classes": 10, "stride_on": "3x3", **SMALL, **options})


def saved(tmp_path, state, name="weights.pth"):
    torch.save(state, tmp_path / name)
    return tmp_path / name


def test_nothing_is_loaded_unless_all_fits(tmp_path):
    state, model = small_state(), small_model()
    for name in ("bn1.weight", "layer1.0.conv1.weight", "layer1.0.bn1.bias", "layer4.1.bn3.running_var"):
        del state[name]
    state["extra.weight"] = torch.zeros(3)
    state["layer2.0.conv2.weight"] = torch.zeros(7, 32, 3, 3)
    before = model.state_dict()
    with pytest.raises(CheckpointError) as caught:
        load_pretrained(model, saved(tmp_path, state))
    text = str(caught.value)
    assert "nothing was loaded" in text
    assert "4 missing: bn1.weight for our bn_conv1.gamma; " in text
    assert "and 1 more" in text
    assert "1 unmatched: extra.weight (3,)" in text
    assert "1 of another shape: layer2.0.conv2.weight is (7, 32, 3, 3), in our layout (3, 3, 32, 7)" in text
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("bn1.weight", None, "1 missing: bn1.weight for our bn_conv1.gamma"),
        ("extra.weight", torch.zeros(3), r"1 unmatched: extra.weight \(3,\)"),
        ("conv1.weight", torch.zeros(16, 4, 7, 7), "1 of another shape: conv1.weight is "),
    ],
)
def test_one_tensor_that_does_not_fit_is_enough(name, value, text, tmp_path):
    state = small_state()
    state[name] = value
    if value is None:
        del state[name]
    with pytest.raises(CheckpointError, match=text):
        load_pretrained(small_model(), saved(tmp_path, state))


def test_a_head_of_other_classes_is_left_out_only_on_demand(tmp_path):
    state, model = small_state(classes=7), small_model(classes=3)
    path, before = saved(tmp_path, state), model.state_dict()
    with pytest.raises(CheckpointError, match=r"2 of another shape: fc.weight is \(7, 256\)"):
        load_pretrained(model, path)
    report = load_pretrained(model, path, head=False)
    assert report.left_out == ("fc.weight", "fc.bias")
    assert "not loaded: fc.weight, fc.bias" in str(report)
    after = model.state_dict()
    np.testing.assert_array_equal(after["fc.weight"], before["fc.weight"])
    np.testing.assert_array_equal(after["conv1.weight"], state["conv1.weight"].numpy().transpose(2, 3, 1, 0))
    del state["fc.weight"], state["fc.bias"]
    load_pretrained(model, saved(tmp_path, state), head=False)  # a file without a head


def test_a_last_layer_of_several_parts_is_named_and_can_be_left_out(tmp_path):
    state, model = small_state(classes=7), small_model(classes=3)
    state["fc.1.weight"], state["fc.1.bias"] = state.pop("fc.weight"), state.pop("fc.bias")
    path = saved(tmp_path, state)
    with pytest.raises(CheckpointError, match=r"fc.1.weight \(7, 256\)(?s:.*)All but the last layer"):
        load_pretrained(model, path)
    assert load_pretrained(model, path, head=False).left_out == ("fc.weight", "fc.bias")
    state["bn9.weight"] = torch.ones(3)
    with pytest.raises(CheckpointError, match="1 unmatched: bn9.weight"):
        load_pretrained(model, saved(tmp_path, state), head=False)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: {n: t for n, t in state.items() if "running" not in n}, "its norms are group norms"),
        (lambda state: {n.replace("conv1.weight", "conv1.0.weight") if n[:5] == "conv1" else n: t
                        for n, t in state.items()}, "a stem of three convolutions"),
    ],
)  # fmt: skip
def test_relatives_of_the_networks_are_called_by_their_names(change, words, tmp_path):
    with pytest.raises(CheckpointError, match=words):
        load_pretrained(small_model(), saved(tmp_path, change(small_state())))


def test_half_a_model_is_never_written(tmp_path):
    state = small_state()
    del state["bn1.weight"]
    path, out = saved(tmp_path, state), tmp_path / "model.safetensors"
    with pytest.raises(CheckpointError, match="1 missing"):
        import_weights(path, "resnet50", out, classes="abcdefghij", variant=SMALL)
    assert not out.exists()
    with pytest.raises(MiniresError, match="cannot write"):
        import_weights(
            saved(tmp_path, small_state()), "resnet50", tmp_path / "none" / "x.safetensors",
            classes="abcdefghij", variant=SMALL,
        )  # fmt: skip


def test_imagenet_classes_and_preprocessing(tmp_path):
    path = saved(tmp_path, small_state(classes=1000))
    import_weights(path, "resnet50", tmp_path / "model.safetensors", variant=SMALL)
    trained = load_model(tmp_path)
    assert (trained.classes[0], trained.classes[-1], len(trained.classes)) == ("0", "999", 1000)
    assert (trained.normalize.mean, trained.normalize.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert (trained.size, trained.dataset) == ((224, 224), "imagenet")


def test_older_torchvision_files_of_densenet(tmp_path):
    options = {"blocks": (2, 1), "growth": 8, "init_channels": 16, "classes": 10}
    theirs = shaken(DenseNet((2, 1), 8, 16))
    old = {}
    for name, value in theirs.state_dict().items():
        for part in ("norm1", "norm2", "conv1", "conv2"):
            name = name.replace(f".{part}.", f".{part[:4]}.{part[4]}.")
        old[name] = value
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    ours = models.build("densenet121", **options)
    load_pretrained(ours, saved(tmp_path, old))
    assert distance(ours, theirs, 64) <= 1e-4


def test_safetensors_need_no_pytorch(tmp_path, monkeypatch):
    from safetensors.torch import save_file

    state = small_state()
    save_file(state, tmp_path / "weights.safetensors")
    save_file({"a.weight": torch.ones(2, dtype=torch.bfloat16)}, tmp_path / "half.safetensors")
    path = saved(tmp_path, state)
    monkeypatch.setitem(sys.modules, "torch", None)
    model = small_model()
    load_pretrained(model, tmp_path / "weights.safetensors")
    np.testing.assert_array_equal(model.state_dict()["fc.weight"], state["fc.weight"].numpy().T)
    with pytest.raises(ConfigError, match=r"reading it needs PyTorch: pip install torch;"):
        read(path)
    assert read(tmp_path / "half.safetensors")["a.weight"].tolist() == [1.0, 1.0]


class Unsafe:
    """Unpickling it would make a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        read(tmp_path / "none.pth")
    with pytest.raises(CheckpointError, match="holds a (posix|nt).mkdir, which is no tensor"):
        read(saved(tmp_path, {"a": Unsafe(tmp_path / "made")}))
    assert not (tmp_path / "made").exists()
    with pytest.raises(CheckpointError, match="holds a Tensor, not a state dict"):
        read(saved(tmp_path, torch.ones(3)))
    with pytest.raises(CheckpointError, match=r"1 of its 2 entries are none: epoch \(int\)"):
        read(saved(tmp_path, {"a.weight": torch.ones(3), "epoch": 1}))
    with pytest.raises(CheckpointError, match="there is no tensor in it"):
        read(saved(tmp_path, {}))


def test_unknown_names_sources_and_models(tmp_path):
    path = saved(tmp_path, {"stem.weight": torch.ones(3)})
    with pytest.raises(CheckpointError, match="names such as stem.weight are of no source known here"):
        load_pretrained(small_model(), path)
    with pytest.raises(ConfigError, match="unknown source"):
        load_pretrained(small_model(), path, source="tensorflow")
    with pytest.raises(CheckpointError, match="1 unmatched: stem.weight"):
        load_pretrained(small_model(), path, source="torchvision")
    with pytest.raises(ConfigError, match="torchvision has no network that is our vgg11_lrn; it has vgg11"):
        variant_for("torchvision", "vgg11_lrn")
    with pytest.raises(ConfigError, match="nothing in place of our layer res2a_branch1"):
        names_of("akamaster", small_model())
    with pytest.raises(ConfigError, match="torchvision has no BN-Inception"):
        names_of("torchvision", models.build("bn_inception", initializer="zeros"))
    with pytest.raises(ConfigError, match="not for a model of "):
        names_of("torchvision", small_model().fc)

"""What other people's weight files call the layers of our models, as tables.

Each layer of ours has a kind and a place in the network: ``res3b2_branch2c`` is a "res_branch2" at stage=2,
unit=3, n=3. A table gives every kind the name that one source has for it, with the place filled in:

    stage   of a residual network, the block of a VGG or DenseNet: from 1
    unit    the block in its stage, the layer in its dense block, the convolution in its VGG block: from 1
    index   the same from 0; in a VGG the number of the layer, ReLUs and pools counted too
    n       the convolution in its branch, or batch norm after it: from 1
    before  the stage from 0, and m the convolution from 0, as Hugging Face and timm's newer networks count
    stem    pytorchcv: ".conv" where the network begins as for ImageNet, with a pool; nothing for CIFAR

A name that ends in " as convolution" is that of a 1x1 convolution where we have a dense layer, or, behind a
flatten, of one as large as the picture.

The sources are listed in :mod:`minires.weights.sources`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minires.errors import ConfigError
from minires.nn.module import Module
from minires.weights.sources import SOURCES

CONVOLUTION = " as convolution"

Table = Mapping[str, str]
Place = tuple[str, dict[str, Any]]  # the kind of a layer, and where it stands

# ------------------------------------------------------------------------------------- residual networks

_LAYERS = {
    "res_branch2": "layer{stage}.{index}.conv{n}",
    "bn_branch2": "layer{stage}.{index}.bn{n}",
    "res_branch1": "layer{stage}.{index}.downsample.0",
    "bn_branch1": "layer{stage}.{index}.downsample.1",
}
_TORCHVISION = {"conv1": "conv1", "bn_conv1": "bn1", "fc": "fc", **_LAYERS}
_CADENE = {
    "conv1": "layer0.conv1", "bn_conv1": "layer0.bn1", "fc": "last_linear", **_LAYERS,
    "se.reduce": f"layer{{stage}}.{{index}}.se_module.fc1{CONVOLUTION}",
    "se.expand": f"layer{{stage}}.{{index}}.se_module.fc2{CONVOLUTION}",
}  # fmt: skip
_UNIT = "features.stage{stage}.unit{unit}"
_PYTORCHCV = {
    "conv1": "features.init_block{stem}.conv", "bn_conv1": "features.init_block{stem}.bn", "fc": "output",
    "res_branch2": f"{_UNIT}.body.conv{{n}}.conv", "bn_branch2": f"{_UNIT}.body.conv{{n}}.bn",
    "res_branch1": f"{_UNIT}.identity_conv.conv", "bn_branch1": f"{_UNIT}.identity_conv.bn",
    "se.reduce": f"{_UNIT}.se.conv1{CONVOLUTION}", "se.expand": f"{_UNIT}.se.conv2{CONVOLUTION}",
}  # fmt: skip
_HF_LAYER = "resnet.encoder.stages.{before}.layers.{index}"
_TIMM_BLOCK = "stages.{before}.blocks.{index}"
RESIDUAL: dict[str, Table] = {
    "akamaster": {
        "conv1": "conv1", "bn_conv1": "bn1", "fc": "linear",
        "res_branch2": _LAYERS["res_branch2"], "bn_branch2": _LAYERS["bn_branch2"],
    },
    "torchvision": _TORCHVISION,
    "timm": {
        **_TORCHVISION,
        "se.reduce": f"layer{{stage}}.{{index}}.se.fc1{CONVOLUTION}",
        "se.expand": f"layer{{stage}}.{{index}}.se.fc2{CONVOLUTION}",
    },
    "huggingface": {
        "conv1": "resnet.embedder.embedder.convolution", "bn_conv1": "resnet.embedder.embedder.normalization",
        "fc": "classifier.1",
        "res_branch2": f"{_HF_LAYER}.layer.{{m}}.convolution",
        "bn_branch2": f"{_HF_LAYER}.layer.{{m}}.normalization",
        "res_branch1": f"{_HF_LAYER}.shortcut.convolution",
        "bn_branch1": f"{_HF_LAYER}.shortcut.normalization",
    },
    "cadene": _CADENE,
    "pytorchcv": _PYTORCHCV,
}  # fmt: skip
SENET: dict[str, Table] = {  # a stem of three convolutions
    "cadene": {
        **_CADENE,
        **{f"conv1_{n}": f"layer0.conv{n}" for n in (1, 2, 3)},
        **{f"bn1_{n}": f"layer0.bn{n}" for n in (1, 2, 3)},
    },
    "pytorchcv": {
        **_PYTORCHCV,
        **{f"conv1_{n}": f"features.init_block.conv{n}.conv" for n in (1, 2, 3)},
        **{f"bn1_{n}": f"features.init_block.conv{n}.bn" for n in (1, 2, 3)},
        "fc": "output.fc",
    },
}
PREACTIVATION: dict[str, Table] = {
    "pytorchcv": {  # for CIFAR, with bottlenecks: the first unit holds the batch norm after conv1
        **_PYTORCHCV,
        "conv1": "features.init_block", "bn_conv1": "features.stage1.unit1.body.conv1.bn",
        "post_bn": "features.post_activ.bn", "res_branch1": f"{_UNIT}.identity_conv",
    },
    "timm": {  # its resnetv2: a stem without batch norm
        "conv1": "stem.conv", "post_bn": "norm", "fc": f"head.fc{CONVOLUTION}",
        "res_branch2": f"{_TIMM_BLOCK}.conv{{n}}", "bn_branch2": f"{_TIMM_BLOCK}.norm{{n}}",
        "res_branch1": f"{_TIMM_BLOCK}.downsample.conv",
    },
}  # fmt: skip

# ---------------------------------------------------------------------------------- VGG, DenseNet, Inception

_VGG = {"conv": "features.{index}", "bn": "features.{index}"}
VGG: dict[str, Table] = {
    "torchvision": {**_VGG, "fc6": "classifier.0", "fc7": "classifier.3", "fc8": "classifier.6"},
    "timm": {
        **_VGG,
        "fc6": f"pre_logits.fc1{CONVOLUTION}", "fc7": f"pre_logits.fc2{CONVOLUTION}", "fc8": "head.fc",
    },
    "pytorchcv": {
        "conv": f"{_UNIT}.conv", "bn": f"{_UNIT}.bn",
        "fc6": "output.fc1.fc", "fc7": "output.fc2.fc", "fc8": "output.fc3",
    },
}  # fmt: skip
_DENSENET = {
    "conv1": "features.conv0", "bn_conv1": "features.norm0", "bn_last": "features.norm5", "fc": "classifier",
    "layer.bn": "features.denseblock{stage}.denselayer{unit}.norm{n}",
    "layer.conv": "features.denseblock{stage}.denselayer{unit}.conv{n}",
    "transition.bn": "features.transition{stage}.norm", "transition.conv": "features.transition{stage}.conv",
}  # fmt: skip
DENSENET: dict[str, Table] = {
    "torchvision": _DENSENET,
    "timm": _DENSENET,
    "pytorchcv": {
        "conv1": "features.init_block{stem}", "bn_conv1": "features.init_block.bn",
        "bn_last": "features.post_activ.bn", "fc": "output",
        "layer.bn": f"{_UNIT}.conv{{n}}.bn", "layer.conv": f"{_UNIT}.conv{{n}}.conv",
        "transition.bn": "features.stage{next}.trans{next}.conv.bn",
        "transition.conv": "features.stage{next}.trans{next}.conv.conv",
    },
}  # fmt: skip
INCEPTION: dict[str, Table] = {
    "pytorchcv": {
        "conv1": "features.init_block.conv1.conv", "bn1": "features.init_block.conv1.bn",
        "conv2_reduce": "features.init_block.conv2.conv1.conv",
        "bn2_reduce": "features.init_block.conv2.conv1.bn",
        "conv2": "features.init_block.conv2.conv2.conv", "bn2": "features.init_block.conv2.conv2.bn",
        "conv": f"{_UNIT}.branches.{{branch}}.conv", "bn": f"{_UNIT}.branches.{{branch}}.bn", "fc": "output",
    },
}  # fmt: skip
_MODULES = {
    # module: stage and unit in pytorchcv
    "3a": (1, 1), "3b": (1, 2), "3c": (2, 1), "4a": (2, 2), "4b": (2, 3), "4c": (2, 4), "4d": (2, 5),
    "4e": (3, 1), "5a": (3, 2), "5b": (3, 3),
}  # fmt: skip
_BRANCHES = {
    # place: which branch in pytorchcv (one less where there is no 1x1), and what in it
    "1x1": (1, ""), "3x3_reduce": (2, ".conv1"), "3x3": (2, ".conv2"), "double3x3_reduce": (3, ".conv1"),
    "double3x3a": (3, ".conv2"), "double3x3b": (3, ".conv3"), "pool_proj": (4, ".conv"),
}  # fmt: skip
_WITHOUT_1X1 = ("3c", "4e")

# ------------------------------------------------------------------------------- where a layer of ours stands


def _residual(layers: Sequence[str]) -> Iterable[Place]:
    blocks: dict[str, list[str]] = {}
    for layer in layers:
        found = re.fullmatch(r"(res|bn)(\d)([a-z]\d*)_(branch1|branch2|se)([a-f]?)\.?(\w*)", layer)
        if found is None:
            yield layer, {}
            continue
        what, stage, block, part, letter, dense = found.groups()
        seen = blocks.setdefault(stage, [])
        if block not in seen:
            seen.append(block)
        index = seen.index(block)
        n = "abcdef".index(letter) + 1 if letter else 0
        kind = f"se.{dense}" if part == "se" else f"{what}_{part}"
        place = {"stage": int(stage) - 1, "unit": index + 1, "index": index, "n": n}
        yield kind, {**place, "before": int(stage) - 2, "m": n - 1}


def _vgg(layers: Sequence[str]) -> Iterable[Place]:
    index, before = 0, "1"
    for layer in layers:
        found = re.fullmatch(r"(conv|bn)(\d)_(\d)", layer)
        if found is None:
            yield layer, {}
            continue
        kind, stage, unit = found.groups()
        if kind == "conv" and index:
            index += 1 if stage == before else 2  # the ReLU before it, and the pool between two blocks
        yield kind, {"stage": stage, "unit": unit, "index": index}
        index, before = index + 1, stage


def _densenet(layers: Sequence[str]) -> Iterable[Place]:
    bottleneck = any(layer.endswith(".bn2") for layer in layers)
    for layer in layers:
        if found := re.fullmatch(r"block(\d)\.layer(\d+)\.(bn|conv)(\d)", layer):
            stage, unit, kind, n = found.groups()
            yield f"layer.{kind}", {"stage": stage, "unit": unit, "n": n if bottleneck else ""}
        elif found := re.fullmatch(r"transition(\d)\.(bn|conv)", layer):
            stage, kind = found.groups()
            yield f"transition.{kind}", {"stage": stage, "next": int(stage) + 1}
        else:
            yield layer, {}


def _inception(layers: Sequence[str]) -> Iterable[Place]:
    for layer in layers:
        found = re.fullmatch(r"inception_(\d[a-e])\.(conv|bn)_(\w+)", layer)
        if found is None:
            yield layer, {}
            continue
        module, kind, place = found.groups()
        stage, unit = _MODULES[module]
        number, inner = _BRANCHES[place]
        branch = f"branch{number - (module in _WITHOUT_1X1)}{inner}"
        yield kind, {"stage": stage, "unit": unit, "branch": branch}


@dataclass(frozen=True)
class Family:
    """Networks whose layers are called alike: they have the layers ``marks``.

    ``tables`` are the names by source, and ``places`` tells where each layer stands.
    """

    title: str
    marks: tuple[str, ...]
    tables: Mapping[str, Table]
    places: Callable[[Sequence[str]], Iterable[Place]]


# A network is of the first family here whose marks it has.
FAMILIES = (
    Family("pre-activation ResNet", ("res2a_branch2a", "post_bn"), PREACTIVATION, _residual),
    Family("SENet", ("res2a_branch2a", "conv1_1"), SENET, _residual),
    Family("ResNet", ("res2a_branch2a",), RESIDUAL, _residual),
    Family("VGG", ("conv1_1",), VGG, _vgg),
    Family("DenseNet", ("block1.layer1.bn1",), DENSENET, _densenet),
    Family("BN-Inception", ("inception_3a.conv_3x3",), INCEPTION, _inception),
)


def _family(layers: Sequence[str]) -> Family:
    """The family of networks that has these layers."""
    for family in FAMILIES:
        if all(mark in layers for mark in family.marks):
            return family
    ours = f"of {', '.join(layers[:3])}, ..." if layers else "without parameters"
    raise ConfigError(
        f"there are name maps for {', '.join(family.title for family in FAMILIES)} as "
        f"minires.models.build makes them, not for a model {ours}"
    )


def names_of(source: str, model: Module) -> dict[str, str]:
    """The name that each parameter and buffer of ``model`` has in files of ``source``; no two have the same.

    Raises: ConfigError if the source is unknown or has no such network, with the layer it lacks.
    """
    return {ours: name for ours, (name, _) in places_of(source, model).items()}


def places_of(source: str, model: Module) -> dict[str, tuple[str, bool]]:
    """As :func:`names_of`, with whether there it is a convolution's, where we have a dense layer."""
    SOURCES.find(source)
    paths = [name for name, _ in model.named_parameters()] + [name for name, _ in model.named_buffers()]
    layers = list(dict.fromkeys(path.rpartition(".")[0] for path in paths))
    family = _family(layers)
    if source not in family.tables:
        having = ", ".join(family.tables)
        raise ConfigError(f"{source} has no {family.title} that fits a model of ours; {having} may have")
    table = family.tables[source]
    stem = ".conv" if any(name == "pool1" for name, _ in model.children()) else ""
    there = {}
    for layer, (kind, place) in zip(layers, family.places(layers), strict=True):
        if kind not in table:
            raise ConfigError(f"the networks of {source} have nothing in place of our layer {layer}")
        there[layer] = table[kind].format(stem=stem, **place)
    leaves = {"gamma": "weight", "beta": "bias"}
    found = {}
    for path in paths:
        layer, _, leaf = path.rpartition(".")
        name, convolution = there[layer].removesuffix(CONVOLUTION), there[layer].endswith(CONVOLUTION)
        found[path] = f"{name}.{leaves.get(leaf, leaf)}", convolution
    return found


def modern(name: str) -> str:
    """A name as newer files have it: ``denselayer1.norm.1`` of torchvision's older DenseNets is
    ``denselayer1.norm1``; what Hugging Face saves without a head lacks ``resnet.``

    >>> modern("features.denseblock1.denselayer1.norm.1.weight"), modern("encoder.stages.0.layers.0")
    ('features.denseblock1.denselayer1.norm1.weight', 'resnet.encoder.stages.0.layers.0')
    """
    name = re.sub(r"(denselayer\d+\.(?:norm|conv))\.(?=\d)", r"\1", name)
    return re.sub(r"^(?=embedder\.embedder\.|encoder\.stages\.\d+\.layers\.)", "resnet.", name)

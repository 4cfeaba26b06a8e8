"""Whose weight files of PyTorch's are read here, and what the numbers in them do not show.

    akamaster     akamaster/pytorch_resnet_cifar10
    torchvision   pytorch/vision; timm has the same names where nothing else is said
    timm          huggingface/pytorch-image-models: SE-ResNet, SE-ResNeXt, resnetv2; dense layers of VGG
    huggingface   ResNetForImageClassification of huggingface/transformers
    cadene        Cadene/pretrained-models.pytorch: SENet as released by its authors; in timm "legacy_"
    pytorchcv     osmr/imgclsmob

The names that each source has for our layers stand in :mod:`minires.weights.name_tables`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from minires import models
from minires.data import Normalize
from minires.errors import ConfigError
from minires.registry import Registry


@dataclass(frozen=True, kw_only=True)
class Source:
    """Somebody's files of weights.

    A file is of this source if one of ``marks`` begins a name in it, and all of ``needs`` do. ``variants``
    says which of our models it has (a pattern for the name), and the options with which they are the same.
    ``small_pictures`` is how it prepares the pictures of CIFAR-10. ``is_written`` says whether we write its
    files, too.
    """

    marks: tuple[str, ...]
    variants: Mapping[str, Mapping[str, Any]]
    needs: tuple[str, ...] = ()
    small_pictures: Normalize = Normalize.imagenet()
    is_written: bool = False

    def has(self, model: str) -> bool:
        """Whether it has a network that is our ``model``."""
        return any(re.fullmatch(pattern, model) for pattern in self.variants)


_TORCHVISION: dict[str, dict[str, Any]] = {
    "vgg(11|13|16|19)(_bn)?": {},
    "resnet(18|34)": {},
    "resnet(50|101|152)": {"stride_on": "3x3"},
    "resnext(50_32x4d|101_32x4d|101_32x8d|101_64x4d)": {},
    "resnext50_1x64d": {},  # their resnet50; with width=128 their wide_resnet50_2
    "densenet(121|161|169|201)": {},
}

# A file is of the first source here that it has a mark of.
SOURCES: Registry[Source] = Registry("source", {
    "pytorchcv": Source(
        marks=("features.init_block.", "features.stage1."),
        variants={
            "vgg(11|13|16|19)": {},
            "vgg(11|13|16|19)_bn": {},  # its bn_vgg16b; its bn_vgg16 is bias=False
            "resnet(18|34|50|101|152|200)": {},  # its resnet50b is stride_on="3x3"
            "resnet(20|56|110|1202)_cifar": {"shortcut": "B"},
            "preresnet(164|1001)_cifar": {"stride_on": "3x3"},
            "resnext(50_32x4d|101_32x4d|101_64x4d|29_32x4d_cifar|29_16x64d_cifar)": {},
            "se_resnet(50|101|152|56_cifar|110_cifar)": {},
            "se_resnext(50|101)_32x4d": {},
            "senet154": {},
            "densenet(121|161|169|201)": {},
            "densenet(40|100)_k12_cifar": {"init_channels": 24, "theta": 0.5},
            "densenet100_k24_cifar": {"init_channels": 48, "theta": 0.5},
            "densenet_bc(100_k12|250_k24|190_k40)_cifar": {},
            "bn_inception": {"bias": True},
        },
        small_pictures=Normalize((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    ),
    "cadene": Source(
        marks=("layer0.", "last_linear."),
        variants={
            "se_resnet(50|101|152)": {"pool_padding": "ceil"},
            "se_resnext(50|101)_32x4d": {"pool_padding": "ceil"},
            "senet154": {"pool_padding": "ceil"},
        },
    ),
    "timm": Source(
        marks=("layer1.0.se.", "pre_logits.", "stages.0.blocks.0."),
        variants={
            **_TORCHVISION,
            "se_resnet(50|101|152)": {"stride_on": "3x3"},
            "se_resnext(50|101)_32x4d": {},
            "preresnet(18|34|50|101|152)": {"stem": "bare"},
        },
        is_written=True,
    ),
    "huggingface": Source(
        marks=("resnet.embedder.", "resnet.encoder.stages.", "embedder.embedder."),
        variants={"resnet(18|34)": {}, "resnet(50|101|152)": {"stride_on": "3x3"}},
    ),
    "akamaster": Source(
        marks=("linear.",),
        needs=("layer1.",),
        variants={"resnet(20|32|44|56|110|1202)_cifar": {"pad": "both"}},
        is_written=True,
    ),
    "torchvision": Source(
        marks=("layer1.", "features.denseblock1.", "features.0."),
        variants=_TORCHVISION,
        is_written=True,
    ),
})  # fmt: skip


def variant_for(source: str, model: str) -> dict[str, Any]:
    """The options of ``minires.models.build`` with which ``model`` is the network that ``source`` trained.

    Raises: ConfigError if the source or the model is unknown, or the source has no such network.

    >>> variant_for("torchvision", "resnet50")
    {'stride_on': '3x3'}
    """
    variants = SOURCES.find(source).variants
    models.entry(model)
    for pattern, variant in variants.items():
        if re.fullmatch(pattern, model):
            return dict(variant)
    known = [name for name in models.names() if SOURCES[source].has(name)]
    raise ConfigError(f"{source} has no network that is our {model}; it has {', '.join(known)}")


def recognise(names: Iterable[str]) -> str | None:
    """The source whose files hold such names, or None.

    >>> recognise(["conv1.weight", "layer1.0.conv1.weight"])
    'torchvision'
    """
    names = list(names)
    for source, one in SOURCES.items():
        if any(name.startswith(one.marks) for name in names) and all(
            any(name.startswith(need) for name in names) for need in one.needs
        ):
            return source
    return None


# ------------------------------------------------------------------------------ what a file calls itself

# What torchvision, timm and Hugging Face call networks that are ours; the first pattern that fits.
_CALLED = {
    r"(?:tv_|ssl_|swsl_)?(resnet(?:18|34|50|101|152)|resnext(?:50|101)_\d+x\d+d)": r"\1",
    r"gluon_(resnet(?:18|34|50|101|152))_v1b": r"\1",
    r"gluon_(resnext\d+_\d+x\d+d)": r"\1",
    r"(resnet(?:20|32|44|56|110|1202))": r"\1_cifar",
    r"(?:legacy_)?se_?(resnet(?:50|101|152)|resnext(?:50|101)_32x4d)": r"se_\1",
    r"(?:legacy_)?senet154": "senet154",
    r"resnetv2_(18|34|50|101|152)": r"preresnet\1",
    r"wide_resnet50_2": "resnext50_1x64d",
    r"(?:tv_)?(vgg\d\d(?:_bn)?|densenet\d{3})": r"\1",
}
# The relatives of these networks in timm and torchvision that are none of ours.
_DEPTHS = "1[01346789]|14|2[26]|3[2348]|50|51|61|101|121|15[24]|161|169|20[01]|264|26[49]|270|350|420"
_RELATIVE = re.compile(
    r"(?:(?:tv|ssl|swsl|gluon|ig|wsl|legacy|nf|eca|lambda|bat|wide)_)*(?:se|sk|eca|gc|csp|cs3)?"
    rf"(?:res2?ne[xs]?t(?:aa|blur|rs|v2_)?|vgg|densenet(?:blur)?|senet)_?(?:{_DEPTHS})[a-z]{{0,3}}(?:x\d+)?"
    r"(?:_(?:\d+|\d+x\d+d|\d+s\d+x\d+d|\d+w_\d+s|bn|gn|mlp|clip|gap|pruned|evos|frn|bit|v1[a-z]))*"
)
_FAMILY = re.compile("res2?ne[xs]?t|vgg|densenet|senet")
# Networks whose files have the same names and shapes as ours, and that compute something else.
_LOOK_ALIKE = re.compile(r"resnet(?:blur|aa)\d+[^\W_]*")


def known_as(architecture: str) -> str | None:
    """Our name for what others call a network; None if it is a relative that is not here; "" if that name
    tells nothing.

    >>> known_as("timm/seresnet50.a1_in1k"), known_as("resnetblur50"), known_as("resnet18_cats")
    ('se_resnet50', None, '')
    """
    name = architecture.rpartition("/")[2].partition(".")[0].lower().replace("-", "")
    for one in (name, re.sub(r"(?<=t)_(?=\d+$)", "", name)):  # resnet_18
        if one in models.MODELS:
            return one
        for pattern, ours in _CALLED.items():
            if found := re.fullmatch(pattern, one):
                return found.expand(ours)
    return None if _RELATIVE.fullmatch(name) or look_alike(name) else ""


def of_a_family(name: str) -> bool:
    """Whether a name that somebody made up says a family of networks that is here: ``resnet18_cats``."""
    return _FAMILY.search(name.lower()) is not None


def look_alike(file: str) -> str | None:
    """The network that the name of a file says and that cannot be told from ours by what is in it.

    >>> look_alike("resnetblur50-84f4748f.pth"), look_alike("resnet50-0676ba61.pth")
    ('resnetblur50', None)
    """
    found = _LOOK_ALIKE.search(file.lower())
    return found[0] if found else None

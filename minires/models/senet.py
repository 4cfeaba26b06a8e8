"""SENet: squeeze and excitation in ResNet, ResNeXt and VGG, and SENet-154.

A gate (see :mod:`minires.nn.squeeze_excitation`) weighs the channels of every block. The paper tries four
places for it in a residual block:

    standard   y = relu(gate(F(x)) + shortcut(x))        after the branch's last batch norm
    pre        y = relu(F(gate(x)) + shortcut(x))
    post       y = gate(relu(F(x) + shortcut(x)))
    identity   y = relu(F(x) + gate(shortcut(x)))

Table 1, at 224x224: the stem (7x7/2 convolution, 3x3/2 max pool), four stages of bottlenecks with a gate,
global average pool, 1000-way dense.

    stage     output           SE-ResNet-50               SE-ResNeXt-50 (32x4d)               r = 16: dense
    2         56x56x256        1x1 64, 3x3 64       x3    1x1 128, 3x3 128, 32 groups   x3    256, 16, 256
    3         28x28x512        1x1 128, 3x3 128     x4    1x1 256, 3x3 256              x4    512, 32, 512
    4         14x14x1024       1x1 256, 3x3 256     x6    1x1 512, 3x3 512              x6    1024, 64, 1024
    5         7x7x2048         1x1 512, 3x3 512     x3    1x1 1024, 3x3 1024            x3    2048, 128, 2048

SENet-154 (the appendix) is a 64x4d ResNeXt-152 with a gate in each block and four changes: the 7x7 of the
stem becomes three 3x3 (64, 64, 128 channels); the first 1x1 of a block has half the channels of its 3x3; the
projections of stages 3 to 5 are 3x3; and dropout 0.2 stands before the dense layer.

                            parameters    trainable               MACs
    se_resnet50             28,141,144    28,088,024     3,860,488,192   4,091,699,200 with stride_on="3x3"
    se_resnet101            49,432,216    49,326,872     7,574,937,600   7,806,148,608
    se_resnet152            66,973,272    66,821,848    11,288,993,792  11,520,204,800
    se_resnext50_32x4d      27,628,120    27,559,896     4,232,994,816
    se_resnext101_32x4d     49,093,272    48,955,416     7,974,739,968
    senet154               115,336,536   115,088,984    20,688,363,520
    se_vgg16_bn            138,605,232   138,596,784    15,470,490,624
    se_resnet56_cifar          867,145       862,889       125,753,888
    se_resnet110_cifar       1,753,240     1,744,952       253,161,920

SE-ResNet-50 by reduction r, trainable, without biases in the gates (table 10): 45,676,584 at 2, 35,616,808
at 4, 30,586,920 at 8, 28,071,976 at 16, 26,814,504 at 32. Without a squeeze (table 16) it takes
4,269,015,040 MACs.

Source: Hu, Shen, Albanie, Sun, Wu 2017, Squeeze-and-excitation networks, arXiv:1709.01507, tables 1, 10, 14
and 16, figure 5, section 3.3; hujie-frank/SENet (the released Caffe models).
Differs: the released models have biases in the gates, the paper's ablations do not (``gate_bias=False``).
SE-ResNet strides on the first 1x1, SE-ResNeXt and SENet-154 on the 3x3, as released; the release pools with
``pool_padding="ceil"``. The paper's CIFAR networks are pre-activation ones; those here are ResNets with
option B.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from minires.errors import ConfigError, one_of
from minires.models import stem_and_head
from minires.models.registry import Entry, Paper
from minires.models.vgg import vgg
from minires.nn.blocks import Conv, ResidualBlock, basic, bottleneck, check_stages, stack
from minires.nn.layers import BatchNorm2d, Conv2d, Dropout, MaxPool2d, Sequential
from minires.nn.module import Module
from minires.nn.squeeze_excitation import SqueezeExcitation


def se_resnet(
    *,
    classes: int,
    rng: np.random.Generator,
    repeats: Sequence[int] = (3, 4, 6, 3),
    widths: Sequence[int] = (64, 128, 256, 512),
    kind: str = "bottleneck",
    cardinality: int = 1,
    width: int = 64,
    stride_on: str = "1x1",
    shortcut: str = "B",
    stem: str = "imagenet",
    pool_padding: int | str = 1,
    reduction: int | None = 16,
    gate_bias: bool = True,
    placement: str = "standard",
    squeeze: str = "avg",
    last_gamma: float = 1.0,
    initializer: str = "he_normal",
    bn_momentum: float | None = None,
    bn_eps: float | None = None,
) -> Sequential:
    """SE-ResNet and SE-ResNeXt: a stage for each of ``repeats`` and ``widths``.

    ``kind`` is "basic" or "bottleneck". The 3x3 of a bottleneck has ``cardinality`` groups of ``width``
    channels in a stage whose width is 64, and in proportion in the others. ``stem`` is "imagenet" or
    "cifar". ``reduction``, ``gate_bias`` and ``squeeze`` are options of
    :class:`~minires.nn.squeeze_excitation.SqueezeExcitation`; with the ``reduction`` None there are no gates.
    ``placement`` is one of the four above.

    Shapes: pictures (N, H, W, 3) -> logits (N, classes).
    Raises: ConfigError if an option is none of those named, or a layer would have no channel.
    """
    check_stages(widths, repeats)
    one_of("kind", kind, ("basic", "bottleneck"))
    one_of("stem", stem, stem_and_head.STEMS)
    one_of("pool_padding", pool_padding, (1, "ceil"))
    norm: dict[str, Any] = {"convention": "torch", "momentum": bn_momentum, "eps": bn_eps}
    options: dict[str, Any] = {"initializer": initializer, "norm": norm, "rng": rng}
    gate = gates(reduction, gate_bias, squeeze, initializer, rng)
    if reduction is None and placement != "standard":
        raise ConfigError(f"reduction=None leaves out the gates, so there is no placement {placement!r}")

    def block(channels: int, n: int, *, stage: int, block: str, stride: int) -> ResidualBlock:
        if kind == "basic":
            branch = basic(n, stride=stride)
        else:
            inner = _grouped(n, cardinality, width)
            branch = bottleneck(inner, stride=stride, stride_on=stride_on, groups=cardinality, out=4 * n)
        return ResidualBlock(
            channels, branch, stage=stage, block=block, shortcut=shortcut, last_gamma=last_gamma,
            gate=gate(channels if placement == "pre" else branch[-1].channels), placement=placement,
            **options,
        )  # fmt: skip

    layers = stem_and_head.stem(stem, widths[0], pool_padding=pool_padding, **options)
    layers |= stack(widths[0], widths, repeats, block)
    channels = 4 * widths[-1] if kind == "bottleneck" else widths[-1]
    return Sequential(**layers, **stem_and_head.head(channels, classes, initializer=initializer, rng=rng))


def senet154(
    *,
    classes: int,
    rng: np.random.Generator,
    repeats: Sequence[int] = (3, 8, 36, 3),
    widths: Sequence[int] = (64, 128, 256, 512),
    cardinality: int = 64,
    width: int = 4,
    pool_padding: int | str = 1,
    reduction: int | None = 16,
    gate_bias: bool = True,
    placement: str = "standard",
    squeeze: str = "avg",
    dropout: float = 0.2,
    last_gamma: float = 1.0,
    initializer: str = "he_normal",
    bn_momentum: float | None = None,
    bn_eps: float | None = None,
) -> Sequential:
    """SENet-154, and smaller ones of its kind; options as in :func:`se_resnet`.

    Shapes: pictures (N, H, W, 3) -> logits (N, classes).
    Raises: ConfigError if an option is unknown, or a layer would have no channel.
    """
    check_stages(widths, repeats)
    one_of("pool_padding", pool_padding, (1, "ceil"))
    norm: dict[str, Any] = {"convention": "torch", "momentum": bn_momentum, "eps": bn_eps}
    options: dict[str, Any] = {"initializer": initializer, "norm": norm, "rng": rng}
    gate = gates(reduction, gate_bias, squeeze, initializer, rng)

    def block(channels: int, n: int, *, stage: int, block: str, stride: int) -> ResidualBlock:
        inner = _grouped(n, cardinality, width)
        branch = (Conv(inner // 2, 1), Conv(inner, 3, stride, cardinality), Conv(4 * n, 1))
        return ResidualBlock(
            channels, branch, stage=stage, block=block, projection=1 if stage == 2 else 3,
            last_gamma=last_gamma, gate=gate(channels if placement == "pre" else 4 * n), placement=placement,
            **options,
        )  # fmt: skip

    first = widths[0]
    layers: dict[str, Module] = {}
    channels = 3
    for i, (outputs, stride) in enumerate(((first, 2), (first, 1), (2 * first, 1)), 1):
        layers[f"conv1_{i}"] = Conv2d(
            channels, outputs, 3, stride=stride, padding=1, bias=False, initializer=initializer, rng=rng
        )
        layers[f"bn1_{i}"] = BatchNorm2d(outputs, relu=True, **norm)
        channels = outputs
    layers["pool1"] = MaxPool2d(3, stride=2, padding=pool_padding)
    layers |= stack(channels, widths, repeats, block)
    head = stem_and_head.head(4 * widths[-1], classes, initializer=initializer, rng=rng)
    layers["avg_pool"] = head["avg_pool"]
    layers["drop"] = Dropout(dropout, seed=int(rng.integers(2**32)))
    layers["fc"] = head["fc"]
    return Sequential(**layers)


def se_vgg(
    *,
    classes: int,
    rng: np.random.Generator,
    configuration: str = "D",
    widths: Sequence[int] = (64, 128, 256, 512, 512),
    size: int = 224,
    bias: bool = True,
    head: str = "dense",
    hidden: int = 4096,
    dropout: float = 0.5,
    reduction: int | None = 16,
    gate_bias: bool = True,
    squeeze: str = "avg",
    initializer: str = "he_normal",
    bn_momentum: float | None = None,
    bn_eps: float | None = None,
) -> Sequential:
    """VGG with batch norm, and a gate after the ReLU of each convolution (section 3.3).

    Options but those of the gate are those of :func:`~minires.models.vgg.vgg`.

    Shapes: pictures (N, size, size, 3) -> logits (N, classes).
    Raises: ConfigError as vgg and SqueezeExcitation do.
    """
    plain = vgg(
        classes=classes, rng=rng, configuration=configuration, widths=widths, size=size, bn=True, bias=bias,
        head=head, hidden=hidden, dropout=dropout, initializer=initializer, bn_momentum=bn_momentum,
        bn_eps=bn_eps,
    )  # fmt: skip
    gate = gates(reduction, gate_bias, squeeze, initializer, rng)
    layers: dict[str, Module] = {}
    for name, layer in plain.children():
        layers[name] = layer
        # A batch norm here ends in the ReLU.
        if isinstance(layer, BatchNorm2d) and (one := gate(layer.gamma.size)) is not None:
            layers[name.replace("bn", "se")] = one
    return Sequential(**layers)


def gates(
    reduction: int | None, gate_bias: bool, squeeze: str, initializer: str, rng: np.random.Generator
) -> Callable[[int], SqueezeExcitation | None]:
    """What makes a gate for so many channels; none where there is no reduction.

    Raises: ConfigError for a squeeze of gates that are left out.
    """
    if reduction is None and squeeze != "avg":
        raise ConfigError(f"reduction=None leaves out the gates, so there is no squeeze {squeeze!r}")
    if reduction is None:
        return lambda channels: None
    return partial(
        SqueezeExcitation, reduction=reduction, bias=gate_bias, squeeze=squeeze, initializer=initializer,
        rng=rng,
    )  # fmt: skip


def _grouped(n: int, cardinality: int, width: int) -> int:
    """The channels of the grouped 3x3 in a stage of width ``n``: floor(n * width / 64) in each group."""
    if cardinality < 1 or n * width // 64 < 1:
        raise ConfigError(
            f"{cardinality}x{width}d is no network: in the stage of n = {n} it has {cardinality} groups of "
            f"{n * width // 64} channels (floor(n * width / 64)); there must be at least one of each"
        )
    return cardinality * (n * width // 64)


_RESNEXT: dict[str, Any] = {"cardinality": 32, "width": 4, "stride_on": "3x3"}
_CIFAR: dict[str, Any] = {"kind": "basic", "widths": (16, 32, 64), "stem": "cifar"}

PAPER = Paper("Hu et al.", 2017, "Squeeze-and-excitation networks", "1709.01507")


def _entry(title: str, make: Callable[..., Sequential] = se_resnet, **preset: Any) -> Entry:
    return Entry(make, preset=preset, title=title, paper=PAPER)


def _cifar(n: int) -> Entry:
    title = f"ResNet of {6 * n + 2} layers with gates, for CIFAR"
    preset = {"repeats": (n, n, n), **_CIFAR}
    return Entry(se_resnet, size=32, classes=10, preset=preset, title=title, paper=PAPER)


MODELS = {
    "se_resnet50": _entry("ResNet of 50 layers with gates", repeats=(3, 4, 6, 3)),
    "se_resnet101": _entry("ResNet of 101 layers with gates", repeats=(3, 4, 23, 3)),
    "se_resnet152": _entry("ResNet of 152 layers with gates", repeats=(3, 8, 36, 3)),
    "se_resnext50_32x4d": _entry("ResNeXt of 50 layers with gates, 32x4d", repeats=(3, 4, 6, 3), **_RESNEXT),
    "se_resnext101_32x4d": _entry(
        "ResNeXt of 101 layers with gates, 32x4d", repeats=(3, 4, 23, 3), **_RESNEXT
    ),
    "senet154": _entry("SENet of 154 layers, 64x4d", senet154),
    "se_vgg16_bn": _entry("VGG, configuration D, with batch norm and gates", se_vgg),
    "se_resnet56_cifar": _cifar(9),
    "se_resnet110_cifar": _cifar(18),
}

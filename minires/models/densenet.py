"""DenseNet: each layer reads all feature maps before it, and adds a few of its own.

    x0 -> x1 = H1(x0) -> x2 = H2([x0, x1]) -> x3 = H3([x0, x1, x2]) -> ...         a dense block

H is BN, ReLU, 3x3 convolution to k channels, the growth rate; as a bottleneck (B) it is BN, ReLU, 1x1
convolution to 4k, BN, ReLU, 3x3 to k. Between two dense blocks a transition makes the picture smaller: BN,
ReLU, 1x1 convolution to the share theta of the channels (C for compression, theta = 0.5), 2x2 average pool.
After the last block come one more BN and ReLU, a global average pool and a dense layer.

    ImageNet, 224x224; blocks at 56x56, 28x28, 14x14, 7x7 behind conv1 7x7/2 to 2k, bn_conv1, pool1 3x3/2
                            layers per block   trainable    running statistics            MACs
    121, k = 32             6, 12, 24, 16      7,978,856    83,648               2,834,161,664
    169, k = 32             6, 12, 32, 32      14,149,480   158,400              3,359,843,328
    201, k = 32             6, 12, 48, 32      20,013,928   229,056              4,291,365,888
    264, k = 32             6, 12, 64, 48      33,337,704   398,528              5,751,653,376
    161, k = 48             6, 12, 36, 24      28,681,000   219,936              7,727,907,072

    CIFAR-10, 32x32; three blocks at 32x32, 16x16, 8x8 behind conv1 3x3 to 16, with BC to 2k
    L = 40,  k = 12         12, 12, 12         1,019,722    18,096               264,812,928
    L = 100, k = 12         32, 32, 32         6,979,642    117,216              1,769,516,448
    L = 100, k = 24         32, 32, 32         27,249,082   231,264              6,889,347,744
    BC, L = 100, k = 12     16, 16, 16         769,162      23,988               287,929,692
    BC, L = 250, k = 24     41, 41, 41         15,324,406   257,976              5,418,785,724
    BC, L = 190, k = 40     31, 31, 31         25,624,430   256,960              9,301,945,740

On CIFAR the first layer's BN follows conv1 directly. Sources differ: the released code (liuzhuang13/DenseNet)
always starts with 2k channels, ``init_channels=24`` for k = 12; a widespread implementation (imgclsmob) also
halves the channels of the basic networks, ``theta=0.5``. DenseNet-161 is from the released code, as are two
later networks: ``densenet264`` with ``growth=48``, called "cosine" after its learning rate, and ``growth=48,
blocks=(6, 12, 48, 48)``, called 232.

A layer's history is not copied: see ``minires.ops.dense_buffer``. Layers are called block1.layer1.bn1, conv1,
bn2, conv2.

Source: Huang, Liu, van der Maaten, Weinberger 2017, Densely connected convolutional networks,
arXiv:1608.06993; memory: Pleiss et al. 2017, arXiv:1707.06990.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from minires.errors import ConfigError, one_of
from minires.models import stem_and_head
from minires.models.registry import Entry, Paper
from minires.nn.layers import AvgPool2d, BatchNorm2d, Conv2d, Dropout, Sequential
from minires.nn.module import Module
from minires.ops.concat import concat
from minires.ops.dense_buffer import DenseBuffer
from minires.tensor import Tensor

IMAGENET = {
    # depth: (layers per block, growth rate)
    121: ((6, 12, 24, 16), 32),
    169: ((6, 12, 32, 32), 32),
    201: ((6, 12, 48, 32), 32),
    264: ((6, 12, 64, 48), 32),
    161: ((6, 12, 36, 24), 48),
}
CIFAR = {
    # name: (layers in each of the three blocks, growth rate, BC)
    "densenet40_k12": (12, 12, False),  # L = 3 * 12 + 4: conv1, two transitions, fc
    "densenet100_k12": (32, 12, False),
    "densenet100_k24": (32, 24, False),
    "densenet_bc100_k12": (16, 12, True),  # L = 3 * 16 * 2 + 4
    "densenet_bc250_k24": (41, 24, True),
    "densenet_bc190_k40": (31, 40, True),
}


class DenseBlock(Module):
    """Layers that each see the block's input and the outputs of all layers before.

    The layers are ``layer1``, ``layer2``, ... and give ``growth`` channels each. With ``shared`` they write
    into one array of all channels; without, each layer's input is a concatenation of its own: the same
    numbers, for more memory.

    Shapes: x (N, H, W, in_channels) -> (N, H, W, out_channels), out_channels = in_channels + layers * growth.
    """

    def __init__(self, in_channels: int, layers: Sequence[Module], *, growth: int, shared: bool) -> None:
        super().__init__()
        self.out_channels, self.shared = in_channels + len(layers) * growth, shared
        for number, layer in enumerate(layers, 1):
            setattr(self, f"layer{number}", layer)

    def forward(self, x: Tensor) -> Tensor:
        if not self.shared:
            for _, layer in self.children():
                x = concat([x, layer(x)])
            return x
        history = DenseBuffer(x, self.out_channels)
        for _, layer in self.children():
            history.append(layer(history.latest))
        return history.latest


def densenet(
    *,
    classes: int,
    rng: np.random.Generator,
    blocks: Sequence[int] = IMAGENET[121][0],
    growth: int = 32,
    bottleneck: bool = True,
    theta: float = 0.5,
    stem: str = "imagenet",
    init_channels: int | None = None,
    dropout: float = 0.0,
    shared: bool = True,
    initializer: str = "he_normal",
    bn_momentum: float | None = None,
    bn_eps: float | None = None,
) -> Sequential:
    """A DenseNet with ``blocks`` layers in its dense blocks; the options are those of the head of this file.

    ``init_channels`` are those of the first convolution; None is the paper's number. ``dropout`` is the rate
    of dropout after each convolution but the first: the paper's 0.2 where there is no augmentation.

    Shapes: pictures (N, H, W, 3) -> logits (N, classes).
    Raises: ConfigError if an option cannot be.
    """
    _check(blocks, growth, theta, stem, init_channels)
    norm: dict[str, Any] = {"convention": "torch", "momentum": bn_momentum, "eps": bn_eps}

    def unit(inputs: int, outputs: int, kernel: int, number: str = "") -> dict[str, Module]:
        """BN, ReLU, convolution, and dropout where there is some."""
        layers: dict[str, Module] = {
            f"bn{number}": BatchNorm2d(inputs, relu=True, **norm),
            f"conv{number}": Conv2d(
                inputs, outputs, kernel, padding=kernel // 2, bias=False, initializer=initializer, rng=rng
            ),
        }
        if dropout:
            layers[f"dropout{number}"] = Dropout(dropout, seed=int(rng.integers(2**32)))
        return layers

    def dense_layer(inputs: int) -> Sequential:
        if not bottleneck:
            return Sequential(**unit(inputs, growth, 3, "1"))
        return Sequential(**unit(inputs, 4 * growth, 1, "1"), **unit(4 * growth, growth, 3, "2"))

    if init_channels is None:
        init_channels = 2 * growth if stem == "imagenet" or (bottleneck and theta < 1) else 16
    channels = init_channels
    layers: dict[str, Module]
    if stem == "imagenet":
        layers = stem_and_head.stem(stem, channels, initializer=initializer, norm=norm, rng=rng)
    else:  # no batch norm and ReLU: the first layer begins with them
        layers = {"conv1": Conv2d(3, channels, 3, padding=1, bias=False, initializer=initializer, rng=rng)}
    for number, depth in enumerate(blocks, 1):
        members = [dense_layer(channels + i * growth) for i in range(depth)]
        block = DenseBlock(channels, members, growth=growth, shared=shared)
        name = f"block{number}"
        layers[name], channels = block, block.out_channels
        if number < len(blocks):
            kept = math.floor(theta * channels)
            if not kept:
                raise ConfigError(f"densenet: theta={theta} leaves none of the {channels} channels of {name}")
            layers[f"transition{number}"] = Sequential(**unit(channels, kept, 1), pool=AvgPool2d(2))
            channels = kept
    layers["bn_last"] = BatchNorm2d(channels, relu=True, **norm)
    return Sequential(**layers, **stem_and_head.head(channels, classes, initializer=initializer, rng=rng))


def _check(
    blocks: Sequence[int],
    growth: int,
    theta: float,
    stem: str,
    init_channels: int | None,
) -> None:
    if not blocks or min(blocks) < 1:
        raise ConfigError(f"densenet: blocks must give each block at least one layer, not {tuple(blocks)}")
    if growth < 1:
        raise ConfigError(f"densenet: growth must be at least 1 channel, not {growth}")
    if not 0 < theta <= 1:
        raise ConfigError(
            f"densenet: theta is the share of channels that a transition keeps, above 0 to 1, not {theta}"
        )
    one_of("stem", stem, stem_and_head.STEMS)
    if init_channels is not None and init_channels < 1:
        raise ConfigError(f"densenet: init_channels must be at least 1, or None, not {init_channels}")


PAPER = Paper("Huang et al.", 2017, "Densely connected convolutional networks", "1608.06993")


def _cifar(layers: int, growth: int, bc: bool) -> Entry:
    preset = {
        "stem": "cifar", "blocks": (layers,) * 3, "growth": growth,
        "bottleneck": bc, "theta": 0.5 if bc else 1.0,
    }  # fmt: skip
    title = f"DenseNet{'-BC' if bc else ''} of {3 * layers * (1 + bc) + 4} layers, growth {growth}, for CIFAR"
    return Entry(densenet, size=32, classes=10, preset=preset, title=title, paper=PAPER)


MODELS = {
    **{
        f"densenet{depth}": Entry(
            densenet, preset={"blocks": blocks, "growth": growth},
            title=f"DenseNet of {depth} layers, growth {growth}", paper=PAPER,
        )
        for depth, (blocks, growth) in IMAGENET.items()
    },
    **{f"{name}_cifar": _cifar(*row) for name, row in CIFAR.items()},
}  # fmt: skip

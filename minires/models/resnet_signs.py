"""The ResNet-50 of the SIGNS hand-gesture exercise, layer for layer and name for name.

    layer       output (64x64 input)   what
    conv1       32x32x64               zero-pad 3, 7x7/2 convolution; bn_conv1; ReLU
    pool1       15x15x64               3x3/2 max pool, no padding
    stage 2     15x15x256              convolutional block s=1, identity blocks b, c    [64, 64, 256]
    stage 3     8x8x512                convolutional block s=2, b, c, d                 [128, 128, 512]
    stage 4     4x4x1024               convolutional block s=2, b, c, d, e, f           [256, 256, 1024]
    stage 5     2x2x2048               convolutional block s=2, b, c                    [512, 512, 2048]
    avg_pool    1x1x2048               2x2 average pool, "same"
    fc6         6                      dense (softmax is part of the loss)

Every convolution has a bias; weights start Glorot-uniform; batch norm has eps 1e-3, momentum 0.99 (kept).
Parameters: 23,600,006, of which 23,546,886 are trained and 53,120 are running statistics.
MACs: 308,178,944.

Source: arXiv:1512.03385 table 1 (50 layers); the exercise's Keras layout: zero padding, biases, names.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minires.errors import ConfigError
from minires.models.registry import Entry
from minires.models.resnet import PAPER
from minires.nn.blocks import convolutional_block, identity_block
from minires.nn.layers import AvgPool2d, BatchNorm2d, Conv2d, Flatten, Linear, MaxPool2d, Sequential
from minires.nn.module import Module

STAGES = {
    # stage: (filters of a block, stride, blocks)
    2: ((64, 64, 256), 1, "abc"),
    3: ((128, 128, 512), 2, "abcd"),
    4: ((256, 256, 1024), 2, "abcdef"),
    5: ((512, 512, 2048), 2, "abc"),
}


def resnet_signs(
    *,
    classes: int,
    rng: np.random.Generator,
    size: int = 64,
    initializer: str = "glorot_uniform",
    bn_momentum: float = 0.99,
    bn_eps: float = 1e-3,
    last_gamma: float = 1.0,
) -> Sequential:
    """Shapes: pictures (N, size, size, 3), size at least 5 -> logits (N, classes); made for 64x64.

    Raises: ConfigError for a smaller size.
    """
    if size < 5:
        raise ConfigError(
            f"resnet50_signs: pictures of {size}x{size} are too small, it takes 5x5 and larger"
        )
    norm: dict[str, Any] = {"momentum": bn_momentum, "eps": bn_eps}
    options: dict[str, Any] = {
        "initializer": initializer, "norm": norm, "last_gamma": last_gamma, "rng": rng,
    }  # fmt: skip
    layers: dict[str, Module] = {
        "conv1": Conv2d(3, 64, 7, stride=2, padding=3, initializer=initializer, rng=rng),
        "bn_conv1": BatchNorm2d(64, relu=True, **norm),
        "pool1": MaxPool2d(3, stride=2),
    }
    channels = 64
    for stage, (filters, stride, blocks) in STAGES.items():
        first, rest = blocks[0], blocks[1:]
        layers[f"res{stage}{first}"] = convolutional_block(
            channels, filters, stage=stage, block=first, stride=stride, **options
        )
        channels = filters[-1]
        for name in rest:
            layers[f"res{stage}{name}"] = identity_block(
                channels, filters, stage=stage, block=name, **options
            )
    layers["avg_pool"] = AvgPool2d(2, padding="same")
    layers["flatten"] = Flatten()
    layers["fc6"] = Linear(channels * _places(size), classes, rng=rng)
    return Sequential(**layers)


def _places(size: int) -> int:
    """How many places are left of a square picture after avg_pool."""
    side = ((size + 6 - 7) // 2 + 1 - 3) // 2 + 1  # conv1, then max pool
    for _, stride, _ in STAGES.values():
        side = (side - 1) // stride + 1
    return ((side + 1) // 2) ** 2


MODELS = {
    "resnet50_signs": Entry(
        resnet_signs, size=64, classes=6, title="ResNet of 50 layers, as in the exercise SIGNS", paper=PAPER
    )
}

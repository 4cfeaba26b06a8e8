"""What the networks of several papers begin and end with."""

from __future__ import annotations

from typing import Any

import numpy as np

from minires.nn.layers import BatchNorm2d, Conv2d, GlobalAvgPool2d, Linear, MaxPool2d
from minires.nn.module import Module
from minires.ops.window import Padding


def imagenet_stem(
    channels: int = 64,
    *,
    bias: bool = False,
    pool_padding: Padding = 1,
    initializer: str,
    norm: dict[str, Any],
    rng: np.random.Generator,
) -> dict[str, Module]:
    """7x7/2 convolution, batch norm and ReLU, 3x3/2 max pool. Shapes: (N, 224, 224, 3) -> (N, 56, 56, C)."""
    return {
        "conv1": Conv2d(3, channels, 7, stride=2, padding=3, bias=bias, initializer=initializer, rng=rng),
        "bn_conv1": BatchNorm2d(channels, relu=True, **norm),
        "pool1": MaxPool2d(3, stride=2, padding=pool_padding),
    }


def cifar_stem(
    channels: int = 16,
    *,
    bias: bool = False,
    initializer: str,
    norm: dict[str, Any],
    rng: np.random.Generator,
) -> dict[str, Module]:
    """3x3 convolution, batch norm and ReLU. Shapes: (N, 32, 32, 3) -> (N, 32, 32, channels)."""
    return {
        "conv1": Conv2d(3, channels, 3, padding=1, bias=bias, initializer=initializer, rng=rng),
        "bn_conv1": BatchNorm2d(channels, relu=True, **norm),
    }


def head(
    channels: int, classes: int, *, initializer: str = "glorot_uniform", rng: np.random.Generator
) -> dict[str, Module]:
    """Global average pool and one dense layer. Shapes: (N, H, W, channels) -> (N, classes)."""
    return {"avg_pool": GlobalAvgPool2d(), "fc": Linear(channels, classes, initializer=initializer, rng=rng)}

"""What the networks of several papers begin and end with."""

from __future__ import annotations

from typing import Any

import numpy as np

from minires.errors import ConfigError, one_of
from minires.nn.layers import BatchNorm2d, Conv2d, GlobalAvgPool2d, Linear, MaxPool2d
from minires.nn.module import Module
from minires.ops.window import Padding

STEMS = {"imagenet": (7, 2), "cifar": (3, 1)}  # kernel and stride of the first convolution


def norm_options(
    bn: bool, *, convention: str, momentum: float | None, eps: float | None
) -> dict[str, Any]:  # fmt: skip
    """The options of the batch norms of a network. Raises: ConfigError if there are none and one is given.

    >>> norm_options(False, convention="torch", momentum=0.9, eps=None)
    Traceback (most recent call last):
    ...
    minires.errors.ConfigError: bn_momentum is of a batch norm, and bn=False leaves none
    """
    options = {"momentum": momentum, "eps": eps}
    if not bn and (given := [name for name, value in options.items() if value is not None]):
        raise ConfigError(f"bn_{given[0]} is of a batch norm, and bn=False leaves none")
    return {"convention": convention, **options}


def stem(
    name: str,
    channels: int,
    *,
    bias: bool = False,
    pool_padding: Padding = 1,
    initializer: str,
    norm: dict[str, Any],
    bn: bool = True,
    rng: np.random.Generator,
) -> dict[str, Module]:
    """What comes before the stages: for ``name`` "imagenet" or "cifar".

    imagenet   7x7/2 convolution, batch norm and ReLU, 3x3/2 max pool    (N, 224, 224, 3) -> (N, 56, 56, C)
    cifar      3x3 convolution, batch norm and ReLU                      (N, 32, 32, 3)   -> (N, 32, 32, C)

    Without ``bn`` the convolution has a bias, and its ReLU itself. Raises: ConfigError for another name.

    >>> norm = {"convention": "torch"}
    >>> list(stem("cifar", 16, initializer="zeros", norm=norm, rng=np.random.default_rng(0)))
    ['conv1', 'bn_conv1']
    """
    one_of("stem", name, STEMS)
    kernel, stride = STEMS[name]
    layers: dict[str, Module] = {
        "conv1": Conv2d(
            3, channels, kernel, stride=stride, padding=kernel // 2, bias=bias or not bn, relu=not bn,
            initializer=initializer, rng=rng,
        ),
        **({"bn_conv1": BatchNorm2d(channels, relu=True, **norm)} if bn else {}),
    }  # fmt: skip
    if stride > 1:
        layers["pool1"] = MaxPool2d(3, stride=2, padding=pool_padding)
    return layers


def head(
    channels: int, classes: int, *, initializer: str = "glorot_uniform", rng: np.random.Generator
) -> dict[str, Module]:
    """Global average pool and one dense layer. Shapes: (N, H, W, channels) -> (N, classes)."""
    return {"avg_pool": GlobalAvgPool2d(), "fc": Linear(channels, classes, initializer=initializer, rng=rng)}

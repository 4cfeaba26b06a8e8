"""The residual networks and the plain ones they are compared with, for ImageNet and for CIFAR."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from minires.errors import ConfigError
from minires.models import parts
from minires.models.entry import Entry
from minires.nn.blocks import ResidualBlock, basic, bottleneck, stack
from minires.nn.layers import Sequential
from minires.nn.module import Module

DEPTHS: dict[str, tuple[str, tuple[int, ...]]] = {
    # layers: (kind of block, blocks in conv2_x, conv3_x, conv4_x, conv5_x)
    "18": ("basic", (2, 2, 2, 2)),
    "34": ("basic", (3, 4, 6, 3)),
    "50": ("bottleneck", (3, 4, 6, 3)),
    "101": ("bottleneck", (3, 4, 23, 3)),
    "152": ("bottleneck", (3, 8, 36, 3)),
    "200": ("bottleneck", (3, 24, 36, 3)),
}
CIFAR_DEPTHS = (20, 32, 44, 56, 110, 1202)  # 6n + 2


def resnet(
    *,
    classes: int,
    rng: np.random.Generator,
    repeats: Sequence[int],
    widths: Sequence[int] = (64, 128, 256, 512),
    kind: str = "basic",
    shortcut: str = "B",
    pad: str = "after",
    stride_on: str = "1x1",
    bias: bool | str = False,
    stem: str = "imagenet",
    pool_padding: int | str = 1,
    convention: str = "torch",
    bn_momentum: float | None = None,
    bn_eps: float | None = None,
    last_gamma: float = 1.0,
    initializer: str = "he_normal",
) -> Sequential:
    """Pictures (N, H, W, 3) -> logits (N, classes)."""
    norm: dict[str, Any] = {"convention": convention, "momentum": bn_momentum, "eps": bn_eps}
    options: dict[str, Any] = {"initializer": initializer, "norm": norm, "rng": rng}

    def block(in_channels: int, width: int, *, stage: int, block: str, stride: int) -> ResidualBlock:
        branch = (
            basic(width, stride=stride)
            if kind == "basic"
            else bottleneck(width, stride=stride, stride_on=stride_on)
        )
        return ResidualBlock(
            in_channels, branch, stage=stage, block=block, shortcut=shortcut, pad=pad, bias=bias is True,
            last_gamma=last_gamma, **options,
        )  # fmt: skip

    first = widths[0]
    layers: dict[str, Module]
    if stem == "imagenet":
        layers = parts.imagenet_stem(first, bias=bool(bias), pool_padding=pool_padding, **options)
    elif stem == "cifar":
        layers = parts.cifar_stem(first, bias=bool(bias), **options)
    else:
        raise ConfigError(f"stem must be one of 'imagenet', 'cifar', not {stem!r}")
    blocks = stack(first, widths, repeats, block)
    channels = list(blocks.values())[-1].out_channels
    layers |= blocks
    layers |= parts.head(channels, classes, initializer=initializer, rng=rng)
    return Sequential(**layers)


KERAS = {"convention": "keras", "bn_eps": 1.001e-5, "bias": True, "initializer": "glorot_uniform"}
CIFAR: dict[str, Any] = {"stem": "cifar", "widths": (16, 32, 64), "kind": "basic"}

MODELS: dict[str, Entry] = {}
for _depth, (_kind, _repeats) in DEPTHS.items():
    _row: dict[str, Any] = {"kind": _kind, "repeats": _repeats}
    MODELS[f"resnet{_depth}"] = Entry(resnet, preset=_row)
    if _kind == "basic":
        MODELS[f"plain{_depth}"] = Entry(resnet, preset={**_row, "shortcut": "none"})
    if _depth in ("50", "101", "152"):
        MODELS[f"resnet{_depth}_keras"] = Entry(resnet, preset={**_row, **KERAS})
for _layers in CIFAR_DEPTHS:
    _row = {**CIFAR, "repeats": ((_layers - 2) // 6,) * 3}
    MODELS[f"resnet{_layers}_cifar"] = Entry(resnet, size=32, classes=10, preset={**_row, "shortcut": "A"})
    if _layers <= 110:
        MODELS[f"plain{_layers}_cifar"] = Entry(
            resnet, size=32, classes=10, preset={**_row, "shortcut": "none"}
        )

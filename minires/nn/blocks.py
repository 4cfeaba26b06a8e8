"""The two blocks of a bottleneck residual network.

    identity block        y = relu(x + F(x))            where input and output have one shape
    convolutional block   y = relu(bn(conv1x1(x)) + F(x))   where they do not: the shortcut is projected

with F(x) = bn(conv1x1(relu(bn(conv3x3(relu(bn(conv1x1(x)))))))): reduce the channels, work on few of them,
restore them. The stride, where there is one, stands on the first 1x1 and on the shortcut (the paper).

Layers carry the names of the released model: ``res2a_branch2a`` is the first convolution of stage 2, block a;
``res2a_branch1`` its shortcut; ``bn2a_branch2a`` the batch norm after it.

Source: He, Zhang, Ren, Sun 2015, Deep residual learning for image recognition, arXiv:1512.03385, figure 5;
names: KaimingHe/deep-residual-networks.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minires.nn.layers import BatchNorm2d, Conv2d
from minires.nn.module import Module
from minires.tensor import Tensor


class Bottleneck(Module):
    """1x1, 3x3, 1x1 convolutions around a shortcut; the layers' names are given by ``stage`` and ``block``.

    Shapes: x (N, H, W, in_channels) -> (N, ceil(H/stride), ceil(W/stride), filters[2]).
    """

    in_path = False  # the layers carry their full names themselves

    def __init__(
        self,
        in_channels: int,
        filters: tuple[int, int, int],
        *,
        stage: int,
        block: str,
        stride: int = 1,
        project: bool,
        initializer: str,
        norm: dict[str, Any],
        last_gamma: float,
        rng: np.random.Generator,
    ) -> None:
        super().__init__()
        reduce, middle, restore = filters
        name = f"{stage}{block}_branch"
        options: dict[str, Any] = {"initializer": initializer, "rng": rng}

        def add(branch: str, conv: Conv2d, *, start: float = 1.0) -> tuple[Conv2d, BatchNorm2d]:
            bn = BatchNorm2d(conv.weight.shape[-1], start=start, **norm)
            setattr(self, f"res{name}{branch}", conv)
            setattr(self, f"bn{name}{branch}", bn)
            return conv, bn

        self._branch = (
            add("2a", Conv2d(in_channels, reduce, 1, stride=stride, **options)),
            add("2b", Conv2d(reduce, middle, 3, padding="same", **options)),
            add("2c", Conv2d(middle, restore, 1, **options), start=last_gamma),
        )
        self._shortcut = (
            add("1", Conv2d(in_channels, restore, 1, stride=stride, **options)) if project else None
        )

    def forward(self, x: Tensor) -> Tensor:
        (conv_a, bn_a), (conv_b, bn_b), (conv_c, bn_c) = self._branch
        shortcut = x
        if self._shortcut is not None:
            conv_1, bn_1 = self._shortcut
            shortcut = bn_1(conv_1(x))
        y = bn_a(conv_a(x), relu=True)
        y = bn_b(conv_b(y), relu=True)
        return bn_c(conv_c(y), add=shortcut, relu=True)


def identity_block(
    in_channels: int,
    filters: tuple[int, int, int],
    *,
    stage: int,
    block: str,
    rng: np.random.Generator,
    initializer: str = "glorot_uniform",
    norm: dict[str, Any] | None = None,
    last_gamma: float = 1.0,
) -> Bottleneck:
    """A block whose shortcut is the input itself; ``in_channels`` must be ``filters[2]``.

    ``norm`` are options of BatchNorm2d, ``last_gamma`` is where the gamma of the branch's last batch norm
    starts: at 0 the block begins as the identity.
    """
    return Bottleneck(
        in_channels, filters, stage=stage, block=block, project=False,
        initializer=initializer, norm=norm or {}, last_gamma=last_gamma, rng=rng,
    )  # fmt: skip


def convolutional_block(
    in_channels: int,
    filters: tuple[int, int, int],
    *,
    stage: int,
    block: str,
    stride: int = 2,
    rng: np.random.Generator,
    initializer: str = "glorot_uniform",
    norm: dict[str, Any] | None = None,
    last_gamma: float = 1.0,
) -> Bottleneck:
    """A block whose shortcut is a 1x1 convolution with the block's stride, and a batch norm."""
    return Bottleneck(
        in_channels, filters, stage=stage, block=block, stride=stride, project=True,
        initializer=initializer, norm=norm or {}, last_gamma=last_gamma, rng=rng,
    )  # fmt: skip

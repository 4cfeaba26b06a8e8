"""BN-Inception, and the same network with squeeze and excitation.

    layer    output (224x224 input)   what
    conv1    112x112x64               7x7/2 convolution
    pool1    56x56x64                 3x3/2 max pool
    conv2    56x56x192                1x1 convolution to 64 (conv2_reduce), 3x3 to 192
    pool2    28x28x192                3x3/2 max pool

    module   output                   1x1    3x3            double 3x3          pool, 1x1
    3a       28x28x256                64     64 -> 64       64 -> 96, 96        avg, 32
    3b       28x28x320                64     64 -> 96       64 -> 96, 96        avg, 64
    3c /2    14x14x576                       128 -> 160     64 -> 96, 96        max
    4a       14x14x576                224    64 -> 96       96 -> 128, 128      avg, 128
    4b       14x14x576                192    96 -> 128      96 -> 128, 128      avg, 128
    4c       14x14x608                160    128 -> 160     128 -> 160, 160     avg, 128
    4d       14x14x608                96     128 -> 192     160 -> 192, 192     avg, 128
    4e /2    7x7x1056                        128 -> 192     192 -> 256, 256     max
    5a       7x7x1024                 352    192 -> 320     160 -> 224, 224     avg, 128
    5b       7x7x1024                 352    192 -> 320     192 -> 224, 224     max, 128

    avg_pool, fc                      global average, 1000 classes

The branches of a module see the same input and stand side by side in its output. ``64 -> 96`` is a 1x1
convolution to 64 channels, then a 3x3 to 96; after every convolution come batch norm and ReLU. In 3c and 4e
the last 3x3 of both branches has stride 2, and the pool hands its channels on as they are. In
SE-BN-Inception the output of each of the ten modules is scaled by squeeze and excitation.

                      parameters    trainable              MACs
    bn_inception      11,305,256    11,285,224    2,032,600,064
    se_bn_inception   11,951,654    11,931,622    2,033,239,424

Pools with stride 2 have no padding and round up; those with stride 1 have a padding of 1, which the averages
count. The picture must be even where the stride is 2: any multiple of 32 from 64 on will do.

Source: Ioffe and Szegedy 2015, Batch normalization, arXiv:1502.03167, figure 5; the numbers are those of the
released Caffe model and of SE-BN-Inception.prototxt (hujie-frank/SENet; arXiv:1709.01507).
Differs: the paper has 96 channels after the pools of 4c and 4d, hence 576 from them and 1024 from 4e. The
Caffe model of the plain network has biases before its batch norms, which can have no effect (``bias=True``:
10,016 parameters more).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from minires.errors import ShapeError
from minires.models import stem_and_head
from minires.models.registry import Entry, Paper
from minires.models.senet import PAPER as SENET
from minires.models.senet import gates
from minires.nn.blocks import Conv
from minires.nn.layers import AvgPool2d, BatchNorm2d, Conv2d, MaxPool2d, Sequential
from minires.nn.module import Module
from minires.ops.concat import concat
from minires.tensor import Tensor


class Inception(NamedTuple):
    """A row of the table; 0 channels where the module has no such convolution."""

    one: int
    three: tuple[int, int]
    double: tuple[int, int]
    pool: str
    projection: int
    stride: int = 1


MODULES = {
    "3a": Inception(64, (64, 64), (64, 96), "avg", 32),
    "3b": Inception(64, (64, 96), (64, 96), "avg", 64),
    "3c": Inception(0, (128, 160), (64, 96), "max", 0, stride=2),
    "4a": Inception(224, (64, 96), (96, 128), "avg", 128),
    "4b": Inception(192, (96, 128), (96, 128), "avg", 128),
    "4c": Inception(160, (128, 160), (128, 160), "avg", 128),
    "4d": Inception(96, (128, 192), (160, 192), "avg", 128),
    "4e": Inception(0, (128, 192), (192, 256), "max", 0, stride=2),
    "5a": Inception(352, (192, 320), (160, 224), "avg", 128),
    "5b": Inception(352, (192, 320), (192, 224), "max", 128),
}


def _conv_bn(
    name: str, inputs: int, conv: Conv, *, bias: bool, initializer: str, norm: dict[str, Any],
    rng: np.random.Generator,
) -> dict[str, Module]:  # fmt: skip
    """A convolution, and a batch norm that ends in ReLU: ``conv{name}`` and ``bn{name}``."""
    layer = Conv2d(
        inputs, conv.channels, conv.kernel, stride=conv.stride, padding=conv.kernel // 2,
        bias=bias, initializer=initializer, rng=rng,
    )  # fmt: skip
    return {f"conv{name}": layer, f"bn{name}": BatchNorm2d(conv.channels, relu=True, **norm)}


class InceptionModule(Module):
    """The branches of one row, side by side; ``gate(channels)``, if given, makes what scales the result.

    ``convolution(name, inputs, conv)`` makes a convolution and its batch norm. Names are those of the
    released model: ``conv_3x3_reduce``, ``conv_3x3``, ``conv_double3x3a``, ``conv_pool_proj``.

    Shapes: x (N, H, W, in_channels) -> (N, H / stride, W / stride, out_channels).
    Raises: ShapeError if H or W is odd, or below 4, where the stride is 2.
    """

    def __init__(
        self,
        in_channels: int,
        row: Inception,
        *,
        convolution: Callable[[str, int, Conv], dict[str, Module]],
        gate: Callable[[int], Module | None] | None = None,
    ) -> None:
        super().__init__()

        def chain(**convs: Conv) -> list[str]:
            """The names of layers, not the layers: whatever replaces a layer's attribute is what runs."""
            names, channels = [], in_channels
            for name, conv in convs.items():
                for full, layer in convolution(name, channels, conv).items():
                    setattr(self, full, layer)
                    names.append(full)
                channels = conv.channels
            return names

        stride, (few, three), (less, double) = row.stride, row.three, row.double
        self._branches = [chain(_1x1=Conv(row.one, 1))] if row.one else []
        self._branches += [
            chain(_3x3_reduce=Conv(few, 1), _3x3=Conv(three, 3, stride)),
            chain(
                _double3x3_reduce=Conv(less, 1), _double3x3a=Conv(double, 3),
                _double3x3b=Conv(double, 3, stride),
            ),
        ]  # fmt: skip
        if row.pool == "avg":
            self.pool: Module = AvgPool2d(3, stride=1, padding=1, count_padding=True)
        else:
            self.pool = MaxPool2d(3, stride=stride, padding=1 if stride == 1 else "ceil")
        self._branches.append(["pool"])
        if row.projection:
            self._branches[-1] += chain(_pool_proj=Conv(row.projection, 1))
        self.stride = stride
        self.out_channels = row.one + three + double + (row.projection or in_channels)
        self.se = None if gate is None else gate(self.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        high, wide = x.shape[1:3]
        if self.stride == 2 and (high % 2 or wide % 2 or min(high, wide) < 4):
            # A convolution of stride 2 keeps the last row of an odd picture, a pool that rounds up does not.
            raise ShapeError(
                f"the picture is {high}x{wide} here, but both sides must be even and at least 4 where its "
                "branches halve it. Use pictures whose sides are multiples of 32, at least 64"
            )
        outputs = []
        for branch in self._branches:
            y = x
            for layer in branch:
                y = getattr(self, layer)(y)
            outputs.append(y)
        y = concat(outputs)
        return y if self.se is None else self.se(y)


def bn_inception(
    *,
    classes: int,
    rng: np.random.Generator,
    se: bool = False,
    reduction: int | None = 16,
    gate_bias: bool = True,
    squeeze: str = "avg",
    bias: bool = False,
    initializer: str = "he_normal",
    bn_momentum: float | None = None,
    bn_eps: float | None = None,
) -> Sequential:
    """The network of the table; with ``se`` every module ends in squeeze and excitation.

    ``reduction``, ``gate_bias`` and ``squeeze`` are those of
    :class:`~minires.nn.squeeze_excitation.SqueezeExcitation`, and with the ``reduction`` None there are no
    gates; ``bias`` is that of every convolution.

    Shapes: pictures (N, 224, 224, 3) -> logits (N, classes); also with other multiples of 32 from 64 on.
    Raises: ConfigError as SqueezeExcitation does.
    """
    norm = {"convention": "torch", "momentum": bn_momentum, "eps": bn_eps}
    convolution = partial(_conv_bn, bias=bias, initializer=initializer, norm=norm, rng=rng)
    gate = gates(reduction, gate_bias, squeeze, initializer, rng) if se else None
    layers: dict[str, Module] = {
        **convolution("1", 3, Conv(64, 7, 2)),
        "pool1": MaxPool2d(3, stride=2, padding="ceil"),
        **convolution("2_reduce", 64, Conv(64, 1)),
        **convolution("2", 64, Conv(192, 3)),
        "pool2": MaxPool2d(3, stride=2, padding="ceil"),
    }
    channels = 192
    for name, row in MODULES.items():
        module = InceptionModule(channels, row, convolution=convolution, gate=gate)
        layers[f"inception_{name}"] = module
        channels = module.out_channels
    return Sequential(**layers, **stem_and_head.head(channels, classes, initializer=initializer, rng=rng))


PAPER = Paper("Ioffe and Szegedy", 2015, "Batch normalization", "1502.03167")

MODELS = {
    "bn_inception": Entry(bn_inception, title="Inception with batch norm", paper=PAPER),
    "se_bn_inception": Entry(
        bn_inception, preset={"se": True}, title="Inception with batch norm and gates", paper=SENET
    ),
}

"""VGG: small kernels only, and many of them.

Two 3x3 convolutions in a row see 5x5 pixels with 18 weights in place of 25, and three see 7x7 with 27 in
place of 49, with a ReLU after each. Table 1, a line per block; every block ends in a 2x2 max pool:

    output     A          A-LRN        B          C             D             E
    224x224    3, 64      3, 64 LRN    3 3, 64    3 3, 64       3 3, 64       3 3, 64
    112x112    3, 128     3, 128       3 3, 128   3 3, 128      3 3, 128      3 3, 128
    56x56      3 3, 256   3 3, 256     3 3, 256   3 3 1, 256    3 3 3, 256    3 3 3 3, 256
    28x28      3 3, 512   3 3, 512     3 3, 512   3 3 1, 512    3 3 3, 512    3 3 3 3, 512
    14x14      3 3, 512   3 3, 512     3 3, 512   3 3 1, 512    3 3 3, 512    3 3 3 3, 512
    1x1        dense 4096, dense 4096 (ReLU and dropout 0.5 after each), dense 1000

    network               parameters     with batch norm            MACs
    A   vgg11             132,863,336    132,874,344       7,609,090,048
        vgg11_lrn         132,863,336                      7,609,090,048
    B   vgg13             133,047,848    133,059,624       11,308,466,176
    C   vgg16_c           133,638,952    133,655,848       11,770,888,192
    D   vgg16             138,357,544    138,374,440       15,470,264,320
    E   vgg19             143,667,240    143,689,256       19,632,062,464
    vgg19_bn, head="linear", 32x32, 10 classes: 20,051,530 parameters, 398,136,320 MACs

Source: Simonyan and Zisserman 2014, Very deep convolutional networks for large-scale image recognition,
arXiv:1409.1556, table 1; layer names: the released Caffe models.
Differs: the paper started A from N(0, 0.01) (the variance) and the deeper networks from the trained A, and
notes that Glorot's start would have made that unnecessary; here all weights start He-normal, from which every
configuration trains at once. Batch norm came after the paper; networks with it keep the biases of the
convolutions, as PyTorch's do, unless ``bias=False``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from minires.errors import ConfigError, one_of
from minires.models.registry import Entry, Paper
from minires.models.stem_and_head import head as linear_head
from minires.models.stem_and_head import norm_options
from minires.nn.layers import (
    BatchNorm2d,
    Conv2d,
    Dropout,
    Flatten,
    Linear,
    LocalResponseNorm,
    MaxPool2d,
    ReLU,
    Sequential,
)
from minires.nn.module import Module

CONFIGURATIONS = {
    # name: the kernels of blocks 1 to 5, and where local response normalisation stands
    "A": ("3", "3", "3 3", "3 3", "3 3"),
    "A-LRN": ("3 LRN", "3", "3 3", "3 3", "3 3"),
    "B": ("3 3", "3 3", "3 3", "3 3", "3 3"),
    "C": ("3 3", "3 3", "3 3 1", "3 3 1", "3 3 1"),
    "D": ("3 3", "3 3", "3 3 3", "3 3 3", "3 3 3"),
    "E": ("3 3", "3 3", "3 3 3 3", "3 3 3 3", "3 3 3 3"),
}


def vgg(
    *,
    classes: int,
    rng: np.random.Generator,
    configuration: str = "D",
    widths: Sequence[int] = (64, 128, 256, 512, 512),
    size: int = 224,
    bn: bool = False,
    bias: bool = True,
    head: str = "dense",
    hidden: int = 4096,
    dropout: float = 0.5,
    initializer: str = "he_normal",
    bn_momentum: float | None = None,
    bn_eps: float | None = None,
) -> Sequential:
    """A ``configuration`` of table 1 for pictures of size x size.

    ``bn`` puts a batch norm after every convolution, ``bias`` gives the convolutions biases. The ``head`` is
    "dense" (the paper's three dense layers, two of them ``hidden`` wide and with ``dropout``) or "linear" (a
    global average pool and one dense layer, as is usual on CIFAR; it has no dropout).

    Shapes: pictures (N, size, size, 3) -> logits (N, classes).
    Raises: ConfigError if the configuration or the head is unknown, there are not five widths, a width is
    below 1, nothing would be left of the picture after five pools, or an option is of batch norms that are
    not there.
    """
    one_of("configuration", configuration, CONFIGURATIONS)
    one_of("head", head, ("dense", "linear"))
    blocks = CONFIGURATIONS[configuration]
    if len(widths) != len(blocks) or min(*widths, hidden) < 1:
        raise ConfigError(
            f"widths must be {len(blocks)} numbers, one for each block, and hidden one, all at least 1, "
            f"not {tuple(widths)} and {hidden}"
        )
    if size < 32:
        raise ConfigError(f"size must be at least 32, as five pools halve the picture, not {size}")
    norm = norm_options(bn, convention="torch", momentum=bn_momentum, eps=bn_eps)
    layers: dict[str, Module] = {}
    channels = 3
    for block, (kernels, width) in enumerate(zip(blocks, widths, strict=True), 1):
        for i, kernel in enumerate(kernels.split(), 1):
            if kernel == "LRN":
                layers[f"lrn{block}"] = LocalResponseNorm()
                continue
            layers[f"conv{block}_{i}"] = Conv2d(
                channels, width, int(kernel), padding=int(kernel) // 2, bias=bias,
                initializer=initializer, rng=rng,
            )  # fmt: skip
            if bn:
                layers[f"bn{block}_{i}"] = BatchNorm2d(width, relu=True, **norm)
            else:
                layers[f"relu{block}_{i}"] = ReLU()
            channels = width
        layers[f"pool{block}"] = MaxPool2d(2)
    if head == "linear":
        return Sequential(**layers, **linear_head(channels, classes, initializer=initializer, rng=rng))
    layers["flatten"] = Flatten()
    features = (size // 32) ** 2 * channels
    for number in (6, 7):
        layers[f"fc{number}"] = Linear(features, hidden, initializer=initializer, rng=rng)
        layers[f"relu{number}"] = ReLU()
        layers[f"drop{number}"] = Dropout(dropout, seed=int(rng.integers(2**32)))
        features = hidden
    layers["fc8"] = Linear(features, classes, initializer=initializer, rng=rng)
    return Sequential(**layers)


_NAMES = {"vgg11": "A", "vgg11_lrn": "A-LRN", "vgg13": "B", "vgg16_c": "C", "vgg16": "D", "vgg19": "E"}
PAPER = Paper(
    "Simonyan and Zisserman", 2014, "Very deep convolutional networks for large-scale image recognition",
    "1409.1556",
)  # fmt: skip

MODELS = {
    name + ("_bn" if bn else ""): Entry(
        vgg,
        preset={"configuration": configuration, "bn": bn},
        title=f"VGG, configuration {configuration}" + (", with batch norm" if bn else ""),
        paper=PAPER,
    )
    for bn in (False, True)
    for name, configuration in _NAMES.items()
}

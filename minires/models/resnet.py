"""Residual networks, and the plain networks they are compared with.

For ImageNet (table 1 of the paper; 200 layers are of the sequel, arXiv:1603.05027):

    layer     output    18 layers        34 layers        50 layers        101     152     200
    conv1     112x112   7x7, 64, stride 2; batch norm, ReLU
    pool1     56x56     3x3 max pool, stride 2
    conv2_x   56x56     [3x3, 64]        [3x3, 64]        [1x1, 64]
                        [3x3, 64] x2     [3x3, 64] x3     [3x3, 64]
                                                          [1x1, 256] x3    x3      x3      x3
    conv3_x   28x28     widths 128, x2   128, x4          128, 512, x4     x4      x8      x24
    conv4_x   14x14     widths 256, x2   256, x6          256, 1024, x6    x23     x36     x36
    conv5_x   7x7       widths 512, x2   512, x3          512, 2048, x3    x3      x3      x3
              1x1       global average pool, dense 1000

    layers, shortcut          parameters     trained             MACs
    18 plain, 18 A            11,523,496   11,515,688    1,794,805,760
    18 B                      11,699,112   11,689,512    1,814,073,344
    18 C                      12,055,464   12,043,816    1,878,298,624
    34 plain, 34 A            21,639,080   21,623,848    3,644,493,824
    34 B                      21,814,696   21,797,672    3,663,761,408
    34 C                      22,739,624   22,716,840    3,830,747,136
    50 B                      25,610,152   25,557,032    3,857,973,248
    101 B                     44,654,504   44,549,160    7,570,194,432
    152 B                     60,344,232   60,192,808   11,282,415,616
    200 B                     64,849,832   64,673,832   14,776,270,848
    50 keras                  25,636,712   25,583,592    3,857,973,248
    101 keras                 44,707,176   44,601,832    7,570,194,432
    152 keras                 60,419,944   60,268,520   11,282,415,616

For CIFAR-10 (section 4.2), 6n + 2 layers: a 3x3 convolution of 16, then n basic blocks each of width 16 at
32x32, 32 at 16x16 and 64 at 8x8, global average pool, dense 10. Shortcuts are of option A.

    layers     n    parameters     trained            MACs
    20         3       271,098     269,722      40,551,040
    32         5       466,426     464,154      68,862,592
    44         7       661,754     658,586      97,174,144
    56         9       857,082     853,018     125,485,696
    110       18     1,736,058   1,727,962     252,887,680
    1202     200    19,510,906  19,421,274   2,829,238,912

Parameters are those trained and two running statistics per channel of a batch norm. A plain network has the
same layers without shortcuts, so it has the figures of option A.

The same name stands for several networks, told apart by the options of ``resnet``:

    the paper; KaimingHe/deep-residual-networks          stride_on="1x1"
    "v1.5": fb.resnet.torch, torchvision                 stride_on="3x3", 231,211,008 MACs more
    the released Caffe ResNet-50                         bias="conv1", pool_padding="ceil"
    the released Caffe ResNet-101, -152                  pool_padding="ceil"
    keras.applications                                   names in _keras: a bias in every convolution
    option A as akamaster/pytorch_resnet_cifar10 has it  pad="both"; weights trained so need it

Many CIFAR networks that are called ResNet-20 have projections (shortcut="B"), 2,752 parameters more than the
paper's.

Source: He, Zhang, Ren, Sun 2015, Deep residual learning for image recognition, arXiv:1512.03385.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from minires.errors import one_of
from minires.models import stem_and_head
from minires.models.registry import Entry, Paper
from minires.nn.blocks import ResidualBlock, basic, bottleneck, check_stages, stack
from minires.nn.layers import Sequential

IMAGENET: dict[int, dict[str, Any]] = {
    # layers: blocks of conv2_x, conv3_x, conv4_x, conv5_x
    18: {"kind": "basic", "repeats": (2, 2, 2, 2)},
    34: {"kind": "basic", "repeats": (3, 4, 6, 3)},
    50: {"kind": "bottleneck", "repeats": (3, 4, 6, 3)},
    101: {"kind": "bottleneck", "repeats": (3, 4, 23, 3)},
    152: {"kind": "bottleneck", "repeats": (3, 8, 36, 3)},
    200: {"kind": "bottleneck", "repeats": (3, 24, 36, 3)},
}
CIFAR: dict[int, dict[str, Any]] = {
    6 * n + 2: {"kind": "basic", "repeats": (n, n, n), "widths": (16, 32, 64), "stem": "cifar"}
    for n in (3, 5, 7, 9, 18, 200)
}
KERAS: dict[str, Any] = {
    "bias": True, "convention": "keras", "bn_eps": 1.001e-5, "initializer": "glorot_uniform",
}  # fmt: skip


def resnet(
    *,
    classes: int,
    rng: np.random.Generator,
    kind: str = "bottleneck",
    repeats: Sequence[int] = (3, 4, 6, 3),
    widths: Sequence[int] = (64, 128, 256, 512),
    shortcut: str = "B",
    pad: str = "after",
    stride_on: str = "1x1",
    stem: str = "imagenet",
    pool_padding: int | str = 1,
    bias: bool | str = False,
    bn: bool = True,
    last_gamma: float = 1.0,
    initializer: str = "he_normal",
    convention: str = "torch",
    bn_momentum: float | None = None,
    bn_eps: float | None = None,
) -> Sequential:
    """A residual network: stem, one stage of blocks per width, global average pool, dense layer.

    ``kind`` is that of the blocks: "basic" (two 3x3) or "bottleneck" (1x1, 3x3, 1x1 of four times the width).
    ``repeats`` are the blocks of each stage. ``shortcut`` is "A", "B" or "C", or "none" for a plain network;
    ``pad`` says where option A puts its zero channels, "after" the others or on "both" sides; ``stride_on``
    which convolution of a bottleneck has the stride, the first "1x1" or the "3x3".

    ``stem`` is "imagenet" or "cifar"; ``pool_padding`` is the padding of the former's max pool, 1 or "ceil"
    (Caffe's rounding up). ``bias`` is True for a bias in every convolution, "conv1" for one in the first
    only. ``last_gamma`` is where the gamma of each block's last batch norm starts. ``convention`` is that of
    the batch norm, "torch" or "keras"; ``bn_momentum`` and ``bn_eps`` replace its usual values.

    Shapes: pictures (N, H, W, 3) -> logits (N, classes); made for 224x224 ("imagenet") or 32x32 ("cifar").
    Raises: ConfigError if an option is none of those named, or is of the batch norms that ``bn=False`` leaves
    out.
    Source: arXiv:1512.03385, table 1 and section 4.2.
    Differs: Keras pads with zeros before the max pool, here it is minus infinity; after a ReLU that is the
    same, since no value is below zero.
    """
    check_stages(widths, repeats)
    one_of("kind", kind, ("basic", "bottleneck"))
    one_of("stride_on", stride_on, ("1x1", "3x3"))
    one_of("stem", stem, stem_and_head.STEMS)
    one_of("pool_padding", pool_padding, (1, "ceil"))
    one_of("bias", bias, (False, True, "conv1"))
    one_of("bn", bn, (True, False))
    norm = stem_and_head.norm_options(bn, convention=convention, momentum=bn_momentum, eps=bn_eps)
    options: dict[str, Any] = {"initializer": initializer, "norm": norm, "rng": rng}

    def make(in_channels: int, width: int, *, stage: int, block: str, stride: int) -> ResidualBlock:
        if kind == "basic":
            branch = basic(width, stride=stride)
        else:
            branch = bottleneck(width, stride=stride, stride_on=stride_on)
        return ResidualBlock(
            in_channels, branch, stage=stage, block=block, shortcut=shortcut, pad=pad, bias=bias is True,
            bn=bn, last_gamma=last_gamma, **options,
        )  # fmt: skip

    layers = stem_and_head.stem(stem, widths[0], bias=bool(bias), pool_padding=pool_padding, bn=bn, **options)
    layers |= stack(widths[0], widths, repeats, make)
    channels = 4 * widths[-1] if kind == "bottleneck" else widths[-1]
    return Sequential(**layers, **stem_and_head.head(channels, classes, initializer=initializer, rng=rng))


PAPER = Paper("He et al.", 2015, "Deep residual learning for image recognition", "1512.03385")
SEQUEL = Paper("He et al.", 2016, "Identity mappings in deep residual networks", "1603.05027")


def _imagenet(n: int, kind: str, paper: Paper = PAPER, **preset: Any) -> Entry:
    return Entry(resnet, preset={**IMAGENET[n], **preset}, title=kind.format(n), paper=paper)


def _cifar(n: int, kind: str, **preset: Any) -> Entry:
    title = f"{kind.format(n)}, for CIFAR"
    return Entry(resnet, size=32, classes=10, preset={**CIFAR[n], **preset}, title=title, paper=PAPER)


_PLAIN, _RESNET = "{} layers without shortcuts", "ResNet of {} layers"

MODELS = {
    **{f"plain{n}": _imagenet(n, _PLAIN, shortcut="none") for n in (18, 34)},
    **{f"resnet{n}": _imagenet(n, _RESNET, SEQUEL if n == 200 else PAPER) for n in IMAGENET},
    **{f"resnet{n}_keras": _imagenet(n, f"{_RESNET}, as Keras has it", **KERAS) for n in (50, 101, 152)},
    **{f"plain{n}_cifar": _cifar(n, _PLAIN, shortcut="none") for n in (20, 32, 44, 56, 110)},
    **{f"resnet{n}_cifar": _cifar(n, _RESNET, shortcut="A") for n in CIFAR},
}

"""ResNet V2: the order of batch norm, ReLU and weight in a residual unit, and what may stand on its shortcut.

    y = x + F(x)        F: BN, ReLU, weight, BN, ReLU, weight ("full pre-activation")

The shortcut and what follows the addition are identities, so a signal goes through any number of units
unchanged, forward and backward. The networks, with their parameters (running statistics included) and
MACs:

    ImageNet, 224x224      stages 2 to 5: 64, 128, 256, 512 (bottleneck: four times that out), 56 to 7 pixels
    preresnet18            basic        2, 2, 2, 2      11,695,528    1,814,073,344
    preresnet34            basic        3, 4, 6, 3      21,811,112    3,663,761,408
    preresnet50            bottleneck   3, 4, 6, 3      25,594,792    4,089,184,256
    preresnet101           bottleneck   3, 4, 23, 3     44,639,144    7,801,405,440
    preresnet152           bottleneck   3, 8, 36, 3     60,328,872   11,513,626,624
    preresnet200           bottleneck   3, 24, 36, 3    64,834,472   15,007,481,856

    Keras                  28 to 7 pixels: the stride is in the last block of stages 2, 3, 4
    resnet50v2_keras       bottleneck   3, 4, 6, 3      25,613,800    3,482,255,360
    resnet101v2_keras      bottleneck   3, 4, 23, 3     44,675,560    7,194,476,544
    resnet152v2_keras      bottleneck   3, 8, 36, 3     60,380,648   10,906,697,728

    CIFAR, 32x32           stages 2 to 4: 16, 32, 64 (bottleneck: four times that out), 32 to 8 pixels
    preresnet110_cifar     basic        18, 18, 18       1,736,058      252,887,680
    preresnet164_cifar     bottleneck   18, 18, 18       1,727,482      244,500,992
    preresnet1001_cifar    bottleneck   111, 111, 111   10,476,922    1,487,849,984

Table 2 and figure 4 of the paper, ``order=``. Every unit has BN and ReLU between two weights; the orders
differ in what stands before the first weight, after the last one and after the addition:

                      before     after the last   after the addition   CIFAR-10 error, 110 / 164 layers
    original                     BN               ReLU                 6.61 / 5.93
    bn_after_add                                  BN, ReLU             8.17 / 6.50
    relu_before_add              BN, ReLU                              7.84 / 6.14
    relu_only         ReLU       BN                                    6.71 / 5.91
    full              BN, ReLU                                         6.37 / 5.46

Table 1 and figure 2, all with ``order="original"``; s multiplies the shortcut, f the branch:

                             s         f      options                                        error, 110 layers
    original                 1         1                                                     6.61
    constant scaling         0         1      gating="constant", scale=(0, 1)                fails
                             0.5       1      gating="constant", scale=(0.5, 1)              fails
                             0.5       0.5    gating="constant", scale=(0.5, 0.5)            12.35
    exclusive gating         1 - g     g      gating="exclusive", gate_bias=-6               8.70 (-7: 9.81)
    shortcut-only gating     1 - g     1      gating="shortcut_only", gate_bias=-6           6.91 (0: 12.86)
    1x1 convolution          weight    1      shortcut="C"                                   12.22
    dropout                  dropout   1      gating="dropout", dropout=0.5                  fails

    g(x) = sigmoid(Wg x + bg): a 1x1 convolution of what the shortcut sees, with the unit's stride and without
    a batch norm; gate_bias is where bg starts.

Source: He, Zhang, Ren, Sun 2016, Identity mappings in deep residual networks, arXiv:1603.05027; ImageNet:
facebookarchive/fb.resnet.torch models/preresnet.lua; 164 and 1001 layers: KaimingHe/resnet-1k-layers
resnet-pre-act.lua; Keras form: keras.applications.resnet_v2.
Differs: resnet-pre-act.lua puts the stride on the first 1x1 of a bottleneck, fb.resnet.torch on its 3x3
(``stride_on``); the MACs above are those of the preset that each network has here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from minires.errors import ConfigError, as_number, one_of
from minires.models import stem_and_head
from minires.models.registry import Entry
from minires.models.resnet import SEQUEL as PAPER
from minires.nn.blocks import Conv, basic, bottleneck, check_stages, stack
from minires.nn.layers import BatchNorm2d, Conv2d, Dropout, MaxPool2d, Pad2d, ReLU, Sequential
from minires.nn.module import Module
from minires.ops.pad_channels import pad_channels
from minires.ops.relu import relu
from minires.ops.sigmoid import sigmoid
from minires.tensor import Tensor


class Order(NamedTuple):
    """What stands before the first weight of a unit, after its last weight, and after the addition."""

    before: str
    last: str
    end: str


ORDERS = {
    "original": Order("", "bn", "relu"),
    "bn_after_add": Order("", "", "bn relu"),
    "relu_before_add": Order("", "bn relu", ""),
    "relu_only": Order("relu", "bn", ""),
    "full": Order("bn relu", "", ""),
}
SHORTCUTS = ("A", "B", "C")
GATINGS = ("none", "constant", "exclusive", "shortcut_only", "dropout")


class ResidualUnit(Module):
    """A branch and a shortcut, added; see the head of this file for ``order`` and ``gating``.

    ``starts`` says where the activation before the first weight stands, in the orders that have one: in the
    "branch" only; before the "split", so that the shortcut sees the activated input too; or "outside", if
    what comes in is activated already.

    ``shortcut`` says what is done where the branch changes the shape: "A", every stride-th place and
    channels of zeros; "B", a 1x1 convolution. "C" is the 1x1 convolution in every unit. Its result is added
    to that of the branch's last weight, so it has a batch norm in the orders in which that has one.

    With ``bias`` the convolutions that no batch norm follows at once have a bias.

    Shapes: x (N, H, W, in_channels) -> (N, ceil(H / stride), ceil(W / stride), out_channels).
    Raises: ConfigError if an option is none of those named, or if option A had to take channels away.
    Source: arXiv:1603.05027 figures 2 and 4.
    """

    in_path = False  # the layers carry their full names themselves

    def __init__(
        self,
        in_channels: int,
        branch: Sequence[Conv],
        *,
        stage: int,
        block: str,
        order: str = "full",
        starts: str = "branch",
        shortcut: str = "B",
        gating: str = "none",
        scale: Sequence[float] = (0.5, 1.0),
        gate_bias: float = -6.0,
        dropout: float = 0.5,
        bias: bool = False,
        initializer: str = "he_normal",
        norm: dict[str, Any] | None = None,
        rng: np.random.Generator,
    ) -> None:
        super().__init__()
        one_of("order", order, tuple(ORDERS))
        one_of("starts", starts, ("branch", "split", "outside"))
        one_of("shortcut", shortcut, SHORTCUTS)
        one_of("gating", gating, GATINGS)
        before, last, end = ORDERS[order]
        name = f"{stage}{block}_branch"
        self.in_channels, self.out_channels = in_channels, branch[-1].channels
        self.stride = int(np.prod([conv.stride for conv in branch]))

        # The names of layers are kept, not the layers: whatever replaces a layer's attribute is what runs.
        def conv2d(place: str, inputs: int, conv: Conv, *, bias: bool) -> str:
            layer = Conv2d(
                inputs, conv.channels, conv.kernel, stride=conv.stride, padding=conv.kernel // 2,
                groups=conv.groups, bias=bias, initializer=initializer, rng=rng,
            )  # fmt: skip
            setattr(self, f"res{name}{place}", layer)
            return f"res{name}{place}"

        def activation(place: str, channels: int, words: str) -> list[str]:
            """The layers that ``words`` say, none for none; "relu" is the function."""
            if words in ("", "relu"):
                return [words] if words else []
            setattr(self, f"bn{name}{place}", BatchNorm2d(channels, relu=words == "bn relu", **(norm or {})))
            return [f"bn{name}{place}"]

        self._before = activation("2a", in_channels, "" if starts == "outside" else before)
        self._splits_after = starts == "split"
        self._branch: list[str] = []
        channels = in_channels
        # A batch norm is called after the weight that it stands next to: the one before it, but in the full
        # pre-activation the one after it.
        names_ahead = before == "bn relu"
        for i, conv in enumerate(branch):
            is_last = i == len(branch) - 1
            place, after = f"2{'abcdef'[i]}", last if is_last else "bn relu"
            self._branch.append(conv2d(place, channels, conv, bias=bias and "bn" not in after))
            channels = conv.channels
            place = f"2{'abcdef'[i + 1]}" if names_ahead else place
            self._branch += activation(place, channels, after)
        self._end = activation(place, channels, end)

        fits = self.stride == 1 and in_channels == channels
        self._pads = shortcut == "A" and not fits
        if self._pads and in_channels > channels:
            raise ConfigError(
                f"unit {stage}{block}: shortcut 'A' adds channels of zeros, but {in_channels} come in and "
                f"the branch gives {channels}; use shortcut 'B' where the channels get fewer"
            )
        self._projection: list[str] = []
        if shortcut == "C" or (shortcut == "B" and not fits):
            one = Conv(channels, 1, self.stride)
            self._projection.append(conv2d("1", in_channels, one, bias=bias and not last))
            self._projection += activation("1", channels, "bn" if last else "")

        if not (isinstance(scale, tuple | list) and len(scale) == 2 and None not in map(as_number, scale)):
            raise ConfigError(f"scale must be two numbers, for the shortcut and the branch, not {scale!r}")
        self.gating, self.scale = gating, tuple(map(float, scale))
        if gating in ("exclusive", "shortcut_only"):
            if as_number(gate_bias) is None:
                raise ConfigError(f"gate_bias must be a number, not {gate_bias!r}")
            self._gate = conv2d("_gate", in_channels, Conv(channels, 1, self.stride), bias=True)
            getattr(self, self._gate).bias.data[...] = gate_bias
        if gating == "dropout":
            self._dropout = f"dropout{name}1"
            setattr(self, self._dropout, Dropout(dropout, seed=int(rng.integers(2**32))))

    def forward(self, x: Tensor) -> Tensor:
        return self.join(*self.parts(x))

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """F(x) and the shortcut, as they are before they are added."""
        active = self._run(self._before, x)
        shortcut, factor = self.shortcut(active if self._splits_after else x)
        y = self._run(self._branch, active)
        return y if factor is None else y * factor, shortcut

    def shortcut_of(self, x: Tensor) -> Tensor:
        """The shortcut alone, as it is before the addition."""
        return self.shortcut(self._run(self._before, x) if self._splits_after else x)[0]

    def join(self, branch: Tensor, shortcut: Tensor | None) -> Tensor:
        """The addition, and what stands after it in this order."""
        return self._run(self._end, branch if shortcut is None else branch + shortcut)

    def _run(self, layers: Sequence[str], x: Tensor) -> Tensor:
        for name in layers:
            x = relu(x) if name == "relu" else getattr(self, name)(x)
        return x

    def shortcut(self, x: Tensor) -> tuple[Tensor, Any]:
        """What is added to the branch, and what the branch is multiplied by before (None for nothing)."""
        shortcut = self._run(self._projection, x)
        if self._pads:
            shortcut = pad_channels(x, self.out_channels, stride=self.stride)
        if self.gating == "constant":
            s, f = self.scale
            return shortcut * s, None if f == 1 else f
        if self.gating in ("exclusive", "shortcut_only"):
            g = sigmoid(getattr(self, self._gate)(x))
            return shortcut * (1 - g), g if self.gating == "exclusive" else None
        if self.gating == "dropout":
            return getattr(self, self._dropout)(shortcut), None
        return shortcut, None


def resnet_v2(
    *,
    classes: int,
    rng: np.random.Generator,
    repeats: Sequence[int] = (3, 4, 6, 3),
    widths: Sequence[int] = (64, 128, 256, 512),
    kind: str = "bottleneck",
    order: str = "full",
    shortcut: str = "B",
    gating: str = "none",
    scale: Sequence[float] = (0.5, 1.0),
    gate_bias: float = -6.0,
    dropout: float = 0.5,
    last_norm: bool | None = None,
    stem: str = "imagenet",
    stride_on: str = "3x3",
    stride_in: str = "first",
    bias: bool = False,
    initializer: str = "he_normal",
    convention: str = "torch",
    bn_momentum: float | None = None,
    bn_eps: float | None = None,
) -> Sequential:
    """A residual network of ``repeats`` units of the given ``widths`` in each stage.

    ``kind`` is "basic" or "bottleneck"; ``order``, ``shortcut``, ``gating`` and its numbers are those of
    :class:`ResidualUnit`. ``stem``: "imagenet" or "cifar", both with batch norm and ReLU after the
    convolution; "bare", which has neither (resnetv2 of timm), or "keras", which pads with zeros before its
    max pool besides. ``stride_in``: a stage is halved in the "first" unit of the next one, or in its own
    "last" unit, whose shortcut takes every second place then. ``stride_on`` and ``bias``: as in
    :func:`minires.nn.blocks.bottleneck` and :class:`ResidualUnit`.

    The first and the last unit, and changes of shape. conv1 is followed by batch norm and ReLU in every
    order, as in the original network. In "relu_only" and "full" these are the activation that the very first
    unit would begin with, so it has none of its own (the stems bare and keras have no activation; there it
    keeps it); and what a further unit would begin with follows the last addition. In the first unit of each
    stage the activation stands before the split, so that projections, and option A, see the activated input;
    with the bare stem that is so only where there is a projection. ``last_norm`` says by itself, True or
    False, whether a batch norm and ReLU follow the last addition: the paper's orders differ in that, too.

    Shapes: pictures (N, H, W, 3) -> logits (N, classes).
    Raises: ConfigError if an option is none of those named.
    Source: arXiv:1603.05027, appendix and figure 5; the code named at the head of this file.
    """
    check_stages(widths, repeats)
    one_of("kind", kind, ("basic", "bottleneck"))
    one_of("stem", stem, (*stem_and_head.STEMS, "bare", "keras"))
    one_of("stride_on", stride_on, ("1x1", "3x3"))
    one_of("stride_in", stride_in, ("first", "last"))
    one_of("bias", bias, (False, True))
    norm: dict[str, Any] = {"convention": convention, "momentum": bn_momentum, "eps": bn_eps}
    options: dict[str, Any] = {"initializer": initializer, "norm": norm, "rng": rng}
    channels = widths[0]
    layers: dict[str, Module]
    if stem in ("bare", "keras"):
        layers = {
            "conv1": Conv2d(3, channels, 7, stride=2, padding=3, bias=bias, initializer=initializer, rng=rng),
            **({"pad1": Pad2d(1)} if stem == "keras" else {}),
            "pool1": MaxPool2d(3, stride=2, padding=0 if stem == "keras" else 1),
        }
    else:
        layers = stem_and_head.stem(stem, channels, **options)

    left = dict(enumerate(repeats, 2))  # stage: units still to come

    def unit(inputs: int, width: int, *, stage: int, block: str, stride: int) -> ResidualUnit:
        left[stage] -= 1
        if stride_in == "last":
            stride = 2 if left[stage] == 0 and stage + 1 in left else 1
        if kind == "basic":
            branch = basic(width, stride=stride)
        else:
            branch = bottleneck(width, stride=stride, stride_on=stride_on)
        first = block == "a"
        activated = first and stage == 2 and stem not in ("bare", "keras")
        # timm, which has the bare stem, activates before the split where there is a projection.
        splits = first and (stem != "bare" or stride != 1 or branch[-1].channels != inputs)
        # A last unit changes the size alone, which takes no weights: option A without new channels.
        subsamples = shortcut == "B" and not first
        return ResidualUnit(
            inputs, branch, stage=stage, block=block, order=order,
            starts="outside" if activated else "split" if splits else "branch",
            shortcut="A" if subsamples else shortcut, gating=gating, scale=scale, gate_bias=gate_bias,
            dropout=dropout, bias=bias, **options,
        )  # fmt: skip

    layers.update(stack(channels, widths, repeats, unit))
    channels = list(layers.values())[-1].out_channels  # type: ignore[attr-defined]
    one_of("last_norm", last_norm, (None, True, False))
    if ORDERS[order].before == "bn relu" if last_norm is None else last_norm:
        layers["post_bn"] = BatchNorm2d(channels, relu=True, **norm)
    elif ORDERS[order].before == "relu" and last_norm is None:
        layers["post_relu"] = ReLU()
    layers.update(stem_and_head.head(channels, classes, initializer=initializer, rng=rng))
    return Sequential(**layers)


DEPTHS: dict[str, dict[str, Any]] = {
    "18": {"kind": "basic", "repeats": (2, 2, 2, 2)},
    "34": {"kind": "basic", "repeats": (3, 4, 6, 3)},
    "50": {"kind": "bottleneck", "repeats": (3, 4, 6, 3)},
    "101": {"kind": "bottleneck", "repeats": (3, 4, 23, 3)},
    "152": {"kind": "bottleneck", "repeats": (3, 8, 36, 3)},
    "200": {"kind": "bottleneck", "repeats": (3, 24, 36, 3)},
}
KERAS: dict[str, Any] = {
    "stem": "keras", "stride_in": "last", "bias": True, "convention": "keras", "bn_eps": 1.001e-5,
    "initializer": "glorot_uniform",
}  # fmt: skip
CIFAR: dict[str, Any] = {"stem": "cifar", "widths": (16, 32, 64)}
CIFAR_DEPTHS: dict[str, dict[str, Any]] = {
    "110": {"kind": "basic", "repeats": (18, 18, 18), "shortcut": "A"},  # 6n + 2
    "164": {"kind": "bottleneck", "repeats": (18, 18, 18), "stride_on": "1x1"},  # 9n + 2
    "1001": {"kind": "bottleneck", "repeats": (111, 111, 111), "stride_on": "1x1"},
}

MODELS = {
    **{
        f"preresnet{depth}": Entry(
            resnet_v2, preset=row, title=f"pre-activation ResNet of {depth} layers", paper=PAPER
        )
        for depth, row in DEPTHS.items()
    },
    **{
        f"preresnet{depth}_cifar": Entry(
            resnet_v2, size=32, classes=10, preset={**CIFAR, **row},
            title=f"pre-activation ResNet of {depth} layers, for CIFAR", paper=PAPER,
        )
        for depth, row in CIFAR_DEPTHS.items()
    },
    **{
        f"resnet{depth}v2_keras": Entry(
            resnet_v2, preset={**KERAS, **DEPTHS[depth]},
            title=f"pre-activation ResNet of {depth} layers, as Keras has it", paper=PAPER,
        )
        for depth in ("50", "101", "152")
    },
}  # fmt: skip

"""ResNeXt: the residual branch as many narrow paths whose outputs are summed.

    y = relu(x + sum over i = 1..C of T_i(x))        every T_i is 1x1 to d channels, 3x3, 1x1 back

C is the cardinality and d the width of a path; "32x4d" is C = 32, d = 4. Three ways to compute it:

    form        figure   what
    branches    3a       C paths of 1x1, 3x3, 1x1; their sum; then one batch norm
    concat      3b       C paths of 1x1, 3x3; their outputs side by side; then one 1x1 convolution
    grouped     3c       one 1x1 to C*d channels, one 3x3 in C groups, one 1x1

All three are one function of the same weights (:func:`split_paths` moves them over) and the network starts
from the same weights in each. Grouped is the fast one; the others show what it means.

    stage     output    ResNet-50                        ResNeXt-50 (32x4d)
    conv1     112x112   7x7, 64, stride 2
    2         56x56     3x3 max pool, stride 2
                        [1x1 64, 3x3 64, 1x1 256] x3     [1x1 128, 3x3 128 C=32, 1x1 256] x3
    3         28x28     [128, 128, 512] x4               [256, 256 C=32, 512] x4
    4         14x14     [256, 256, 1024] x6              [512, 512 C=32, 1024] x6
    5         7x7       [512, 512, 2048] x3              [1024, 1024 C=32, 2048] x3
    avg_pool  1x1       global average pool, fc: 1000-way dense

d doubles with every stage: in a stage whose ResNet has n channels a path has floor(n * width / 64).

    network                 parameters   trained               MACs
    resnext50_1x64d         (ResNet-50 with the stride on its 3x3)
    resnext50_2x40d         25,481,896   25,425,000   4,124,508,160
    resnext50_4x24d         25,353,640   25,292,968   4,159,832,064
    resnext50_8x14d         25,667,464   25,603,016   4,267,409,408
    resnext50_32x4d         25,097,128   25,028,904   4,230,479,872
    resnext101_2x40d        44,569,768   44,456,296   7,843,553,280
    resnext101_4x24d        44,485,032   44,363,432   7,885,701,120
    resnext101_8x14d        45,234,056   45,104,328   8,076,871,680
    resnext101_32x4d        44,315,560   44,177,704   7,969,996,800
    resnext101_1x100d       85,734,968   85,611,336   15,272,862,720
    resnext101_2x64d        84,336,040   84,198,184   15,123,087,360
    resnext101_64x4d        83,658,152   83,455,272   15,460,270,080
    resnext101_32x8d        88,994,216   88,791,336   16,414,015,488
    resnext29_8x64d_cifar   34,484,170   34,426,698   5,387,266,048      10 classes, 32x32
    resnext29_16x64d_cifar  68,255,690   68,155,210   10,688,866,304
    resnext29_32x4d_cifar   4,800,970    4,775,754    774,055,936

Source: Xie, Girshick, Dollar, Tu, He 2016, Aggregated residual transformations for deep neural networks,
arXiv:1611.05431, table 1, figure 3; widths: facebookresearch/ResNeXt.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import add
from typing import Any

import numpy as np

from minires.errors import ConfigError, one_of
from minires.models import stem_and_head
from minires.models.registry import Entry, Paper
from minires.nn.blocks import ResidualBlock, bottleneck, check_stages, stack
from minires.nn.layers import BatchNorm2d, Conv2d, Sequential
from minires.nn.module import Module
from minires.ops.concat import concat
from minires.tensor import Tensor

FORMS = ("grouped", "branches", "concat")


class Paths(Module):
    """The C paths of one block, each with layers of its own: ``res2a_branch2a_1`` is the first of path 1.

    Each path is a 1x1 and a 3x3 convolution with batch norm and ReLU. With ``form="branches"`` it goes on to
    a 1x1 of its own, and the paths are summed; with ``form="concat"`` they are put side by side and go
    through one 1x1 together. The batch norm after that belongs to the block.

    Shapes: x (N, H, W, in_channels) -> (N, ceil(H / stride), ceil(W / stride), out_channels).
    """

    in_path = False  # the layers carry their full names themselves

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        cardinality: int,
        width: int,
        form: str,
        stride: int,
        stage: int,
        block: str,
        initializer: str,
        norm: dict[str, Any],
        rng: np.random.Generator,
    ) -> None:
        super().__init__()
        name = f"{stage}{block}_branch2"

        def conv(place: str, inputs: int, outputs: int, kernel: int, stride: int = 1) -> str:
            layer = Conv2d(
                inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False,
                initializer=initializer, rng=rng,
            )  # fmt: skip
            setattr(self, f"res{name}{place}", layer)
            return f"res{name}{place}"

        def batch_norm(place: str) -> str:
            setattr(self, f"bn{name}{place}", BatchNorm2d(width, relu=True, **norm))
            return f"bn{name}{place}"

        # Names of layers, not layers: whatever replaces a layer's attribute is what runs.
        self._paths: list[list[str]] = []
        for i in range(1, cardinality + 1):
            path = [conv(f"a_{i}", in_channels, width, 1), batch_norm(f"a_{i}")]
            path += [conv(f"b_{i}", width, width, 3, stride), batch_norm(f"b_{i}")]
            if form == "branches":
                path.append(conv(f"c_{i}", width, out_channels, 1))
            self._paths.append(path)
        if form == "concat":
            self._restore = conv("c", cardinality * width, out_channels, 1)
        self.form = form

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for path in self._paths:
            y = x
            for layer in path:
                y = getattr(self, layer)(y)
            outputs.append(y)
        if self.form == "branches":
            return reduce(add, outputs)
        restore: Module = getattr(self, self._restore)
        return restore(concat(outputs))


def split_paths(state: Mapping[str, Any], cardinality: int, form: str) -> dict[str, Any]:
    """The weights of a grouped network as those of the same network in another form.

    ``state`` is what ``state_dict()`` gives, or the gradients under the same names; ``form`` is "branches" or
    "concat". The channels of the first two convolutions of each block, and of their batch norms, are cut into
    ``cardinality`` parts; in "branches" the last convolution is cut along its inputs.

    Raises: ConfigError if the form is another one, ``state`` is not that of a grouped network, or its
    channels cannot be cut into so many parts.
    Source: arXiv:1611.05431, figure 3.
    """
    one_of("split_paths: form", form, FORMS[1:])
    if not any(name.endswith("_branch2a.weight") for name in state):
        raise ConfigError(
            "split_paths: no layer is called res.._branch2a; give the state of a grouped network"
        )
    cut: dict[str, Any] = {}
    for name, array in state.items():
        match = re.fullmatch(r"(res|bn)\d+[a-z]\d*_branch2([abc])", name.partition(".")[0])
        kind, place = match.groups() if match else ("", "")
        if place in ("a", "b"):
            axis = array.ndim - 1
        elif (kind, place, form) == ("res", "c", "branches"):
            axis = array.ndim - 2
        else:
            cut[name] = array
            continue
        channels = array.shape[axis]
        if cardinality < 1 or channels % cardinality:
            raise ConfigError(
                f"split_paths: {cardinality} paths cannot share the {channels} channels of {name}"
            )
        layer, _, leaf = name.partition(".")
        for i, part in enumerate(np.split(array, cardinality, axis), 1):
            cut[f"{layer}_{i}.{leaf}"] = part
    return cut


def resnext(
    *,
    classes: int,
    rng: np.random.Generator,
    repeats: Sequence[int] = (3, 4, 6, 3),
    widths: Sequence[int] = (64, 128, 256, 512),
    cardinality: int = 32,
    width: int = 4,
    form: str = "grouped",
    shortcut: str = "B",
    stem: str = "imagenet",
    last_gamma: float = 1.0,
    initializer: str = "he_normal",
    bn_momentum: float | None = None,
    bn_eps: float | None = None,
) -> Sequential:
    """The network with ``cardinality`` paths, each ``width`` channels wide where the ResNet has 64.

    ``widths`` are those of the ResNet's stages (a block gives four times as many channels) and ``repeats``
    their blocks. ``form`` is one of the three above, ``shortcut`` "A", "B", "C" or "none" as in a ResNet,
    ``stem`` "imagenet" or "cifar". ``last_gamma`` is where the gamma of each block's last batch norm starts.

    Shapes: pictures (N, H, W, 3) -> logits (N, classes).
    Raises: ConfigError if an option is none of those named, or a path would have no channel.
    """
    one_of("form", form, FORMS)
    one_of("stem", stem, stem_and_head.STEMS)
    check_stages(widths, repeats)
    if cardinality < 1 or min(n * width // 64 for n in widths) < 1:
        raise ConfigError(
            f"{cardinality}x{width}d is no network: there must be at least one path, and a channel in each "
            f"(floor(n * width / 64) in a stage of n = {', '.join(map(str, widths))})"
        )
    norm: dict[str, Any] = {"convention": "torch", "momentum": bn_momentum, "eps": bn_eps}

    def network(form: str, initializer: str) -> Sequential:
        options: dict[str, Any] = {"initializer": initializer, "norm": norm, "rng": rng}

        def make(channels: int, n: int, **place: Any) -> ResidualBlock:
            path, paths = n * width // 64, None
            if form != "grouped":
                paths = Paths(channels, 4 * n, cardinality=cardinality, width=path, form=form,
                              **place, **options)  # fmt: skip
            stride = place.pop("stride")
            branch = bottleneck(
                cardinality * path, stride=stride, stride_on="3x3", groups=cardinality, out=4 * n
            )
            return ResidualBlock(
                channels, branch, shortcut=shortcut, last_gamma=last_gamma, paths=paths, **place, **options
            )

        return Sequential(
            **stem_and_head.stem(stem, 64, **options),
            **stack(64, widths, repeats, make),
            **stem_and_head.head(4 * widths[-1], classes, initializer=initializer, rng=rng),
        )

    grouped = network("grouped", initializer)
    if form == "grouped":
        return grouped
    # Drawn path by path, the last 1x1 of a path would start from its own few inputs, and their sum too large.
    model = network(form, "zeros")
    model.load_state_dict(split_paths(grouped.state_dict(), cardinality, form))
    return model


PAPER = Paper(
    "Xie et al.", 2016, "Aggregated residual transformations for deep neural networks", "1611.05431"
)


def _entry(repeats: Sequence[int], cardinality: int, width: int) -> Entry:
    title = f"ResNeXt of {2 + 3 * sum(repeats)} layers, {cardinality}x{width}d"
    preset = {"repeats": repeats, "cardinality": cardinality, "width": width}
    return Entry(resnext, preset=preset, title=title, paper=PAPER)


def _cifar(cardinality: int, width: int) -> Entry:
    title = f"ResNeXt of 29 layers, {cardinality}x{width}d, for CIFAR"
    preset = {"repeats": (3, 3, 3), "widths": (64, 128, 256), "cardinality": cardinality, "width": width}
    return Entry(resnext, size=32, classes=10, preset={**preset, "stem": "cifar"}, title=title, paper=PAPER)


_50, _101 = (3, 4, 6, 3), (3, 4, 23, 3)

MODELS = {
    # Table 3: as many MACs as ResNet-50 and ResNet-101
    "resnext50_1x64d": _entry(_50, 1, 64),
    "resnext50_2x40d": _entry(_50, 2, 40),
    "resnext50_4x24d": _entry(_50, 4, 24),
    "resnext50_8x14d": _entry(_50, 8, 14),
    "resnext50_32x4d": _entry(_50, 32, 4),
    "resnext101_1x64d": _entry(_101, 1, 64),
    "resnext101_2x40d": _entry(_101, 2, 40),
    "resnext101_4x24d": _entry(_101, 4, 24),
    "resnext101_8x14d": _entry(_101, 8, 14),
    "resnext101_32x4d": _entry(_101, 32, 4),
    # Table 4: twice as many
    "resnext101_1x100d": _entry(_101, 1, 100),
    "resnext101_2x64d": _entry(_101, 2, 64),
    "resnext101_64x4d": _entry(_101, 64, 4),
    "resnext101_32x8d": _entry(_101, 32, 8),  # not in the paper: released with PyTorch
    # Section 5.3 and table 7
    "resnext29_8x64d_cifar": _cifar(8, 64),
    "resnext29_16x64d_cifar": _cifar(16, 64),
    "resnext29_32x4d_cifar": _cifar(32, 4),
}

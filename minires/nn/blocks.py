"""The residual block, and how blocks are stacked into stages.

    y = relu(F(x) + shortcut(x))

F is a chain of convolutions with a batch norm after each and a ReLU between; two kinds are in use:

    basic        3x3, 3x3             two convolutions of the block's width
    bottleneck   1x1, 3x3, 1x1        reduce the channels, work on few of them, restore them

The shortcut is x itself where F keeps its shape. Where it does not, the paper gives three options:

    A   every stride-th place of x, and channels of zeros: no parameters
    B   a 1x1 convolution with the block's stride, and a batch norm
    C   the same in every block, also where x would fit

Layers carry the names of the released model: ``res2a_branch2a`` is the first convolution of stage 2, block a;
``res2a_branch1`` its shortcut; ``bn2a_branch2a`` the batch norm after it.

Source: He, Zhang, Ren, Sun 2015, Deep residual learning for image recognition, arXiv:1512.03385, sections 3.3
and 4.1, figure 5; names: KaimingHe/deep-residual-networks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from minires.errors import ConfigError, as_whole, one_of
from minires.nn import init
from minires.nn.layers import BatchNorm2d, Conv2d
from minires.nn.module import Module
from minires.ops.pad_channels import pad_channels
from minires.ops.relu import relu
from minires.tensor import Tensor


class Conv(NamedTuple):
    """One convolution of a branch: as many channels out, a square kernel with padding kernel // 2.

    >>> Conv(64, 3)
    Conv(channels=64, kernel=3, stride=1, groups=1)
    """

    channels: int
    kernel: int
    stride: int = 1
    groups: int = 1


def basic(width: int, *, stride: int = 1) -> tuple[Conv, ...]:
    """The branch of a basic block: two 3x3 convolutions, the stride on the first.

    >>> [(conv.kernel, conv.channels, conv.stride) for conv in basic(64, stride=2)]
    [(3, 64, 2), (3, 64, 1)]
    """
    return Conv(width, 3, stride), Conv(width, 3)


def bottleneck(
    width: int, *, stride: int = 1, stride_on: str = "1x1", groups: int = 1, out: int | None = None
) -> tuple[Conv, ...]:
    """The branch of a bottleneck block: 1x1 to ``width``, 3x3, 1x1 to ``out`` (usually 4 width).

    stride_on: which convolution has the stride: the first "1x1" (the paper) or the "3x3" ("v1.5": the same
        parameters, more MACs, and no pixel is skipped).
    groups: those of the 3x3.

    Raises: ConfigError for another ``stride_on``.

    >>> [(conv.kernel, conv.channels) for conv in bottleneck(64)]
    [(1, 64), (3, 64), (1, 256)]
    """
    one_of("stride_on", stride_on, ("1x1", "3x3"))
    first, middle = (stride, 1) if stride_on == "1x1" else (1, stride)
    return Conv(width, 1, first), Conv(width, 3, middle, groups), Conv(4 * width if out is None else out, 1)


class Pair(NamedTuple):
    """The names of a convolution and of the batch norm behind it, in a block ("" where there is none), and
    whether a ReLU follows.

    >>> Pair("res2a_branch2a", "bn2a_branch2a").bn
    'bn2a_branch2a'
    """

    conv: str
    bn: str
    relu: bool = False


@runtime_checkable
class Residual(Protocol):
    """A block that says which are its two ways: whoever looks at, scales or cuts one of them asks for these.

    ``join(*parts(x))`` is what ``forward(x)`` gives; a block of your own that has both methods is looked at
    and changed like those here. A third method, ``shortcut_of(x)``, may give what comes over the shortcut
    alone: a block whose branch is dropped need not run it then.

    >>> isinstance(ResidualBlock(16, basic(16), stage=2, block="a"), Residual)
    True
    """

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """What comes out of the branch, and what over the shortcut (None in a plain block)."""

    def join(self, branch: Tensor, shortcut: Tensor | None) -> Tensor:
        """The addition, and what follows it in the block."""


class ResidualBlock(Module):
    """A branch of convolutions around a shortcut; the layers' names are given by ``stage`` and ``block``.

    branch: its convolutions, as :func:`basic` and :func:`bottleneck` give them.
    shortcut: "A", "B" or "C" of the paper, or "none" for a plain network.
    pad: where option A puts its zero channels: "after" the others or on "both" sides.
    projection: the kernel of a projecting shortcut.
    norm: options of BatchNorm2d.
    bn: whether a batch norm follows each convolution; without, each has a bias.
    last_gamma: where the gamma of the branch's last batch norm starts: at 0 the block begins as its shortcut.
    gate: a module that scales a tensor's channels (squeeze and excitation).
    placement: where it does: "standard" before the addition, "pre" before the branch, "post" after the block,
        "identity" on the shortcut.
    paths: a module that does the work of all convolutions of the branch, up to its last batch norm, in
        another form (ResNeXt's separate paths); ``branch`` then only says what it does.
    rng: the generator of the weights, by default that of ``minires.manual_seed``.

    Math: y = relu(F(x) + shortcut(x)).
    Shapes: x (N, H, W, in_channels) -> (N, ceil(H / stride), ceil(W / stride), out_channels).
    Raises: ConfigError if an option is none of those named, if option A had to take channels away, if there
    is no shortcut for a gate on it, or no batch norm for ``last_gamma``.
    Source: arXiv:1512.03385.

    >>> block = ResidualBlock(16, basic(32, stride=2), stage=3, block="a")
    >>> [name for name, _ in block.children()]
    ['res3a_branch2a', 'bn3a_branch2a', 'res3a_branch2b', 'bn3a_branch2b', 'res3a_branch1', 'bn3a_branch1']
    >>> block(Tensor(np.ones((1, 8, 8, 16), np.float32))).shape
    (1, 4, 4, 32)
    """

    in_path = False  # the layers carry their full names themselves

    def __init__(
        self,
        in_channels: int,
        branch: Sequence[Conv],
        *,
        stage: int,
        block: str,
        shortcut: str = "B",
        pad: str = "after",
        projection: int = 1,
        bias: bool = False,
        initializer: str = "he_normal",
        norm: dict[str, Any] | None = None,
        bn: bool = True,
        last_gamma: float = 1.0,
        gate: Module | None = None,
        placement: str = "standard",
        paths: Module | None = None,
        rng: np.random.Generator | None = None,
    ) -> None:
        super().__init__()
        one_of("shortcut", shortcut, ("A", "B", "C", "none"))
        one_of("pad", pad, ("after", "both"))
        one_of("placement", placement, ("standard", "pre", "post", "identity"))
        if not bn and last_gamma != 1:
            raise ConfigError(
                f"block {stage}{block}: last_gamma is of a batch norm, and bn=False leaves none"
            )
        name = f"{stage}{block}_branch"
        rng = init.generator(rng)

        def add(
            place: str, inputs: int, conv: Conv, known: str = "", *, relu: bool = False, start: float = 1.0
        ) -> Pair:  # fmt: skip
            """A convolution, a new one unless it is known, and a batch norm."""
            pair = Pair(known or f"res{name}{place}", f"bn{name}{place}" if bn else "", relu)
            if not known:
                layer: Module = Conv2d(
                    inputs, conv.channels, conv.kernel, stride=conv.stride, padding=conv.kernel // 2,
                    groups=conv.groups, bias=bias or not bn, initializer=initializer, rng=rng,
                )  # fmt: skip
                setattr(self, pair.conv, layer)
            if bn:
                layer = BatchNorm2d(conv.channels, start=start, relu=relu, **(norm or {}))
                setattr(self, pair.bn, layer)
            return pair

        known = ""
        if paths is not None:
            known = f"res{name}2"
            setattr(self, known, paths)
        # Names of layers, not layers: whatever replaces a layer's attribute is what runs.
        self._branch: list[Pair] = []
        channels = in_channels
        for i, conv in enumerate(branch):
            last = i == len(branch) - 1
            # With a gate before the addition, the ReLU comes after both.
            ends = not last or gate is None or placement != "standard"
            start = last_gamma if last else 1.0
            if paths is None or last:
                self._branch.append(add(f"2{'abcdef'[i]}", channels, conv, known, start=start, relu=ends))
            channels = conv.channels
        self.stride = int(np.prod([conv.stride for conv in branch]))
        self.in_channels, self.out_channels = in_channels, channels

        fits = self.stride == 1 and in_channels == channels
        self._shortcut = "identity" if shortcut in ("A", "B") and fits else shortcut
        if self._shortcut == "A" and in_channels > channels:
            raise ConfigError(
                f"block {stage}{block}: shortcut 'A' adds channels of zeros, but {in_channels} come in and "
                f"the branch gives {channels}; use shortcut 'B' where the channels get fewer"
            )
        if gate is not None and placement == "identity" and shortcut == "none":
            raise ConfigError(f"block {stage}{block}: placement 'identity' needs a shortcut, not 'none'")
        self._pad_both = pad == "both"
        if self._shortcut in ("B", "C"):
            self._projection = add("1", in_channels, Conv(channels, projection, self.stride))
        self.placement = placement if gate is not None else "none"
        if gate is not None:
            self._gate = f"res{stage}{block}_se"
            setattr(self, self._gate, gate)

    def extra_repr(self) -> str:
        gate = f", gate={self.placement!r}" if self.placement != "none" else ""
        return (
            f"{self.in_channels} to {self.out_channels} channels, stride={self.stride}, "
            f"shortcut={self._shortcut!r}{gate}"
        )

    def forward(self, x: Tensor) -> Tensor:
        # As join(*parts(x)), with what follows the last convolution in one pass.
        if self.placement == "standard":
            return self.join(*self.parts(x))
        y = self._conv_bn(self._branch[-1], self._before_last(x), add=self.shortcut_of(x))
        return self._layer(self._gate)(y) if self.placement == "post" else y

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """F(x) and the shortcut, as they are before they are added."""
        last, y = self._branch[-1], self._before_last(x)
        y = self._conv_bn(last, y, relu=False) if last.relu else self._conv_bn(last, y)
        if self.placement == "standard":
            y = self._layer(self._gate)(y)
        return y, self.shortcut_of(x)

    def join(self, branch: Tensor, shortcut: Tensor | None) -> Tensor:
        """The addition, the ReLU, and the gate where it stands after both."""
        y = relu(branch, add=shortcut)
        return self._layer(self._gate)(y) if self.placement == "post" else y

    def _before_last(self, x: Tensor) -> Tensor:
        """What the last convolution of the branch is given."""
        y = self._layer(self._gate)(x) if self.placement == "pre" else x
        for pair in self._branch[:-1]:
            y = self._conv_bn(pair, y)
        return y

    def _layer(self, name: str) -> Module:
        layer: Module = getattr(self, name)
        return layer

    def _conv_bn(self, pair: Pair, x: Tensor, **options: Any) -> Tensor:
        y = self._layer(pair.conv)(x)
        if pair.bn:
            return self._layer(pair.bn)(y, **options)
        add = options.get("add")
        if options.get("relu", pair.relu):
            return relu(y, add=add)
        return y if add is None else y + add

    def shortcut_of(self, x: Tensor) -> Tensor | None:
        """What is added to the branch: nothing, x, or x brought to the branch's shape."""
        if self._shortcut == "none":
            return None
        if self._shortcut == "A":
            x = pad_channels(x, self.out_channels, stride=self.stride, both=self._pad_both)
        elif self._shortcut in ("B", "C"):
            x = self._conv_bn(self._projection, x)
        return self._layer(self._gate)(x) if self.placement == "identity" else x


def identity_block(
    in_channels: int,
    filters: tuple[int, int, int],
    *,
    stage: int,
    block: str,
    rng: np.random.Generator | None = None,
    bias: bool = True,
    initializer: str = "glorot_uniform",
    norm: dict[str, Any] | None = None,
    last_gamma: float = 1.0,
) -> ResidualBlock:
    """A bottleneck block whose shortcut is the input itself; ``in_channels`` must be ``filters[2]``.

    The other options are those of :class:`ResidualBlock`.

    Shapes: x (N, H, W, in_channels) -> the same.
    Raises: ConfigError if the channels differ.

    >>> block = identity_block(256, (64, 64, 256), stage=2, block="b")
    >>> block(Tensor(np.zeros((1, 4, 4, 256), np.float32))).shape
    (1, 4, 4, 256)
    """
    reduce, middle, restore = filters
    if in_channels != restore:
        raise ConfigError(
            f"identity block {stage}{block}: the input has {in_channels} channels, but the branch gives "
            f"{restore}; they must be equal. Use a convolutional block where the channels change"
        )
    return ResidualBlock(
        in_channels, (Conv(reduce, 1), Conv(middle, 3), Conv(restore, 1)), stage=stage, block=block,
        bias=bias, initializer=initializer, norm=norm, last_gamma=last_gamma, rng=rng,
    )  # fmt: skip


def convolutional_block(
    in_channels: int,
    filters: tuple[int, int, int],
    *,
    stage: int,
    block: str,
    stride: int = 2,
    rng: np.random.Generator | None = None,
    bias: bool = True,
    initializer: str = "glorot_uniform",
    norm: dict[str, Any] | None = None,
    last_gamma: float = 1.0,
) -> ResidualBlock:
    """A bottleneck block whose shortcut is a 1x1 convolution with the block's stride, and a batch norm.

    The other options are those of :class:`ResidualBlock`.

    Shapes: x (N, H, W, in_channels) -> (N, ceil(H / stride), ceil(W / stride), filters[2]).

    >>> block = convolutional_block(64, (64, 64, 256), stage=2, block="a", stride=1)
    >>> block(Tensor(np.zeros((1, 4, 4, 64), np.float32))).shape
    (1, 4, 4, 256)
    """
    reduce, middle, restore = filters
    return ResidualBlock(
        in_channels, (Conv(reduce, 1, stride), Conv(middle, 3), Conv(restore, 1)), stage=stage, block=block,
        shortcut="C", bias=bias, initializer=initializer, norm=norm, last_gamma=last_gamma, rng=rng,
    )  # fmt: skip


def stack(
    channels: int, widths: Sequence[int], repeats: Sequence[int], make: Callable[..., Any]
) -> dict[str, Any]:
    """The stages of a residual network, from stage 2 on: res2a, res2b, ... -> blocks.

    ``make(in_channels, width, stage=, block=, stride=)`` makes one block, which knows its ``out_channels``;
    the first block of each stage but stage 2 has stride 2. ``channels`` come in.

    Names: a, b, c, ... as in the released ResNet-50; in a network that has a stage of more than six blocks,
    the stages of more than three say a, b1, b2, ..., as in the released ResNet-101 (res2c, res3b3, res4b22).
    Raises: ConfigError as ``check_stages``.

    >>> def make(channels, width, *, stage, block, stride):
    ...     return ResidualBlock(channels, basic(width, stride=stride), stage=stage, block=block)
    >>> list(stack(16, (16, 32), (2, 1), make))
    ['res2a', 'res2b', 'res3a']
    """
    check_stages(widths, repeats)
    blocks = {}
    for stage, (width, count) in enumerate(zip(widths, repeats, strict=True), 2):
        letters = count <= 3 or max(repeats) <= 6
        for i in range(count):
            name = "abcdef"[i] if letters else f"b{i}" if i else "a"
            stride = 2 if i == 0 and stage > 2 else 1
            block = make(channels, width, stage=stage, block=name, stride=stride)
            blocks[f"res{stage}{name}"] = block
            channels = block.out_channels
    return blocks


def check_stages(widths: Sequence[int], repeats: Sequence[int]) -> None:
    """Raise ConfigError unless each stage has a width, and a number of blocks, of at least 1.

    >>> check_stages((16, 32), (2, 0))
    Traceback (most recent call last):
    minires.errors.ConfigError: repeats must give each of the 2 stages at least one block, not (2, 0)
    """
    if not _whole_numbers(widths):
        raise ConfigError(f"widths must be a list of at least one width, each at least 1, not {widths!r}")
    if not _whole_numbers(repeats) or len(widths) != len(repeats):
        raise ConfigError(
            f"repeats must give each of the {len(widths)} stages at least one block, not {repeats!r}"
        )


def _whole_numbers(values: object) -> bool:
    return (
        isinstance(values, list | tuple)
        and len(values) > 0
        and all((as_whole(value) or 0) >= 1 for value in values)
    )

"""Squeeze and excitation: a network looks at its whole picture and weighs each of its channels.

    squeeze       z = mean of x over the picture                        (N, H, W, C) -> (N, C)
    excitation    s = sigmoid(relu(z @ w1 + b1) @ w2 + b2)              (N, C) -> (N, C/r) -> (N, C)
    scale         y[n, h, w, c] = x[n, h, w, c] * s[n, c]

The two dense layers hold 2 C^2 / r weights; the reduction r is 16 almost everywhere. The paper tries two
other squeezes: the maximum (top-1 error 22.57% instead of 22.28% in ResNet-50), and none, where the dense
layers become 1x1 convolutions and each place is weighed by itself (22.93%).

Source: Hu, Shen, Albanie, Sun, Wu 2017, Squeeze-and-excitation networks, arXiv:1709.01507, section 3, tables
11 and 16.
"""

from __future__ import annotations

import numpy as np

from minires.errors import ConfigError, as_whole, one_of, whole
from minires.nn.layers import Conv2d, Linear
from minires.nn.module import Module
from minires.ops.avg_pool2d import global_avg_pool2d
from minires.ops.relu import relu
from minires.ops.sigmoid import sigmoid
from minires.tensor import Tensor

SQUEEZES = ("avg", "max", "none")


class SqueezeExcitation(Module):
    """Scale each channel by a number between 0 and 1 that is computed from all channels.

    squeeze: "avg" (the mean of the picture), "max" (its maximum) or "none" (every place by itself).
    bias: that of both dense layers: the released models have it, the paper's ablations do not.
    rng: the generator of the weights, by default that of ``minires.manual_seed``.

    Math: z = mean of x over the picture;  s = sigmoid(relu(z @ w1 + b1) @ w2 + b2);  y = x * s.
    Shapes: x (N, H, W, channels) -> the same; between the dense layers channels // reduction.
    Raises: ConfigError if ``squeeze`` is unknown or ``reduction`` leaves no channel.
    Source: arXiv:1709.01507.

    >>> gate = SqueezeExcitation(32, reduction=8)
    >>> gate(Tensor(np.ones((1, 4, 4, 32), np.float32))).shape
    (1, 4, 4, 32)
    """

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 16,
        squeeze: str = "avg",
        bias: bool = True,
        initializer: str = "he_normal",
        rng: np.random.Generator | None = None,
    ) -> None:
        super().__init__()
        one_of("squeeze", squeeze, SQUEEZES)
        channels, share = whole("channels", channels), as_whole(reduction)
        if share is None or not 1 <= share <= channels:
            raise ConfigError(
                f"reduction must be a whole number from 1 to {channels}, the channels of this gate, not "
                f"{reduction!r}; channels // reduction are left between its dense layers"
            )
        self.channels, self.reduction, self.squeeze = channels, share, squeeze

        def dense(inputs: int, outputs: int) -> Conv2d | Linear:
            if squeeze == "none":
                return Conv2d(inputs, outputs, 1, bias=bias, initializer=initializer, rng=rng)
            return Linear(inputs, outputs, bias=bias, initializer=initializer, rng=rng)

        self.reduce = dense(channels, channels // share)
        self.expand = dense(channels // share, channels)
        self.scale = Scale()

    def forward(self, x: Tensor) -> Tensor:
        z = x
        if self.squeeze == "avg":
            z = global_avg_pool2d(x)
        elif self.squeeze == "max":
            z = x.max(axis=(1, 2))
        s = sigmoid(self.expand(relu(self.reduce(z))))
        if s.ndim == 2:
            s = s.reshape(s.shape[0], 1, 1, s.shape[1])  # (N, C) -> (N, 1, 1, C)
        return self.scale(x, by=s)


class Scale(Module):
    """x * by, as a layer of its own, so that a summary shows where a picture is scaled.

    Shapes: x (N, H, W, C), by (N, 1, 1, C) or (N, H, W, C) -> (N, H, W, C).

    >>> Scale()(Tensor([[1.0, 2.0]]), by=Tensor([[3.0, 0.5]])).numpy()
    array([[3., 1.]], dtype=float32)
    """

    def forward(self, x: Tensor, *, by: Tensor) -> Tensor:
        return x * by

    def left_out(self, x: Tensor, *, by: Tensor) -> Tensor:
        """x as it is."""
        return x

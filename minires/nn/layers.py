"""Layers: an operation together with its parameters."""

from __future__ import annotations

import numpy as np

from minires.errors import one_of
from minires.nn import init
from minires.nn.module import Module, Parameter
from minires.ops.avg_pool2d import avg_pool2d, global_avg_pool2d
from minires.ops.batch_norm import CONVENTIONS, batch_norm
from minires.ops.conv2d import conv2d
from minires.ops.dropout import check_rate, dropout
from minires.ops.linear import linear
from minires.ops.local_response_norm import local_response_norm
from minires.ops.max_pool2d import max_pool2d
from minires.ops.relu import relu
from minires.ops.reshape import flatten
from minires.ops.window import Padding
from minires.tensor import Tensor


class Conv2d(Module):
    """Convolution with a learned kernel, and a ReLU where asked; see :func:`minires.ops.conv2d.conv2d`.

    Shapes: x (N, H, W, in_channels) -> (N, OH, OW, out_channels); weight (KH, KW, in_channels/groups,
    out_channels), bias (out_channels,).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int | tuple[int, int],
        *,
        stride: int | tuple[int, int] = 1,
        padding: Padding = 0,
        groups: int = 1,
        bias: bool = True,
        relu: bool = False,
        initializer: str = "he_normal",
        rng: np.random.Generator,
    ) -> None:
        super().__init__()
        kh, kw = (kernel, kernel) if isinstance(kernel, int) else kernel
        self.stride, self.padding, self.groups, self.relu = stride, padding, groups, relu
        shape = (kh, kw, in_channels // groups, out_channels)
        self.weight = Parameter(init.get(initializer)(shape, rng))
        self.bias = Parameter(np.zeros(out_channels, np.float32)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return conv2d(
            x,
            self.weight,
            self.bias,
            stride=self.stride,
            padding=self.padding,
            groups=self.groups,
            relu=self.relu,
        )


class BatchNorm2d(Module):
    """Batch normalisation with learned scale and shift; see :func:`minires.ops.batch_norm.batch_norm`.

    Called with ``add`` it adds a shortcut, and with ``relu`` it ends in a ReLU, all in the same pass.
    A layer whose ``frozen`` is set uses its running statistics in training too, and keeps them.

    Shapes: x (..., channels) -> the same; gamma, beta, running_mean, running_var (channels,).
    Raises: ConfigError if ``convention`` is neither "keras" nor "torch".
    """

    def __init__(
        self,
        channels: int,
        *,
        momentum: float | None = None,
        eps: float | None = None,
        convention: str = "keras",
        start: float = 1.0,
        relu: bool = False,
    ) -> None:
        super().__init__()
        one_of("convention", convention, tuple(CONVENTIONS))
        self.convention, self.relu, self.frozen = convention, relu, False
        self.momentum = CONVENTIONS[convention]["momentum"] if momentum is None else momentum
        self.eps = CONVENTIONS[convention]["eps"] if eps is None else eps
        self.gamma = Parameter(np.full(channels, start, np.float32))
        self.beta = Parameter(np.zeros(channels, np.float32))
        self.running_mean = np.zeros(channels, np.float32)
        self.running_var = np.ones(channels, np.float32)

    def forward(self, x: Tensor, *, add: Tensor | None = None) -> Tensor:
        return batch_norm(
            x,
            self.gamma,
            self.beta,
            training=self.training and not self.frozen,
            running_mean=self.running_mean,
            running_var=self.running_var,
            momentum=self.momentum,
            eps=self.eps,
            convention=self.convention,
            add=add,
            relu=self.relu,
        )


class Linear(Module):
    """A dense layer: y = x @ weight + bias.

    Shapes: x (N, in_features) -> (N, out_features); weight (in_features, out_features), bias (out_features,).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        initializer: str = "glorot_uniform",
        rng: np.random.Generator,
    ) -> None:
        super().__init__()
        self.weight = Parameter(init.get(initializer)((in_features, out_features), rng))
        self.bias = Parameter(np.zeros(out_features, np.float32)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class ReLU(Module):
    """max(x, 0). Shapes: any."""

    def forward(self, x: Tensor) -> Tensor:
        return relu(x)


class MaxPool2d(Module):
    """Max pooling; see :func:`minires.ops.max_pool2d.max_pool2d`. Shapes: (N, H, W, C) -> (N, OH, OW, C)."""

    def __init__(
        self,
        kernel: int | tuple[int, int],
        *,
        stride: int | tuple[int, int] | None = None,
        padding: Padding = 0,
    ) -> None:
        super().__init__()
        self.kernel, self.stride, self.padding = kernel, stride, padding

    def forward(self, x: Tensor) -> Tensor:
        return max_pool2d(x, self.kernel, stride=self.stride, padding=self.padding)


class AvgPool2d(Module):
    """Average pooling; see :func:`minires.ops.avg_pool2d.avg_pool2d`. Shapes: as MaxPool2d."""

    def __init__(
        self,
        kernel: int | tuple[int, int],
        *,
        stride: int | tuple[int, int] | None = None,
        padding: Padding = 0,
        count_padding: bool = False,
    ) -> None:
        super().__init__()
        self.kernel, self.stride, self.padding = kernel, stride, padding
        self.count_padding = count_padding

    def forward(self, x: Tensor) -> Tensor:
        return avg_pool2d(
            x, self.kernel, stride=self.stride, padding=self.padding, count_padding=self.count_padding
        )


class GlobalAvgPool2d(Module):
    """The mean of each channel over the picture. Shapes: (N, H, W, C) -> (N, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return global_avg_pool2d(x)


class Flatten(Module):
    """All axes but the first as one. Shapes: (N, ...) -> (N, product of the rest)."""

    def forward(self, x: Tensor) -> Tensor:
        return flatten(x)


class LocalResponseNorm(Module):
    """Divide each channel by a norm of its neighbours; see
    :func:`minires.ops.local_response_norm.local_response_norm`. Shapes: (..., C) -> the same.
    """

    def __init__(self, size: int = 5, *, k: float = 2.0, alpha: float = 1e-4, beta: float = 0.75) -> None:
        super().__init__()
        self.size, self.k, self.alpha, self.beta = size, k, alpha, beta

    def forward(self, x: Tensor) -> Tensor:
        return local_response_norm(x, self.size, k=self.k, alpha=self.alpha, beta=self.beta)


class Dropout(Module):
    """Set a share ``rate`` of the values to zero in training, and scale the others up to match.

    Shapes: any. Its random generator starts from ``seed`` and is part of ``random_states()``.
    Raises: ConfigError if the rate is not in [0, 1).
    """

    def __init__(self, rate: float, *, seed: int = 0) -> None:
        super().__init__()
        check_rate(rate)
        self.rate = rate
        self.rng = np.random.default_rng(seed)

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.rate, rng=self.rng, training=self.training)


class Sequential(Module):
    """Modules one after the other. Unnamed ones are called 0, 1, 2, ..."""

    def __init__(self, *modules: Module, **named: Module) -> None:
        super().__init__()
        for index, module in enumerate(modules):
            setattr(self, str(index), module)
        for name, module in named.items():
            setattr(self, name, module)

    def forward(self, x: Tensor) -> Tensor:
        for _, module in self.children():
            x = module(x)
        return x

"""Layers: an operation together with its parameters.

Where a layer is not given a random generator it draws its weights from the default one, which
``minires.manual_seed`` sets: see :mod:`minires.nn.init`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, Self, overload

import numpy as np

from minires.errors import (
    ConfigError,
    MiniresError,
    as_seed,
    number,
    one_of,
    plain,
    several,
    truth,
    unknown,
    whole,
)
from minires.nn import init
from minires.nn.module import Module, Parameter
from minires.nn.of_operation import as_module, layer_of
from minires.ops import checks
from minires.ops.avg_pool2d import avg_pool2d, global_avg_pool2d
from minires.ops.batch_norm import CONVENTIONS, batch_norm
from minires.ops.checks import pair
from minires.ops.conv2d import conv2d
from minires.ops.conv2d.arguments import window as conv2d_window
from minires.ops.cross_entropy import cross_entropy
from minires.ops.dropout import check_rate, dropout
from minires.ops.labels import REDUCTIONS
from minires.ops.leaky_relu import leaky_relu
from minires.ops.linear import linear
from minires.ops.local_response_norm import local_response_norm
from minires.ops.max_pool2d import max_pool2d
from minires.ops.pad import MODES, pad
from minires.ops.relu import relu
from minires.ops.reshape import flatten
from minires.ops.sigmoid import sigmoid
from minires.ops.softmax import softmax
from minires.ops.window import WORDS, Padding, sides
from minires.tensor import Tensor

Layer = Module | Callable[[Tensor], Tensor]


def _window(layer: str, kernel: Any, stride: Any, padding: Any, dilation: Any) -> Any:
    """These four as they were given, with Python's own numbers. Raises: ShapeError for what is no window."""
    pair(layer, "kernel", kernel)
    pair(layer, "stride", kernel if stride is None else stride)
    pair(layer, "dilation", dilation)
    if isinstance(padding, str):
        one_of(f"{layer}: padding", padding, WORDS)
    else:
        sides(layer, padding)
    return plain((kernel, stride, padding, dilation))


def add_and_relu(x: Tensor, *, add: Tensor | None, is_relu: bool) -> Tensor:
    """What a batch norm does besides: the addition of a shortcut, if there is one, and a ReLU, if asked.

    >>> add_and_relu(Tensor([1.0, -3.0]), add=Tensor([1.0, 1.0]), is_relu=True).tolist()
    [2.0, 0.0]
    """
    if is_relu:
        return relu(x, add=add)
    return x if add is None else x + add


class Conv2d(Module):
    """Convolution with a learned kernel, and a ReLU where asked; see :func:`minires.ops.conv2d.conv2d`.

    kernel: its height and width, or one number for both.
    padding: rows and columns added on each side, or "same"; see :mod:`minires.ops.window`.
    padding_mode: of what they are: "constant" zeros, or "edge", "reflect" or "wrap", pixels of the picture as
        in :func:`minires.ops.pad.pad`.
    dilation: how far apart the pixels under the kernel are, an int or a pair (height, width).
    groups: the channels are cut into so many groups, each convolved by itself.
    initializer: how the weights start, a name of :mod:`minires.nn.init`; the bias starts at 0.
    rng: the generator from which they are drawn, by default that of ``minires.manual_seed``.

    Shapes: x (N, H, W, in_channels) -> (N, OH, OW, out_channels); weight (KH, KW, in_channels/groups,
    out_channels), bias (out_channels,).
    Raises: ConfigError for an unknown initialiser or mode, or channels that the groups do not divide;
    ShapeError for a kernel, stride or dilation that makes no sense.
    Differs: PyTorch calls the modes zeros, replicate, reflect and circular.

    >>> layer = Conv2d(3, 16, 3, padding=1)
    >>> layer
    Conv2d(3, 16, 3, padding=1), weight (3, 3, 3, 16), bias (16,), 448 parameters
    >>> layer(Tensor(np.ones((2, 8, 8, 3), np.float32))).shape
    (2, 8, 8, 16)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int | tuple[int, int],
        *,
        stride: int | tuple[int, int] = 1,
        padding: Padding = 0,
        padding_mode: str = "constant",
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        relu: bool = False,
        initializer: str = "he_normal",
        rng: np.random.Generator | None = None,
    ) -> None:
        super().__init__()
        in_channels, out_channels = whole("in_channels", in_channels), whole("out_channels", out_channels)
        groups = whole("groups", groups, least=0)
        one_of("padding_mode", padding_mode, MODES)
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise ConfigError(
                f"{in_channels} channels in and {out_channels} out cannot be cut into {groups} groups; both "
                "must be multiples of groups"
            )
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.relu = truth("relu", relu)
        self.kernel, self.stride, self.padding, self.dilation = _window(
            "Conv2d", kernel, stride, padding, dilation
        )
        self.padding_mode = padding_mode
        kh, kw = pair("Conv2d", "kernel", kernel)
        shape = (kh, kw, in_channels // groups, out_channels)
        self.weight = Parameter(init.get(initializer)(shape, init.generator(rng)))
        self.bias = Parameter(np.zeros(out_channels, np.float32)) if truth("bias", bias) else None

    def forward(self, x: Tensor) -> Tensor:
        padding = self.padding
        if self.padding_mode != "constant":
            x, padding = self._padded(x), 0
        return conv2d(
            x,
            self.weight,
            self.bias,
            stride=self.stride,
            padding=padding,
            dilation=self.dilation,
            groups=self.groups,
            relu=self.relu,
        )

    def left_out(self, x: Tensor) -> Tensor:
        """The ReLU behind it, where it has one."""
        return relu(x) if self.relu else x

    def _padded(self, x: Tensor) -> Tensor:
        """x with the border that the convolution would have added, made of its own pixels."""
        shape = self.weight.shape
        win = conv2d_window(x.shape, shape, self.stride, self.padding, self.dilation, self.groups)
        return pad(x, ((win.top, win.bottom), (win.left, win.right)), mode=self.padding_mode)


class BatchNorm2d(Module):
    """Batch normalisation with learned scale and shift; see :func:`minires.ops.batch_norm.batch_norm`.

    Called with ``add`` it adds a shortcut, and with ``relu`` it ends in a ReLU, all in the same pass; whether
    it does may be said anew in a call.
    A layer whose ``frozen`` is set uses its running statistics in training too, and keeps them.

    convention: "keras" or "torch": what momentum means and, with eps, is if left out.
    start: where gamma starts; beta starts at 0.

    Shapes: x (..., channels) -> the same; gamma, beta, running_mean, running_var (channels,).
    Raises: ConfigError if ``convention`` is neither "keras" nor "torch".

    >>> norm = BatchNorm2d(1, convention="torch")
    >>> norm(Tensor([[1.0], [3.0]])).numpy().round(3).tolist()
    [[-1.0], [1.0]]
    >>> norm.running_mean.round(3)
    array([0.2], dtype=float32)
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
        self.channels = channels = whole("channels", channels)
        self.convention, self.relu, self.frozen = convention, truth("relu", relu), False
        usual = CONVENTIONS[convention]
        momentum = usual["momentum"] if momentum is None else momentum
        self.momentum = number("momentum", momentum, least=0, most=1)
        self.eps = number("eps", usual["eps"] if eps is None else eps, least=0)
        self.gamma = Parameter(np.full(channels, number("start", start), np.float32))
        self.beta = Parameter(np.zeros(channels, np.float32))
        self.running_mean = np.zeros(channels, np.float32)
        self.running_var = np.ones(channels, np.float32)

    def extra_repr(self) -> str:
        usual = CONVENTIONS[self.convention]
        numbers = {"momentum": self.momentum, "eps": self.eps}
        own = [f"{name}={number}" for name, number in numbers.items() if number != usual[name]]
        convention = [f"convention={self.convention!r}"] if self.convention != "keras" else []
        return ", ".join([f"{self.channels}", *own, *convention, *["relu=True"] * self.relu])

    def forward(self, x: Tensor, *, add: Tensor | None = None, relu: bool | None = None) -> Tensor:
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
            relu=self.relu if relu is None else relu,
        )

    def left_out(self, x: Tensor, *, add: Tensor | None = None, relu: bool | None = None) -> Tensor:
        """The shortcut that it is given is added, and the ReLU follows."""
        return add_and_relu(x, add=add, is_relu=self.relu if relu is None else relu)


class Linear(Module):
    """A dense layer: y = x @ weight + bias.

    initializer: how the weights start, a name of :mod:`minires.nn.init`; the bias starts at 0.
    rng: the generator from which they are drawn, by default that of ``minires.manual_seed``.

    Shapes: x (N, in_features) -> (N, out_features), and so with more axes before the last; weight
    (in_features, out_features), bias (out_features,).
    Raises: ConfigError for an unknown initialiser.

    >>> Linear(8, 4)(Tensor(np.ones((2, 8), np.float32))).shape
    (2, 4)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        initializer: str = "glorot_uniform",
        rng: np.random.Generator | None = None,
    ) -> None:
        super().__init__()
        self.in_features = in_features = whole("in_features", in_features)
        self.out_features = out_features = whole("out_features", out_features)
        self.weight = Parameter(init.get(initializer)((in_features, out_features), init.generator(rng)))
        self.bias = Parameter(np.zeros(out_features, np.float32)) if truth("bias", bias) else None

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class ReLU(Module):
    """y = max(x, 0); see :func:`minires.ops.relu.relu`.

    Shapes: any.

    >>> ReLU()(Tensor([-1.0, 2.0])).numpy()
    array([0., 2.], dtype=float32)
    """

    def forward(self, x: Tensor) -> Tensor:
        return relu(x)


LeakyReLU = layer_of(leaky_relu, "LeakyReLU", module=__name__)


class Sigmoid(Module):
    """y = 1 / (1 + exp(-x)); see :func:`minires.ops.sigmoid.sigmoid`.

    Shapes: any.

    >>> Sigmoid()(Tensor([0.0])).numpy()
    array([0.5], dtype=float32)
    """

    def forward(self, x: Tensor) -> Tensor:
        return sigmoid(x)


class Softmax(Module):
    """Scores as probabilities: y = exp(x) / sum of exp(x) over the row.

    See :func:`minires.ops.softmax.softmax`. A network that is trained with :class:`CrossEntropyLoss` ends
    without it: the loss takes scores.

    Shapes: x (N, K) -> the same.

    >>> Softmax()(Tensor([[1.0, 1.0]])).numpy()
    array([[0.5, 0.5]], dtype=float32)
    """

    def forward(self, x: Tensor) -> Tensor:
        return softmax(x)


class Identity(Module):
    """y = x: a place holder, for a head that is taken off, say.

    Shapes: any.

    >>> x = Tensor([1.0])
    >>> Identity()(x) is x
    True
    """

    def forward(self, x: Tensor) -> Tensor:
        return x


class MaxPool2d(Module):
    """Max pooling; see :func:`minires.ops.max_pool2d.max_pool2d`.

    stride: that of the window, by default the kernel.
    padding: rows and columns on each side, which never win, or "same" or "ceil".
    dilation: how far apart the pixels of the window are.

    Shapes: x (N, H, W, C) -> (N, OH, OW, C).

    >>> x = Tensor(np.arange(16.0).reshape(1, 4, 4, 1))
    >>> MaxPool2d(2)(x).numpy().reshape(2, 2)
    array([[ 5.,  7.],
           [13., 15.]])
    """

    def __init__(
        self,
        kernel: int | tuple[int, int],
        *,
        stride: int | tuple[int, int] | None = None,
        padding: Padding = 0,
        dilation: int | tuple[int, int] = 1,
    ) -> None:
        super().__init__()
        self.kernel, self.stride, self.padding, self.dilation = _window(
            "MaxPool2d", kernel, stride, padding, dilation
        )

    def forward(self, x: Tensor) -> Tensor:
        return max_pool2d(
            x, self.kernel, stride=self.stride, padding=self.padding, dilation=self.dilation
        )


class AvgPool2d(Module):
    """Average pooling; see :func:`minires.ops.avg_pool2d.avg_pool2d`.

    stride: that of the window, by default the kernel.
    padding: rows and columns on each side, or "same" or "ceil".
    dilation: how far apart the pixels of the window are.
    count_padding: whether these rows and columns count as zeros in the average.

    Shapes: x (N, H, W, C) -> (N, OH, OW, C).

    >>> x = Tensor(np.arange(16.0).reshape(1, 4, 4, 1))
    >>> AvgPool2d(2)(x).numpy().reshape(2, 2)
    array([[ 2.5,  4.5],
           [10.5, 12.5]])
    """

    def __init__(
        self,
        kernel: int | tuple[int, int],
        *,
        stride: int | tuple[int, int] | None = None,
        padding: Padding = 0,
        dilation: int | tuple[int, int] = 1,
        count_padding: bool = False,
    ) -> None:
        super().__init__()
        self.kernel, self.stride, self.padding, self.dilation = _window(
            "AvgPool2d", kernel, stride, padding, dilation
        )
        self.count_padding = truth("count_padding", count_padding)

    def forward(self, x: Tensor) -> Tensor:
        return avg_pool2d(
            x,
            self.kernel,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            count_padding=self.count_padding,
        )


class GlobalAvgPool2d(Module):
    """The mean of each channel over the picture; see :func:`minires.ops.avg_pool2d.global_avg_pool2d`.

    Shapes: x (N, H, W, C) -> (N, C).

    >>> x = Tensor([[[[1.0, 0.0]], [[3.0, 4.0]]]])
    >>> x.shape, GlobalAvgPool2d()(x).numpy().tolist()
    ((1, 2, 1, 2), [[2.0, 2.0]])
    """

    def forward(self, x: Tensor) -> Tensor:
        return global_avg_pool2d(x)


class Pad2d(Module):
    """A border around pictures; see :func:`minires.ops.pad.pad`.

    padding: an int, a pair (height, width), or four sides ((top, bottom), (left, right)).
    mode: "constant", of ``value``; or "edge", "reflect" or "wrap", of the picture's own pixels.

    Before a max pool a border of zeros is not the same as the pool's own padding, which never wins: zeros do
    where all pixels of a window are negative.

    Shapes: x (N, H, W, C) -> (N, top + H + bottom, left + W + right, C).
    Raises: ConfigError for an unknown mode; ShapeError, when called, for a border that makes no sense.

    >>> x = Tensor(np.arange(3.0).reshape(1, 1, 3, 1))
    >>> Pad2d((0, 2), mode="reflect")(x).numpy().ravel()
    array([2., 1., 0., 1., 2., 1., 0.])
    """

    def __init__(self, padding: Padding, *, mode: str = "constant", value: float = 0.0) -> None:
        super().__init__()
        one_of("mode", mode, MODES)
        sides("Pad2d", padding)
        self.padding, self.mode, self.value = padding, mode, value

    def forward(self, x: Tensor) -> Tensor:
        return pad(x, self.padding, mode=self.mode, value=self.value)


class Flatten(Module):
    """All axes but the first as one.

    Shapes: x (N, ...) -> (N, product of the rest).

    >>> Flatten()(Tensor(np.zeros((2, 3, 4, 5)))).shape
    (2, 60)
    """

    def forward(self, x: Tensor) -> Tensor:
        return flatten(x)


class LocalResponseNorm(Module):
    """Divide each channel by a norm of its neighbours.

    See :func:`minires.ops.local_response_norm.local_response_norm` for the formula and the options.

    Shapes: x (..., C) -> the same.
    Source: Krizhevsky, Sutskever, Hinton 2012, ImageNet classification with deep convolutional networks.

    >>> norm = LocalResponseNorm(3, k=1.0, alpha=1.0, beta=1.0)
    >>> norm(Tensor([[1.0, 2.0]])).numpy().round(3)  # 1 / 6 and 2 / 6: divided by 1 + 1^2 + 2^2
    array([[0.167, 0.333]], dtype=float32)
    """

    def __init__(self, size: int = 5, *, k: float = 2.0, alpha: float = 1e-4, beta: float = 0.75) -> None:
        super().__init__()
        self.size = whole("size", size)
        self.k, self.alpha, self.beta = (
            checks.number("LocalResponseNorm", name, value)
            for name, value in (("k", k), ("alpha", alpha), ("beta", beta))
        )

    def forward(self, x: Tensor) -> Tensor:
        return local_response_norm(x, self.size, k=self.k, alpha=self.alpha, beta=self.beta)


class Dropout(Module):
    """Set a share ``rate`` of the values to zero in training, and scale the others up to match.

    seed: where its own random generator starts. Without it the generator is a new branch of the default one
        (see :mod:`minires.nn.init`), so that no two layers drop the same places.

    The generator is part of ``random_states()``, and of a copy of the layer: a copy that is to drop other
    places gets a generator of its own, ``copy.rng = np.random.default_rng(7)``.

    Shapes: any.
    Raises: ConfigError if the rate is not in [0, 1).

    >>> layer = Dropout(0.5, seed=1)
    >>> layer(Tensor(np.ones(6))).numpy()
    array([0., 2., 2., 2., 0., 0.])
    >>> layer.eval()(Tensor(np.ones(6))).numpy()
    array([1., 1., 1., 1., 1., 1.])
    """

    def __init__(self, rate: float, *, seed: int | None = None) -> None:
        super().__init__()
        check_rate(rate)
        self.rate: float = plain(rate)
        self.rng = init.branch() if seed is None else np.random.default_rng(as_seed(seed))

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.rate, rng=self.rng, training=self.training)


class CrossEntropyLoss(Module):
    """The loss of a classifier as a layer; see :func:`minires.ops.cross_entropy.cross_entropy`.

    weight: a number for each class: more for rare ones. It is a buffer, and moves with the layer.
    ignore_index: rows with this class number do not count.
    label_smoothing: the share of each label that is spread over all classes.
    reduction: "mean", "sum" or "none".

    Shapes: scores (N, ..., K), not yet probabilities; labels (N, ...) class numbers or (N, ..., K)
    probabilities -> one value; with reduction="none" (N, ...).
    Raises: ConfigError for an option that makes no sense; ConfigError, ShapeError or DataError, when called,
    for scores and labels that do not fit.

    >>> loss = CrossEntropyLoss()
    >>> round(loss(Tensor([[0.0, 0.0]]), np.array([1])).item(), 4)  # log 2
    0.6931
    """

    def __init__(
        self,
        *,
        weight: Any = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        one_of("reduction", reduction, REDUCTIONS)
        self.weight = None if weight is None else np.array(several("weight", weight, least=0), np.float32)
        self.label_smoothing = number("label_smoothing", label_smoothing, least=0, below=1)
        self.reduction, self.ignore_index = reduction, ignore_index
        if ignore_index is not None:
            self.ignore_index = whole("ignore_index", ignore_index, least=-(2**31))

    def forward(self, scores: Tensor, labels: Any) -> Tensor:
        return cross_entropy(
            scores,
            labels,
            weight=self.weight,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            reduction=self.reduction,
        )


class Sequential(Module):
    """Modules one after the other. Unnamed ones are called 0, 1, 2, ...

    A function of a tensor, such as ``ops.relu``, becomes a module that calls it.

    ``model[0]``, ``model[-1]`` and ``model["conv1"]`` are its modules, and ``model[:2]`` a new Sequential of
    the same modules under the same names, not of copies.

    Raises: ConfigError for a name that every module has as a method, and for a class or what cannot be
    called; MiniresError for a place or name that is not there.

    >>> model = Sequential(Linear(4, 8), ReLU()).append(Linear(8, 2))
    >>> model
    Sequential, 58 parameters
      0: Linear(4, 8)  weight (4, 8), bias (8,)  40
      1: ReLU()
      2: Linear(8, 2)  weight (8, 2), bias (2,)  18
    >>> len(model), model[-1].out_features
    (3, 2)
    >>> model[:2](Tensor(np.ones((1, 4), np.float32))).shape
    (1, 8)
    """

    def __init__(self, *modules: Layer, **named: Layer) -> None:
        super().__init__()
        for index, module in enumerate(modules):
            setattr(self, str(index), as_module(module, f"the module {index} of a Sequential"))
        for name, module in named.items():
            setattr(self, name, as_module(module, f"the module {name!r} of a Sequential"))

    def forward(self, x: Tensor) -> Tensor:
        for module in self:
            x = module(x)
        return x

    def append(self, module: Layer, *, name: str | None = None) -> Self:
        """Add a module at the end; without a name it gets the next free number. Returns the model."""
        names = self._names()
        if name is None:
            name = next(free for free in map(str, itertools.count(len(names))) if free not in names)
        if name in names:
            raise ConfigError(f"there is a module {name!r} already")
        setattr(self, name, as_module(module, f"the module {name!r} of a Sequential"))
        return self

    def __len__(self) -> int:
        return len(self._names())

    def __iter__(self) -> Iterator[Module]:
        return iter([value for value in vars(self).values() if isinstance(value, Module)])

    @overload
    def __getitem__(self, place: int | str) -> Module: ...

    @overload
    def __getitem__(self, place: slice) -> Sequential: ...

    def __getitem__(self, place: int | str | slice) -> Module | Sequential:
        if isinstance(place, slice):
            part = Sequential(**{name: vars(self)[name] for name in self._names()[place]})
            part.training = self.training
            return part
        module = vars(self)[self._name(place)]
        assert isinstance(module, Module)
        return module

    def __setitem__(self, place: int | str, module: Layer) -> None:
        """Put another module in the place, and under the name, of one that is there."""
        name = self._name(place)
        setattr(self, name, as_module(module, f"the module {name!r} of a Sequential"))

    def _names(self) -> list[str]:
        return [name for name, value in vars(self).items() if isinstance(value, Module)]

    def _name(self, place: int | str) -> str:
        names = self._names()
        if isinstance(place, str):
            if place not in names:
                raise MiniresError(unknown("module", place, names))
            return place
        if not -len(names) <= place < len(names):
            raise MiniresError(f"there is no module {place} of {len(names)}")
        return names[place]

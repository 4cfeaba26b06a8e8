"""Any model of ours in PyTorch, with the same weights: an oracle for tests and a peer for benchmarks.

    theirs = twin(build("resnet50")).load_ours(ours.state_dict())

The twin is made of ``torch.nn``'s own layers, put together as PyTorch's users do it: channels first, ReLUs
and residual additions in place where nobody needs the value again, ``torch.cat`` in a dense block. Options of
layers (kernels, strides, eps) are read from our model; how a block computes is written here a second time.
Layers keep their names, but a block of PyTorch's is always part of the path: our ``res2a_branch2a.weight`` is
its ``res2a.res2a_branch2a.weight``.

PyTorch keeps the unbiased variance, so running variances differ where ours follow Keras.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from minires.errors import ConfigError
from minires.models.bn_inception import InceptionModule
from minires.models.densenet import DenseBlock
from minires.models.resnet_v2 import ResidualUnit
from minires.nn import layers
from minires.nn.blocks import ResidualBlock
from minires.nn.module import Module, Parameter
from minires.nn.squeeze_excitation import SqueezeExcitation

# ------------------------------------------------------------------------------------------- the weights


def to_torch(name: str, array: np.ndarray[Any, Any]) -> torch.Tensor:
    """A weight of ours in PyTorch's layout: (KH, KW, C, O) -> (O, C, KH, KW), (C, O) -> (O, C)."""
    if array.ndim == 4:
        array = array.transpose(3, 2, 0, 1)
    elif array.ndim == 2:
        array = array.T
    return torch.tensor(np.ascontiguousarray(array))


def from_torch(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """The inverse of :func:`to_torch`."""
    array = tensor.detach().cpu().numpy()
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    return array.T if array.ndim == 2 else array


RENAMED = {"gamma": "weight", "beta": "bias"}  # of a batch norm


class Twin(nn.Sequential):
    """A network that takes our weights; ``names`` maps our names to its own. Pictures are (N, 3, H, W)."""

    names: dict[str, str]

    @torch.no_grad()
    def load_ours(self, state: Mapping[str, np.ndarray[Any, Any]]) -> Twin:
        """Take the weights of ``state_dict()`` of the model whose twin this is. Returns the twin."""
        assert state.keys() == self.names.keys(), sorted(state.keys() ^ self.names.keys())
        targets = self.state_dict()
        for name, there in self.names.items():
            targets[there].copy_(to_torch(name, state[name]))
        return self

    def gradients(self) -> dict[str, np.ndarray[Any, Any]]:
        """The gradients in our layout and under our names."""
        parameters = dict(self.named_parameters())
        ours: dict[str, np.ndarray[Any, Any]] = {}
        for name, there in self.names.items():
            if there in parameters:
                gradient = parameters[there].grad
                assert gradient is not None, f"{there} got no gradient"
                ours[name] = from_torch(gradient)
        return ours


def twin(model: Module) -> Twin:
    """``model``, as ``minires.models.build`` makes it, in PyTorch; its weights are PyTorch's own.

    Raises: ConfigError for a module or an option that has no counterpart here.
    """
    if not isinstance(model, layers.Sequential):
        raise ConfigError(f"torch_peer makes twins of a Sequential, not of a {type(model).__name__}")
    theirs = Twin(_in_order(model.children()))
    theirs.names = dict(_names(model))
    return theirs


def _names(module: Module, ours: str = "", theirs: str = "") -> Iterator[tuple[str, str]]:
    """Our name of each parameter and buffer, and PyTorch's; ``ours`` and ``theirs`` are the prefixes."""
    for name, value in vars(module).items():
        if isinstance(value, Parameter | np.ndarray):
            yield f"{ours}{name}", f"{theirs}{RENAMED.get(name, name)}"
    for name, child in module.children():
        yield from _names(child, f"{ours}{name}." if child.in_path else ours, f"{theirs}{name}.")


# -------------------------------------------------------------------------------------------- the layers


def _in_order(modules: Iterator[tuple[str, Module]]) -> OrderedDict[str, nn.Module]:
    """What ``nn.Sequential`` gets; a batch norm that ends in a ReLU is two layers there."""
    found: OrderedDict[str, nn.Module] = OrderedDict()
    for name, module in modules:
        found[name] = layer(name, module)
        if isinstance(module, layers.BatchNorm2d) and module.relu:
            found[f"{name}_relu"] = nn.ReLU(inplace=True)
    return found


def layer(name: str, module: Module) -> nn.Module:
    """One module of ours in PyTorch, without the ReLU in which a batch norm may end."""
    make = _TWINS.get(type(module))
    if make is None:
        known = ", ".join(sorted(kind.__name__ for kind in _TWINS))
        raise ConfigError(f"{name}: torch_peer has no twin of a {type(module).__name__}, only of {known}")
    try:
        return make(module)
    except ConfigError as error:
        error.where = error.where or name  # the innermost says where
        raise


def _conv(conv: layers.Conv2d) -> nn.Module:
    kh, kw, depth, outputs = conv.weight.shape
    return nn.Conv2d(
        depth * conv.groups, outputs, (kh, kw), conv.stride, _border(conv), conv.dilation, conv.groups,
        bias=conv.bias is not None,
    )  # fmt: skip


def _batch_norm(norm: layers.BatchNorm2d) -> nn.Module:
    # Keras says how much of the old value is kept, PyTorch how much is replaced.
    momentum = norm.momentum if norm.convention == "torch" else 1 - norm.momentum
    return nn.BatchNorm2d(norm.gamma.size, eps=norm.eps, momentum=momentum)


def _linear(dense: layers.Linear) -> nn.Module:
    return nn.Linear(*dense.weight.shape, bias=dense.bias is not None)


def _max_pool(pool: layers.MaxPool2d) -> nn.Module:
    ceil = pool.padding == "ceil"
    return nn.MaxPool2d(pool.kernel, pool.stride, 0 if ceil else _border(pool), pool.dilation, ceil_mode=ceil)


def _avg_pool(pool: layers.AvgPool2d) -> nn.Module:
    # "same" puts the odd row at the bottom; where a window begins where the last one ended, so does "ceil".
    same = pool.padding == "same" and pool.kernel == 2 and pool.stride in (None, 2)
    ceil = pool.padding == "ceil" or same
    if ceil and pool.count_padding:
        raise ConfigError("PyTorch does not count what ceil_mode adds")
    return nn.AvgPool2d(
        pool.kernel, pool.stride, 0 if ceil else _border(pool), ceil_mode=ceil,
        count_include_pad=pool.count_padding,
    )  # fmt: skip


def _border(window: layers.Conv2d | layers.MaxPool2d | layers.AvgPool2d) -> int | tuple[int, int]:
    padding = window.padding
    if isinstance(padding, int):
        return padding
    if isinstance(padding, tuple) and isinstance(padding[0], int) and isinstance(padding[1], int):
        return padding[0], padding[1]
    raise ConfigError(f"PyTorch's {type(window).__name__} has no padding={padding!r}")


class Flatten(nn.Module):
    """(N, C, H, W) -> (N, H*W*C), the order of our weights: channels last."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.permute(0, 2, 3, 1).flatten(1)


# -------------------------------------------------------------------------------------------- the blocks


class _Block(nn.Module):
    """A module whose layers have the names that they have in ``ours``."""

    def __init__(self, ours: Module) -> None:
        super().__init__()
        self._rectified: set[str] = set()
        for name, child in ours.children():
            self.add_module(name, layer(name, child))
            if isinstance(child, layers.BatchNorm2d) and child.relu:
                self._rectified.add(name)

    def steps(self, ours: Sequence[str]) -> list[str]:
        """A chain of ours, the names of layers; "relu" stands for a ReLU, "relu_" for one in place."""
        found = []
        for name in ours:
            found += [name, "relu_"] if name in self._rectified else [name]
        return found

    def run(self, steps: list[str], x: torch.Tensor) -> torch.Tensor:
        for step in steps:
            if step in ("relu", "relu_"):
                x = functional.relu(x, inplace=step == "relu_")
            else:
                x = getattr(self, step)(x)
        return x


class TorchResidualBlock(_Block):
    """See :class:`minires.nn.blocks.ResidualBlock`."""

    def __init__(self, ours: ResidualBlock) -> None:
        super().__init__(ours)
        names = [name for name, _ in ours.children()]
        self.branch = [name for name in names if "_branch2" in name]  # conv, batch norm, conv, ...
        self.projection = [name for name in names if name.endswith("_branch1")]
        self.gate = next((name for name in names if name.endswith("_se")), "")
        self.placement = ours.placement
        self.kind, self.stride = ours._shortcut, ours.stride
        added = ours.out_channels - ours.in_channels
        before = added // 2 if ours._pad_both else 0
        self.added = (before, added - before)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = getattr(self, self.gate)(x) if self.placement == "pre" else x
        for i in range(0, len(self.branch), 2):
            if i > 0:
                y = functional.relu(y, inplace=True)
            y = self.run(self.branch[i : i + 2], y)
        if self.placement == "standard":
            y = getattr(self, self.gate)(y)
        if self.kind != "none":
            y += self.shortcut(x)
        y = functional.relu(y, inplace=True)
        return getattr(self, self.gate)(y) if self.placement == "post" else y

    def shortcut(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == "A":
            x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, *self.added))
        x = self.run(self.projection, x)
        return getattr(self, self.gate)(x) if self.placement == "identity" else x


class TorchResidualUnit(_Block):
    """See :class:`minires.models.resnet_v2.ResidualUnit`."""

    def __init__(self, ours: ResidualUnit) -> None:
        super().__init__(ours)
        if ours.gating != "none":
            raise ConfigError(f"torch_peer has no gating {ours.gating!r}")
        self.before, self.branch = self.steps(ours._before), self.steps(ours._branch)
        self.projection, self.end = self.steps(ours._projection), self.steps(ours._end)
        self.pads, self.stride, self.added = ours._pads, ours.stride, ours.out_channels - ours.in_channels
        self.splits_after = ours._splits_after

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        active = self.run(self.before, x)
        shortcut = active if self.splits_after else x
        if self.pads:
            places = shortcut[:, :, :: self.stride, :: self.stride]
            shortcut = functional.pad(places, (0, 0, 0, 0, 0, self.added))
        return self.run(self.end, self.run(self.branch, active) + self.run(self.projection, shortcut))


class TorchDenseBlock(_Block):
    """See :class:`minires.models.densenet.DenseBlock`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for module in self.children():
            x = torch.cat([x, module(x)], 1)
        return x


class TorchInceptionModule(_Block):
    """See :class:`minires.models.bn_inception.InceptionModule`."""

    def __init__(self, ours: InceptionModule) -> None:
        super().__init__(ours)
        self.branches = [self.steps(branch) for branch in ours._branches]
        self.gates = [] if ours.se is None else ["se"]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.run(self.gates, torch.cat([self.run(branch, x) for branch in self.branches], 1))


class TorchSqueezeExcitation(nn.Module):
    """See :class:`minires.nn.squeeze_excitation.SqueezeExcitation`."""

    def __init__(self, ours: SqueezeExcitation) -> None:
        super().__init__()
        self.squeeze = ours.squeeze
        self.reduce, self.expand = layer("reduce", ours.reduce), layer("expand", ours.expand)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = x
        if self.squeeze == "avg":
            z = x.mean((2, 3))
        elif self.squeeze == "max":
            z = x.amax((2, 3))
        s = torch.sigmoid(self.expand(functional.relu(self.reduce(z), inplace=True)))
        return x * (s if self.squeeze == "none" else s[:, :, None, None])


_TWINS: dict[type[Module], Callable[[Any], nn.Module]] = {
    layers.Conv2d: _conv,
    layers.BatchNorm2d: _batch_norm,
    layers.Linear: _linear,
    layers.ReLU: lambda _: nn.ReLU(inplace=True),
    layers.MaxPool2d: _max_pool,
    layers.AvgPool2d: _avg_pool,
    layers.GlobalAvgPool2d: lambda _: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    layers.Flatten: lambda _: Flatten(),
    layers.Dropout: lambda ours: nn.Dropout(ours.rate),
    layers.LocalResponseNorm: lambda ours: nn.LocalResponseNorm(
        ours.size, alpha=ours.alpha * ours.size, beta=ours.beta, k=ours.k
    ),
    layers.Sequential: lambda ours: nn.Sequential(_in_order(ours.children())),
    layers.Pad2d: lambda ours: nn.ZeroPad2d(ours.padding),
    SqueezeExcitation: TorchSqueezeExcitation,
    ResidualBlock: TorchResidualBlock,
    ResidualUnit: TorchResidualUnit,
    DenseBlock: TorchDenseBlock,
    InceptionModule: TorchInceptionModule,
}

"""The same networks in PyTorch, with the same weights: an oracle for tests and a peer for benchmarks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from minires.models.resnet_signs import STAGES


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


RENAMED = {"gamma": "weight", "beta": "bias"}


class TorchResNetSigns(nn.Module):
    """``resnet50_signs`` in PyTorch's own layers; layer names as ours. Pictures are (N, 3, H, W)."""

    def __init__(self, *, classes: int = 6, bn_momentum: float = 0.99, bn_eps: float = 1e-3) -> None:
        super().__init__()

        def norm(channels: int) -> nn.Module:
            return nn.BatchNorm2d(channels, eps=bn_eps, momentum=1 - bn_momentum)

        self.conv1, self.bn_conv1 = nn.Conv2d(3, 64, 7, 2, 3), norm(64)
        channels = 64
        for stage, ((a, b, c), stride, blocks) in STAGES.items():
            for block in blocks:
                first = block == blocks[0]
                step, name = (stride if first else 1), f"{stage}{block}_branch"
                self.add_module(f"res{name}2a", nn.Conv2d(channels, a, 1, step))
                self.add_module(f"res{name}2b", nn.Conv2d(a, b, 3, 1, 1))
                self.add_module(f"res{name}2c", nn.Conv2d(b, c, 1))
                for branch, width in (("2a", a), ("2b", b), ("2c", c)):
                    self.add_module(f"bn{name}{branch}", norm(width))
                if first:
                    self.add_module(f"res{name}1", nn.Conv2d(channels, c, 1, step))
                    self.add_module(f"bn{name}1", norm(c))
                channels = c
        self.fc6 = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.max_pool2d(functional.relu(self.bn_conv1(self.conv1(x))), 3, 2)
        for stage, (_, _, blocks) in STAGES.items():
            for block in blocks:
                x = self._block(x, f"{stage}{block}_branch", project=block == blocks[0])
        return self.fc6(functional.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False).flatten(1))

    def _block(self, x: torch.Tensor, name: str, *, project: bool) -> torch.Tensor:
        def conv_bn(x: torch.Tensor, branch: str) -> torch.Tensor:
            return self.get_submodule(f"bn{name}{branch}")(self.get_submodule(f"res{name}{branch}")(x))

        shortcut = conv_bn(x, "1") if project else x
        y = functional.relu(conv_bn(x, "2a"))
        y = functional.relu(conv_bn(y, "2b"))
        return functional.relu(conv_bn(y, "2c") + shortcut)

    def load_ours(self, state: dict[str, np.ndarray[Any, Any]]) -> TorchResNetSigns:
        """Take the weights of ``minires.models.build("resnet50_signs").state_dict()``."""
        names = {name: _torch_name(name) for name in state}
        missing = self.load_state_dict({names[n]: to_torch(n, a) for n, a in state.items()}, strict=False)
        assert not missing.unexpected_keys
        assert all(key.endswith("num_batches_tracked") for key in missing.missing_keys)
        return self

    def gradients(self) -> dict[str, np.ndarray[Any, Any]]:
        """The gradients in our layout and under our names."""
        ours: dict[str, np.ndarray[Any, Any]] = {}
        for name, parameter in self.named_parameters():
            module, leaf = name.rsplit(".", 1)
            if module.startswith("bn"):
                leaf = {"weight": "gamma", "bias": "beta"}[leaf]
            assert parameter.grad is not None
            ours[f"{module}.{leaf}"] = from_torch(parameter.grad)
        return ours


def _torch_name(name: str) -> str:
    module, leaf = name.rsplit(".", 1)
    return f"{module}.{RENAMED.get(leaf, leaf)}"

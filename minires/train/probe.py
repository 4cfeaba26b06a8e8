"""A look into a model that is in training: how large activations, gradients and weights are, layer by layer,
how strong each layer responds, and how strong the two ways of each residual block are.

The steps of a run show nothing of this: a plan keeps no activations, and a captured step is replayed by the
GPU alone. So a few pictures, always the same, go through the model itself, forward and backward, as in
training. All that this changes is put back: running statistics, random generators, modes, gradients.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from minires import backend
from minires.backend import Array
from minires.nn.module import Module, Parameter
from minires.nn.responses import BlockWays, Response, noting
from minires.nn.restored import left_as_it_is
from minires.ops.cross_entropy import cross_entropy
from minires.tensor import Call, Tensor, set_apart, settings, with_settings

FIGURES = ("mean", "std", "gradient", "weight")
MOST_LAYERS = 64  # with more, blocks take the place of layers


@dataclass(frozen=True)
class Layer:
    """A layer with weights, or a block of several: its path, what it is, and its parameters by path."""

    path: str
    kind: str
    parameters: Mapping[str, Parameter]


def layers_of(model: Module, *, most: int = MOST_LAYERS) -> list[Layer]:
    """The layers of a model that have weights, in its order; where there are more than ``most``, the blocks
    that they stand in.

    >>> from minires.models import build
    >>> [layer.path for layer in layers_of(build("resnet20_cifar"))][:3]
    ['conv1', 'res2a_branch2a', 'res2a_branch2b']
    >>> [(layer.path, layer.kind) for layer in layers_of(build("resnet20_cifar"), most=12)][:2]
    [('conv1', 'Conv2d'), ('res2a', 'ResidualBlock')]
    """
    modules = dict(model.named_modules())
    found = [path for path, module in modules.items() if _has_weights(module)]
    around: dict[str, list[str]] = {path: [path] for path in found}  # outermost first
    for block, module in modules.items():
        inside = {id(one) for one in module.modules()} - {id(module)}
        for path in found:
            if id(modules[path]) in inside:
                around[path].insert(-1, block)
    depth = max(map(len, around.values()), default=1)
    while depth > 1 and len(found) > most:
        depth -= 1
        found = list(dict.fromkeys(chain[min(depth, len(chain)) - 1] for chain in around.values()))
    chosen = [(path, modules[path]) for path in found]
    return [Layer(path, type(module).__name__, dict(module.named_parameters())) for path, module in chosen]


def _has_weights(module: Module) -> bool:
    """Whether it is a layer, with nothing inside, that multiplies by weights."""
    return next(module.children(), None) is None and any(one.ndim > 1 for one in module.parameters())


class Look(NamedTuple):
    """What a look has found: by name of the figure a number for each layer, the responses, in the order of
    execution, and the ways of the blocks."""

    layers: dict[str, list[float | None]]
    responses: list[Response]
    ways: list[BlockWays]


class Probe:
    """Measures the ``layers`` of a model with one batch ``x`` and its labels ``y``, always the same.

    Shapes: x (N, H, W, C), y (N,).
    """

    def __init__(
        self, model: Module, layers: Sequence[Layer], x: Array, y: Array, *, label_smoothing: float = 0.0
    ) -> None:
        self.model, self.layers, self.x, self.y = model, list(layers), x, y
        self.label_smoothing = label_smoothing

    def __call__(self) -> Look:
        """Look: of each layer mean and standard deviation of what it hands on, norm of the gradient of its
        weights, None where there is none, and norm of the weights; responses and ways as
        :mod:`minires.nn.responses` has them, in training."""
        parameters = [one for one in self.model.parameters() if one.requires_grad]
        device = next(self.model.parameters()).device
        moments: dict[str, tuple[float, float]] = {}
        names = self._names()

        def note(call: Call) -> None:
            for path in names.get(settings()["path"], ()):  # the last that is handed on stays
                moments[path] = _moments(call.y.data)

        with left_as_it_is(self.model), set_apart(parameters), with_settings(recording=True):
            self.model.train()
            with noting(self.model, note) as noted:
                logits = self.model(Tensor(backend.to_device(self.x, device)))
            cross_entropy(logits, self.y, label_smoothing=self.label_smoothing).backward()
            gradients = [
                norm([one.grad for one in layer.parameters.values() if one.grad is not None])
                for layer in self.layers
            ]
        weights = [norm([one.data for one in layer.parameters.values()]) for layer in self.layers]
        pairs = [moments.get(layer.path, (None, None)) for layer in self.layers]
        found = [one for one, _ in pairs], [one for _, one in pairs], gradients, weights
        figures = dict(zip(FIGURES, (list(map(finite, numbers)) for numbers in found), strict=True))
        return Look(figures, noted.responses, noted.ways)

    def _names(self) -> dict[str, list[str]]:
        """By the path of a module, the layers that what it hands on belongs to: itself and blocks around."""
        modules = dict(self.model.named_modules())
        names: dict[str, list[str]] = {}
        for layer in self.layers:
            inside = {id(one) for one in modules[layer.path].modules()}
            for path, module in modules.items():
                if id(module) in inside:
                    names.setdefault(path, []).append(layer.path)
        return names


def copied(layers: Sequence[Layer]) -> list[dict[str, Array]]:
    """The weights of each layer as they are now."""
    return [{path: one.data.copy() for path, one in layer.parameters.items()} for layer in layers]


def updates(layers: Sequence[Layer], before: Sequence[Mapping[str, Array]]) -> list[float | None]:
    """How far the weights of each layer have moved since ``before``, as a share of their norm."""
    found: list[float | None] = []
    for layer, old in zip(layers, before, strict=True):
        moved = norm([one.data - old[path] for path, one in layer.parameters.items()])
        whole = norm([one.data for one in layer.parameters.values()])
        found.append(finite(moved / whole) if moved is not None and whole else None)
    return found


def norm(arrays: Sequence[Array]) -> float | None:
    """The Euclidean norm of all numbers in these arrays together; None where there are none.

    >>> norm([np.array([3.0]), np.array([[4.0]])]), norm([])
    (5.0, None)
    """
    if not arrays:
        return None
    squares = [float(backend.array_module(one).linalg.norm(one.reshape(-1))) ** 2 for one in arrays]
    return math.sqrt(sum(squares))


def _moments(y: Array) -> tuple[float, float]:
    wide = y.astype(np.float32, copy=False)
    return float(wide.mean()), float(wide.std())


def finite(value: float | None) -> float | None:
    """A number of six digits, which is more than anybody sees; None for NaN and infinity.

    >>> finite(1 / 3), finite(math.nan)
    (0.333333, None)
    """
    return float(f"{value:.6g}") if value is not None and math.isfinite(value) else None

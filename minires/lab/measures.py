"""What several labs measure."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minires.errors import ConfigError
from minires.nn.blocks import Residual
from minires.nn.intervene import activations, intervene
from minires.nn.module import Module
from minires.nn.squeeze_excitation import SqueezeExcitation
from minires.ops.cross_entropy import cross_entropy
from minires.tensor import Tensor, no_grad

BATCH = 250


def error(model: Module, x: NDArray[Any], labels: NDArray[Any]) -> float:
    """The share of pictures that are wrong, in percent; the model is in the mode it is in.

    Shapes: x (N, H, W, C), labels (N,).
    """
    with no_grad():
        scores = [model(Tensor(x[at : at + BATCH])).numpy() for at in range(0, len(x), BATCH)]
    return float(100 * (np.concatenate(scores).argmax(axis=1) != labels).mean())


def kernel_gradient(model: Module, x: NDArray[Any], labels: NDArray[Any]) -> NDArray[Any]:
    """The gradient of the loss for all kernels of convolutions, in one long vector."""
    kernels = [one for one in model.parameters() if one.ndim == 4]
    model.zero_grad()
    cross_entropy(model(Tensor(x)), labels).backward()
    gradients = [one.grad for one in kernels if one.grad is not None]
    return np.concatenate([gradient.ravel() for gradient in gradients])


def cosine(a: NDArray[Any], b: NDArray[Any]) -> float:
    """The cosine of the angle between two vectors.

    >>> cosine(np.array([1.0, 0.0]), np.array([1.0, 1.0]))
    0.7071...
    """
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def rank_correlation(x: Sequence[float] | NDArray[Any], y: Sequence[float] | NDArray[Any]) -> float:
    """Spearman's: the correlation of the ranks, equal values sharing theirs.

    >>> rank_correlation([1, 2, 3, 4], [1, 4, 9, 16]), rank_correlation([1, 1, 2], [3, 2, 1])
    (1.0, -0.866...)
    """
    a, b = (np.asarray(_ranks(np.asarray(one, dtype=float))) for one in (x, y))
    a, b = a - a.mean(), b - b.mean()
    size = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / size) if size else 0.0


def gates_by_class(model: Module, x: NDArray[Any], labels: NDArray[Any]) -> list[NDArray[Any]]:
    """Of each squeeze-and-excitation gate its mean value for the pictures of each class.

    Shapes: x (N, H, W, C), labels (N,); for each gate, from the first to the last, (classes, channels).
    """
    # A sigmoid comes after the second dense layer, which is called expand.
    paths = [path for path, one in model.named_modules() if isinstance(one, SqueezeExcitation)]
    before = activations(model, x, [f"{path}.expand" for path in paths])
    gates = [1 / (1 + np.exp(-one)) for one in before.values()]
    classes = np.unique(labels)
    return [np.array([gate[labels == one].mean(axis=0) for one in classes]) for gate in gates]


def weights_read(
    weights: Mapping[str, NDArray[Any]], block: str, growth: int
) -> list[list[float]]:
    """Who reads whom in a dense block: for each of its layers the mean size of its weights for the block's
    input, and for what each layer before has added.

    Shapes: kernels (KH, KW, C, O) by path; of layer i a list of 1 + i numbers.
    """
    rows: list[list[float]] = []
    for path, kernel in weights.items():
        if path.startswith(f"{block}.layer") and path.endswith("conv1.weight"):
            by_channel = np.abs(kernel).mean(axis=(0, 1, 3))
            first = len(by_channel) - len(rows) * growth
            edges = [0, *(first + at * growth for at in range(len(rows) + 1))]
            rows.append([float(by_channel[a:b].mean()) for a, b in zip(edges, edges[1:], strict=False)])
    return rows


def _ranks(values: NDArray[Any]) -> NDArray[Any]:
    return np.array([((values < one).sum() + (values <= one).sum() + 1) / 2 for one in values])


class Changed:
    """The error of a network for some pictures, with changes of :func:`minires.intervene`.

    ``removable`` are the paths of the blocks that keep the shape; ``stages`` are those of each shape.
    """

    def __init__(self, model: Module, x: NDArray[Any], labels: NDArray[Any]) -> None:
        self._model, self._x, self._labels = model.eval(), x, labels
        self.stages: dict[tuple[int, ...], list[str]] = {}

        def noting(path: str) -> Callable[[Module, tuple[Tensor, ...], Tensor], None]:
            def note(block: Module, inputs: tuple[Tensor, ...], y: Tensor) -> None:
                if inputs[0].shape == y.shape:
                    self.stages.setdefault(y.shape, []).append(path)

            return note

        with contextlib.ExitStack() as hooks, no_grad():
            for path, one in model.named_modules():
                if isinstance(one, Residual):
                    hooks.enter_context(one.register_forward_hook(noting(path)))
            model(Tensor(x[:1]))
        self.removable = [path for stage in self.stages.values() for path in stage]

    def __call__(self, changes: Mapping[str, Any]) -> float:
        """The error with these changes, in percent."""
        with intervene(self._model, dict(changes)):
            return error(self._model, self._x, self._labels)

    def swapped(self, count: int, rng: np.random.Generator) -> tuple[int, list[str]]:
        """Another order after ``count`` swaps of two blocks of one stage: how many pairs of blocks stand the
        other way round (Kendall's distance), and the order.

        Raises: ConfigError if no stage has two blocks.
        """
        stages = [list(range(len(stage))) for stage in self.stages.values()]
        sizes = np.array([len(stage) * (len(stage) - 1) for stage in stages], dtype=float)
        if not sizes.any():
            raise ConfigError("there is no stage with two blocks of one shape, so none can be swapped")
        for _ in range(count):
            stage = stages[rng.choice(len(stages), p=sizes / sizes.sum())]
            a, b = rng.choice(len(stage), 2, replace=False)
            stage[a], stage[b] = stage[b], stage[a]
        distance = sum(
            stage[a] > stage[b] for stage in stages for b in range(len(stage)) for a in range(b)
        )
        pairs = zip(self.stages.values(), stages, strict=True)
        return distance, [names[at] for names, stage in pairs for at in stage]

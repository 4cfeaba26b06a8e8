"""The batch norms on which every implementation is checked: both modes, with an addition and a ReLU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from minires import backend
from minires.ops.registry import Case, Make, Shape
from minires.tensor import Tensor


def running_statistics(like: Tensor) -> dict[str, Any]:
    """Some running statistics for inference on ``like``, of its dtype (or float32) and on its device."""
    xp, channels = backend.array_module(like.data), like.shape[-1]
    mean = xp.linspace(-0.5, 0.5, channels).astype(backend.accumulator(like.dtype))
    return {"running_mean": mean, "running_var": (mean + 1.5).astype(mean.dtype)}


def _with_statistics(
    batch_norm: Callable[..., Tensor], x: Tensor, gamma: Tensor, beta: Tensor, add: Any = None, **options: Any
) -> Tensor:
    statistics = {} if options["training"] else running_statistics(x)
    return batch_norm(x, gamma, beta, add=add, **statistics, **options)


def cases() -> Iterator[Case]:
    for training in (True, False):
        mode = "training" if training else "inference"
        table: list[tuple[str, Shape, dict[str, Any]]] = [
            ("rows", (5, 3), {}),
            ("pictures", (2, 3, 2, 3), {}),
            ("one picture", (1, 3, 3, 2), {"convention": "torch"}),
            ("one channel", (4, 2, 1, 1), {"eps": 0.1}),
            ("relu", (2, 3, 2, 3), {"relu": True}),
            ("add", (2, 3, 2, 3), {"add": True}),
            ("add and relu", (3, 2, 2, 2), {"add": True, "relu": True}),
        ]
        for name, x, extra in table:
            options: dict[str, Any] = {**extra, "training": training}
            inputs: dict[str, Shape | Make] = {"x": x, "gamma": x[-1:], "beta": x[-1:]}
            if options.pop("add", False):
                inputs["add"] = x
            yield Case(f"{mode}, {name}", inputs, options, _with_statistics)

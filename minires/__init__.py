"""A from-scratch deep-learning engine for understanding residual networks and really running them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from minires import ops
from minires.backend import set_threads, specification
from minires.errors import CheckpointError, ConfigError, DataError, MiniresError, ShapeError
from minires.gradient_check import GradcheckError, gradcheck
from minires.nn.module import Module
from minires.tensor import Tensor, cut, no_grad, unfused

if TYPE_CHECKING:
    from minires import data, models, nn, train
    from minires.debug.step import step
    from minires.nn.fuse import fuse
    from minires.nn.recompute import checkpoint

__version__ = "0.1.0"
__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "GradcheckError",
    "MiniresError",
    "ShapeError",
    "Tensor",
    "checkpoint",
    "cut",
    "data",
    "fuse",
    "gradcheck",
    "models",
    "nn",
    "no_grad",
    "ops",
    "set_threads",
    "specification",
    "step",
    "train",
    "unfused",
]


def _summary(self: Module, input: tuple[int, int, int], *, memory: bool = False) -> Any:
    """List the layers of the model for a picture (H, W, C): see :func:`minires.inspect.summarize`."""
    return importlib.import_module("minires.inspect").summarize(self, input, memory=memory)


Module.summary = _summary  # type: ignore[method-assign]

_FUNCTIONS = {
    "fuse": "minires.nn.fuse",
    "checkpoint": "minires.nn.recompute",
    "step": "minires.debug.step",
}


def __getattr__(name: str) -> Any:
    """Import ``minires.train`` and its like on first use: ``minires doctor`` must work without Pillow."""
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(_FUNCTIONS[name]), name)
    if name in ("data", "models", "nn", "train"):
        return importlib.import_module(f"minires.{name}")
    raise AttributeError(f"module 'minires' has no attribute {name!r}")

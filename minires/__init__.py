"""A from-scratch deep-learning engine for understanding residual networks and really running them."""

from __future__ import annotations

from minires import quiet_start

quiet_start.set_signals()  # before anything that takes a while to import

# ruff: noqa: E402
import importlib
from typing import TYPE_CHECKING, Any

from minires import nn, ops
from minires.backend import reference, set_threads
from minires.errors import CheckpointError, ConfigError, DataError, MiniresError, ShapeError
from minires.gradient_check import GradcheckError, gradcheck
from minires.nn.module import Module
from minires.tensor import Tensor, no_grad, record, unfused, unused_parameters
from minires.version import __version__

if TYPE_CHECKING:  # what __getattr__ below imports when it is first used
    from minires import data, debug, distributed, inspect, models, optim, train, weights
    from minires.debug.step import step
    from minires.nn.fuse import fuse
    from minires.nn.init import manual_seed
    from minires.nn.intervene import activations, intervene
    from minires.nn.recompute import recompute
    from minires.plan import compile

__all__ = [
    "__version__",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "GradcheckError",
    "MiniresError",
    "ShapeError",
    "Tensor",
    "activations",
    "compile",
    "data",
    "debug",
    "distributed",
    "fuse",
    "gradcheck",
    "inspect",
    "intervene",
    "manual_seed",
    "models",
    "nn",
    "no_grad",
    "ops",
    "optim",
    "recompute",
    "record",
    "set_threads",
    "reference",
    "step",
    "train",
    "unfused",
    "unused_parameters",
    "weights",
]

_MODULES = {
    "data": "minires.data",
    "debug": "minires.debug",
    "distributed": "minires.distributed",
    "inspect": "minires.inspect",
    "models": "minires.models",
    "optim": "minires.optim",
    "train": "minires.train",
    "weights": "minires.weights",
}
_FUNCTIONS = {
    "activations": "minires.nn.intervene",
    "compile": "minires.plan",
    "fuse": "minires.nn.fuse",
    "intervene": "minires.nn.intervene",
    "manual_seed": "minires.nn.init",
    "recompute": "minires.nn.recompute",
    "step": "minires.debug.step",
}


if not TYPE_CHECKING:  # a type checker would take any name then

    def __getattr__(name: str) -> Any:
        """Import ``minires.train`` and its like on first use: ``minires doctor`` must work without Pillow."""
        if name in _MODULES:
            return importlib.import_module(_MODULES[name])
        if name in _FUNCTIONS:
            return getattr(importlib.import_module(_FUNCTIONS[name]), name)
        raise AttributeError(f"module 'minires' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _summarize(model: Module, input: tuple[int, int, int], *, memory: bool) -> Any:
    return importlib.import_module("minires.inspect").summarize(model, input, memory=memory)


Module.summarizer = staticmethod(_summarize)

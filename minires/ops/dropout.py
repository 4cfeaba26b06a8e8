"""Dropout: in training, each number is set to zero with probability ``rate``.

    y = x * mask        mask is 0 with probability rate, else 1 / (1 - rate)
    dx = dy * mask

The numbers that stay are scaled up (inverted dropout), so the expected value is that of x and inference needs
no change: there y = x.

Shapes: any; y has the shape of x.
Source: Srivastava et al. 2014, Dropout: a simple way to prevent neural networks from overfitting.
Differs: the paper scales the weights down at inference instead.
"""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np

from minires import backend
from minires.backend import Array
from minires.errors import ConfigError
from minires.ops import checks
from minires.tensor import Tensor, record


def _mask(xp: Any, shape: tuple[int, ...], dtype: Any, rate: float, rng: np.random.Generator) -> Array:
    # Drawn on the CPU and in float32 always: one seed gives one mask on every device and in every dtype.
    kept = rng.random(shape, dtype=np.float32) >= rate
    return xp.asarray(kept).astype(dtype) / (1 - rate)


def check_rate(rate: object) -> None:
    """Raise ConfigError unless ``rate`` is a number in [0, 1)."""
    if not isinstance(rate, numbers.Real) or isinstance(rate, bool) or not 0 <= float(rate) < 1:
        raise ConfigError(
            f"dropout: rate is the share of numbers set to zero, from 0 to below 1, not {rate!r}"
        )


def dropout(x: Tensor, rate: float, *, rng: np.random.Generator, training: bool = True) -> Tensor:
    """Set numbers to zero with probability ``rate`` and scale the others up; ``x`` itself at inference.

    Math, Shapes, Backward, Source: see the head of this file.
    Raises: ConfigError if the rate is not in [0, 1); ShapeError if ``x`` is not float32 or float64.
    """
    x = checks.as_tensor(x)
    checks.same_floats("dropout", x=x)
    check_rate(rate)
    if not training or rate == 0:
        return x
    xp = backend.array_module(x.data)
    mask = _mask(xp, x.shape, x.dtype, rate, rng)
    return record("dropout", x.data * mask, (x,), lambda dy: (dy * mask,))

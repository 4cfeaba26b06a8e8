"""How weights start: Glorot and He, uniform and normal, from a random generator the caller owns.

A weight (KH, KW, C, O) has fan_in = KH*KW*C inputs and fan_out = KH*KW*O outputs; a dense weight (C, O) the
same with KH = KW = 1.

    glorot_uniform   U(-a, a) with a = sqrt(6 / (fan_in + fan_out))     Glorot and Bengio 2010; Keras default
    he_normal        N(0, 2 / fan_in)                                   He et al. 2015, arXiv:1502.01852
    he_normal_out    N(0, 2 / fan_out)                                  fb.resnet.torch
    zeros            0: for weights that are loaded afterwards, and for counting
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from minires.errors import ConfigError

Array = np.ndarray[Any, Any]
Initializer = Callable[[tuple[int, ...], np.random.Generator], Array]


def fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """fan_in and fan_out of a weight (..., C, O): every leading axis is a place of the window."""
    places = math.prod(shape[:-2])
    return places * shape[-2], places * shape[-1]


def glorot_uniform(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """U(-a, a) with a = sqrt(6 / (fan_in + fan_out)), float32."""
    bound = math.sqrt(6 / sum(fans(shape)))
    return rng.uniform(-bound, bound, shape).astype(np.float32)


def he_normal(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """N(0, 2 / fan_in), float32."""
    return (rng.standard_normal(shape) * math.sqrt(2 / fans(shape)[0])).astype(np.float32)


def he_normal_out(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """N(0, 2 / fan_out), float32."""
    return (rng.standard_normal(shape) * math.sqrt(2 / fans(shape)[1])).astype(np.float32)


def zeros(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """All 0, float32; draws nothing from ``rng``."""
    return np.zeros(shape, np.float32)


_INITIALIZERS: dict[str, Initializer] = {
    "glorot_uniform": glorot_uniform,
    "he_normal": he_normal,
    "he_normal_out": he_normal_out,
    "zeros": zeros,
}


def get(name: str) -> Initializer:
    """The initialiser called ``name``. Raises: ConfigError with the nearest name if there is none."""
    if name not in _INITIALIZERS:
        near = difflib.get_close_matches(name, _INITIALIZERS, 1, 0)
        raise ConfigError(f"unknown initialiser {name!r}; did you mean {near[0]!r}?")
    return _INITIALIZERS[name]

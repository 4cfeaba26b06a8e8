"""How weights start: Glorot and He, uniform and normal, and the random generator that they are drawn from.

A weight (KH, KW, C, O) has fan_in = KH*KW*C inputs and fan_out = KH*KW*O outputs; a dense weight (C, O) the
same with KH = KW = 1.

    glorot_uniform   U(-a, a) with a = sqrt(6 / (fan_in + fan_out))     Glorot and Bengio 2010; Keras default
    he_normal        N(0, 2 / fan_in)                                   He et al. 2015, arXiv:1502.01852
    he_normal_out    N(0, 2 / fan_out)                                  fb.resnet.torch
    zeros            0: for weights that are loaded afterwards, and for counting

**The default generator.** A layer that is made without ``rng=`` draws from one generator of the process. It
starts from seed 0, and ``minires.manual_seed(seed)`` starts it anew: the same seed and the same layers in the
same order give the same weights. Each layer draws on, so no two have the same numbers. A Dropout without a
seed gets a generator of its own, a branch of the default one; the weights drawn after it are the same with
it and without it. ``minires.models.build(name, seed=...)`` has a generator of its own, from which also those
layers draw that bring none, and neither uses nor changes the default one; nor do data sets and their
augmentation.

Drawing is safe in threads, but the order in which threads come is not fixed, and so the numbers are not:
threads that build models, and want the same ones again, each need a generator of their own, ``rng=``. A new
process starts from seed 0.
"""

from __future__ import annotations

import copy
import functools
import math
import os
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from minires.errors import ConfigError, as_seed, unknown
from minires.settings import Block, Settings

Array = np.ndarray[Any, Any]
Initializer = Callable[[tuple[int, ...], np.random.Generator], Array]


class _Default:
    """The generator for those who bring none."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.lock = threading.Lock()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._start_anew)

    def _start_anew(self) -> None:
        """In a forked child another thread of the parent may hold the lock, and that of the generator."""
        self.rng, self.lock = copy.deepcopy(self.rng), threading.Lock()


class _Instead(Settings):
    """The generator that stands in for the default one, in the thread that asked for it."""

    rng: np.random.Generator | None = None
    left: list[int] | None = None  # how many numbers may still be made


_default, _instead = _Default(), _Instead()


def manual_seed(seed: int) -> np.random.Generator:
    """Start the default generator of layers anew. Returns the generator.

    >>> from minires.nn import Linear
    >>> rng = manual_seed(3)
    >>> first, second = Linear(2, 2).weight.numpy(), Linear(2, 2).weight.numpy()
    >>> rng = manual_seed(3)
    >>> again = Linear(2, 2).weight.numpy()
    >>> bool((again == first).all()), bool((again == second).any())
    (True, False)
    """
    _default.rng = np.random.default_rng(as_seed(seed))
    return _default.rng


def generator(rng: np.random.Generator | None) -> np.random.Generator:
    """The generator that is given, or the default one. Raises: ConfigError for what is none.

    >>> generator(None) is generator(None)
    True
    """
    if rng is not None:
        if not isinstance(rng, np.random.Generator):
            raise ConfigError(f"rng must be a generator, np.random.default_rng(0) for example, not {rng!r}")
        return rng
    return _default.rng if _instead.rng is None else _instead.rng


def drawing_from(rng: np.random.Generator) -> Block:
    """Inside this block layers of this thread that bring no generator draw from ``rng``.

    >>> from minires.nn import Linear
    >>> weights = []
    >>> for _ in range(2):
    ...     with drawing_from(np.random.default_rng(7)):
    ...         weights.append(Linear(2, 2).weight.numpy())
    >>> bool((weights[0] == weights[1]).all())
    True
    """
    return _instead.within(rng=rng)


def at_most(numbers: int) -> Block:
    """Inside this block the weights that layers of this thread make have so many numbers together, at most.

    It is for a model that a file describes, as large as the file says.

    >>> from minires.nn import Linear
    >>> with at_most(100):
    ...     layers = Linear(3, 30), Linear(30, 1)
    Traceback (most recent call last):
    ...
    minires.errors.ConfigError: a weight (30, 1) is more than there are numbers for: 10 are left
    """
    return _instead.within(left=[numbers])


def branch() -> np.random.Generator:
    """A new generator that is a branch of the default one, which draws on as if there was none.

    >>> bool(branch().random() == branch().random())
    False
    """
    with _default.lock:  # a seed counts its branches
        return generator(None).spawn(1)[0]


def fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """fan_in and fan_out of a weight (..., C, O): every leading axis is a place of the window.

    >>> fans((3, 3, 16, 32))
    (144, 288)
    """
    places = math.prod(shape[:-2])
    return places * shape[-2], places * shape[-1]


def glorot_uniform(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """U(-a, a) with a = sqrt(6 / (fan_in + fan_out)), float32.

    >>> weight = glorot_uniform((3, 3, 16, 32), np.random.default_rng(0))
    >>> weight.shape, bool(abs(weight).max() < (6 / 432) ** 0.5)
    ((3, 3, 16, 32), True)
    """
    bound = math.sqrt(6 / sum(fans(shape)))
    return rng.uniform(-bound, bound, shape).astype(np.float32)


def he_normal(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """N(0, 2 / fan_in), float32.

    >>> round(float(he_normal((3, 3, 16, 32), np.random.default_rng(0)).var()), 3)  # 2 / 144
    0.014
    """
    return (rng.standard_normal(shape) * math.sqrt(2 / fans(shape)[0])).astype(np.float32)


def he_normal_out(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """N(0, 2 / fan_out), float32.

    >>> round(float(he_normal_out((3, 3, 16, 32), np.random.default_rng(0)).var()), 3)  # 2 / 288
    0.007
    """
    return (rng.standard_normal(shape) * math.sqrt(2 / fans(shape)[1])).astype(np.float32)


def zeros(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """All 0, float32; draws nothing from ``rng``.

    >>> zeros((2,), np.random.default_rng(0))
    array([0., 0.], dtype=float32)
    """
    return np.zeros(shape, np.float32)


_INITIALIZERS: dict[str, Initializer] = {
    "glorot_uniform": glorot_uniform,
    "he_normal": he_normal,
    "he_normal_out": he_normal_out,
    "zeros": zeros,
}


def get(name: str) -> Initializer:
    """The initialiser called ``name``. Raises: ConfigError with the nearest name if there is none.

    >>> get("he_normal") is he_normal
    True
    """
    if name not in _INITIALIZERS:
        raise ConfigError(unknown("initialiser", name, _INITIALIZERS))
    return _INITIALIZERS[name] if _instead.left is None else functools.partial(_if_left, _INITIALIZERS[name])


def _if_left(make: Initializer, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    left = _instead.left
    if left is not None and math.prod(shape) > left[0]:
        raise ConfigError(f"a weight {shape} is more than there are numbers for: {left[0]} are left")
    if left is not None:
        left[0] -= math.prod(shape)
    return make(shape, rng)

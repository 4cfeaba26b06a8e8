"""Whether what a model did once is what it does with every batch.

A plan repeats the steps of one pass. So the model is watched again, with pictures of other kinds, with fewer,
and, if it trains, with other weights: it must do the same, and throw no dice.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import numpy as np

from minires.backend import Array
from minires.errors import ConfigError
from minires.nn.layers import Dropout
from minires.nn.module import Module
from minires.plan.held import frozen, parts
from minires.plan.steps import Traced
from minires.plan.trace import Fails, once
from minires.tensor import Tensor


def watch(model: Module, x: Array, *, training: bool = False) -> Traced:
    """The steps of a model for pictures x: in inference mode, or as they are when it trains.

    The model runs again with few other pictures, large, small, and all black: it must do the same with them,
    and throw no dice of its own. If it trains, it also runs with other weights.

    Raises: ConfigError for an operation that no plan knows, with the layer that it is in, and for steps that
    hang on more than the shape of a picture.
    """
    before = _dice(model)
    traced = once(model, x, training)
    for name, state in _dice(model).items():
        if before.get(name) != state:
            raise ConfigError(
                f"compile: the model draws from {name} when it is called, and a plan would do each time what "
                "it did once; use minires.nn.Dropout, or the model itself"
            )
    few = x[: 2 if training else 1]  # batch norm of one picture says little
    fewer = once(model, few, training)
    for other in -few, few / 100, 100 * few, 100 * abs(few), 0 * few:
        with suppress(Fails):  # it need not take black pictures, or such that are far too bright
            _compare(traced, once(model, other.astype(x.dtype), training))
    if training:
        with _other_weights(model):
            _compare(traced, once(model, few, training))
    _compare(traced, fewer)
    return replace(traced, meeting=_meeting(traced, fewer))


def _meeting(traced: Traced, fewer: Traced) -> str:
    """Which step of those for many pictures has a result that is not just as much longer as there are more;
    nothing if none has."""
    n, few = traced.input.shape[0], fewer.input.shape[0]
    for step, other in zip(traced.steps, fewer.steps, strict=True):
        (many, *rest), (some, *others) = step.writes.shape or (0,), other.writes.shape or (0,)
        if rest != others or many * few != some * n or many == 0:
            return (
                f"no plan knows {step.op!r} as {step.path or 'the model'} calls it: it gives "
                f"{step.writes.shape} for {n} pictures, but {other.writes.shape} for {few}, and the first "
                "axis must be that of the pictures; use the model itself"
            )
    return ""


@contextmanager
def _other_weights(model: Module) -> Iterator[None]:
    """Inside this block the parameters have other numbers."""
    before = [(parameter, parameter.data) for parameter in model.parameters()]
    try:
        for parameter, numbers in before:
            parameter.data = numbers * numbers.dtype.type(1.25)
        yield
    finally:
        for parameter, numbers in before:
            parameter.data = numbers


_STATES: dict[type, Callable[[Any], Any]] = {
    np.random.Generator: lambda dice: dice.bit_generator.state,
    np.random.RandomState: lambda dice: dice.get_state(),
    random.Random: lambda dice: dice.getstate(),
}


def _dice(model: Module) -> dict[str, str]:
    """Where the generators of random numbers stand that a model may draw from, by name: its own, and those of
    the files that it is written in; not those of its dropouts, which a plan calls."""
    found = {"numpy.random": str(np.random.get_state()), "random": str(random.getstate())}
    for path, module in parts(model):
        own = {} if isinstance(module, Dropout) else vars(module)
        held = {f"{path}.{name}": value for name, value in own.items()}
        files = {getattr(one, "__module__", "") for one in (type(module), *own.values())}
        for name in files & set(sys.modules):
            held = held if name.startswith("minires.") else {**held, **vars(sys.modules[name])}
        for name, value in held.items():
            for kind, state in _STATES.items():
                if isinstance(value, kind):
                    found[name.strip(".")] = str(state(value))
    return found


def _compare(one: Traced, other: Traced) -> None:
    """Raises: ConfigError if the steps are not the same but for the number of pictures."""
    told = (
        "compile: the model computes something else for other pictures, or for fewer. What it computes hangs "
        "on more than its operations say: on an if, or on numbers taken out of a tensor (x.data, len(x))"
    )
    if len(one.steps) != len(other.steps):
        raise ConfigError(f"{told}: {len(one.steps)} steps once, and {len(other.steps)} then")
    same = {one.input: other.input}  # the values of one, and what they are in the other
    for a, b in zip(one.steps, other.steps, strict=True):
        place, there = (f"{step.op} in {step.path or 'the model'}" for step in (a, b))
        if place != there or a.at != b.at or a.tensors.keys() != b.tensors.keys():
            raise ConfigError(f"{told}: {place} once, and {there} then")
        if not all(_equal(option, b.options.get(name)) for name, option in a.options.items()):
            raise ConfigError(f"{told}: {place} with other options")
        read = {name: same.get(read.value) for name, read in a.reads.items()}
        if read != {name: read.value for name, read in b.reads.items()}:
            raise ConfigError(f"{told}: {place} of other values")
        same[a.writes] = b.writes
        for name, tensor in a.tensors.items():
            if tensor is not b.tensors[name] and not _is_same(tensor, b.tensors[name]):
                raise ConfigError(
                    f"compile: {name} of {place} has other numbers for other pictures, or for fewer, or when "
                    "the weights are others, and a plan would keep those of the first; use the model itself"
                )


def _equal(a: Any, b: Any) -> bool:
    """Of numbers, words, arrays, and what holds such; of anything else if it says so itself."""
    if frozen(a) == frozen(b):
        return True
    try:
        return bool(a == b)
    except ValueError:  # of what holds arrays
        return False


def _is_same(a: Tensor, b: Tensor) -> bool:
    """Whether a constant has the same numbers in both passes, as in ``x * 0.5`` or ``x - self.mean``."""
    both_learn = a.requires_grad and b.requires_grad  # computed from parameters: told elsewhere
    return both_learn or (a.dtype == b.dtype and np.array_equal(a.data, b.data, equal_nan=True))


def apart(right: list[Array], ours: list[Array], least: float = 1e-30) -> float:
    """The norm of the difference, as a share of the norm, or of ``least`` where that is less: of the numbers
    that are finite, which must be the same."""
    difference = size = 0.0
    for a, b in zip(right, ours, strict=True):
        finite = np.isfinite(a)
        if not np.array_equal(finite, np.isfinite(b)):
            return math.inf
        a, b = a[finite].astype(np.float64), b[finite].astype(np.float64)
        difference += float(np.sum((a - b) ** 2))
        size += float(np.sum(a**2))
    return math.sqrt(difference) / max(math.sqrt(size), least)

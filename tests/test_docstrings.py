"""Every example in the docstrings of these rooms is executed.

They need no network and no data set. What an example registers is taken out of the registries again.
"""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any

import pytest

import minires
from minires.registry import Registry

ROOMS = ("errors", "registry", "files", "models", "data", "train", "weights", "commands", "cli")
MODULES = [
    module.name
    for module in pkgutil.walk_packages(minires.__path__, "minires.")
    if module.name.split(".")[1] in ROOMS
]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
# At least so many examples are there: a docstring that lost its >>> would pass.
EXAMPLES = {
    "minires.registry": 4, "minires.models": 8, "minires.data": 4, "minires.data.augment": 5,
    "minires.train.optim": 7, "minires.train.schedules": 8, "minires.train.recipes": 5,
    "minires.train.config": 3, "minires.train.sgd": 5, "minires.train.adam": 5, "minires.weights.sources": 2,
}  # fmt: skip


@pytest.fixture(autouse=True)
def registries_as_before() -> Iterator[None]:
    values = (value for name in MODULES for value in vars(importlib.import_module(name)).values())
    registries: dict[int, Registry[Any]] = {id(one): one for one in values if isinstance(one, Registry)}
    before = {number: set(registry) for number, registry in registries.items()}
    yield
    for number, registry in registries.items():
        for name in set(registry) - before[number]:
            del registry[name]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name), optionflags=FLAGS)
    assert result.failed == 0
    assert result.attempted >= EXAMPLES.get(name, 0)

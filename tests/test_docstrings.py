"""Every example in the docstrings is executed; those of ops and nn in the tests of these rooms.

They need no network and no data set. What an example registers is taken out of the registries again.
"""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import minires

MODULES = [
    module.name
    for module in pkgutil.walk_packages(minires.__path__, "minires.")
    if module.name.split(".")[1] not in ("ops", "nn", "__main__")
]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
# At least so many examples are there: a docstring that lost its >>> would pass.
EXAMPLES = {
    "minires.errors": 4, "minires.tensor": 4, "minires.registry": 4, "minires.models": 8,
    "minires.data": 4, "minires.data.augment": 5,
    "minires.optim": 7, "minires.train.schedules": 8, "minires.train.recipes": 5,
    "minires.train.config": 3, "minires.optim.sgd": 5, "minires.optim.adam": 5, "minires.weights.sources": 2,
}  # fmt: skip


def test_no_module_of_the_list_is_gone() -> None:
    assert EXAMPLES.keys() <= set(MODULES)


@pytest.mark.usefixtures("registries_as_before")
@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name), optionflags=FLAGS)
    assert result.failed == 0
    assert result.attempted >= EXAMPLES.get(name, 0)

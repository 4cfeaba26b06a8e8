"""Every public layer and function of minires.nn has a docstring with an example, and these are right."""

import doctest
import importlib
import inspect
import pkgutil

import pytest

import minires.nn

MODULES = [info.name for info in pkgutil.iter_modules(minires.nn.__path__, "minires.nn.")]


def public(module):
    """What a module defines for others: functions, classes."""
    for name, thing in vars(module).items():
        if not name.startswith("_") and (inspect.isclass(thing) or inspect.isfunction(thing)):
            if thing.__module__ == module.__name__:
                yield name, thing


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_are_right(name):
    found = doctest.testmod(importlib.import_module(name))
    assert found.failed == 0


# Those others are not for users.
LAYERS = [name for name in MODULES if not name.endswith((".hooks", ".paths", ".show"))]


@pytest.mark.parametrize("name", LAYERS)
def test_every_public_name_has_an_example(name):
    without = [
        what for what, thing in public(importlib.import_module(name)) if ">>> " not in (thing.__doc__ or "")
    ]
    assert not without


def test_every_exported_name_is_found():
    assert all(inspect.getdoc(getattr(minires.nn, name)) for name in minires.nn.__all__)

"""The examples in the docstrings of the operations do what they say."""

import doctest
import importlib
import inspect
import pkgutil

import pytest

import minires.ops
from minires import backend

MODULES = [info.name for info in pkgutil.walk_packages(minires.ops.__path__, "minires.ops.")]


def examples(name):
    """Those of a module, also of functions behind a decorator, which doctest by itself passes over."""
    module = importlib.import_module(name)
    finder = doctest.DocTestFinder(exclude_empty=True)
    for what, value in vars(module).items():
        if (inspect.isfunction(value) or inspect.isclass(value)) and value.__module__ == name:
            for one in finder.find(value, what, module=False, globs=vars(module).copy()):
                if one.examples:
                    yield one


@pytest.mark.parametrize("name", MODULES)
def test_examples_are_right(name):
    for one in examples(name):
        if one.name == "way" and not backend.HAS_NUMBA:
            continue  # there is one way only
        assert doctest.DocTestRunner().run(one).failed == 0, one.name


def test_each_public_function_of_the_folders_has_an_example():
    found = {f"{name}.{one.name}" for name in MODULES for one in examples(name)}
    assert found >= {
        f"minires.ops.{function}"
        for function in (
            "conv2d.conv2d",
            "conv2d.way",
            "batch_norm.batch_norm",
            "max_pool2d.max_pool2d",
            "avg_pool2d.avg_pool2d",
            "avg_pool2d.global_avg_pool2d",
        )
    }

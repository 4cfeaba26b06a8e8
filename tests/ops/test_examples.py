"""The examples in the docstrings of the operations do what they say."""

import doctest
import importlib
import inspect
import pkgutil

import pytest

import minires.ops
from minires import backend, ops
from minires.ops.registry import described

MODULES = [info.name for info in pkgutil.walk_packages(minires.ops.__path__, "minires.ops.")]


def examples(name):
    """Those of a module, also of functions behind a decorator, which doctest by itself passes over."""
    module = importlib.import_module(name)
    finder = doctest.DocTestFinder(exclude_empty=True)
    head = doctest.DocTestParser().get_doctest(module.__doc__ or "", vars(module).copy(), name, name, 0)
    if head.examples:
        yield head
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


def test_each_public_operation_has_an_example_and_says_its_shapes_itself():
    found = {f"{name}.{one.name}" for name in MODULES for one in examples(name)}
    operations = {known.function for known in described() if known.function}
    made = {ops.split, ops.tile, ops.repeat.repeat, ops.argmax, ops.argmin, ops.any, ops.all, ops.conv2d.way}
    for function in operations | made:
        if function.__module__.startswith("minires.ops."):
            name = f"{function.__module__}.{function.__name__}"
            assert name in found, f"{name} has no example"
            assert "head of this file" not in function.__doc__, name  # help() does not show that


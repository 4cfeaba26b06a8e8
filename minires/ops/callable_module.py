"""A file that holds one operation is called like that operation: ``ops.conv2d(x, w)``.

The operation ``conv2d`` lives in the module ``minires.ops.conv2d``, with its reference implementation and its
kernels around it. So that ``ops.conv2d`` is both the place and what a user calls, such a module passes a call
on to its function of the same name. It can be copied and pickled, as a model that holds it must be.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


class CallableModule(ModuleType):
    """A module that is called like its function of the same name."""

    @property
    def _function(self) -> Callable[..., Any]:
        function: Callable[..., Any] = vars(self)[self.__name__.rpartition(".")[2]]
        return function

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        return self._function(*inputs, **options)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return importlib.import_module, (self.__name__,)


def put_in_place(package: dict[str, Any]) -> None:
    """Let each function among the names of a package that has the name of its own module give way to it."""
    for name, value in list(package.items()):
        module = sys.modules.get(f"{package['__name__']}.{name}")
        if module is not None and inspect.isfunction(value):
            module.__class__ = CallableModule
            vars(module)["__signature__"] = inspect.signature(value)
            package[name] = module

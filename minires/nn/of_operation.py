"""Layers of one function, without weights: ``Swish = layer_of(swish, "Swish")``, ``Function(swish)``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec

from minires.errors import ConfigError
from minires.nn.module import Module
from minires.tensor import Tensor

P = ParamSpec("P")


def layer_of(
    operation: Callable[Concatenate[Tensor, P], Tensor], name: str, *, module: str | None = None
) -> Callable[P, Module]:
    """A class of layers that call ``operation`` with the options that they are made with.

    name: that of the class. It is assigned to a variable of this name, so that models can be pickled.
    module: where that variable is, ``__name__``; by default where the operation is.

    >>> from minires.ops.piecewise import clip
    >>> Clip = layer_of(clip, "Clip")
    >>> Clip(low=0.0, high=6.0)
    Clip(low=0.0, high=6.0)
    >>> Clip(low=0.0, high=6.0)(Tensor([-1.0, 7.0])).tolist()
    [0.0, 6.0]
    """
    first, *others = inspect.signature(operation).parameters.values()
    signature = inspect.Signature(others)

    def __init__(self: Any, *args: P.args, **options: P.kwargs) -> None:
        Module.__init__(self)
        try:
            given = signature.bind(*args, **options)
        except TypeError as error:
            raise TypeError(f"{error}; it is {name}{signature}") from None
        given.apply_defaults()
        vars(self).update(given.arguments)

    def forward(self: Any, x: Tensor) -> Tensor:
        return operation(x, **{one.name: getattr(self, one.name) for one in others})  # type: ignore[call-arg]

    names = {"__init__": __init__, "forward": forward, "__signature__": signature,
             "__doc__": inspect.getdoc(operation), "__module__": module or operation.__module__}  # fmt: skip
    return type(name, (Module,), names)


class Function(Module):
    """A function of a tensor as a layer: what a Sequential makes of ``ops.relu``.

    >>> from minires import ops
    >>> Function(ops.relu)
    Function(relu)
    >>> Function(ops.relu)(Tensor([-1.0, 2.0])).tolist()
    [0.0, 2.0]
    """

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)

    def extra_repr(self) -> str:
        # partial(f, ...) has no name of its own, but f has; an object that is called has that of its class
        named = getattr(self.function, "func", self.function)
        return str(getattr(named, "__name__", type(named).__name__)).rpartition(".")[2]


def as_module(one: Any, place: str) -> Module:
    """A module as it is, and a function of a tensor as a :class:`Function`.

    place: where it is to stand, for the error.

    Raises: ConfigError for a class, and for what cannot be called.

    >>> as_module(Function, "layer 1")
    Traceback (most recent call last):
    ...
    minires.errors.ConfigError: layer 1 is the class Function; make a module of it, Function(...)
    """
    if isinstance(one, Module):
        return one
    if isinstance(one, type):
        raise ConfigError(f"{place} is the class {one.__name__}; make a module of it, {one.__name__}(...)")
    if not callable(one):
        raise ConfigError(f"{place} must be a module or a function of a tensor, not {one!r:.80}")
    return Function(one)

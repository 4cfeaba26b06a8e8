"""A layer that is one operation and has no weights: ``Swish = layer_of(swish, "Swish")``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec

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
        given = signature.bind(*args, **options)
        given.apply_defaults()
        vars(self).update(given.arguments)

    def forward(self: Any, x: Tensor) -> Tensor:
        return operation(x, **{one.name: getattr(self, one.name) for one in others})  # type: ignore[call-arg]

    names = {"__init__": __init__, "forward": forward, "__signature__": signature,
             "__doc__": inspect.getdoc(operation), "__module__": module or operation.__module__}  # fmt: skip
    return type(name, (Module,), names)

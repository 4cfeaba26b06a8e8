"""Optimisers by name: ``build({"name": "sgd", "lr": 0.1}, model.named_parameters())``.

SGD stands in :mod:`minires.optim.sgd`, Adam and AdamW in :mod:`minires.optim.adam`, and what they share,
weight decay and clipping, in :mod:`minires.optim.optimizer`. An optimiser of your own gets a name with
:func:`register`, and is then one that a ``Config`` may name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from minires.errors import ConfigError, mapping, unknown
from minires.optim.adam import Adam, AdamW
from minires.optim.optimizer import Optimizer
from minires.optim.sgd import SGD
from minires.registry import Registry

__all__ = ["OPTIMIZERS", "SGD", "Adam", "AdamW", "Optimizer", "build", "options_of", "register"]

OPTIMIZERS: Registry[Callable[..., Optimizer]] = Registry(
    "optimizer", {"sgd": SGD, "adam": Adam, "adamw": AdamW}
)

Make = TypeVar("Make", bound=Callable[..., Optimizer])


def register(name: str) -> Callable[[Make], Make]:
    """Give an optimiser of your own a name: above a subclass of :class:`Optimizer`, or called with one.

    Also a function that returns an optimiser will do. It is called with the parameters and, as keywords, with
    what else stands in the dict of a ``Config``; ``lr`` always stands there.

    Raises: ConfigError if the name is another optimiser's.

    >>> import numpy as np
    >>> from minires import Tensor, optim
    >>> @optim.register("signs")
    ... class SignDescent(optim.Optimizer):
    ...     slots = ("average",)
    ...     def __init__(self, parameters, lr, *, beta=0.9, **options):
    ...         super().__init__(parameters, lr, **options)
    ...         self.beta = beta
    ...     def numbers(self, step):
    ...         return self.lr, self.beta
    ...     @staticmethod
    ...     def plain(w, g, m, lr, beta):
    ...         m += (1 - beta) * (g - m)
    ...         w -= lr * np.sign(m)
    >>> w = Tensor([1.0, 2.0], requires_grad=True)
    >>> optimizer = optim.build({"name": "signs", "lr": 0.5, "clip_norm": 1.0}, [w])
    >>> w.grad = np.array([3.0, -3.0], np.float32)
    >>> optimizer.step()
    >>> w.numpy()
    array([0.5, 2.5], dtype=float32)
    """

    OPTIMIZERS.name_given(name)

    def add(make: Make) -> Make:
        OPTIMIZERS.add(name, make)
        return make

    return add


def build(spec: Mapping[str, Any], parameters: Iterable[Any]) -> Optimizer:
    """Make the optimiser that a recipe's dict describes, such as ``{"name": "sgd", "lr": 0.1}``.

    Shapes: ``parameters`` is an iterable of parameters or of ``(path, parameter)`` pairs.
    Raises: ConfigError for an unknown name or option (with the nearest one) or a number out of range.

    >>> from minires import Tensor
    >>> build({"name": "adm", "lr": 0.1}, [Tensor(0.0, requires_grad=True)])
    Traceback (most recent call last):
    ...
    minires.errors.UnknownName: unknown optimizer 'adm'. Did you mean 'adam'? Known: sgd, adam, adamw
    """
    make, options = checked(spec)
    made = make(parameters, **options)
    if not isinstance(made, Optimizer):
        what = "None" if made is None else f"a {type(made).__name__}"
        name = spec["name"]
        raise ConfigError(f"the optimizer {name} must give a minires.optim.Optimizer, but it returned {what}")
    return made


def checked(spec: Mapping[str, Any]) -> tuple[Callable[..., Optimizer], dict[str, Any]]:
    """What makes the optimiser of a dict, and its options. Raises: ConfigError as :func:`build` does."""
    spec = mapping("an optimizer", spec)
    options = {key: value for key, value in spec.items() if key != "name"}
    name = spec.get("name")
    make, known = OPTIMIZERS.find(name), options_of(name)
    for key in options:
        if key not in known:
            raise ConfigError(unknown(f"option of {name}", key, known))
    if "lr" not in options:
        raise ConfigError(f"the optimizer {name} needs a learning rate: give lr")
    return make, options


def options_of(name: Any) -> list[str]:
    """The names of what a recipe's dict may give to an optimiser, beside ``name``.

    Raises: ConfigError for an unknown name, with the nearest one.

    >>> options_of("sgd")[:3]
    ['lr', 'momentum', 'nesterov']
    """
    return _options(OPTIMIZERS.find(name))


def _options(make: Callable[..., Optimizer]) -> list[str]:
    """The options of an optimiser; what ``**options`` takes are those that all have."""
    _, *own = inspect.signature(make).parameters.values()
    names = [one.name for one in own if one.kind != one.VAR_KEYWORD]
    if len(names) < len(own):
        names += [name for name in _options(Optimizer) if name not in names]
    return names

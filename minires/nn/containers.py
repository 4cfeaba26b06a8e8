"""Lists and dicts of modules that are modules themselves: they have parameters, and move and print as one.

A plain list, tuple or dict as an attribute is found just as well, and gives the same names; these are for
those who want to ask it for its ``parameters()``, or come from PyTorch.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from typing import Any, NoReturn, Self, overload

from minires.errors import ConfigError, MiniresError, unknown
from minires.nn.module import Module
from minires.nn.paths import Container


class ModuleList(Module):
    """A list of modules, called ``layers.0``, ``layers.1``, ... where it is the attribute ``layers``.

    It does no work of its own: the model around it calls its modules.

    Raises: ConfigError for what is no module; MiniresError if it is called.

    >>> from minires.nn import Linear
    >>> layers = ModuleList([Linear(2, 3), Linear(3, 1)])
    >>> [name for name, _ in layers.named_parameters()]
    ['0.weight', '0.bias', '1.weight', '1.bias']
    >>> len(layers), layers[-1].in_features, len(layers[:1])
    (2, 3, 1)
    """

    def __init__(self, modules: Iterable[Module] = ()) -> None:
        super().__init__()
        self._list: list[Module] = [_module(one) for one in modules]

    def forward(self, *inputs: Any, **options: Any) -> NoReturn:
        raise MiniresError("a ModuleList is not called itself; call its modules, for module in layers: ...")

    def _contents(self) -> Container:
        return self._list

    def append(self, module: Module) -> Self:
        """Add a module at the end. Returns the list."""
        self._list.append(_module(module))
        return self

    def extend(self, modules: Iterable[Module]) -> Self:
        """Add modules at the end. Returns the list."""
        self._list.extend([_module(one) for one in modules])
        return self

    def insert(self, place: int, module: Module) -> None:
        """Put a module before the one at ``place``; those after it have other names from now on."""
        self._list.insert(place, _module(module))

    def __len__(self) -> int:
        return len(self._list)

    def __iter__(self) -> Iterator[Module]:
        return iter(self._list)

    @overload
    def __getitem__(self, place: int) -> Module: ...

    @overload
    def __getitem__(self, place: slice) -> ModuleList: ...

    def __getitem__(self, place: int | slice) -> Module | ModuleList:
        return ModuleList(self._list[place]) if isinstance(place, slice) else self._list[place]

    def __setitem__(self, place: int, module: Module) -> None:
        self._list[place] = _module(module)

    def __delitem__(self, place: int | slice) -> None:
        del self._list[place]


class ModuleDict(Module):
    """Modules by name, called ``heads.left`` where it is the attribute ``heads``; in the order of being set.

    It does no work of its own: the model around it calls its modules.

    Raises: ConfigError for what is no module; MiniresError if it is called, or for a name that is not there.

    >>> from minires.nn import Linear
    >>> heads = ModuleDict({"left": Linear(2, 3)})
    >>> heads["right"] = Linear(2, 1)
    >>> [name for name, _ in heads.named_modules()]
    ['left', 'right']
    >>> heads["right"].out_features, "middle" in heads
    (1, False)
    """

    def __init__(self, modules: Mapping[str, Module] | Iterable[tuple[str, Module]] = ()) -> None:
        super().__init__()
        self._dict: dict[str, Module] = {name: _module(one) for name, one in dict(modules).items()}

    def forward(self, *inputs: Any, **options: Any) -> NoReturn:
        raise MiniresError('a ModuleDict is not called itself; call one of its modules, heads["left"](x)')

    def _contents(self) -> Container:
        return self._dict

    def keys(self) -> KeysView[str]:
        """The names."""
        return self._dict.keys()

    def values(self) -> ValuesView[Module]:
        """The modules."""
        return self._dict.values()

    def items(self) -> ItemsView[str, Module]:
        """Names and modules."""
        return self._dict.items()

    def update(self, modules: Mapping[str, Module]) -> None:
        """Set several modules."""
        self._dict.update({name: _module(one) for name, one in modules.items()})

    def __len__(self) -> int:
        return len(self._dict)

    def __iter__(self) -> Iterator[str]:
        return iter(self._dict)

    def __contains__(self, name: object) -> bool:
        return name in self._dict

    def __getitem__(self, name: str) -> Module:
        if name not in self._dict:
            raise MiniresError(unknown("module", name, self._dict))
        return self._dict[name]

    def __setitem__(self, name: str, module: Module) -> None:
        self._dict[name] = _module(module)

    def __delitem__(self, name: str) -> None:
        del self._dict[name]


def _module(one: Any) -> Module:
    if not isinstance(one, Module):
        raise ConfigError(f"a list or dict of modules holds modules, not a {type(one).__name__}")
    return one

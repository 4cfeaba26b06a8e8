"""Modules: things with parameters, in a stable order and under stable names.

A module's attributes that are Parameters, Modules or arrays (buffers) are found in the order in which they
were set, and so are Parameters and Modules in its lists, tuples and dicts. The name of a parameter is its
path: ``res2a_branch2a.weight``, ``bn2a_branch2a.running_var``, ``layers.0.weight``. A module whose
``in_path`` is False adds nothing to the path: the layers of a residual block carry their full names, as in
the papers' own code, and stand directly under the model.

What is held under two names is one thing: it is counted, moved and saved once, under the name that comes
first. :meth:`Module.shared_names` lists the others, and ``print(model)`` and the summary say so.

Nobody has to tell a module its name. The outermost module that is called knows the paths of all inside it:
see :mod:`minires.nn.paths`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Self

import numpy as np

from minires import backend
from minires.backend import Array
from minires.errors import CheckpointError, ConfigError, MiniresError, ShapeError, closest
from minires.nn import hooks, show
from minires.nn.paths import Container, changes, locate
from minires.tensor import Tensor, array_of, enter


class Parameter(Tensor):
    """A tensor that is learned. The optimiser changes ``.data`` in place; a read-only array is copied.

    >>> Parameter([1.0, 2.0])
    Parameter([1. 2.], dtype=float32, requires_grad=True)
    """

    __slots__ = ()

    def __init__(self, data: Any, *, name: str | None = None) -> None:
        super().__init__(data, requires_grad=True, name=name)
        if not backend.is_writable(self.data):  # a memory map, a view that repeats numbers
            self.data = self.data.copy()


class Module:
    """The base of layers, blocks and models; a subclass defines ``forward``.

    Called with arrays of floats the outermost module makes tensors of them; ``forward`` gets tensors.

    Begin ``__init__`` with ``super().__init__()``, and keep layers and parameters as attributes, or in lists,
    tuples or dicts that are attributes.

    ``copy.deepcopy`` and ``pickle`` give a whole model with parameters of its own: what was shared is shared
    in it, what was frozen is frozen, and hooks of tensors, modes and random generators are the same.
    Gradients, forward hooks and what ``minires.intervene`` changes stay behind.

    Raises: MiniresError if ``super().__init__()`` was forgotten; ConfigError for layers in a set, which has
    no order, or under the name of a method.

    >>> class Net(Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.scale = Parameter([2.0])
    ...
    ...     def forward(self, x):
    ...         return x * self.scale
    >>> Net()(Tensor([1.0, 3.0]))
    Tensor([2. 6.], dtype=float32, requires_grad=True, op='mul')
    """

    in_path = True  # whether the name of this module is part of its parameters' paths
    _around: hooks.Around | None = None  # forward hooks and changes: see minires.nn.hooks

    def __init__(self) -> None:
        self.training = True

    def forward(self, *inputs: Any, **options: Any) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} does not define forward()")

    def __call__(self, *inputs: Any, **options: Any) -> Tensor:
        tree, path = locate(self)
        before = enter(tree, path)
        try:
            if before[0] is None:  # nobody else has made tensors of what a user gives
                inputs = tuple([
                    Tensor(one) if _is_array(one) and backend.is_float(one.dtype) else one for one in inputs
                ])  # fmt: skip
            around = self._around
            if around is None:
                return self.forward(*inputs, **options)
            changed: Tensor = around(self, inputs, options)
            return changed
        except MiniresError as error:
            error.where = error.where or path or None
            raise
        finally:
            enter(*before)

    def register_forward_hook(self, function: Callable[[Any, tuple[Any, ...], Any], Any]) -> hooks.Handle:
        """Call ``function(module, inputs, output)`` whenever this module has run; what it returns, unless it
        is None, takes the place of the output.

        ``remove()`` of what is returned takes the hook away, and so does the end of a ``with`` block. Several
        hooks are called in the order in which they came. A model that has one is run module by module: plans
        (``minires.compile``) refuse it. A recomputed block calls its hooks in both runs.

        Raises: ConfigError for what is no function, or returns something else than None or a tensor.

        >>> from minires.nn import Linear, ReLU, Sequential
        >>> model, shapes = Sequential(dense=Linear(2, 3), end=ReLU()), []
        >>> with model.dense.register_forward_hook(lambda module, inputs, y: shapes.append(y.shape)):
        ...     y = model(np.ones((5, 2), np.float32))
        >>> shapes
        [(5, 3)]
        """
        return hooks.register(self, function)

    def left_out(self, *inputs: Any, **options: Any) -> Tensor:
        """What comes out where this module is dropped (see ``minires.intervene``): what comes in.

        A layer that is called with more than one tensor, or does more than its name says, says here what
        stays: a batch norm still adds the shortcut that it is given, and ends in its ReLU.

        Raises: ConfigError if that is not one tensor.
        """
        tensors = [one for one in (*inputs, *options.values()) if isinstance(one, Tensor)]
        if not inputs or len(tensors) != 1 or tensors[0] is not inputs[0]:
            raise ConfigError(
                f"a {type(self).__name__} that is called with {len(tensors)} tensors cannot be dropped, as "
                "which of them goes out? Define left_out(...) in its class, which says it"
            )
        only: Tensor = inputs[0]
        return only

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, _FINDABLE) or isinstance(vars(self).get(name), _FINDABLE):
            self._accept(name, value)
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        super().__delattr__(name)
        changes.note()

    def _accept(self, name: str, value: Any) -> None:
        """Look at what is to be an attribute and may hold modules, or is set in place of what may."""
        if isinstance(value, set | frozenset) and any(isinstance(one, Module | Parameter) for one in value):
            raise ConfigError(f"{name}: a set of layers has no order; keep them in a list")
        holds = next(_found(name, value), None) is not None
        for key, one in _items(value) if holds and isinstance(value, list | tuple | dict) else ():
            if isinstance(one, type) and issubclass(one, Module):
                raise ConfigError(
                    f"{name}.{key} is the class {one.__name__} among modules; make one, {one.__name__}(...)"
                )
        if holds and "training" not in vars(self):
            raise self._unmade(f"sets {name!r}")
        method = getattr(type(self), name, None)
        if holds and callable(method) and not isinstance(method, Module):
            raise ConfigError(
                f"{name!r} cannot be the name of a layer: it is that of a method of {type(self).__name__}"
            )
        before = vars(self).get(name)
        if isinstance(before, Parameter) and value is not None and not isinstance(value, Parameter):
            raise ConfigError(
                f"{name!r} is a parameter, and {type(value).__name__} would take it out of training; write "
                f"Parameter(...), or change its .data in place"
            )
        # A new list may be filled later. One in the place of another that held no modules changes nothing.
        if holds or name not in vars(self) or next(_found(name, before), None) is not None:
            changes.note()

    def _unmade(self, what: str) -> MiniresError:
        kind = type(self).__name__
        return MiniresError(
            f"{kind} {what} before Module.__init__ has run; begin {kind}.__init__ with super().__init__()"
        )

    # ------------------------------------------------------------------------------- what it is made of

    def _contents(self) -> Container | None:
        """The list or dict that this module stands for (ModuleList, ModuleDict), None for any other."""
        return None

    def _held(self) -> Iterator[tuple[str, Module | Parameter]]:
        """The modules and parameters in attributes, and in lists that are attributes; repeated ones too."""
        if "training" not in vars(self):
            raise self._unmade("is used")
        contents = self._contents()
        if contents is not None:
            for name, value in _items(contents):
                yield from _found(name, value)
            return
        for name, value in list(vars(self).items()):
            if type(value) not in _PLAIN and isinstance(value, _FINDABLE):  # most are plain, seen at once
                yield from _found(name, value)

    def _below(self, prefix: str, seen: set[int]) -> Iterator[tuple[str, Module, str]]:
        """Each module inside, once, with its path and the prefix of what it holds; blocks before layers."""
        for name, value in self._held():
            if isinstance(value, Module) and id(value) not in seen:
                seen.add(id(value))
                path = f"{prefix}{name}"
                inner = f"{path}." if value.in_path else prefix
                yield path, value, inner
                yield from value._below(inner, seen)

    def children(self) -> Iterator[tuple[str, Module]]:
        """The modules directly inside, each once, with their names; of a list its members: ``layers.0``.

        >>> from minires.nn import ReLU, Sequential
        >>> [name for name, _ in Sequential(ReLU(), last=ReLU()).children()]
        ['0', 'last']
        """
        seen: set[int] = set()
        for name, value in self._held():
            if isinstance(value, Module) and id(value) not in seen:
                seen.add(id(value))
                yield name, value

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """Every module inside, once, with its path, in the order of definition; blocks before layers."""
        for path, module, _ in self._below(prefix, {id(self)}):
            yield path, module

    def modules(self) -> Iterator[Module]:
        """This module and every module inside, each once."""
        yield self
        for _, module in self.named_modules():
            yield module

    def apply(self, function: Callable[[Module], Any]) -> Self:
        """Call ``function`` with every module, inner ones first and this one last. Returns the module.

        >>> from minires.nn import ReLU, Sequential
        >>> model = Sequential(ReLU()).apply(lambda module: print(type(module).__name__))
        ReLU
        Sequential
        """
        self._apply(function, {id(self)})
        return self

    def _apply(self, function: Callable[[Module], Any], seen: set[int]) -> None:
        for _, child in self.children():
            if id(child) not in seen:
                seen.add(id(child))
                child._apply(function, seen)
        function(self)

    def _owners(self) -> Iterator[tuple[str, Module]]:
        """This module and those inside, with the prefix of what each holds itself."""
        yield "", self
        for _, module, inner in self._below("", {id(self)}):
            yield inner, module

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Every parameter, once, with its path, in a stable order."""
        seen: set[int] = set()
        for prefix, module in self._owners():
            for name, value in module._held():
                if isinstance(value, Parameter) and id(value) not in seen:
                    seen.add(id(value))
                    yield f"{prefix}{name}", value

    def parameters(self) -> Iterator[Parameter]:
        """Every parameter, in the order of :meth:`named_parameters`."""
        for _, parameter in self.named_parameters():
            yield parameter

    def named_buffers(self) -> Iterator[tuple[str, Array]]:
        """Every array that belongs to the state but is not learned (running statistics), with its path.

        A buffer is an attribute; arrays in lists are not found.
        """
        seen: set[int] = set()
        for prefix, module in self._owners():
            for name, value in list(vars(module).items()):
                if _is_array(value) and id(value) not in seen:
                    seen.add(id(value))
                    yield f"{prefix}{name}", value

    def shared_names(self) -> dict[str, list[str]]:
        """What is held under several names: the path of each such module or parameter, and its other ones.

        >>> from minires.nn import Linear, Sequential
        >>> dense = Linear(2, 2)
        >>> Sequential(first=dense, second=Linear(2, 2), third=dense).shared_names()
        {'first': ['third']}
        """
        names: dict[int, list[str]] = {}
        for prefix, module in self._owners():
            for name, value in module._held():
                names.setdefault(id(value), []).append(f"{prefix}{name}")
        return {first: others for first, *others in names.values() if others}

    def _held_containers(self) -> Iterator[Container]:
        """The lists, tuples and dicts in this module and those inside: what a change of theirs changes."""
        for module in self.modules():
            contents = module._contents()
            yield from _containers(vars(module) if contents is None else contents)

    def _check_names(self) -> None:
        """See that each parameter, buffer and module has a name of its own, as a state dict needs.

        Raises: ConfigError with those that stand for two things.
        """
        state = [name for name, _ in self.named_parameters()] + [name for name, _ in self.named_buffers()]
        modules = [path for path, _ in self.named_modules()]
        twice = [name for names in (state, modules) for name, count in Counter(names).items() if count > 1]
        if twice:
            shown = ", ".join(sorted(twice)[:10]) + (", ..." if len(twice) > 10 else "")
            raise ConfigError(f"these names stand for two things each: {shown}")

    # --------------------------------------------------------------------------------------- how it looks

    def extra_repr(self) -> str:
        """The options of this module, for ``print``; by default those that ``__init__`` takes and keeps."""
        return show.arguments(self)

    def __repr__(self) -> str:
        return show.as_text(list(self._lines("", "", 0, {})), self._total())

    def _repr_html_(self) -> str:
        return show.as_html(list(self._lines("", "", 0, {})), self._total())

    def _lines(self, label: str, prefix: str, depth: int, first: dict[int, str]) -> Iterator[show.Line]:
        """A line for this module, and those of the modules inside; ``first`` is where each thing was seen."""
        first.setdefault(id(self), "the whole")
        held, inside = [], []
        for name, value in self._held():
            if isinstance(value, Module):
                inside.append((name, value))
            elif id(value) in first:
                held.append((name, f"= {first[id(value)]} (shared)"))
            else:
                first[id(value)] = f"{prefix}{name}"
                held.append((name, f"{value.shape}{'' if value.requires_grad else ' frozen'}"))
        options = self.extra_repr()
        what = f"{label}{type(self).__name__}" + (f"({options})" if options or not inside else "")
        yield show.Line(depth, what, show.shapes(held), sum(one.size for one in self.parameters()))
        for name, module in inside:
            path = f"{prefix}{name}"
            if id(module) in first:
                yield show.Line(depth + 1, f"{name}: = {first[id(module)]} (shared)", "", 0)
            else:
                first[id(module)] = path
                inner = f"{path}." if module.in_path else prefix
                yield from module._lines(f"{name}: ", inner, depth + 1, first)

    def _total(self) -> str:
        sizes = [(one.size, one.requires_grad) for one in self.parameters()]
        frozen = sum(size for size, learned in sizes if not learned)
        total = sum(size for size, _ in sizes)
        if not total:
            return ""
        return f"{total:,} parameters" + (f", {frozen:,} of them frozen" if frozen else "")

    # -------------------------------------------------------------------------------------- what it does

    def train(self, training: bool = True) -> Self:
        """Use the statistics of the batch, and dropout. Returns the module."""
        for module in list(self.modules()):
            module.training = training
        return self

    def eval(self) -> Self:
        """Use running statistics and no dropout. Returns the module."""
        return self.train(False)

    def zero_grad(self) -> None:
        """Forget the gradients of all parameters."""
        for parameter in self.parameters():
            parameter.grad = None

    def to(self, device: str) -> Self:
        """Move parameters and buffers to a device, in place. Returns the module.

        The Parameter objects stay, so optimiser, hooks and sharing do; gradients of those that move are
        forgotten.

        Raises: ConfigError if the device is unknown or not there.
        """
        return self._convert(lambda array: backend.to_device(array, device))

    def astype(self, dtype: Any) -> Self:
        """Convert parameters and floating-point buffers to float32 or float64, in place. Returns the module.

        The Parameter objects stay, as in :meth:`to`. For bfloat16 see ``precision`` of the trainer: there
        activations are narrow, and parameters are not.

        Raises: ShapeError for another dtype.

        >>> from minires.nn import Linear
        >>> Linear(2, 2).astype("float64").weight.dtype
        dtype('float64')
        """
        kind = backend.dtype_of(dtype)
        if kind not in (np.dtype(np.float32), np.dtype(np.float64)):
            raise ShapeError(f"parameters are float32 or float64, not {kind}")
        return self._convert(
            lambda array: array.astype(kind, copy=False) if backend.is_float(array.dtype) else array
        )

    def _convert(self, convert: Callable[[Array], Array]) -> Self:
        """Put what ``convert`` makes of each array in its place; an array that is held twice stays one."""
        for parameter in self.parameters():
            parameter.replace_data(convert(parameter.data))
        before: dict[int, Array] = {}  # kept, so that no id is given out twice
        after: dict[int, Array] = {}
        for module in self.modules():
            for name, value in list(vars(module).items()):
                if _is_array(value):
                    before[id(value)] = value
                    after[id(value)] = after[id(value)] if id(value) in after else convert(value)
                    setattr(module, name, after[id(value)])
        return self

    # What lists the layers of a model. It stands on a floor above this one, so minires/__init__.py sets it.
    summarizer: ClassVar[Callable[..., Any]]

    def summary(self, input: tuple[int, int, int], *, memory: bool = False) -> Any:
        """List the layers of the model for a picture (H, W, C): see :func:`minires.inspect.summarize`."""
        return self.summarizer(self, input, memory=memory)

    # --------------------------------------------------------------------------------------- its state

    def __getstate__(self) -> dict[str, Any]:
        """What a copy and a pickle of this module hold: all but the paths, which are found again, and what
        stands around its forward pass."""
        return {name: value for name, value in vars(self).items() if name not in ("_tree", hooks.NAME)}

    def state_dict(self) -> dict[str, np.ndarray[Any, Any]]:
        """Copies of all parameters, then of all buffers, on the CPU, by path; shared ones once.

        Raises: ConfigError if a name stands for two things.
        """
        self._check_names()
        state = {name: parameter.data for name, parameter in self.named_parameters()}
        state.update(self.named_buffers())
        return {name: np.array(backend.to_device(array, "cpu")) for name, array in state.items()}

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Set all parameters and buffers from ``state``; nothing is changed unless everything fits.

        Its values are arrays, tensors, numbers or lists of numbers.

        Raises: CheckpointError that names what is missing, unexpected or of another shape.
        """
        if not isinstance(state, Mapping):
            raise CheckpointError(
                "the weights are a dict of arrays by path, as state_dict() gives it, "
                f"not a {type(state).__name__}"
            )
        state = {name: _array_in_state(name, value) for name, value in state.items()}
        targets: dict[str, Array] = {name: parameter.data for name, parameter in self.named_parameters()}
        targets.update(self.named_buffers())
        problems = [f"missing: {name} {targets[name].shape}" for name in targets if name not in state]
        absent = [name for name in targets if name not in state]
        problems += [
            f"unexpected: {name} {state[name].shape}"
            + "".join(f"; the nearest is {near}" for near in closest(name, absent, count=1))
            for name in state
            if name not in targets
        ]
        problems += [
            f"misshapen: {name} is {state[name].shape}, the model needs {target.shape}"
            for name, target in targets.items()
            if name in state and state[name].shape != target.shape
        ]
        problems += [
            f"read-only: {name} cannot be written to"
            for name, target in targets.items()
            if not backend.is_writable(target)
        ]
        if problems:
            shown = "\n  ".join(problems[:20])
            more = f"\n  and {len(problems) - 20} more" if len(problems) > 20 else ""
            raise CheckpointError(f"these weights do not fit the model; nothing was loaded\n  {shown}{more}")
        for name, target in targets.items():
            target[...] = backend.array_module(target).asarray(state[name])

    def random_states(self) -> dict[str, Any]:
        """The states of the random generators inside (dropout), by path, as plain data for JSON."""
        return {path: rng.bit_generator.state for path, rng in self._generators()}

    def load_random_states(self, states: Mapping[str, Any]) -> None:
        """Set the random generators to what :meth:`random_states` gave.

        Raises: CheckpointError if the paths differ.
        """
        generators = dict(self._generators())
        if generators.keys() != states.keys():
            raise CheckpointError(
                f"the random states are those of {sorted(states)}, but the model has {sorted(generators)}"
            )
        for path, rng in generators.items():
            rng.bit_generator.state = states[path]

    def _generators(self) -> Iterator[tuple[str, np.random.Generator]]:
        for prefix, module in self._owners():
            for name, value in list(vars(module).items()):
                if isinstance(value, np.random.Generator):
                    yield f"{prefix}{name}", value


# What an attribute may be to hold modules or parameters; sets are here to be refused.
_FINDABLE = (Module, Parameter, list, tuple, dict, set, frozenset)
_PLAIN = frozenset({bool, int, float, str, type(None), np.ndarray})


def _is_array(value: Any) -> bool:
    is_numpy = isinstance(value, np.ndarray) and value.dtype.kind != "O"  # an array of objects is no state
    return is_numpy or type(value).__module__.startswith("cupy")


def _array_in_state(name: str, value: Any) -> Array:
    if _is_array(value):
        if value.dtype.kind not in "biuf" and not backend.is_float(value.dtype):
            raise CheckpointError(f"{name}: {value.dtype} is no dtype of weights; nothing was loaded")
        return value
    try:
        return array_of(value, np.float64)  # wide enough for what it is copied to
    except MiniresError as error:
        raise CheckpointError(f"{name}: {error}; nothing was loaded") from None


def _items(held: Container) -> Iterator[tuple[str, Any]]:
    for key, value in held.items() if isinstance(held, dict) else enumerate(held):
        yield str(key), value


def _opened(value: Any) -> Container | None:
    """The list, tuple or dict that a value is or stands for; None if it is none."""
    if isinstance(value, Module):
        return value._contents()
    return value if isinstance(value, list | tuple | dict) else None


def _found(name: str, value: Any, around: tuple[Any, ...] = ()) -> Iterator[tuple[str, Module | Parameter]]:
    """The modules and parameters that a value is or holds, those of a list under ``layers.0``."""
    held = _opened(value)
    if held is None:
        if isinstance(value, Module | Parameter):
            yield name, value
    elif not any(held is one for one in around):  # a list may hold itself
        for key, one in _items(held):
            if isinstance(one, _FINDABLE):
                yield from _found(f"{name}.{key}", one, (*around, held))


def _containers(held: Container, around: tuple[Any, ...] = ()) -> Iterator[Container]:
    """The lists, tuples and dicts in ``held``, and in these."""
    for _, value in _items(held):
        inside = _opened(value)
        if inside is not None and not any(inside is one for one in around):
            yield inside
            yield from _containers(inside, (*around, inside))

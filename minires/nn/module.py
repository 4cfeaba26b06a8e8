"""Modules: things with parameters, in a stable order and under stable names.

A module's attributes that are Parameters, Modules or arrays (buffers) are found in the order in which they
were set. The name of a parameter is its path: ``res2a_branch2a.weight``, ``bn2a_branch2a.running_var``. A
module whose ``in_path`` is False adds nothing to the path: the layers of a residual block carry their full
names, as in the papers' own code, and stand directly under the model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from minires import backend
from minires.backend import Array
from minires.errors import CheckpointError, ConfigError, MiniresError
from minires.tensor import Tensor, scope


class Parameter(Tensor):
    """A tensor that is learned. The optimiser changes ``.data`` in place."""

    __slots__ = ()

    def __init__(self, data: Any, *, name: str | None = None) -> None:
        super().__init__(data, requires_grad=True, name=name)


class Module:
    """The base of layers, blocks and models; a subclass defines ``forward``."""

    in_path = True  # whether the name of this module is part of its parameters' paths

    def __init__(self) -> None:
        self.training = True
        self.path = ""  # where in the model it stands, set when the model is complete: see name_modules

    def forward(self, *inputs: Any, **options: Any) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} does not define forward()")

    def __call__(self, *inputs: Any, **options: Any) -> Tensor:
        if not self.path:
            return self.forward(*inputs, **options)
        with scope(self.path):
            try:
                return self.forward(*inputs, **options)
            except MiniresError as error:
                error.where = error.where or self.path
                raise

    # ------------------------------------------------------------------------------- what it is made of

    def children(self) -> Iterator[tuple[str, Module]]:
        """The modules directly inside, with their names."""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """Every module inside with its path, in the order of definition; blocks before their layers."""
        for name, child in self.children():
            path = f"{prefix}{name}"
            yield path, child
            yield from child.named_modules(f"{path}." if child.in_path else prefix)

    def _owners(self) -> Iterator[tuple[str, Module]]:
        """This module and those inside, with the prefix of what each holds itself."""
        yield "", self
        for path, module in self.named_modules():
            yield f"{path}." if module.in_path else "", module

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Every parameter with its path, in a stable order."""
        for prefix, module in self._owners():
            for name, value in vars(module).items():
                if isinstance(value, Parameter):
                    yield f"{prefix}{name}", value

    def parameters(self) -> Iterator[Parameter]:
        """Every parameter, in the order of :meth:`named_parameters`."""
        for _, parameter in self.named_parameters():
            yield parameter

    def named_buffers(self) -> Iterator[tuple[str, Array]]:
        """Every array that belongs to the state but is not learned (running statistics), with its path."""
        for prefix, module in self._owners():
            for name, value in vars(module).items():
                if isinstance(value, np.ndarray) or type(value).__module__.startswith("cupy"):
                    yield f"{prefix}{name}", value

    def name_modules(self) -> Module:
        """Tell every module inside its path, for error messages and the tape. Models do this when built.

        Raises: ConfigError if two parameters or buffers have one name.
        """
        for path, module in self.named_modules():
            module.path = path
        names = [name for name, _ in self.named_parameters()] + [name for name, _ in self.named_buffers()]
        twice = sorted(name for name, count in Counter(names).items() if count > 1)
        if twice:
            raise ConfigError(f"these names stand for two things each: {', '.join(twice)}")
        return self

    # -------------------------------------------------------------------------------------- what it does

    def train(self, training: bool = True) -> Module:
        """Use the statistics of the batch, and dropout. Returns the module."""
        self.training = training
        for _, module in self.named_modules():
            module.training = training
        return self

    def eval(self) -> Module:
        """Use running statistics and no dropout. Returns the module."""
        return self.train(False)

    def zero_grad(self) -> None:
        """Forget the gradients of all parameters."""
        for parameter in self.parameters():
            parameter.grad = None

    def to(self, device: str) -> Module:
        """Move parameters and buffers to a device, in place. Returns the module.

        Raises: ConfigError if the device is unknown or not there.
        """
        for _, module in self._owners():
            for name, value in list(vars(module).items()):
                if isinstance(value, Parameter):
                    value.data = backend.to_device(value.data, device)
                    value.grad = None
                elif isinstance(value, np.ndarray) or type(value).__module__.startswith("cupy"):
                    setattr(module, name, backend.to_device(value, device))
        return self

    def astype(self, dtype: Any) -> Module:
        """Convert parameters and buffers to float32 or float64, in place. Returns the module."""
        for _, module in self._owners():
            for name, value in list(vars(module).items()):
                if isinstance(value, Parameter):
                    setattr(module, name, Parameter(value.data.astype(dtype), name=value.name))
                elif isinstance(value, np.ndarray) and value.dtype.kind == "f":
                    setattr(module, name, value.astype(dtype))
        return self

    # What lists the layers of a model. It stands on a floor above this one, so minires/__init__.py sets it.
    summarizer: ClassVar[Callable[..., Any]]

    def summary(self, input: tuple[int, int, int], *, memory: bool = False) -> Any:
        """List the layers of the model for a picture (H, W, C): see :func:`minires.inspect.summarize`."""
        return self.summarizer(self, input, memory=memory)

    # --------------------------------------------------------------------------------------- its state

    def state_dict(self) -> dict[str, np.ndarray[Any, Any]]:
        """Copies of all parameters, then of all buffers, on the CPU, by path."""
        state = {name: parameter.data for name, parameter in self.named_parameters()}
        state.update(self.named_buffers())
        return {name: np.array(backend.to_device(array, "cpu")) for name, array in state.items()}

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Set all parameters and buffers from ``state``; nothing is changed unless everything fits.

        Raises: CheckpointError that names what is missing, unexpected or of another shape.
        """
        targets: dict[str, Array] = {name: parameter.data for name, parameter in self.named_parameters()}
        targets.update(self.named_buffers())
        problems = [f"missing: {name} {targets[name].shape}" for name in targets if name not in state]
        problems += [f"unexpected: {name} {state[name].shape}" for name in state if name not in targets]
        problems += [
            f"misshapen: {name} is {state[name].shape}, the model needs {target.shape}"
            for name, target in targets.items()
            if name in state and state[name].shape != target.shape
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
            for name, value in vars(module).items():
                if isinstance(value, np.random.Generator):
                    yield f"{prefix}{name}", value

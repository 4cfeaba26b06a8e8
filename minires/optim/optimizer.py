"""What every optimiser is made of: state, clipping, weight decay, and one sweep over all parameters.

Weight decay is *coupled* when it is part of the gradient, ``g <- g + weight_decay w`` (the ResNet paper's
SGD), and *decoupled* when it shrinks the weight itself, ``w <- (1 - lr weight_decay) w`` (AdamW).
It is applied to parameters of two axes or more; biases and batch norm's gamma and beta have one axis and are
left alone, unless ``decay_vectors=True``.

Updates are made in place, all parameters in one sweep over all threads (on a GPU: in one launch): the arrays
are read and written once, and that is all an update costs.
"""

from __future__ import annotations

import bisect
import functools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, ClassVar

import numpy as np

from minires import backend
from minires.backend import Array, cuda
from minires.errors import CheckpointError, ConfigError, MiniresError, ShapeError, as_number, number, truth
from minires.optim.cuda_kernels import Sweep, fits
from minires.tensor import Tensor

_GRAIN = 1 << 16  # elements worth a thread of their own

# What the CUDA kernels of all optimisers begin with; for the tables see cuda_kernels.py.
CLIPPED = r"""
// Where the norm of the gradients is given it scales them, and if it is not finite the step changes nothing.
// Where it is not given, the host has seen to both.
__device__ bool clipped(const double* norm, T clip, T* scale) {
    if (!norm) return true;
    double share = clip / (*norm + 1e-6);
    if (clip > 0) *scale = share < 1 ? T(share) : T(1);
    return isfinite(*norm);
}
"""


class Optimizer:
    """What all optimisers share: the parameters, their state, clipping, weight decay, the sweep over arrays.

    A subclass names its state arrays in ``slots``, says in ``numbers`` which numbers its formula needs at a
    step, and gives the formula as the static method ``plain(w, g, *slots, *numbers)``, which changes ``w``
    and the slots in place (``w -= ...``; ``w = w - ...`` would change nothing) and returns nothing. The
    gradient that it gets is clipped and has the coupled weight decay in it.

    That is all of an own optimiser. For speed it may have the whole update once more, clipping and decay
    included, with the arguments ``(w, g, *slots, scale, decay, keep, *numbers)``: as ``fused``, a function
    for flat arrays that ``minires.backend.kernel`` compiles, and as the CUDA kernel ``source``, ``kernel``.

    ``weight_decay`` is coupled or ``decoupled``, and leaves vectors alone unless ``decay_vectors``;
    ``clip_norm`` is the largest norm that all gradients together keep.

    Shapes: ``parameters`` is an iterable of parameters or of ``(path, parameter)`` pairs.
    A parameter that is given twice, as one that two layers share, counts once.

    Raises: ConfigError for a number out of range, no parameters, one path for two of them, or what is no
    parameter.
    """

    slots: ClassVar[tuple[str, ...]] = ()
    plain: ClassVar[Callable[..., None]]
    fused: ClassVar[Callable[..., None] | None] = None
    source: ClassVar[cuda.Source | None] = None
    kernel: ClassVar[str] = ""

    def __init__(
        self,
        parameters: Iterable[Any],
        lr: float,
        *,
        weight_decay: float = 0.0,
        decoupled: bool = False,
        decay_vectors: bool = False,
        clip_norm: float | None = None,
    ) -> None:
        if type(self).step is Optimizer.step and not hasattr(type(self), "plain"):
            raise ConfigError(
                f"{type(self).__name__} has no formula; give it a static method plain(w, g, *slots, *numbers)"
            )
        first: dict[int, tuple[str | None, Tensor]] = {}
        for path, parameter in _pairs(parameters):
            first.setdefault(id(parameter), (path, parameter))
        pairs = list(first.values())
        if not isinstance(self.slots, tuple):
            raise ConfigError(f"slots of {type(self).__name__} must be a tuple of names, not {self.slots!r}")
        self.paths = [path or p.name or f"parameter{i}" for i, (path, p) in enumerate(pairs)]
        self.parameters = [parameter for _, parameter in pairs]
        if not pairs:
            raise ConfigError("an optimiser needs at least one parameter; it was given none")
        if twice := [path for path, count in Counter(self.paths).items() if count > 1]:
            raise ConfigError(f"the optimiser was given two parameters under one path: {', '.join(twice)}")
        self.lr = number("lr", lr, least=0)
        self.clip_norm = None if clip_norm is None else number("clip_norm", clip_norm, above=0)
        weight_decay = number("weight_decay", weight_decay, least=0)
        decoupled, decay_vectors = truth("decoupled", decoupled), truth("decay_vectors", decay_vectors)
        decays = [weight_decay if decay_vectors or p.data.ndim > 1 else 0.0 for p in self.parameters]
        self._coupled = [0.0 if decoupled else decay for decay in decays]
        self._decoupled = [decay if decoupled else 0.0 for decay in decays]
        self._steps = [0] * len(pairs)
        self._state: dict[str, list[Array | None]] = {slot: [None] * len(pairs) for slot in self.slots}
        self._arrays: list[Array | None] = [None] * len(pairs)  # of the parameters, to which the state fits

    def __repr__(self) -> str:
        shown = {
            name: value
            for name, value in vars(self).items()
            if not name.startswith("_") and name not in ("paths", "parameters") and value is not None
        }
        options = [f"{name}={value!r}" for name, value in shown.items()]
        for word, decays in (("weight_decay", self._coupled), ("decoupled weight_decay", self._decoupled)):
            options += [
                f"{word}={decay} of {decays.count(decay)} of them" for decay in sorted(set(decays)) if decay
            ]
        size = sum(parameter.size for parameter in self.parameters)
        count = f"{len(self.parameters)} parameters ({size:,} numbers)"
        return f"{type(self).__name__} of {count}: {', '.join(options)}"

    def numbers(self, step: int) -> tuple[float, ...]:
        """The numbers that the formula needs at ``step``, which counts from 1."""
        return (self.lr,)

    def zero_grad(self) -> None:
        """Forget the gradients of all parameters."""
        for parameter in self.parameters:
            parameter.grad = None

    def gradient_norm(self) -> float:
        """Give the Euclidean norm of all gradients together; a NaN or infinity in any of them shows in it."""
        gradients = {i: p.grad for i, p in enumerate(self.parameters) if p.grad is not None}
        if gradients and cuda.usable(*gradients.values()):
            return float(self._on_gpu.norm(gradients))
        return math.sqrt(backend.sum_of_squares(gradients.values()))

    def step(self, *, norm: float | None = None) -> None:
        """Update every parameter that has a gradient, in place.

        ``norm`` is the ``gradient_norm()`` if the caller knows it already; it serves clipping.
        """
        scale, fused, source = 1.0, type(self).fused, self.source
        if self.clip_norm is not None:
            norm = self.gradient_norm() if norm is None else norm
            if as_number(norm) is None:
                raise ConfigError(f"step: norm is the gradient_norm(), a number, not {norm!r}")
            scale = min(1.0, self.clip_norm / (norm + 1e-6))  # the 1e-6 is PyTorch's
        sweep: list[tuple[list[Array], tuple[Any, ...]]] = []
        on_gpu: dict[int, tuple[list[Array], tuple[float, ...]]] = {}
        for i, arrays, numbers in self._next_step(scale):
            if source and fits(*arrays):
                on_gpu[i] = arrays, numbers
            elif fused and backend.fast(*arrays) and _are_alike(arrays):
                cast = arrays[0].dtype.type  # float64 numbers would make float64 arithmetic of float32 arrays
                sweep.append(([array.reshape(-1) for array in arrays], tuple(map(cast, numbers))))
            else:
                self._plain_step(*arrays, numbers=numbers)
        if sweep and fused:
            _sweep(fused, sweep)
        if on_gpu and source:
            self._on_gpu.set(on_gpu)
            self._on_gpu.launch(source, self.kernel, None, 0.0)

    def _plain_step(self, w: Array, g: Array, *slots: Array, numbers: Sequence[float]) -> None:
        scale, decay, keep, *own = numbers
        w *= keep
        plain: Callable[..., object] = type(self).plain
        returned = plain(w, scale * g + decay * w, *slots, *own)
        if returned is not None:
            raise ConfigError(
                f"{type(self).__name__}.plain returned a value, which is lost; it must change w and the "
                "slots in place, w -= ... or w[...] = ..., and return nothing"
            )

    def _next_step(self, scale: float) -> Iterator[tuple[int, list[Array], tuple[float, ...]]]:
        """Count a step of each parameter with a gradient: its place, its arrays, and the numbers of the step.

        These are the share that clipping leaves of the gradient, the coupled decay, what the decoupled decay
        keeps of the weight, and the numbers of the formula.
        """
        self.lr = number("lr", self.lr, least=0)  # a schedule, or its user, has perhaps set it
        ready = [i for i, parameter in enumerate(self.parameters) if parameter.grad is not None]
        for i in ready:  # all of them first: a step is made whole or not at all
            self._check_ready(i)
        for i in ready:
            parameter = self.parameters[i]
            self._steps[i] += 1
            gradient = parameter.grad
            assert gradient is not None
            if not gradient.flags.c_contiguous:
                gradient = backend.array_module(gradient).ascontiguousarray(gradient)
            keep = 1.0 - self.lr * self._decoupled[i]
            numbers = (scale, self._coupled[i], keep, *self.numbers(self._steps[i]))
            yield i, [parameter.data, gradient, *self._slots_of(i)], numbers

    def _check_ready(self, i: int) -> None:
        """See that parameter ``i`` can be changed by a kernel, whatever was done to its arrays meanwhile.

        Raises: ShapeError with both shapes; MiniresError if its numbers cannot be written to.
        """
        data, grad = self.parameters[i].data, self.parameters[i].grad
        assert grad is not None
        others = [("gradient", grad), *((slot, self._state[slot][i]) for slot in self.slots)]
        for what, array in others:
            if array is not None and array.shape != data.shape:
                todo = "run backward() again" if what == "gradient" else "make a new optimiser"
                raise ShapeError(
                    f"{self.paths[i]}: its {what} is of shape {array.shape}, but the parameter is of shape "
                    f"{data.shape}; {todo}"
                )
        if not backend.is_writable(data):
            raise MiniresError(
                f"{self.paths[i]}: its numbers cannot be changed, as their array is read-only; "
                "give the parameter a copy, p.data = p.data.copy()"
            )

    # A step in two halves, for a CUDA graph: ``launch_step`` is captured once, ``plan_step`` goes before each
    # replay and writes what the launches find in their tables.

    def launch_step(self) -> Array:
        """Launch what ``plan_step`` plans, on the GPU; return the norm of the gradients, which stays there.

        A step whose gradients have no finite norm changes nothing.
        """
        assert self.source, "without a CUDA kernel there is nothing to launch"
        assert self._on_gpu.tables, "there are no tables before a first step()"
        norm = self._on_gpu.launch_norm()
        self._on_gpu.launch(self.source, self.kernel, norm, self.clip_norm or 0.0)
        return norm

    def plan_step(self) -> None:
        """Count a step, and write its tables from the gradients and the learning rate as they are now.

        Raises: ConfigError if a parameter or gradient is not on a GPU, or has gaps.
        """
        rows = {i: (arrays, numbers) for i, arrays, numbers in self._next_step(1.0)}
        misfits = [
            self.paths[i]
            for i, (arrays, _) in rows.items()
            if not fits(*arrays) or arrays[1] is not self.parameters[i].grad
        ]
        if misfits:
            raise ConfigError(f"these are not on a GPU, or have gaps: {', '.join(misfits)}")
        self._on_gpu.set(rows)
        self._on_gpu.set_norm({i: arrays[1] for i, (arrays, _) in rows.items()})

    def state_dict(self) -> dict[str, np.ndarray]:
        """Give the optimiser's state as arrays by name, ``<slot>:<path>``; the arrays are copies.

        Hyper-parameters are not in it, except the learning rate: they belong to the run's configuration.
        """
        state = {"lr": np.array(self.lr, np.float64), "steps": np.array(self._steps, np.int64)}
        for slot in self.slots:
            for path, array in zip(self.paths, self._state[slot], strict=True):
                if array is not None:
                    state[f"{slot}:{path}"] = np.array(backend.to_device(array, "cpu"))
        return state

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Continue from a ``state_dict``.

        Raises: CheckpointError that names what is missing, unexpected or misshapen; nothing is changed then.
        """
        shapes = {
            f"{slot}:{path}": tuple(p.data.shape)
            for slot in self.slots
            for path, p in zip(self.paths, self.parameters, strict=True)
        }
        if not isinstance(state, Mapping):
            raise CheckpointError(
                f"the state of an optimiser is a dict, as state_dict() gives it, not a {type(state).__name__}"
            )
        steps = state.get("steps")
        if steps is None or "lr" not in state or steps.shape != (len(self.paths),):
            raise CheckpointError(f"the state of the optimiser does not have {len(self.paths)} parameters")
        for key, array in state.items():
            if key not in ("lr", "steps") and shapes.get(key) != array.shape:
                raise CheckpointError(
                    f"the state of the optimiser has {key} of shape {array.shape}; "
                    f"here it has {shapes.get(key, 'no such array')}"
                )
        for slot in self.slots:
            for i, path in enumerate(self.paths):
                if f"{slot}:{path}" not in state and steps[i] > 0:
                    raise CheckpointError(f"the state of the optimiser has no {slot}:{path}")
        self.lr = float(state["lr"])
        self._steps = [int(step) for step in steps]
        for slot in self.slots:
            for i, (path, parameter) in enumerate(zip(self.paths, self.parameters, strict=True)):
                saved, data = state.get(f"{slot}:{path}"), parameter.data
                self._state[slot][i] = (
                    None
                    if saved is None
                    else backend.to_device(np.array(saved, data.dtype), backend.device_of(data))
                )
        self._arrays = [None] * len(self.parameters)

    @functools.cached_property
    def _on_gpu(self) -> Sweep:
        """Made when first needed: until then the parameters may still be moved to a GPU."""
        return Sweep([parameter.data for parameter in self.parameters])

    def _slots_of(self, i: int) -> list[Array]:
        """The state arrays of parameter ``i``: zeros at first, and moved where the parameter was moved."""
        data = self.parameters[i].data
        if self._arrays[i] is not data:
            self._arrays[i] = data
            for slot in self.slots:
                before = self._state[slot][i]
                self._state[slot][i] = (
                    backend.array_module(data).zeros_like(data)
                    if before is None
                    else backend.to_device(before, backend.device_of(data)).astype(data.dtype, copy=False)
                )
        return [self._state[slot][i] for slot in self.slots]


def _pairs(parameters: Any) -> list[tuple[str | None, Tensor]]:
    """The parameters with their paths, None where there is none. Raises: ConfigError for anything else."""
    kind = type(parameters).__name__
    if isinstance(parameters, Tensor):
        raise ConfigError(
            f"an optimiser takes a list of parameters, not one tensor of shape {parameters.shape}; give [w]"
        )
    if hasattr(parameters, "named_parameters"):
        raise ConfigError(
            f"an optimiser takes parameters, not the {kind} that has them; give net.parameters()"
        )
    if isinstance(parameters, Mapping | np.ndarray | str) or not isinstance(parameters, Iterable):
        call = "; call it, net.parameters()" if callable(parameters) else ""
        raise ConfigError(f"an optimiser takes a list of parameters, or net.parameters(), not a {kind}{call}")
    pairs = []
    for place, one in enumerate(parameters):
        path, tensor = one if isinstance(one, tuple) and len(one) == 2 else (None, one)
        if isinstance(tensor, Mapping):
            raise ConfigError(
                f"parameter {place} of an optimiser is a dict; groups of parameters with options of their "
                "own are made with an optimiser for each group"
            )
        if not isinstance(tensor, Tensor) or not (path is None or isinstance(path, str)):
            raise ConfigError(
                f"parameter {place} of an optimiser must be a Parameter, or a tensor that needs a gradient, "
                f"not a {type(tensor).__name__}"
            )
        if tensor.node is not None and tensor.node.op != "leaf":
            raise ConfigError(
                f"parameter {place} of an optimiser is the result of the operation {tensor.node.op}, which "
                "is computed anew in each pass; give the tensors it is made from"
            )
        if tensor.node is None and type(tensor) is Tensor:  # a Parameter without one is frozen
            raise ConfigError(
                f"parameter {place} of an optimiser is a tensor that needs no gradient, so it would never be "
                "trained; make it with requires_grad=True, or as a Parameter"
            )
        pairs.append((path, tensor))
    return pairs


def _are_alike(arrays: Sequence[Array]) -> bool:
    """Whether a kernel may go over these arrays as if they were flat: float32 or float64, without gaps."""
    dtype = arrays[0].dtype
    is_known = dtype in (np.dtype(np.float32), np.dtype(np.float64))
    return is_known and all(array.flags.c_contiguous and array.dtype == dtype for array in arrays)


def _sweep(fused: Callable[..., None], work: list[tuple[list[Array], tuple[Any, ...]]]) -> None:
    """Run ``fused`` over all arrays as if they were one long array cut evenly among the threads."""
    ends = list(accumulate(arrays[0].size for arrays, _ in work))

    def task(start: int, stop: int) -> None:
        i = bisect.bisect_right(ends, start)
        while start < stop:
            arrays, numbers = work[i]
            first = ends[i] - arrays[0].size
            here = slice(start - first, min(stop, ends[i]) - first)
            fused(*(array[here] for array in arrays), *numbers)
            start, i = ends[i], i + 1

    backend.parallel_for(task, ends[-1], grain=_GRAIN)

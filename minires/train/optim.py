"""Optimisers: SGD with momentum, Adam, AdamW.

With ``w`` a parameter, ``g`` its gradient, ``lr`` the learning rate and ``t = 1, 2, ...`` the step:

===== ======================================================================================
SGD   ``b <- momentum b + g``;  ``w <- w - lr b``, or with Nesterov ``w <- w - lr (g + momentum b)``
Adam  ``m <- m + (1 - beta1)(g - m)``;  ``v <- beta2 v + (1 - beta2) g^2``;
      ``w <- w - lr m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps)``
===== ======================================================================================

Weight decay is *coupled* when it is part of the gradient, ``g <- g + weight_decay w`` (the ResNet paper's
SGD), and *decoupled* when it shrinks the weight itself, ``w <- (1 - lr weight_decay) w`` (AdamW).
It is applied to parameters of two axes or more; biases and batch norm's gamma and beta have one axis and are
left alone, unless ``decay_vectors=True``.

The formulas are PyTorch's, to the last rounding in float64. Updates are made in place, all parameters in one
sweep over all threads (on a GPU: in one launch): the arrays are read and written once, and that is all an
update costs.

Sources: SGD with momentum, Sutskever et al. 2013; Adam, Kingma & Ba arXiv:1412.6980; AdamW, Loshchilov &
Hutter arXiv:1711.05101.
"""

from __future__ import annotations

import bisect
import functools
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Any

import numpy as np

from minires import backend
from minires.backend import Array, cuda
from minires.errors import CheckpointError, ConfigError
from minires.train.names import unknown
from minires.train.optim_cuda import Sweep, fits

_GRAIN = 1 << 16  # elements worth a thread of their own


# ---------------------------------------------------------------------------- the formulas, as plain code


def _sgd(w: Array, g: Array, b: Array, scale: float, decay: float, keep: float, *numbers: float) -> None:
    """``scale`` clips the gradient, ``decay`` is the coupled weight decay, ``keep`` the decoupled one."""
    lr, momentum, of_gradient, of_momentum = numbers
    w *= keep
    g = scale * g + decay * w
    b *= momentum
    b += g
    w -= lr * (of_gradient * g + of_momentum * b)


def _adam(
    w: Array, g: Array, m: Array, v: Array, scale: float, decay: float, keep: float, *numbers: float
) -> None:
    """``rate`` is ``lr / (1 - beta1^t)`` and ``correction`` is ``sqrt(1 - beta2^t)``."""
    rate, new1, beta2, new2, correction, eps = numbers
    xp = backend.array_module(w)
    w *= keep
    g = scale * g + decay * w
    m += new1 * (g - m)
    v *= beta2
    v += new2 * (g * g)
    w -= rate * (m / (xp.sqrt(v) / correction + eps))


# -------------------------------------------------------------------- the same, in one pass over the arrays


@backend.kernel
def _sgd_numba(w, g, b, scale, decay, keep, lr, momentum, of_gradient, of_momentum):
    for i in range(w.size):
        wi = keep * w[i]
        gi = scale * g[i] + decay * wi
        bi = momentum * b[i] + gi
        b[i] = bi
        w[i] = wi - lr * (of_gradient * gi + of_momentum * bi)


@backend.kernel
def _adam_numba(w, g, m, v, scale, decay, keep, rate, new1, beta2, new2, correction, eps):
    for i in range(w.size):
        wi = keep * w[i]
        gi = scale * g[i] + decay * wi
        mi = m[i] + new1 * (gi - m[i])
        vi = beta2 * v[i] + new2 * (gi * gi)
        m[i] = mi
        v[i] = vi
        w[i] = wi - rate * (mi / (np.sqrt(vi) / correction + eps))


# --------------------------------------------------- the same, on a GPU; for the tables see optim_cuda.py

_CUDA = cuda.Source(r"""
// Where the norm of the gradients is given it scales them, and if it is not finite the step changes nothing.
// Where it is not given, the host has seen to both.
__device__ bool clipped(const double* norm, T clip, T* scale) {
    if (!norm) return true;
    double share = clip / (*norm + 1e-6);
    if (clip > 0) *scale = share < 1 ? T(share) : T(1);
    return isfinite(*norm);
}

extern "C" __global__ void sgd(const int* chunks, const unsigned long long* places, const T* numbers,
                               const double* norm, T clip) {
    const int* chunk = chunks + 3 * blockIdx.x;
    const unsigned long long* place = places + 3 * chunk[0];
    T *w = (T*)place[0], *g = (T*)place[1], *b = (T*)place[2];
    if (!w) return;
    const T* number = numbers + 7 * chunk[0];
    T scale = number[0], decay = number[1], keep = number[2];
    T lr = number[3], momentum = number[4], of_gradient = number[5], of_momentum = number[6];
    if (!clipped(norm, clip, &scale)) return;
    for (int i = chunk[1] + threadIdx.x; i < chunk[2]; i += blockDim.x) {
        T wi = keep * w[i];
        T gi = scale * g[i] + decay * wi;
        T bi = momentum * b[i] + gi;
        b[i] = bi;
        w[i] = wi - lr * (of_gradient * gi + of_momentum * bi);
    }
}

extern "C" __global__ void adam(const int* chunks, const unsigned long long* places, const T* numbers,
                                const double* norm, T clip) {
    const int* chunk = chunks + 3 * blockIdx.x;
    const unsigned long long* place = places + 4 * chunk[0];
    T *w = (T*)place[0], *g = (T*)place[1], *m = (T*)place[2], *v = (T*)place[3];
    if (!w) return;
    const T* number = numbers + 9 * chunk[0];
    T scale = number[0], decay = number[1], keep = number[2];
    T rate = number[3], new1 = number[4], beta2 = number[5], new2 = number[6];
    T correction = number[7], eps = number[8];
    if (!clipped(norm, clip, &scale)) return;
    for (int i = chunk[1] + threadIdx.x; i < chunk[2]; i += blockDim.x) {
        T wi = keep * w[i];
        T gi = scale * g[i] + decay * wi;
        T mi = m[i] + new1 * (gi - m[i]);
        T vi = beta2 * v[i] + new2 * (gi * gi);
        m[i] = mi;
        v[i] = vi;
        w[i] = wi - rate * (mi / (sqrt(vi) / correction + eps));
    }
}
""")


# --------------------------------------------------------------------------------------------- optimisers


class Optimizer:
    """What all optimisers share: the parameters, their state, clipping, and the sweep over all arrays.

    A subclass names its state arrays in ``slots``, gives its formula as ``plain``, as ``fused`` and, by name,
    as a CUDA ``kernel``, and says in ``_numbers`` which numbers the formula needs at a step.
    """

    slots: tuple[str, ...] = ()
    plain: Callable[..., None]
    fused: Callable[..., None]
    kernel: str

    def __init__(
        self,
        parameters: Iterable[Any],
        lr: float,
        *,
        weight_decay: float,
        decoupled: bool,
        decay_vectors: bool,
        clip_norm: float | None,
    ) -> None:
        pairs = [pair if isinstance(pair, tuple) else (None, pair) for pair in parameters]
        self.paths = [path or p.name or f"parameter{i}" for i, (path, p) in enumerate(pairs)]
        self.parameters = [parameter for _, parameter in pairs]
        if not pairs:
            raise ConfigError("an optimiser needs at least one parameter; it was given none")
        if len({id(p) for p in self.parameters}) != len(pairs) or len(set(self.paths)) != len(pairs):
            raise ConfigError("the optimiser was given the same parameter, or the same path, twice")
        if clip_norm is not None and not clip_norm > 0:
            raise ConfigError(f"clip_norm is {clip_norm}; it must be above 0, or None for no clipping")
        _in_range("weight_decay", weight_decay, math.inf)
        self.lr = _in_range("lr", lr, math.inf)
        self.clip_norm = clip_norm
        decays = [weight_decay if decay_vectors or p.data.ndim > 1 else 0.0 for p in self.parameters]
        self._coupled = [0.0 if decoupled else decay for decay in decays]
        self._decoupled = [decay if decoupled else 0.0 for decay in decays]
        self._steps = [0] * len(pairs)
        self._state: dict[str, list[Array | None]] = {slot: [None] * len(pairs) for slot in self.slots}

    def zero_grad(self) -> None:
        """Forget the gradients of all parameters."""
        for parameter in self.parameters:
            parameter.grad = None

    def gradient_norm(self) -> float:
        """Give the Euclidean norm of all gradients together; a NaN or infinity in any of them shows in it."""
        gradients = {i: p.grad for i, p in enumerate(self.parameters) if p.grad is not None}
        if gradients and cuda.usable(*gradients.values()):
            return float(self._on_gpu.norm(gradients))
        return math.sqrt(sum(float(backend.array_module(g).vdot(g, g)) for g in gradients.values()))

    def step(self, *, norm: float | None = None) -> None:
        """Update every parameter that has a gradient, in place.

        ``norm`` is the ``gradient_norm()`` if the caller knows it already; it serves clipping.
        """
        scale = 1.0
        if self.clip_norm is not None:
            norm = self.gradient_norm() if norm is None else norm
            scale = min(1.0, self.clip_norm / (norm + 1e-6))  # the 1e-6 is PyTorch's
        sweep: list[tuple[list[Array], tuple[Any, ...]]] = []
        on_gpu: dict[int, tuple[list[Array], tuple[float, ...]]] = {}
        for i, arrays, numbers in self._next_step(scale):
            if fits(*arrays):
                on_gpu[i] = arrays, numbers
            elif backend.fast(*arrays) and all(array.flags.c_contiguous for array in arrays):
                cast = arrays[0].dtype.type  # float64 numbers would make float64 arithmetic of float32 arrays
                sweep.append(([array.reshape(-1) for array in arrays], tuple(map(cast, numbers))))
            else:
                type(self).plain(*arrays, *numbers)
        if sweep:
            _sweep(type(self).fused, sweep)
        if on_gpu:
            self._on_gpu.set(on_gpu)
            self._on_gpu.launch(_CUDA, self.kernel, None, 0.0)

    def _next_step(self, scale: float) -> Iterator[tuple[int, list[Array], tuple[float, ...]]]:
        """Count a step of each parameter with a gradient: its place, its arrays, the formula's numbers."""
        for i, parameter in enumerate(self.parameters):
            if parameter.grad is None:
                continue
            self._steps[i] += 1
            gradient = backend.array_module(parameter.grad).ascontiguousarray(parameter.grad)
            keep = 1.0 - self.lr * self._decoupled[i]
            numbers = (scale, self._coupled[i], keep, *self._numbers(self._steps[i]))
            yield i, [parameter.data, gradient, *self._slots_of(i)], numbers

    # A step in two halves, for a CUDA graph: ``launch_step`` is captured once, ``plan_step`` goes before each
    # replay and writes what the launches find in their tables.

    def launch_step(self) -> Array:
        """Launch what ``plan_step`` plans, on the GPU; return the norm of the gradients, which stays there.

        A step whose gradients have no finite norm changes nothing.
        """
        assert self._on_gpu.tables, "there are no tables before a first step()"
        norm = self._on_gpu.launch_norm()
        self._on_gpu.launch(_CUDA, self.kernel, norm, self.clip_norm or 0.0)
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

    @functools.cached_property
    def _on_gpu(self) -> Sweep:
        """Made when first needed: until then the parameters may still be moved to a GPU."""
        return Sweep([parameter.data for parameter in self.parameters])

    def _slots_of(self, i: int) -> list[Array]:
        """The state arrays of parameter ``i``, made of zeros when first asked for."""
        data = self.parameters[i].data
        for slot in self.slots:
            if self._state[slot][i] is None:
                self._state[slot][i] = backend.array_module(data).zeros_like(data)
        return [self._state[slot][i] for slot in self.slots]

    def _numbers(self, step: int) -> tuple[float, ...]:
        raise NotImplementedError


class SGD(Optimizer):
    """Stochastic gradient descent with momentum.

    Shapes: ``parameters`` is an iterable of parameters or of ``(path, parameter)`` pairs.
    Raises: ConfigError for a number out of range, no parameters, or one given twice.
    Differs: ``decoupled=True`` is not in PyTorch's SGD.
    """

    slots = ("momentum",)
    plain = _sgd
    fused = _sgd_numba
    kernel = "sgd"

    def __init__(
        self,
        parameters: Iterable[Any],
        lr: float,
        *,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        decoupled: bool = False,
        decay_vectors: bool = False,
        clip_norm: float | None = None,
    ) -> None:
        super().__init__(
            parameters,
            lr,
            weight_decay=weight_decay,
            decoupled=decoupled,
            decay_vectors=decay_vectors,
            clip_norm=clip_norm,
        )
        self.momentum = _in_range("momentum", momentum, 1.0)
        if nesterov and momentum == 0:
            raise ConfigError("nesterov=True needs a momentum above 0")
        self.nesterov = nesterov

    def _numbers(self, step: int) -> tuple[float, ...]:
        return self.lr, self.momentum, *((1.0, self.momentum) if self.nesterov else (0.0, 1.0))


class Adam(Optimizer):
    """Adam: steps scaled by running averages of the gradient and of its square.

    Shapes: ``parameters`` is an iterable of parameters or of ``(path, parameter)`` pairs.
    Raises: ConfigError for a number out of range, no parameters, or one given twice.
    """

    slots = ("average", "square")
    plain = _adam
    fused = _adam_numba
    kernel = "adam"

    def __init__(
        self,
        parameters: Iterable[Any],
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decoupled: bool = False,
        decay_vectors: bool = False,
        clip_norm: float | None = None,
    ) -> None:
        super().__init__(
            parameters,
            lr,
            weight_decay=weight_decay,
            decoupled=decoupled,
            decay_vectors=decay_vectors,
            clip_norm=clip_norm,
        )
        self.betas = (_in_range("betas[0]", betas[0], 1.0), _in_range("betas[1]", betas[1], 1.0))
        self.eps = _in_range("eps", eps, math.inf)

    def _numbers(self, step: int) -> tuple[float, ...]:
        beta1, beta2 = self.betas
        rate, correction = self.lr / (1.0 - beta1**step), math.sqrt(1.0 - beta2**step)
        return rate, 1.0 - beta1, beta2, 1.0 - beta2, correction, self.eps


def AdamW(parameters: Iterable[Any], lr: float = 1e-3, *, weight_decay: float = 0.01, **options: Any) -> Adam:
    """Make an Adam whose weight decay is decoupled; options as of :class:`Adam`.

    Raises: ConfigError as :class:`Adam`.
    """
    return Adam(parameters, lr, weight_decay=weight_decay, decoupled=True, **options)


def build(spec: Mapping[str, Any], parameters: Iterable[Any]) -> Optimizer:
    """Make the optimiser that a recipe's dict describes, such as ``{"name": "sgd", "lr": 0.1}``.

    Raises: ConfigError for an unknown name or option (with the nearest one) or a number out of range.
    """
    makers: dict[Any, Callable[..., Optimizer]] = {"sgd": SGD, "adam": Adam, "adamw": AdamW}
    options = {key: value for key, value in spec.items() if key != "name"}
    name = spec.get("name")
    if name not in makers:
        raise ConfigError(unknown("optimizer", name, makers))
    known = list(inspect.signature(SGD if name == "sgd" else Adam).parameters)[1:]
    for key in options:
        if key not in known:
            raise ConfigError(unknown(f"option of {name}", key, known))
    if "lr" not in options:
        raise ConfigError(f"the optimizer {name} needs a learning rate: give lr")
    return makers[name](parameters, **options)


# ------------------------------------------------------------------------------------------------ helpers


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


def _in_range(name: str, value: float, below: float) -> float:
    if not 0 <= value < below:
        raise ConfigError(f"{name} is {value}; it must be at least 0 and below {below:g}")
    return value

"""A running average of a model's weights, which often tests better than the weights themselves.

After each step, for every parameter and every floating-point buffer ``w`` with average ``a``:
``a <- a + (1 - d) (w - a)``, where ``d = min(decay, (1 + t) / (10 + t))`` at update ``t = 1, 2, ...``: the
early weights, which are far from the later ones, are forgotten quickly.

Source: Polyak & Juditsky 1992; the growing decay is TensorFlow's ``ExponentialMovingAverage``.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from minires import backend
from minires.backend import Array, cuda
from minires.errors import CheckpointError, ConfigError, number
from minires.optim.cuda_kernels import Sweep, fits

_CUDA = cuda.Source(r"""
// For all arrays at once; for the tables see minires/optim/cuda_kernels.py.
extern "C" __global__ void moving_average(
    const int* chunks /* 3 * blocks */, const unsigned long long* addresses /* 2 * arrays */,
    const T* numbers /* arrays */, int arrays
) {
    const int* chunk = chunks + 3 * blockIdx.x;
    T* a = (T*)addresses[2 * chunk[0]];
    const T* w = (const T*)addresses[2 * chunk[0] + 1];
    if (!a) return;
    T share = numbers[chunk[0]];
    for (int i = chunk[1] + threadIdx.x; i < chunk[2]; i += blockDim.x) a[i] += share * (w[i] - a[i]);
}
""")


class EMA:
    """An exponential moving average of the weights of ``model``.

    At update ``t`` the average keeps ``min(decay, (1 + t) / (10 + t))`` of itself: little at first, so that
    the early weights are soon forgotten, and ``decay`` later on.

    Raises: ConfigError if ``decay`` is not from 0 up to, but not including, 1, or the model is none.
    """

    def __init__(self, model: Any, decay: float = 0.999) -> None:
        if not hasattr(model, "named_parameters"):
            raise ConfigError(f"ema: the model must be a module, not a {type(model).__name__}")
        self.model = model
        self.decay = number("ema: the decay", decay, least=0, below=1)
        self.updates = 0
        self.averages: dict[str, Array] = {path: array.copy() for path, array in self._all_weights().items()}

    def update(self) -> None:
        """Take in the weights as they are now; call it after each step of the optimiser."""
        self.updates += 1
        share = 1.0 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        on_gpu: dict[int, tuple[list[Array], list[float]]] = {}
        for i, (path, array) in enumerate(self._weights().items()):
            average = self.averages[path]
            if fits(average, array):
                on_gpu[i] = [average, array], [share]
            else:
                average += share * (array - average)
        if on_gpu:
            self._on_gpu.set(on_gpu)
            self._on_gpu.launch(_CUDA, "moving_average")

    @functools.cached_property
    def _on_gpu(self) -> Sweep:
        return Sweep(list(self.averages.values()))

    @contextmanager
    def swap(self) -> Iterator[None]:
        """Give the model the averaged weights inside this block, and its own again after it."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def state_dict(self) -> dict[str, np.ndarray]:
        """Give copies of the averages by path, and the number of updates."""
        state = {path: np.array(backend.to_device(a, "cpu")) for path, a in self.averages.items()}
        return state | {"updates": np.array(self.updates, np.int64)}

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Continue from a ``state_dict``. Raises: CheckpointError if it belongs to another model."""
        if not isinstance(state, Mapping):
            kind = type(state).__name__
            raise CheckpointError(f"averaged weights are a dict, as state_dict() gives it, not a {kind}")
        shapes = {path: a.shape for path, a in self.averages.items()} | {"updates": ()}
        for path in shapes | dict(state):
            if path not in state or shapes.get(path) != state[path].shape:
                found = state[path].shape if path in state else "missing"
                raise CheckpointError(
                    f"averaged weights: {path} is {found}, the model has {shapes.get(path, 'no such array')}"
                )
        for path, average in self.averages.items():
            average[...] = backend.to_device(np.array(state[path]), backend.device_of(average))
        self.updates = int(state["updates"])

    def _exchange(self) -> None:
        for path, array in self._weights().items():
            own = array.copy()
            array[...] = self.averages[path]
            self.averages[path][...] = own

    def _all_weights(self) -> dict[str, Array]:
        buffers = self.model.named_buffers()
        weights = {path: parameter.data for path, parameter in self.model.named_parameters()}
        return weights | {path: array for path, array in buffers if backend.is_float(array.dtype)}

    def _weights(self) -> dict[str, Array]:
        """The weights now. Averages follow those that went to another device or dtype.

        Raises: ConfigError if the model has got or lost weights, or one has another shape.
        """
        weights = self._all_weights()
        for path in weights | self.averages:
            now, before = (found[path].shape if path in found else None for found in (weights, self.averages))
            if now != before:
                raise ConfigError(
                    f"ema: {path} is now of shape {now}, but its average is of shape {before} (None where "
                    "there is none); make a new EMA when the model has changed"
                )
            average, array = self.averages[path], weights[path]
            if average.dtype != array.dtype or backend.device_of(average) != backend.device_of(array):
                moved = backend.to_device(average, backend.device_of(array)).astype(array.dtype, copy=False)
                self.averages[path] = moved
                vars(self).pop("_on_gpu", None)
        return weights

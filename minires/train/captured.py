"""A training step that a GPU repeats by itself: a CUDA graph.

Python takes longer to launch a kernel than a GPU takes to run a small one, and a step of ResNet-50 is some
five hundred of them. So one step, forward, backward and optimiser, is captured: its launches are written down
and not run. The graph of them is then replayed for every batch, with a single launch.

A graph holds kernels and the addresses that they read and write. What changes from step to step is therefore
written to its fixed place on the device before a replay: pictures and labels (from page-locked memory, on a
stream of their own, while the step before still runs), and the optimiser's numbers (its tables). Weights,
running statistics and the optimiser's state have fixed places anyway. All other memory of the step comes from
a pool that nobody else uses. Loss, hits and gradient norm are copied back behind each replay and read later,
so that the GPU never waits for Python.

Source: NVIDIA, CUDA C++ Programming Guide, CUDA Graphs, "Creating a graph using stream capture".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from minires import backend
from minires.backend import Array
from minires.nn.layers import Dropout
from minires.nn.module import Module
from minires.optim import Optimizer
from minires.tensor import Tensor

SLOTS = 2  # batches under way at once: one is computed, one is copied
WARM_UP = 3  # steps before one is captured: they compile all kernels and make the optimiser's state


@dataclass(frozen=True)
class Figures:
    """What one step gave: the loss, how many pictures were right, and the norm of the gradients."""

    loss: float
    right: int
    norm: float


def obstacle(model: Module, optimizer: Optimizer) -> str | None:
    """Why the steps of a model and its optimiser cannot be captured, in words; None if they can."""
    if optimizer.source is None:
        return f"{type(optimizer).__name__} has no CUDA kernel"
    idle = {path for path, part in model.named_modules() if isinstance(part, Dropout) and not part.rate}
    drawing = [path for path in model.random_states() if path.rpartition(".")[0] not in idle]
    if drawing:
        return f"{', '.join(drawing)} draws in each step, and a graph would repeat the first draw"
    return None


class _Slot:
    """The memory of one batch on its way: page-locked on the host, and on the device."""

    def __init__(self, cupy: Any, x: Array, y: Array) -> None:
        self.on_host = _page_locked(cupy, x), _page_locked(cupy, y)
        self.on_device = cupy.empty(x.shape, x.dtype), cupy.empty(y.shape, y.dtype)
        self.figures = _page_locked(cupy, np.empty(3))
        self.copied, self.done = cupy.cuda.Event(), cupy.cuda.Event()

    def read(self) -> Figures:
        """Wait for the step and give its figures; the next step in this slot writes over them."""
        self.done.synchronize()
        loss, right, norm = self.figures.tolist()
        return Figures(loss, int(right), norm)


class CapturedStep:
    """One step of training, captured for batches of the shape of ``x``, and replayed for each.

    ``loss(logits, labels)`` gives the loss of a batch. Parameters have no ``.grad`` before and after a step.

    Shapes: x (N, H, W, C) float32 or bfloat16, y (N,) class numbers, as NumPy arrays.
    Raises: whatever CUDA or CuPy raise if the step cannot be captured; weights are unchanged then.
    """

    def __init__(
        self,
        model: Module,
        optimizer: Optimizer,
        loss: Callable[[Tensor, Tensor], Tensor],
        x: np.ndarray[Any, Any],
        y: np.ndarray[Any, Any],
    ) -> None:
        self.cupy = cupy = backend.cupy()
        self.optimizer = optimizer
        self.shape = x.shape
        # Whatever is launched elsewhere, validation for example, comes after what was begun on this stream.
        self.stream = cupy.cuda.Stream()
        self.copies = cupy.cuda.Stream(non_blocking=True)
        self.pool = cupy.cuda.MemoryPool()
        labels = y.astype(np.int32)
        self.x, self.y = Tensor(cupy.empty(x.shape, x.dtype)), Tensor(cupy.zeros(y.shape, np.int32))
        self.slots = [_Slot(cupy, x, labels) for _ in range(SLOTS)]
        self.turn = 0
        self.graph = self._capture(model, loss)

    def _capture(self, model: Module, loss: Callable[[Tensor, Tensor], Tensor]) -> Any:
        cupy = self.cupy
        self.optimizer.zero_grad()
        cupy.cuda.Device().synchronize()  # what other streams have begun belongs to no graph
        with self.stream, cupy.cuda.using_allocator(self.pool.malloc):
            self.figures = cupy.empty(3, "float64")
            self.stream.begin_capture()
            try:
                logits = model(self.x)
                value = loss(logits, self.y)
                value.backward()
                norm = self.optimizer.launch_step()
                scores = logits.data.astype(np.float32, copy=False)  # CuPy has no argmax of bfloat16
                right = scores.argmax(axis=1) == self.y.data
                for place, number in enumerate((value.data, right.sum(), norm)):
                    self.figures[place] = number
            finally:
                graph = self.stream.end_capture()
        self.gradients = [parameter.grad for parameter in self.optimizer.parameters]
        self.optimizer.zero_grad()
        return graph

    def __call__(self, x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> _Slot:
        """Start a step; its figures are to be read from the slot before the next call but one."""
        slot = self.slots[self.turn]
        self.turn = (self.turn + 1) % SLOTS
        slot.done.synchronize()
        for source, target in zip((x, y), slot.on_host, strict=True):
            target[...] = source
        for on_host, on_device in zip(slot.on_host, slot.on_device, strict=True):
            on_device.set(on_host, stream=self.copies)
        slot.copied.record(self.copies)
        for parameter, gradient in zip(self.optimizer.parameters, self.gradients, strict=True):
            parameter.grad = gradient
        with self.stream:
            self.stream.wait_event(slot.copied)
            for fixed, on_device in zip((self.x, self.y), slot.on_device, strict=True):
                fixed.data[...] = on_device
            self.optimizer.plan_step()
            self.graph.launch(self.stream)
            self.figures.get(out=slot.figures, stream=self.stream, blocking=False)
            slot.done.record(self.stream)
        self.optimizer.zero_grad()  # an eager step that follows must not add to these
        return slot


class Capture:
    """The captured step of a run. Called with a batch it gives the step for it, or None: for the first few
    batches, for those of another shape than the one after these, and where steps cannot be captured.

    ``say`` is told why not. Batches for which there was None are to be trained on by launching each kernel.
    """

    def __init__(
        self,
        model: Module,
        optimizer: Optimizer,
        loss: Callable[[Tensor, Tensor], Tensor],
        say: Callable[[str], None],
    ) -> None:
        self.say = say
        self._to_capture = model, optimizer, loss
        self.step: CapturedStep | None = None
        self.batches = 0
        why = obstacle(model, optimizer)
        self.is_possible = why is None
        if why:
            say(f"the step is not captured into a CUDA graph: {why}")

    def __call__(self, x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> CapturedStep | None:
        self.batches += 1
        if not self.is_possible or self.batches <= WARM_UP:
            return None
        if self.step is None:
            try:
                self.step = CapturedStep(*self._to_capture, x, y)
            except Exception as error:  # CUDA's and CuPy's own types; the run goes on without
                self.is_possible = False
                self.say(f"the step could not be captured into a CUDA graph ({error}): it is launched anew")
                return None
        return self.step if x.shape == self.step.shape else None


def _page_locked(cupy: Any, like: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Room for an array in memory that the GPU copies from and to by itself."""
    memory = cupy.cuda.alloc_pinned_memory(like.nbytes)
    return np.frombuffer(memory, like.dtype, like.size).reshape(like.shape)

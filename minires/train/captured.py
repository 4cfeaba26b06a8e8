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

Where several processes, the ranks, do a run, each on a GPU of its own, the sums over them are part of the
graph: NCCL launches them between the backward pass and the optimiser. Then a replay comes to its end only if
all ranks replay, so

* all capture, or none: each knows what it lacks, and they agree before the sum is captured and behind it;
* which batches are replayed hangs on the size of the batch of all, which all know, and not on a rank's share;
* before each step the ranks ask one another over the host whether all have their pictures, and whether one is
  told to stop: see :meth:`minires.train.shared.Shared.ask`. The GPUs are still busy with the step before.

Source: NVIDIA, CUDA C++ Programming Guide, CUDA Graphs, "Creating a graph using stream capture".
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from minires import backend
from minires.backend import Array
from minires.distributed import Communicator, Solo, bounds
from minires.errors import MiniresError
from minires.modes import share_of_batch
from minires.nn.hooks import Bare, found
from minires.nn.layers import Dropout
from minires.nn.module import Module
from minires.optim import Optimizer
from minires.tensor import Tensor
from minires.train.gradients import Gradients

KIND = "steps of the GPU"
CAPTURING = "capture"
SLOTS = 2  # batches under way at once: one is computed, one is copied
WARM_UP = 3  # steps before one is captured: they compile all kernels and make the optimiser's state


@dataclass(frozen=True)
class Figures:
    """What one step gave: the loss, how many pictures were right, and the norm of the gradients."""

    loss: float
    right: int
    norm: float


def obstacle(
    model: Module, optimizer: Optimizer, gradients: Gradients | None = None, *, sync: bool = False
) -> str | None:
    """Why the steps of a model and its optimiser cannot be captured, in words; None if they can. Of several
    ranks ``gradients`` sums the gradients, and ``sync`` says that their batch norms see all pictures."""
    if optimizer.source is None:
        return f"{type(optimizer).__name__} has no CUDA kernel"
    if sync:
        return "batch norm over all processes (sync) sums on the host, and a graph runs on the GPU alone"
    if gradients is not None and gradients.nccl is None:
        return "the gradients are summed on the host, and a graph runs on the GPU alone"
    if gradients is not None and gradients.nccl is not None and not gradients.nccl.can_capture:
        return f"sums of NCCL {gradients.nccl.version} cannot be captured; version 2.9.6 or newer can"
    idle = {path for path, part in model.named_modules() if isinstance(part, Dropout) and not part.rate}
    if words := found(model):
        return f"{words}, and a graph would not know of it"
    drawing = [path for path in model.random_states() if path.rpartition(".")[0] not in idle]
    if drawing:
        return f"{', '.join(drawing)} draws in each step, and a graph would repeat the first draw"
    return None


class _Slot:
    """The memory of one batch on its way: page-locked on the host, and on the device."""

    def __init__(self, cupy: Any, x: Array, y: Array, comm: Communicator) -> None:
        self.on_host = _page_locked(cupy, x), _page_locked(cupy, y)
        self.on_device = cupy.empty(x.shape, x.dtype), cupy.empty(y.shape, y.dtype)
        self.figures = _page_locked(cupy, np.empty(3))
        self.copied, self.done = cupy.cuda.Event(), cupy.cuda.Event()
        self.comm = comm

    def wait(self) -> None:
        """Until the step is done, on all ranks, as it has their sums."""
        with self.comm.waiting(KIND):
            self.done.synchronize()

    def read(self) -> Figures:
        """Wait for the step and give its figures; the next step in this slot writes over them."""
        self.wait()
        loss, right, norm = self.figures.tolist()
        return Figures(loss, int(right), norm)


class CapturedStep:
    """One step of training, captured for batches of the shape of ``x``, and replayed for each.

    ``loss(logits, labels)`` gives the loss of a batch. Parameters have no ``.grad`` before and after a step.

    With ``gradients`` the ranks share a batch of so many ``pictures``, of which x and y are this one's. All
    of them capture, or none, and replay; the figures are those of the whole batch.

    Shapes: x (N, H, W, C) float32 or bfloat16, y (N,) class numbers, as NumPy arrays.
    Raises: whatever CUDA or CuPy raise if the step cannot be captured, and on the other ranks a MiniresError;
    weights are unchanged then.
    """

    def __init__(
        self,
        model: Module,
        optimizer: Optimizer,
        loss: Callable[[Tensor, Tensor], Tensor],
        x: np.ndarray[Any, Any],
        y: np.ndarray[Any, Any],
        *,
        gradients: Gradients | None = None,
        pictures: int | None = None,
    ) -> None:
        self.cupy = backend.cupy()
        self.optimizer, self.shared = optimizer, gradients
        self.comm: Communicator = Solo() if gradients is None else gradients.comm
        pictures = len(y) if pictures is None else pictures
        self.place = (*bounds(pictures, self.comm.rank, self.comm.size), pictures)
        self.shape = x.shape
        self.turn = 0
        with self.comm.together(CAPTURING):
            self._make_room(x, y)
        self.graph = self._capture(model, loss)

    def _make_room(self, x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> None:
        cupy = self.cupy
        # Whatever is launched elsewhere, validation for example, comes after what was begun on this stream.
        self.stream = cupy.cuda.Stream()
        self.copies = cupy.cuda.Stream(non_blocking=True)
        self.pool = cupy.cuda.MemoryPool()
        labels = y.astype(np.int32)
        self.x, self.y = Tensor(cupy.empty(x.shape, x.dtype)), Tensor(cupy.zeros(y.shape, np.int32))
        self.slots = [_Slot(cupy, x, labels, self.comm) for _ in range(SLOTS)]

    def _capture(self, model: Module, loss: Callable[[Tensor, Tensor], Tensor]) -> Any:
        cupy, graph = self.cupy, None
        self.optimizer.zero_grad()
        cupy.cuda.Device().synchronize()  # what other streams have begun belongs to no graph
        with self.stream, cupy.cuda.using_allocator(self.pool.malloc):
            self.figures = cupy.empty(3, "float64")
            self.stream.begin_capture()
            try:
                # Two halves: what a rank finds out in the first all know before the sum is captured.
                with self.comm.together(CAPTURING):
                    figures = self._launch_passes(model, loss)
                self._agree_on_used()
                with self.comm.together(CAPTURING):
                    self._launch_update(figures)
                    graph = self.stream.end_capture()
            except BaseException:
                with suppress(Exception):  # the first error is the cause
                    if graph is None:
                        self.stream.end_capture()
                raise
            finally:
                self.optimizer.zero_grad()  # a step that follows must not add to what nobody has computed
        return graph

    def _launch_passes(self, model: Module, loss: Callable[[Tensor, Tensor], Tensor]) -> list[Array]:
        """Forward and backward; what this rank's pictures give of the loss and the hits of the batch."""
        start, stop, pictures = self.place
        if words := found(model):
            raise MiniresError(f"{words}, and a graph would not know of it")
        if self.shared is not None:
            self.shared.begin()
        with share_of_batch(*self.place):
            logits = model(self.x)
            value = loss(logits, self.y)
            lost = value.data
            if (weight := (stop - start) / pictures) == 1:
                value.backward()
            else:
                lost = lost * weight
                value.backward(self.cupy.full(value.shape, weight, value.dtype))
        scores = logits.data.astype(np.float32, copy=False)  # CuPy has no argmax of bfloat16
        figures = [lost, (scores.argmax(axis=1) == self.y.data).sum()]
        if self.shared is not None:
            self.shared.fill(figures)
        return figures

    def _agree_on_used(self) -> None:
        """Raises: MiniresError if other parameters have a gradient on one rank than on another."""
        if self.shared is None:
            return
        used = self.shared.used()
        flags = [id(parameter) in used for parameter in self.optimizer.parameters]
        if (other := self.comm.all_equal(flags, CAPTURING)) is not None:
            raise MiniresError(f"rank {other} uses other parameters of the model than rank 0")

    def _launch_update(self, figures: list[Array]) -> None:
        """The sums over the ranks, and the step of the optimiser."""
        parameters = self.optimizer.parameters
        if self.shared is None:
            self.gradients = [parameter.grad for parameter in parameters]
            for place, number in enumerate(figures):
                self.figures[place] = number
        else:
            self.figures[:2] = self.shared.launch()[:2]
            used = self.shared.used()
            self.gradients = [self.shared.view(p) if id(p) in used else None for p in parameters]
        self.figures[2] = self.optimizer.launch_step()

    def __call__(self, x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> _Slot:
        """Start a step; its figures are to be read from the slot before the next call but one."""
        slot = self.slots[self.turn]
        self.turn = (self.turn + 1) % SLOTS
        slot.wait()
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
    Of several ranks, whose ``gradients`` are summed, all make it, and call it with their shares of the same
    batch of so many ``pictures``: all get a step, or none.
    """

    def __init__(
        self,
        model: Module,
        optimizer: Optimizer,
        loss: Callable[[Tensor, Tensor], Tensor],
        say: Callable[[str], None],
        *,
        gradients: Gradients | None = None,
        sync: bool = False,
    ) -> None:
        self.say, self.gradients = say, gradients
        self._to_capture, self._bare = (model, optimizer, loss), Bare(model)
        self.step: CapturedStep | None = None
        self.batches = 0
        self._of: tuple[Any, ...] = ()  # what the step was captured for
        why = obstacle(model, optimizer, gradients, sync=sync)
        if gradients is not None:
            why = next((one for one in gradients.comm.exchange(why, CAPTURING) if one is not None), None)
        self.is_possible = why is None
        if why:
            say(f"the step is not captured into a CUDA graph: {why}")

    def __call__(
        self, x: np.ndarray[Any, Any], y: np.ndarray[Any, Any], pictures: int | None = None
    ) -> CapturedStep | None:
        self.batches += 1
        if not self.is_possible or self.batches <= WARM_UP:
            return None
        pictures = len(y) if pictures is None else pictures
        asked = pictures, *x.shape[1:]  # all ranks have the same
        if self.step is None:
            try:
                self.step = CapturedStep(*self._to_capture, x, y, gradients=self.gradients, pictures=pictures)
                self._of = asked
            except Exception as error:  # CUDA's and CuPy's own types; the run goes on without
                self.is_possible = False
                self.say(f"the step could not be captured into a CUDA graph ({error}): it is launched anew")
                return None
        if asked == self._of and (words := self._bare.found()):
            if self.gradients is not None:  # the others replay, and would wait for ever
                raise MiniresError(
                    f"{words}, but the steps of all ranks are captured into a CUDA graph, which would not "
                    "know of it; do so before the run begins, on every rank"
                )
            return None
        return self.step if asked == self._of else None


def of_run(
    model: Module,
    optimizer: Optimizer,
    loss: Callable[[Tensor, Tensor], Tensor],
    say: Callable[[str], None],
    *,
    device: str,
    whole: bool,
    gradients: Gradients | None,
    sync: bool,
) -> Capture | None:
    """The captured step of a run on ``device``, whose batches go through the model whole, or in parts; None
    where there is none. For the others see :class:`Capture`."""
    if device == "cpu":
        return None
    if not whole:
        say("the step is not captured into a CUDA graph: its batch goes through the model in parts")
        return None
    return Capture(model, optimizer, loss, say, gradients=gradients, sync=sync)


def _page_locked(cupy: Any, like: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Room for an array in memory that the GPU copies from and to by itself."""
    memory = cupy.cuda.alloc_pinned_memory(like.nbytes)
    return np.frombuffer(memory, like.dtype, like.size).reshape(like.shape)

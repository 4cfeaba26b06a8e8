"""The gradients of a step, summed over the ranks of a run, in flat buckets.

Gradients are complete from the last layer to the first. So they are copied, in that order, into a few long
arrays, the buckets, and each bucket is summed over the ranks by one call. Between machines a thread does that
while the backward pass goes on; on one machine, where a sum takes little and a thread would take a core from
the arithmetic, all is one bucket, and one call behind the backward pass.

Buckets of gradients on a GPU lie there too. NCCL sums them from GPU to GPU, in one go behind the backward
pass; where it is not to be had they are copied to the host, summed, and copied back. By NCCL a step can also
be captured into a CUDA graph, which holds what :meth:`Gradients.launch` launches: see
minires/train/captured.py.

Behind the gradients of the last bucket stands what else the ranks must know of a step, so that no further
message is needed:

    used       for each parameter 1 where it had a gradient
    moved      by how much running statistics have moved, and
    new        what they are now: all take the mean, by the first where that is small, so that what has not
               moved keeps its bits, else by the second. They are the same on all ranks after every step
    figures    loss, hits, wishes to stop, failures: what the caller gives

Source: Li et al. 2020, arXiv:2006.15704, section 3.2.3.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from minires import backend
from minires.backend import Array
from minires.distributed import Communicator
from minires.distributed.nccl import Nccl
from minires.tensor import Tensor

KIND = "gradients"
BUCKETS = 8  # about so many, between machines
LEAST, MOST = 1 << 16, 1 << 24  # bytes of a bucket


class Gradients:
    """Sums the gradients of ``parameters``, and what the running statistics ``buffers`` have moved by, over
    the ranks of ``comm``; with them ``figures`` numbers.

    ``overlap`` has a thread sum buckets during the backward pass, on the CPU; None: where there are several
    machines. ``nccl`` sums what lies on GPUs; None: the host does.

    A step is :meth:`begin`, the forward and backward passes, before the last of which :meth:`arm` is called,
    and :meth:`finish`, after which each parameter has the gradient of the whole batch.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        buffers: Mapping[str, Array],
        comm: Communicator,
        *,
        figures: int,
        overlap: bool | None = None,
        nccl: Nccl | None = None,
    ) -> None:
        self.comm, self.parameters, self.buffers = comm, list(parameters), list(buffers.values())
        self.nccl = nccl
        on_host = all(parameter.device == "cpu" for parameter in self.parameters)
        self.overlaps = on_host and (comm.hosts > 1 and comm.takes_threads if overlap is None else overlap)
        self.figures = figures
        self._before = [array.copy() for array in self.buffers]
        self._armed = False
        self._buckets = self._cut()
        self._place = {id(p): (b, s) for b in self._buckets for p, s in b.slots}
        self._sent = 0
        self._sender: _Sender | None = None
        self._unhook: list[Callable[[], None]] = []

    def _cut(self) -> list[_Bucket]:
        """The buckets, in the order in which they are complete, the last with room for what stands behind.

        The last is small, as nothing goes on while it is summed.
        """
        left = total = sum(p.data.nbytes for p in self.parameters)
        most = min(max(total // BUCKETS, LEAST), MOST) if self.overlaps else total
        groups: list[list[Tensor]] = [[]]
        for parameter in reversed(self.parameters):
            group, size, last = groups[-1], sum(p.data.nbytes for p in groups[-1]), total // BUCKETS // 4
            apart = group and (
                group[0].dtype != parameter.dtype or group[0].device != parameter.device
                or size >= most
                or (self.overlaps and left <= last < left + group[-1].data.nbytes)
            )  # fmt: skip
            groups.append([parameter]) if apart else group.append(parameter)
            left -= parameter.data.nbytes
        moved = sum(array.size for array in self.buffers)
        behind = len(self.parameters) + 2 * moved + self.figures
        return [_Bucket(group, behind if group is groups[-1] else 0) for group in groups]

    def _hook(self, parameter: Tensor) -> Callable[[Array], None]:
        return lambda gradient: self.complete(parameter, gradient)

    def complete(self, parameter: Tensor, gradient: Array) -> None:
        """The last pass of a step has given a parameter this gradient, and will give it no more."""
        bucket, _ = self._place[id(parameter)]
        if self._armed and id(parameter) in bucket.left:
            before = parameter.grad
            self._take(parameter, gradient if before is None else before + gradient)

    # ------------------------------------------------------------------------------------------- a step

    def begin(self) -> None:
        """A step begins."""
        if self.overlaps and self._sender is None:
            self._sender = _Sender(self.comm.beside())
            self._unhook = [p.register_hook(self._hook(p)) for p in self.parameters if p.requires_grad]
        for array, before in zip(self.buffers, self._before, strict=True):
            before[...] = array
        self._armed, self._sent = False, 0
        for bucket in self._buckets:
            bucket.left = {id(parameter) for parameter, _ in bucket.slots}
            bucket.used.clear()

    def arm(self) -> None:
        """The backward pass that comes now is the last of the step: what it gives is complete."""
        self._armed = self.overlaps

    def finish(self, figures: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sum what is not summed yet; the figures of all ranks together. Shapes: (figures,) -> the same."""
        self._armed = False
        self._take_all()
        last, count = self._buckets[-1], len(self.parameters)
        used = self.used()
        own = [np.array([id(parameter) in used for parameter in self.parameters], np.float64), figures]
        behind = last.behind[: count + self.figures]
        behind[...] = backend.to_device(np.concatenate(own).astype(behind.dtype), last.device)
        self._take_moves()
        if self.nccl is not None:
            with self.comm.waiting(KIND, sum(bucket.flat.nbytes for bucket in self._buckets)):
                self.launch()
                found = backend.to_device(behind, "cpu")  # waits for the GPU
        else:
            self._send(last)
            if self._sender is not None:
                self.comm.waited(KIND, self._sender.wait)
                self.comm.take_over(KIND, self._sender.comm)
            self._give_moves()
            found = backend.to_device(behind, "cpu")
        known = np.array(found, np.float64)
        for parameter, share in zip(self.parameters, known, strict=False):
            parameter.grad = self.view(parameter) if share else None
        return known[count:]

    def used(self) -> set[int]:
        """The parameters that had a gradient in this step, by their identity."""
        return {one for bucket in self._buckets for one in bucket.used}

    def view(self, parameter: Tensor) -> Array:
        """Where the gradient of a parameter is, once it is summed: it is the same place in each step."""
        bucket, place = self._place[id(parameter)]
        return bucket.flat[place].reshape(parameter.shape)

    def undo(self) -> None:
        """Let the running statistics be as they were before the step, and forget its gradients."""
        for array, before in zip(self.buffers, self._before, strict=True):
            array[...] = before
        for parameter in self.parameters:
            parameter.grad = None

    # A step in pieces, for a CUDA graph: each of them only launches, and what it launches is the same in each
    # step. They stand behind begin() and the passes; between the two the ranks may agree on something.

    def fill(self, figures: Sequence[Array]) -> None:
        """Launch what copies gradients, moves and the first of the ``figures``, single values on the GPU."""
        self._take_all()
        start = len(self.parameters)
        behind = self._buckets[-1].behind
        behind[: start + self.figures] = 0
        for place, figure in enumerate(figures, start):
            behind[place] = figure
        self._take_moves()

    def launch(self) -> Array:
        """Launch the sums over the ranks, by NCCL. The figures of all ranks are in what is given back; the
        gradients are in their views."""
        assert self.nccl is not None, "only NCCL launches sums"
        self.nccl.sum(*(bucket.flat for bucket in self._buckets))
        self._give_moves()
        start = len(self.parameters)
        return self._buckets[-1].behind[start : start + self.figures]

    # ------------------------------------------------------------------------------------------- inside

    def _moves(self) -> Iterator[tuple[Array, Array, Array, Array]]:
        """Of each running statistic itself, what it was before, and the rooms for its move and its value."""
        at, behind = len(self.parameters) + self.figures, self._buckets[-1].behind
        for array, before in zip(self.buffers, self._before, strict=True):
            rooms = behind[at : at + 2 * array.size].reshape(2, *array.shape)
            yield array, before, rooms[0, ...], rooms[1, ...]  # arrays, of a single number, too
            at += 2 * array.size

    def _take_moves(self) -> None:
        for array, before, moved, new in self._moves():
            xp = backend.array_module(array)
            # What has not moved stays as it is, infinite or not: as the mask of an attention is.
            with np.errstate(invalid="ignore"):
                moved[...] = xp.where(array == before, 0, array - before) / self.comm.size
            new[...] = array / self.comm.size

    def _give_moves(self) -> None:
        for array, before, moved, new in self._moves():
            with np.errstate(invalid="ignore"):  # a smallest number so far may begin at infinity
                small = abs(moved) < abs(before) / 2
                array[...] = backend.array_module(array).where(small, before + moved, new)

    def _take_all(self) -> None:
        """Copy the gradients that are not copied yet."""
        for parameter in reversed(self.parameters):
            bucket, _ = self._place[id(parameter)]
            if id(parameter) in bucket.left:
                self._take(parameter, parameter.grad)

    def _take(self, parameter: Tensor, gradient: Array | None) -> None:
        """Copy a gradient that is complete; send the buckets that are, strictly in their order."""
        bucket, place = self._place[id(parameter)]
        bucket.left.discard(id(parameter))
        if gradient is None:
            bucket.flat[place] = 0
        else:
            bucket.flat[place] = gradient.reshape(-1)
            bucket.used.add(id(parameter))
        if self.nccl is not None:
            return  # they all go together
        while self._sent < len(self._buckets) - 1 and not self._buckets[self._sent].left:
            self._send(self._buckets[self._sent])
            self._sent += 1

    def _send(self, bucket: _Bucket) -> None:
        if self._sender is not None:
            self._sender.send(bucket.flat)
        elif bucket.device == "cpu":
            self.comm.allreduce(bucket.flat, KIND)
        else:
            on_host = self.comm.allreduce(backend.to_device(bucket.flat, "cpu"), KIND)
            bucket.flat[...] = backend.to_device(on_host, bucket.device)

    def close(self) -> None:
        """Let the parameters go, and end the thread; a step that begins takes them up again."""
        self._armed = False
        while self._unhook:
            self._unhook.pop()()
        if self._sender is not None:
            self._sender.close()
            self._sender = None


class _Bucket:
    """A long array with room for the gradients of some parameters, and for some numbers behind them."""

    def __init__(self, parameters: Sequence[Tensor], behind: int) -> None:
        self.slots: list[tuple[Tensor, slice]] = []
        at = 0
        for parameter in parameters:
            self.slots.append((parameter, slice(at, at + parameter.size)))
            at += parameter.size
        xp = backend.array_module(parameters[0].data)
        self.device = parameters[0].device
        self.flat = xp.zeros(at + behind, parameters[0].dtype)
        self.behind = self.flat[at:]
        self.left: set[int] = set()  # the parameters whose gradients are still to come, by their identity
        self.used: set[int] = set()


class _Sender:
    """A thread that sums one array after the other over the ranks."""

    def __init__(self, comm: Communicator) -> None:
        self.comm = comm
        self._failed: BaseException | None = None
        self._waiting: queue.SimpleQueue[Array | None] = queue.SimpleQueue()
        self._done = threading.Semaphore(0)
        self._begun = 0
        self._thread = threading.Thread(target=self._work, name="minires-gradients", daemon=True)
        self._thread.start()

    def send(self, array: Array) -> None:
        self._begun += 1
        self._waiting.put(array)

    def wait(self) -> None:
        """Until all is summed. Raises: what a sum has raised."""
        for _ in range(self._begun):
            self._done.acquire()
        self._begun = 0
        if self._failed is not None:
            raise self._failed

    def _work(self) -> None:
        while (array := self._waiting.get()) is not None:
            if self._failed is None:
                try:
                    self.comm.allreduce(array, KIND)
                except BaseException as error:
                    self._failed = error
            self._done.release()

    def close(self) -> None:
        self._waiting.put(None)
        self._thread.join()

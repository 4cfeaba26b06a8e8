"""What the ranks of a run tell each other in a step: gradients, figures, wishes to stop, failures."""

from __future__ import annotations

import signal
from typing import Any

import numpy as np

from minires import backend
from minires.backend import Array
from minires.data import Unreadable
from minires.distributed import Communicator
from minires.distributed.nccl import Nccl
from minires.errors import MiniresError
from minires.nn.module import Module
from minires.optim import Optimizer
from minires.tensor import Tensor
from minires.train.diagnose import NOTHING, UNSEEN
from minires.train.gradients import Gradients

FILE = -1  # in the place of a signal: the file STOP asked
# By what a rank may be told to stop, in the order in which one is chosen if ranks are told by several.
_NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")
WISHES = (*(getattr(signal, name) for name in _NAMES if hasattr(signal, name)), FILE)


class Shared:
    """A step of all ranks of ``comm`` together: :meth:`begin`, the passes, :meth:`finish`, and
    before it, where it is needed, :meth:`ask`. ``nccl`` sums what lies on GPUs."""

    def __init__(
        self, model: Module, optimizer: Optimizer, comm: Communicator, nccl: Nccl | None = None
    ) -> None:
        self.model, self.optimizer, self.comm, self.nccl = model, optimizer, comm, nccl
        self._changed = 0.0
        self.gradients = self._made()

    def _made(self) -> Gradients:
        buffers = dict(sorted(self._buffers().items()))
        self._paths = list(buffers)
        # The loss, the hits, how many ranks have failed, on how many the model has changed, and how many were
        # told to stop by each signal.
        return Gradients(
            self._learned(), buffers, self.comm, figures=4 + len(WISHES), nccl=self.nccl
        )

    def _learned(self) -> list[Tensor]:
        return [parameter for parameter in self.optimizer.parameters if parameter.requires_grad]

    def _buffers(self) -> dict[str, Array]:
        """What a layer may measure while it is trained."""
        return {
            path: array for path, array in self.model.named_buffers()
            if backend.is_float(array.dtype) and backend.is_writable(array)
        }  # fmt: skip

    def ask(self, error: Exception | None, wish: int) -> int:
        """Before a step whose passes wait for other ranks, in their batch norms or on the GPU: whether all
        have their pictures, or this one an ``error`` in their place. The signal to stop by, or 0.

        Raises: the error of a rank that has none, on all.
        """
        told = np.array([float(error is not None), *(float(wish == one) for one in WISHES)])
        failed, *wishes = self.comm.allreduce(told, "pictures").tolist()
        if failed:
            self._raise(error)
        return _chosen(wishes)

    def begin(self) -> None:
        """A step begins. Raises: MiniresError if the models of the ranks have come to have other arrays."""
        if self._changed:  # on some rank, as all know since the last step
            self._begin_anew()
        self._look_again()
        self.gradients.begin()

    def _begin_anew(self) -> None:
        """A layer has got more arrays, or a parameter learns that did not before."""
        known = self._paths
        self.gradients.close()
        self.gradients = self._made()
        buffers = self._buffers()
        told = [len(self.gradients.parameters), {path: array.shape for path, array in buffers.items()}]
        if (other := self.comm.all_equal(told, "model")) is not None:
            raise MiniresError(
                f"the model of rank {other} has other parameters that learn, or other arrays, than that of "
                "rank 0: it has changed on one rank only"
            )
        new = {path: backend.to_device(buffers[path], "cpu") for path in self._paths if path not in known}
        for path, array in self.comm.copies(new, "model").items():  # each rank has begun it by itself
            buffers[path][...] = backend.to_device(array, backend.device_of(buffers[path]))

    def _look_again(self) -> bool:
        """A layer may have put another array in the place of one: that is summed from now on. Whether there
        is what was not there when all of it was looked up."""
        buffers, before = self._buffers(), self.gradients.buffers
        now = [buffers.get(path) for path in self._paths]
        self.gradients.buffers = [
            old if new is None or new.shape != old.shape else new
            for old, new in zip(before, now, strict=True)
        ]
        learns = {id(parameter) for parameter in self._learned()}
        return (
            learns != {id(parameter) for parameter in self.gradients.parameters}
            or buffers.keys() != set(self._paths)
            or any(new is None or new.shape != old.shape for old, new in zip(before, now, strict=True))
        )

    def finish(self, loss: float, right: int, wish: int, error: Exception | None) -> tuple[float, int, int]:
        """Sum gradients and figures over the ranks: the loss, the hits, and the signal to stop by, or 0.

        Raises: the ``error`` of a rank that has no pictures, on all; running statistics are as before.
        """
        changed = float(self._look_again())
        told = [loss, right, float(error is not None), changed, *(float(wish == one) for one in WISHES)]
        loss, hits, failed, self._changed, *wishes = self.gradients.finish(np.array(told)).tolist()
        known = {id(parameter) for parameter in self.gradients.parameters}
        for parameter in self.optimizer.parameters:
            if id(parameter) not in known:  # one that learns since these passes begins with the next step
                parameter.grad = None
        if failed:
            self.gradients.undo()
            self._raise(error)
        return loss, round(hits), _chosen(wishes)

    def first_of(self, found: str) -> str:
        """What the first rank has found that was not finite, with its name."""
        all_found = self.comm.exchange([found, self.comm.host], "what was not finite")
        seen = [(rank, one) for rank, one in enumerate(all_found) if one[0] != NOTHING]
        if not seen:
            return found
        rank, (what, host) = min(seen, key=lambda place: place[1][0].startswith(UNSEEN))
        return f"{what}, on rank {rank} ({host})"

    def _raise(self, error: Exception | None) -> None:
        told: Any = None
        if error is not None:
            names = list(error.names) if isinstance(error, Unreadable) else None
            told = [str(error), names, self.comm.host]
        for rank, one in enumerate(self.comm.exchange(told, "failures")):
            if one is not None:
                text = f"rank {rank} ({one[2]}): {one[0]}"
                raise MiniresError(text) if one[1] is None else Unreadable(text, one[1])


def _chosen(wishes: list[float]) -> int:
    """The signal to stop by, of those by which so many ranks were told to."""
    return next((one for one, count in zip(WISHES, wishes, strict=True) if count), 0)

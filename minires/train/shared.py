"""What the ranks of a run tell each other in a step: gradients, figures, wishes to stop, failures."""

from __future__ import annotations

import signal
from typing import Any

import numpy as np

from minires import backend
from minires.data import Unreadable
from minires.distributed import Communicator
from minires.distributed.nccl import Nccl
from minires.errors import MiniresError
from minires.nn.module import Module
from minires.optim import Optimizer
from minires.train.diagnose import NOTHING
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
        learned = [parameter for parameter in optimizer.parameters if parameter.requires_grad]
        buffers = {path: a for path, a in model.named_buffers() if backend.is_float(a.dtype)}
        self.comm = comm
        # The loss, the hits, how many ranks have failed, and how many were told to stop by each signal.
        self.gradients = Gradients(learned, buffers, comm, figures=3 + len(WISHES), nccl=nccl)

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
        """A step begins."""
        self.gradients.begin()

    def finish(self, loss: float, right: int, wish: int, error: Exception | None) -> tuple[float, int, int]:
        """Sum gradients and figures over the ranks: the loss, the hits, and the signal to stop by, or 0.

        Raises: the ``error`` of a rank that has no pictures, on all; running statistics are as before.
        """
        figures = np.array([loss, right, float(error is not None), *(float(wish == one) for one in WISHES)])
        loss, hits, failed, *wishes = self.gradients.finish(figures).tolist()
        if failed:
            self.gradients.undo()
            self._raise(error)
        return loss, round(hits), _chosen(wishes)

    def first_of(self, found: str) -> str:
        """What the first rank has found that was not finite, with its name."""
        for rank, one in enumerate(self.comm.exchange([found, self.comm.host], "what was not finite")):
            if one[0] != NOTHING:
                return f"{one[0]}, on rank {rank} ({one[1]})"
        return found

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

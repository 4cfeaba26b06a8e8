"""The steps of a run: by the model, by its plan, or captured into a CUDA graph; and what they add up to."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, Never

import numpy as np

from minires import backend
from minires.nn.module import Module
from minires.optim import Optimizer
from minires.tensor import Tensor
from minires.train.captured import Capture, Figures
from minires.train.diagnose import first_not_finite
from minires.train.ema import EMA
from minires.train.state import Progress

Loss = Callable[[Tensor, Any], Tensor]
Lost = Callable[[str, int, str], Never]


class Steps:
    """Called with a batch, it makes a step of the optimiser and adds its figures to those of the epoch.

    ``forward`` gives the logits of pictures, as :class:`~minires.train.planned.Forward` does, ``loss`` the
    loss of logits and labels, ``capture``, on a GPU, the captured step for a batch. ``lost`` is called, and
    raises, where a loss or gradient is not finite: with what it was, in which step, and what was the first in
    it. The weights are then as before the step.
    """

    def __init__(
        self,
        model: Module,
        optimizer: Optimizer,
        forward: Callable[[Tensor], Tensor],
        loss: Loss,
        lost: Lost,
        *,
        device: str,
        activations: Any,
        ema: EMA | None,
        capture: Capture | None,
    ) -> None:
        self.model, self.optimizer, self.ema = model, optimizer, ema
        self.forward, self.loss, self.lost = forward, loss, lost
        self.device, self.activations, self.capture = device, activations, capture
        self._random_before: dict[str, Any] = {}  # the states of dropout before the step
        self._pending: list[Callable[[], None]] = []  # what is to be done with the figures of the last steps

    def __call__(self, x: np.ndarray, y: np.ndarray, progress: Progress, lr: float) -> None:
        """One step; nothing is changed if its loss or gradient is not finite."""
        x = x.astype(self.activations, copy=False)
        self._random_before = self.model.random_states()
        self.optimizer.lr = lr
        if self.capture and (step := self.capture(x, y)):
            slot = step(x, y)
            self.settle()
            self._pending.append(functools.partial(self._account, slot.read, x, y, progress, progress.step))
        else:
            self.settle()
            self._step(x, y, progress)
        if self.ema:
            self.ema.update()
        progress.batch += 1
        progress.step += 1

    def settle(self) -> None:
        """Read the figures of the steps that were started and not yet read."""
        while self._pending:
            self._pending.pop(0)()

    def _step(self, x: np.ndarray, y: np.ndarray, progress: Progress) -> None:
        """Launch, or compute, each operation of the step."""
        logits = self.forward(Tensor(backend.to_device(x, self.device)))
        loss = self.loss(logits, y)
        value = float(loss.item())
        if not math.isfinite(value):
            self._stop(f"the loss is {value}", x, y, progress.step)
        loss.backward()
        norm = self.optimizer.gradient_norm()
        if not math.isfinite(norm):
            self._stop(f"the norm of the gradients is {norm}", x, y, progress.step)
        self.optimizer.step(norm=norm)
        self.optimizer.zero_grad()
        right = int((logits.numpy().argmax(axis=1) == y).sum())
        self._account(lambda: Figures(value, right, norm), x, y, progress, progress.step)

    def _account(
        self, read: Callable[[], Figures], x: np.ndarray, y: np.ndarray, progress: Progress, step: int
    ) -> None:
        """Add the figures of one step to those of the epoch."""
        figures = read()
        for what, value in (("loss", figures.loss), ("norm of the gradients", figures.norm)):
            if not math.isfinite(value):
                self._stop(f"the {what} is {value}", x, y, step)
        progress.pictures += len(y)
        progress.loss += figures.loss * len(y)
        progress.right += figures.right
        progress.norm += figures.norm

    def _stop(self, what: str, x: np.ndarray, y: np.ndarray, step: int) -> Never:
        """Find what was not finite first, in the step made again."""
        self.model.load_random_states(self._random_before)
        pictures = Tensor(backend.to_device(x, self.device))
        self.lost(what, step, first_not_finite(self.model, pictures, lambda logits: self.loss(logits, y)))

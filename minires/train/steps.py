"""The steps of a run: by the model, by its plan, or captured into a CUDA graph; and what they add up to.

A batch may go through the model in parts, one after the other, so that only the activations of one part are
in memory at a time. The loss of a batch is a mean over its pictures; so, with n_i of n pictures in part i,

    loss = sum over i of n_i / n * loss_i
    gradient = sum over i of n_i / n * gradient_i

which is what the whole batch would give, but for batch norm: its means and variances are those of each part.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, Never

import numpy as np

from minires import backend
from minires.nn.module import Module
from minires.optim import Optimizer
from minires.tensor import Tensor
from minires.train.captured import Capture, Figures
from minires.train.diagnose import NOTHING, first_not_finite
from minires.train.ema import EMA
from minires.train.state import Progress

Loss = Callable[[Tensor, Any], Tensor]
Lost = Callable[[str, int, str], Never]


def parts(pictures: int, batch_size: int, accumulate: int) -> list[int]:
    """The sizes of the parts in which so many pictures go through the model.

    A whole batch has ``accumulate`` parts, as even as they can be, and a smaller one as many as it takes for
    none to be larger than those.

    >>> parts(32, 32, 4), parts(13, 32, 4), parts(1, 32, 4)
    ([8, 8, 8, 8], [7, 6], [1])
    """
    count = min(pictures, -(-pictures * accumulate // batch_size))
    return [pictures // count + (place < pictures % count) for place in range(count)]


class Steps:
    """Called with a batch, it makes a step of the optimiser and adds its figures to those of the epoch.

    ``forward`` gives the logits of pictures, as :class:`~minires.train.planned.Forward` does, ``loss`` the
    loss of logits and labels, a mean, ``capture``, on a GPU, the captured step for a batch. A batch of so
    many pictures goes through the model in parts of the sizes ``parts(pictures)``. ``lost`` is called, and
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
        parts: Callable[[int], list[int]] = lambda pictures: [pictures],
    ) -> None:
        self.model, self.optimizer, self.ema = model, optimizer, ema
        self.forward, self.loss, self.lost = forward, loss, lost
        self.device, self.activations, self.capture, self.parts = device, activations, capture, parts
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
        value, right = 0.0, 0
        for part in self._cut(len(y)):
            loss, hits = self._forward_and_back(x, y, part, progress.step)
            value, right = value + (part.stop - part.start) / len(y) * loss, right + hits
        norm = self.optimizer.gradient_norm()
        if not math.isfinite(norm):
            self._stop(f"the norm of the gradients is {norm}", x, y, progress.step)
        self.optimizer.step(norm=norm)
        self.optimizer.zero_grad()
        self._account(lambda: Figures(value, right, norm), x, y, progress, progress.step)

    def _forward_and_back(self, x: np.ndarray, y: np.ndarray, part: slice, step: int) -> tuple[float, int]:
        """Add a part's share to the gradients; its loss, and how many of its pictures were right."""
        logits = self.forward(Tensor(backend.to_device(x[part], self.device)))
        loss = self.loss(logits, y[part])
        value, count = float(loss.item()), part.stop - part.start
        if not math.isfinite(value):
            self._stop(f"the loss is {value}", x, y, step)
        (loss if count == len(y) else loss * (count / len(y))).backward()
        return value, int((logits.numpy().argmax(axis=1) == y[part]).sum())

    def _loss_of(self, y: np.ndarray, logits: Tensor) -> Tensor:
        return self.loss(logits, y)

    def _cut(self, pictures: int) -> Iterator[slice]:
        """The parts of a batch."""
        start = 0
        for size in self.parts(pictures):
            yield slice(start, start + size)
            start += size

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
        cuts, first = list(self._cut(len(y))), NOTHING
        for number, part in enumerate(cuts, 1):
            pictures = Tensor(backend.to_device(x[part], self.device))
            first = first_not_finite(self.model, pictures, functools.partial(self._loss_of, y[part]))
            if first != NOTHING:
                first += f", in part {number} of {len(cuts)} of the batch" if len(cuts) > 1 else ""
                break
        self.optimizer.zero_grad()  # a run that goes on must not add to these
        self.lost(what, step, first)

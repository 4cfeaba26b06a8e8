"""The steps of a run: by the model, by its plan, or captured into a CUDA graph; and what they add up to.

A batch may go through the model in parts, one after the other, so that only the activations of one part are
in memory at a time. The loss of a batch is a mean over its pictures; so, with n_i of n pictures in part i,

    loss = sum over i of n_i / n * loss_i
    gradient = sum over i of n_i / n * gradient_i

which is what the whole batch would give, but for batch norm: its means and variances are those of each part.

Where several processes, the ranks, do a run, each has its share of every part, and the sums go over parts and
ranks: see :mod:`minires.distributed`. What one of them finds, a number that is not finite, a wish to stop, a
picture that cannot be read, all know behind the step, and act on it together.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Never

import numpy as np

from minires import backend
from minires.backend import Array
from minires.distributed import Communicator, Solo, bounds, shares
from minires.errors import MiniresError
from minires.modes import share_of_batch, synchronised
from minires.nn.module import Module
from minires.optim import Optimizer
from minires.tensor import Tensor
from minires.train.captured import Capture, Figures
from minires.train.diagnose import NOTHING, UNSEEN, first_not_finite
from minires.train.ema import EMA
from minires.train.shared import Shared
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


@dataclass(frozen=True)
class Part:
    """A part of a batch that goes through the model at once: the ``rows`` of it among the pictures that this
    process has of the batch, what its loss counts, and its ``place`` (from, to, of) in the part that all
    processes have together."""

    rows: slice
    weight: float
    place: tuple[int, int, int]


def parts_of(sizes: Sequence[int], comm: Communicator) -> list[Part]:
    """The parts of a batch, of these ``sizes`` over all ranks, as a rank has them.

    >>> parts_of([4, 4], Solo())[1]
    Part(rows=slice(4, 8, None), weight=0.5, place=(0, 4, 4))
    """
    pictures, found, at = sum(sizes), [], 0
    for size, share in zip(sizes, shares(sizes, comm.rank, comm.size), strict=True):
        count = share.stop - share.start
        place = (*bounds(size, comm.rank, comm.size), size)
        found.append(Part(slice(at, at + count), count / pictures, place))
        at += count
    return found


class Steps:
    """Called with a batch, it makes a step of the optimiser and adds its figures to those of the epoch.

    ``forward`` gives the logits of pictures, as :class:`~minires.train.planned.Forward` does, ``loss`` the
    loss of logits and labels, a mean, ``capture``, on a GPU, the captured step for a batch. A batch of so
    many pictures goes through the model in parts of the sizes ``parts(pictures)``. ``lost`` is called, and
    raises, where a loss or gradient is not finite: with what it was, in which step, and what was the first in
    it. The weights are then as before the step.

    Of a batch that several ranks share each is given its own pictures, and ``shared`` sums over the ranks;
    ``sync`` says that their batch norms see all of them together, and ``wish`` gives the signal by which this
    one is told to stop, or 0.

    ``heard`` is told of each step how many of how many pictures, on all ranks, were right: on a GPU while the
    next step is under way, and before anything is saved.
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
        shared: Shared | None = None,
        sync: bool = False,
        wish: Callable[[], int] = lambda: 0,
        heard: Callable[[int, int, int], None] = lambda step, right, pictures: None,
    ) -> None:
        self.model, self.optimizer, self.ema = model, optimizer, ema
        self.forward, self.loss, self.lost = forward, loss, lost
        self.device, self.activations, self.capture, self.parts = device, activations, capture, parts
        self.shared, self.sync, self.wish, self.heard = shared, sync, wish, heard
        self.comm: Communicator = Solo() if shared is None else shared.comm
        # Whether a step may wait for other ranks before it has told them anything.
        self.asks = shared is not None and (sync or (capture is not None and capture.is_possible))
        self.stop = 0  # the signal by which all were told to stop, once the step is done
        self._random_before: dict[str, Any] = {}  # the states of dropout before the step
        self._pending: list[Callable[[], None]] = []  # what is to be done with the figures of the last steps

    def __call__(
        self, x: np.ndarray, y: np.ndarray, progress: Progress, lr: float, pictures: int | None = None
    ) -> None:
        """One step; nothing is changed if its loss or gradient is not finite.

        ``pictures`` are those of the batch on all ranks; left out, x has all.
        """
        pictures = len(y) if pictures is None else pictures
        x = x.astype(self.activations, copy=False)
        self._random_before = self.model.random_states()
        self.optimizer.lr, self.stop = lr, 0
        if self.shared:
            self.comm.place = f"step {progress.step}"
            if self.asks:
                self.stop = self.shared.ask(None, self.wish())
        if self.capture and (step := self.capture(x, y, pictures)):
            slot = step(x, y)
            self.settle()
            account = functools.partial(self._account, slot.read, x, y, progress, progress.step, pictures)
            self._pending.append(account)
        else:
            self.settle()
            self._step(x, y, progress, pictures)
        if self.ema:
            self.ema.update()
        progress.batch += 1
        progress.step += 1

    @property
    def complete(self) -> Callable[[Tensor, Array], None] | None:
        """Who wants to know of gradients as soon as they are complete; None: nobody."""
        return self.shared.gradients.complete if self.shared and self.shared.gradients.overlaps else None

    def close(self) -> None:
        """A run has ended: nobody waits for its steps any more. Another may follow."""
        self.comm.watch(False)
        if self.shared:
            self.shared.gradients.close()

    def settle(self) -> None:
        """Read the figures of the steps that were started and not yet read."""
        while self._pending:
            self._pending.pop(0)()

    def fail(self, error: Exception) -> Never:
        """In the place of a step of which this rank has no pictures: tell the others. All raise it."""
        if self.shared is None:
            raise error
        if self.asks:
            self.shared.ask(error, 0)
        self.shared.begin()
        self.shared.finish(0.0, 0, 0, error)
        raise error

    def _step(self, x: np.ndarray, y: np.ndarray, progress: Progress, pictures: int) -> None:
        """Launch, or compute, each operation of the step."""
        value, right, parts = 0.0, 0, self._cut(pictures)
        if self.shared:
            self.shared.begin()
        for part in parts:
            if self.shared and part is parts[-1]:
                self.shared.gradients.arm()
            loss, hits = self._forward_and_back(x, y, part, progress.step)
            value, right = value + part.weight * loss, right + hits
        if self.shared:
            try:
                value, right, stop = self.shared.finish(value, right, self.wish(), None)
                self.stop = self.stop or stop
            except Exception:
                self.model.load_random_states(self._random_before)
                raise
            if not math.isfinite(value):
                self._stop(f"the loss is {value}", x, y, progress.step, pictures)
        norm = self.optimizer.gradient_norm()
        if not math.isfinite(norm):
            self._stop(f"the norm of the gradients is {norm}", x, y, progress.step, pictures)
        self.optimizer.step(norm=norm)
        self.optimizer.zero_grad()
        self._account(lambda: Figures(value, right, norm), x, y, progress, progress.step, pictures)

    def _within(self, part: Part) -> ExitStack:
        """A block in which the model knows that it has a share of a batch."""
        stack = ExitStack()
        stack.enter_context(share_of_batch(*part.place))
        if self.sync:
            stack.enter_context(synchronised(self.comm))
        return stack

    def _forward_and_back(self, x: np.ndarray, y: np.ndarray, part: Part, step: int) -> tuple[float, int]:
        """Add a part's share to the gradients; its loss, and how many of its pictures were right."""
        with self._within(part):
            logits = self.forward(Tensor(backend.to_device(x[part.rows], self.device)))
            loss = self.loss(logits, y[part.rows])
            value = float(loss.item())
            if not math.isfinite(value) and not self.shared:
                self._stop(f"the loss is {value}", x, y, step, len(y))
            (loss if part.weight == 1 else loss * part.weight).backward()
        return value, int((logits.numpy().argmax(axis=1) == y[part.rows]).sum())

    def _loss_of(self, y: np.ndarray, logits: Tensor) -> Tensor:
        return self.loss(logits, y)

    def _cut(self, pictures: int) -> list[Part]:
        """The parts of a batch."""
        return parts_of(self.parts(pictures), self.comm)

    def _account(
        self, read: Callable[[], Figures], x: np.ndarray, y: np.ndarray, progress: Progress, step: int,
        pictures: int,
    ) -> None:  # fmt: skip
        """Add the figures of one step to those of the epoch."""
        figures = read()
        for what, value in (("loss", figures.loss), ("norm of the gradients", figures.norm)):
            if not math.isfinite(value):
                self._stop(f"the {what} is {value}", x, y, step, pictures)
        progress.pictures += pictures
        progress.loss += figures.loss * pictures
        progress.right += figures.right
        progress.norm += figures.norm
        self.heard(step, figures.right, pictures)

    def _stop(self, what: str, x: np.ndarray, y: np.ndarray, step: int, pictures: int) -> Never:
        """Find what was not finite first, in the step made again."""
        self.model.load_random_states(self._random_before)
        cuts, first = self._cut(pictures), NOTHING
        for number, part in enumerate(cuts, 1):
            x_part = Tensor(backend.to_device(x[part.rows], self.device))
            loss_of = functools.partial(self._loss_of, y[part.rows])
            try:
                with share_of_batch(*part.place):
                    first = first_not_finite(self.model, x_part, loss_of, place=part.place[0])
            except MiniresError as error:
                if not self.shared:
                    raise
                first = f"{UNSEEN}: {error}"
            if first != NOTHING:
                first += f", in part {number} of {len(cuts)} of the batch" if len(cuts) > 1 else ""
                break
        self.optimizer.zero_grad()  # a run that goes on must not add to these
        if self.shared:
            first = self.shared.first_of(first)
        self.lost(what, step, first)

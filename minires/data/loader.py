"""Batches of a data set: shuffled by seed, augmented, normalised, prepared one ahead in a thread."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from minires.data import sampling
from minires.data.augment import Augmentation, Normalize
from minires.data.dataset import Dataset
from minires.errors import ConfigError, as_seed, as_whole, truth, whole

Pair = tuple[NDArray[np.float32], NDArray[np.int64]]


class Loader:
    """Gives the batches of each epoch.

    Everything random follows from (seed, epoch, batch): the order of an epoch from the first two, the
    augmentation of a batch from all three. So a run that goes on at any batch sees the very same pictures.

    ``balanced`` draws each class equally often in an epoch, of as many pictures as there are: all those of a
    small class several times, and of a large one some; which follows from (seed, epoch) alone.

    Shapes: x (B, H, W, 3) float32, y (B,) int64; the last batch is smaller unless ``drop_last``.
    Two loaders with the same seed go through their pictures in the same order.
    Raises: ConfigError for a batch size below 1, a negative seed, ``drop_last`` with no whole batch, or
    ``balanced`` without ``shuffle``.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        augment: Augmentation | None = None,
        normalize: Normalize | None = None,
        drop_last: bool = False,
        balanced: bool = False,
    ) -> None:
        if not (hasattr(dataset, "images") and hasattr(dataset, "labels")):
            raise ConfigError(f"loader: a Dataset has images and labels; {type(dataset).__name__} has not")
        for name, call in (("augment", augment), ("normalize", normalize)):
            if call is not None and not callable(call):
                raise ConfigError(f"loader: {name} must be a function of a batch, not {call!r}")
        batch_size = whole("loader: the batch size", batch_size)
        seed = as_seed(seed)
        shuffle, drop_last = truth("loader: shuffle", shuffle), truth("loader: drop_last", drop_last)
        if truth("loader: balanced", balanced) and not shuffle:
            raise ConfigError("loader: balanced=True draws the pictures of an epoch; leave out shuffle=False")
        if drop_last and len(dataset) < batch_size:
            raise ConfigError(
                f"there are {len(dataset)} training pictures, fewer than one batch of {batch_size}: nothing "
                f"would be trained. Use batch_size={max(1, len(dataset) // 2)}, or drop_last=False"
            )
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.augment = augment
        self.normalize = normalize or Normalize.none()
        self.drop_last = drop_last
        self.balanced = bool(balanced)

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        whole, rest = divmod(len(self.dataset), self.batch_size)
        return whole + (1 if rest and not self.drop_last else 0)

    def __iter__(self) -> NoReturn:
        raise ConfigError("a loader gives the batches of one epoch: for x, y in loader.epoch(0)")

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Pair]:
        """Iterate over the batches start, start+1, ... of an epoch.

        The next batch is prepared in a thread while the caller works on this one; what goes wrong there
        is raised here. Closing the iterator ends the thread.

        Raises: ConfigError when the epoch or the first batch is out of range.
        """
        of, first = as_whole(epoch), as_whole(start)
        if of is None or first is None or of < 0 or not 0 <= first <= len(self):
            raise ConfigError(
                f"loader: no batch {start!r} in epoch {epoch!r}; epochs count from 0, batches to {len(self)}"
            )
        return self._batches(of, first)

    def _batches(self, epoch: int, start: int) -> Iterator[Pair]:
        if start == len(self):
            return
        order, rng = np.arange(len(self.dataset)), np.random.default_rng([self.seed, epoch])
        if self.balanced:
            order = sampling.balanced(self.dataset.labels, rng)
        elif self.shuffle:
            order = rng.permutation(len(self.dataset))
        # Leaving the block, also by close() or an exception, waits for the one thread and ends it.
        with ThreadPoolExecutor(1, thread_name_prefix="minires-loader") as pool:
            ahead = pool.submit(self._prepare, order, epoch, start)
            for batch in range(start, len(self)):
                ready = ahead.result()
                if batch + 1 < len(self):
                    ahead = pool.submit(self._prepare, order, epoch, batch + 1)
                yield ready

    def _prepare(self, order: NDArray[np.int64], epoch: int, batch: int) -> Pair:
        chosen = order[batch * self.batch_size : (batch + 1) * self.batch_size]
        x = self.dataset.images[chosen]
        if self.augment is not None:
            x = self.augment(x, np.random.default_rng([self.seed, epoch, batch, 1]))
        return self.normalize(x), self.dataset.labels[chosen]

"""Batches of a data set: shuffled by seed, augmented, normalised, prepared ahead in threads."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from minires.data import sampling
from minires.data.augment import Augmentation, Normalize, augmented, begun_by, least_of, needs_stream
from minires.data.dataset import Dataset
from minires.data.streaming import Stream
from minires.errors import ConfigError, as_seed, as_whole, truth, whole

Pair = tuple[NDArray[np.float32], NDArray[np.int64]]
Batches = Generator[Pair, None, None]


class Loader:
    """Gives the batches of each epoch.

    Everything random follows from (seed, epoch, batch): the order of an epoch from the first two, the
    augmentation of a batch from all three; of a picture of a stream from (seed, epoch, its place in the set).
    So a run that goes on at any batch sees the very same pictures, with any number of threads.

    Pictures of a stream are decoded, augmented and normalised each by itself, in as many threads as
    operations use, a few batches ahead. A first step of ``augment`` that takes pictures as they are in their
    files gets them so, see :mod:`minires.data.augment`.

    ``balanced`` draws each class equally often in an epoch, of as many pictures as there are: all those of a
    small class several times, and of a large one some; which follows from (seed, epoch) alone.

    ``share``, called with the number of pictures of a batch, says which of them are given, as slices: those
    of one of several processes that share each batch. What is drawn by chance is drawn for all of the batch,
    so the pictures are those that one process would have.

    Shapes: x (B, H, W, 3) float32, y (B,) int64; the last batch is smaller unless ``drop_last``.
    Two loaders with the same seed go through their pictures in the same order.
    Raises: ConfigError for a batch size below 1, a negative seed, ``drop_last`` with no whole batch,
    ``balanced`` without ``shuffle``, or a first step that takes pictures as they are in their files where
    these are in memory, or in a cache.
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
        share: Callable[[int], Sequence[slice]] | None = None,
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
        self.balanced, self.share = bool(balanced), share
        self._first, self._then = begun_by(augment)
        if isinstance(images := dataset.images, Stream) and images.files.pixels is not None:
            if not needs_stream(augment):  # it works on squares, too, which a cache has
                self._first, self._then = None, augment
        if isinstance(dataset.images, Stream):
            _check_first(self._first, dataset.images)
        elif needs_stream(augment):
            raise ConfigError(
                f"the augmentation {type(self._first).__name__} takes pictures as they are in their files, "
                "and these are in memory: load them with stream=True (on the command line --stream)"
            )

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        whole, rest = divmod(len(self.dataset), self.batch_size)
        return whole + (1 if rest and not self.drop_last else 0)

    def pictures(self, batch: int) -> int:
        """How many pictures a batch of an epoch has, all shares together."""
        return min(self.batch_size, len(self.dataset) - batch * self.batch_size)

    def __iter__(self) -> NoReturn:
        raise ConfigError("a loader gives the batches of one epoch: for x, y in loader.epoch(0)")

    def epoch(self, epoch: int, start: int = 0) -> Batches:
        """Iterate over the batches start, start+1, ... of an epoch.

        The next batch is prepared in a thread while the caller works on this one, or several of a stream in
        several threads; what goes wrong there is raised here. Closing the iterator ends the threads.

        Raises: ConfigError when the epoch or the first batch is out of range; Unreadable, a DataError, in the
        place of a batch of a stream in which pictures cannot be read.
        """
        of, first = as_whole(epoch), as_whole(start)
        if of is None or first is None or of < 0 or not 0 <= first <= len(self):
            raise ConfigError(
                f"loader: no batch {start!r} in epoch {epoch!r}; epochs count from 0, batches to {len(self)}"
            )
        return self._batches(of, first)

    def _batches(self, epoch: int, start: int) -> Batches:
        if start == len(self):
            return
        order, rng = np.arange(len(self.dataset)), np.random.default_rng([self.seed, epoch])
        if self.balanced:
            order = sampling.balanced(self.dataset.labels, rng)
        elif self.shuffle:
            order = rng.permutation(len(self.dataset))
        if isinstance(images := self.dataset.images, Stream):
            yield from self._streamed(images, order, epoch, start)
            return
        # Leaving the block, also by close() or an exception, waits for the one thread and ends it.
        with ThreadPoolExecutor(1, thread_name_prefix="minires-loader") as pool:
            ahead = pool.submit(self._prepare, order, epoch, start)
            for batch in range(start, len(self)):
                ready = ahead.result()
                if batch + 1 < len(self):
                    ahead = pool.submit(self._prepare, order, epoch, batch + 1)
                yield ready

    def _places(self, batch: int) -> NDArray[np.int64]:
        """The places in the order of an epoch of the pictures of a batch that are given."""
        first = batch * self.batch_size
        places: NDArray[np.int64] = np.arange(first, first + self.pictures(batch))
        if self.share is None:
            return places
        return np.concatenate([places[one] for one in self.share(len(places))])

    def _prepare(self, order: NDArray[np.int64], epoch: int, batch: int) -> Pair:
        places, first = self._places(batch), batch * self.batch_size
        chosen = order[first : first + self.pictures(batch)]
        images, rng = self.dataset.images, np.random.default_rng([self.seed, epoch, batch, 1])
        if self.augment is None:
            x = images[order[places]]
        elif self.share is None:
            x = self.augment(images[chosen], rng)
        else:
            x = augmented(self.augment, images, chosen, places - first, rng)
        return self.normalize(x), self.dataset.labels[order[places]]

    def _streamed(
        self, images: Stream, order: NDArray[np.int64], epoch: int, start: int
    ) -> Iterator[Pair]:
        batches, size = range(start, len(self)), images.shape[1]
        least = least_of(self._first, size)
        again = sampling.occurrences(order) if self.balanced else None

        def make(at: int) -> NDArray[Any]:
            place = int(order[at])
            nth = [] if again is None or not again[at] else [int(again[at])]  # else the same twice
            rng = np.random.default_rng([self.seed, epoch, place, 2, *nth])
            if self._first is None:
                x = images.decoded(place)[None]
            else:
                x = self._first.from_picture(images.picture(place, least=least), size, rng)[None]
                if x.shape != (1, size, size, 3) or x.dtype != np.uint8:
                    raise ConfigError(
                        f"from_picture of {type(self._first).__name__} must give uint8 ({size}, {size}, 3), "
                        f"not {x.dtype} {x.shape[1:]}"
                    )
            if self._then is not None:
                x = self._then(x, rng)
            one: NDArray[Any] = self.normalize(x)[0]
            return one

        wanted = map(self._places, batches)
        with closing(images.made(wanted, make, batch_size=self.batch_size, order=order)) as made:
            for batch, x in zip(batches, made, strict=True):
                yield x, self.dataset.labels[order[self._places(batch)]]


def _check_first(step: Any, images: Stream) -> None:
    """Check that a stream can give the pictures as they are in their files, if ``step`` takes them so."""
    if step is None:
        return
    name = type(step).__name__
    if images.files.pixels is not None:
        raise ConfigError(
            f"the augmentation {name} takes pictures as they are in their files, and cache='pixels' keeps "
            "them at one size; leave the cache out"
        )
    if not images.files.square:
        raise ConfigError(f"the augmentation {name} makes squares: give a size, such as size=224")
    least_of(step, images.shape[1])

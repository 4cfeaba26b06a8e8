"""A labelled set of pictures, in memory or decoded when asked for, and its three parts: train, val, test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from minires.data.parts import matching
from minires.data.streaming import Stream
from minires.data.subset import chosen
from minires.errors import DataError, ShapeError, as_seed, number


@dataclass(frozen=True, eq=False)
class Dataset:
    """Pictures with their labels, class names and the place each picture came from.

    ``images`` is an array, or a :class:`~minires.data.streaming.Stream`, which decodes when it is indexed and
    stays one in ``take``, ``split``, ``join`` and ``with_classes``.

    Shapes: images (N, H, W, 3) uint8; labels (N,) int64, each in 0 .. len(classes)-1; names has N entries.
    Raises: ShapeError for a wrong shape or dtype; DataError for an empty set or a label out of range.
    """

    images: NDArray[np.uint8] | Stream
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    names: tuple[str, ...]
    name: str

    def __post_init__(self) -> None:
        for name in ("images", "labels"):
            if not hasattr(getattr(self, name), "dtype"):
                object.__setattr__(self, name, np.asarray(getattr(self, name)))
        images, labels = self.images, self.labels
        if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
            raise ShapeError(
                f"data set '{self.name}': pictures must be uint8 of shape (N, H, W, 3), "
                f"got {images.dtype} {images.shape}"
            )
        if len(images) == 0:
            raise DataError(f"data set '{self.name}' is empty: no picture; check the folder or the split")
        if labels.shape != (len(images),) or labels.dtype != np.int64 or len(self.names) != len(images):
            raise ShapeError(
                f"data set '{self.name}': {len(images)} pictures need int64 labels of shape ({len(images)},) "
                f"and as many names, got {labels.dtype} {labels.shape} and {len(self.names)} names"
            )
        outside = np.flatnonzero((labels < 0) | (labels >= len(self.classes)))
        if len(outside):
            first = int(outside[0])
            raise DataError(
                f"data set '{self.name}': label {labels[first]} of {self.names[first]} is outside "
                f"0..{len(self.classes) - 1} ({len(self.classes)} classes; {len(outside)} such labels)"
            )

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        n, h, w, _ = self.images.shape
        classes = ", ".join(self.classes[:6]) + (", ..." if len(self.classes) > 6 else "")
        return f"Dataset {self.name!r}: {n:,} pictures of {h}x{w}, {len(self.classes)} classes ({classes})"

    def take(self, indices: ArrayLike) -> Dataset:
        """Return the pictures at ``indices``, in that order."""
        chosen = np.asarray(indices)
        if chosen.size and chosen.dtype.kind not in "iu":
            raise ShapeError(f"take: the places of pictures are whole numbers, not {chosen.dtype}")
        chosen = chosen.astype(np.int64)
        return replace(
            self,
            images=self.images.take(chosen) if isinstance(self.images, Stream) else self.images[chosen],
            labels=self.labels[chosen],
            names=tuple(self.names[i] for i in chosen),
        )

    def with_classes(self, classes: tuple[str, ...]) -> Dataset:
        """Return this set with its labels numbered as in ``classes``: names are matched, not places.

        A name may differ in case, or in how an accented letter is composed. Classes of which this set has no
        picture need no match.

        Raises: DataError that names the classes which are not among ``classes``.
        """
        known = matching(self.classes, classes)
        used = [label for k, label in enumerate(self.classes) if (self.labels == k).any()]
        if unknown := [label for label in used if label not in known]:
            raise DataError(
                f"data set '{self.name}' has {_few(unknown)} among its classes, which are not among "
                f"{_few(classes)}; choose pictures of the same classes"
            )
        places = [classes.index(known[label]) if label in known else -1 for label in self.classes]
        return replace(self, labels=np.array(places, dtype=np.int64)[self.labels], classes=tuple(classes))

    def split(self, fraction: float, *, seed: int) -> tuple[Dataset, Dataset]:
        """Split in two, class by class: the first part gets ``fraction`` of every class.

        The same seed gives the same parts. The first part has exactly ``round(fraction * N)`` pictures:
        a class whose share is not whole is rounded up or down, the largest remainders up; before them, if
        the first part is the larger one, classes that would have nothing in it. Both parts keep the order of
        the whole.

        Raises: ConfigError when the fraction is not between 0 and 1; DataError when a part would be empty.
        """
        fraction = number("split: the fraction", fraction, above=0, below=1)
        seed = as_seed(seed)
        wanted = round(fraction * len(self))
        if wanted in (0, len(self)):
            raise DataError(
                f"data set '{self.name}': {len(self)} pictures are too few to be split {fraction:g} : "
                f"{1 - fraction:g}; one part would be empty"
            )
        shares = fraction * np.bincount(self.labels, minlength=len(self.classes))
        counts = np.floor(shares).astype(np.int64)
        empty = (counts == 0) & (shares > 0) & (fraction >= 0.5)
        for k in np.lexsort((counts - shares, ~empty))[: wanted - counts.sum()]:
            counts[k] += 1
        rng = np.random.default_rng([seed, 0x5317])
        first = np.zeros(len(self), dtype=bool)
        for k, count in enumerate(counts):
            first[rng.permutation(np.flatnonzero(self.labels == k))[:count]] = True
        return self.take(np.flatnonzero(first)), self.take(np.flatnonzero(~first))

    def some(self, pictures: int) -> Dataset:
        """Return so many pictures, of each class its share, in the order of this set.

        Which ones follows from their number and the labels alone, so that it is the same choice for every
        seed: see :mod:`minires.data.subset`. Each class gets its share rounded up or down, and at least one
        picture where they suffice for that; within a class they are spread over the whole of it.

        Raises: ConfigError if ``pictures`` is no whole number from 1 to as many as there are.
        """
        where = f"data set '{self.name}'"
        places = chosen(self.labels, len(self.classes), pictures, where=where)
        return self if len(places) == len(self) else self.take(places)

    def join(self, other: Dataset) -> Dataset:
        """Return this set followed by ``other``, which must have the same classes and picture size.

        Raises: DataError when classes or sizes differ.
        """
        if self.classes != other.classes:
            raise DataError(
                f"cannot join '{self.name}' and '{other.name}': classes {self.classes} and {other.classes}"
            )
        if self.images.shape[1:] != other.images.shape[1:]:
            raise DataError(
                f"cannot join '{self.name}' and '{other.name}': picture sizes differ, "
                f"{self.images.shape[1:]} and {other.images.shape[1:]}; load both with the same size"
            )
        return replace(
            self,
            images=_joined(self.images, other.images),
            labels=np.concatenate([self.labels, other.labels]),
            names=self.names + other.names,
        )


def _joined(one: NDArray[np.uint8] | Stream, other: NDArray[np.uint8] | Stream) -> NDArray[np.uint8] | Stream:
    if isinstance(one, Stream) and isinstance(other, Stream):
        return one.join(other)
    if isinstance(one, Stream) or isinstance(other, Stream):
        raise DataError("cannot join pictures in memory and a stream; load both with stream=True")
    return np.concatenate([one, other])


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f", ... ({len(names)} in all)" if len(names) > 10 else "")


@dataclass(frozen=True, eq=False)
class LabelledPart:
    """Pictures to test a model on, which part of a data set they are, and where they came from.

    ``split`` is train, val, test, or all.
    """

    pictures: Dataset
    split: str
    source: str


@dataclass(frozen=True, eq=False)
class Splits:
    """The three parts of a data set, and a line that says where it came from."""

    train: Dataset
    val: Dataset
    test: Dataset
    source: str

    def __repr__(self) -> str:
        parts = [f"  {part}: {getattr(self, part)!r}" for part in ("train", "val", "test")]
        return "\n".join([f"Splits from {self.source}", *parts])

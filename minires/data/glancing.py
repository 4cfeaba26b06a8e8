"""A glance at a data set: how many pictures each class has, and how large they are, without reading them all.

What a recipe is chosen by, see :mod:`minires.train.auto`. The parts are those that ``data.load`` gives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from minires.data.counts import of_counts
from minires.data.dataset import Splits
from minires.data.pictures import look
from minires.data.subset import shares
from minires.errors import DataError

LOOKED_AT = 40  # pictures of a part, of which the sizes are measured


@dataclass(frozen=True)
class Glance:
    """What there is to train on: for each of the parts train, val and test how many pictures of each class.

    ``shorter`` is the median of the shorter sides of some pictures, in pixels; 0 if none could be read.
    """

    name: str
    classes: tuple[str, ...]
    counts: dict[str, tuple[int, ...]]
    shorter: int

    def total(self, part: str) -> int:
        """How many pictures a part has."""
        return sum(self.counts.get(part, ()))

    def joined(self) -> Glance:
        """The same, with the validation pictures among the training pictures.

        >>> counts = {"train": (8, 7), "val": (2, 1), "test": (3, 3)}
        >>> Glance("pets", ("cat", "dog"), counts, shorter=300).joined().counts
        {'train': (10, 8), 'test': (3, 3)}
        """
        train = tuple(map(sum, zip(self.counts["train"], self.counts["val"], strict=True)))
        return replace(self, counts={"train": train, "test": self.counts["test"]})

    def some(self, pictures: int) -> Glance:
        """The same with so many training pictures, as :meth:`Dataset.some` takes them.

        >>> counts = {"train": (8, 7), "val": (2, 1), "test": (3, 3)}
        >>> Glance("pets", ("cat", "dog"), counts, shorter=300).some(6).counts["train"]
        (3, 3)
        """
        train = shares(self.counts["train"], pictures, where=f"data set '{self.name}'")
        return replace(self, counts={**self.counts, "train": tuple(train.tolist())})

    def doubts(self) -> list[str]:
        """What is doubtful in the numbers, in words, as ``data.survey`` warns of it."""
        return of_counts(self.classes, self.counts)


@dataclass
class Glancer:
    """In the place of ``decode_all``: measures some pictures and keeps none."""

    sides: list[int] = field(default_factory=list)
    in_files: bool = False

    def decode(
        self, files: Sequence[tuple[str, Callable[[], bytes]]], *, size: int | None, where: str
    ) -> NDArray[np.uint8]:
        self.in_files = True
        for place in np.unique(np.linspace(0, len(files) - 1, min(LOOKED_AT, len(files))).astype(int)):
            name, read = files[place]
            try:
                self.sides.append(min(look(read(), name=name)[0]))
            except (DataError, OSError):  # whoever reads all of them names it
                continue
        return np.zeros((len(files), 1, 1, 3), np.uint8)

    def of(self, splits: Splits) -> Glance:
        """What the parts have; of pictures in memory their own size counts."""
        train = splits.train
        sides = self.sides if self.in_files else [min(train.images.shape[1:3])]
        counts = {
            part: tuple(np.bincount(held.labels, minlength=len(train.classes)).tolist())
            for part, held in (("train", train), ("val", splits.val), ("test", splits.test))
        }
        return Glance(train.name, train.classes, counts, int(np.median(sides)) if sides else 0)

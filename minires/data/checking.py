"""Every picture of a set decoded once, so that a long run does not come to one that cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from minires import backend
from minires.data import ahead
from minires.data.pictures import picture
from minires.data.streaming import Named
from minires.errors import DataError

LEAST = 224  # pixels of the side that very large pictures are read for


@dataclass(frozen=True)
class Checked:
    """How many pictures a data set has, and what is wrong with each that cannot be read."""

    source: str
    count: int
    unreadable: list[str]


@dataclass
class Collector:
    """In the place of ``decode_all``: notes the files, and decodes nothing."""

    named: list[Named] = field(default_factory=list)

    def decode(self, files: Sequence[Named], *, size: int | None, where: str) -> NDArray[np.uint8]:
        self.named += files
        return np.zeros((len(files), 1, 1, 3), np.uint8)


def unreadable(named: Sequence[Named], told: Callable[[], object]) -> list[str]:
    """What is wrong with each picture that cannot be decoded, in the order of the files; ``told`` hears of
    each that was looked at."""
    found = []
    for wrong in ahead.each(_wrong, named, threads=backend.threads()):
        if wrong:
            found.append(wrong)
        told()
    return found


def _wrong(named: Named) -> str:
    name, read = named
    try:
        picture(read(), name=name, least=LEAST)
    except (DataError, OSError) as error:
        return str(error)
    return ""

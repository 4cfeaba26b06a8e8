"""The pictures of a folder, a zip or a tar, for the page: a list, of which a part is told at a time."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minires.data import pictures_at
from minires.data.parts import fold
from minires.errors import DataError

PAGE = 24  # pictures that are told at a time


class Gallery:
    """The pictures at ``path``; each is read when it is asked for, and not before.

    Where a folder above a picture has the name of one of ``classes``, that is its class; case does not count
    where it leaves no doubt.

    Raises: DataError if nothing is there, or no picture is.
    """

    def __init__(self, path: str | os.PathLike[str], classes: Sequence[str]) -> None:
        self.source = Path(path).resolve().name or str(path)
        self._pictures = pictures_at(path)
        self._classes = frozenset(classes)
        alike = Counter(map(fold, classes))
        self._folded = {fold(name): name for name in classes if alike[fold(name)] == 1}

    def __len__(self) -> int:
        return len(self._pictures)

    def page(self, start: int) -> dict[str, Any]:
        """The names and classes of the pictures from ``start`` on, as many as are told at a time.

        Raises: DataError if there are not so many.
        """
        self._check(start)
        stop = min(start + PAGE, len(self))
        pictures = [
            {"index": index, "name": self.name(index), "class": self.label(index)}
            for index in range(start, stop)
        ]
        return {"from": start, "count": len(self), "page": PAGE, "pictures": pictures}

    def name(self, index: int) -> str:
        """The path of a picture inside the folder or archive. Raises: DataError."""
        return self._pictures[self._check(index)].name

    def label(self, index: int) -> str | None:
        """The class that a folder above the picture says, the nearest one first. Raises: DataError."""
        folders = self.name(index).split("/")[-2::-1]
        found = (name if name in self._classes else self._folded.get(fold(name)) for name in folders)
        return next(filter(None, found), None)

    def read(self, index: int) -> bytes:
        """The picture file. Raises: DataError if it cannot be read any more."""
        return self._pictures[self._check(index)].read()

    def _check(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise DataError(f"there is no picture {index:,}; {self.source} has {len(self):,}, from 0 on")
        return index

"""What every name of a class must be, wherever it comes from."""

from __future__ import annotations

import os
from collections.abc import Iterable

from minires.errors import DataError, MiniresError


def stripped(
    names: Iterable[str], where: str | os.PathLike[str], *, error: type[MiniresError] = DataError
) -> list[str]:
    """The names without space around them.

    Raises: ``error``, with ``where`` and the number, if one has no letters.

    >>> stripped(["crane", "dog "], "labels.txt")
    ['crane', 'dog']
    """
    found = [name.strip() for name in names]
    if "" in found:
        raise error(f"{where}: the name of class {found.index('')} is empty")
    return found

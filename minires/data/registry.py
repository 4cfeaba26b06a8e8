"""What the registry knows of a data set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from minires.data.dataset import Dataset, Splits


@dataclass(frozen=True, kw_only=True)
class Entry:
    """How a data set is had: read from files, or made when it is used.

    Files are found by ``locate``, which is given a path and returns what of it can be read, or None; then
    ``read(found, size=, seed=)`` reads them. Without ``locate`` the set needs no files, and
    ``read(size=, seed=)`` makes it. Both return the three parts.

    ``title`` says in a line what it is; ``how`` how to get its files; ``refuse`` raises DataError for files
    that must not be read; ``parts(path, size=)`` gives the labelled parts that are at a path, each to be read
    by a call, where a set can be there in part; with ``decodes``, ``read`` and ``parts`` take the keyword
    ``decode``, which makes an array or a stream of pictures in files; ``prepare`` brings files at hand into
    the cache, and ``download`` those on the network, and both report in a line; ``stand_in`` is the set that
    is used where this one is not found.
    """

    read: Callable[..., Splits]
    locate: Callable[[Path], Path | None] | None = None
    title: str = ""
    how: str = ""
    refuse: Callable[[Path], None] | None = None
    parts: Callable[..., dict[str, Callable[[], Dataset]]] | None = None
    decodes: bool = False
    prepare: Callable[[Path], str] | None = None
    download: Callable[..., str] | None = None
    stand_in: str = ""

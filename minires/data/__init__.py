"""Data sets: ``load("signs")``, ``load("hands")``, ``load("cifar10")``, or any picture folder or zip."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from minires.data import cifar, folder, hands, signs
from minires.data.augment import Compose, Normalize, build
from minires.data.dataset import Dataset, Splits
from minires.data.fetch import download, prepare
from minires.data.loader import Loader
from minires.data.pictures import decode
from minires.data.search_path import cache, roots
from minires.errors import ConfigError, DataError

__all__ = [
    "Compose",
    "Dataset",
    "Loader",
    "Normalize",
    "Splits",
    "build",
    "cache",
    "decode",
    "download",
    "find",
    "load",
    "names",
    "prepare",
]

REAL = {"signs": signs, "cifar10": cifar}  # sets that are files; hands is rendered


def names() -> tuple[str, ...]:
    """Return the names of the known data sets."""
    return ("signs", "hands", "cifar10")


def find(name: str) -> Path | None:
    """Return the folder in which a real data set lies, or None where there is none.

    Looked for in ``MINIRES_DATA/NAME``, ``data/NAME`` and the user's cache, in that order.

    Raises: ConfigError for an unknown name, or when MINIRES_DATA is not a folder.
    """
    if name not in names():
        raise ConfigError(_unknown(name))
    if name in REAL:
        for root in roots():
            if found := REAL[name].locate(root / name):
                return found
    return None


def load(name_or_path: str | os.PathLike[str], *, size: int | None = None, seed: int = 0) -> Splits:
    """Load a data set by name, or from a path: a picture folder or zip, SIGNS or CIFAR-10 in any form.

    ``size`` resizes the pictures to squares; ``seed`` chooses the validation pictures where the set itself
    does not. A known name is never taken for a path; write ``./signs`` for a folder of that name.

    Raises: ConfigError for a name that is neither known nor a path; DataError when the set is not found,
    not complete or not readable.
    """
    name = os.fspath(name_or_path)
    if name == "hands":
        return hands.load(size=size, seed=seed)
    if name in REAL:
        found = find(name)
        if found is None:
            raise DataError(_not_found(name))
        return REAL[name].read(found, size=size, seed=seed)
    path = Path(name)
    if path.is_file() and path.suffix in (".h5", ".hdf5"):
        return signs.read(path, size=size, seed=seed)
    if path.is_dir():
        for reader in REAL.values():
            if reader.locate(path):
                return reader.read(path, size=size, seed=seed)
        cifar.refuse_pickles(path)
    if path.exists():
        return folder.read(path, size=size, seed=seed)
    if len(path.parts) == 1 and not path.suffix:
        raise ConfigError(_unknown(name))
    raise DataError(f"{path}: no such file or folder")


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, names(), n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    known = ", ".join(names())
    return f"unknown data set {name!r}: {hint}known are {known}, or the path of a picture folder or zip"


def _not_found(name: str) -> str:
    looked = [root / name for root in roots()]
    for place in looked:
        if name == "cifar10":
            cifar.refuse_pickles(place)
    how = {
        "signs": "get it with `minires data signs --download`, or use --data hands, which needs no download",
        "cifar10": f"put {cifar.BINARY}/ (from cifar-10-binary.tar.gz) or zips of picture folders there",
    }[name]
    return f"data set {name!r} not found in {', '.join(map(str, looked))}; {how}"

"""What puts a data set into the user's cache: fetched, counted, copied, and there whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from minires import download
from minires.data.dataset import Splits
from minires.errors import DataError
from minires.files import why

MAX_ARCHIVE_BYTES = 500 * 2**20


def check_counts(splits: Splits, wanted: tuple[int, int, int], *, where: str) -> None:
    """Raise DataError unless the three parts have as many pictures as ``wanted``."""
    got = (len(splits.train), len(splits.val), len(splits.test))
    if got != wanted:
        raise DataError(f"{where}: expected {wanted} pictures to train, validate and test, found {got}")


def fetch_file(name: str, url: str, path: Path, *, timeout: float) -> None:
    """Write what is at ``url`` into ``path``, with a bar; ``name`` is that of the data set.

    Raises: ConfigError for an address that is not http; DataError that says why nothing whole came.
    """
    instead = f"bring the pictures another way and run `minires data {name} --from PATH`"
    with open(path, "wb") as file:
        download.fetch(
            url, file.write, name=name, most=MAX_ARCHIVE_BYTES, what="the archive", instead=instead,
            timeout=timeout,
        )  # fmt: skip


def copy_files(paths: list[Path], target: Path) -> None:
    """Copy files into the folder ``target``."""
    target.mkdir(parents=True, exist_ok=True)
    for path in paths:
        shutil.copyfile(path, target / path.name)


@contextmanager
def staging(target: Path) -> Iterator[Path]:
    """Yield a folder to fill; it becomes ``target`` in one step when the block ends without an error.

    An earlier ``target`` is replaced only then. The folder is made beside it, so that renaming is atomic.
    """
    make_folder(target.parent)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as work:
            staged = Path(work) / "new"
            yield staged
            if target.exists():
                os.replace(target, Path(work) / "old")
            os.replace(staged, target)
    except OSError as error:
        raise _cannot_write(target, error) from error


def make_folder(folder: Path) -> None:
    """Make a folder and those above it. Raises: DataError that names it and the cause."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(folder, error) from error


def _cannot_write(path: Path, error: OSError) -> DataError:
    ways = f"{why(error, state='nothing was changed')}. XDG_CACHE_HOME may name another folder"
    return DataError(f"cannot write {path}: {ways}")

"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from minires.errors import ConfigError, MiniresError

PAGE = (".html", ".htm")  # endings of a page that browsers show


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[IO[Any]]:
    """Yield a binary file that becomes ``path`` only when the block ends without an error.

    The bytes go to a temporary file in the same folder, are flushed to the disk, and replace ``path``
    in one step; a reader sees the old file or the new one, never half of either.

    Raises: MiniresError that names the file and the cause (disk full, folder read-only, ...).
    """
    path = Path(path)
    temporary: str | None = None
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        temporary = None
        _sync_folder(path.parent)
    except OSError as error:
        raise MiniresError(
            f"cannot write {path}: {error.strerror or error}; nothing was changed. "
            "Free some space or choose another folder, then try again"
        ) from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)


def with_ending(option: str, path: str | os.PathLike[str], endings: str | tuple[str, ...], what: str) -> str:
    """The ending of a file to be written, in small letters: programs believe it, so it must fit the content.

    Raises: ConfigError unless it is one of ``endings``.

    >>> with_ending("out", "model.SVG", ".svg", "a drawing")
    '.svg'
    >>> with_ending("out", "model.png", (".svg", ".svgz"), "a drawing")
    Traceback (most recent call last):
    ...
    minires.errors.ConfigError: out is model.png, but a drawing is written as .svg or .svgz
    """
    endings = (endings,) if isinstance(endings, str) else endings
    ending = Path(path).suffix.lower()
    if ending not in endings:
        *first, last = endings
        wanted = f"{', '.join(first)} or {last}" if first else last
        raise ConfigError(f"{option} is {os.fspath(path)}, but {what} is written as {wanted}")
    return ending


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """Make the renaming itself durable (a no-op where folders cannot be opened, as on Windows)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

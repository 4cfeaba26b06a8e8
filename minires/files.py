"""Files that are written whole or not at all, and what the system says when it refuses one, in words."""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from minires.errors import ConfigError, MiniresError

PAGE = (".html", ".htm")  # endings of a page that browsers show

# What to do about an error of the system, by its number. A name that a system does not have is left out.
_WAYS = {
    getattr(errno, name): way
    for names, way in {
        "ENOSPC": "Free some space or choose another folder, then try again",
        "EDQUOT": "Your quota is used up: free some space or choose another folder, then try again",
        "EFBIG": "A file may not be so large here: choose another folder, or raise the limit (ulimit -f)",
        "EROFS": "The disk is mounted read-only; choose another folder, or mount it writable",
        "EACCES EPERM": "You may not write there; change the permissions, or choose another folder",
        "ENAMETOOLONG": "Choose a shorter name",
        "ENOENT": "The folder is not there, or was removed meanwhile",
        "ENOTDIR": "A part of the path is a file, and not a folder",
        "EISDIR": "There is a folder of that name; choose another",
        "EMFILE": "This process has too many files open; raise the limit (ulimit -n), or close some",
        "ENFILE": "The whole machine has too many files open; close some programs, then try again",
        "EIO": "The disk or its connection has a fault; look at it before you go on",
        "ESTALE ENOTCONN ETIMEDOUT EHOSTDOWN": "The network folder is not reachable; connect it again",
        "ETXTBSY EBUSY": "Another program uses it; close that, then try again",
        "ELOOP": "Its links lead in a circle",
        "EINVAL EILSEQ": "This disk cannot hold a file of that name; choose another",
    }.items()
    for name in names.split()
    if hasattr(errno, name)
}


def why(error: OSError, *, state: str = "") -> str:
    """What the system says, how things stand now (``state``), and what to do.

    >>> import errno, os
    >>> why(OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG)), state="nothing was changed")
    'File name too long; nothing was changed. Choose a shorter name'
    """
    said = error.strerror or str(error) or type(error).__name__
    way = _WAYS.get(error.errno or 0)
    return said + (f"; {state}" if state else "") + (f". {way}" if way else "")


_watched: dict[Path, Callable[[], None]] = {}  # by the full path of a folder


def watch(folder: Path, check: Callable[[], None]) -> None:
    """Call ``check``, which may raise, before anything is written in a folder: see ``minires.train.lock``."""
    _watched[folder] = check


def unwatch(folder: Path) -> None:
    _watched.pop(folder, None)


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[IO[Any]]:
    """Yield a binary file that becomes ``path`` only when the block ends without an error.

    The bytes go to a temporary file in the same folder, are flushed to the disk, and replace ``path``
    in one step; a reader sees the old file or the new one, never half of either. A process that is killed
    leaves the temporary file: see :func:`remove_leftovers`.

    Raises: MiniresError that names the file and the cause (disk full, folder read-only, ...).
    """
    path = Path(path)
    temporary: str | None = None
    if check := _watched.get(path.parent):
        check()
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        if check:
            check()
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise MiniresError(f"cannot write {path}: {why(error, state='nothing was changed')}") from error
    finally:
        if temporary is not None:
            _unlink(temporary)
    _sync_folder(path.parent)


def remove_leftovers(folder: str | os.PathLike[str], *names: str) -> None:
    """Remove the temporary files of writes of ``names`` (patterns) in ``folder`` that were killed.

    Only for who knows that nobody else writes these files now.
    """
    for name in names:
        for path in Path(folder).glob(f".{name}.*.tmp"):
            if re.fullmatch(r".*\.[a-z0-9_]{8}\.tmp", path.name):  # as tempfile names them
                _unlink(path)


def _unlink(path: str | os.PathLike[str]) -> None:
    try:
        os.unlink(path)
    except OSError:  # a folder that can no longer be written to; the file is of no use, and does no harm
        pass


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
    name = Path(path).name.lower()
    ending = next((one for one in endings if name.endswith(one) and name != one), None)
    if ending is None:
        *first, last = endings
        wanted = f"{', '.join(first)} or {last}" if first else last
        raise ConfigError(f"{option} is {os.fspath(path)}, but {what} is written as {wanted}")
    return ending


def same_file(one: str | os.PathLike[str], other: str | os.PathLike[str]) -> bool:
    """Whether two paths lead to one file or folder that is there, through links, too."""
    try:
        return os.path.samefile(one, other)
    except (OSError, ValueError):
        return False


def check_name(path: str | os.PathLike[str], error: type[MiniresError]) -> None:
    """Check that there can be a file of such a name.

    Raises: ``error`` if it is too long.
    """
    try:
        os.lstat(path)
    except ValueError:  # a null byte in it: there is no such file
        return
    except OSError as cause:
        if cause.errno == errno.ENAMETOOLONG:
            raise error(f"{os.fspath(path)}: {why(cause)}") from cause


def not_over(
    option: str, path: str | os.PathLike[str], read: Iterable[str | os.PathLike[str]], what: str
) -> None:
    """Check that a file to be written takes the place of none that is ``read``, which is ``what`` in words.

    Raises: ConfigError if it does, or leads to one through a link.
    """
    if any(same_file(path, one) for one in read):
        raise ConfigError(f"{os.fspath(path)} is {what}: {option} must be another file")


def not_there(option: str, path: str | os.PathLike[str]) -> None:
    """Check that nothing stands yet where a model is to be written, which nobody can make again.

    Raises: ConfigError if something does.
    """
    if os.path.lexists(path):
        raise ConfigError(f"{os.fspath(path)} is there already; choose another {option}")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """Make the renaming itself durable, where folders can be opened and flushed."""
    if os.name != "posix":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # no permission to list it, for example: the file is there all the same
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)

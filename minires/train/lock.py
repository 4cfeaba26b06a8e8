"""One run folder, one process: the lock that a run holds from the moment its folder is chosen to its end.

It is the system's own lock on the file ``.lock`` in the folder (``flock``; on Windows ``msvcrt``), which goes
when its process goes, however that ended: an old file locks nothing. In it stands who holds it. On a network
disk that knows no such locks the file alone is looked at: a living process of this machine holds it, and one
of another machine, which nobody here can ask after, does not.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import time
import weakref
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from minires.errors import ConfigError, MiniresError
from minires.files import why

NAME = ".lock"
_FAR = 1 << 30  # a byte behind all that stands in the file: what Windows locks, others cannot read
_TAKEN = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK}
_TRIES, _PAUSE = 8, 0.01  # somebody may only have looked whether it is held, or be letting it go
_own: weakref.WeakValueDictionary[Path, Lock] = weakref.WeakValueDictionary()  # those of this process


class Held(MiniresError):
    """Somebody trains in the folder now."""


class Lock:
    """Holds the run folder ``out``, which is made if it is not there and ``make`` is set; of several folders
    the first that is not there yet.

    A lock of this process that is not ``busy``, that of a Trainer that does not run, is taken over.

    Raises: Held if somebody trains there, with who and since when; ConfigError if it is a file; MiniresError
    if the folder cannot be made or written to.
    """

    def __init__(self, out: str | os.PathLike[str] | Iterable[Path], *, make: bool = True) -> None:
        self.busy = False
        self.made: list[Path] = []  # the folders that were not there before, the innermost last
        self._let_go: weakref.finalize[..., Lock] | None = None
        if not isinstance(out, str | os.PathLike | Iterable):
            raise ConfigError(f"the run folder must be a path, not {out!r}")
        if not isinstance(out, str | os.PathLike):
            out = next(path for path in out if self._make(path))
        elif make:
            self._make(Path(out))
        self.folder = Path(out)
        try:
            self._take(self.folder.resolve())
        except BaseException:
            self.remove_folder()
            raise

    @property
    def held(self) -> bool:
        """Whether this is still the lock: another one of this process may have taken the folder over."""
        return self._let_go is not None and self._let_go.alive

    def release(self) -> None:
        """Let the folder go; the file of the lock is removed."""
        if self._let_go is not None:
            self._let_go()

    def remove_folder(self) -> None:
        """Let the folder go, and remove it with all that was made for it, as far as it is empty."""
        self.release()
        while self.made:
            with suppress(OSError):  # somebody has put something into it
                self.made.pop().rmdir()

    def _make(self, path: Path) -> bool:
        """Make a folder, and those above it; whether it was not there before."""
        if path.exists() and not path.is_dir():
            raise ConfigError(f"{path} is a file; choose a folder for the run")
        try:
            for one in reversed([path, *path.parents]):
                with suppress(FileExistsError):
                    if not one.is_dir():
                        one.mkdir()
                        self.made.append(one)
        except OSError as error:
            self.remove_folder()
            raise MiniresError(f"cannot make the folder {path}: {why(error)}") from error
        return path in self.made

    def _take(self, key: Path) -> None:
        own, path = _own.get(key), self.folder / NAME
        if own is not None and own.held and not own.busy:
            own.release()
        for attempt in range(_TRIES):
            time.sleep(_PAUSE * attempt)
            try:
                file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            except OSError as error:
                raise MiniresError(f"cannot write {path}: {why(error)}") from error
            try:
                if _locked(file) and _is_at(file, path):
                    break
            except BaseException:
                os.close(file)
                raise
            os.close(file)
        else:
            raise Held(f"{self.folder} is being trained by {_who(path)}; wait for its end, or stop it first")
        with suppress(OSError):  # on a full disk nobody knows who holds it, but it is held
            os.ftruncate(file, 0)
            os.write(file, json.dumps([os.getpid(), socket.gethostname(), time.strftime(_TIME)]).encode())
        self._let_go = weakref.finalize(self, _let_go, file, path, os.getpid())
        _own[key] = self


_TIME = "%Y-%m-%d %H:%M:%S"


def holder(folder: str | os.PathLike[str]) -> str | None:
    """Who trains in a folder now, in words; None if nobody does."""
    path = Path(folder) / NAME
    try:
        file = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    except OSError:
        return None
    try:
        return None if _locked(file) else _who(path)
    finally:
        os.close(file)


def _let_go(file: int, path: Path, pid: int) -> None:
    if pid == os.getpid():  # a forked child holds a copy of what is its parent's
        with suppress(OSError):
            if os.name == "posix" and _is_at(file, path):
                path.unlink()
    os.close(file)
    if os.name != "posix":  # there a file that is open cannot be removed
        with suppress(OSError):
            path.unlink()


def _locked(file: int) -> bool:
    """Lock an open file; False if somebody else has locked it."""
    try:
        if os.name == "posix":
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            import msvcrt

            os.lseek(file, _FAR, os.SEEK_SET)
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
            os.lseek(file, 0, os.SEEK_SET)
        return True
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        pid, host, _ = _written(file)  # a disk without locks
        return not (host == socket.gethostname() and pid != os.getpid() and _lives(pid))


def _is_at(file: int, path: Path) -> bool:
    """Whether an open file is the one at ``path``: who let the lock go has removed it."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


def _who(path: Path) -> str:
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        return "another process"
    try:
        pid, host, since = _written(file)
    finally:
        os.close(file)
    if not pid:
        return "another process"
    return f"this process, since {since}" if pid == os.getpid() else f"process {pid} on {host}, since {since}"


def _written(file: int) -> tuple[int, str, str]:
    """What stands in the file of a lock: process, machine and time; 0 for no process."""
    try:
        os.lseek(file, 0, os.SEEK_SET)
        pid, host, since = json.loads(os.read(file, 1000))
        return int(pid), str(host), str(since)
    except (OSError, ValueError, TypeError, RecursionError):
        return 0, "", ""


def _lives(pid: int) -> bool:
    if os.name != "posix":
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it is another user's
        return True
    return pid > 0

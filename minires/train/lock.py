"""One run folder, one process: the lock that a run holds from the moment its folder is chosen to its end.

It is the system's own lock on the file ``.lock`` in the folder (``flock``; on Windows ``msvcrt``), which goes
when its process goes, however that ended: an old file locks nothing. In it stands who holds it. A folder that
is moved away takes its lock along, and what is made in its place is another folder: before each file that is
written in a folder it is looked whether that is still the one that is held (``files.watch``). On a network
that knows no such locks the file alone is looked at: a living process of this machine holds it, and one of
another machine, which nobody here can ask after, does not.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
import time
import weakref
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path

from minires.errors import ConfigError, MiniresError
from minires.files import unwatch, watch, why

NAME = ".lock"
_FAR = 1 << 30  # a byte behind all that stands in the file: what Windows locks, others cannot read
_TAKEN = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK}
_TRIES, _PAUSE = 8, 0.01  # somebody may only have looked whether it is held, or be letting it go
_own: weakref.WeakValueDictionary[Path, Lock] = weakref.WeakValueDictionary()  # those of this process


class Held(MiniresError):
    """Somebody trains in the folder now."""


class Lost(MiniresError):
    """The folder is no more where it was when its lock was taken."""


class Lock:
    """Holds the run folder ``out``, which is made if it is not there and ``make`` is set; of several folders
    the first that is not there yet.

    A lock of this process that is not ``busy``, that of a Trainer that does not run, is taken over, and goes
    back to it unless :meth:`keep` is called. ``given`` is the folder as it was named, ``folder`` its full
    path, for a process may go elsewhere.

    Raises: Held if somebody trains there, with who and since when; ConfigError if it is a file; MiniresError
    if the folder cannot be made or written to.
    """

    def __init__(self, out: str | os.PathLike[str] | Iterable[Path], *, make: bool = True) -> None:
        self.busy = False
        self.made: list[Path] = []  # the folders that were not there before, the innermost last
        self._let_go: weakref.finalize[..., Lock] | None = None
        self._before: Lock | None = None  # whose lock it was, while it may go back
        if not isinstance(out, str | os.PathLike | Iterable):
            raise ConfigError(f"the run folder must be a path, not {out!r}")
        if not isinstance(out, str | os.PathLike):
            out = next(path for path in out if self._make(path))
        elif make:
            self._make(Path(out))
        self.given = Path(out)
        try:
            self.folder = self.given.absolute()
            self._key = self.folder.resolve()
        except OSError as error:
            raise MiniresError(f"cannot find the folder {self.given}: {why(error)}") from error
        try:
            own = _own.get(self._key)
            if own is not None and own.held and not own.busy:
                self._before = own
                self._hold(*own._give())
            else:
                self._take()
        except BaseException:
            self.remove_folder()
            raise

    @property
    def held(self) -> bool:
        """Whether this is still the lock: another one of this process may have taken the folder over, and a
        forked process has none of its parent's."""
        return self._let_go is not None and self._let_go.alive

    @property
    def lost(self) -> bool:
        """Whether this is the lock of a folder that is no more at its place."""
        return self.held and bool(_lost(*self._let_go.peek()[2]))  # type: ignore[union-attr, index]

    def keep(self) -> None:
        """What was taken over does not go back."""
        self._before = None

    def again(self) -> None:
        """Hold the folder again, after it was let go.

        Raises: Held if another one holds it now; MiniresError if it cannot be written to.
        """
        if not self.held:
            self._take()

    def release(self) -> None:
        """Let the folder go; the file of the lock is removed. What was taken over and not kept goes back."""
        if not self.held:
            return
        if self._before is not None:
            self._before._hold(*self._give())
            self._before = None
        elif self._let_go is not None:
            self._let_go()

    def remove_folder(self) -> None:
        """Let the folder go, and remove it with all that was made for it, as far as it is empty."""
        if self.lost:
            self.made.clear()  # what stands there now is another's
        self.release()
        while self.made:
            with suppress(OSError):  # somebody has put something into it
                self.made.pop().rmdir()

    def _make(self, path: Path) -> bool:
        """Make a folder, and those above it; whether it was not there before."""
        try:
            if path.exists() and not path.is_dir():
                raise ConfigError(f"{path} is a file; choose a folder for the run")
            full = path.absolute()
            for one in reversed([full, *full.parents]):
                if one.is_symlink() and not one.exists():
                    raise ConfigError(
                        f"{path}: {one} is a link to {os.readlink(one)}, which is not there; make "
                        "that folder, or remove the link"
                    )
                with suppress(FileExistsError):
                    if not one.is_dir():
                        one.mkdir()
                        self.made.append(one)
        except ConfigError:
            self.remove_folder()
            raise
        except OSError as error:
            self.remove_folder()
            raise MiniresError(f"cannot make the folder {path}: {why(error)}") from error
        return full in self.made

    def _take(self) -> None:
        path = self.folder / NAME
        for attempt in range(_TRIES):
            time.sleep(_PAUSE * attempt)
            try:
                file = _opened(path, os.O_RDWR | os.O_CREAT)
            except OSError as error:
                raise MiniresError(f"cannot write {path}: {why(error)}") from error
            if file is None:
                raise MiniresError(
                    f"{path}, the file of the lock of a run, is a link, a folder or a device here, or has "
                    "another name as well, and nothing was changed; remove it, or choose another folder"
                )
            try:
                if _locked(file) and _is_at(file, path):
                    if not _is_ours(file):
                        raise MiniresError(
                            f"{path}, the file of the lock of a run, was written by something else here, "
                            "and nothing was changed; move it away, or choose another folder"
                        )
                    break
            except BaseException:
                os.close(file)
                raise
            os.close(file)
        else:
            raise Held(f"{self.given} is being trained by {_who(path)}; wait for its end, or stop it first")
        with suppress(OSError):  # on a full disk nobody knows who holds it, but it is held
            os.lseek(file, 0, os.SEEK_SET)
            os.ftruncate(file, 0)
            who = json.dumps([os.getpid(), socket.gethostname(), time.strftime(_TIME)]).encode()
            if os.write(file, who) < len(who):
                os.ftruncate(file, 0)
        self._hold(file, _folder(self.folder))

    def _hold(self, file: int, folder: int) -> None:
        held = file, folder, self.folder / NAME
        self._let_go = weakref.finalize(self, _let_go, *held)
        watch(self.folder, partial(_check, *held))
        _own[self._key] = self

    def _give(self) -> tuple[int, int]:
        """What is held, the open file and its folder; it is no more ours."""
        assert self._let_go is not None
        unwatch(self.folder)
        found = self._let_go.detach()
        assert found is not None
        file, folder, _ = found[2]
        return file, folder


_TIME = "%Y-%m-%d %H:%M:%S"
_LONGEST = 1000  # bytes of the file


def holder(folder: str | os.PathLike[str]) -> str | None:
    """Who trains in a folder now, in words; None if nobody does."""
    path = Path(folder) / NAME
    try:
        file = _opened(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    except OSError:
        return None
    if file is None:
        return None
    try:
        return None if _locked(file) else _who(path)
    finally:
        os.close(file)


def is_idle(folder: str | os.PathLike[str]) -> bool:
    """Whether a Trainer of this process that does not run holds a folder."""
    try:
        own = _own.get(Path(folder).resolve())
    except OSError:
        return False
    return own is not None and own.held and not own.busy


def _opened(path: Path, flags: int) -> int | None:
    """Open the file of a lock; None for a link, a pipe or whatever else is no file of that one name.

    Raises: OSError of all that cannot be opened.
    """
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
    try:
        file = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK, errno.EISDIR, errno.ENXIO):
            return None
        raise
    status = os.fstat(file)
    if stat.S_ISREG(status.st_mode) and status.st_nlink <= 1:  # 0: somebody has just removed it
        return file
    os.close(file)
    return None


def _folder(path: Path) -> int:
    """The folder, open, so that no other gets its number; -1 where that cannot be."""
    try:
        return os.open(path, getattr(os, "O_PATH", 0) | os.O_DIRECTORY) if os.name == "posix" else -1
    except OSError:
        return -1


def _lost(file: int, folder: int, path: Path) -> str:
    """What has become of a folder that is held, in words; nothing if it is at its place."""
    try:
        there = os.stat(path.parent)
        same = folder < 0 or os.path.samestat(os.fstat(folder), there)
        if same and (_is_at(file, path) or (folder >= 0 and not os.path.lexists(path))):
            return ""
    except (FileNotFoundError, NotADirectoryError):
        return "it was moved or removed"
    except OSError:  # the write itself will say it
        return ""
    return "another one stands in its place" if not same else "another run has begun in it"


def _check(file: int, folder: int, path: Path) -> None:
    """Raises: Lost if the folder that is held is no more at its place."""
    if what := _lost(file, folder, path):
        raise Lost(
            f"{path.parent} is no more the folder in which this run began: {what}. The run is stopped, and "
            "nothing more is written there. If it was moved, go on with it where it is now: minires train "
            "--resume FOLDER"
        )


def _let_go(file: int, folder: int, path: Path) -> None:
    unwatch(path.parent)
    with suppress(OSError):
        if os.name == "posix" and _is_at(file, path):
            path.unlink()
    os.close(file)
    if folder >= 0:
        os.close(folder)
    if os.name != "posix":  # there a file that is open cannot be removed
        with suppress(OSError):
            path.unlink()


def _leave_to_the_parent() -> None:
    """In a forked process: what is locked is its parent's. The copies of the open files would hold the locks
    beyond its end."""
    for own in list(_own.values()):
        if own.held:
            file, folder = own._give()
            os.close(file)
            if folder >= 0:
                os.close(folder)
    _own.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_the_parent)


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
        file = _opened(path, os.O_RDONLY)
    except OSError:
        file = None
    if file is None:
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
        pid, host, since = json.loads(os.read(file, _LONGEST))
        if type(pid) is int and isinstance(host, str) and isinstance(since, str):
            return pid, host, since
    except (OSError, ValueError, TypeError, RecursionError):
        pass
    return 0, "", ""


def _is_ours(file: int) -> bool:
    """Whether an open file is the lock of a run, and no file of the user's that happens to have its name.

    One that is empty, or all zeros, is what a full disk or a power failure leaves of ours.
    """
    os.lseek(file, 0, os.SEEK_SET)
    content = os.read(file, _LONGEST)
    return os.fstat(file).st_size <= _LONGEST and (not content.strip(b"\0") or _written(file)[0] > 0)


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

"""Files of others, read under limits: what they may unfold to, how long reading may take.

A few bytes can claim gigabytes (a compressed file, an array of which nothing is stored), and libraries in C
can loop for ever or crash over a damaged file. So there is one measure of how much a file may unfold to, and
:func:`apart`, which has a function read a file in a process of its own:

    time      ten seconds, and one more for every ten million bytes of the file
    memory    twice what the file may unfold to, beside the program itself (on Linux; elsewhere what the
              reader itself checks)
    crashes   end that process, and become an error with the file's name
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from minires.errors import MiniresError

Arrays = dict[str, np.ndarray]
Reader = Callable[..., tuple[Mapping[str, np.ndarray], Any]]

UNFOLDED, TIMES = 128 * 2**20, 8  # bytes that any file may unfold to, and as many times its own size
SECONDS, BYTES_PER_SECOND = 10.0, 10_000_000
START = 60.0  # seconds until the other process has imported what it needs
LONGEST_HEAD = 64 * 2**20  # bytes of the list of arrays
MOST_AXES = 32
PLAIN = "biuf"  # kinds of arrays that are numbers and nothing else


def unfolded(size: int) -> int:
    """How many bytes the content of a file of ``size`` bytes may take in memory.

    >>> f"{unfolded(1_000_000):,}"
    '142,217,728'
    """
    return UNFOLDED + TIMES * size


def regular_file(path: str | os.PathLike[str], error: type[MiniresError] = MiniresError) -> int:
    """The size of a file in bytes. Nothing is opened: a pipe would never answer, a device never end.

    Raises: ``error``, which says what is at ``path`` if it is no regular file.
    """
    try:
        found = os.stat(path)
    except (OSError, ValueError) as cause:  # ValueError: a null byte in the path
        missing = isinstance(cause, FileNotFoundError)
        reason = "no such file" if missing else f"cannot be read: {getattr(cause, 'strerror', cause)}"
        raise error(f"{os.fspath(path)}: {reason}") from cause
    if stat.S_ISREG(found.st_mode):
        return found.st_size
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    kind = kinds.get(stat.S_IFMT(found.st_mode), "a device")
    raise error(f"{os.fspath(path)}: this is {kind}, not a file")


class _Unbelievable(Exception):
    """The other process gives what no reader gives."""


def apart(
    read: Reader,
    path: str | os.PathLike[str],
    *arguments: Any,
    imports: Sequence[str] = (),
    error: type[MiniresError] = MiniresError,
) -> tuple[Arrays, Any]:
    """What ``read(path, *arguments)`` returns, arrays by name and anything that JSON can hold, read in a
    process of its own under the limits above.

    ``read`` is a function of a module, so that the other process can import it. The modules of ``imports``,
    which it imports itself, are imported there before its memory is limited. Arguments are what JSON can
    hold. A MiniresError that it raises is raised here.

    Raises: ``error`` if the file is none, if the limits are not enough, or if the reading crashes.
    """
    size = regular_file(path, error)
    seconds = SECONDS + size / BYTES_PER_SECOND
    memory = 2 * unfolded(size)
    order = {
        "read": [read.__module__, read.__qualname__], "arguments": [os.fspath(path), *arguments],
        "seconds": seconds, "memory": memory,
    }  # fmt: skip
    child = process(answer, order, imports=[read.__module__, *imports], memory=memory, error=error)
    try:
        with ended_after(child, seconds) as late:
            return _receive(piped(child.stdout), error, most=memory)
    except EOFError as cause:
        child.wait()
        if late.is_set():
            reason = f"reading it takes more than {seconds:.0f} seconds, and was stopped"
        else:
            reason = f"the library that reads it gave up (status {child.returncode})"
        raise error(f"{os.fspath(path)} is damaged: {reason}") from cause
    except _Unbelievable as cause:
        raise error(f"{os.fspath(path)} is damaged: it unfolds to {cause}") from cause
    finally:
        finish(child)


def answer(order: Mapping[str, Any], source: IO[bytes], out: IO[bytes]) -> None:
    """The work of the other process: read, and write the arrays to ``out``."""
    module, function = order["read"]
    read = getattr(importlib.import_module(module), function)
    alarm(2 * order["seconds"])
    try:
        arrays, info = read(*order["arguments"])
    except MiniresError as failed:
        _send(out, {}, None, [type(failed).__name__, failed.message])
    except MemoryError:
        limit = f"{order['memory'] / 2**20:,.0f} MB"
        _send(out, {}, None, ["", f"{order['arguments'][0]}: reading it takes more than {limit} of memory"])
    else:
        _send(out, arrays, info, None)


# ------------------------------------------------------------------------------------ processes of their own

# The other process looks for modules where this one does, and not in the folder that it happens to be in.
_PROGRAM = """
import json, sys
order = json.loads(sys.stdin.buffer.readline())
sys.path[:] = order.pop("path")
from minires.limits import begin
begin(order)
"""


def process(
    work: Callable[[Any, IO[bytes], IO[bytes]], None],
    order: Any,
    *,
    imports: Sequence[str] = (),
    memory: int,
    error: type[MiniresError] = MiniresError,
) -> subprocess.Popen[bytes]:
    """A process in which ``work(order, source, out)`` runs, once its module and those that it ``imports`` are
    imported there: ``source`` and ``out`` are the other ends of its two pipes, ``order`` is what JSON can
    hold. It may take ``memory`` bytes more than its imports (where the system can be asked to see to it), and
    Ctrl-C in the terminal is not for it. :func:`finish` ends it.

    Raises: ``error`` if it does not begin.
    """
    group: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        group = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    child = subprocess.Popen(
        [sys.executable, "-P", "-c", _PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, env={**os.environ, "OPENBLAS_NUM_THREADS": "1"}, **group,
    )  # fmt: skip
    what = {
        "path": sys.path, "work": [work.__module__, work.__qualname__], "imports": list(imports),
        "order": order, "memory": memory,
    }  # fmt: skip
    ready = b""
    try:
        with ended_after(child, START):
            with contextlib.suppress(BrokenPipeError):  # it has ended: what it said before is there
                piped(child.stdin).write(json.dumps(what).encode() + b"\n")
                piped(child.stdin).flush()
            ready = piped(child.stdout).read(1)
    finally:
        if not ready:
            finish(child)
    if not ready:
        raise error(f"the process that reads files of others does not start (status {child.returncode})")
    return child


@contextlib.contextmanager
def ended_after(child: subprocess.Popen[bytes], seconds: float) -> Iterator[threading.Event]:
    """End a process if this block takes longer; the event that is given says that it did."""
    late = threading.Event()

    def end() -> None:
        late.set()
        child.kill()

    watch = threading.Timer(seconds, end)
    watch.start()
    try:
        yield late
    finally:
        watch.cancel()


def finish(child: subprocess.Popen[bytes]) -> None:
    """End a process of :func:`process`, in the middle of its work if need be."""
    child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        with contextlib.suppress(OSError):  # what was not sent before the end
            piped(pipe).close()


def piped(pipe: IO[bytes] | None) -> IO[bytes]:
    """The pipe to or from a process that was begun with pipes."""
    assert pipe is not None
    return pipe


def begin(order: Mapping[str, Any]) -> None:
    """What the other process does: see :func:`process`."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever else is printed
    module, function = order["work"]
    work = getattr(importlib.import_module(module), function)
    for needed in order["imports"]:
        importlib.import_module(needed)
    out.write(b".")
    out.flush()
    _limit_memory(order["memory"])
    work(order["order"], sys.stdin.buffer, out)


def alarm(seconds: float) -> None:
    """End this process after so many seconds, 0 for never: who asked may not be there any more to do it."""
    if sys.platform != "win32":
        signal.setitimer(signal.ITIMER_REAL, seconds)


def _limit_memory(growth: int) -> None:
    """Let this process take ``growth`` bytes more than now, where the system can be asked to see to it."""
    if not sys.platform.startswith("linux"):
        return
    import resource

    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    wanted = now + growth
    resource.setrlimit(resource.RLIMIT_AS, (wanted if most == -1 else min(wanted, most), most))


def exactly(source: IO[bytes], count: int) -> bytes:
    """So many bytes. Raises: EOFError if they end before."""
    content = source.read(count)
    if len(content) < count:
        raise EOFError
    return content


# ------------------------------------------------------------------------------------------ what is sent


def _send(out: IO[bytes], arrays: Mapping[str, np.ndarray], info: Any, failed: list[str] | None) -> None:
    listed = [[name, array.dtype.str, array.shape] for name, array in arrays.items()]
    head = json.dumps({"arrays": listed, "info": info, "failed": failed}).encode()
    out.write(len(head).to_bytes(8, "little") + head)
    for array in arrays.values():
        out.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    out.close()


def _receive(source: IO[bytes], error: type[MiniresError], *, most: int) -> tuple[Arrays, Any]:
    """What :func:`_send` wrote. A file may have taken over the process that wrote it: nothing is believed."""
    length = int.from_bytes(exactly(source, 8), "little")
    if length > LONGEST_HEAD:
        raise _Unbelievable(f"{length:,} bytes of names")
    failed, listed, info = _head(exactly(source, length))
    if failed:
        kind, message = failed
        raise {known.__name__: known for known in MiniresError.__subclasses__()}.get(kind, error)(message)
    arrays: Arrays = {}
    for name, dtype, shape in listed:
        needed = dtype.itemsize * math.prod(shape)
        most -= needed
        if dtype.kind not in PLAIN or most < 0:
            raise _Unbelievable(f"{list(shape)} of {dtype}, which is no number or too much")
        arrays[name] = array = np.empty(shape, dtype)
        if source.readinto(array.reshape(-1).view(np.uint8)) != needed:  # type: ignore[attr-defined]
            raise EOFError
    return arrays, info


Listed = list[tuple[str, np.dtype[Any], tuple[int, ...]]]


def _head(content: bytes) -> tuple[tuple[str, str] | None, Listed, Any]:
    """What failed or is listed in the head of :func:`_send`, of the types that it must have."""
    try:
        head = json.loads(content)
        failed = None
        if head["failed"]:
            kind, message = head["failed"]
            failed = str(kind), str(message)
        listed: Listed = []
        for name, kind, shape in head["arrays"]:
            if not isinstance(name, str) or not isinstance(kind, str) or len(shape) > MOST_AXES:
                raise ValueError(f"an array {name!r} of {kind!r}")
            if not all(type(n) is int and 0 <= n <= sys.maxsize for n in shape):
                raise ValueError(f"the shape {shape}")
            if 0 in shape and math.prod(n for n in shape if n) > sys.maxsize // 16:
                raise ValueError(f"the shape {shape}")
            listed.append((name, np.dtype(kind), tuple(shape)))
        return failed, listed, head["info"]
    except (ValueError, LookupError, TypeError, AttributeError, SyntaxError, RecursionError) as cause:
        raise _Unbelievable(f"what no reader gives ({cause})") from cause

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

import importlib
import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
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
    read: Reader, path: str | os.PathLike[str], *arguments: Any, error: type[MiniresError] = MiniresError
) -> tuple[Arrays, Any]:
    """What ``read(path, *arguments)`` returns, arrays by name and anything that JSON can hold, read in a
    process of its own under the limits above.

    ``read`` is a function of a module, so that the other process can import it; arguments are what JSON can
    hold. A MiniresError that it raises is raised here.

    Raises: ``error`` if the file is none, if the limits are not enough, or if the reading crashes.
    """
    size = regular_file(path, error)
    seconds = SECONDS + size / BYTES_PER_SECOND
    order = {
        "path": sys.path, "module": read.__module__, "function": read.__qualname__,
        "arguments": [os.fspath(path), *arguments], "memory": 2 * unfolded(size),
    }  # fmt: skip
    with subprocess.Popen(
        [sys.executable, "-P", "-c", _PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    ) as child:  # fmt: skip
        assert child.stdin is not None and child.stdout is not None
        late = threading.Event()

        def end() -> None:
            late.set()
            child.kill()

        watch = threading.Timer(START, end)
        try:
            watch.start()
            child.stdin.write(json.dumps(order).encode())
            child.stdin.close()
            child.stdout.read(1)  # it has imported everything
            watch.cancel()
            watch = threading.Timer(seconds, end)
            watch.start()
            return _receive(child.stdout, error, most=2 * unfolded(size))
        except (BrokenPipeError, EOFError) as cause:
            child.wait()
            if late.is_set():
                reason = f"reading it takes more than {seconds:.0f} seconds, and was stopped"
            else:
                reason = f"the library that reads it gave up (status {child.returncode})"
            raise error(f"{os.fspath(path)} is damaged: {reason}") from cause
        except _Unbelievable as cause:
            raise error(f"{os.fspath(path)} is damaged: it unfolds to {cause}") from cause
        finally:
            watch.cancel()
            child.kill()


# The other process looks for modules where this one does, and not in the folder that it happens to be in.
_PROGRAM = """
import json, sys
order = json.loads(sys.stdin.buffer.read())
sys.path[:] = order["path"]
from minires.limits import answer
answer(order)
"""


def answer(order: Mapping[str, Any]) -> None:
    """The work of the other process: read, and write the arrays to the standard output."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever else is printed
    read = getattr(importlib.import_module(order["module"]), order["function"])
    out.write(b".")
    out.flush()
    _limit_memory(order["memory"])
    try:
        arrays, info = read(*order["arguments"])
    except MiniresError as failed:
        _send(out, {}, None, [type(failed).__name__, failed.message])
    except MemoryError:
        limit = f"{order['memory'] / 2**20:,.0f} MB"
        _send(out, {}, None, ["", f"{order['arguments'][0]}: reading it takes more than {limit} of memory"])
    else:
        _send(out, arrays, info, None)


def _limit_memory(growth: int) -> None:
    """Let this process take ``growth`` bytes more than now, where the system can be asked to see to it."""
    if not sys.platform.startswith("linux"):
        return
    import resource

    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    wanted = now + growth
    resource.setrlimit(resource.RLIMIT_AS, (wanted if most == -1 else min(wanted, most), most))


def _send(out: IO[bytes], arrays: Mapping[str, np.ndarray], info: Any, failed: list[str] | None) -> None:
    listed = [[name, array.dtype.str, array.shape] for name, array in arrays.items()]
    head = json.dumps({"arrays": listed, "info": info, "failed": failed}).encode()
    out.write(len(head).to_bytes(8, "little") + head)
    for array in arrays.values():
        out.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    out.close()


def _receive(source: IO[bytes], error: type[MiniresError], *, most: int) -> tuple[Arrays, Any]:
    """What :func:`_send` wrote. A file may have taken over the process that wrote it: nothing is believed."""
    length = int.from_bytes(_exactly(source, 8), "little")
    if length > LONGEST_HEAD:
        raise _Unbelievable(f"{length:,} bytes of names")
    head = json.loads(_exactly(source, length))
    if head["failed"]:
        kind, message = head["failed"]
        raise {known.__name__: known for known in MiniresError.__subclasses__()}.get(kind, error)(message)
    arrays: Arrays = {}
    for name, kind, shape in head["arrays"]:
        dtype = np.dtype(kind)
        needed = dtype.itemsize * int(np.prod(shape, dtype=object))
        most -= needed
        if dtype.kind not in PLAIN or most < 0:
            raise _Unbelievable(f"{shape} of {dtype}, which is no number or too much")
        arrays[name] = array = np.empty(shape, dtype)
        if source.readinto(array.reshape(-1).view(np.uint8)) != needed:  # type: ignore[attr-defined]
            raise EOFError
    return arrays, head["info"]


def _exactly(source: IO[bytes], count: int) -> bytes:
    content = source.read(count)
    if len(content) < count:
        raise EOFError
    return content

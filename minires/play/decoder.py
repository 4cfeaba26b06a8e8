"""Pictures of others, decoded in processes of their own, so that the page outlives whatever is in them.

A picture file can be made so that decoding it takes hours, or that the library in C crashes. A process is
ended after ten seconds with one picture, and the next picture gets a new one; it may take three gigabytes of
memory (where the system can be asked to see to it). It lives on from picture to picture, because its start
takes half a second.
"""

from __future__ import annotations

import queue
import struct
import subprocess
import threading
from typing import IO

import numpy as np
from numpy.typing import NDArray

from minires import limits
from minires.data import decode
from minires.errors import DataError

SECONDS = 10.0  # for one picture
MEMORY = 3 * 2**30  # bytes
_ASKED = struct.Struct("<IIQ")  # the side, and the lengths of the name and of the file
_TOLD = struct.Struct("<?Q")  # whether it was decoded, and the length of the pixels or of the message


class Decoder:
    """Decodes ``count`` pictures at a time, for as many threads as ask; who asks beyond waits."""

    def __init__(self, count: int) -> None:
        self._all = [_Apart() for _ in range(count)]
        self._free: queue.LifoQueue[_Apart] = queue.LifoQueue()
        for one in self._all:
            self._free.put(one)

    def decode(self, source: bytes, *, name: str, size: int) -> NDArray[np.uint8]:
        """The picture as :func:`minires.data.decode` gives it.

        Shapes: (size, size, 3).
        Raises: DataError as that function does, and if it takes too long or crashes.
        """
        one = self._free.get()
        try:
            return one.decode(source, name=name, size=size)
        finally:
            self._free.put(one)

    def close(self) -> None:
        """End the processes, in the middle of a picture if need be."""
        for one in self._all:
            one.close()


class _Apart:
    """A process that decodes, and is started when it is needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False

    def decode(self, source: bytes, *, name: str, size: int) -> NDArray[np.uint8]:
        with self._lock:
            if self._closed:
                raise DataError(f"{name}: the page has ended")
            if self._process is not None and self._process.poll() is not None:
                self._end()  # it has died between two pictures
            process = self._process = self._process or limits.process(
                work, None, memory=MEMORY, error=DataError
            )
            if self._closed:  # meanwhile
                process.kill()
            assert process.stdin is not None and process.stdout is not None
            try:
                with limits.ended_after(process, SECONDS) as late:
                    text = name.encode("utf-8", "surrogatepass")
                    process.stdin.write(_ASKED.pack(size, len(text), len(source)) + text)
                    process.stdin.write(source)
                    process.stdin.flush()
                    good, length = _TOLD.unpack(limits.exactly(process.stdout, _TOLD.size))
                    if (length != 3 * size * size) if good else (length > 65_536):
                        raise EOFError("it sends what no decoder sends")
                    content = limits.exactly(process.stdout, length)
            except (OSError, EOFError) as error:
                self._end()
                if late.is_set():
                    reason = f"decoding it takes more than {SECONDS:g} seconds, and was stopped"
                else:
                    reason = f"the library that decodes it gave up (status {process.returncode})"
                raise DataError(f"{name}: cannot read this picture: {reason}") from error
        if not good:
            raise DataError(content.decode("utf-8", "surrogatepass"))
        return np.frombuffer(content, np.uint8).reshape(size, size, 3)

    def close(self) -> None:
        self._closed = True
        if self._process is not None:
            self._process.kill()
        with self._lock:
            self._end()

    def _end(self) -> None:
        if self._process is not None:
            process, self._process = self._process, None
            limits.finish(process)


# ---------------------------------------------------------------------------------------- the other process


def work(order: None, source: IO[bytes], out: IO[bytes]) -> None:
    """Decode what comes in until it ends."""
    while head := source.read(_ASKED.size):
        size, *lengths = _ASKED.unpack(head)
        name, content = (source.read(length) for length in lengths)
        limits.alarm(2 * SECONDS)
        good, answer = _decoded(content, name.decode("utf-8", "surrogatepass"), size)
        limits.alarm(0)
        out.write(_TOLD.pack(good, len(answer)) + answer)
        out.flush()


def _decoded(content: bytes, name: str, size: int) -> tuple[bool, bytes]:
    try:
        return True, decode(content, name=name, size=size).tobytes()
    except DataError as error:
        return False, str(error)[:10_000].encode("utf-8", "surrogatepass")
    except MemoryError:
        return False, f"{name}: decoding it takes too much memory; make the picture smaller".encode()

"""Starting, watching and killing real processes that train: what the cases of kills.py are made of.

A process is forked from this one, which has everything imported and compiled, and runs the command line as
``minires`` does; or it is a fresh ``python -m minires``, which takes two seconds longer. Where it is to be
hit is a :class:`Moment`: a time, or something that happens to a file of its run folder, told by inotify.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import select
import signal
import struct
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PATIENCE = 120.0  # seconds for one process
ALONE = {"MINIRES_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
_MADE, _MOVED = 0x100, 0x80  # IN_CREATE, IN_MOVED_TO


@dataclass(frozen=True)
class Moment:
    """``delay`` seconds after the start; or after the ``count``-th time that ``file`` is begun (a temporary
    file with its name in it is made) or done (it has its name)."""

    delay: float
    file: str = ""  # the beginning of its name
    done: bool = False
    count: int = 1

    def __str__(self) -> str:
        event = f"{self.file} {'done' if self.done else 'begun'} for the {self.count}. time, then " * bool(
            self.file
        )
        return f"{event}{1000 * self.delay:.1f} ms"

    def fits(self, name: str) -> bool:
        return name.startswith(self.file) if self.done else self.file in name[1:] and name.startswith(".")


class Watch:
    """What happens in a folder, as names of files; Linux only."""

    def __init__(self, folder: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self.descriptor = libc.inotify_init1(os.O_CLOEXEC)
        if (
            self.descriptor < 0
            or libc.inotify_add_watch(self.descriptor, os.fsencode(folder), _MADE | _MOVED) < 0
        ):
            raise OSError(ctypes.get_errno(), "inotify does not watch this folder", str(folder))

    def names(self) -> list[str]:
        """The names that were made or moved here since the last call; waits for one."""
        content, place, found = os.read(self.descriptor, 1 << 16), 0, []
        while place < len(content):
            length = struct.unpack_from("iIII", content, place)[3]
            found.append(os.fsdecode(content[place + 16 : place + 16 + length].rstrip(b"\0")))
            place += 16 + length
        return found

    def close(self) -> None:
        os.close(self.descriptor)


class Process:
    """A process that runs the command line with ``arguments``; what it prints goes to the file ``log``.

    ``before`` is called in the process itself first: limits, another user. ``stdout`` is a descriptor that it
    prints to instead.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        log: Path,
        *,
        fresh: bool = False,
        before: Callable[[], object] | None = None,
        cwd: Path | None = None,
        stdout: int | None = None,
    ) -> None:
        self.log, self.status, self.fresh = log, None, fresh
        with open(log, "ab") as file:
            if fresh:
                path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
                started = subprocess.Popen(
                    [sys.executable, "-m", "minires", "--import", "small_net", *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=file if stdout is None else stdout,
                    stderr=file,
                    cwd=cwd,
                    env={**os.environ, **ALONE, "PYTHONPATH": path},
                    preexec_fn=before,
                    start_new_session=True,
                )
                started.returncode = 0  # this class waits for it
                self.pid = started.pid
            else:
                signals = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
                signal.pthread_sigmask(signal.SIG_BLOCK, signals)
                self.pid = os.fork()
                if not self.pid:
                    _be_minires(arguments, file.fileno(), stdout, before, cwd, signals)
                signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
        self.handle = os.pidfd_open(self.pid)

    def wait(self, moment: Moment | None = None, watch: Watch | None = None) -> bool:
        """Wait for a moment, or for the end; whether it has ended. The status is then in ``status``: that of
        the shell, with a minus where a signal ended it."""
        if self.status is not None:
            return True
        if moment and moment.file and watch:
            return self._wait_for_file(moment, watch)
        limit = PATIENCE if moment is None else moment.delay
        if select.select([self.handle], [], [], limit)[0]:
            return self._ended()
        if moment is None:
            self._give_up()
        return False

    def _wait_for_file(self, moment: Moment, watch: Watch) -> bool:
        """As ``wait``; both share a core, so that this one runs as soon as the file is there."""
        seen, limit, cores = 0, time.monotonic() + PATIENCE, os.sched_getaffinity(0)
        core = {random.choice(sorted(cores))}
        os.sched_setaffinity(0, core)
        with suppress(ProcessLookupError):
            os.sched_setaffinity(self.pid, core)
        try:
            while (left := limit - time.monotonic()) > 0:
                ready = select.select([self.handle, watch.descriptor], [], [], left)[0]
                if self.handle in ready:
                    return self._ended()
                if ready:
                    seen += sum(map(moment.fits, watch.names()))
                if seen >= moment.count:
                    if moment.delay:
                        time.sleep(moment.delay)
                    return False
        finally:
            os.sched_setaffinity(0, cores)
        self._give_up()
        return True

    def _give_up(self) -> None:
        self.send(signal.SIGKILL)
        raise TimeoutError(f"still there after {PATIENCE:.0f} s: {self.text()[-200:]}")

    def send(self, number: int) -> None:
        if self.status is None:
            os.kill(self.pid, number)

    def kill(self) -> bool:
        """SIGKILL; whether it was still alive."""
        self.send(signal.SIGKILL)
        self.wait()
        return self.status == -signal.SIGKILL

    @property
    def alive(self) -> bool:
        return self.status is None and not (select.select([self.handle], [], [], 0)[0] and self._ended())

    def _ended(self) -> bool:
        self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self.handle)
        return True

    def text(self) -> str:
        return self.log.read_text(errors="replace")


def _be_minires(arguments, log, stdout, before, cwd, signals) -> None:  # type: ignore[no-untyped-def]
    """In the child: what ``minires`` does, to its exit status."""
    status = 1
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log if stdout is None else stdout, 1)
        os.dup2(log, 2)
        os.closerange(3, 256)
        if cwd is not None:
            os.chdir(cwd)
        if before is not None:
            before()
        from minires import cli

        sys.stdout, sys.stderr = (open(n, "w", buffering=1, closefd=False) for n in (1, 2))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
        status = cli.main(["--import", "small_net", *arguments])
        sys.stdout.flush()
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status & 255)


def warm(pictures: Path, out: Path) -> None:
    """Train once in this process, so that what is forked from it has all imported and compiled."""
    import small_net  # noqa: F401

    from minires import cli

    with open(os.devnull, "w") as nothing:
        before, sys.stdout = sys.stdout, nothing
        try:
            assert cli.main(train(pictures, out)) == 0
        finally:
            sys.stdout = before


def in_jobs(jobs: int, work: Callable[[int], Iterator[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """What ``work(job)`` gives in each of so many processes, forked from this one, as it comes; it is what
    JSON can hold."""
    reader, writer = os.pipe()
    workers = []
    for job in range(jobs):
        if not (pid := os.fork()):
            try:
                os.close(reader)
                with open(writer, "w", buffering=1) as pipe:
                    for result in work(job):
                        pipe.write(json.dumps(result) + "\n")
            finally:
                os._exit(0)
        workers.append(pid)
    os.close(writer)
    with open(reader) as pipe:
        yield from map(json.loads, pipe)
    for pid in workers:
        os.waitpid(pid, 0)


def machine() -> dict[str, Any]:
    """What a result was measured on, as in the files of benchmarks/results."""
    sys.path.append(str(HERE.parents[1] / "benchmarks"))
    from machine import describe

    return describe()


def train(pictures: Path, out: Path | None) -> list[str]:
    """The arguments of a new run."""
    return ["train", "--recipe", "torture", "--data", str(pictures), *(["--out", str(out)] if out else [])]

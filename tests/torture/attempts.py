"""One try to read a file, in a process of its own under limits of time and memory."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import select
import signal
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from minires.backend.thread_pool import give_memory_back
from minires.errors import MiniresError

FINE = ("same", "different", "refused")
SECONDS, BYTES = 20.0, 10**9
MOST = 8 * 2**30  # of address space: a backstop for the machine, far above what counts as a fault


@dataclass
class Outcome:
    """What became of a case: a verdict, and what is to be said of it."""

    verdict: str
    text: str = ""
    content: dict[str, str] | None = None
    seconds: float = 0.0
    grown: int = 0  # bytes


def attempt(act: Callable[[], dict[str, str]], log: Path, *, show: bool = False) -> Outcome:
    """Run ``act`` in a process of its own, under the limits. What it prints goes to ``log``."""
    give_memory_back()  # freed arrays that the heap keeps would hide what ``act`` takes: it would take them
    reader, writer = os.pipe()
    base, began = memory(os.getpid()), time.monotonic()
    if not (pid := os.fork()):
        os.close(reader)
        _be_case(act, writer, log, show)
    os.close(writer)
    answer, verdict, peak, much = b"", "", 0, False
    while True:
        ready = select.select([reader], [], [], 0.05)[0]
        if ready:
            part = os.read(reader, 1 << 16)
            answer += part
            if not part:
                break
            continue
        now, before = memory(os.getpid()) - base, much
        peak, much = max(peak, now), now > 1.5 * BYTES
        # In two looks: a process that is about to start a program shares the memory of its parent.
        verdict = "hang" if time.monotonic() - began > SECONDS else "memory" if much and before else ""
        if verdict:
            break
    os.close(reader)
    if verdict:
        end_all(pid)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    seconds = time.monotonic() - began
    if verdict:
        return Outcome(verdict, f"{peak / 1e9:.1f} GB more, {seconds:.0f} s", None, seconds, peak)
    left = still_there(pid)
    if not answer:
        return Outcome("crash", f"status {status}", None, seconds, peak)
    told = json.loads(answer)
    outcome = Outcome(told["verdict"], told["text"], told["content"], seconds, max(peak, told["grown"]))
    if outcome.grown > BYTES:
        outcome.verdict, outcome.text = (
            "memory",
            f"{outcome.grown / 1e9:.1f} GB more; {outcome.verdict}: {outcome.text}",
        )
    elif left:
        outcome.verdict = "left a process"
    return outcome


def _be_case(act: Callable[[], dict[str, str]], told: int, log: Path, show: bool) -> None:
    """In the child: call ``act``, and tell what came out."""
    os.setsid()
    gc.freeze()  # garbage of the process that was forked: to give it back here would hide what ``act`` takes
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    if not show:
        os.dup2(handle, 1)
        os.dup2(handle, 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (virtual() + MOST, virtual() + MOST))
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the process that was forked
    base = peak_kilobytes(os.getpid())
    verdict, text, content = "ok", "", None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = act()
    except MiniresError as error:
        verdict, text = "refused", str(error)
        if show:
            traceback.print_exc()
    except BaseException as error:
        ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "/minires/" in frame.filename]
        place = f"{ours[-1].filename.rpartition('/minires/')[2]}:{ours[-1].name}" if ours else "this script"
        verdict, text = "traceback", f"{type(error).__name__}: {str(error)[:200]} ({place})"
        if show:
            traceback.print_exc()
    own, others = peak_kilobytes(os.getpid()), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    told_text = json.dumps(
        {"verdict": verdict, "text": text, "content": content, "grown": 1024 * max(own - base, others - base)}
    )
    with open(told, "w", encoding="utf-8", errors="replace") as pipe:
        pipe.write(told_text)
    os._exit(0)


def peak_kilobytes(pid: int) -> int:
    """The most memory that a process had at once; 0 of one that has ended and is not waited for yet."""
    peak = Path(f"/proc/{pid}/status").read_text().partition("VmHWM:")[2].split()
    return int(peak[0]) if peak else 0


def virtual() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def descendants(pid: int) -> list[int]:
    """A process, and those below it, whichever of its threads has started them."""
    below: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # the thread has ended meanwhile
            below += map(int, path.read_text().split())
    return [pid, *(deeper for one in below for deeper in descendants(one))]


def memory(pid: int) -> int:
    """Bytes that a process and those below it hold. A page that a fork shares counts once. Pages of files do
    not count: the system takes them away where memory is short, and a process that grows would seem to hold
    less."""
    return sum(held(one) for one in descendants(pid))


def held(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    fields = dict(line.partition(":")[::2] for line in lines)
    return 1024 * sum(int(fields.get(name, "0").split()[0]) for name in ("Pss_Anon", "Pss_Shmem", "SwapPss"))


def end_all(pid: int) -> None:
    for one in reversed(descendants(pid)):
        try:
            os.kill(one, signal.SIGKILL)
        except ProcessLookupError:
            continue


def still_there(group: int) -> bool:
    """Whether a process of a group outlives it by a second; it is ended then."""
    for _ in range(50):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        time.sleep(0.02)
    os.killpg(group, signal.SIGKILL)
    return True


def judge(
    outcome: Outcome, path: Path, right: list[dict[str, str]], *, sealed: bool, checked: str, named: bool
) -> None:
    """Turn "ok" into same or different, and look whether a refusal names the file."""
    if outcome.verdict == "ok":
        content = outcome.content or {}
        if content in right:
            outcome.verdict = "same"
        elif sealed or not checked:
            outcome.verdict = "different"
        else:
            known = {key for one in right for key in one}
            pictures = {key for key in content if key.startswith("picture ")}
            outcome.verdict = (
                "different" if checked == "pictures" and pictures <= known else "silently different"
            )
            near = max(right, key=lambda one: sum(content.get(k) == v for k, v in one.items()), default={})
            odd = [key for key in {**content, **near} if content.get(key) != near.get(key)]
            outcome.text = f"in {', '.join(odd[:3])}"
    elif (
        outcome.verdict == "refused"
        and named
        and path.name not in outcome.text
        and str(path.parent) not in outcome.text
    ):
        outcome.verdict = "unnamed"

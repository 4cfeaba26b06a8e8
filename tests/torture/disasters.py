"""What else can happen to a run: signals, a full disk, no right to write, damaged checkpoints, ..."""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from case import Case, all_steps, began
from processes import Moment


def signals(case: Case) -> None:
    """SIGINT, SIGTERM or SIGHUP at any moment, sometimes twice; then it goes on."""
    for _ in range(case.rng.randint(1, 2)):
        fresh = case.rng.random() < 0.25
        number = case.rng.choice([signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
        moment, twice = case.moment(fresh=fresh), case.rng.random() < 0.15
        case.did.append(
            f"{number.name}{' twice' * twice} to {'a fresh' if fresh else 'a'} process at {moment}"
        )
        process = case.start(fresh=fresh)
        if not case.until(process, moment):
            process.send(number)
            if twice and not process.wait(Moment(0.005)):
                process.send(number)
            process.wait()
        text = process.text()
        too_early = fresh and not began(process) and "minires" not in text.partition("Traceback")[2]
        case.look(process, 0, 128 + number, -number, *([1] if too_early else []))
        trained = began(process) and "\nepoch " in text and not all_steps(process)
        if process.status and trained and not (twice or "saved" in text):
            case.fault("not saved", text.strip()[-200:])
    case.finish()


def with_limit(case: Case, name: str, before: Callable[[], object]) -> None:
    """A run under a limit ends with words and status 1, and goes on without it."""
    case.did.append(name)
    if case.rng.random() < 0.5:  # in the middle of a run
        process = case.start()
        case.until(process, Moment(0, "checkpoint", True, case.rng.randint(1, 10)))
        case.hit(process)
    process = case.start(before=before)
    process.wait()
    case.look(process, 0, 1)
    case.finish()


def file_size(case: Case) -> None:
    """Files may not get larger than some kilobytes."""
    limit = int(200 * 15_000 ** case.rng.random())
    with_limit(
        case,
        f"files of at most {limit} bytes",
        lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )


def descriptors(case: Case) -> None:
    """No more than some files may be open."""
    limit = case.rng.randint(3, 16)
    with_limit(
        case, f"{limit} descriptors", lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    )


def another_user(case: Case) -> None:
    """A user who may read the run, or not even that, but not write."""
    if os.getuid():
        case.skipped = "needs root"
        return
    process = case.start()
    case.until(process, Moment(0, "checkpoint", True, case.rng.randint(2, 10)))
    case.hit(process)
    before, hidden = held(case.out), case.rng.random() < 0.5
    for path in (case.folder, *case.folder.parents):
        if path.is_relative_to(tempfile.gettempdir()) and path != Path(tempfile.gettempdir()):
            path.chmod(0o755)
    for path in case.out.glob("checkpoint-*"):
        path.chmod(0o000 if hidden else 0o644)
    case.did.append(f"another user, who may {'not read the checkpoints' if hidden else 'only read'}")
    process = case.start(new=False, before=lambda: os.setuid(65534))
    process.wait()
    case.look(process, 1)
    if hidden and "ermission" not in process.text():
        case.fault("status", f"does not say that it may not be read: {process.text()[-300:]}")
    if held(case.out) != before:
        case.fault("overwritten", "what another user may not write")
    for path in case.out.glob("checkpoint-*"):
        path.chmod(0o644)
    case.finish()


def mount(case: Case, kilobytes: int, act: Callable[[Path], None]) -> None:
    """Run ``act`` with the run folder on a small file system of its own."""
    place, real = case.folder / "disk", case.out
    place.mkdir()
    if os.system(f"mount -t tmpfs -o size={kilobytes}k none {place} 2>/dev/null"):
        case.skipped = "cannot mount"
        return
    try:
        case.out = place / "run"
        case.out.mkdir()
        act(place)
    finally:
        os.system(f"umount -l {place}")
        case.out = real


def full_disk(case: Case) -> None:
    """The disk fills up somewhere in a run; then there is room again."""
    size = 4 * int(2 * 750 ** case.rng.random())

    def act(place: Path) -> None:
        case.did.append(f"a disk of {size} kB")
        process = case.start()
        process.wait()
        case.look(process, 0, 1)
        if process.status == 1 and "space" not in process.text():
            case.fault("status", f"does not say that the disk is full: {process.text()[-300:]}")
        os.system(f"mount -o remount,size=10m {place}")
        case.finish()

    mount(case, size, act)


def read_only(case: Case) -> None:
    """The folder becomes read-only in the middle; then it can be written again."""

    def act(place: Path) -> None:
        process, moment = case.start(), case.moment(fresh=False)
        case.did.append(f"read-only at {moment}")
        case.until(process, moment)
        while os.system(f"mount -o remount,ro {place} 2>/dev/null") and process.alive:
            time.sleep(0.001)  # busy while a file is being written
        process.wait()
        case.look(process, 0, 1)
        os.system(f"mount -o remount,rw {place}")
        case.finish()

    mount(case, 10_000, act)


def closed_output(case: Case) -> None:
    """``minires train | head -3``: nobody reads what it prints."""
    reader, writer = os.pipe()
    process = case.start(stdout=writer, fresh=case.fresh())
    os.close(writer)
    lines = case.rng.randint(0, 6)
    case.did.append(f"its output is read for {lines} lines")
    with open(reader) as file:
        for _ in range(lines):
            if select.select([file], [], [], 60)[0]:
                file.readline()
    process.wait()
    case.look(process, 0, 1)
    case.finish()


def held(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def damage(case: Case, path: Path) -> str:
    """Damage a checkpoint by hand; what was done."""
    content = bytearray(path.read_bytes())
    header = int.from_bytes(content[:8], "little")
    how = case.rng.choice(["cut", "empty", "byte", "metadata", "nested", "folder", "zeros", "kind"])
    if how == "cut":
        del content[case.rng.randrange(len(content)) :]
    elif how == "empty":
        content.clear()
    elif how == "byte":
        content[case.rng.randrange(len(content))] ^= 1 << case.rng.randrange(8)
    elif how == "metadata":
        content[case.rng.randrange(8, 8 + header)] = case.rng.choice(b'0}{"\\a[\x00\xff')
    elif how == "zeros":
        begin = case.rng.randrange(len(content))
        content[begin:] = bytes(len(content) - begin)
    else:
        deep = json.dumps({"__metadata__": {"minires": '{"a":' * 50_000 + "0" + "}" * 50_000}}).encode()
        content[:] = len(deep).to_bytes(8, "little") + deep
        if how == "kind":
            content[:] = b"PK\x03\x04 something else " * 9
    path.unlink()
    path.mkdir() if how == "folder" else path.write_bytes(content)
    return how


def damaged(case: Case) -> None:
    """The newest checkpoint is damaged: the one before is used. All are: refused, twice."""
    process = case.start()
    if case.until(process, Moment(0.002, "checkpoint", True, case.rng.randint(3, 12))):
        return case.look(process, 0)
    case.hit(process)
    paths, every = sorted(case.out.glob("checkpoint-*")), case.rng.random() < 0.5
    before = {path.read_bytes() for path in paths}
    hurt = [damage(case, path) for path in (paths if every else paths[-1:])]
    case.did.append(f"{len(hurt)} of {len(paths)} checkpoints damaged: {', '.join(hurt)}")
    if not every or {path.read_bytes() for path in paths if path.is_file()} == before:
        return case.finish()
    for _ in range(2):
        process = case.start()
        process.wait()
        case.look(process)
        if process.status == 0:
            return case.fault(
                "not refused", f"all checkpoints were damaged ({', '.join(hurt)}), and it began anew"
            )
    if (case.out / "model.safetensors").exists():
        case.fault("overwritten", "there is a model of a run that was refused")

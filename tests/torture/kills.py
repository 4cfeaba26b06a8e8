"""Runs that are killed at any moment, and other disasters: every run comes to its end, and to the same bits.

    python tests/torture/kills.py --kills 300 --seed 0 --save kills.json
    python tests/torture/kills.py --only 1234          # one case again: the same plan, in the time of today

A case trains a very small net on pictures that it makes, in real processes, and hits them: SIGKILL at a random
time, or while a file is being written (checkpoint, metrics, figures, model, summary); of one process, or of two
on one folder; signals, a full disk, a folder that may not be written, too few descriptors, damaged checkpoints,
an output that nobody reads. Then ``--resume`` again and again until it finishes. A fault is

    lost         ``--resume`` does not bring it to the end
    different    weights or figures are not those of the run that nothing happened to, bit by bit
    not refused  a second process on the folder of a living one, or a run whose checkpoints are all damaged
    overwritten  something of a run that was refused is gone
    status       another exit status than it should be: 130 SIGINT, 143 SIGTERM, 129 SIGHUP, 1 for the disasters
    not saved    stopped by a signal between two steps, and does not say that it saved
    traceback    one in what it printed
    leftover     a temporary file in the folder at the end
    hang         a process that does not end in two minutes

Runs on Linux; what needs root (a full disk, another user) is skipped without, and the table says so.
"""

from __future__ import annotations

import argparse
import collections
import csv
import json
import os
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[2] / "benchmarks")]
from processes import ALONE, Moment, Process, Watch, train, warm

TIMES = {"seconds", "pictures_per_second", "versions", "threads", "out", "date"}
ENDED = (
    "model.safetensors",
    "metrics.csv",
    "summary.json",
    "config.json",
    "curves.png",
    "confusion.png",
    "mistakes.png",
)
# Where a file is begun or done: how often that is in a run, and how long it takes about (s).
EVENTS = {
    "config.json": (1, 0.002), "checkpoint": (13, 0.004), "metrics.csv": (5, 0.003), "curves.png": (2, 0.3),
    "model.safetensors": (1, 0.004), "confusion.png": (1, 0.1), "mistakes.png": (1, 0.15), "summary.json": (1, 0.003),
}  # fmt: skip
EPOCHS = 4
LASTS, FRESH_LASTS = 1.1, 2.5  # seconds of a run, about


@dataclass
class Case:
    """What was done, and what became of it."""

    seed: int
    kind: str
    folder: Path = field(repr=False)
    pictures: Path = field(repr=False)
    rng: Any = field(repr=False)
    did: list[str] = field(default_factory=list)
    windows: list[str] = field(default_factory=list)  # where each SIGKILL hit
    faults: list[str] = field(default_factory=list)
    skipped: str = ""

    def __post_init__(self) -> None:
        self.out = self.folder / "run"
        self.out.mkdir(parents=True)
        self.left: set[str] = set()  # temporary files of the kills before
        self._processes = 0

    def start(self, *, new: bool | None = None, fresh: bool = False, **options: Any) -> Process:
        """Begin the run, or go on with it if there is something to go on with."""
        if new is None:
            new = not (self.out / "config.json").exists()
        self._processes += 1
        arguments = train(self.pictures, self.out) if new else ["train", "--resume", str(self.out)]
        return Process(arguments, self.folder / f"{self._processes}.log", fresh=fresh, **options)

    def fault(self, kind: str, text: str) -> None:
        self.faults.append(f"{kind}: {text}")

    def moment(self, *, fresh: bool, files: bool = True) -> Moment:
        """A moment of a run: any time, or where a file is written."""
        if fresh or not files or self.rng.random() < 0.35:
            return Moment(self.rng.uniform(0.05 if fresh else 0.0, FRESH_LASTS if fresh else LASTS))
        file = self.rng.choice(["checkpoint"] * 5 + list(EVENTS))
        often, lasts = EVENTS[file]
        done = self.rng.random() < 0.2
        delay = 0.0 if self.rng.random() < 0.4 else self.rng.uniform(0, lasts)
        return Moment(delay, file, done, self.rng.randint(1, often))

    def fresh(self) -> bool:
        return self.rng.random() < 0.12

    def until(self, process: Process, moment: Moment) -> bool:
        """Let it run to a moment; whether it had ended before."""
        watch = Watch(self.out)
        try:
            return process.wait(moment, watch)
        finally:
            watch.close()

    def hit(self, process: Process) -> None:
        """SIGKILL, and note where it was."""
        if process.kill():
            self.windows.append(window(self.out, self.left))
            self.left = temporary(self.out)
            self.did.append(f"killed in {self.windows[-1]}")
        self.look(process)

    def look(self, process: Process, *statuses: int) -> None:
        """No traceback of ours in what it printed, and one of these exit statuses."""
        text = process.text()
        if "Traceback (most recent call last)" in text and "minires" in text.partition("Traceback")[2]:
            self.fault("traceback", text.strip().splitlines()[-1][:300])
        if statuses and process.status not in statuses:
            wanted = " or ".join(map(str, statuses))
            self.fault("status", f"{process.status}, not {wanted}: {text.strip()[-300:]}")

    def finish(self) -> None:
        """Bring it to the end, and look whether it is the end of the run that nothing happened to."""
        for _ in range(3):
            process = self.start()
            process.wait()
            self.look(process)
            if process.status == 0:
                break
        else:
            return self.fault("lost", process.text().strip()[-300:])
        self.compare(self.out)

    def compare(self, out: Path) -> None:
        for difference in different(out, self.pictures.parent / "reference"):
            self.fault("different", difference)
        if left := temporary(out):
            self.fault("leftover", ", ".join(sorted(left)))


def temporary(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.name.endswith(".tmp")}


def window(out: Path, before: set[str]) -> str:
    """In which part of a run a process was killed, from what it left beside the temporary files ``before``."""
    for file in EVENTS:
        if any(file in name for name in temporary(out) - before):
            return f"write of {file}"
    has = {name: any(path.name.startswith(name) for path in out.iterdir()) for name in EVENTS}
    if has["summary.json"]:
        return "after the end"
    if has["model.safetensors"]:
        return "the end"
    if has["checkpoint"]:
        return "training"
    return "before the first checkpoint" if has["config.json"] else "start-up"


def figures(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return [
            {name: text for name, text in row.items() if name not in TIMES} for row in csv.DictReader(file)
        ]


def different(out: Path, reference: Path) -> list[str]:
    """In what the end of a run is not that of another, times left out."""
    from PIL import Image
    from safetensors import safe_open

    if missing := [name for name in ENDED if not (out / name).is_file() or not (out / name).stat().st_size]:
        return [f"no {', '.join(missing)}"]
    found = []
    with safe_open(out / ENDED[0], "numpy") as a, safe_open(reference / ENDED[0], "numpy") as b:
        names = set(a.keys()) ^ set(b.keys())
        names |= {n for n in set(a.keys()) - names if a.get_tensor(n).tobytes() != b.get_tensor(n).tobytes()}
        found += [f"model.safetensors: {', '.join(sorted(names)[:4])}"] if names else []
        found += ["model.safetensors: metadata"] if a.metadata() != b.metadata() else []
    if figures(out / "metrics.csv") != figures(reference / "metrics.csv"):
        found.append("metrics.csv")
    for name in ("summary.json", "config.json"):
        a, b = (json.loads((folder / name).read_text()) for folder in (out, reference))
        if keys := [key for key in {**a, **b} if key not in TIMES and a.get(key) != b.get(key)]:
            found.append(f"{name}: {', '.join(keys[:4])}")
    for name in ENDED[4:]:
        try:
            Image.open(out / name).load()
        except OSError as error:
            found.append(f"{name}: {error}")
    return found


# ------------------------------------------------------------------------------------------------- kills


def one(case: Case) -> None:
    """One process is killed one to four times."""
    for _ in range(case.rng.randint(1, 4)):
        fresh = case.fresh()
        moment = case.moment(fresh=fresh)
        case.did.append(f"{'a fresh' if fresh else 'a'} process to {moment}")
        process = case.start(fresh=fresh)
        if case.until(process, moment):
            case.look(process, 0)
            break
        case.hit(process)
    case.finish()


def began(process: Process) -> bool:
    return "; run folder " in process.text()


def two(case: Case) -> None:
    """Two processes on one folder: the second is refused while the first lives; then either, or both, die."""
    at_once = case.rng.random() < 0.3
    first = case.start(new=True)
    if not at_once:
        if case.until(
            first, Moment(case.rng.uniform(0, 0.2), case.rng.choice(["config.json", "checkpoint"]), True)
        ):
            return case.fault("status", first.text()[-300:])
    second = case.start(new=at_once or case.rng.random() < 0.3)
    both = [first, second]
    case.did.append("two new runs at once" if at_once else "a second process while the first runs")
    limit = time.monotonic() + 60
    while time.monotonic() < limit:
        alive = [one.alive for one in both]
        if all(map(began, both)) and all(alive):
            case.fault("not refused", "two processes train in one folder")
            break
        if not all(alive):
            break
        time.sleep(0.003)
    if at_once and not any(one.alive or one.status == 0 for one in both):
        case.fault("lost", "both were refused: " + second.text()[-200:])
    victims = case.rng.choice([[first], [second], both, []])
    time.sleep(case.rng.uniform(0, 0.3))
    for process in victims:
        case.hit(process)
    for process in both:
        process.wait()
        case.look(process)
        if process.status not in (0, 1, 2, -signal.SIGKILL):
            case.fault("status", f"{process.status}")
    case.finish()


def two_without_out(case: Case) -> None:
    """Two new runs at once that choose their folders themselves: each has its own."""
    arguments = train(case.pictures, None)
    both = [Process(arguments, case.folder / f"{n}.log", cwd=case.folder) for n in (1, 2)]
    case.did.append("two new runs at once, without --out")
    for process in both:
        process.wait()
        case.look(process, 0)
    folders = sorted((case.folder / "runs").iterdir())
    if len(folders) != 2:
        case.fault("lost", f"two runs, but {len(folders)} folders")
    for folder in folders:
        case.compare(folder)


# -------------------------------------------------------------------------------------- other disasters


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
        all_steps = f"epoch {EPOCHS}/{EPOCHS}" in text or "testing again" in text
        if process.status and began(process) and not (all_steps or twice or "saved" in text):
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
    import resource

    limit = int(200 * 15_000 ** case.rng.random())
    with_limit(
        case,
        f"files of at most {limit} bytes",
        lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )


def descriptors(case: Case) -> None:
    """No more than some files may be open."""
    import resource

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
    """The newest checkpoint is damaged: the one before is used. All are: refused, twice, and nothing is lost."""
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


KINDS: dict[str, tuple[int, Callable[[Case], None]]] = {  # how often, of a hundred
    "one": (66, one), "two": (10, two), "two without --out": (1, two_without_out), "signals": (7, signals),
    "full disk": (2, full_disk), "read-only": (2, read_only), "file size": (2, file_size),
    "descriptors": (2, descriptors), "another user": (2, another_user), "closed output": (2, closed_output),
    "damaged": (4, damaged),
}  # fmt: skip


def run(seed: int, base: Path, kinds: list[str], *, keep: bool = False) -> Case:
    """Case ``seed``, in a folder of its own below ``base``."""
    import random

    rng = random.Random(seed)
    kind = rng.choices(kinds, [KINDS[name][0] for name in kinds])[0]
    case = Case(seed, kind, base / f"case-{seed}", base / "pictures", rng)
    try:
        KINDS[kind][1](case)
    except TimeoutError as error:
        case.fault("hang", str(error))
    except Exception:
        case.fault("this script", traceback.format_exc())
    if not keep:
        shutil.rmtree(case.folder, ignore_errors=True)
    return case


# -------------------------------------------------------------------------------------------------- many


def work(job: int, options: argparse.Namespace, base: Path, told: int) -> None:
    """Cases of one process, until it has its share of the kills; each is told as a line of JSON."""
    kills, seed = 0, options.seed + job
    share = -(-options.kills // options.jobs)
    with open(told, "w", buffering=1) as pipe:
        while kills < share and (options.cases is None or seed < options.seed + options.cases):
            case = run(seed, base, options.kinds)
            kills += len(case.windows)
            pipe.write(
                json.dumps(
                    {k: getattr(case, k) for k in ("seed", "kind", "did", "windows", "faults", "skipped")}
                )
                + "\n"
            )
            seed += options.jobs


def torture(options: argparse.Namespace, base: Path) -> list[dict[str, Any]]:
    reader, writer = os.pipe()
    workers = []
    for job in range(options.jobs):
        if not (pid := os.fork()):
            try:
                os.close(reader)
                work(job, options, base, writer)
            finally:
                os._exit(0)
        workers.append(pid)
    os.close(writer)
    results, shown = [], 0
    with open(reader) as pipe:
        for line in pipe:
            results.append(json.loads(line))
            if results[-1]["faults"] and (shown := shown + 1) <= options.show:
                told = results[-1]
                print(
                    f"{told['seed']}: {told['kind']}: {'; '.join(told['did'])}",
                    *told["faults"],
                    sep="\n    ",
                    flush=True,
                )
    for pid in workers:
        os.waitpid(pid, 0)
    return results


def report(results: list[dict[str, Any]]) -> dict[str, Any]:
    """The counts, printed and returned."""
    windows = collections.Counter(window for result in results for window in result["windows"])
    faults = collections.Counter(
        fault.partition(":")[0]
        for result in results
        for fault in {f.partition(":")[0] for f in result["faults"]}
    )
    kinds = {}
    for kind in KINDS:
        mine = [result for result in results if result["kind"] == kind]
        skipped = sum(bool(result["skipped"]) for result in mine)
        faulty = sum(bool(result["faults"]) for result in mine)
        kills = sum(len(result["windows"]) for result in mine)
        kinds[kind] = {"cases": len(mine), "kills": kills, "with faults": faulty, "skipped": skipped}
    print(f"\n{'kind of case':<28}{'cases':>7}{'kills':>7}{'with faults':>13}{'skipped':>9}")
    for kind, row in kinds.items():
        print(f"{kind:<28}{row['cases']:>7}{row['kills']:>7}{row['with faults']:>13}{row['skipped']:>9}")
    print(f"\n{'SIGKILL in':<28}{'kills':>7}")
    for name, count in windows.most_common():
        print(f"{name:<28}{count:>7}")
    print("\nfaults:", ", ".join(f"{count} {name}" for name, count in faults.most_common()) or "none")
    return {
        "cases": len(results), "kills": sum(windows.values()), "kinds": kinds, "windows": dict(windows.most_common()),
        "faults": dict(faults), "examples": [result for result in results if result["faults"]][:50],
    }  # fmt: skip


def main() -> int:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("--kills", type=int, default=60, help="go on until so many processes were killed")
    parser.add_argument("--cases", type=int, help="but for so many cases at most")
    parser.add_argument("--seed", type=int, default=0, help="the number of the first case")
    parser.add_argument("--jobs", type=int, default=1, help="how many cases at a time")
    parser.add_argument(
        "--kinds", type=lambda text: text.split(","), default=list(KINDS), help=", ".join(KINDS)
    )
    parser.add_argument("--only", type=int, help="run this case alone, and keep its folder")
    parser.add_argument("--show", type=int, default=20, help="how many faulty cases are printed")
    parser.add_argument("--save", type=Path, metavar="FILE.json")
    options = parser.parse_args()
    os.environ.update(ALONE)
    import machine
    import small_net

    began = time.time()
    base = Path(tempfile.mkdtemp(prefix="kills-"))
    small_net.pictures(base / "pictures")
    warm(base / "pictures", base / "reference")
    if options.only is not None:
        case = run(options.only, base, options.kinds, keep=True)
        print(case.kind, *case.did, *case.faults, case.skipped, f"its folder: {case.folder}", sep="\n")
        return bool(case.faults)
    try:
        result = report(torture(options, base))
    finally:
        shutil.rmtree(base, ignore_errors=True)
    seconds = time.time() - began
    print(f"{result['cases']} cases, {result['kills']} kills, {seconds:.0f} s")
    if options.save:
        told = {"machine": machine.describe(), "first": options.seed, "seconds": round(seconds), **result}
        options.save.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return bool(result["faults"])


if __name__ == "__main__":
    sys.exit(main())

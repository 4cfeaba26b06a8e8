"""Runs that are killed at any moment, and other disasters: every run comes to its end, and to the same bits.

    python tests/torture/kills.py --kills 300 --seed 0 --save kills.json
    python tests/torture/kills.py --only 1234          # one case again: the same plan, in the time of today

A case trains a very small net on pictures that it makes, in real processes, and hits them: SIGKILL at a
random time, or while a file is being written (checkpoint, metrics, figures, model, summary); of one
process, or of two on one folder; and what stands in disasters.py: signals, a full disk, a folder that may
not be written, too few descriptors, damaged checkpoints, an output that nobody reads. Then ``--resume``
again and again until it finishes. A fault is

    lost         ``--resume`` does not bring it to the end
    different    weights or figures are not those of the run that nothing happened to, bit by bit
    not refused  a second process on the folder of a living one, or a run whose checkpoints are all damaged
    overwritten  something of a run that was refused is gone
    status       another exit status than it should be: 130 SIGINT, 143 SIGTERM, 129 SIGHUP, else 1
    not saved    stopped by a signal between two steps, and does not say that it saved
    traceback    one in what it printed
    leftover     a temporary file in the folder at the end
    hang         a process that does not end in two minutes

Runs on Linux; what needs root (a full disk, another user) is skipped without, and the table says so.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import disasters
from case import Case, all_steps, began
from processes import ALONE, Moment, Process, in_jobs, machine, train, warm


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


KINDS: dict[str, tuple[int, Callable[[Case], None]]] = {  # how often, of a hundred
    "one": (66, one),
    "two": (10, two),
    "two without --out": (1, two_without_out),
    "signals": (7, disasters.signals),
    "full disk": (2, disasters.full_disk),
    "read-only": (2, disasters.read_only),
    "file size": (2, disasters.file_size),
    "descriptors": (2, disasters.descriptors),
    "another user": (2, disasters.another_user),
    "closed output": (2, disasters.closed_output),
    "damaged": (4, disasters.damaged),
}


def run(seed: int, base: Path, kinds: list[str], *, keep: bool = False) -> Case:
    """Case ``seed``, in a folder of its own below ``base``."""
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


def measure(base: Path) -> None:
    """How long a run lasts here; and whether one to which nothing happens is what the cases take it for."""
    started = time.monotonic()
    case = Case(0, "one", base / "measured", base / "pictures", random.Random(0))
    process = case.start()
    process.wait()
    Case.lasts = time.monotonic() - started
    case.compare(case.out)
    if process.status or case.faults or not began(process) or not all_steps(process):
        raise SystemExit(
            f"a run to which nothing happens is not as it should be: {case.faults}\n{process.text()}"
        )


def work(job: int, options: argparse.Namespace, base: Path) -> Iterator[dict[str, Any]]:
    """Cases of one process, until it has its share of the kills."""
    kills, seed = 0, options.seed + job
    share = -(-options.kills // options.jobs)
    while kills < share and (options.cases is None or seed < options.seed + options.cases):
        case = run(seed, base, options.kinds)
        kills += len(case.windows)
        yield {k: getattr(case, k) for k in ("seed", "kind", "did", "windows", "faults", "skipped")}
        seed += options.jobs


def torture(options: argparse.Namespace, base: Path) -> list[dict[str, Any]]:
    results, shown = [], 0
    for result in in_jobs(options.jobs, lambda job: work(job, options, base)):
        results.append(result)
        if result["faults"] and (shown := shown + 1) <= options.show:
            did = f"{result['seed']}: {result['kind']}: {'; '.join(result['did'])}"
            print(did, *result["faults"], sep="\n    ", flush=True)
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
        "cases": len(results),
        "kills": sum(windows.values()),
        "kinds": kinds,
        "windows": dict(windows.most_common()),
        "faults": dict(faults),
        "examples": [result for result in results if result["faults"]][:50],
    }


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
    import small_net

    began = time.time()
    base = Path(tempfile.mkdtemp(prefix="kills-"))
    small_net.pictures(base / "pictures")
    warm(base / "pictures", base / "reference")
    measure(base)
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
        told = {"machine": machine(), "first": options.seed, "seconds": round(seconds), **result}
        options.save.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return bool(result["faults"])


if __name__ == "__main__":
    sys.exit(main())

"""Runs of several ranks in which one fails: the job ends soon, says once why, and the run goes on from there.

    python tests/torture/ranks.py --times 20 --save benchmarks/results/torture_ranks.json
    python tests/torture/ranks.py --kinds raises,killed --seed 7 --times 1 --keep
    python tests/torture/ranks.py --kinds launcher --mpiexec /usr/bin/mpiexec.mpich

Each case is a real job, started by the mpirun or mpiexec that belongs to mpi4py, which trains a very small
net. What happens to it, at a random step, on a random rank:

    raises, raises in validation       a layer raises
    exits, leaves, vanishes            it calls sys.exit(0); a script ends before it trains; os._exit(0)
    killed, killed early               SIGKILL at any moment of training, or of the start
    sleeps, stopped                    a rank stands still in a layer, or by SIGSTOP; MINIRES_WAIT is 6
    picture, validation, test          a picture cannot be read any more while the run goes on
    nan, nan weights                   a layer makes NaN; the weights that a run starts from have NaN
    launcher                           the launcher of another MPI (--mpiexec)
    one folder                         two jobs at once in one folder
    SIGTERM, SIGUSR1, STOP             one rank, or the launcher, or the folder is told to stop

Then the run goes on, on one rank or all of them. A fault is

    hang         the job is there 20 seconds after the failure
    left         it has ended, but not all of its ranks
    said         not once, and by one rank, what should be said: which rank, and where
    tracebacks   more than the one of a failure in code of one's own
    status       the exit status is 0, or that of another end
    lost         no checkpoint where there was one
    damaged      the newest checkpoint cannot be read
    not resumed  the run does not come to its end
    different    the weights are not those of as many ranks that nothing happened to, bit by bit
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from processes import in_jobs, machine
from rank_job import BATCH, COUNTS, ENOUGH, EVERY, STEPS, Case, Job, Launcher, different, pictures, reference

LAST = STEPS - 6  # a run that is to be hit from outside is told so when it is here at the latest
PER_EPOCH = COUNTS["train"] * 3 // BATCH
WAIT = 6  # seconds, for those that stand still


def somewhere(case: Case, last: int = STEPS - 1) -> int:
    """A step, in which it is to happen; the least step of the newest checkpoint then."""
    case.step = case.rng.randint(0, last)
    whole = case.step // PER_EPOCH * PER_EPOCH
    return max(whole, case.step // EVERY * EVERY)


# ------------------------------------------------------------------------------------- a rank fails by itself


def raises(case: Case) -> None:
    least = somewhere(case)
    script = case.rng.random() < 0.5
    job = case.start("raise", script=script)
    if case.ends(job, rf"minires: (error: )?RANK: RuntimeError: {ENOUGH}\n", tracebacks=1):
        case.goes_on(least=least)


def raises_in_validation(case: Case) -> None:
    job = case.start("raise in validation")
    if case.ends(job, rf"minires: (error: )?RANK: RuntimeError: {ENOUGH}\n", tracebacks=1):
        case.goes_on(least=PER_EPOCH - EVERY)


def exits(case: Case) -> None:
    least = somewhere(case)
    job = case.start("exit", script=True)
    if case.ends(job, rf"RANK has ended, and rank \d+ \(\S+\) waits in '.*step {case.step}'"):
        case.goes_on(least=least)


def leaves(case: Case) -> None:
    job = case.start("leave", script=True)
    if case.ends(job, r"RANK has ended, and rank \d+ \(\S+\) waits in '[\w ]+'"):
        if case.out.exists() and (left := [one.name for one in case.out.iterdir() if one.name != ".lock"]):
            case.fault("lost", f"nothing was begun, but there is {left}")


def vanishes(case: Case) -> None:
    if not case.launcher.is_open_mpi:
        case.skipped = "the launcher of MPICH takes it for a good end, kills the others and says nothing"
        return
    least = somewhere(case)
    job = case.start("vanish")
    if case.ends(job, of_launcher(case, job), ours=0):
        case.goes_on(least=least)


def of_launcher(case: Case, job: Job) -> str:
    """What a launcher says of a rank that is gone, killed or without a word to MPI."""
    if case.launcher.is_open_mpi:
        return rf"process rank {case.rank} with PID \d+"
    return rf"=   PID {job.pids()[case.rank]} RUNNING AT"


def nan(case: Case) -> None:
    least = somewhere(case)
    job = case.start("nan")
    place = rf"step {case.step} \(epoch \d+, batch \d+\)"
    if case.ends(job, rf"minires: error: .*at {place}\. First not finite: .* of own.*, on RANK\. The run is"):
        if least:  # else there is no checkpoint, and nothing to go on with
            case.goes_on(least=least)


def stands_still(case: Case, how: str, says: str) -> None:
    least = somewhere(case)
    job = case.start(how, MINIRES_WAIT=str(WAIT))
    if case.ends(job, says.replace("STEP", str(case.step))):
        case.goes_on(least=least)


def sleeps(case: Case) -> None:
    there = r"it is at .*rank_net\.py, line \d+, in "
    stands_still(case, "sleep", rf"RANK has come to no other rank for {0.9 * WAIT:.0f} s: {there}")


def stopped(case: Case) -> None:
    there = "in '.*step STEP'; RANK has not come there"
    stands_still(case, "stop", f"has waited {WAIT} s for the others {there}")


# ------------------------------------------------------------------------------------- it is hit from outside


def come_so_far(case: Case, job: Job) -> bool:
    if job.until(lambda: job.moment() is not None):
        return True
    job.kill()
    case.fault("this script", f"the job has not come so far: {job.text()[-300:]}")
    return False


def killed(case: Case) -> None:
    least = somewhere(case, LAST)
    job = case.start("quick")
    if come_so_far(case, job):
        time.sleep(case.rng.uniform(0, 0.1))
        os.kill(job.pids()[case.rank], signal.SIGKILL)
        case.ends(job, of_launcher(case, job), since=time.monotonic(), ours=0)
        case.goes_on(least=least)


def killed_early(case: Case) -> None:
    job = case.start("quick")
    job.until(lambda: case.rank in job.pids())
    time.sleep(case.rng.uniform(0, 2.0))
    if job.ended() or case.rank not in job.alive():
        case.skipped = "it had ended before"
        return
    os.kill(job.pids()[case.rank], signal.SIGKILL)
    # Before MPI has begun Open MPI may say nothing of it, and MPICH name the process that it ended itself.
    case.ends(job, of_launcher(case, job), since=time.monotonic(), ours=0, silent=True)
    if (case.out / "config.json").exists():
        case.goes_on()


def spoil(case: Case, part: str) -> None:
    """A picture of a part of the set cannot be read any more, behind some step; it is mended again."""
    least = somewhere(case, 2 * PER_EPOCH - 1 if part == "train" else LAST)  # an epoch later it is met
    shutil.copytree(case.pictures, case.folder / "pictures")
    case.pictures = case.folder / "pictures"
    path = case.rng.choice(sorted((case.pictures / part).rglob("*.png")))
    content = path.read_bytes()
    job = case.start("quick", "--stream")
    if not come_so_far(case, job):
        return
    case.did += f", {path.relative_to(case.pictures)}"
    path.write_bytes(content[:60])
    name = path.relative_to(case.pictures).as_posix()
    says = rf"minires: error: rank \d+ \(\S+\): .*\n  {name}: cannot read this picture"
    case.ends(job, says, since=time.monotonic(), status=1)
    path.write_bytes(content)
    case.goes_on(least=least)


def one_folder(case: Case) -> None:
    """Two jobs at once: one trains, and the other is refused."""
    jobs = [case.start("nothing")]
    time.sleep(case.rng.choice([0.0, case.rng.uniform(0, 1.0)]))
    jobs.append(case.start("nothing"))
    case.did = "two jobs at once"
    for job in jobs:
        job.until(job.ended)
    good = [job for job in jobs if job.status == 0]
    if len(good) != 1:
        return case.fault("status", f"{[job.status for job in jobs]}: {[job.text()[-300:] for job in jobs]}")
    refused = next(job for job in jobs if job is not good[0])
    says = r"minires: error: .*(is being trained|trains|holds a run already)"
    case.ends(refused, says, since=refused.began)
    case.seconds = None
    if names := different(case.out, reference(case)):
        case.fault("different", f"{len(names)} arrays of the model, such as {names[0]}")
    return None


def nan_weights(case: Case) -> None:
    from minires.train import checkpoint

    arrays, info = checkpoint.read(reference(case) / "model.safetensors")
    name = case.rng.choice(sorted(name for name in arrays if name.endswith("weight")))
    arrays[name].reshape(-1)[0] = float("nan")
    start = case.folder / "start.safetensors"
    checkpoint.write(start, arrays, info)
    job = case.start("nothing", "--start-from", str(start))
    case.did = f"NaN in {name}"
    says = rf"minires: error: .*First not finite: the parameter {name} .*, on rank \d+ \(\S+\)\. The run is"
    case.ends(job, says, since=time.monotonic())


def launcher(case: Case) -> None:
    if case.other is None:
        case.skipped = "no --mpiexec of another MPI"
        return
    job = case.job([case.other, "-n", str(case.ranks), *case.program()])
    case.did = case.other
    says = rf"minires: error: .*started {case.ranks} processes, but MPI sees 1: mpi4py uses .*; use "
    says += re.escape(case.launcher.mpirun)
    case.ends(job, says, since=job.began)
    if case.out.exists():
        case.fault("lost", "nothing was begun, but there is a folder")


# --------------------------------------------------------------------------------------------- told to stop


def told(case: Case, by: str) -> None:
    least = somewhere(case, LAST)
    script = by == "SIGTERM" and case.rng.random() < 0.3
    job = case.start("slow", script=script)
    if not come_so_far(case, job):
        return
    since = time.monotonic()
    if by == "STOP":
        (case.out / "STOP").touch()
        status, words = 130, "the file STOP"
    elif by == "SIGUSR1":
        job.process.send_signal(signal.SIGUSR1)
        status, words = 128 + signal.SIGUSR1, by
    else:
        os.kill(job.pids()[case.rank], signal.SIGTERM)
        status, words = 128 + signal.SIGTERM, by
    says = rf"minires: stopped after step \d+ by {words}; everything is saved in "
    case.ends(job, says, since=since, status=None if script else status, tracebacks=int(script))
    if (case.out / "STOP").exists():
        case.fault("left", "the file STOP is still there")
    case.goes_on(ranks=case.ranks, least=least)


KINDS: dict[str, Callable[[Case], None]] = {
    "raises": raises,
    "raises in validation": raises_in_validation,
    "exits": exits,
    "leaves": leaves,
    "vanishes": vanishes,
    "killed": killed,
    "killed early": killed_early,
    "sleeps": sleeps,
    "stopped": stopped,
    "picture": lambda case: spoil(case, "train"),
    "validation": lambda case: spoil(case, "val"),
    "test": lambda case: spoil(case, "test"),
    "nan": nan,
    "nan weights": nan_weights,
    "launcher": launcher,
    "one folder": one_folder,
    "SIGTERM": lambda case: told(case, "SIGTERM"),
    "SIGUSR1": lambda case: told(case, "SIGUSR1"),
    "STOP": lambda case: told(case, "STOP"),
}


def attempt(
    kind: str, seed: int, base: Path, launch: Launcher, *, ranks: int = 2, other: str | None = None,
    keep: bool = False,
) -> Case:  # fmt: skip
    """One case, whose choices follow from its kind and ``seed``, in a folder below ``base``."""
    case = Case(kind, seed, base, launch, ranks, other)
    reference(case)
    try:
        KINDS[kind](case)
    except Exception:
        case.fault("this script", traceback.format_exc())
    finally:
        if not keep:
            case.clear()
    return case


def work(job: int, options: argparse.Namespace, base: Path, launch: Launcher) -> Iterator[dict[str, Any]]:
    """Each kind ``times`` times, in turn, so that all kinds are there early; a job's share."""
    for seed in range(options.seed + job, options.seed + options.times, options.jobs):
        for kind in options.kinds:
            if options.minutes is not None and time.monotonic() > options.began + 60 * options.minutes:
                return
            case = attempt(
                kind, seed, base, launch, ranks=options.ranks, other=options.mpiexec, keep=options.keep
            )
            told = ("seed", "kind", "did", "seconds", "resumed", "skipped", "silent", "faults")
            yield {name: getattr(case, name) for name in told}


def many(options: argparse.Namespace, base: Path, launch: Launcher) -> list[dict[str, Any]]:
    """All cases; what is compiled and compared with is made before."""
    first = Case("reference", 0, base, launch, options.ranks)
    for stream in (False, True):
        reference(first, stream=stream)
    first.clear()
    found = []
    for case in in_jobs(options.jobs, lambda job: work(job, options, base, launch)):
        found.append(case)
        ended = "" if case["seconds"] is None else f", ended {case['seconds']:.1f} s later"
        on = f", resumed on {case['resumed']}" if case["resumed"] else ""
        silent = ", its launcher said nothing" if case["silent"] else ""
        print(f"{case['seed']} {case['kind']}: {case['did']}{ended}{on}{silent}{case['skipped']}", flush=True)
        for fault in case["faults"]:
            print(f"    {fault}", flush=True)
    return found


def report(cases: list[dict[str, Any]], kinds: list[str]) -> dict[str, Any]:
    """The counts, printed and returned."""
    rows = {}
    head = f"{'kind':<22}{'times':>7}{'with faults':>13}{'skipped':>9}"
    print(f"\n{head}{'ended after, s: median':>24}{'longest':>9}")
    for kind in kinds:
        mine = [case for case in cases if case["kind"] == kind]
        took = sorted(case["seconds"] for case in mine if case["seconds"] is not None)
        rows[kind] = {
            "times": len(mine),
            "with faults": sum(bool(case["faults"]) for case in mine),
            "skipped": sum(bool(case["skipped"]) for case in mine),
            "median seconds": took[len(took) // 2] if took else None,
            "longest seconds": took[-1] if took else None,
        }
        times, faulty, skipped, *both = rows[kind].values()
        median, longest = ("-" if one is None else f"{one:.1f}" for one in both)
        print(f"{kind:<22}{times:>7}{faulty:>13}{skipped:>9}{median:>24}{longest:>9}")
    faults: dict[str, int] = {}
    for case in cases:
        for name in {fault.partition(":")[0] for fault in case["faults"]}:
            faults[name] = faults.get(name, 0) + 1
    print("\nfaults:", ", ".join(f"{count} {name}" for name, count in faults.items()) or "none")
    silent = sum(case["silent"] for case in cases)
    print("cases of which the launcher said nothing:", silent)
    told = ("kind", "seed", "did", "faults")
    examples = [{name: case[name] for name in told} for case in cases if case["faults"]]
    return {
        "cases": len(cases), "kinds": rows, "launcher silent": silent, "faults": faults,
        "examples": examples[:50],
    }  # fmt: skip


def main() -> int:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("--times", type=int, default=3, help="how often each kind")
    parser.add_argument("--jobs", type=int, default=1, help="how many cases at a time")
    parser.add_argument("--minutes", type=float, help="begin no case after so many")
    parser.add_argument("--seed", type=int, default=0, help="the number of the first case of each kind")
    parser.add_argument("--ranks", type=int, default=2, help="of how many ranks a job is")
    parser.add_argument(
        "--kinds", type=lambda text: text.split(","), default=list(KINDS), help=", ".join(KINDS)
    )
    parser.add_argument("--mpirun", help="the launcher that belongs to mpi4py, if it is not beside Python")
    parser.add_argument("--mpiexec", metavar="PATH", help="the launcher of another MPI, for that kind")
    parser.add_argument("--keep", action="store_true", help="keep the folders of the cases")
    parser.add_argument("--save", type=Path, metavar="FILE.json")
    options = parser.parse_args()
    if unknown := [kind for kind in options.kinds if kind not in KINDS]:
        parser.error(f"there is no kind {unknown[0]}; there are {', '.join(KINDS)}")
    try:
        launch = Launcher.found(options.mpirun)
    except LookupError as error:
        parser.error(str(error))
    options.began = time.monotonic()
    base = Path(tempfile.mkdtemp(prefix="ranks-"))
    pictures(base / "pictures")
    try:
        result = report(many(options, base, launch), options.kinds)
    finally:
        if options.keep:
            print(f"the folders of the cases are in {base}")
        else:
            shutil.rmtree(base, ignore_errors=True)
    seconds = time.monotonic() - options.began
    print(f"{result['cases']} cases, {seconds:.0f} s; {launch.mpi}, {options.ranks} ranks")
    if options.save:
        told = {
            "machine": machine(), "mpi": launch.mpi, "ranks": options.ranks, "first": options.seed,
            "seconds": round(seconds), **result,
        }  # fmt: skip
        options.save.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return bool(result["faults"])


if __name__ == "__main__":
    sys.exit(main())

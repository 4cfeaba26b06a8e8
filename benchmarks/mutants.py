"""Small faults put into the engine, one at a time: how many of them do the tests of the changed file notice?

    python benchmarks/mutants.py --mutants 300 [--files relu.py conv2d]
    python benchmarks/mutants.py --again

A mutant is a copy of the package in which one place of one file is changed: an operator, a comparison, a
number, a condition, a default, what is returned. The places are drawn at random, from a seed, more of them in
larger files. The tests of that file are run on it, and no others (``tests_of.py``): a test that fails or
hangs kills the mutant; one that no test notices has survived, and is printed.

The counts stand in ``results/mutants.json`` after every mutant, and a run that was interrupted goes on from
there. ``--again`` runs the survivors again, after tests were added. A survivor that computes the same as the
code before it is named in ``equivalent_mutants.json``, with the reason, and does not count.

What is changed, and what is left out, stands in ``mutations.py``. It needs a system that can fork.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mutations import Mutant, mutants_of, same
from tests_of import engine, tests_of

HERE = Path(__file__).resolve().parents[1]
RESULT = Path("benchmarks/results/mutants.json")
EQUIVALENT = Path("benchmarks/equivalent_mutants.json")
FOLDERS = ("minires", "tests", "benchmarks", "tutorials")
HEAVY = ("numpy", "pytest", "numba", "hypothesis", "torch", "PIL")


def run_tests(arguments: list[str], copy: Path, patience: float) -> tuple[str, float]:
    """Run pytest in a copy, in a process forked from this one: "passed", "failed" or "hangs", and seconds."""
    began = time.monotonic()
    if not (child := os.fork()):
        with contextlib.suppress(BaseException):
            os.setsid()
            os.chdir(copy)
            output = os.open(copy / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for stream in (1, 2):
                os.dup2(output, stream)
            sys.path.insert(0, str(copy))
            os.environ |= {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
            code = importlib.import_module("pytest").main(["-x", "-q", "-p", "no:cacheprovider", *arguments])
            sys.stdout.flush()
            os._exit(int(code))
        os._exit(99)
    while time.monotonic() - began < patience:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return ("passed" if code == 0 else "failed"), time.monotonic() - began
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "hangs", patience


@contextlib.contextmanager
def changed(mutant: Mutant, copy: Path) -> Iterator[None]:
    """The file of a copy with the mutant in it; afterwards as it was, with its time, so that caches hold."""
    path = copy / mutant.file
    before, times = path.read_bytes(), path.stat()
    path.write_bytes(before[: mutant.start] + mutant.new.encode() + before[mutant.stop :])
    try:
        yield
    finally:
        path.write_bytes(before)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def drawn(root: Path, count: int, seed: int, only: list[str]) -> dict[str, list[Mutant]]:
    """The mutants of each file, at least two, more of files with more lines that can be changed."""
    every = {path.relative_to(root).as_posix(): mutants_of(path, root) for path in engine(root)}
    lines = {file: len({one.line for one in mutants}) for file, mutants in every.items()}
    chosen = {}
    for file, mutants in every.items():
        number = min(len(mutants), max(2, round(count * lines[file] / sum(lines.values()))))
        if number and (not only or any(part in file for part in only)):
            chosen[file] = random.Random(f"{seed} {file}").sample(mutants, number)
    return chosen


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


class Campaign:
    """The mutants of a run on a copy, and the file with the counts."""

    def __init__(self, root: Path, copy: Path, patience: float) -> None:
        self.root, self.copy, self.result, self.patience = root, copy, root / RESULT, patience
        self.result.parent.mkdir(parents=True, exist_ok=True)
        self.files: dict[str, Any] = {}
        if self.result.exists():
            self.files = json.loads(self.result.read_text(encoding="utf-8"))["files"]
        self.equivalent: list[dict[str, Any]] = []
        if (root / EQUIVALENT).exists():
            self.equivalent = json.loads((root / EQUIVALENT).read_text(encoding="utf-8"))
        for folder in FOLDERS:
            if (root / folder).exists():
                shutil.copytree(root / folder, copy / folder)
        for path in root.glob("*.*"):
            if path.is_file():
                shutil.copy2(path, copy)
        self.times: dict[str, float] = {}  # of the tests on the code as it is

    def done(self, file: str) -> int:
        """How many mutants of a file were run before."""
        return int(self.files.get(file, {"mutants": 0})["mutants"])

    def outcome(self, mutant: Mutant) -> str:
        """Raises: RuntimeError if the tests fail on the code as it is."""
        tests = tests_of(mutant, self.root)
        key = " ".join(tests)
        if key not in self.times:
            found, self.times[key] = run_tests(tests, self.copy, 600)
            if found != "passed":
                output = (self.copy / "output.txt").read_text()[-2000:]
                raise RuntimeError(f"{mutant.file}: without a mutant its tests {key!r}: {found}\n{output}")
        with changed(mutant, self.copy):
            return run_tests(tests, self.copy, self.patience + 4 * self.times[key])[0]

    def run(self, file: str, mutants: list[Mutant]) -> Iterator[tuple[Mutant, str]]:
        """Run those that were not run yet. A file that has changed since begins anew."""
        found = self.files.get(file, {})
        if found.get("source") != digest(self.root / file) or found["mutants"] > len(mutants):
            found = {"source": digest(self.root / file), "mutants": 0, "killed": 0, "survived": []}
        self.files[file] = found
        for mutant in mutants[found["mutants"] :]:
            outcome = self.outcome(mutant)
            found["mutants"] += 1
            if outcome == "passed":
                found["survived"].append(mutant.described())
            else:
                found["killed"] += 1
            self.write()
            yield mutant, outcome

    def again(self, file: str) -> Iterator[tuple[Mutant, str]]:
        """Run the survivors of a file again."""
        found = self.files[file]
        for old in list(found["survived"]):
            every = mutants_of(self.root / file, self.root)
            mutant = next((one for one in every if same(one.described(), old)), None)
            if mutant is None or any(same(mutant.described(), other) for other in self.equivalent):
                continue  # the code is not there any more, or nothing can notice it
            outcome = self.outcome(mutant)
            if outcome != "passed":
                found["survived"].remove(old)
                found["killed"] += 1
                self.write()
            yield mutant, outcome

    def write(self) -> None:
        left = [one for found in self.files.values() for one in found["survived"]]
        equivalent = [one for one in left if any(same(one, other) for other in self.equivalent)]
        mutants = sum(found["mutants"] for found in self.files.values())
        killed = sum(found["killed"] for found in self.files.values())
        result = {"mutants": mutants, "killed": killed, "equivalent": len(equivalent),
                  "survived": len(left) - len(equivalent),
                  "share_killed": round(killed / max(1, mutants - len(equivalent)), 4),
                  "files": self.files}  # fmt: skip
        whole = self.result.with_suffix(".new")
        whole.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        whole.replace(self.result)


def main() -> int:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("--mutants", type=int, default=300, help="how many, about")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--files", nargs="*", default=[], help="only those with one of these in the path")
    parser.add_argument("--root", type=Path, default=HERE, help="another checkout")
    text = "seconds beyond four times what tests take on the code as it is, after which they hang"
    parser.add_argument("--patience", type=float, default=30, help=text)
    parser.add_argument("--again", action="store_true", help="run the survivors again, and nothing else")
    options = parser.parse_args()
    for name in HEAVY if options.root == HERE else HEAVY[:2]:  # once for all that are forked
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    with tempfile.TemporaryDirectory() as folder:
        campaign = Campaign(options.root.resolve(), Path(folder).resolve(), options.patience)
        chosen = drawn(campaign.root, options.mutants, options.seed, options.files)
        left = sum(len(mutants) for mutants in chosen.values())
        left -= sum(min(campaign.done(file), len(chosen[file])) for file in chosen)
        if options.again:
            left = sum(len(found["survived"]) for found in campaign.files.values())
        began, done = time.monotonic(), 0
        for file, mutants in sorted(chosen.items(), key=lambda one: "cuda" in one[0]):  # the slow ones last
            if options.again and file not in campaign.files:
                continue
            try:
                outcomes = campaign.again(file) if options.again else campaign.run(file, mutants)
                for mutant, outcome in outcomes:
                    done += 1
                    seconds = (time.monotonic() - began) / done * max(0, left - done)
                    told = "SURVIVED" if outcome == "passed" else f"killed ({outcome})"
                    what = f"{mutant.file}:{mutant.line} {mutant.change}: {told}"
                    print(f"{what}, about {seconds:.0f} s left", flush=True)
            except RuntimeError as error:
                print(f"left out: {error}", flush=True)
        campaign.write()
    result = json.loads(campaign.result.read_text(encoding="utf-8"))
    print({key: value for key, value in result.items() if key != "files"})
    return 0 if result["survived"] == 0 else 1


if __name__ == "__main__":
    sys.exit(main())

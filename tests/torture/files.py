"""Damaged and hostile files of every kind that minires reads: the same content, or one clear refusal.

    python tests/torture/files.py --cases 10000 --seed 0 --jobs 2 --save files.json
    python tests/torture/files.py --kinds "zip,keras .h5" --cases 500 --show
    python tests/torture/files.py --only "zip:17"        # one case again; files are kept, errors shown whole

A case takes a whole file (samples.py), damages any bytes of it (mutations.py) or what its format is made of
(formats.py), and opens it as a user does, in a process of its own: 20 seconds, and 1 GB of memory beyond
what it began with, its own child processes included. The files of hostile.py are made by hand, and tried
once each. What may come out:

    same       the content is that of the whole file
    different  another content, of a format without a checksum, or where the checksum was made anew
    refused    a MiniresError that names the file

Every other outcome is a fault:

    silently different   another content, although a checksum in the file tells
    taken                a hostile file was read as if there were nothing wrong
    unnamed              refused, but the message does not say which file
    traceback            another exception
    crash, hang, memory  the process died, took too long, or took too much
    code run             a file made the process run its code
    wrote outside        there is a file where none should be; or a result of what was refused
    left a process       a child process that is still there
    raw text             bytes that steer a terminal reached it
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hostile
import hostile_paths  # noqa: F401  (adds to the list of hostile.py)
import samples
from attempts import FINE, attempt, judge
from processes import ALONE, in_jobs, machine

FAULTS = (
    "silently different",
    "taken",
    "unnamed",
    "traceback",
    "crash",
    "hang",
    "memory",
    "code run",
    "wrote outside",
    "left a process",
    "raw text",
)
# -------------------------------------------------------------------------------------------- one case


class Samples:
    """The whole files of each kind, and what their doors say of them; made when first asked for."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self._known: dict[str, tuple[dict[str, bytes], list[dict[str, str]], str]] = {}

    def of(self, name: str) -> tuple[dict[str, bytes], list[dict[str, str]], str]:
        """The files by their paths, the contents that are right, and why there is none, if there is none."""
        import samples

        if name in self._known:
            return self._known[name]
        kind, folder = samples.KINDS[name], self.base / f"whole {len(self._known)}"
        folder.mkdir()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kind.make(folder)
        files = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        right, why = [], ""
        # Without the newest checkpoint the one before it is what is right, too.
        for number, left_out in enumerate([None, *sorted(folder.glob("run/checkpoint-*"))[-1:]]):
            place = self.base / f"whole {len(self._known)}-{number}"
            written(files, place)
            target = sorted(place.glob(kind.target))[0]
            if left_out is not None:
                (place / left_out.relative_to(folder)).unlink()
            for path in [target] if kind.target != "*" else sorted(place.glob("*")):
                outcome = attempt(lambda: kind.door(place, path), self.base / "log")  # noqa: B023
                if outcome.verdict == "ok":
                    right.append(outcome.content or {})
                else:
                    why = f"{outcome.verdict}: {outcome.text[:300]}"
        self._known[name] = files, right, why
        return self._known[name]


def written(files: dict[str, bytes], folder: Path) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def changed(kind: Any, name: str, seed: int, files: dict[str, bytes], folder: Path) -> tuple[Path, str, bool]:
    """Write the files of a case; which file was changed, how, and whether its checksums were made anew."""
    rng = random.Random(zlib.crc32(f"{name}:{seed}".encode()))
    written(files, folder)
    targets = sorted(path for path in folder.glob(kind.target) if path.is_file())
    chosen = targets if kind.all_at_once else [rng.choice(targets)]
    texts, sealed = [], False
    for path in chosen:
        mutate = rng.choice(kind.changes)
        change = mutate(rng, path.read_bytes())
        if rng.random() < 0.1:  # twice
            again = rng.choice([one for one in kind.changes if one.__name__ == "some_bytes"] or [mutate])
            change, first = again(rng, change.data), change
            texts.append(first.text)
            sealed |= first.sealed
        path.write_bytes(change.data)
        texts.append(f"{path.name}: {change.text}")
        sealed |= change.sealed
    return chosen[0], "; ".join(texts), sealed


def case(samples_of: Samples, name: str, seed: int, *, show: bool = False) -> tuple[str, str]:
    """Case ``seed`` of a kind: the verdict, and what it was."""
    folder = samples_of.base / f"case {os.getpid()}" / name.replace("/", "-")
    if folder.parent.exists():
        shutil.rmtree(folder.parent)
    folder.mkdir(parents=True)
    canary, log = folder.parent / "canary", folder.parent / "log"
    os.environ["TORTURE_CANARY"] = str(canary)
    if name == "hostile":
        one = hostile.FILES[seed % len(hostile.FILES)]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                path = one.make(folder)
        except OSError as error:
            return "refused", f"{one.name}: this system cannot make it: {error}"
        outcome, text = attempt(lambda: one.door(folder, path), log, show=show), one.name
        sealed, checked, named, right = True, "", one.named, []
        if outcome.verdict == "ok" and "ok" not in one.fine:
            outcome.verdict, outcome.text = "taken", str(outcome.content)[:200]
    else:
        kind = samples.KINDS[name]
        files, right, _ = samples_of.of(name)
        path, text, sealed = changed(kind, name, seed, files, folder)
        outcome = attempt(lambda: kind.door(folder, path), log, show=show)
        checked, named = kind.checked, kind.named
    judge(outcome, path, right, sealed=sealed, checked=checked, named=named)
    if outcome.verdict == "refused" and list(folder.rglob("imported.safetensors")):
        outcome.verdict = "wrote outside"
    beside = {one.name for one in folder.parent.iterdir()} - {"canary", "log", folder.name}
    if beside or os.path.exists("/tmp/escaped"):
        outcome.verdict, outcome.text = "wrote outside", f"{beside or '/tmp/escaped'}; {outcome.text}"
    if canary.exists():
        outcome.verdict = "code run"
    if (
        outcome.verdict != "raw text"
        and name == "hostile"
        and steers(log.read_bytes() if log.exists() else b"")
    ):
        outcome.verdict = "raw text"
    if show:
        print(f"its files: {folder}", f"{outcome.seconds:.2f} s, {outcome.grown / 1e6:.0f} MB more", sep="\n")
    return outcome.verdict, f"{text}\n    {outcome.text}" if outcome.verdict not in FINE or show else text


def steers(content: bytes) -> bool:
    """Whether what was printed holds bytes that a terminal obeys."""
    return any(byte < 32 and byte not in b"\n\t\r" for byte in content)


# ------------------------------------------------------------------------------------------------ many


def work(cases: list[tuple[str, int]], samples_of: Samples) -> Iterator[dict[str, Any]]:
    for name, seed in cases:
        began = time.monotonic()
        try:
            verdict, text = case(samples_of, name, seed)
        except Exception:
            verdict, text = "this script", traceback.format_exc()
        seconds = time.monotonic() - began
        text = text if verdict not in FINE else ""
        yield {"kind": name, "seed": seed, "verdict": verdict, "text": text, "seconds": seconds}


def distinct(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first case of each fault: of a traceback by its kind and place, of others by kind and verdict."""
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for one in results:
        if one["verdict"] in FINE:
            continue
        told = one["text"].rpartition("\n")[2].strip()
        key = (
            (one["verdict"], told.partition(":")[0], told.rpartition("(")[2])
            if one["verdict"] == "traceback"
            else (one["verdict"],)
        )
        mine = found.setdefault(
            (one["kind"], *key, one["text"].partition("\n")[0] if one["kind"] == "hostile" else ""),
            {**one, "count": 0},
        )
        mine["count"] += 1
    return list(found.values())


def report(results: list[dict[str, Any]], options: argparse.Namespace, samples_of: Samples) -> dict[str, Any]:
    """The table, printed and returned."""
    used = [
        name for name in (*FINE, *FAULTS, "this script") if any(one["verdict"] == name for one in results)
    ]
    width = max(9, *(len(name) + 2 for name in used)) if used else 9
    kinds = {}
    print(f"{'kind':<20}{'cases':>7}" + "".join(f"{name:>{width}}" for name in used) + f"{'cases/s':>9}")
    for name in [*options.kinds, "hostile"]:
        mine = [one for one in results if one["kind"] == name]
        if not mine:
            continue
        counts = collections.Counter(one["verdict"] for one in mine)
        rate = len(mine) / max(1e-9, sum(one["seconds"] for one in mine))
        why = (
            ""
            if name == "hostile" or samples_of.of(name)[1]
            else f"  (not read: {samples_of.of(name)[2][:60]})"
        )
        print(
            f"{name:<20}{len(mine):>7}"
            + "".join(f"{counts[one] or '':>{width}}" for one in used)
            + f"{rate:>9.1f}{why}"
        )
        kinds[name] = {"cases": len(mine), **{one: counts[one] for one in used if counts[one]}} | (
            {"not read": True} if why else {}
        )
    faults = distinct(results)
    if options.show:
        for one in faults:
            print(
                f"\n{one['count']} x {one['verdict']}: {one['kind']}: {one['text']}",
                f"    --only '{one['kind']}:{one['seed']}'",
                sep="\n",
            )
    total = collections.Counter(one["verdict"] for one in results)
    return {
        "cases": len(results),
        **{name: total[name] for name in (*FINE, *FAULTS)},
        "kinds": kinds,
        "distinct faults": faults,
    }


def warm(samples_of: Samples) -> None:
    """Import all that doors use, and load the kernels, before anything is forked."""
    import h5py  # noqa: F401
    from PIL import Image

    import minires.commands.data
    import minires.plan
    import minires.train
    import minires.weights  # noqa: F401

    with contextlib.suppress(ImportError):  # the kinds that it writes need it
        import torch  # noqa: F401
    Image.init()
    folder = samples_of.base / "warm"
    for name in ("own model", "checkpoint"):
        (folder / name).mkdir(parents=True)
        samples.KINDS[name].make(folder / name)
        samples.KINDS[name].door(folder / name, folder / name / "model.safetensors")


def main() -> int:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument(
        "--cases", type=int, default=1000, help="how many, of all kinds together, beside the hostile files"
    )
    parser.add_argument("--seed", type=int, default=0, help="the number of the first case of each kind")
    parser.add_argument("--kinds", type=lambda text: text.split(","), help='of samples.py, and "hostile"')
    parser.add_argument("--jobs", type=int, default=1, help="how many cases at a time")
    parser.add_argument(
        "--only", metavar="KIND:SEED", help="this case alone, with all that it prints; its files are kept"
    )
    parser.add_argument("--show", action="store_true", help="the first case of each distinct fault")
    parser.add_argument("--save", type=Path, metavar="FILE.json")
    options = parser.parse_args()
    os.environ.update(ALONE)

    base = Path(tempfile.mkdtemp(prefix="files-"))
    samples_of = Samples(base)
    warm(samples_of)
    if options.only is not None:
        name, _, seed = options.only.rpartition(":")
        print(*case(samples_of, name, int(seed), show=True), sep="\n")
        return 0
    with_hostile = not options.kinds or "hostile" in options.kinds
    options.kinds = [name for name in options.kinds or samples.KINDS if name != "hostile"]
    count = len(options.kinds)
    cases = [
        (options.kinds[i % count], options.seed + i // count) for i in range(options.cases if count else 0)
    ]
    cases += [("hostile", number) for number in range(len(hostile.FILES) if with_hostile else 0)]
    try:
        for name in options.kinds:
            samples_of.of(name)
        began = time.time()
        results = list(in_jobs(options.jobs, lambda job: work(cases[job :: options.jobs], samples_of)))
        result = report(results, options, samples_of)
    finally:
        shutil.rmtree(base, ignore_errors=True)
    seconds = time.time() - began
    bad = sum(result[name] for name in FAULTS)
    print(
        f"{result['cases']} cases, {bad} faults, {len(result['distinct faults'])} distinct, {seconds:.0f} s"
    )
    if options.save:
        told = {"machine": machine(), "first": options.seed, "seconds": round(seconds), **result}
        options.save.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())

"""One case of kills.py: a run in a folder of its own, what was done to it, whether its end is right."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from processes import Moment, Process, Watch, train

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
    "config.json": (1, 0.002),
    "checkpoint": (12, 0.002),
    "metrics.csv": (5, 0.003),
    "curves.png": (2, 0.3),
    "model.safetensors": (1, 0.004),
    "confusion.png": (1, 0.1),
    "mistakes.png": (1, 0.15),
    "summary.json": (1, 0.003),
}
EPOCHS = 4
IMPORTS = 1.5  # seconds that a fresh process takes to import, about


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

    lasts: ClassVar[float] = 1.0  # seconds of a whole run here; measured before the first case

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
            return Moment(
                self.rng.uniform(0.05, IMPORTS + self.lasts) if fresh else self.rng.uniform(0, self.lasts)
            )
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
    """In which part of a run it was killed, from what it left beside the temporary files ``before``."""
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

    missing = [name for name in ENDED if not (out / name).is_file() or not (out / name).stat().st_size]
    told = [one for one in warnings_of(out) if " could not be made: " in one]
    undrawn = {name for name in ENDED[4:] if any(one.startswith(f"{name} ") for one in told)}
    if lacking := [name for name in missing if name not in undrawn]:
        return [f"no {', '.join(lacking)}"]
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
        if told and name == "summary.json":
            a["warnings"] = [one for one in a["warnings"] if one not in told]
        if keys := [key for key in {**a, **b} if key not in TIMES and a.get(key) != b.get(key)]:
            found.append(f"{name}: {', '.join(keys[:4])}")
    for name in ENDED[4:]:
        try:
            if name not in missing:
                Image.open(out / name).load()
        except OSError as error:
            found.append(f"{name}: {error}")
    return found


def warnings_of(out: Path) -> list[str]:
    """What the summary of a run says of what went wrong; a figure that cannot be drawn costs nothing else."""
    try:
        return json.loads((out / "summary.json").read_text())["warnings"]
    except (OSError, ValueError, KeyError):
        return []


def began(process: Process) -> bool:
    return "; run folder " in process.text()


def all_steps(process: Process) -> bool:
    return f"epoch {EPOCHS}/{EPOCHS}" in process.text() or "testing again" in process.text()

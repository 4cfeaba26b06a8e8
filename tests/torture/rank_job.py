"""Jobs of several ranks, started by a launcher of MPI, and one case of ranks.py that is made of them."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SIDE, CLASSES = 16, ("cat", "dog", "owl")
COUNTS = {"train": 16, "val": 4, "test": 4}  # pictures of each class
EPOCHS, BATCH, EVERY = 4, 8, 2  # EVERY: steps between checkpoints
STEPS = EPOCHS * COUNTS["train"] * len(CLASSES) // BATCH
ENOUGH = "this layer has had enough"
HERE = Path(__file__).resolve().parent
ENDS_IN = 20.0  # seconds from a failure to the end of the job
PATIENCE = 120.0  # seconds for a job of which nothing is expected but its end
LOOK = 0.02  # seconds between two looks
BAD = re.compile(r"^Traceback \(most recent call last\)", re.MULTILINE)
OURS = re.compile(r"^minires: (?!warning: ).*", re.MULTILINE)  # what says why a job ends


@dataclass(frozen=True)
class Launcher:
    """The program ``mpirun``, which belongs to the MPI that is called ``mpi``."""

    mpirun: str
    mpi: str

    @classmethod
    def found(cls, mpirun: str | None = None) -> Launcher:
        """That of the MPI which mpi4py uses here. Raises: LookupError that says what is missing."""
        from minires.distributed import launcher, mpi
        from minires.errors import ConfigError

        try:
            name = mpi.library()
        except ConfigError as error:
            raise LookupError(str(error)) from error
        mpirun = mpirun or launcher.beside(sysconfig.get_path("scripts"))
        if mpirun is None:
            raise LookupError("there is neither mpirun nor mpiexec")
        return cls(mpirun, name)

    @property
    def is_open_mpi(self) -> bool:
        return self.mpi.startswith("Open MPI")

    def command(self, ranks: int, *program: str) -> list[str]:
        more = ["--oversubscribe", "--bind-to", "none"] if self.is_open_mpi else []
        return [self.mpirun, *more, "-n", str(ranks), *program]


def environment(**settings: str) -> dict[str, str]:
    """What a job is started with: what is set here, and ``settings``; as root, if that is who tests."""
    root = {}
    if hasattr(os, "geteuid") and os.geteuid() == 0:  # as where tests run in a container
        root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return {**os.environ, **root, **settings}


class Job:
    """A job that is under way; what it prints goes to ``log``, and its ranks leave notes in ``notes``."""

    def __init__(self, command: Sequence[str], log: Path, notes: Path, **settings: str) -> None:
        self.log, self.notes, self.status = log, notes, None
        notes.mkdir()
        path = os.pathsep.join([str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
        self.began = time.monotonic()
        with open(log, "wb") as file:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True,
                env=environment(**{"PYTHONPATH": path, "RANKS_NOTES": str(notes), **settings}),
            )  # fmt: skip

    def text(self) -> str:
        return self.log.read_text(errors="replace").replace("\0", "")

    def ended(self) -> bool:
        self.status = self.process.poll()
        return self.status is not None

    def until(self, is_so: Callable[[], Any], seconds: float = PATIENCE) -> bool:
        """Wait until something is so, or the job has ended, or for so long; whether it is so."""
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            if is_so():
                return True
            if self.ended():
                return bool(is_so())
            time.sleep(LOOK)
        return False

    def moment(self) -> float | None:
        """When that rank of the job had come so far that is to fail."""
        with suppress(OSError):
            return float((self.notes / "moment").read_text())
        return None

    def pids(self) -> dict[int, int]:
        """The ranks and their processes, as far as they have begun."""
        return {int(path.name[5:]): int(path.read_text()) for path in self.notes.glob("rank-*")}

    def alive(self) -> list[int]:
        """The ranks whose processes are there, not yet or no longer those that nobody has waited for."""
        found = []
        for rank, pid in self.pids().items():
            with suppress(OSError):
                if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                    found.append(rank)
        return found

    def kill(self) -> None:
        """End what is left of it."""
        pids = self.pids()
        for pid in [*(pids[rank] for rank in self.alive()), *([] if self.ended() else [self.process.pid])]:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self.status = self.process.returncode


@dataclass
class Case:
    """What was done to a run, and what became of it."""

    kind: str
    seed: int
    base: Path = field(repr=False)
    launcher: Launcher
    ranks: int
    other: str | None = None  # the launcher of another MPI
    did: str = ""
    faults: list[str] = field(default_factory=list)
    skipped: str = ""
    silent: bool = False  # the launcher said nothing of it
    seconds: float | None = None  # from the failure to the end of the job
    resumed: int = 0  # on so many ranks

    def __post_init__(self) -> None:
        self.rng = random.Random(f"{self.kind} {self.seed}")
        self.folder = self.base / f"{self.kind.replace(' ', '-')}-{self.seed}"
        self.out, self.pictures = self.folder / "run", self.base / "pictures"
        self.folder.mkdir()
        self._jobs: list[Job] = []
        self.rank, self.step = self.rng.randrange(self.ranks), 0

    def fault(self, what: str, text: str) -> None:
        self.faults.append(f"{what}: {text}")

    # --------------------------------------------------------------------------------------------- to start

    def job(self, command: Sequence[str], **settings: str) -> Job:
        number = len(self._jobs) + 1
        made = Job(command, self.folder / f"{number}.log", self.folder / f"notes-{number}", **settings)
        self._jobs.append(made)
        return made

    def program(self) -> list[str]:
        """What each rank of a new run runs."""
        return minires("train", "--recipe", "ranks", "--data", str(self.pictures), "--out", str(self.out))

    def start(
        self, plan: str, *more: str, script: bool = False, **settings: str
    ) -> Job:  # fmt: skip
        """Begin the run, of which one rank is to do what ``plan`` says in its step ``self.step``."""
        program = [*self.program(), *more]
        if script:
            program = [sys.executable, str(HERE / "rank_net.py"), str(self.pictures), str(self.out)]
        self.did = f"{plan}, rank {self.rank}, step {self.step}{', a script' * script}"
        settings["RANKS_PLAN"] = f"{plan}:{self.rank}:{self.step}"
        return self.job(self.launcher.command(self.ranks, *program), **settings)

    # ------------------------------------------------------------------------------------------ what is asked

    def ends(
        self, job: Job, says: str, *, since: float | None = None, tracebacks: int = 0,
        status: int | None = None, ours: int = 1, silent: bool = False,
    ) -> bool:  # fmt: skip
        """Look whether the job ends in time, with a ``status``, or another than 0, and says once what it
        should, or perhaps nothing where it may be ``silent``; whether its failure came at all. ``ours`` is
        how many sentences of our own there are."""
        if since is None and not job.until(lambda: job.moment() is not None):
            job.kill()
            self.fault("this script", f"the failure did not come: {job.text()[-300:]}")
            return False
        since = job.moment() if since is None else since
        assert since is not None
        if not job.until(job.ended, since + ENDS_IN - time.monotonic()):
            where = job.alive()
            job.kill()
            self.fault("hang", f"the job was there {ENDS_IN:.0f} s later, ranks {where}: {job.text()[-300:]}")
            return True
        self.seconds = round(time.monotonic() - since, 2)
        limit = time.monotonic() + 3
        while (left := job.alive()) and time.monotonic() < limit:
            time.sleep(LOOK)
        if left:
            self.fault("left", f"the job has ended, but ranks {left} are there")
            job.kill()
        text, name = job.text(), says.replace("RANK", rf"rank {self.rank} \(\S+\)")
        found = len(re.findall(name, text))
        if not found and silent:
            self.silent = True
        elif found != 1:
            self.fault("said", f"{found} times {name!r}: {shown(text)}")
        if len(said := OURS.findall(text)) != ours:
            self.fault("said", f"{len(said)} sentences, not {ours}: {shown(text)}")
        if (walls := len(BAD.findall(text))) > tracebacks:
            self.fault("tracebacks", f"{walls} of them, not {tracebacks}")
        if job.status == 0 or (status is not None and job.status != status):
            self.fault("status", f"{job.status}, not {'another than 0' if status is None else status}")
        return True

    def newest(self, *, least: int = 0) -> None:
        """Look whether the newest checkpoint can be read, and is of step ``least`` or a later one."""
        from minires.errors import MiniresError
        from minires.train import checkpoint

        paths = checkpoint.Checkpoints(self.out).paths()
        if not paths:
            return self.fault("lost", "there is no checkpoint") if least > 0 else None
        try:
            step = checkpoint.read(paths[-1])[1]["progress"]["step"]
        except MiniresError as error:
            return self.fault("damaged", str(error))
        if step < least:
            self.fault("lost", f"the newest checkpoint is of step {step}, not {least} or later")
        return None

    def goes_on(self, *, ranks: int | None = None, same: bool = True, least: int = 0) -> None:
        """Go on with the run to its end, on as many ranks as it had or on one; of as many it must be the run
        that nothing has happened to, where it can be the ``same``. What fails in its first step may leave no
        run, and begins."""
        self.newest(least=least)
        self.resumed = ranks or self.rng.choice([1, self.ranks])
        program = minires("train", "--resume", str(self.out))
        if self.step == 0 and not (self.out / "config.json").exists():
            program = self.program()
        if self.resumed > 1:
            program = self.launcher.command(self.resumed, *program)
        job = self.job(program)
        job.until(job.ended)
        job.kill()
        if job.status != 0 or not (self.out / "summary.json").exists():
            return self.fault("not resumed", f"on {self.resumed} ranks, {job.status}: {shown(job.text())}")
        if same and self.resumed == self.ranks:
            stream = self.pictures.parent == self.folder
            if names := different(self.out, reference(self, stream=stream)):
                self.fault("different", f"{len(names)} arrays of the model, such as {names[0]}")
        return None

    def clear(self) -> None:
        """End what is left of jobs, and remove their files."""
        for job in self._jobs:
            job.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


def minires(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "minires", "--import", "rank_net", *arguments]


def reference(case: Case, *, stream: bool = False) -> Path:
    """The run of as many ranks that nothing happens to, made once; it compiles what is to be compiled."""
    out = case.base / f"reference-{case.ranks}{'-stream' * stream}"
    if not (out / "summary.json").exists():
        shutil.rmtree(out, ignore_errors=True)
        program = minires("train", "--recipe", "ranks", "--data", str(case.base / "pictures"))
        program += ["--out", str(out), *(["--stream"] if stream else [])]
        job = case.job(case.launcher.command(case.ranks, *program))
        job.until(job.ended, 5 * PATIENCE)
        job.kill()
        if job.status != 0:
            raise RuntimeError(f"a run to which nothing happens ends with {job.status}: {job.text()}")
    return out


def pictures(folder: Path) -> None:
    """Write a folder of noisy pictures; the classes differ in their colour."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for part, count in COUNTS.items():
        for k, name in enumerate(CLASSES):
            (folder / part / name).mkdir(parents=True)
            for i in range(count):
                noise = rng.integers(0, 160, (SIDE, SIDE, 3), dtype=np.uint8)
                noise[..., k] += 60
                Image.fromarray(noise).save(folder / part / name / f"{i:02d}.png")


def different(out: Path, other: Path) -> list[str]:
    """The arrays of two models that are not the same, to the bit."""
    from safetensors import safe_open

    name = "model.safetensors"
    with safe_open(out / name, "numpy") as a, safe_open(other / name, "numpy") as b:
        names = set(a.keys()) ^ set(b.keys())
        both = set(a.keys()) & set(b.keys())
        names |= {name for name in both if a.get_tensor(name).tobytes() != b.get_tensor(name).tobytes()}
        return sorted(names)


def shown(text: str) -> str:
    """What a job has said, without its report and without what the launcher says of it."""
    lines = [line for line in text.splitlines() if "rror" in line or line.startswith("minires")]
    return " | ".join(lines or text.splitlines()[-4:])[-700:]

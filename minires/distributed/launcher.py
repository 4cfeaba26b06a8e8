"""Who started this process, one of how many, as the launchers of MPI say it in the environment.

Nothing of MPI is imported to find that out: outside of a launcher that would cost a second.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Launch:
    """A start by ``launcher`` of ``size`` processes, of which this is number ``rank``."""

    launcher: str
    rank: int
    size: int


# The size and the number of a process, by who sets them.
OPEN_MPI, SRUN = "mpirun of Open MPI", "srun"
_SAYS = (
    (OPEN_MPI, "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("mpiexec of MPICH", "PMI_SIZE", "PMI_RANK"),
)


def launched(environment: Mapping[str, str] = os.environ) -> Launch | None:
    """The start of this process by a launcher; None if nobody started several.

    >>> launched({"PMI_SIZE": "4", "PMI_RANK": "1"})
    Launch(launcher='mpiexec of MPICH', rank=1, size=4)
    >>> launched({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "1"})  # by srun, with or without MPI
    Launch(launcher='srun', rank=1, size=4)
    >>> launched({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"})  # in the script of a job, not by srun
    """
    for launcher, size, rank in _SAYS:
        if size in environment:  # also of one alone, which srun may have started on each machine
            count = _number(environment[size]) or 1
            return Launch(launcher, _number(environment.get(rank)) or 0, count) if count > 1 else None
    of_step = environment.get("SLURM_STEP_NUM_TASKS")
    own = environment.get("PMIX_RANK") or (environment.get("SLURM_PROCID") if of_step else None)
    count = _number(of_step or environment.get("SLURM_NTASKS")) or 1
    return Launch(SRUN, _number(own) or 0, count) if own and count > 1 else None


def mismatch(launch: Launch, seen: int, library: str, mpirun: str | None) -> str:
    """What is wrong where MPI sees another number of processes than were started, and what to do.

    >>> start = Launch("mpiexec of MPICH", 0, 4)
    >>> mismatch(start, 1, "Open MPI v5.0.11", "/venv/bin/mpirun")
    'mpiexec of MPICH started 4 processes, but MPI sees 1: mpi4py uses Open MPI v5.0.11; use /venv/bin/mpirun'
    """
    way = f"use {mpirun}" if mpirun else f"use the launcher that belongs to {library}"
    if launch.launcher == SRUN:
        way = f"tell srun so, as by --mpi=pmix, or {way}; a run of each by itself: unset SLURM_STEP_NUM_TASKS"
    started = f"{launch.launcher} started {launch.size} processes, but MPI sees {seen}"
    return f"{started}: mpi4py uses {library}; {way}"


def beside(path: str | None) -> str | None:
    """The launcher in the folder of programs of this Python, if there is one, else the one in PATH."""
    for folder in (path, None):
        for name in ("mpirun", "mpiexec"):
            if found := shutil.which(name, path=folder):
                return found
    return None


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() else None

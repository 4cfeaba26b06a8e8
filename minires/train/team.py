"""The ranks of a run as its Trainer needs them: one holds the folder and writes, and all begin, go on and
stay alike. Of a run of one process each of these does what it says, and nothing else."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from minires import backend, data
from minires.distributed import Communicator, nccl
from minires.errors import ConfigError, DataError, MiniresError
from minires.nn.module import Module
from minires.optim import Optimizer
from minires.train import checks, continuing, state
from minires.train.checkpoint import Arrays, Checkpoints
from minires.train.config import Config
from minires.train.lock import Lock
from minires.train.shared import Shared

Take = Callable[[Path, Mapping[str, Arrays], Mapping[str, Any]], None]


def hold(
    comm: Communicator, out: str | os.PathLike[str] | Iterable[Path], *, resume: bool
) -> tuple[Lock | None, Path, Path]:
    """The lock of the run folder, which rank 0 holds, the full path of the folder, and as it was named.

    Raises: as :func:`continuing.check` and :class:`Lock`, on all ranks.
    """
    locks: list[Lock] = []

    def take() -> tuple[str, str]:
        continuing.check(out, resume=resume)
        locks.append(Lock(out, make=not resume))
        return str(locks[0].folder), str(locks[0].given)

    folder, given = comm.first(take, "run folder")
    return (locks[0] if locks else None), Path(folder), Path(given)


def one_config(comm: Communicator, config: Config | Mapping[str, Any] | None, out: Path) -> Config:
    """The configuration of the run, which all ranks must have alike; None: that of the folder.

    Raises: ConfigError for what does not fit; as :func:`continuing.read_config`.
    """
    if config is None:
        read = comm.first(lambda: continuing.read_config(out).to_dict(), "configuration")
        return Config.from_dict(read)
    with comm.together("configuration"):
        config = config if isinstance(config, Config) else Config.from_dict(config)
    same_settings(comm, config.to_dict())
    return config


def same_settings(comm: Communicator, settings: Mapping[str, Any]) -> None:
    """Raises: ConfigError if a rank has other settings than rank 0."""
    first, *others = comm.exchange(settings, "configuration")
    for rank, one in enumerate(others, 1):
        if different := [
            f"{name} is {first.get(name)!r} on rank 0 and {one.get(name)!r} on rank {rank}"
            for name in {**first, **one} if one.get(name) != first.get(name)
        ]:  # fmt: skip
            raise ConfigError(
                f"the ranks were given different settings: {'; '.join(different)}. A run of several "
                "processes has one configuration, with full paths where ranks start in different folders; a "
                "script whose ranks each do a run by itself gives comm=Solo()"
            )


def one_set(comm: Communicator, splits: data.Splits) -> None:
    """Raises: DataError if a rank has other pictures than rank 0."""
    _one_known(comm, lambda: state.fingerprint(splits, without=None), splits.source)


def one_part(comm: Communicator, dataset: data.Dataset, source: str) -> None:
    """Raises: DataError if a rank has other pictures in this part than rank 0."""
    _one_known(comm, lambda: state.known(dataset, "tested"), source)


def _one_known(comm: Communicator, known: Callable[[], dict[str, Any]], source: str) -> None:
    if comm.size == 1:
        return
    other = comm.all_equal(known(), "pictures")
    if other is not None:
        raise DataError(
            f"rank {other} finds other pictures in {source} than rank 0, in number, labels or pixels; give "
            "all machines the same"
        )


def one_model(comm: Communicator, model: Module) -> None:
    """Give the models of all ranks the numbers of that of rank 0.

    Raises: ConfigError if they are other models.
    """
    if comm.size == 1:
        return
    arrays = checks.numbers(model)
    shapes = {path: [list(array.shape), str(array.dtype)] for path, array in arrays.items()}
    if (other := comm.all_equal(shapes, "model")) is not None:
        raise ConfigError(f"rank {other} was given another model than rank 0")
    copies = comm.copies({path: backend.to_device(a, "cpu") for path, a in arrays.items()}, "model")
    for path, array in arrays.items():
        if backend.is_writable(array):
            array[...] = backend.to_device(copies[path], backend.device_of(array))


def shared(
    comm: Communicator, model: Module, optimizer: Optimizer, device: str, say: Callable[[str], None]
) -> Shared | None:
    """What the ranks tell each other in a step; None for one alone. ``say`` is told what sums the gradients
    of GPUs."""
    if comm.size == 1:
        return None
    if device == "cpu":
        return Shared(model, optimizer, comm)
    found = nccl.found(comm, device)
    if isinstance(found, str):
        say(f"the gradients are copied to the host to be summed, not from GPU to GPU by NCCL: {found}")
        return Shared(model, optimizer, comm)
    say(f"the gradients are summed by NCCL {found.version}, from GPU to GPU")
    return Shared(model, optimizer, comm, found)


def latest(comm: Communicator, checkpoints: Checkpoints, take: Take) -> bool:
    """Give all ranks what the newest good checkpoint holds, by ``take``; whether there is one.

    Raises: as :meth:`Checkpoints.latest`, on all ranks.
    """
    held: dict[str, Any] = {}

    def read() -> list[Any] | None:
        def keep(path: Path, groups: Mapping[str, Arrays], info: Mapping[str, Any]) -> None:
            take(path, groups, info)
            held.update(path=path, groups=groups, info=info)

        found = checkpoints.latest(keep)
        return None if found is None else [str(found), held["info"]]

    told = comm.first(read, "checkpoint")
    if told is None:
        return False
    groups = of_first(comm, lambda: held["groups"])
    if not comm.is_first:
        take(Path(told[0]), groups, told[1])
    return True


def of_first(comm: Communicator, read: Callable[[], Mapping[str, Arrays]]) -> dict[str, Arrays]:
    """The groups of arrays that rank 0 reads, on all ranks. Raises: what ``read`` raises, on all."""
    groups: dict[str, Arrays] = {}
    comm.first(lambda: groups.update(read()), "checkpoint")
    if comm.size == 1:
        return groups
    flat = {f"{group}/{name}": array for group, part in groups.items() for name, array in part.items()}
    found: dict[str, Arrays] = {}
    for path, array in comm.copies(flat, "checkpoint").items():
        group, _, name = path.partition("/")
        found.setdefault(group, {})[name] = array
    return found


def may_save(comm: Communicator, observed: bool) -> None:
    """Raises: MiniresError if an observer asks for it, which only one of several ranks has."""
    if observed and comm.size > 1:
        raise MiniresError(
            "an observer hears of the run on rank 0 alone, and all ranks must save together; let "
            "checkpoint_every do it, or stop the run by the file STOP"
        )


def alike(comm: Communicator, model: Module, step: int) -> None:
    """Raises: MiniresError if the numbers of the model, or the states of its random generators, are not the
    same, to the bit, on all ranks."""
    if comm.size == 1:
        return
    states = json.dumps(model.random_states(), sort_keys=True, default=str)
    crc = zlib.crc32(states.encode())
    for array in checks.numbers(model).values():
        on_host = np.ascontiguousarray(backend.to_device(array, "cpu"))
        crc = zlib.crc32(on_host.reshape(-1).view(np.uint8).data, crc)
    other = comm.all_equal(crc, "parameters")
    if other is not None:
        raise MiniresError(
            f"after step {step} rank {other} has other parameters than rank 0, or draws other random "
            "numbers, so the ranks do not train one model any more, and this state is not saved. An "
            "observer, a hook or a layer changes them by what only one rank has; or this MPI does not give "
            "all ranks the same sums"
        )

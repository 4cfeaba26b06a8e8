"""Which GPU a rank computes on: each has one of its own."""

from __future__ import annotations

from minires import backend
from minires.distributed.communicator import Communicator
from minires.errors import ConfigError, counted


def chosen(comm: Communicator, device: str) -> str:
    """The device of this rank, where all of ``comm`` were told the same: a collective.

    Of "cuda" and "auto" the ranks of a machine take its GPUs in turn, ``cuda:0``, ``cuda:1``, ...; where a
    launcher shows each rank GPUs of its own, those that see the same take these in turn. "auto" is the CPU
    where no rank has a GPU. Anything else, such as "cuda:1", is taken as it is.

    Raises: ConfigError, on all ranks, if there are more of them than GPUs, or one has none.
    """
    if comm.size == 1:
        return backend.choose_device(device)
    if device not in ("cuda", "auto"):
        return device
    seen: list[str] = []
    why = ""
    try:
        seen = backend.gpus()
    except ConfigError as error:
        why = str(error)
    told = comm.exchange([comm.host, seen, why], "GPUs")
    if device == "auto" and not any(gpus for _, gpus, _ in told):
        return "cpu"
    for rank, (host, gpus, wrong) in enumerate(told):
        if not gpus:
            raise ConfigError(f"rank {rank} ({host}): {wrong}")
        sharing = sum(one[:2] == [host, gpus] for one in told)
        if sharing > len(gpus):
            raise ConfigError(
                f"{sharing} processes on {host} have {counted(len(gpus), 'GPU')}, and each needs one of its "
                f"own; start {len(gpus)} on a machine (mpirun -n {len(gpus)}), or use device='cpu'"
            )
    own = told[comm.rank][:2]
    return f"cuda:{sum(one[:2] == own for one in told[: comm.rank])}"

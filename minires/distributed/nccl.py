"""Sums of arrays that lie on GPUs, over the ranks of a run: NVIDIA's NCCL, through CuPy.

Over MPI an array would go from the GPU to the host, over the network, and back, and the host would wait for
all three. NCCL sends from GPU to GPU, over NVLink, PCI Express or the network. And a sum is a launch like
that of a kernel: the host goes on, and a CUDA graph can hold it (see minires/train/captured.py).

Nothing here is found out by NCCL itself: the ranks know each other by the ``Communicator``, by which rank 0
also gives all the name under which they meet. What cannot be had on one rank none of them uses.

Three rules of NCCL, which the callers keep:

* all ranks launch the same sums in the same order, or the GPUs of those that did wait for ever. A host that
  waits for its GPU does so in ``Communicator.waiting``, so that the watchdog sees it;
* a sum is captured into a graph by all ranks or by none, and all replay it as often;
* connections are made with the first sums, and there must be some before one is captured.

A communicator of NCCL is kept as long as the ranks are: to end one is a collective too, and must not hang on
when Python collects it.

**It has not run on a GPU yet**: it was written from the documentation of NCCL and the source of CuPy, and is
tested with a stand-in whose ranks are threads of one process.

Source: NVIDIA, NCCL documentation: Creating a Communicator, Group Calls, Using NCCL with CUDA Graphs.
"""

from __future__ import annotations

import weakref
from collections.abc import MutableMapping
from typing import Any

from minires import backend
from minires.backend import Array, cuda
from minires.distributed.communicator import Communicator
from minires.errors import ConfigError, MiniresError, ShapeError

KIND = "NCCL"
CAPTURES = 20906  # the first version whose sums a CUDA graph can hold
# The names of the dtypes in CuPy's module.
TYPES = {"float32": "NCCL_FLOAT32", "float64": "NCCL_FLOAT64", "bfloat16": "NCCL_BFLOAT16"}


class Nccl:
    """Sums arrays that lie on the GPU ``device`` over the ranks of ``comm``, each of which has another GPU.

    Making one is a collective, which ends with first sums. ``can_capture`` says whether a CUDA graph can
    hold its sums.

    Raises: ConfigError, on all ranks, if NCCL is missing on one of them, or two have the same GPU; whatever
    NCCL itself raises, and on the other ranks a MiniresError that names the one on which it did.
    """

    def __init__(self, comm: Communicator, device: str = "cuda") -> None:
        self.size = comm.size
        self.device = device if ":" in device else f"{device}:0"
        gpu, why = "", ""
        try:
            backend.make_current(self.device)
            gpu = backend.gpus()[int(self.device.partition(":")[2])]
            self._module = backend.nccl()
        except Exception as error:  # of CUDA, too: the others must hear of it
            why = str(error) or repr(error)
        _all_can(comm, gpu, why)
        name = comm.first(lambda: list(self._module.get_unique_id()), KIND)
        failed: Exception | None = None
        try:
            with comm.waiting(KIND):
                self._ranks = self._module.NcclCommunicator(comm.size, tuple(name), comm.rank)
                self._try()
        except Exception as error:  # CuPy's own type
            failed = error
        comm.agree(failed, KIND)
        number = int(self._module.get_version())  # 22809 is 2.28.9
        self.version = f"{number // 10000}.{number // 100 % 100}.{number % 100}"
        self.can_capture = number >= CAPTURES

    def _try(self) -> None:
        """Make sums whose results are known. Raises: MiniresError if they are others."""
        cupy, count = backend.cupy(), self.size
        ones = [cupy.ones(2, dtype) for dtype in ("float32", "float64")]
        self.sum(*ones)
        found = [backend.to_device(array, "cpu").tolist() for array in ones]
        if found != [[count, count]] * 2:
            raise MiniresError(f"NCCL says that the sum of {count} times 1 is {found}")

    def sum(self, *arrays: Array, stream: Any = None) -> None:
        """Launch the sums of arrays over the ranks, in place, on a stream, or that which is current: nothing
        waits for them here. Several go as one group, which takes about as long as one of their size.

        Shapes: any, without gaps; float32, float64 or bfloat16; the same on all ranks.
        Raises: ShapeError for an array that is not so, before anything is launched.
        """
        types = [self._type(array) for array in arrays]
        place = (backend.cupy().cuda.get_current_stream() if stream is None else stream).ptr
        many = len(arrays) > 1
        if many:
            self._module.groupStart()
        try:
            for array, kind in zip(arrays, types, strict=True):
                at = cuda.address(array)
                self._ranks.allReduce(at, at, array.size, kind, self._module.NCCL_SUM, place)
        finally:
            if many:
                self._module.groupEnd()

    def _type(self, array: Array) -> int:
        """The number that NCCL has for the dtype of an array. Raises: ShapeError if it cannot be summed."""
        if backend.device_of(array) != self.device:
            raise ShapeError(f"NCCL sums what lies on {self.device}, not on {backend.device_of(array)}")
        if not array.flags.c_contiguous:
            raise ShapeError(f"NCCL sums arrays without gaps, and this one of shape {array.shape} has some")
        kind = getattr(self._module, TYPES.get(str(array.dtype), ""), None)
        if kind is None:
            raise ShapeError(f"NCCL sums arrays of {', '.join(TYPES)} here, not of {array.dtype}")
        return int(kind)


def _all_can(comm: Communicator, gpu: str, why: str) -> None:
    """Raises: ConfigError if a rank cannot, for the reason ``why``, or two have one ``gpu``."""
    told = comm.exchange([comm.host, gpu, why], KIND)
    for rank, (host, _, wrong) in enumerate(told):
        if wrong:
            raise ConfigError(wrong if comm.size == 1 else f"rank {rank} ({host}): {wrong}")
    places = [one[:2] for one in told]
    for rank, place in enumerate(places):
        if (first := places.index(place)) != rank:
            raise ConfigError(
                f"rank {first} and rank {rank} use one GPU of {place[0]}, and NCCL needs one for each"
            )


_found: MutableMapping[Communicator, dict[str, Nccl | str]] = weakref.WeakKeyDictionary()


def found(comm: Communicator, device: str) -> Nccl | str:
    """NCCL for the ranks of ``comm``, made once for each device of theirs; or why it is not to be had, in
    words: a collective."""
    held = _found.setdefault(comm, {})
    if all(comm.exchange(device in held, KIND)):
        return held[device]
    try:
        held[device] = Nccl(comm, device)
    except Exception as error:  # of CuPy or CUDA, too: the run goes on without
        held[device] = str(error)
    return held[device]

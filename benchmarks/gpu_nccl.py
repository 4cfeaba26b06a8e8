"""NCCL on one GPU, by itself: a rank that is alone, which is all that a machine with one GPU can try.

    python benchmarks/gpu_nccl.py

It shows that the library is found and loads, that CuPy's calls are made as they are meant, that a stream
which is captured takes them, and what the way through buckets and NCCL costs a step. It does not show a sum
over GPUs: NCCL takes two ranks on one GPU for a mistake, and one rank has nothing to send.

Each part prints its figure as a line of JSON as soon as it has it, and the next goes on whatever became of
it.
``benchmarks/gpu.py`` runs this in a process of its own.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from workloads import Job

from minires import backend
from minires.distributed import Solo
from minires.distributed.nccl import TYPES, Nccl
from minires.ops.cross_entropy import cross_entropy
from minires.optim import Adam
from minires.tensor import Tensor
from minires.train.captured import WARM_UP, CapturedStep
from minires.train.shared import Shared

JOB = Job("resnet20_cifar", 128, 32)
SIZES = (1 << 10, 1 << 20, 102 << 20)  # bytes; the last are the gradients of ResNet-50
STEPS, BLOCKS = 10, 5


def main(job: Job = JOB, sizes: tuple[int, ...] = SIZES) -> None:
    attempt("version", lambda: Nccl(Solo()).version)
    attempt("bits that a sum over one rank changes", changed)
    attempt("a captured sum replays between its neighbours", replayed)
    for size in sizes:
        attempt(f"us of the host, and ms in all, for a sum of {size} bytes", lambda size=size: costs(size))
    attempt("captured step without and with NCCL", lambda: steps(job))


def attempt(name: str, work: Callable[[], Any]) -> None:
    """Print what ``work`` gives, or why it gives nothing."""
    try:
        found = work()
    except Exception as error:  # the next part must run
        found = {"error": f"{type(error).__name__}: {error}"[:600]}
    print(json.dumps({name: found}), flush=True)


def changed() -> dict[str, int]:
    """How many numbers of an array are others after a sum over one rank, for each dtype: none should be."""
    nccl, found = Nccl(Solo()), {}
    for name in TYPES:
        own = np.random.default_rng(0).standard_normal(100_003).astype(backend.dtype_of(name))
        array = backend.to_device(own.copy(), "cuda")
        nccl.sum(array)
        after = backend.to_device(array, "cpu")
        found[name] = int((after.view(np.uint8) != own.view(np.uint8)).sum())
    return found


def replayed() -> bool:
    """Whether a graph of an addition, a sum and a multiplication does all three, each time it is launched."""
    cupy, nccl = backend.cupy(), Nccl(Solo())
    stream, array = cupy.cuda.Stream(), cupy.ones(1000, "float32")
    with stream:
        array += 0  # what is compiled is compiled before
        array *= 1
        stream.begin_capture()
        array += 1
        nccl.sum(array)
        array *= 2
        graph = stream.end_capture()
        for _ in range(3):
            graph.launch(stream)
    cupy.cuda.Device().synchronize()
    return backend.to_device(array, "cpu").tolist() == [22.0] * 1000  # 1 -> 4 -> 10 -> 22


def costs(size: int) -> tuple[float, float]:
    """Microseconds in which the host launches a sum of so many bytes, and milliseconds until it is done."""
    cupy, nccl = backend.cupy(), Nccl(Solo())
    array, wait = cupy.ones(size // 4, "float32"), cupy.cuda.Device().synchronize
    nccl.sum(array)
    launched, done = [], []
    for _ in range(BLOCKS):
        wait()
        start = time.perf_counter()
        for _ in range(STEPS):
            nccl.sum(array)
        launched.append((time.perf_counter() - start) / STEPS)
        wait()
        done.append((time.perf_counter() - start) / STEPS)
    return round(1e6 * statistics.median(launched), 3), round(1e3 * statistics.median(done), 4)


def steps(job: Job) -> dict[str, Any]:
    """Milliseconds of a captured step, and how far the weights are apart after as many of them.

    With NCCL gradients are copied into a bucket, and running statistics are what they were and a move: those
    may be others in the last digit, and nothing else.
    """
    found: dict[str, Any] = {}
    states = {}
    for way in ("with", "without"):  # where there is none it is soon over
        found[f"ms {way}"], states[way] = _steps(job, by_nccl=way == "with")
    apart = {
        key: float(np.abs(array - states["with"][key]).max() / max(1e-30, float(np.abs(array).max())))
        for key, array in states["without"].items()
        if "running" not in key and array.size
    }
    worst = max(apart, key=lambda key: apart[key])
    return {**found, "weights apart, relative": apart[worst], "most in": worst}


def _steps(job: Job, *, by_nccl: bool) -> tuple[float, dict[str, Any]]:
    rng, cupy = np.random.default_rng(0), backend.cupy()
    model = job.build(seed=0).to("cuda").train()
    optimizer = Adam(model.named_parameters(), 1e-4)
    x = rng.standard_normal((job.batch, job.size, job.size, 3)).astype(np.float32)
    y = rng.integers(0, 6, job.batch)
    shared = Shared(model, optimizer, Solo(), Nccl(Solo())) if by_nccl else None
    for _ in range(WARM_UP):
        if shared is not None:
            shared.begin()
        loss = cross_entropy(model(Tensor(backend.to_device(x, "cuda"))), y)
        loss.backward()
        if shared is not None:
            shared.finish(float(loss.item()), 0, 0, None)
        optimizer.step()
        optimizer.zero_grad()
    gradients = None if shared is None else shared.gradients
    step = CapturedStep(model, optimizer, cross_entropy, x, y, gradients=gradients)
    times = []
    for _ in range(BLOCKS):
        start = time.perf_counter()
        for _ in range(STEPS):
            step(x, y)
        cupy.cuda.Device().synchronize()
        times.append((time.perf_counter() - start) / STEPS)
    return round(1e3 * statistics.median(times), 4), model.state_dict()


if __name__ == "__main__":
    main()

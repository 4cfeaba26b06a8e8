"""What runs in the processes that compare.py times: minires, PyTorch in three ways, and ONNX Runtime.

Each engine is a function that gets the workload and gives its actions by name: "check" (what it computes),
"train" (one step, in seconds), and one for each way of inference that it knows. ``serve`` does what the
standard input asks for, and answers with a line of JSON. Each library is imported by its own engine only.
"""

from __future__ import annotations

import functools
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from workloads import Job

import minires

FOLDED = "inference, folded"
PLANNED = "inference, planned"
TRAIN_PLANNED = "train, planned"
WAYS = ("inference", FOLDED, PLANNED)  # of inference, in the order of the tables
OURS = "minires"
EAGER = ("torch", "torch channels-last")
COMPILED = "torch compiled"
ONNX = "onnxruntime"

Actions = dict[str, Callable[[], Any]]


def serve(peer: str, folder: Path) -> None:
    """Say what this peer can do, then do what the lines on the standard input ask.

    Each answer is a line of JSON; what goes wrong is answered, too, as ``{"error": ...}``.
    """
    job = Job(**json.loads((folder / "job.json").read_text()))
    inputs = np.load(folder / "inputs.npz")
    actions: Actions = {}

    def begin() -> list[str]:
        found = ENGINES[peer](job, inputs["x"], inputs["labels"], np.load(folder / "weights.npz"))
        check = found.pop("check")
        actions.update(found, memory=_peak_memory, forget=_forget_peak_memory)
        actions["check"] = lambda: np.savez(folder / f"{peer}.npz", **check())
        return list(actions)

    print(json.dumps(_answer(begin)), flush=True)
    for line in sys.stdin:
        print(json.dumps(_answer(actions[line.strip()])), flush=True)


def _answer(action: Callable[[], Any]) -> Any:
    try:
        return action()
    except Exception as error:
        traceback.print_exc()
        words = str(error).strip().splitlines() or [""]
        return {"error": f"{type(error).__name__}: {words[0]}"}


def _peak_memory() -> float:
    """The largest resident memory of this process so far, in MiB (``ru_maxrss`` knows its parent's, too)."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


def _forget_peak_memory() -> None:
    """What follows alone counts, not the compilers of the first step."""
    Path("/proc/self/clear_refs").write_text("5")


# --------------------------------------------------------------------------------------------- the engines


def _minires(job: Job, x: Any, labels: Any, weights: Any) -> Actions:
    import threadpoolctl

    from minires.nn import modes
    from minires.ops.cross_entropy import cross_entropy
    from minires.optim import Adam

    minires.set_threads(job.threads)
    model = job.build(initializer="zeros")
    model.load_state_dict(weights)
    optimizer = Adam(model.named_parameters(), 1e-3)
    dropouts = [module for _, module in model.named_modules() if hasattr(module, "rate")]

    @contextmanager
    def inferring() -> Iterator[None]:
        with modes(model, training=False), minires.no_grad():
            yield

    def on_tensors(network: Any) -> Callable[[Any], Any]:
        return lambda x: network(minires.Tensor(x)).data

    # A further way is a line here, which makes a function of the pictures as an array, and a name in WAYS.
    ways = {
        "inference": lambda: on_tensors(model),
        FOLDED: lambda: on_tensors(minires.fuse(model, x.shape[1:])),
        PLANNED: lambda: minires.compile(model, x.shape),
    }
    inference = _inference(ways, x, inferring)

    planned = functools.cache(lambda: minires.compile(model, x.shape, training=True))

    def train() -> list[float]:
        return _timed_step(optimizer, lambda: cross_entropy(model(minires.Tensor(x)), labels))

    def train_planned() -> list[float]:
        return _timed_step(optimizer, lambda: cross_entropy(planned()(x), labels))

    def check() -> dict[str, Any]:
        found = {what: infer()[1] for what, infer in inference.items()}
        rates = [module.rate for module in dropouts]
        for module in dropouts:  # what is random cannot be compared
            module.rate = 0.0
        with minires.no_grad():
            found["training, planned"] = minires.compile(model, x.shape, training=True)(x).data
        logits = model(minires.Tensor(x))
        cross_entropy(logits, labels).backward()
        for module, rate in zip(dropouts, rates, strict=True):
            module.rate = rate
        gradients = {f"d {name}": parameter.grad for name, parameter in model.named_parameters()}
        return {**found, "training": logits.data, **gradients}

    def blas() -> list[str]:
        return [f"{one['internal_api']} {one.get('architecture')}" for one in threadpoolctl.threadpool_info()]

    return {
        "train": train, TRAIN_PLANNED: train_planned, "check": check, "blas": blas, **_seconds(inference)
    }  # fmt: skip


def _torch(
    job: Job, x: Any, labels: Any, weights: Any, *, channels_last: bool = False, compiled: bool = False
) -> Actions:
    """PyTorch in one of its memory layouts; ``compiled`` by ``torch.compile``, which needs a C++ compiler.

    Compiled are the model as it is, the folded one with its weights frozen, and the loss with its gradients.
    """
    import torch
    from torch.fx.experimental.optimization import fuse
    from torch_peer import twin

    torch.set_num_threads(job.threads)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.tensor(x).permute(0, 3, 1, 2).contiguous(memory_format=layout)
    labels = torch.tensor(labels)
    model = twin(job.build(initializer="zeros")).load_ours(weights).to(memory_format=layout)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    dropouts = [module for module in model.modules() if isinstance(module, torch.nn.Dropout)]

    def fast(function: Any, **options: Any) -> Any:
        if not compiled:
            return function
        return torch.compile(function, fullgraph=True, dynamic=False, options=options)

    @contextmanager
    def inferring() -> Iterator[None]:
        model.eval()
        with torch.inference_mode():
            yield
        model.train()

    def on_tensors(network: Any) -> Callable[[Any], Any]:
        return lambda x: network(x).numpy()

    ways = {
        "inference": lambda: on_tensors(fast(model)),
        FOLDED: lambda: on_tensors(fast(fuse(model).to(memory_format=layout), freezing=True)),
    }
    inference = _inference(ways, x, inferring)

    @fast
    def forward() -> tuple[Any, Any]:
        logits = model(x)
        return torch.nn.functional.cross_entropy(logits, labels), logits

    def train() -> list[float]:
        return _timed_step(optimizer, lambda: forward()[0])

    def check() -> dict[str, Any]:
        found = {what: infer()[1] for what, infer in inference.items()}
        rates = [module.p for module in dropouts]
        for module in dropouts:
            module.p = 0.0
        loss, logits = forward()
        loss.backward()
        for module, rate in zip(dropouts, rates, strict=True):
            module.p = rate
        gradients = {f"d {name}": gradient.copy() for name, gradient in model.gradients().items()}
        if compiled and dropouts:
            forward()[0].backward()  # what was compiled without dropout is not what is timed
        return {**found, "training": logits.detach().numpy(), **gradients}

    return {"train": train, "check": check, **_seconds(inference)}


def _onnxruntime(job: Job, x: Any, labels: Any, weights: Any) -> Actions:
    """The model as minires exports it. It folds batch norms by itself, and cannot train."""
    import onnxruntime

    from minires.weights.onnx import export_onnx

    model = job.build(initializer="zeros")
    model.load_state_dict(weights)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = job.threads, 1
    options.add_free_dimension_override_by_name("N", len(x))  # it may plan for as many pictures
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        export_onnx(model, file, x.shape[1:])
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    x = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    ways = {"inference": lambda: lambda x: session.run(None, {"input": x})[0]}
    inference = _inference(ways, x, nullcontext)

    def check() -> dict[str, Any]:
        return {what: infer()[1] for what, infer in inference.items()}

    return {"check": check, **_seconds(inference)}


ENGINES: Mapping[str, Callable[..., Actions]] = {
    OURS: _minires,
    EAGER[0]: _torch,
    EAGER[1]: functools.partial(_torch, channels_last=True),
    COMPILED: functools.partial(_torch, channels_last=True, compiled=True),
    ONNX: _onnxruntime,
}

# -------------------------------------------------------------------------------------------------- timing

Infer = Callable[[], tuple[float, Any]]


def _inference(
    ways: Mapping[str, Callable[[], Callable[[Any], Any]]], x: Any, inferring: Callable[[], Any]
) -> dict[str, Infer]:
    """Each way as a function that gives the seconds and the logits of ``x``.

    What a way makes, a function of the pictures, is made on its first call; it is made and run ``inferring``.
    """
    made = {what: functools.cache(way) for what, way in ways.items()}

    def infer(what: str) -> tuple[float, Any]:
        with inferring():
            run = made[what]()
            return _timed(lambda: run(x))

    return {what: functools.partial(infer, what) for what in ways}


def _seconds(inference: Mapping[str, Infer]) -> Actions:
    """The actions: of each way the seconds alone."""

    def action(infer: Infer) -> Callable[[], float]:
        return lambda: infer()[0]

    return {what: action(infer) for what, infer in inference.items()}


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """The seconds and the result."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def _timed_step(optimizer: Any, forward: Callable[[], Any]) -> list[float]:
    """The seconds of forward, backward and optimiser; the calls have one form in both libraries."""
    marks = [time.perf_counter()]
    optimizer.zero_grad()
    loss = forward()
    marks.append(time.perf_counter())
    loss.backward()
    marks.append(time.perf_counter())
    optimizer.step()
    marks.append(time.perf_counter())
    return [after - before for before, after in zip(marks[:-1], marks[1:], strict=True)]

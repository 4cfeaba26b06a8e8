"""The GPU half: its tests, agreement with the CPU, and the speed beside PyTorch, in one command.

    python benchmarks/gpu.py [--quick] [--minutes 9] [--json benchmarks/results/gpu.json]

In this order, so that what is cut off by the time limit is the least needed:

* probes: does a captured matrix product replay right, what does a launch cost the host, and a node a graph;
* NCCL on one rank, which is all that one GPU can try: see gpu_nccl.py;
* the tests marked ``gpu``;
* gradients of the SIGNS ResNet-50 on the GPU against those on the CPU, in float32;
* training step and inference of each workload: minires launching each kernel anew and as a captured graph,
  PyTorch eager in both memory layouts (cuDNN's benchmark mode on) and as a captured graph, in float32, in
  TF32, and in bfloat16 with float32 parameters (PyTorch under autocast), like beside like;
* training on SIGNS until 97% of the validation pictures are right, where SIGNS is found.

Each peer runs in a process of its own, one after the other. A time is the median over blocks of ten steps,
each with one synchronisation at its end; pictures and labels lie on the device for all, but for the captured
step, which rounds and copies them from the host as in training. The floor is the time that a copy at the
measured rate takes for each array that a formula reads or writes, once.

Units: milliseconds a step.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe
from workloads import Job, prepare

import minires
from minires import backend
from minires.backend import cublas, cuda
from minires.backend.cublas import PRECISIONS
from minires.data import find
from minires.errors import ConfigError
from minires.models import build
from minires.ops.cross_entropy import cross_entropy
from minires.optim import Adam
from minires.tape import Node, reachable
from minires.tensor import Tensor
from minires.train import captured

PEERS = ("minires", "minires captured", "torch", "torch channels-last", "torch graph")
WORKLOADS = (
    Job("resnet50_signs", 32, 64),
    Job("resnet20_cifar", 128, 32),
    Job("resnet50", 64, 224),
    Job("resnet50_signs", 256, 64),
    Job("resnet50", 256, 224),
)
BLOCKS, STEPS = 7, 10
GRADIENT_BOUND = 1e-4  # relative, of the gradient as one vector, GPU against CPU in float32

# ----------------------------------------------------------------------------------------- in the peer


def serve(peer: str, precision: str, folder: Path) -> None:
    """Time one peer on the workload in ``folder`` and print the figures as a line of JSON."""
    job = Job(**json.loads((folder / "job.json").read_text()))
    inputs = np.load(folder / "inputs.npz")
    run = (job, inputs["x"], inputs["labels"], np.load(folder / "weights.npz"), precision)
    make = _minires if peer.startswith("minires") else _torch
    train, infer, wait, launches = make(*run, peer)
    found: dict[str, Any] = {"train_ms": _timed(train, wait)}
    found["inference_ms"] = _timed(infer, wait) if infer else None
    found["launches"] = launches()
    print(json.dumps(found), flush=True)


def _timed(step: Callable[[], Any], wait: Callable[[], Any]) -> float:
    """Milliseconds of one step: the median over blocks."""
    for _ in range(2 * STEPS):
        step()
    wait()
    times = []
    for _ in range(BLOCKS):
        start = time.perf_counter()
        for _ in range(STEPS):
            step()
        wait()
        times.append((time.perf_counter() - start) / STEPS)
    return round(1e3 * statistics.median(times), 4)


Timed = tuple[Callable[[], Any], Callable[[], Any] | None, Callable[[], Any], Callable[[], int | None]]


def _minires(job: Job, x: Any, labels: Any, weights: Any, precision: str, peer: str) -> Timed:
    cupy = backend.cupy()
    model = job.build(initializer="zeros")
    model.load_state_dict(weights)
    model = model.to("cuda").train()
    optimizer = Adam(model.named_parameters(), 1e-3)
    activations = backend.activations(precision)
    on_device = Tensor(backend.to_device(x.astype(activations), "cuda"))
    classes = Tensor(backend.to_device(labels.astype(np.int32), "cuda"))

    def eager() -> None:
        with backend.precision(precision):
            optimizer.zero_grad()
            cross_entropy(model(on_device), classes).backward()
            optimizer.step()

    def infer() -> None:
        model.eval()
        with minires.no_grad(), backend.precision(precision):
            model(on_device)
        model.train()

    def launches() -> int:
        """Kernels of ours and products in one step; CuPy's own, copies and fills, are not counted."""
        count = 0
        launch, call = cuda._launch, cublas._call

        def counted(function: Callable[..., None]) -> Callable[..., None]:
            def run(*arguments: Any) -> None:
                nonlocal count
                count += arguments[0] not in ("cublasSetStream_v2", "cublasSetWorkspace_v2")
                function(*arguments)

            return run

        cuda._launch, cublas._call = counted(launch), counted(call)
        eager()
        cuda._launch, cublas._call = launch, call
        return count

    wait = cupy.cuda.runtime.deviceSynchronize
    if peer == "minires":
        return eager, infer, wait, launches
    for _ in range(captured.WARM_UP):
        eager()
    with backend.precision(precision):
        step = captured.CapturedStep(model, optimizer, cross_entropy, x.astype(activations), labels)
    return lambda: step(x.astype(activations, copy=False), labels), None, wait, lambda: 1


def _torch(job: Job, x: Any, labels: Any, weights: Any, precision: str, peer: str) -> Timed:
    import torch
    from torch_peer import twin

    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    layout = torch.channels_last if "last" in peer or "graph" in peer else torch.contiguous_format
    pictures = torch.tensor(x).permute(0, 3, 1, 2).contiguous(memory_format=layout).cuda()
    classes = torch.tensor(labels).cuda()
    model = twin(job.build(initializer="zeros")).load_ours(weights).cuda().to(memory_format=layout)
    graph = "graph" in peer
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True, capturable=graph)

    def autocast() -> Any:  # entered anew in each step, so that the rounded weights are made anew
        return torch.autocast("cuda", dtype=torch.bfloat16, enabled=precision == "bf16")

    def eager() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast():
            loss = torch.nn.functional.cross_entropy(model(pictures), classes)
        loss.backward()
        optimizer.step()

    def infer() -> None:
        model.eval()
        with torch.inference_mode(), autocast():
            model(pictures)
        model.train()

    if not graph:
        return eager, infer, torch.cuda.synchronize, lambda: None
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            eager()
    torch.cuda.current_stream().wait_stream(stream)
    whole = torch.cuda.CUDAGraph()
    with torch.cuda.graph(whole):
        eager()
    return whole.replay, None, torch.cuda.synchronize, lambda: 1


# --------------------------------------------------------------------------------------- in the referee


def probes() -> dict[str, Any]:
    """Whether a captured product replays right, and what launches and nodes of a graph cost."""
    cupy = backend.cupy()
    rng = np.random.default_rng(0)
    stream = cupy.cuda.Stream()
    a, b = (cupy.asarray(rng.standard_normal((256, 256)).astype(np.float32)) for _ in range(2))
    y = cupy.zeros((256, 256), np.float32)
    source, target = cupy.ones(1 << 28, np.float32), cupy.empty(1 << 28, np.float32)
    found: dict[str, Any] = {}
    with stream:
        cublas.matmul(cupy, a, b, y)
        stream.begin_capture()
        cublas.matmul(cupy, a, b, y)
        graph = stream.end_capture()
        a[...] = cupy.asarray(rng.standard_normal((256, 256)).astype(np.float32))
        y[...] = 0
        graph.launch(stream)
        stream.synchronize()
        right = np.allclose(cupy.asnumpy(y), cupy.asnumpy(a) @ cupy.asnumpy(b), rtol=1e-4, atol=1e-4)
        found["captured product replays right"] = bool(right)
        small = cupy.zeros(1024, np.float32)
        relu = minires.ops.relu
        start = time.perf_counter()
        for _ in range(1000):
            relu._CUDA("relu", cuda.over(1024), small, None, small, 1024)
        found["host_us_per_launch"] = round(1e3 * (time.perf_counter() - start), 3)
        stream.synchronize()
        stream.begin_capture()
        for _ in range(500):
            relu._CUDA("relu", cuda.over(1024), small, None, small, 1024)
        graph = stream.end_capture()
        graph.launch(stream)
        stream.synchronize()
        start = time.perf_counter()
        for _ in range(20):
            graph.launch(stream)
        stream.synchronize()
        found["us_per_node_of_500"] = round(1e6 * (time.perf_counter() - start) / 20 / 500, 3)
        target[...] = source
        stream.synchronize()
        start = time.perf_counter()
        for _ in range(10):
            target[...] = source
        stream.synchronize()
        found["copy_gb_per_s"] = round(2 * source.nbytes * 10 / 1e9 / (time.perf_counter() - start), 1)
    return found


def tests(seconds: float) -> dict[str, Any]:
    """The last line of the GPU half of the test suite, and its exit status."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-x", "--no-header"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return {"status": None, "said": f"not done after {seconds:.0f} s"}
    lines = (done.stdout or done.stderr).strip().splitlines() or [""]
    if done.returncode:
        print(done.stdout[-4000:])
    return {"status": done.returncode, "said": lines[-1]}


def nccl(seconds: float) -> dict[str, Any]:
    """What gpu_nccl.py has found, as far as it came: a fault of the library must not end this program."""
    command = [sys.executable, str(Path(__file__).with_name("gpu_nccl.py"))]
    found: dict[str, Any] = {}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
        said = done.stdout
        if done.returncode:
            found["error"] = f"status {done.returncode}: {done.stderr.strip()[-600:]}"
    except subprocess.TimeoutExpired as late:
        said = late.stdout.decode() if isinstance(late.stdout, bytes) else late.stdout or ""
        found["error"] = f"not done after {seconds:.0f} s"
    for line in said.splitlines():
        with suppress(ValueError):  # a library may say something, too
            found |= json.loads(line)
    return found


def agreement() -> dict[str, Any]:
    """Loss and gradients of the SIGNS ResNet-50 on the GPU against the CPU, float32, relative."""
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((32, 64, 64, 3)).astype(np.float32), rng.integers(0, 6, 32)
    results = {}
    for device in ("cpu", "cuda"):
        model = build("resnet50_signs", seed=0, last_gamma=0.25).to(device)
        loss = cross_entropy(model(Tensor(backend.to_device(x, device))), labels)
        loss.backward()
        gradients = [backend.to_device(p.grad, "cpu").ravel() for _, p in model.named_parameters()]
        results[device] = float(loss.item()), np.concatenate(gradients)
    (loss, gradient), (loss_gpu, gradient_gpu) = results["cpu"], results["cuda"]
    apart = float(np.linalg.norm(gradient_gpu - gradient) / np.linalg.norm(gradient))
    return {"loss": abs(loss_gpu - loss) / abs(loss), "gradient": apart, "bound": GRADIENT_BOUND}


def floor_bytes(job: Job, precision: str) -> int:
    """What one training step reads and writes if each operation reads its inputs and writes its result once,
    and going back reads both and writes the gradients of the inputs; Adam reads four arrays and writes three.
    """
    stored = backend.activations(precision).itemsize
    pictures = 2  # what an operation moves grows with the batch, weights do not
    network = job.build(initializer="zeros")
    x = Tensor(np.zeros((pictures, job.size, job.size, 3), np.float32))
    loss = cross_entropy(network(x), np.zeros(pictures, np.int64))
    assert loss.node is not None

    def size(node: Node) -> int:
        numbers = math.prod(node.shape)
        if node.op == "leaf":
            return numbers * node.dtype.itemsize
        return numbers * stored * job.batch // pictures

    moved = 7 * sum(parameter.data.nbytes for parameter in network.parameters())
    for node in reachable(loss.node):
        if node.op != "leaf":
            moved += 2 * size(node) + 3 * sum(size(parent) for parent in node.parents if parent)
    return moved


def workload(job: Job, left: Callable[[], float]) -> dict[str, Any]:
    """The figures of every peer in every precision, as far as the time goes."""
    found: dict[str, Any] = {"what": f"{job.model}, batch {job.batch}, {job.size}x{job.size}"}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(folder, job)
        for precision in PRECISIONS:
            rows: dict[str, Any] = {}
            for peer in PEERS:
                if left() > 20:
                    rows[peer] = _asked(peer, precision, folder, min(120, left()))
            found[precision] = {"peers": rows, **_ratios(rows, job)}
    return found


def _asked(peer: str, precision: str, folder: Path, seconds: float) -> dict[str, Any]:
    command = [sys.executable, __file__, "--peer", peer, "--precision", precision, "--folder", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {seconds:.0f} s"}
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no word"}
    return json.loads(done.stdout.strip().splitlines()[-1])


def _ratios(rows: dict[str, Any], job: Job) -> dict[str, Any]:
    """Ours over PyTorch's: eager over the better eager layout, captured over both that and its graph."""
    times = {peer: row["train_ms"] for peer, row in rows.items() if "train_ms" in row}
    eager = min((times[peer] for peer in ("torch", "torch channels-last") if peer in times), default=None)
    found: dict[str, Any] = {}
    for ours in ("minires", "minires captured"):
        if ours in times:
            found[f"{ours}: pictures per s"] = round(1e3 * job.batch / times[ours])
            if eager:
                found[f"{ours} / torch eager"] = round(times[ours] / eager, 3)
            if "torch graph" in times:
                found[f"{ours} / torch graph"] = round(times[ours] / times["torch graph"], 3)
    return found


def time_to_97(seconds: float) -> dict[str, Any] | None:
    """Seconds of training until 97% of SIGNS's validation pictures were right; None without SIGNS."""
    if find("signs") is None:
        return None
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) / "run"
        command = [sys.executable, "-m", "minires", "train", "--data", "signs", "--device", "cuda"]
        try:
            done = subprocess.run(
                [*command, "--out", str(out)], capture_output=True, text=True, timeout=seconds, check=False
            )
        except subprocess.TimeoutExpired:
            return {"error": f"not done after {seconds:.0f} s"}
        if done.returncode:
            return {"error": done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no word"}
        lines = (out / "metrics.csv").read_text().splitlines()
        rows = [dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in lines[1:]]
        passed = [row for row in rows if float(row["val_accuracy"]) >= 0.97]
        summary = json.loads((out / "summary.json").read_text())
        return {
            "epochs": int(passed[0]["epoch"]) if passed else None,
            "seconds": float(passed[0]["seconds"]) if passed else None,
            "test_accuracy": summary["test_accuracy"],
            "whole_run_seconds": summary["seconds"],
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the first two workloads only")
    parser.add_argument("--minutes", type=float, default=9.0, help="how long it may take in all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report here, after each part")
    parser.add_argument("--peer", choices=PEERS, help=argparse.SUPPRESS)
    parser.add_argument("--precision", choices=PRECISIONS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        serve(options.peer, options.precision, options.folder)
        return
    try:
        cupy = backend.cupy()
    except ConfigError as error:
        raise SystemExit(f"gpu.py: {error}. `minires doctor` says what is missing") from None
    end = time.monotonic() + 60 * options.minutes

    def left() -> float:
        return end - time.monotonic()

    properties = cupy.cuda.runtime.getDeviceProperties(0)
    report: dict[str, Any] = {
        "machine": describe(),
        "device": properties["name"].decode(),
        "cuda": {
            "cupy": cupy.__version__,
            "runtime": cupy.cuda.runtime.runtimeGetVersion(),
            "driver": cupy.cuda.runtime.driverGetVersion(),
            "cublas": cublas_version(),
        },
        "workloads": [],
    }

    def note(name: str, value: Any) -> None:
        if name == "workloads":
            report["workloads"].append(value)
        else:
            report[name] = value
        print(f"{name}: {json.dumps(value)}", flush=True)
        if options.json:
            options.json.write_text(json.dumps(report, indent=1) + "\n")

    note("probes", probes())
    note("nccl", nccl(min(60, left())))
    note("agreement", agreement())
    note("tests", tests(min(150, left())))
    for job in WORKLOADS[:2] if options.quick else WORKLOADS:
        if left() > 30:
            figures = workload(job, left)
            for precision in PRECISIONS:
                floor = floor_bytes(job, precision) / report["probes"]["copy_gb_per_s"] / 1e6
                figures[precision]["floor_ms"] = round(floor, 3)
            note("workloads", {**figures, "job": asdict(job)})
    if left() > 30:
        note("signs", time_to_97(left()))


def cublas_version() -> int | None:
    """The version that the library itself tells: 120900 for 12.9."""
    found = cublas.library()
    if found is None:
        return None
    number = ctypes.c_int()
    found.cublasGetProperty(0, ctypes.byref(number))
    major, minor = number.value, ctypes.c_int()
    found.cublasGetProperty(1, ctypes.byref(minor))
    return 10000 * major + 100 * minor.value


if __name__ == "__main__":
    main()

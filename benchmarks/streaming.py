"""Training on pictures that are not in memory: how much memory it takes, and whether it waits for pictures.

    python benchmarks/streaming.py [--pictures 100000] [--json benchmarks/results/streaming.json]
    python benchmarks/streaming.py --torch-python other/bin/python     beside torchvision's DataLoader

The pictures are made: 64 different JPEGs of noise on smooth ground, about as large as photographs of their
size are, each under many names in 100 class folders (copies, or links where the disk can have them). Rows:

    memory    a run of a small network on all of them, at 256 x 256: its peak memory, and that before it
    rate      pictures of 500 x 375 decoded, cut, resized to 224 x 224, mirrored and normalised in a second,
              by all threads, into batches of 32; torchvision does the same (RandomResizedCrop, flip,
              ToTensor, Normalize) in as many worker processes. In turn, five rounds; the best of each
    waiting   the share of a step of resnet18 on 224 x 224, batch 32, that was spent waiting for its batch

Units: MiB of resident memory, seconds, pictures a second.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import machine

DISTINCT, CLASSES, BATCH, ROUNDS = 64, 100, 32, 5
STEPS = [["crop", {"scale": [0.08, 1.0], "ratio": [3 / 4, 4 / 3]}], "flip"]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def jpegs(width: int, height: int) -> list[bytes]:
    """Different pictures: smooth colours with noise."""
    import numpy as np
    from PIL import Image

    found = []
    for seed in range(DISTINCT):
        rng = np.random.default_rng(seed)
        smooth = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((width, height))
        pixels = np.asarray(smooth) + rng.normal(0, 12, (height, width, 3))
        file = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=85)
        found.append(file.getvalue())
    return found


def write(folder: Path, count: int, width: int, height: int) -> Path:
    """So many pictures, by class, nine tenths to train."""
    contents = jpegs(width, height)
    originals = []
    for at, content in enumerate(contents):
        originals.append(folder / f"original-{at}")
        folder.mkdir(parents=True, exist_ok=True)
        originals[-1].write_bytes(content)
    for number in range(count):
        part = {0: "test", 1: "val"}.get(number // CLASSES % 20, "train")
        path = folder / "set" / part / f"class{number % CLASSES:03}" / f"{number:07}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(originals[number % DISTINCT], path)
        except OSError:
            path.write_bytes(contents[number % DISTINCT])
    return folder / "set"


def memory(folder: str, steps: int) -> dict[str, Any]:
    """Some steps on all pictures, in this process."""
    from minires import backend, data, nn
    from minires.ops.cross_entropy import cross_entropy
    from minires.optim import SGD
    from minires.tensor import Tensor
    from minires.train import evaluate, state

    before, start = _peak(), time.perf_counter()
    splits = data.load(folder, size=256)
    loaded = time.perf_counter() - start
    known = time.perf_counter()
    state.fingerprint(splits)
    known = time.perf_counter() - known
    model = nn.Sequential(
        conv=nn.Conv2d(3, 8, 7, stride=8, padding=3), relu=nn.ReLU(), pool=nn.GlobalAvgPool2d(),
        fc=nn.Linear(8, CLASSES),
    )  # fmt: skip
    optimizer = SGD(model.parameters(), lr=0.1)
    loader = data.Loader(splits.train, BATCH, normalize=data.Normalize.of(splits.train),
                         augment=data.build(["crop", "flip"]))  # fmt: skip
    start, seen = time.perf_counter(), 0
    batches = loader.epoch(0)
    for _, (x, y) in zip(range(steps), batches, strict=False):
        loss = cross_entropy(model(Tensor(x)), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seen += len(y)
    batches.close()  # type: ignore[attr-defined]
    seconds = time.perf_counter() - start
    evaluate(model, splits.val.take(range(min(2000, len(splits.val)))), loader.normalize)
    pixels = sum(len(part) for part in (splits.train, splits.val, splits.test)) * 256 * 256 * 3
    return {
        "pictures": pixels // (256 * 256 * 3),
        "streams": isinstance(splits.train.images, data.Stream),
        "pixels_MiB": round(pixels / 2**20),
        "before_MiB": round(before),
        "peak_MiB": round(_peak()),
        "listing_seconds": round(loaded, 1),
        "fingerprint_seconds": round(known, 1),
        "steps": steps,
        "pictures_per_second": round(seen / seconds),
        "threads": backend.threads(),
    }


def ours(folder: str, count: int) -> float:
    """Pictures a second, prepared and thrown away."""
    from minires import data

    part = data.load_part(folder, "train", size=224, stream=True).pictures
    loader = data.Loader(
        part, BATCH, normalize=data.Normalize(MEAN, STD), augment=data.build(STEPS), drop_last=True
    )
    return _rate(lambda epoch: loader.epoch(epoch), count)


def theirs(folder: str, count: int) -> float:
    """The same by torchvision and PyTorch's DataLoader."""
    import torch
    from torchvision import datasets, transforms

    steps = [
        transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]  # fmt: skip
    pictures = datasets.ImageFolder(str(Path(folder) / "train"), transforms.Compose(steps))
    workers = len(os.sched_getaffinity(0))
    loader = torch.utils.data.DataLoader(
        pictures, BATCH, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=True
    )
    return _rate(lambda epoch: iter(loader), count)


def _rate(epoch: Any, count: int) -> float:
    """Pictures a second after the first batch: the start of workers is not counted."""
    batches, seen, number = epoch(0), 0, 0
    next(batches)
    start = time.perf_counter()
    while seen < count:
        batch = next(batches, None)
        if batch is None:
            number += 1
            batches = epoch(number)
            continue
        seen += len(batch[1])
    return seen / (time.perf_counter() - start)


def waiting(folder: str, steps: int) -> dict[str, Any]:
    """The share of a step of resnet18 that is spent waiting for its batch."""
    from minires import data, models
    from minires.ops.cross_entropy import cross_entropy
    from minires.optim import SGD
    from minires.tensor import Tensor

    part = data.load_part(folder, "train", size=224, stream=True).pictures
    loader = data.Loader(part, BATCH, normalize=data.Normalize(MEAN, STD), augment=data.build(STEPS))
    model = models.build("resnet18", classes=CLASSES)
    optimizer = SGD(model.parameters(), lr=0.01, momentum=0.9)
    batches, waited, start = loader.epoch(0), 0.0, 0.0
    for step in range(steps + 2):
        if step == 2:  # what is compiled once is not counted
            waited, start = 0.0, time.perf_counter()
        asked = time.perf_counter()
        x, y = next(batches)
        waited += time.perf_counter() - asked
        loss = cross_entropy(model(Tensor(x)), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    seconds = time.perf_counter() - start
    batches.close()  # type: ignore[attr-defined]
    return {
        "model": "resnet18", "side": 224, "batch": BATCH, "steps": steps,
        "step_seconds": round(seconds / steps, 3), "waited_share": round(waited / seconds, 4),
    }  # fmt: skip


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux counts in KiB


def _apart(python: str, job: str, *arguments: Any) -> Any:
    """The result of a function of this file in a process of its own."""
    command = [python, __file__, "--job", json.dumps([job, *arguments])]
    done = subprocess.run(
        command, env=machine.without_pins(), check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the result here")
    parser.add_argument("--pictures", type=int, default=100_000, metavar="N", help="for the row of memory")
    parser.add_argument("--steps", type=int, default=300, metavar="N", help="of the row of memory")
    parser.add_argument("--rate", type=int, default=3000, metavar="N", help="pictures in each round of rate")
    parser.add_argument("--waits", type=int, default=20, metavar="N", help="steps of resnet18")
    parser.add_argument("--torch-python", metavar="PYTHON", help="an interpreter that imports torchvision")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        name, *arguments = json.loads(options.job)
        print(json.dumps(globals()[name](*arguments)))
        return
    report: dict[str, Any] = {"machine": machine.describe()}
    with tempfile.TemporaryDirectory() as work:
        small = write(Path(work) / "small", options.pictures, 256, 256)
        report["memory"] = _apart(sys.executable, "memory", str(small), options.steps)
        print(report["memory"], flush=True)
        photos = write(Path(work) / "photos", 4000, 500, 375)
        rates: dict[str, list[float]] = {"minires": [], "torchvision": []}
        for _ in range(ROUNDS):
            rates["minires"].append(_apart(sys.executable, "ours", str(photos), options.rate))
            if options.torch_python:
                rates["torchvision"].append(_apart(options.torch_python, "theirs", str(photos), options.rate))
        best = {name: round(max(found)) for name, found in rates.items() if found}
        report["rate"] = {
            "file": "500x375", "side": 224, "batch": BATCH, "pictures": options.rate,
            "threads": report["memory"]["threads"], "pictures_per_second": best,
            "rounds": {name: [round(one) for one in found] for name, found in rates.items() if found},
        }  # fmt: skip
        if len(best) == 2:
            report["rate"]["ratio"] = round(best["minires"] / best["torchvision"], 2)
        print(report["rate"], flush=True)
        report["waiting"] = _apart(sys.executable, "waiting", str(photos), options.waits)
        print(report["waiting"], flush=True)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()

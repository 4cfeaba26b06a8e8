"""A few own pictures: ``minires train --data FOLDER`` beside what a user of PyTorch would do.

    python benchmarks/own_pictures.py [--seeds 0 1 2] [--sets signs3x24 ...]

Six small sets are cut out of CIFAR-10's test half, SIGNS and the rendered hands: three classes with 24
training pictures each, five with 50; up to 150 others of each class test. They are written as JPEG or PNG
into ``train/class/`` and ``test/class/``, other pictures for each seed, and each way gets the same files:

    minires             the command, nothing but the folder given
    minires, no start   the same with --start-from none
    fine-tuned          PyTorch, from the same trained weights with a new last layer: all layers, Adam
    last layer          PyTorch, the last layer alone on the same weights
    from scratch        PyTorch: ResNet-18 (a stem for small pictures) with fresh weights

The PyTorch ways have the usual random boxes and mirrored pictures, a one-cycle schedule, and as many steps.
The starter has learnt CIFAR-10's ten classes, on other pictures: on these sets it knows what is asked for.

Figures: test accuracy of each seed, and the median. Results: ``benchmarks/results/own_pictures.json``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe, without_pins
from PIL import Image
from torch.nn import functional
from torch_peer import twin

from minires import data, models
from minires.data import Normalize
from minires.train import load_model
from minires.train.starters import STARTER, path_of

RESULT = Path(__file__).parent / "results" / "own_pictures.json"
CLASSES = {
    "cifar10": {3: [3, 5, 7], 5: [0, 2, 4, 6, 8]},
    "signs": {3: [1, 2, 4], 5: [0, 1, 2, 3, 5]},
    "hands": {3: [1, 2, 4], 5: [0, 1, 2, 3, 5]},
}  # fmt: skip
SETS = {
    f"{name}{count}x{each}": (name, count, each) for name in CLASSES for count, each in ((3, 24), (5, 50))
}
TESTED = 150  # pictures of a class, at most
BATCH = 16
PEERS = ("fine-tuned", "last layer", "from scratch")
WAYS = ("minires", "minires, no start", *PEERS)
Pictures = tuple[torch.Tensor, torch.Tensor]


def pool(name: str) -> data.Dataset:
    """The pictures that small sets are cut from; of CIFAR-10 those that the starter has not learnt."""
    splits = data.load(name)
    return splits.test if name == "cifar10" else splits.train.join(splits.val).join(splits.test)


def cut(whole: data.Dataset, classes: list[int], each: int, seed: int, folder: Path) -> None:
    """Write a small set: ``each`` training pictures of each class, and test pictures."""
    rng = np.random.default_rng([seed, 77])
    for label in classes:
        found = rng.permutation(np.flatnonzero(whole.labels == label))
        for part, chosen in (("train", found[:each]), ("test", found[each : each + TESTED])):
            place = folder / part / whole.classes[label]
            place.mkdir(parents=True)
            for index in chosen:
                Image.fromarray(whole.images[index]).save(place / f"{index}.png")


# ------------------------------------------------------------------------------------------------ the ways


def ours(folder: Path, out: Path, seed: int, *options: str) -> dict[str, Any]:
    """The command of the README."""
    command = [sys.executable, "-m", "minires", "train", "--data", str(folder), "--seed", str(seed)]
    done = subprocess.run(
        [*command, "--out", str(out), *options], env=without_pins(), stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        sys.exit(done.stdout)
    return json.loads((out / "summary.json").read_text())


def loaded(folder: Path, part: str, size: int, normalize: Normalize) -> Pictures:
    """The pictures of a part for PyTorch: (N, 3, size, size), normalised, and their labels."""
    held = data.load_part(folder, part, size=size).pictures
    x = torch.from_numpy(normalize(held.images).transpose(0, 3, 1, 2).copy())
    return x, torch.from_numpy(held.labels)


def augmented(x: torch.Tensor) -> torch.Tensor:
    """Random boxes of half to all of the area, mirrored or not, by ``affine_grid``."""
    count = len(x)
    scale = torch.empty(count).uniform_(0.5, 1.0).sqrt()
    ratio = torch.exp(torch.empty(count).uniform_(-0.16, 0.16))
    wide, high = (scale * ratio.sqrt()).clamp(max=1), (scale / ratio.sqrt()).clamp(max=1)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = wide * (torch.randint(0, 2, (count,)) * 2 - 1)
    theta[:, 1, 1] = high
    theta[:, 0, 2] = (1 - wide) * torch.empty(count).uniform_(-1, 1)
    theta[:, 1, 2] = (1 - high) * torch.empty(count).uniform_(-1, 1)
    grid = functional.affine_grid(theta, list(x.shape), align_corners=False)
    return functional.grid_sample(x, grid, align_corners=False, padding_mode="reflection")


def trained(net: torch.nn.Module, train: Pictures, *, steps: int, lr: float, some: list[Any]) -> None:
    """Adam with a one-cycle schedule for so many steps."""
    optimizer = torch.optim.Adam(some, lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    x, y = train
    done = 0
    while done < steps:
        for chosen in torch.randperm(len(x)).split(BATCH):
            if done < steps and len(chosen) > 1:
                optimizer.zero_grad()
                loss = functional.cross_entropy(net(augmented(x[chosen])), y[chosen], label_smoothing=0.1)
                loss.backward()
                optimizer.step()
                schedule.step()
                done += 1


@torch.no_grad()
def tested(net: torch.nn.Module, test: Pictures) -> float:
    net.eval()
    guesses = torch.cat([net(x).argmax(1) for x in test[0].split(100)])
    return float((guesses == test[1]).float().mean())


def theirs(way: str, folder: Path, seed: int, *, size: int, steps: int) -> float:
    """The test accuracy of one of PyTorch's ways."""
    torch.manual_seed(seed)
    classes = len(list((folder / "train").iterdir()))
    if way == "from scratch":
        normalize = Normalize.imagenet()
        net = twin(models.build("resnet18", classes=classes, stem="cifar", shortcut="B"))
        for part in net.modules():
            if hasattr(part, "reset_parameters"):
                part.reset_parameters()
        some, lr = list(net.parameters()), 1e-3
    else:
        start = load_model(path_of(STARTER))
        normalize = start.normalize
        fresh = models.build(start.name, classes=classes, seed=seed, **start.variant)
        kept = {name: array for name, array in start.model.state_dict().items() if not name.startswith("fc.")}
        net = twin(fresh).load_ours({**fresh.state_dict(), **kept})
        last = [parameter for name, parameter in net.named_parameters() if name.startswith("fc.")]
        some, lr = (last, 1e-2) if way == "last layer" else (list(net.parameters()), 1e-3)
    train, test = (loaded(folder, part, size, normalize) for part in ("train", "test"))
    net.train()
    if way == "last layer":  # batch norm keeps what it knows
        net.eval()
    trained(net, train, steps=steps, lr=lr, some=some)
    return tested(net, test)


# --------------------------------------------------------------------------------------------- all of them


def once(way: str, folder: Path, out: Path, seed: int, entry: dict[str, Any]) -> float:
    """The test accuracy of one way; ``entry`` learns from ours the size of the pictures and the steps."""
    if way in PEERS:
        return theirs(way, folder, seed, size=entry["size"], steps=entry["steps"])
    summary = ours(folder, out, seed, *(() if way == "minires" else ("--start-from", "none")))
    if way == "minires":
        entry["size"] = json.loads((out / "config.json").read_text())["size"]
        entry["steps"] = summary["steps"]
    return summary["test_accuracy"]


def measure(name: str, seed: int, entry: dict[str, Any], save: Callable[[], None]) -> None:
    """All ways on a small set with one seed; what ``entry`` has already is not measured again."""
    source, count, each = SETS[name]
    figures = entry.setdefault("accuracy", {way: {} for way in WAYS})
    missing = [way for way in WAYS if str(seed) not in figures[way]]
    if not missing:
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, name)
        cut(pool(source), CLASSES[source][count], each, seed, folder)
        for way in missing:
            start = time.perf_counter()
            accuracy = once(way, folder, Path(temporary, way.replace(" ", "-")), seed, entry)
            figures[way][str(seed)] = round(accuracy, 4)
            found = {way: statistics.median(of.values()) for way, of in figures.items() if of}
            entry["median"] = found
            seconds = time.perf_counter() - start
            print(f"{name}, seed {seed}, {way}: {accuracy:.1%} ({seconds:.0f} s)", flush=True)
            save()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    report: dict[str, Any] = {"what": "python benchmarks/own_pictures.py", "sets": {}}
    if arguments.out.exists():  # measured in pieces
        report = json.loads(arguments.out.read_text())
    report["machine"] = describe()
    for name in arguments.sets:
        entry = report["sets"].setdefault(name, {})
        for seed in arguments.seeds:
            measure(name, seed, entry, lambda: write(arguments.out, report))


def write(out: Path, report: dict[str, Any]) -> None:
    out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()

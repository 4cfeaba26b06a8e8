"""A small run as a program of its own, for the tests that kill it: ``small_run.py OUT [--best] [--resume]``.

It prints a line after each step. With ``DIE_IN_WRITE=n`` in the environment it kills itself inside its n-th
checkpoint write, when half of the temporary file is on the disk. With ``PICTURES=folder`` its pictures are a
stream of those that :func:`write_pictures` wrote there.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from minires import nn
from minires.data import Dataset, Splits, load
from minires.train import Config, Trainer

CONFIG = Config(
    model="small", data="stripes", epochs=3, batch_size=8, checkpoint_every=5, keep="last", ema=0.9,
    label_smoothing=0.1,
    optimizer={"name": "adam", "lr": 3e-3, "weight_decay": 1e-3, "clip_norm": 5.0},
    schedule={"name": "plateau", "patience": 0, "factor": 0.5, "threshold": 0.2, "warmup": 0.2},
    augment=[["shift", {"pixels": 2}], "flip"],
)  # fmt: skip
# The same, until validation gets no better, in parts, of classes that are drawn evenly.
BEST = replace(
    CONFIG, epochs=20, keep="best", patience=2, accumulate=2, balance="sampler", recalibrate=True,
    schedule={"name": "constant"}, optimizer={"name": "adam", "lr": 0.02, "clip_norm": 1.0},
)  # fmt: skip
# On streamed pictures.
STREAMED_STEPS = [["crop", {"scale": [0.5, 1.0]}], "flip", "pca_colour"]
STREAMED = replace(CONFIG, augment=STREAMED_STEPS, normalize="data")


def small_model(classes: int = 3, seed: int = 0) -> nn.Module:
    rng = np.random.default_rng(seed)
    return nn.Sequential(
        conv1=nn.Conv2d(3, 8, 3, padding="same", rng=rng),
        bn1=nn.BatchNorm2d(8, momentum=0.9),
        relu1=nn.ReLU(),
        conv2=nn.Conv2d(8, 8, 3, stride=2, padding=1, rng=rng),
        bn2=nn.BatchNorm2d(8, momentum=0.9),
        relu2=nn.ReLU(),
        flatten=nn.Flatten(),
        drop=nn.Dropout(0.2, seed=5),
        fc=nn.Linear(288, classes, rng=rng),
    )


def stripes(count: int, seed: int) -> Dataset:
    """Noisy pictures 12x12 whose class is the direction of their stripes."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    row, column = np.mgrid[:12, :12]
    patterns = np.stack([row, column, row + column]) // 2 % 2  # (3, 12, 12)
    images = 80 * patterns[labels][..., None] + rng.normal(90, 40, (count, 12, 12, 3))
    names = tuple(f"stripes/{seed}-{i}.png" for i in range(count))
    images = images.clip(0, 255).astype(np.uint8)
    return Dataset(images, labels, ("rows", "columns", "slant"), names, "stripes")


def small_splits() -> Splits:
    return Splits(stripes(93, 0), stripes(24, 1), stripes(24, 2), "stripes (made from a seed)")


def write_pictures(root: Path) -> Path:
    """The pictures of ``small_splits``, half as large again, in files."""
    splits = small_splits()
    for part in ("train", "val", "test"):
        held = getattr(splits, part)
        for place, (image, label) in enumerate(zip(held.images, held.labels, strict=True)):
            path = root / part / held.classes[label] / f"{place:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).resize((18, 18)).save(path)
    return root


class Chatty(Trainer):
    def _step(self, x, y):
        super()._step(x, y)
        print("step", self.progress.step, flush=True)
        time.sleep(0.01)


def die_in_write(folder: Path, number: int) -> None:
    fsync, count = os.fsync, 0

    def fsync_or_die(descriptor: int) -> None:
        nonlocal count
        if half_written := list(folder.glob(".checkpoint-*.tmp")):
            count += 1
            if count == number:
                os.truncate(half_written[0], half_written[0].stat().st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)
        fsync(descriptor)

    os.fsync = fsync_or_die


if __name__ == "__main__":
    out = Path(sys.argv[1])
    if "DIE_IN_WRITE" in os.environ:
        die_in_write(out, int(os.environ["DIE_IN_WRITE"]))
    splits, config = small_splits(), BEST if "--best" in sys.argv else CONFIG
    if "PICTURES" in os.environ:
        steps = {"augment": STREAMED_STEPS, "normalize": "data"}
        splits, config = load(os.environ["PICTURES"], size=12, stream=True), replace(config, **steps)
    resume = "--resume" in sys.argv
    Chatty(config, out, splits=splits, model=small_model(), resume=resume, figures=False).run()

"""A very small net and a short recipe under names of their own, for runs that are made to be killed.

``minires --import small_net train --recipe torture --data PICTURES --out FOLDER`` trains it. The recipe has
all that must come back after a kill: dropout, batch norm, an average of the weights, augmentation, a schedule
that looks at the losses, checkpoints inside an epoch.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from minires import models, nn
from minires.tensor import Tensor
from minires.train import recipes

SIDE = 16
CLASSES = ("cat", "dog", "owl")
VARIANT = {"repeats": [1, 1, 1], "widths": [4, 4, 8]}  # of resnet20_cifar, as small as it goes


@models.register("torture_net", size=SIDE, classes=len(CLASSES), title="one convolution, two dense layers")
class TortureNet(nn.Module):
    """A convolution, a batch norm, dropout, two dense layers, named as the released ResNets name theirs."""

    def __init__(self, *, classes: int, width: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding="same")
        self.bn_conv1 = nn.BatchNorm2d(4)
        self.relu = nn.ReLU()
        self.drop = nn.Dropout(0.2)
        self.pool = nn.GlobalAvgPool2d()
        self.fc1 = nn.Linear(4, width)
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.fc1(self.pool(self.drop(self.relu(self.bn_conv1(self.conv1(x)))))))


recipes.register(
    "torture",
    {
        "model": "torture_net",
        "epochs": 4,
        "batch_size": 4,
        "checkpoint_every": 2,
        "ema": 0.9,
        "variant": {"width": 20_000},  # so that a checkpoint has 2 MB, and takes a while to write
        "optimizer": {"name": "adam", "lr": 0.01, "weight_decay": 1e-3, "clip_norm": 5.0},
        "schedule": {"name": "plateau", "patience": 0, "factor": 0.5, "threshold": 0.2, "warmup": 0.2},
        "augment": [["shift", {"pixels": 2}], "flip"],
        "label_smoothing": 0.1,
        "recalibrate": True,
    },
)


def pictures(folder: Path, *, count: int = 12, side: int = SIDE, ending: str = "png") -> None:
    """Write a folder of noisy pictures, ``count`` of each class; the classes differ in their colour."""
    rng = np.random.default_rng(0)
    for k, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            noise = rng.integers(0, 160, (side, side, 3), dtype=np.uint8)
            noise[..., k] += 60
            Image.fromarray(noise).save(folder / name / f"{i:02d}.{ending}")

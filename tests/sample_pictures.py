"""Folders of small pictures to train on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def dark_and_light(folder: Path) -> None:
    """Twelve pictures of 8x8 of each of the two classes ``dark`` and ``light``."""
    rng = np.random.default_rng(0)
    for k, name in enumerate(("dark", "light")):
        (folder / name).mkdir(parents=True)
        for number in range(12):
            picture = rng.integers(100 * k, 150 + 100 * k, (8, 8, 3)).astype(np.uint8)
            Image.fromarray(picture).save(folder / name / f"{number}.png")

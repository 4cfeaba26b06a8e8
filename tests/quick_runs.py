"""What makes runs of tests quick: small pictures to train on, and no figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def draw_nothing(patch: pytest.MonkeyPatch) -> None:
    """Runs draw no figures, which take most of the time of a small one."""
    for name in ("draw_curves", "draw_confusion", "draw_mistakes"):
        patch.setattr(f"minires.train.run_folder.{name}", lambda *_, **__: None)


def dark_and_light(folder: Path) -> None:
    """Twelve pictures of 8x8 of each of the two classes ``dark`` and ``light``."""
    rng = np.random.default_rng(0)
    for k, name in enumerate(("dark", "light")):
        (folder / name).mkdir(parents=True)
        for number in range(12):
            picture = rng.integers(100 * k, 150 + 100 * k, (8, 8, 3)).astype(np.uint8)
            Image.fromarray(picture).save(folder / name / f"{number}.png")

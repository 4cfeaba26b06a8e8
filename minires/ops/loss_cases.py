"""The labels on which both losses are checked, where rows or classes count differently."""

from __future__ import annotations

from typing import Any

import numpy as np

from minires.ops.registry import Shape

REDUCTIONS = ("mean", "sum", "none")
WEIGHT = np.array([0.5, 2.0, 0.25])
_PIXELS = np.array([[[0, 2, 1], [1, -1, 2]]])

LABELS: list[tuple[str, Shape, dict[str, Any]]] = [
    ("weights", (4, 3), {"labels": np.array([0, 2, 1, 2]), "weight": WEIGHT}),
    ("weights, a class that counts nothing", (2, 3), {"labels": [0, 1], "weight": np.array([0, 1, 3])}),
    ("an ignored class", (4, 3), {"labels": np.array([0, 2, 1, 2], np.uint8), "ignore_index": 2}),
    ("all ignored", (2, 3), {"labels": [-100, -100], "ignore_index": -100}),
    ("pixels", (1, 2, 3, 3), {"labels": _PIXELS, "ignore_index": -1}),
    ("pixels, weights", (1, 2, 3, 3), {"labels": _PIXELS, "ignore_index": -1, "weight": WEIGHT}),
]

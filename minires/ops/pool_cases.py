"""The windows on which both pools are checked."""

from __future__ import annotations

from typing import Any

from minires.ops.registry import Shape

POOLS: list[tuple[str, Shape, dict[str, Any]]] = [
    ("2x2", (2, 4, 6, 3), {"kernel": 2}),
    ("2x2, odd picture", (1, 5, 3, 2), {"kernel": 2}),
    ("3x3, stride 2", (2, 5, 7, 2), {"kernel": 3, "stride": 2}),
    ("3x3, stride 2, padding 1", (2, 6, 5, 2), {"kernel": 3, "stride": 2, "padding": 1}),
    ("3x3, stride 1, same", (1, 4, 4, 2), {"kernel": 3, "stride": 1, "padding": "same"}),
    ("2x2, stride 1, same_lower", (1, 3, 4, 2), {"kernel": 2, "stride": 1, "padding": "same_lower"}),
    ("3x3, stride 2, ceil, even and odd", (2, 6, 5, 2), {"kernel": 3, "stride": 2, "padding": "ceil"}),
    ("3x2, pairs", (1, 6, 7, 1), {"kernel": (3, 2), "stride": (1, 3), "padding": (1, 0)}),
    ("four sides", (1, 4, 4, 2), {"kernel": 2, "padding": ((0, 1), (1, 0))}),
    ("stride larger than kernel", (1, 7, 7, 1), {"kernel": 2, "stride": 3}),
    ("1x1", (2, 2, 2, 1), {"kernel": 1}),
    ("whole picture", (2, 3, 4, 2), {"kernel": (3, 4)}),
    ("2x2, dilated", (2, 6, 5, 2), {"kernel": 2, "stride": 1, "dilation": 2}),
    ("3x3, dilated pairs, padding", (2, 7, 9, 2), {"kernel": 3, "dilation": (2, 3), "padding": (2, 4)}),
    ("3x3, dilated, same", (1, 4, 5, 2), {"kernel": 3, "stride": 1, "padding": "same", "dilation": 2}),
    (
        "3x2, dilated, ceil", (1, 8, 7, 2),
        {"kernel": (3, 2), "stride": 2, "padding": "ceil", "dilation": (2, 3)},
    ),
]  # fmt: skip

"""The convolutions on which every way is checked: strides, paddings, groups, odd sizes, batches of one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from minires.ops.registry import Case, Shape


def cases() -> Iterator[Case]:
    table: list[tuple[str, Shape, Shape, dict[str, Any]]] = [
        ("1x1", (2, 4, 3, 3), (1, 1, 3, 4), {}),
        ("1x1, stride 2, odd picture", (2, 5, 3, 3), (1, 1, 3, 2), {"stride": 2}),
        ("1x1, groups", (2, 3, 3, 6), (1, 1, 2, 3), {"groups": 3}),
        ("1x1 with a border", (1, 2, 3, 2), (1, 1, 2, 3), {"padding": 1}),
        ("3x3", (2, 5, 4, 2), (3, 3, 2, 3), {}),
        ("3x3, same", (2, 4, 5, 2), (3, 3, 2, 3), {"padding": "same"}),
        ("3x3, many channels, odd picture", (2, 5, 7, 16), (3, 3, 16, 17), {"padding": 1}),
        ("3x3, 16 channels to 48, odd picture", (2, 5, 7, 16), (3, 3, 16, 48), {"padding": 1}),
        ("3x3, 32 channels to 16, four sides", (3, 3, 4, 32), (3, 3, 32, 16), {"padding": ((4, 2), (3, 0))}),
        ("3x3, many channels, one line", (1, 1, 8, 32), (3, 3, 32, 32), {"padding": 1}),
        ("3x3, many channels, one column", (2, 9, 1, 16), (3, 3, 16, 32), {"padding": (0, 1)}),
        ("3x3, many channels, four sides", (1, 6, 6, 16), (3, 3, 16, 16), {"padding": ((2, 0), (1, 2))}),
        ("3x3, few channels out", (2, 6, 5, 8), (3, 3, 8, 2), {"padding": 1}),
        ("3x2, few channels out, four sides", (2, 5, 6, 6), (3, 2, 6, 3), {"padding": ((2, 0), (0, 1))}),
        ("3x3, few channels out, 2 groups", (2, 6, 5, 8), (3, 3, 4, 4), {"padding": (0, 2), "groups": 2}),
        ("3x3, same, stride 2, even picture", (1, 6, 4, 2), (3, 3, 2, 3), {"padding": "same", "stride": 2}),
        ("3x3, same_lower, stride 2", (1, 6, 4, 2), (3, 3, 2, 3), {"padding": "same_lower", "stride": 2}),
        ("2x2, same_lower", (1, 3, 4, 2), (2, 2, 2, 2), {"padding": "same_lower"}),
        ("3x3, stride 2, padding 1", (2, 5, 6, 2), (3, 3, 2, 2), {"padding": 1, "stride": 2}),
        ("7x7, stride 2, padding 3", (1, 8, 7, 1), (7, 7, 1, 2), {"padding": 3, "stride": 2}),
        ("3x2, pairs", (2, 6, 7, 2), (3, 2, 2, 2), {"stride": (2, 3), "padding": (1, 0)}),
        ("2x3, four sides", (1, 4, 5, 2), (2, 3, 2, 2), {"padding": ((0, 2), (1, 0))}),
        ("stride larger than kernel", (1, 7, 8, 2), (2, 2, 2, 2), {"stride": 3}),
        ("kernel as large as the picture", (2, 3, 4, 2), (3, 4, 2, 3), {}),
        ("groups", (2, 4, 4, 4), (3, 3, 2, 6), {"padding": 1, "groups": 2}),
        ("3x3, 4 groups that make 2", (1, 4, 3, 32), (3, 3, 8, 24), {"padding": 1, "groups": 4}),
        ("depthwise", (2, 4, 5, 3), (3, 3, 1, 6), {"padding": 1, "groups": 3}),
        ("one picture, one channel", (1, 4, 4, 1), (3, 3, 1, 1), {"padding": 1}),
        ("many places, few channels", (3, 7, 7, 1), (2, 2, 1, 2), {}),
        ("3x3, 3 channels to 16, wide picture", (2, 4, 9, 3), (3, 3, 3, 16), {"padding": 1}),
        ("5x3, wide picture, 2 groups of 16", (2, 7, 17, 4), (5, 3, 2, 32), {"stride": (3, 2), "groups": 2}),
        ("3x3, 16 channels, wide picture", (2, 3, 10, 16), (3, 3, 16, 16), {"padding": ((2, 0), (1, 0))}),
        ("3x3, dilated 2", (2, 6, 7, 2), (3, 3, 2, 3), {"padding": 2, "dilation": 2}),
        ("3x3, 16 channels, dilated 2", (2, 5, 10, 16), (3, 3, 16, 16), {"padding": "same", "dilation": 2}),
        ("3x3, few channels out, dilated", (2, 6, 9, 8), (3, 3, 8, 2), {"padding": 1, "dilation": (1, 2)}),
        (
            "3x2, dilated pairs", (1, 8, 7, 3), (3, 2, 3, 2),
            {"stride": (1, 2), "dilation": (3, 4), "padding": ((2, 1), (0, 3))},
        ),
        ("2x3, dilated over a small picture", (2, 2, 3, 2), (2, 3, 2, 2), {"dilation": 4, "padding": (3, 6)}),
        ("2x3, dilated, 2 groups of 16", (2, 6, 14, 4), (2, 3, 2, 32), {"dilation": (2, 3), "groups": 2}),
        ("1x1, dilated", (2, 4, 3, 3), (1, 1, 3, 4), {"dilation": 2}),
        ("depthwise, dilated", (2, 6, 5, 3), (3, 3, 1, 6), {"padding": 3, "dilation": 3, "groups": 3}),
        ("3x3, depthwise, 16 channels", (2, 5, 4, 16), (3, 3, 1, 16), {"padding": 1, "groups": 16}),
        ("3x3, 16 channels, 8 groups", (2, 6, 5, 16), (3, 3, 2, 16), {"stride": 2, "groups": 8}),
        ("2x3, 4 groups of 4", (1, 6, 7, 16), (2, 3, 4, 16), {"dilation": 2, "padding": 2, "groups": 4}),
        ("3x3, 16 channels, 2 groups", (5, 7, 7, 16), (3, 3, 8, 16), {"padding": (0, 1), "groups": 2}),
    ]  # fmt: skip
    for i, (name, x, w, options) in enumerate(table):
        bias = {"b": w[-1:]} if i % 2 == 0 else {}
        yield Case(name + (", bias" if bias else ""), {"x": x, "w": w, **bias}, options)
        if name.startswith("3x3, ") and "channels" in name:  # each of the ways a forward pass may take
            yield Case(name + ", ReLU", {"x": x, "w": w, **bias}, {**options, "relu": True})

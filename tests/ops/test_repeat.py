"""broadcast_to, tile, repeat."""

import re

import numpy as np
import opcheck
import pytest

from minires import Tensor, ops
from minires.errors import ShapeError
from minires.ops.registry import Case

# These two are made of other operations, so they are none of the registry.
MADE = [
    Case(f"{options}", {"x": (2, 3)}, options, op=op.__name__, fn=op)
    for op, options in [
        (ops.tile, {"counts": 2}),
        (ops.tile, {"counts": (2, 1)}),
        (ops.tile, {"counts": (3, 1, 2)}),
        (ops.repeat.repeat, {"count": 3, "axis": 0}),
        (ops.repeat.repeat, {"count": 2, "axis": -1}),
    ]
]


@opcheck.on_devices
@opcheck.of("broadcast_to")
def test_case(case, device):
    opcheck.check(case, device)


@pytest.mark.parametrize("case", MADE, ids=str)
def test_case_of_other_operations(case):
    opcheck.check(case)


@opcheck.of("broadcast_to")
def test_against_torch(case):
    opcheck.check_against_torch(case, lambda x, shape: x.broadcast_to(shape))


@pytest.mark.parametrize("case", MADE, ids=str)
def test_tile_and_repeat_against_torch(case):
    def tile(x, counts):
        return x.tile(counts if isinstance(counts, tuple) else (counts,))

    def repeat(x, count, axis):
        return x.repeat_interleave(count, axis)

    opcheck.check_against_torch(case, {"tile": tile, "repeat": repeat}[case.op])


def test_nothing_is_copied_where_nothing_is_stretched():
    x = Tensor(np.ones((2, 3)))
    assert x.broadcast_to(2, 3) is x and np.shares_memory(x.broadcast_to((4, 2, 3)).data, x.data)


def test_what_does_not_fit():
    x = Tensor(np.ones((2, 3)))
    for text, wrong in {
        "broadcast_to: (2, 3) cannot be stretched to (2, 4)": lambda: x.broadcast_to(2, 4),
        "broadcast_to: (2, 3) cannot be stretched to (3,)": lambda: x.broadcast_to(3),
        "broadcast_to: shape must be a whole number of at least 0, not 2.5": lambda: x.broadcast_to(2.5, 3),
        "tile: counts must be a whole number of at least 1, not 0": lambda: ops.tile(x, (0, 1)),
        "repeat: count must be a whole number of at least 1, not True": lambda: x.repeat(True, 0),
        "repeat: axis=2 does not fit a tensor of 2 axes": lambda: x.repeat(2, 2),
    }.items():
        with pytest.raises(ShapeError, match=re.escape(text)):
            wrong()

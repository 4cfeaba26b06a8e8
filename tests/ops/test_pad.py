"""A border of zeros."""

import re

import numpy as np
import opcheck
import pytest

from minires import Tensor
from minires.errors import ShapeError
from minires.ops.pad import pad


@opcheck.on_devices
@opcheck.of("pad")
def test_case(case, device):
    opcheck.check(case, device)


@opcheck.of("pad")
def test_against_torch(case):
    torch = pytest.importorskip("torch")

    def reference(x, padding):
        if isinstance(padding, int):
            padding = (padding, padding)
        if isinstance(padding[0], int):
            padding = tuple((side, side) for side in padding)
        (top, bottom), (left, right) = padding
        return torch.nn.functional.pad(x, (0, 0, left, right, top, bottom))

    opcheck.check_against_torch(case, reference)


def test_the_four_sides():
    y = pad(Tensor(np.ones((1, 1, 1, 1))), ((0, 1), (2, 0)))
    assert y.numpy()[0, :, :, 0].tolist() == [[0, 0, 1], [0, 0, 0]]


@pytest.mark.parametrize("padding", [-1, (1, -1), ((0, 1), (1,)), 1.5, "same", None, (1, 2, 3)])
def test_padding_that_makes_no_sense(padding):
    with pytest.raises(ShapeError, match="pad: padding .*must be a whole number of at least 0"):
        pad(Tensor(np.ones((1, 2, 2, 1))), padding)


def test_rank():
    text = "pad: x must be (N, H, W, C), 4 axes, but its shape is (2, 2)"
    with pytest.raises(ShapeError, match=re.escape(text)):
        pad(Tensor(np.ones((2, 2))), 1)

"""Fully connected layer."""

import re

import numpy as np
import opcheck
import pytest

from minires import Tensor
from minires.errors import ShapeError
from minires.ops.linear import linear


@opcheck.on_devices
@opcheck.of("linear")
def test_case(case, device):
    opcheck.check(case, device)


@opcheck.of("linear")
def test_against_torch(case):
    torch = pytest.importorskip("torch")
    opcheck.check_against_torch(case, lambda x, w, b=None: torch.nn.functional.linear(x, w.T, b))


@pytest.mark.parametrize(
    ("x", "w", "b", "text"),
    [
        ((2, 3), (4, 5), None, "linear: x (2, 3) has 3 features but w (4, 5) expects 4"),
        ((2, 3), (3, 5), (3,), "linear: b must have shape (5,), one per output, not (3,)"),
        ((2, 3, 1), (3, 5), None, "x (2, 3, 1) has 1 features but w (3, 5) expects 3; flatten(x) makes"),
        ((), (3, 5), None, "linear: x must be (N, C), 2 axes, but its shape is ()"),
        ((2, 3), (3,), None, "linear: w must be (C, O), 2 axes, but its shape is (3,)"),
    ],
)
def test_shapes_that_do_not_fit(x, w, b, text):
    with pytest.raises(ShapeError, match=re.escape(text)):
        linear(Tensor(np.ones(x)), Tensor(np.ones(w)), None if b is None else Tensor(np.ones(b)))


def test_integer_pictures_are_not_converted_silently():
    with pytest.raises(ShapeError, match=re.escape("linear: x is uint8, but float32 or float64 is needed")):
        linear(Tensor(np.ones((2, 3), np.uint8)), Tensor(np.ones((3, 1), np.float32)))


def test_a_mix_of_dtypes_says_which_one_to_convert():
    x, w = np.ones((2, 3)), Tensor(np.ones((3, 1), np.float32))
    with pytest.raises(ShapeError, match=r'w is float32 but x is float64.*x\.astype\("float32"\)'):
        linear(x, w)
    with pytest.raises(ShapeError, match=r'w is float64 but x is float32.*w\.astype\("float32"\)'):
        linear(x.astype("float32"), w.astype("float64"))

"""Borders of a number and of a picture's own pixels."""

import re

import numpy as np
import opcheck
import pytest

from minires import Tensor
from minires.errors import ConfigError, ShapeError
from minires.ops.pad import MODES, pad

TORCH = {"constant": "constant", "edge": "replicate", "reflect": "reflect", "wrap": "circular"}


@opcheck.on_devices
@opcheck.of("pad")
def test_case(case, device):
    opcheck.check(case, device)


@opcheck.of("pad")
def test_against_torch(case):
    torch = pytest.importorskip("torch")

    def reference(x, padding, mode="constant", value=0.0):
        (top, bottom), (left, right) = map(opcheck.pair, opcheck.pair(padding))
        first = x.permute(0, 3, 1, 2)
        options = {"value": value} if mode == "constant" else {}
        y = torch.nn.functional.pad(first, (left, right, top, bottom), mode=TORCH[mode], **options)
        return y.permute(0, 2, 3, 1)

    opcheck.check_against_torch(case, reference)


def test_the_four_sides():
    y = pad(Tensor(np.ones((1, 1, 1, 1))), ((0, 1), (2, 0)))
    assert y.numpy()[0, :, :, 0].tolist() == [[0, 0, 1], [0, 0, 0]]


@pytest.mark.parametrize("value", [2, -1.5, np.float32(0.25), np.int64(3), -np.inf])
def test_the_value_of_the_border(value):
    x = Tensor(np.zeros((1, 1, 2, 1), np.float32), requires_grad=True)
    y = pad(x, (0, 1), value=value)
    assert y.numpy().ravel().tolist() == [float(value), 0, 0, float(value)] and y.dtype == np.float32
    y.backward(np.arange(1.0, 5.0, dtype=np.float32).reshape(y.shape))
    assert x.grad.ravel().tolist() == [2, 3]


@pytest.mark.parametrize(
    ("mode", "rows", "gradient"),
    [
        ("edge", [0, 0, 0, 0, 1, 2, 2, 2, 2], [10, 5, 30]),
        ("reflect", [2, 1, 0, 1, 2, 1, 0], [10, 12, 6]),
        ("wrap", [0, 1, 2, 0, 1, 2, 0, 1, 2], [12, 15, 18]),
    ],
)
def test_the_largest_border_by_hand(mode, rows, gradient):
    """Rows 0, 1, 2, with as many on each side as there can be, or three; dy counts 1, 2, 3, ..."""
    x = Tensor(np.arange(3.0).reshape(1, 3, 1, 1), requires_grad=True)
    y = pad(x, ((len(rows) - 3) // 2, 0), mode=mode)
    assert y.numpy().ravel().tolist() == rows
    y.backward(np.arange(1.0, len(rows) + 1).reshape(y.shape))
    assert x.grad.ravel().tolist() == gradient


@pytest.mark.parametrize(
    "padding", [np.int64(1), (np.int32(1), 1), ((np.int8(1), 1), (np.uint16(1), 1)), [1, 1], np.array([1, 1])]
)
def test_numbers_of_numpy_are_numbers(padding):
    x = Tensor(np.ones((1, 2, 2, 1)))
    assert np.array_equal(pad(x, padding).numpy(), pad(x, 1).numpy())


@pytest.mark.parametrize(
    "padding", [-1, (1, -1), ((0, 1), (1,)), 1.5, "same", None, (1, 2, 3), True, (1, (2, 3)), (1.0, 2.0), {}]
)
def test_padding_that_makes_no_sense(padding):
    with pytest.raises(ShapeError, match="pad: padding .*must be a whole number of at least 0"):
        pad(Tensor(np.ones((1, 2, 2, 1))), padding)


@pytest.mark.parametrize(
    ("mode", "padding", "text"),
    [
        ("reflect", 3, "of 3 rows mode 'reflect' can make at most 2 more on each side, but padding"),
        ("reflect", (0, 5), "of 4 columns mode 'reflect' can make at most 3 more on each side"),
        ("reflect", ((0, 3), (0, 0)), "padding asks for 0 before and 3 behind them"),
        ("wrap", ((4, 0), (0, 0)), "of 3 rows mode 'wrap' can make at most 3 more on each side"),
    ],
)
def test_a_border_larger_than_the_picture_gives(mode, padding, text):
    with pytest.raises(ShapeError, match=re.escape(text)):
        pad(Tensor(np.ones((1, 3, 4, 1))), padding, mode=mode)


@pytest.mark.parametrize("mode", MODES[1:])
def test_a_picture_without_rows_gives_none(mode):
    x = Tensor(np.ones((1, 0, 4, 1)))
    assert pad(x, (0, 1), mode=mode).shape == (1, 0, 6, 1)
    with pytest.raises(ShapeError, match=f"of 0 rows mode '{mode}' can make at most 0 more"):
        pad(x, (1, 0), mode=mode)


@pytest.mark.parametrize("value", ["1", True, None, 1j])
def test_a_value_that_is_no_number(value):
    with pytest.raises(ConfigError, match="pad: value must be a number, not"):
        pad(Tensor(np.ones((1, 2, 2, 1))), 1, value=value)


def test_modes_that_are_none_and_values_of_no_use():
    x = Tensor(np.ones((1, 2, 2, 1)))
    with pytest.raises(ConfigError, match="pad: mode must be one of 'constant', 'edge', 'reflect', 'wrap'"):
        pad(x, 1, mode="replicate")
    with pytest.raises(ConfigError, match="pad: value=2 is for mode 'constant' only; 'edge' takes"):
        pad(x, 1, mode="edge", value=2)


def test_rank():
    text = "pad: x must be (N, H, W, C), 4 axes, but its shape is (2, 2)"
    with pytest.raises(ShapeError, match=re.escape(text)):
        pad(Tensor(np.ones((2, 2))), 1)

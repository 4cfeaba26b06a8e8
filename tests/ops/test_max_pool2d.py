"""Max pooling: geometry, ties, the border, NaN and minus infinity."""

import re

import numpy as np
import opcheck
import pytest

from minires import Tensor, backend, reference
from minires.errors import MiniresError, ShapeError
from minires.ops.max_pool2d import max_pool2d, numba_kernels
from minires.ops.window import window


@opcheck.on_devices
@opcheck.of("max_pool2d")
def test_case(case, device):
    opcheck.check(case, device)


@opcheck.of("max_pool2d")
def test_against_torch(case):
    torch = pytest.importorskip("torch")

    def reference(x, kernel, stride=None, padding=0, dilation=1):
        stride = kernel if stride is None else stride
        sides = opcheck.four_sides(x.shape[1:3], kernel, stride, padding, dilation)
        (top, bottom), (left, right) = sides
        sides = (left, right, top, bottom)
        nchw = torch.nn.functional.pad(x.permute(0, 3, 1, 2), sides, value=float("-inf"))
        return torch.nn.functional.max_pool2d(nchw, kernel, stride, 0, dilation).permute(0, 2, 3, 1)

    opcheck.check_against_torch(case, reference)


both = pytest.mark.parametrize("fast", [True, False], ids=["fast", "reference"])


def _pool(picture, dy, fast, **options):
    """Output and gradient of one picture of one channel."""
    x = Tensor(np.asarray(picture, np.float64)[None, :, :, None], requires_grad=True)
    if fast:
        y = max_pool2d(x, **options)
        y.backward(np.asarray(dy, np.float64)[None, :, :, None])
    else:
        with reference():
            y = max_pool2d(x, **options)
            y.backward(np.asarray(dy, np.float64)[None, :, :, None])
    return y.numpy()[0, :, :, 0].tolist(), x.grad[0, :, :, 0].tolist()


@both
def test_of_equal_pixels_the_first_wins(fast):
    y, dx = _pool([[1, 5, 2, 2], [5, 5, 2, 2]], [[3, 4]], fast, kernel=2)
    assert y == [[5, 2]] and dx == [[0, 3, 4, 0], [0, 0, 0, 0]]


@both
def test_a_pixel_under_two_windows_gets_both_gradients(fast):
    _, dx = _pool([[1, 9, 2]], [[3, 4]], fast, kernel=(1, 2), stride=1)
    assert dx == [[0, 7, 0]]


@both
def test_the_border_never_wins(fast):
    y, dx = _pool([[-5, -6], [-7, -8]], [[1, 2], [3, 4]], fast, kernel=2, stride=2, padding=1)
    assert y == [[-5, -6], [-7, -8]] and dx == [[1, 2], [3, 4]]


@both
def test_minus_infinity_is_a_pixel_and_not_the_border(fast):
    y, dx = _pool(np.full((2, 2), -np.inf), [[1, 2], [3, 4]], fast, kernel=2, stride=2, padding=1)
    assert y == [[-np.inf] * 2] * 2 and dx == [[1, 2], [3, 4]]


@both
def test_a_kernel_far_larger_than_the_picture_stays_inside_it(fast):
    _, dx = _pool([[-np.inf]], [[1, 2], [3, 4]], fast, kernel=4, stride=1, padding=2)
    assert dx == [[10]]


@both
def test_in_a_dilated_window_the_pixels_between_do_not_count(fast):
    y, dx = _pool([[1, 9, 2, 9, 3]], [[1, 2, 4]], fast, kernel=(1, 2), stride=1, dilation=2)
    assert y == [[2, 9, 3]] and dx == [[0, 2, 1, 0, 4]]


@both
def test_nan_is_not_hidden(fast):
    y, _ = _pool([[1, np.nan, 3, 4], [9, 2, 3, 4]], [[1, 1]], fast, kernel=2)
    assert np.isnan(y[0][0]) and y[0][1] == 4


@pytest.mark.parametrize(
    ("x", "options", "text"),
    [
        ((4, 4, 1), {"kernel": 2}, "max_pool2d: x must be (N, H, W, C), 4 axes, but its shape is (4, 4, 1)"),
        ((1, 2, 4, 1), {"kernel": 3}, "max_pool2d: the kernel 3x3 is larger than the padded picture 2x4"),
        ((1, 4, 4, 1), {"kernel": 2, "padding": 2}, "must be smaller than the kernel 2x2"),
        ((1, 1, 4, 1), {"kernel": 2, "padding": 1, "dilation": 2}, "2x2, dilated to 3x3, and leave in each"),
        ((1, 4, 4, 1), {"kernel": 2, "dilation": 4}, "the kernel 2x2, dilated to 5x5, is larger than the"),
        ((1, 4, 4, 1), {"kernel": 2, "dilation": 1.5}, "max_pool2d: dilation must be a whole number"),
        ((1, 4, 4, 1), {"kernel": 0}, "max_pool2d: kernel size must be a whole number of at least 1"),
        ((1, 4, 4, 1), {"kernel": 2, "stride": -1}, "stride must be a whole number of at least 1"),
    ],
)
def test_shapes_that_do_not_fit(x, options, text):
    with pytest.raises(ShapeError, match=re.escape(text)):
        max_pool2d(Tensor(np.ones(x)), **options)


def test_integer_pictures_are_not_converted_silently():
    with pytest.raises(ShapeError, match="max_pool2d: x is uint8"):
        max_pool2d(Tensor(np.ones((1, 2, 2, 1), np.uint8)), 2)


@pytest.mark.skipif(not backend.HAS_NUMBA, reason="the kernels need Numba")
@pytest.mark.parametrize("pixel", [4, 50, -1, 2**31 - 1])
def test_a_winner_outside_its_window_is_refused(pixel):
    x = np.ones((1, 4, 4, 2), np.float32)
    win = window("max_pool2d", (4, 4), 2, 2, 0, 1)
    y, winner = numba_kernels.forward(x, win)
    assert numba_kernels.backward(y, winner, x.shape, win).sum() == y.size
    winner[0, 1, 0, 1] = pixel
    with pytest.raises(MiniresError, match="the winners that the forward pass saved were changed"):
        numba_kernels.backward(y, winner, x.shape, win)


@pytest.mark.skipif(not backend.HAS_NUMBA, reason="the kernels need Numba")
def test_a_winner_in_the_border_is_refused():
    x = np.ones((1, 4, 4, 2), np.float32)
    win = window("max_pool2d", (4, 4), 3, 2, 1, 1)
    y, winner = numba_kernels.forward(x, win)
    winner[0, 0, 0, 0] = 0
    with pytest.raises(MiniresError, match="the winners that the forward pass saved were changed"):
        numba_kernels.backward(y, winner, x.shape, win)

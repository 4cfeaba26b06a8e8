"""Shortcut option A: subsampling and channels of zeros."""

import re

import numpy as np
import opcheck
import pytest

from minires import Tensor
from minires.errors import ShapeError
from minires.ops.pad_channels import pad_channels


@opcheck.on_devices
@opcheck.of("pad_channels")
def test_case(case, device):
    opcheck.check(case, device)


@opcheck.of("pad_channels")
def test_against_torch(case):
    torch = pytest.importorskip("torch")

    def reference(x, channels, stride=1, both=False):
        missing = channels - x.shape[-1]
        before = missing // 2 if both else 0
        return torch.nn.functional.pad(x[:, ::stride, ::stride], (before, missing - before))

    opcheck.check_against_torch(case, reference)


def test_the_zeros_come_after():
    x = Tensor(np.arange(1.0, 10).reshape(1, 3, 3, 1))
    y = pad_channels(x, 3, stride=2).numpy()
    assert y[0, :, :, 0].tolist() == [[1, 3], [7, 9]]
    assert not y[..., 1:].any()


def test_half_before_and_half_after():
    y = pad_channels(Tensor(np.ones((1, 1, 1, 2))), 5, both=True).numpy()
    assert y.ravel().tolist() == [0, 1, 1, 0, 0]


@pytest.mark.parametrize("channels", [1, 0, -2, 3.0])
def test_fewer_channels_than_there_are(channels):
    text = f"pad_channels: x (1, 2, 2, 2) has 2 channels already; channels={channels} must be"
    with pytest.raises(ShapeError, match=re.escape(text)):
        pad_channels(Tensor(np.ones((1, 2, 2, 2))), channels)


def test_stride_and_rank():
    with pytest.raises(ShapeError, match="pad_channels: stride must be a whole number of at least 1, not 0"):
        pad_channels(Tensor(np.ones((1, 2, 2, 2))), 4, stride=0)
    with pytest.raises(ShapeError, match=re.escape("pad_channels: x must be (N, H, W, C), 4 axes")):
        pad_channels(Tensor(np.ones((2, 2))), 4)

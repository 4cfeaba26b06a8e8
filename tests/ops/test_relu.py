"""Rectified linear unit."""

import numpy as np
import opcheck
import pytest

from minires import Tensor
from minires.errors import ShapeError
from minires.ops.relu import relu


@opcheck.on_devices
@opcheck.of("relu")
def test_case(case, device):
    opcheck.check(case, device)


@opcheck.of("relu")
def test_against_torch(case):
    torch = pytest.importorskip("torch")
    opcheck.check_against_torch(case, torch.relu)


def test_at_zero_the_gradient_is_zero():
    x = Tensor([-1.0, -0.0, 0.0, 1e-30], requires_grad=True)
    y = relu(x)
    y.backward([1.0, 1.0, 1.0, 1.0])
    assert y.numpy().tolist() == [0, 0, 0, np.float32(1e-30)]
    assert x.grad.tolist() == [0, 0, 0, 1]


def test_nan_is_not_hidden():
    assert np.isnan(relu(Tensor([np.nan, 1.0])).numpy()).tolist() == [True, False]


def test_integers_are_refused():
    with pytest.raises(ShapeError, match="relu: x is int32"):
        relu(Tensor(np.ones(3, np.int32)))

"""Logistic sigmoid."""

import numpy as np
import opcheck
import pytest

from minires import Tensor
from minires.errors import ShapeError
from minires.ops.sigmoid import sigmoid


@opcheck.on_devices
@opcheck.of("sigmoid")
def test_case(case, device):
    opcheck.check(case, device)


@opcheck.of("sigmoid")
def test_against_torch(case):
    torch = pytest.importorskip("torch")
    opcheck.check_against_torch(case, torch.sigmoid)


@pytest.mark.parametrize("dtype", opcheck.DTYPES)
def test_large_numbers_neither_overflow_nor_vanish_early(dtype):
    x = Tensor(np.array([-1e4, -50.0, 0.0, 50.0, 1e4], dtype), requires_grad=True)
    with np.errstate(over="raise", invalid="raise"):
        y = sigmoid(x)
        y.backward(np.ones(5))
    assert y.numpy()[[0, 2, 4]].tolist() == [0, 0.5, 1]
    assert np.isclose(y.numpy()[1], np.exp(-50.0), rtol=1e-5, atol=0)
    assert x.grad[2] == 0.25 and np.isfinite(x.grad).all()


def test_integers_are_refused():
    with pytest.raises(ShapeError, match="sigmoid: x is int64"):
        sigmoid(Tensor(np.ones(3, np.int64)))

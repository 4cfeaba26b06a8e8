"""tanh."""

import numpy as np
import opcheck
import pytest

from minires import Tensor
from minires.errors import ShapeError
from minires.ops.tanh import tanh


@opcheck.on_devices
@opcheck.of("tanh")
def test_case(case, device):
    opcheck.check(case, device)


@opcheck.of("tanh")
def test_against_torch(case):
    opcheck.check_against_torch(case, pytest.importorskip("torch").tanh)


def test_large_numbers_do_not_overflow():
    x = Tensor([-1e30, 1e30], requires_grad=True)
    with np.errstate(all="raise"):
        y = tanh(x)
        y.sum().backward()
    assert y.tolist() == [-1, 1] and x.grad.tolist() == [0, 0]


def test_integers_are_refused():
    with pytest.raises(ShapeError, match="tanh: x is int64"):
        tanh(Tensor(np.ones(2, np.int64)))

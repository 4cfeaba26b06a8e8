"""Joining tensors."""

import re

import numpy as np
import opcheck
import pytest

from minires import Tensor
from minires.errors import ShapeError
from minires.ops.concat import concat


@opcheck.on_devices
@opcheck.of("concat")
def test_case(case, device):
    opcheck.check(case, device)


@opcheck.of("concat")
def test_against_torch(case):
    torch = pytest.importorskip("torch")
    opcheck.check_against_torch(case, lambda *tensors, axis=-1: torch.cat(tensors, axis))


def test_one_tensor_twice_gets_both_gradients():
    x = Tensor(np.ones((1, 2)), requires_grad=True)
    concat([x, x]).backward([[1.0, 2.0, 10.0, 20.0]])
    assert x.grad.tolist() == [[11, 22]]


def test_what_cannot_be_joined():
    a = Tensor(np.ones((2, 3)))
    with pytest.raises(ShapeError, match="concat: there is nothing to join"):
        concat([])
    for other in ((3, 3), (2, 3, 1), (3,), (2,)):
        text = f"concat: tensors[0] is (2, 3) but tensors[1] is {other}; they may differ at axis 1 only"
        with pytest.raises(ShapeError, match=re.escape(text)):
            concat([a, Tensor(np.ones(other))])
    for axis in (None, (0,), 0.5):
        with pytest.raises(ShapeError, match="concat: axis must be one whole number"):
            concat([a, a], axis=axis)
    with pytest.raises(ShapeError, match="concat: axis=2 does not fit a tensor of 2 axes"):
        concat([a, a], axis=2)
    with pytest.raises(ShapeError, match=re.escape("tensors[0] is float64 but tensors[1] is float32")):
        concat([a, Tensor(np.ones((2, 3), np.float32))])

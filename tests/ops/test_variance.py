"""var and std: gradients, the correction, numbers far from zero, and numbers that are all equal."""

import re

import numpy as np
import opcheck
import pytest

from minires import Tensor, ops
from minires.errors import ConfigError, ShapeError


@opcheck.on_devices
@opcheck.of("var", "std")
def test_case(case, device):
    opcheck.check(case, device)


@opcheck.of("var", "std")
def test_against_torch(case):
    torch = pytest.importorskip("torch")

    def reference(x, axis, correction, keepdims):
        axes = tuple(range(x.ndim)) if axis is None else axis
        return getattr(torch, case.op)(x, dim=axes, correction=correction, keepdim=keepdims)

    opcheck.check_against_torch(case, reference)


def test_numbers_far_from_zero_lose_nothing():
    x = Tensor(np.array([1e4, 1e4 + 1, 1e4 + 2], np.float32))
    assert x.var().item() == pytest.approx(2 / 3, rel=1e-6)
    assert x.var(correction=1).item() == pytest.approx(1.0, rel=1e-6)


def test_equal_numbers_have_no_deviation_and_no_gradient():
    x = Tensor([[2.0, 2.0], [1.0, 3.0]], requires_grad=True)
    y = x.std(1)
    y.backward([1.0, 1.0])
    assert y.tolist() == [0, 1] and x.grad.tolist() == [[0, 0], [-0.5, 0.5]]


@pytest.mark.parametrize("op", [ops.var, ops.std])
def test_too_few_numbers(op):
    for shape, correction in [((0, 3), 0), ((1, 3), 1), ((2, 3), 2.5)]:
        text = f"{op.__name__}: {shape[0]} numbers of shape {shape} over axes (0,) are too few"
        with pytest.raises(ShapeError, match=re.escape(text)):
            op(Tensor(np.ones(shape)), 0, correction=correction)
    with pytest.raises(ConfigError, match=f"{op.__name__}: correction must be a number, not True"):
        op(Tensor([1.0, 2.0]), correction=True)


def test_equal_numbers_near_the_largest_have_no_variance():
    assert ops.var(Tensor(np.full(3, 3e38, np.float32))).item() == 0


def test_numbers_whose_mean_lies_between_two_floats():
    x = np.array([1e6, 1e6 + 0.0625], np.float32)
    assert ops.var(Tensor(x)).item() == 0.03125**2

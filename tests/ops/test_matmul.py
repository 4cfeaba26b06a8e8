"""Matrix product of matrices, stacks and vectors."""

import re

import numpy as np
import opcheck
import pytest

from minires import Tensor
from minires.errors import ShapeError


@opcheck.on_devices
@opcheck.of("matmul")
def test_case(case, device):
    opcheck.check(case, device)


@opcheck.of("matmul")
def test_against_torch(case):
    opcheck.check_against_torch(case, lambda a, b: a @ b)


def test_operators():
    a, b = np.arange(6.0).reshape(2, 3), np.arange(6.0).reshape(3, 2)
    for y in (Tensor(a) @ Tensor(b), Tensor(a) @ b, a @ Tensor(b)):
        assert isinstance(y, Tensor) and np.array_equal(y.numpy(), a @ b)


@pytest.mark.parametrize(
    ("a", "b", "text"),
    [
        ((2, 3), (2, 3), "matmul: a (2, 3) has 3 columns but b (2, 3) has 2 rows"),
        ((2,), (3, 2), "matmul: a (2,) has 2 columns but b (3, 2) has 3 rows"),
        ((2, 3), (2,), "matmul: a (2, 3) has 3 columns but b (2,) has 2 rows"),
        ((2, 3), (), "matmul: b is a single number; multiply with * instead of @"),
        ((2, 3, 4), (3, 4, 5), "matmul: the stacks of a (2, 3, 4) and b (3, 4, 5) cannot be broadcast"),
    ],
)
def test_shapes_that_do_not_fit(a, b, text):
    with pytest.raises(ShapeError, match=re.escape(text)):
        Tensor(np.ones(a)) @ Tensor(np.ones(b))


def test_dtypes_are_never_mixed():
    with pytest.raises(ShapeError, match="matmul: a is float64 but b is float32"):
        Tensor(np.ones((2, 2))) @ Tensor(np.ones((2, 2), np.float32))

"""softmax and log_softmax."""

import re

import numpy as np
import opcheck
import pytest

from minires import Tensor
from minires.errors import ShapeError
from minires.ops.softmax import log_softmax, softmax


@opcheck.on_devices
@opcheck.of("softmax", "log_softmax")
def test_case(case, device):
    opcheck.check(case, device)


@opcheck.of("softmax", "log_softmax")
def test_against_torch(case):
    torch = pytest.importorskip("torch")
    opcheck.check_against_torch(case, lambda x, axis=-1: getattr(torch, case.op)(x, axis))


@pytest.mark.parametrize("dtype", opcheck.DTYPES)
def test_large_scores_do_not_overflow(dtype):
    x = np.array([[1e4, 0.0, -1e4], [-1e4, -1e4, -1e4], [1e4, 1e4, 1e4]], dtype)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        y, log_y = softmax(Tensor(x)).numpy(), log_softmax(Tensor(x)).numpy()
    assert np.allclose(y, [[1, 0, 0], [1 / 3] * 3, [1 / 3] * 3])
    assert np.allclose(log_y, [[0, -1e4, -2e4], [np.log(1 / 3)] * 3, [np.log(1 / 3)] * 3])


def test_rows_sum_to_one_whatever_is_added():
    x = np.random.default_rng(0).standard_normal((5, 7))
    y = softmax(Tensor(x)).numpy()
    assert np.allclose(y.sum(-1), 1, rtol=1e-14)
    assert np.allclose(softmax(Tensor(x + 123)).numpy(), y, rtol=1e-12)
    assert np.allclose(np.exp(log_softmax(Tensor(x)).numpy()), y, rtol=1e-13)


@pytest.mark.parametrize("fn", [softmax, log_softmax])
def test_what_has_no_classes(fn):
    for shape in ((), (3, 0)):
        text = f"{fn.__name__}: x must be (..., K) with at least one class, not of shape {shape}"
        with pytest.raises(ShapeError, match=re.escape(text)):
            fn(Tensor(np.ones(shape)))
    with pytest.raises(ShapeError, match=f"{fn.__name__}: axis=2 does not fit a tensor of 2 axes"):
        fn(Tensor(np.ones((2, 3))), axis=2)
    with pytest.raises(ShapeError, match=f"{fn.__name__}: x is int64"):
        fn(Tensor(np.ones(3, np.int64)))


def test_the_axis_may_stand_without_its_name():
    x = Tensor([[1.0, 2.0], [3.0, 5.0]])
    for op in (softmax, log_softmax):
        np.testing.assert_array_equal(op(x, 0).numpy(), op(x, axis=0).numpy())
    np.testing.assert_array_equal(x.softmax(0).numpy(), softmax(x, axis=0).numpy())
    np.testing.assert_array_equal(x.log_softmax(-1).numpy(), log_softmax(x).numpy())

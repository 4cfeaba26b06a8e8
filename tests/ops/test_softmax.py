"""softmax and log_softmax."""

import re

import cuda_emulator
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


@pytest.fixture(params=["array code", pytest.param("kernels", marks=pytest.mark.emulated)])
def implementation(request, monkeypatch):
    """Each test that asks for this runs on plain arrays, and through the CUDA kernels on the CPU."""
    if request.param == "kernels":
        if cuda_emulator.compiler() is None:
            pytest.skip("there is no g++ here")
        cuda_emulator.emulate(monkeypatch)


@pytest.mark.parametrize("op", [softmax, log_softmax])
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e4, 3.4e38])
@pytest.mark.parametrize("axis", [0, 1])
def test_any_scores_of_float32_as_in_float64(op, size, axis, implementation):
    """Scores of every size float32 has, some of them minus infinity, against PyTorch in float64."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    scores = (rng.uniform(-1, 1, (9, 30)) * size).astype(np.float32)
    scores[rng.uniform(size=scores.shape) < 0.2] = -np.inf
    x = Tensor(scores, requires_grad=True)
    exact = torch.tensor(scores, dtype=torch.float64, requires_grad=True)
    y, expected = op(x, axis), getattr(torch, op.__name__)(exact, axis)
    dy = rng.standard_normal(y.shape).astype(np.float32)
    y.backward(dy)
    expected.backward(torch.tensor(dy).double())
    with np.errstate(over="ignore"):
        wanted = expected.detach().numpy().astype(np.float32)
    np.testing.assert_allclose(y.data, wanted, rtol=2e-6, atol=1e-37)
    np.testing.assert_allclose(x.grad, exact.grad.numpy(), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("op", [softmax, log_softmax])
@pytest.mark.parametrize("row", [[-np.inf, -np.inf], [np.inf, 1.0], [np.inf, np.inf], [np.nan, 0.0]])
def test_rows_without_an_answer_are_nan_as_in_torch(op, row, implementation):
    torch = pytest.importorskip("torch")
    with np.errstate(invalid="ignore"):
        y = op(Tensor(np.array([row, [0.0, 0.0]], np.float32))).numpy()
    expected = getattr(torch, op.__name__)(torch.tensor([row, [0.0, 0.0]]), -1).numpy()
    np.testing.assert_allclose(y, expected, rtol=1e-6)
    assert np.isnan(y[0]).all()


def test_the_logarithm_of_what_is_nearly_certain(implementation):
    """log(1 / (1 + e^-20)) = -e^-20, which is lost where 1 + e^-20 is rounded to float32."""
    y = log_softmax(Tensor(np.array([[20.0, 0.0]], np.float32))).numpy()
    assert y[0, 0] == pytest.approx(-np.exp(-20), rel=1e-4)


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

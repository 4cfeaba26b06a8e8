"""Leaky rectified linear unit."""

import numpy as np
import opcheck
import pytest

from minires import Tensor, nn
from minires.errors import ConfigError, ShapeError
from minires.ops import leaky_relu as module
from minires.ops.leaky_relu import leaky_relu


@opcheck.on_devices
@opcheck.of("leaky_relu")
def test_case(case, device):
    opcheck.check(case, device)


@opcheck.of("leaky_relu")
def test_against_torch(case):
    torch = pytest.importorskip("torch")

    def reference(x, *, slope=0.01):
        return torch.nn.functional.leaky_relu(x, slope)

    opcheck.check_against_torch(case, reference)


def test_at_zero_the_gradient_is_that_of_the_left_and_nan_is_not_hidden():
    x = Tensor([-2.0, -0.0, 0.0, 3.0, np.nan], requires_grad=True)
    y = leaky_relu(x, slope=0.25)
    y.backward(np.ones(5))
    assert y.numpy()[:4].tolist() == [-0.5, 0, 0, 3] and np.isnan(y.numpy()[4])
    assert x.grad[:4].tolist() == [0.25, 0.25, 0.25, 1]


def test_several_threads_do_all_of_a_large_array(monkeypatch):
    monkeypatch.setattr(module, "_GRAIN", 5)
    data, dy = np.random.default_rng(0).standard_normal((2, 1001)).astype(np.float32)
    x = Tensor(data, requires_grad=True)
    y = leaky_relu(x, slope=0.5)
    y.backward(dy)
    assert np.array_equal(y.numpy(), np.where(data > 0, data, data / 2))
    assert np.array_equal(x.grad, np.where(data > 0, dy, dy / 2))


@pytest.mark.parametrize("slope", [-0.1, float("nan"), "steep"])
def test_a_slope_that_makes_no_sense_is_refused(slope):
    with pytest.raises(ConfigError, match="leaky_relu: slope"):
        leaky_relu(Tensor([1.0]), slope=slope)
    with pytest.raises(ShapeError, match="leaky_relu: x is int64"):
        leaky_relu(Tensor(np.ones(2, np.int64)))


def test_the_layer():
    x = Tensor([-1.0, 2.0])
    assert nn.LeakyReLU()(x).tolist() == [np.float32(-0.01), 2.0]
    assert nn.LeakyReLU(slope=0.5)(x).tolist() == [-0.5, 2.0]
    assert repr(nn.LeakyReLU(slope=0.5)) == "LeakyReLU(slope=0.5)"

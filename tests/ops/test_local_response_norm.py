"""Local response normalisation."""

import re

import numpy as np
import opcheck
import pytest

from minires import Tensor, nn
from minires.errors import ShapeError
from minires.inspect import summarize
from minires.ops.local_response_norm import local_response_norm


@opcheck.on_devices
@opcheck.of("local_response_norm")
def test_case(case, device):
    opcheck.check(case, device)


@opcheck.of("local_response_norm")
def test_against_torch(case):
    torch = pytest.importorskip("torch")

    def reference(x, size=5, k=2.0, alpha=1e-4, beta=0.75):
        channels_second = x.reshape(-1, x.shape[-1], 1)  # PyTorch wants (N, C, ...), and divides alpha
        y = torch.nn.functional.local_response_norm(channels_second, size, alpha * size, beta, k)
        return y.reshape(x.shape)

    opcheck.check_against_torch(case, reference)


def test_the_formula_by_hand():
    x = np.array([1.0, 2.0, 3.0, 4.0])
    y = local_response_norm(Tensor(x), 3, k=2, alpha=0.1, beta=1).numpy()
    assert np.allclose(y, [1 / 2.5, 2 / 3.4, 3 / 4.9, 4 / 4.5], rtol=1e-15)  # 2 + 0.1 (1 + 4), ...


def test_the_defaults_are_those_of_the_paper():
    x = np.full(9, 100.0)
    y = local_response_norm(Tensor(x)).numpy()
    assert np.isclose(y[4], 100 / (2 + 1e-4 * 5 * 100**2) ** 0.75, rtol=1e-14)
    assert np.isclose(y[0], 100 / (2 + 1e-4 * 3 * 100**2) ** 0.75, rtol=1e-14)


def test_the_layer():
    x = Tensor(np.random.default_rng(0).normal(0, 50, (2, 3, 3, 6)).astype(np.float32))
    assert np.array_equal(nn.LocalResponseNorm()(x).numpy(), local_response_norm(x).numpy())
    options = {"k": 1.0, "alpha": 0.2, "beta": 0.5}
    y = nn.LocalResponseNorm(3, **options)(x).numpy()
    assert np.array_equal(y, local_response_norm(x, 3, **options).numpy())
    model = nn.Sequential(conv=nn.Conv2d(3, 4, 1, rng=np.random.default_rng(0)), lrn=nn.LocalResponseNorm())
    row = summarize(model, (5, 5, 3)).layers[1]
    assert (row.kind, row.output, row.params, row.macs) == ("local response norm", (5, 5, 4), 0, 0)


@pytest.mark.parametrize(
    ("x", "options", "text"),
    [
        ((), {}, "x must be (..., C) with at least one channel, not ()"),
        ((2, 0), {}, "x must be (..., C) with at least one channel, not (2, 0)"),
        ((4,), {"size": 4}, "size must be odd, as many neighbours on both sides, not 4"),
        ((4,), {"size": -1}, "size must be odd, as many neighbours on both sides, not -1"),
        ((4,), {"size": 1.5}, "size must be odd, as many neighbours on both sides, not 1.5"),
        ((4,), {"k": 0}, "k must be above 0 and alpha not below 0, but k=0.0 and alpha=0.0001"),
        ((4,), {"alpha": -1}, "k must be above 0 and alpha not below 0, but k=2.0 and alpha=-1.0"),
    ],
)
def test_bad_input(x, options, text):
    with pytest.raises(ShapeError, match=re.escape(f"local_response_norm: {text}")):
        local_response_norm(Tensor(np.ones(x)), **options)


def test_whole_numbers_are_refused():
    with pytest.raises(ShapeError, match="local_response_norm: x is int64"):
        local_response_norm(Tensor(np.ones(3, np.int64)))

"""Dropout."""

import numpy as np
import opcheck
import pytest

from minires import Tensor
from minires.errors import ConfigError, ShapeError
from minires.modes import share_of_batch
from minires.ops.dropout import dropout


@opcheck.on_devices
@opcheck.of("dropout")
def test_case(case, device):
    # On a GPU the fast path draws other masks than the reference implementation, as its docstring says.
    opcheck.check(case, device, implementations=device == "cpu")


def _rng():
    return np.random.default_rng(0)


def test_the_share_and_the_scale():
    x = Tensor(np.ones(100_000, np.float32))
    y = dropout(x, 0.3, rng=_rng()).numpy()
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.7)}
    assert abs((y == 0).mean() - 0.3) < 0.005  # more than three standard deviations
    assert abs(y.mean() - 1) < 0.01


def test_the_gradient_goes_through_the_same_mask():
    x = Tensor(np.ones((50, 4)), requires_grad=True)
    y = dropout(x, 0.5, rng=_rng())
    y.sum().backward()
    assert np.array_equal(x.grad, y.numpy()) and (x.grad == 0).any()


def test_one_seed_gives_one_mask_in_every_dtype():
    single, double = (dropout(Tensor(np.ones(99, t)), 0.4, rng=_rng()).numpy() for t in opcheck.DTYPES)
    assert np.array_equal(single == 0, double == 0)


def test_each_call_draws_a_new_mask():
    rng, x = _rng(), Tensor(np.ones(99))
    assert not np.array_equal(dropout(x, 0.5, rng=rng).numpy(), dropout(x, 0.5, rng=rng).numpy())


def test_inference_and_rate_zero_leave_x_and_the_generator_alone():
    rng, x = _rng(), Tensor(np.ones(3))
    before = rng.bit_generator.state
    assert dropout(x, 0.5, rng=rng, training=False) is x
    assert dropout(x, 0.0, rng=rng) is x
    assert rng.bit_generator.state == before


@pytest.mark.parametrize("rate", [1.0, -0.1, 50, float("nan")])
def test_rates_that_make_no_sense(rate):
    with pytest.raises(ConfigError, match="dropout: rate is the share of numbers set to zero"):
        dropout(Tensor([1.0]), rate, rng=_rng())


def test_integers_are_refused():
    with pytest.raises(ShapeError, match="dropout: x is int64"):
        dropout(Tensor(np.ones(3, np.int64)), 0.5, rng=_rng())


def test_those_who_share_a_batch_have_the_parts_of_one_mask():
    x = np.ones((7, 3, 5))
    whole, after = dropout(Tensor(x), 0.5, rng=_rng()).numpy(), _rng()
    dropout(Tensor(x), 0.5, rng=after)
    for start, stop in ((0, 2), (2, 6), (6, 7)):
        rng = _rng()
        with share_of_batch(start, stop, 7):
            part = dropout(Tensor(x[start:stop]), 0.5, rng=rng).numpy()
        assert (part == whole[start:stop]).all()
        assert rng.bit_generator.state == after.bit_generator.state  # so the next mask is the same, too


def test_whatever_is_dropped_all_who_share_a_batch_go_on_alike():
    """Several rows for each picture, or a weight that has as many rows as that by chance."""
    for rows in (lambda own: 2 * own, lambda own: 6, lambda own: 7, lambda own: own):
        after = set()
        for start, stop in ((0, 2), (2, 5)):
            rng = _rng()
            with share_of_batch(start, stop, 5):
                y = dropout(Tensor(np.ones((rows(stop - start), 40))), 0.5, rng=rng).numpy()
            assert 0.2 < (y == 0).mean() < 0.8
            after.add(str(rng.bit_generator.state))
        assert len(after) == 1


def test_what_has_no_rows_for_pictures_has_the_same_mask_everywhere():
    whole = dropout(Tensor(np.ones((3, 4))), 0.5, rng=_rng()).numpy()
    with share_of_batch(2, 4, 8):
        assert (dropout(Tensor(np.ones((3, 4))), 0.5, rng=_rng()).numpy() == whole).all()
        assert dropout(Tensor(np.float64(1.0)), 0.5, rng=_rng()).shape == ()

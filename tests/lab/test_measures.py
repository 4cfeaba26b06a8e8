"""What several labs measure, against a direct computation."""

import numpy as np
import pytest

from minires import nn
from minires.errors import ShapeError
from minires.lab.measures import gates_by_class
from minires.nn import hooks
from minires.tensor import Tensor


def test_gates_are_what_their_channels_are_multiplied_by():
    rng = np.random.default_rng(0)
    first, second = (nn.SqueezeExcitation(channels, reduction=2, rng=rng) for channels in (4, 4))
    model = nn.Sequential(first, second)
    x = rng.normal(size=(6, 3, 3, 4)).astype(np.float32) + 2
    labels = np.array([2, 0, 2, 0, 5, 5])
    found = gates_by_class(model, x, labels)
    between = first(Tensor(x)).numpy()
    for gate, before, after in zip(
        found, (x, between), (between, second(Tensor(between)).numpy()), strict=True
    ):
        ratio = (after / before).mean(axis=(1, 2))
        expected = [ratio[labels == one].mean(axis=0) for one in (0, 2, 5)]
        np.testing.assert_allclose(gate, expected, rtol=1e-5)
    assert np.ptp(found[0], axis=0).min() > 1e-4  # they do differ between classes


def test_no_hook_stays_if_the_model_fails():
    gate = nn.SqueezeExcitation(4, reduction=2)
    with pytest.raises(ShapeError):
        gates_by_class(nn.Sequential(gate), np.ones((2, 3, 3, 5), np.float32), np.array([0, 1]))
    assert hooks.entries_of(gate.expand) == ()

"""What several labs measure, against a direct computation."""

import numpy as np
import pytest

from minires import nn
from minires.errors import ConfigError, ShapeError
from minires.lab.measures import Changed, gates_by_class, weights_read
from minires.models import build
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


def test_who_reads_whom_in_a_dense_block():
    first = np.stack([np.full((3, 3, 5), value) for value in (1, -1, 1, 1)], axis=2)  # 4 channels come in
    second = np.concatenate([2 * first, 7 * np.ones((3, 3, 2, 5))], axis=2)  # the first layer added 2
    weights = {"block1.layer1.conv1.weight": first, "block1.layer1.conv2.weight": second,
               "block1.layer2.conv1.weight": second, "block2.layer1.conv1.weight": first}  # fmt: skip
    assert weights_read(weights, "block1", growth=2) == [[1.0], [2.0, 7.0]]


def test_where_no_stage_has_two_blocks_none_can_be_swapped():
    model = build("resnet20_cifar", repeats=(1, 1, 1), seed=0)
    changed = Changed(model, np.zeros((1, 8, 8, 3), np.float32), np.zeros(1, np.int64))
    with pytest.raises(ConfigError, match="no stage with two blocks"):
        changed.swapped(1, np.random.default_rng(0))

"""Cross entropy: labels and probabilities, smoothing, large logits, wrong labels."""

import re

import numpy as np
import opcheck
import pytest

from minires import Tensor
from minires.errors import ConfigError, DataError, ShapeError
from minires.ops.cross_entropy import cross_entropy


@opcheck.on_devices
@opcheck.of("cross_entropy")
def test_case(case, device):
    opcheck.check(case, device)


@opcheck.of("cross_entropy")
def test_against_torch(case):
    torch = pytest.importorskip("torch")

    def reference(logits, labels, label_smoothing):
        target = torch.tensor(labels)
        target = target.to(logits.dtype) if target.ndim == 2 else target
        return torch.nn.functional.cross_entropy(logits, target, label_smoothing=label_smoothing)

    opcheck.check_against_torch(case, reference)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_formula_written_out(smoothing):
    logits = np.random.default_rng(0).standard_normal((4, 3))
    labels = [2, 0, 1, 1]
    total = 0.0
    for row, label in zip(logits, labels, strict=True):
        p = np.exp(row) / np.exp(row).sum()
        for k in range(3):
            t = (1 - smoothing) * (k == label) + smoothing / 3
            total -= t * np.log(p[k]) / 4
    loss = cross_entropy(Tensor(logits), labels, label_smoothing=smoothing)
    assert loss.shape == () and abs(loss.item() - total) < 1e-14


@pytest.mark.parametrize("dtype", opcheck.DTYPES)
def test_logits_of_ten_thousand(dtype):
    logits = Tensor(np.array([[1e4, -1e4], [1e4, -1e4]], dtype), requires_grad=True)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        loss = cross_entropy(logits, np.array([0, 1]))
        loss.backward()
    assert loss.item() == 1e4  # the mean of 0 and 20000
    assert logits.grad.tolist() == [[0, 0], [0.5, -0.5]]
    assert loss.dtype == logits.grad.dtype == dtype


def test_one_hot_is_the_same_as_labels():
    logits, labels = Tensor(np.random.default_rng(0).standard_normal((3, 4))), np.array([1, 3, 0])
    expected = cross_entropy(logits, labels).item()
    for one_hot in (np.eye(4)[labels], np.eye(4, dtype=bool)[labels], np.eye(4, dtype=np.float32)[labels]):
        assert cross_entropy(logits, one_hot).item() == expected
    for same in (labels.astype(np.uint8), labels.tolist(), Tensor(labels)):
        assert cross_entropy(logits, same).item() == expected


@pytest.mark.parametrize(("label", "place"), [(4, 1), (-1, 0)])
def test_a_label_out_of_range_is_named_with_its_place(label, place):
    labels = np.array([0, 1, 2])
    labels[place] = label
    text = f"cross_entropy: labels[{place}] is {label}, but there are 4 classes, 0 to 3"
    with pytest.raises(DataError, match=re.escape(text)):
        cross_entropy(Tensor(np.ones((3, 4))), labels)


def test_probabilities_that_are_none():
    logits = Tensor(np.ones((2, 2)))
    for row in ([0.5, 0.6], [-0.5, 1.5], [np.nan, 1.0]):
        with pytest.raises(DataError, match=re.escape("cross_entropy: labels[1] must be probabilities")):
            cross_entropy(logits, np.array([[0.5, 0.5], row]))


@pytest.mark.parametrize("labels", [np.ones(3), np.ones(2, int), np.ones((3, 2)), np.zeros((3, 1), int), 0])
def test_labels_that_do_not_fit(labels):
    text = "cross_entropy: labels must be whole class numbers (3,) or probabilities (3, 4)"
    with pytest.raises(ShapeError, match=re.escape(text)):
        cross_entropy(Tensor(np.ones((3, 4))), labels)


def test_logits_that_do_not_fit():
    with pytest.raises(ShapeError, match=re.escape("cross_entropy: logits must be (N, K), 2 axes")):
        cross_entropy(Tensor(np.ones(3)), [0])
    with pytest.raises(ShapeError, match=re.escape("cross_entropy: logits (0, 3) are empty")):
        cross_entropy(Tensor(np.ones((0, 3))), np.zeros(0, int))
    with pytest.raises(ShapeError, match="cross_entropy: logits is int64"):
        cross_entropy(Tensor(np.ones((1, 3), np.int64)), [0])


@pytest.mark.parametrize("smoothing", [1.0, -0.1, float("nan")])
def test_smoothing_out_of_range(smoothing):
    with pytest.raises(ConfigError, match="cross_entropy: label_smoothing must be from 0 to below 1"):
        cross_entropy(Tensor(np.ones((1, 3))), [0], label_smoothing=smoothing)

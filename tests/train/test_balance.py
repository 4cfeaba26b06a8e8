"""Classes of uneven size: weights of the loss, and drawing each class as often."""

from __future__ import annotations

import json

import numpy as np
import pytest
from train.small_run import CONFIG, small_model, stripes

from minires import ops
from minires.data import Loader, Splits, sampling
from minires.errors import ConfigError
from minires.tensor import Tensor
from minires.train import Config, Trainer, balance, predict
from minires.train.balance import Loss, class_weights

pytestmark = pytest.mark.usefixtures("no_figures")


def uneven(seed, counts=(40, 12, 4)):
    """Stripes with so many pictures of each direction."""
    many = stripes(3 * max(counts), seed)
    return many.take(np.concatenate([np.flatnonzero(many.labels == k)[:n] for k, n in enumerate(counts)]))


def splits():
    return Splits(uneven(0), uneven(1), stripes(24, 2), "stripes, unevenly")


def run_of(out, *, resume=False, said=None, **changes):
    config = Config.from_dict({**CONFIG.to_dict(), "label_smoothing": 0.0, **changes})
    say = (lambda line: None) if said is None else said.append
    return Trainer(
        config, out, splits=splits(), model=small_model(), resume=resume, progress=False, say=say
    )  # fmt: skip


def test_the_weights_make_each_class_count_as_much():
    labels = np.repeat(np.arange(5), [40, 12, 4, 0, 1])
    found = class_weights(labels, 5)
    np.testing.assert_allclose(found, [57 / 160, 57 / 48, 57 / 16, 0, 57 / 4])
    assert found[labels].sum() == pytest.approx(len(labels))
    shares = [found[labels][labels == k].sum() for k in (0, 1, 2, 4)]
    np.testing.assert_allclose(shares, len(labels) / 4)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_weighted_loss_and_its_gradient_are_pytorchs(smoothing):
    torch = pytest.importorskip("torch")
    rng, weights = np.random.default_rng(0), np.array([0.4, 1.0, 3.5])
    x, y = rng.standard_normal((9, 3)), rng.integers(0, 3, 9)
    ours = Tensor(x, requires_grad=True)
    loss = Loss(weights=weights, label_smoothing=smoothing)(ours, y)
    loss.backward()
    theirs, labels = torch.tensor(x, requires_grad=True), torch.tensor(y)
    if smoothing:  # there the smoothed part of a label counts by the weights of the other classes
        each = torch.nn.functional.cross_entropy(theirs, labels, reduction="none", label_smoothing=smoothing)
        expected = (each * torch.tensor(weights)[labels]).mean()
    else:
        expected = torch.nn.functional.cross_entropy(
            theirs, labels, weight=torch.tensor(weights), reduction="sum"
        ) / len(y)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    np.testing.assert_allclose(ours.grad, theirs.grad.numpy(), rtol=1e-10, atol=1e-14)


def test_without_weights_it_is_the_cross_entropy():
    x, y = np.random.default_rng(0).standard_normal((9, 3)).astype("float32"), np.arange(9) % 3
    plain = ops.cross_entropy(Tensor(x), y, label_smoothing=0.1).item()
    assert Loss(label_smoothing=0.1)(Tensor(x), y).item() == plain
    of_ones = Loss(label_smoothing=0.1, weights=np.ones(3))
    assert of_ones(Tensor(x), y).item() == pytest.approx(plain)


def test_a_drawn_epoch_has_each_class_as_often_and_each_picture_of_a_class_nearly():
    labels = np.repeat([3, 0, 7], [60, 11, 2])
    drawn = sampling.balanced(labels, np.random.default_rng(5))
    assert len(drawn) == len(labels)
    counts = [int((labels[drawn] == k).sum()) for k in (3, 0, 7)]
    assert sorted(counts) == [24, 24, 25]
    for k in (3, 0, 7):
        often = np.bincount(drawn, minlength=len(labels))[labels == k]
        assert often.max() - often.min() <= 1, k


def test_the_sampler_follows_from_seed_and_epoch_alone():
    pictures = uneven(0)

    def epoch(number, seed=3, start=0):
        loader = Loader(pictures, 8, seed=seed, balanced=True)
        return [(x, y) for x, y in loader.epoch(number, start)]

    whole, later = epoch(2), epoch(2, start=4)
    assert len(whole) == 7 and sum(len(y) for _, y in whole) == 56
    counts = np.bincount(np.concatenate([y for _, y in whole]))
    assert sorted(counts.tolist()) == [18, 19, 19]
    for (x, y), (a, b) in zip(whole[4:], later, strict=True):
        assert np.array_equal(x, a) and np.array_equal(y, b)
    labels = [np.concatenate([y for _, y in one]).tolist() for one in (whole, epoch(3), epoch(2, seed=4))]
    assert labels[0] != labels[1] and labels[0] != labels[2]
    seen = {bytes(picture) for number in range(12) for x, _ in epoch(number) for picture in x}
    assert len(seen) == len(pictures)  # those of the large class come in other epochs
    with pytest.raises(ConfigError, match="leave out shuffle=False"):
        Loader(pictures, 8, balanced=True, shuffle=False)
    with pytest.raises(ConfigError, match="balanced"):
        Loader(pictures, 8, balanced="yes")


def test_where_there_is_nothing_to_balance_it_is_said():
    assert balance.words("weights", stripes(9, 0)) == "each class has 3 pictures: there is nothing to balance"
    assert balance.words("none", stripes(9, 0)) is balance.words("none", uneven(0)) is None


@pytest.mark.parametrize("way", ["weights", "sampler"])
def test_a_balanced_run_says_so_and_goes_on_to_the_same_bits(way, tmp_path):
    said, changes = [], {"balance": way, "accumulate": 2, "epochs": 2}
    whole = run_of(tmp_path / "whole", said=said, **changes)
    whole.run()
    assert said[1] == {
        "weights": "the loss of each picture counts by its class, from 0.467 in rows (40 pictures) to "
        "4.67 in slant (4 pictures)",
        "sampler": "each epoch draws each class equally often, about 18 times, from rows (40 pictures) to "
        "slant (4 pictures)",
    }[way]
    stopped = run_of(tmp_path / "run", **changes)
    step = stopped._step

    def dying(x, y):
        if stopped.progress.step == 12:
            raise RuntimeError("the power fails")
        step(x, y)

    stopped._step = dying
    with pytest.raises(RuntimeError, match="power"):
        stopped.run()
    again = run_of(tmp_path / "run", resume=True, **changes)
    assert again.progress.step == 10
    again.run()
    for name, array in whole.model.state_dict().items():
        assert np.array_equal(array, again.model.state_dict()[name]), name


def test_a_run_is_surer_of_its_rare_class(tmp_path):
    sure, changes = {}, {"epochs": 3, "ema": 0.0, "schedule": {"name": "constant"}, "augment": []}
    for way in balance.WAYS:
        run = run_of(tmp_path / way, balance=way, **changes)
        run.run()
        rare = run.splits.test.take(np.flatnonzero(run.splits.test.labels == 2))
        sure[way] = predict(run.model, rare.images, run.normalize)[:, 2].mean()
        assert json.loads((tmp_path / way / "config.json").read_text())["balance"] == way
    assert sure["weights"] > sure["none"] + 0.1 and sure["sampler"] > sure["none"] + 0.1, sure


def test_the_frequent_class_is_no_measure_of_a_balanced_run(tmp_path):
    """An accuracy below the share of the largest class is a warning only where that was trained for."""
    found = {}
    for way in balance.WAYS:
        run = run_of(tmp_path / way, balance=way, epochs=1, optimizer={"name": "sgd", "lr": 1e-6})
        warnings = run.run()["warnings"]
        found[way] = [text for text in warnings if "most frequent class" in text]
    assert len(found["none"]) == 1 and "71.43%" in found["none"][0] and not found["weights"]
    assert all("33.93%" in text for text in found["sampler"])


def test_an_unknown_way_is_answered():
    with pytest.raises(ConfigError, match="unknown value of balance 'wieghts'. Did you mean 'weights'"):
        Config(balance="wieghts")

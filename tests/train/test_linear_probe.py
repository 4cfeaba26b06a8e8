"""A new last layer that is fitted: to what the layers before it say, and with nothing else changed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from train.small_run import CONFIG, small_model, small_splits

from minires import nn
from minires.data import Loader, Normalize
from minires.errors import ConfigError
from minires.models import build
from minires.tensor import Tensor, no_grad
from minires.train import Trained, Trainer, checkpoint, save_model
from minires.train.linear_probe import fit_last_layer, fit_to

PLAIN = Normalize.none()


def test_it_fits_what_the_layer_before_it_says_of_the_pictures():
    """The gradient of the loss with its decay, worked out a second time, is about zero where it ends."""
    splits, model = small_splits(), small_model()
    x, y = PLAIN(splits.train.images), splits.train.labels
    before = {name: array.copy() for name, array in model.state_dict().items()}
    right = fit_last_layer(model, [(x, y)], views=10**6)
    after = model.state_dict()
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"fc.weight", "fc.bias"}
    features = small_model().eval()
    features.fc = nn.Identity()
    with no_grad():
        f = features(Tensor(x)).numpy().astype(float)
        logits = model.eval()(Tensor(x)).numpy().astype(float)
    scale = f.std(axis=0) + 1e-6
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    error = (p - np.eye(3)[y]) / len(y)
    scaled = (f - f.mean(axis=0)) / scale
    gradient = scaled.T @ error + 0.01 * after["fc.weight"] * scale[:, None]
    start = np.abs(scaled.T @ (1 / 3 - np.eye(3)[y]) / len(y)).max()
    assert np.abs(gradient).max() < 0.03 * start and np.abs(error.sum(axis=0)).max() < 0.01
    assert right == (logits.argmax(axis=1) == y).mean() > 0.9


def test_some_views_are_enough_and_more_are_not_asked_for():
    splits, asked = small_splits(), []

    def batches():
        for start in range(0, 80, 8):
            asked.append(start)
            yield PLAIN(splits.train.images[start : start + 8]), splits.train.labels[start : start + 8]

    fit_last_layer(small_model(), batches(), views=20)
    assert asked == [0, 8, 16]


def test_a_loader_is_gone_through_as_often_as_needed():
    splits = small_splits()
    loader = Loader(splits.val, 8, seed=0, drop_last=True)  # 24 pictures, each in 16 ways
    assert "of them right" in fit_to(small_model(), loader)


def test_a_model_that_ends_otherwise_is_refused():
    rng = np.random.default_rng(0)
    net = nn.Sequential(fc=nn.Linear(3, 4, rng=rng), norm=nn.BatchNorm2d(4))
    with pytest.raises(ConfigError, match="does not end in a dense layer"):
        fit_last_layer(net, [])


def tuned(out, start, **changes):
    said = []
    config = replace(CONFIG, model="resnet20_cifar", start_from=str(start), epochs=1, checkpoint_every=0,
                     keep="all", **changes)  # fmt: skip
    splits = small_splits()
    model = build("resnet20_cifar", classes=3, seed=0)
    Trainer(config, out, splits=splits, model=model, progress=False, say=said.append).run()
    return said, checkpoint.read(next(out.glob("checkpoint-*")))[0]


def test_a_run_fits_a_new_last_layer_if_it_is_asked_to(tmp_path):
    start = tmp_path / "start.safetensors"
    ten, model = tuple(map(str, range(10))), build("resnet20_cifar", seed=7)
    save_model(start, Trained(model, "resnet20_cifar", {}, ten, PLAIN, (32, 32), "x"))
    plain, without = tuned(tmp_path / "a", start)
    fitted, one = tuned(tmp_path / "b", start, fit_head=True)
    _, other = tuned(tmp_path / "c", start, fit_head=True)
    assert not any("was fitted" in line for line in plain) and any("was fitted" in line for line in fitted)
    assert all(np.array_equal(one[name], other[name]) for name in one)
    assert not np.array_equal(one["model/fc.weight"], without["model/fc.weight"])


def test_a_last_layer_that_is_taken_over_is_not_fitted(tmp_path):
    start = tmp_path / "start.safetensors"
    three = ("rows", "columns", "slant")
    model = build("resnet20_cifar", classes=3, seed=7)
    save_model(start, Trained(model, "resnet20_cifar", {}, three, PLAIN, (32, 32), "x"))
    said, _ = tuned(tmp_path / "run", start, fit_head=True)
    assert not any("was fitted" in line for line in said)

"""Fine-tuning: what is taken over, what is new, and what is frozen really stays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import oracle
import pytest
from train.small_run import CONFIG, small_model, small_splits, stripes

from minires import models, nn
from minires.data import Dataset, Normalize, Splits
from minires.errors import CheckpointError, ConfigError
from minires.models import build
from minires.ops.cross_entropy import cross_entropy
from minires.optim import SGD
from minires.tensor import Tensor
from minires.train import Config, Trained, Trainer, freeze, load_model, save_model, start_from
from minires.train.finetune import all_but

PLAIN = Normalize.none()


def small(classes=10, seed=0):
    return build("resnet20_cifar", classes=classes, seed=seed)


def saved(path, classes=10):
    model = small(classes, seed=7)
    for name, array in model.named_buffers():
        array += 0.5 if name.endswith("mean") else 1.0
    names = tuple(map(str, range(classes)))
    save_model(path, Trained(model, "resnet20_cifar", {}, names, PLAIN, (32, 32), "none"))
    return model.state_dict()


def test_all_weights_are_taken_over_where_the_classes_are_as_many(tmp_path):
    state = saved(tmp_path / "model.safetensors")
    model = small()
    assert start_from(model, tmp_path / "model.safetensors") == []
    assert all(np.array_equal(array, state[name]) for name, array in model.state_dict().items())


def test_with_other_classes_the_head_is_new_and_nothing_else(tmp_path):
    state = saved(tmp_path / "model.safetensors")
    model = small(classes=3)
    before = model.state_dict()
    assert start_from(model, tmp_path / "model.safetensors") == ["fc.bias", "fc.weight"]
    after = model.state_dict()
    for name, array in after.items():
        assert np.array_equal(array, before[name] if name.startswith("fc.") else state[name]), name


@pytest.mark.parametrize("classes", [tuple("abcdefghij"), tuple("012345678x")])
def test_with_as_many_other_classes_the_head_is_new(tmp_path, classes):
    state = saved(tmp_path / "model.safetensors")
    model = small()
    before = model.state_dict()
    assert start_from(model, tmp_path / "model.safetensors", classes=classes) == ["fc.bias", "fc.weight"]
    for name, array in model.state_dict().items():
        assert np.array_equal(array, before[name] if name.startswith("fc.") else state[name]), name


def test_with_the_same_classes_in_another_order_the_outputs_are_put_into_it(tmp_path):
    theirs = oracle.shake(small(seed=7))
    path = tmp_path / "model.safetensors"
    save_model(path, Trained(theirs, "resnet20_cifar", {}, tuple("0123456789"), PLAIN, (32, 32), "none"))
    classes = tuple("3102987654")
    model = small()
    assert start_from(model, path, classes=classes) == []
    x = Tensor(np.random.default_rng(0).random((2, 32, 32, 3), np.float32))
    ours, expected = model.eval()(x).numpy(), theirs.eval()(x).numpy()
    assert np.ptp(expected) > 0.1
    for place, name in enumerate(classes):
        np.testing.assert_allclose(ours[:, place], expected[:, int(name)], rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match="3 classes for a last layer with 10 outputs"):
        start_from(model, path, classes=("0", "1", "2"))


def test_a_last_layer_that_is_a_convolution_is_new_too(tmp_path, monkeypatch):
    class Net(nn.Module):
        def __init__(self, *, classes, rng=None):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.scores = nn.Conv2d(4, classes, 1)

        def forward(self, x):
            return self.scores(self.conv(x)).mean(axis=(1, 2))

    monkeypatch.setitem(models.MODELS, "net", models.Entry(Net, size=12, classes=3))
    path = tmp_path / "model.safetensors"
    save_model(path, Trained(build("net", seed=7), "net", {}, ("a", "b", "c"), PLAIN, (12, 12), "none"))
    assert start_from(build("net"), path, classes=("x", "y", "z")) == ["scores.bias", "scores.weight"]
    more = build("net", classes=5)
    assert start_from(more, path, classes=tuple("vwxyz")) == ["scores.bias", "scores.weight"]
    model = build("net")
    assert start_from(model, path, classes=("c", "a", "b")) == []
    theirs = load_model(path).model.scores.weight.data
    assert np.array_equal(model.scores.weight.data, theirs[..., [2, 0, 1]])


def test_another_model_changes_nothing(tmp_path):
    saved(tmp_path / "model.safetensors")
    model = build("resnet32_cifar")
    before = model.state_dict()
    with pytest.raises(
        CheckpointError, match="model.safetensors holds a resnet20_cifar: these weights do not"
    ):
        start_from(model, tmp_path / "model.safetensors")
    assert all(np.array_equal(array, before[name]) for name, array in model.state_dict().items())


def _step(model):
    rng = np.random.default_rng(0)
    x = Tensor(rng.standard_normal((4, 32, 32, 3)).astype(np.float32))
    optimizer = SGD(model.named_parameters(), 0.1, weight_decay=1e-2)
    cross_entropy(model.train()(x), rng.integers(0, 10, 4)).backward()
    optimizer.step()


def test_what_is_frozen_stays_and_the_rest_learns():
    model = small()
    count = freeze(model, ["conv1", "bn_conv1", "res2*"])
    before = model.state_dict()
    assert count == sum(
        parameter.size for name, parameter in model.named_parameters() if not parameter.requires_grad
    )
    _step(model)
    inside = ("conv1.", "bn_conv1.", "res2", "bn2")
    for name, array in model.state_dict().items():
        assert np.array_equal(array, before[name]) == name.startswith(inside), name


def test_a_part_that_is_not_there_is_named_with_the_nearest():
    with pytest.raises(ConfigError, match="there is no part 'res9a' to freeze; the nearest are res"):
        freeze(small(), ["conv1", "res9a"])


def _bright(count: int, seed: int) -> Dataset:
    """Two classes that the run before has not seen: dark and bright pictures."""
    like = stripes(count, seed)
    labels = (np.arange(count) % 2).astype(np.int64)
    images = (like.images // 2 + 100 * labels[:, None, None, None]).astype(np.uint8)
    return replace(like, images=images, labels=labels, classes=("dark", "bright"))


def test_a_run_starts_from_another_and_goes_on_after_a_stop(tmp_path, monkeypatch):
    def make(*, classes, rng):
        return small_model(classes)

    monkeypatch.setitem(models.MODELS, "small", models.Entry(make, size=12, classes=3))
    Trainer(CONFIG, tmp_path / "first", splits=small_splits(), progress=False, say=lambda line: None).run()
    said = []
    changes = {
        "start_from": str(tmp_path / "first"), "freeze": ["conv1", "bn1"], "epochs": 2, "ema": 0.0,
    }  # fmt: skip
    config = Config.from_dict({**CONFIG.to_dict(), **changes})
    splits = Splits(_bright(60, 3), _bright(20, 4), _bright(20, 5), "bright")
    summary = Trainer(config, tmp_path / "second", splits=splits, progress=False, say=said.append).run()
    assert any(line.endswith("first; new: fc.bias, fc.weight") for line in said)
    assert summary["test_accuracy"] > 0.9
    first, second = (load_model(tmp_path / name).model.state_dict() for name in ("first", "second"))
    for name in first:
        same = name.split(".")[0] in ("conv1", "bn1")
        assert (first[name].shape == second[name].shape and np.array_equal(first[name], second[name])) == same
    # Continued from its own checkpoints, it does not need the model that it started from any more.
    (tmp_path / "first" / "model.safetensors").unlink()
    (tmp_path / "second" / "summary.json").unlink()  # as if its end had not been reached
    again = Trainer(None, tmp_path / "second", resume=True, splits=splits, progress=False, say=said.append)
    assert again.run()["test_accuracy"] == summary["test_accuracy"]
    assert not again.model.bn1.gamma.requires_grad and again.model.bn1.frozen


def test_a_run_of_which_nothing_could_learn_is_refused_and_a_model_that_only_looks_is_not(tmp_path):
    splits = small_splits()
    for parts in (["*"], ["conv*", "bn*", "fc"]):
        with pytest.raises(ConfigError, match="frozen nothing is left that could learn"):
            Trainer(
                replace(CONFIG, freeze=parts), tmp_path / "run", splits=splits, model=small_model(),
                progress=False,
            )  # fmt: skip
    model = small_model()
    assert freeze(model, ["*"]) == sum(one.size for one in model.parameters())
    with pytest.raises(ConfigError, match="with this model nothing is left"):
        Trainer(CONFIG, tmp_path / "run", splits=splits, model=model, progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["resnet20_cifar", "vgg16", "densenet40_k12_cifar", "se_resnet50"])
def test_all_but_the_last_layer_leaves_that_alone(name):
    model = build(name, classes=3)
    last = [one for one, _ in model.named_parameters()][-2:]
    freeze(model, all_but(model, last))
    assert [one for one, parameter in model.named_parameters() if parameter.requires_grad] == last
    norms = [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
    assert all(norm.frozen for norm in norms)

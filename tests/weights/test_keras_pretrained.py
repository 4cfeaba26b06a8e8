"""A model of Keras's as a file of ours: the pictures go in as they are, the same scores come out."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from minires.errors import ConfigError
from minires.models import build
from minires.tensor import Tensor, no_grad
from minires.train import load_model
from minires.weights import import_weights, load_pretrained
from minires.weights.keras.applications import variant_for


@pytest.mark.parametrize(
    ("name", "kind", "module"),
    [("resnet50_keras", "ResNet50", "resnet"), ("resnet50v2_keras", "ResNet50V2", "resnet_v2"),
     ("densenet121", "DenseNet121", "densenet")],
)  # fmt: skip
def test_pictures_are_prepared_as_keras_does(tmp_path, monkeypatch, name, kind, module):
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    pytest.importorskip("torch")
    keras = pytest.importorskip("keras")
    theirs = getattr(keras.applications, kind)(weights=None, classes=10, classifier_activation=None)
    rng = np.random.default_rng(0)
    for weight in theirs.weights:  # as if trained: statistics that are not those of a start
        if weight.path.endswith("moving_mean"):
            weight.assign(rng.normal(0, 0.1, weight.shape))
        elif weight.path.endswith("moving_variance"):
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    theirs.save_weights(tmp_path / "theirs.weights.h5")
    classes = [f"class {number}" for number in range(10)]
    other = build(name, classes=10, **variant_of(kind))
    report = load_pretrained(other, tmp_path / "theirs.weights.h5")
    assert report.numbers == sum(array.size for array in other.state_dict().values())
    report = import_weights(
        tmp_path / "theirs.weights.h5", name, tmp_path / "ours.safetensors", classes=classes
    )
    trained = load_model(tmp_path / "ours.safetensors")
    assert trained.classes == tuple(classes) and f"named as Keras's {kind}'s are" in str(report)
    pictures = rng.integers(0, 256, (2, *trained.size, 3), np.uint8)
    prepared = getattr(keras.applications, module).preprocess_input(pictures.astype(np.float32))
    expected = np.asarray(keras.ops.convert_to_numpy(theirs(prepared, training=False)))
    with no_grad():
        scores = trained.model(Tensor(trained.normalize(pictures))).numpy()
        again = other.eval()(Tensor(np.asarray(prepared, np.float32))).numpy()
    for found in (scores, again):
        assert np.linalg.norm(found - expected) < 1e-4 * np.linalg.norm(expected)


def variant_of(kind):
    return {key: value for key, value in variant_for(kind).items() if key != "name"}


def keras_file(path):
    with h5py.File(path, "w"):
        return path


def test_a_head_cannot_be_left_out(tmp_path):
    with pytest.raises(ConfigError, match="any.h5 is a file of Keras's: it is loaded whole"):
        load_pretrained(build("resnet20_cifar"), keras_file(tmp_path / "any.h5"), head=False)


def test_a_network_that_keras_has_not(tmp_path):
    with pytest.raises(ConfigError, match="Keras has no network that is our resnet18; it has vgg16, vgg19,"):
        import_weights(keras_file(tmp_path / "any.h5"), "resnet18", tmp_path / "out.safetensors")

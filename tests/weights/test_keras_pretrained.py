"""A model of Keras's as a file of ours: the pictures go in as they are, the same scores come out."""

from __future__ import annotations

import h5py
import numpy as np
import oracle
import pytest
from blog_resnet import blog_resnet50

from minires.errors import CheckpointError, ConfigError
from minires.models import build
from minires.ops.softmax import softmax
from minires.tensor import Tensor, no_grad
from minires.train import load_model
from minires.weights import import_weights, load_pretrained
from minires.weights.keras import files
from minires.weights.keras.applications import variant_for


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch):
    monkeypatch.setattr(files, "read", files.parse)


@pytest.fixture(scope="module")
def keras():
    return oracle.keras()


def trained(model):
    """As if trained: statistics that are not those of a start."""
    for i, weight in enumerate(model.weights):
        rng = np.random.default_rng(i)
        if weight.path.endswith("moving_mean"):
            weight.assign(rng.normal(0, 0.1, weight.shape))
        elif weight.path.endswith("moving_variance"):
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
        elif weight.path.endswith("gamma"):
            weight.assign(rng.uniform(0.5, 1.0, weight.shape))
    return model


def imported(path, name, **options):
    report = import_weights(path, name, path.with_name("ours.safetensors"), **options)
    return report, load_model(path.with_name("ours.safetensors"))


def pictures(size, count=2):
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)


def scores_of(keras, model, x):
    with oracle.one_thread():
        return np.asarray(keras.ops.convert_to_numpy(model(x, training=False)))


def distance(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


# ----------------------------------------------------------------------------- the exercise, without names


@pytest.fixture(scope="module", params=[False, True], ids=["branch first", "shortcut first"])
def exercise(request, keras, tmp_path_factory):
    """The exercise's model as notebooks write it now, in the forms that Keras writes; its scores."""
    blog_resnet50(keras, size=64, classes=6, signs=True, named=False)  # numbers do not begin at 0 after this
    model = trained(blog_resnet50(
        keras, size=64, classes=6, signs=True, named=False, softmax=True,
        shortcut_first=request.param, made_first=request.param,
    ))  # fmt: skip
    folder = tmp_path_factory.mktemp("exercise")
    model.save(folder / "a.keras")
    model.save_weights(folder / "a.weights.h5")
    model.save(folder / "a.h5")
    yield folder, scores_of(keras, model, pictures(64) / np.float32(255))
    for path in folder.iterdir():
        path.unlink()


@pytest.mark.filterwarnings("ignore")  # Keras calls its own .h5 files legacy
@pytest.mark.parametrize("ending", [".keras", ".h5", ".weights.h5"])
def test_the_exercise_without_names_gives_the_same_probabilities(exercise, ending):
    folder, expected = exercise
    report, ours = imported(folder / f"a{ending}", "resnet50_signs")
    with no_grad():
        found = softmax(ours.model(Tensor(ours.normalize(pictures(64))))).numpy()
    assert distance(found, expected) < 1e-5
    assert report.tensors == 320 and ours.classes == tuple("012345") and ours.size == (64, 64)
    assert ("taken in their order" in str(report)) == (ending == ".weights.h5")
    assert ("assumed as in Keras's ResNet50-signs" in str(report)) == (ending == ".weights.h5")


# --------------------------------------------------------------------------------- keras.applications


@pytest.mark.parametrize(
    ("name", "kind", "module"),
    [("resnet50_keras", "ResNet50", "resnet"), ("resnet50v2_keras", "ResNet50V2", "resnet_v2"),
     ("densenet121", "DenseNet121", "densenet")],
)  # fmt: skip
def test_pictures_are_prepared_as_keras_does(tmp_path, keras, name, kind, module):
    theirs = trained(
        getattr(keras.applications, kind)(
            weights=None, input_shape=(64, 64, 3), classes=10, classifier_activation=None
        )
    )
    path = tmp_path / "theirs.weights.h5"
    theirs.save_weights(path)
    classes = [f"class {number}" for number in range(10)]
    other = build(name, classes=10, **variant_of(kind))
    report = load_pretrained(other, path)
    assert report.numbers == sum(array.size for array in other.state_dict().values())
    report, ours = imported(path, name, classes=classes)
    assert ours.classes == tuple(classes) and f"named as Keras's {kind}'s are" in str(report)
    prepared = getattr(keras.applications, module).preprocess_input(pictures(64).astype(np.float32))
    expected = scores_of(keras, theirs, prepared)
    with no_grad():
        scores = ours.model(Tensor(ours.normalize(pictures(64)))).numpy()
        again = other.eval()(Tensor(np.asarray(prepared, np.float32))).numpy()
    for found in (scores, again):
        assert distance(found, expected) < 1e-4


def variant_of(kind):
    return {key: value for key, value in variant_for(kind).items() if key != "name"}


@pytest.fixture(scope="module")
def own_v2(keras, tmp_path_factory):
    """ResNet50V2 with batch norm as a layer has it by default, epsilon 1e-3, and the scaling in the model."""
    base = keras.applications.ResNet50V2(weights=None, include_top=False, input_shape=(64, 64, 3))
    config = base.get_config()
    for layer in config["layers"]:
        if layer["class_name"] == "BatchNormalization":
            layer["config"] |= {"epsilon": 1e-3, "momentum": 0.9}
    base = keras.Model.from_config(config)
    layers = keras.layers
    inputs = keras.Input((64, 64, 3))
    x = layers.Rescaling(1 / 127.5, offset=-1)(layers.RandomFlip("horizontal")(inputs))
    x = layers.Dropout(0.2)(layers.GlobalAveragePooling2D()(base(x)))
    model = trained(keras.Model(inputs, layers.Dense(3, activation="softmax")(x)))
    folder = tmp_path_factory.mktemp("own")
    model.save(folder / "a.keras")
    model.save_weights(folder / "a.weights.h5")
    return folder, scores_of(keras, model, pictures(64).astype(np.float32))


@pytest.mark.parametrize(
    ("ending", "variant"), [(".keras", {}), (".weights.h5", {"bn_eps": 1e-3})], ids=["stated", "given"]
)
def test_epsilon_is_that_of_the_file_or_the_one_asked_for(own_v2, ending, variant):
    folder, expected = own_v2
    report, ours = imported(folder / f"a{ending}", "resnet50v2_keras", variant=variant)
    with no_grad():
        found = softmax(ours.model(Tensor(ours.normalize(pictures(64))))).numpy()
    assert distance(found, expected) < 1e-5 and ours.classes == ("0", "1", "2")
    assert ours.variant["bn_eps"] == 1e-3
    if ending == ".keras":
        assert ours.variant["bn_momentum"] == 0.9 and ours.size == (64, 64)
        assert "pictures are scaled as the file does it, from pixels of 0..255" in str(report)
    else:
        assert "batch norm's epsilon (0.001)" in str(report)


def test_another_model_than_the_file_is_refused_with_the_right_name(own_v2, tmp_path):
    folder, _ = own_v2
    for ending, why in [
        (".keras", r"where the file has zero padding .* our model has batch norm 'bn_conv1'"),
        (".weights.h5", "its layers have not the names of Keras's ResNet50"),
    ]:
        with pytest.raises(
            CheckpointError, match=f"a{ending}: {why}.* are those of --model resnet50v2_keras"
        ):
            import_weights(folder / f"a{ending}", "resnet50_keras", tmp_path / "out.safetensors")
    with pytest.raises(CheckpointError, match="its last layer gives 3 classes, and 2 are asked for"):
        import_weights(
            folder / "a.keras", "resnet50v2_keras", tmp_path / "out.safetensors", classes=["a", "b"]
        )
    with pytest.raises(CheckpointError, match="has epsilon 0.001, ours 1e-05"):
        import_weights(
            folder / "a.keras", "resnet50v2_keras", tmp_path / "out.safetensors", variant={"bn_eps": 1e-5}
        )
    assert not list(tmp_path.iterdir())


def test_all_but_the_head(own_v2):
    folder, _ = own_v2
    for ending in (".keras", ".weights.h5"):
        model = build("resnet50v2_keras", classes=7, bn_eps=1e-3, initializer="zeros")
        report = load_pretrained(model, folder / f"a{ending}", head=False)
        assert report.left_out == ("fc.weight", "fc.bias") and report.tensors == 270
        assert np.any(model.conv1.weight.data) and not np.any(model.fc.weight.data)


def test_no_source_is_asked_for(tmp_path):
    with h5py.File(tmp_path / "any.h5", "w"):
        pass
    for option in ("source", "container"):
        with pytest.raises(ConfigError, match="any.h5 is a file of Keras's: a source and a"):
            load_pretrained(build("resnet20_cifar"), tmp_path / "any.h5", **{option: "timm"})


def test_a_network_that_keras_has_not(tmp_path):
    with h5py.File(tmp_path / "any.h5", "w"):
        pass
    with pytest.raises(ConfigError, match="Keras has no network that is our resnet18; it has vgg16, vgg19,"):
        import_weights(tmp_path / "any.h5", "resnet18", tmp_path / "out.safetensors")

"""A small network in Keras and here: what its file states is compared with our model, option by option."""

from __future__ import annotations

import itertools
import json

import numpy as np
import oracle
import pytest

from minires import nn
from minires.data import Normalize
from minires.errors import CheckpointError
from minires.nn.blocks import Conv, ResidualBlock
from minires.ops.softmax import softmax
from minires.tensor import Tensor, no_grad
from minires.weights.keras import files
from minires.weights.keras.config import network
from minires.weights.keras.fitting import File
from minires.weights.keras.graph import layers_of, matched
from minires.weights.keras.pretrained import load
from minires.weights.keras.scaling import normalize_of

SIZE = 16


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch):
    """Another process for each small file would take a second."""
    monkeypatch.setattr(files, "read", files.parse)


@pytest.fixture
def keras():
    return oracle.keras()


def ours(eps=1e-3, **options):
    block = ResidualBlock(
        4, (Conv(5, 1, 2), Conv(5, 3), Conv(8, 1)), stage=2, block="a", bias=True, norm={"eps": eps}
    )
    layers = {
        "conv1": nn.Conv2d(3, 4, 3, padding=1, **{"stride": 2, **options}),
        "bn1": nn.BatchNorm2d(4, eps=eps, relu=True),
        "pool1": nn.MaxPool2d(3, stride=2, padding=1),
        "res2a": block,
        "pool2": nn.GlobalAvgPool2d(),
        "fc": nn.Linear(8, 3),
    }
    return oracle.shake(nn.Sequential(**layers)).eval()


def theirs(keras, *, front=lambda x: x, size=SIZE, eps=1e-3, pool=None, relu="relu", last="softmax",
           norm=None, first=None, zeros=1, shortcut_first=False, nested=False, end=None):  # fmt: skip
    """The same, from the picture on; the options say what is different."""
    layers = keras.layers

    def bn(x, **options):
        return layers.BatchNormalization(**{"epsilon": eps, **options})(x)

    inputs = keras.Input((size, size, 3))
    x = front(inputs)
    picture = keras.Input(x.shape[1:]) if nested else x
    x = layers.ZeroPadding2D(zeros)(picture)
    x = layers.Conv2D(4, 3, **{"strides": 2, **(first or {})})(x)
    x = layers.Activation(relu)(bn(x, **(norm or {})))
    x = pool(x) if pool else layers.MaxPooling2D(3, 2)(layers.ZeroPadding2D(1)(x))
    y = layers.Activation("relu")(bn(layers.Conv2D(5, 1, 2)(x)))
    y = layers.Activation("relu")(bn(layers.Conv2D(5, 3, padding="same")(y)))
    y = bn(layers.Conv2D(8, 1)(y))
    short = bn(layers.Conv2D(8, 1, 2)(x))
    x = layers.ReLU()(layers.Add()([short, y] if shortcut_first else [y, short]))
    if nested:
        x = keras.Model(picture, x)(front(inputs))
    x = layers.Dropout(0.5)(end(x) if end else layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, layers.Dense(3, activation=last)(x))
    for i, variable in enumerate(model.variables):
        if variable.name not in ("mean", "variance", "count", "seed_generator_state"):
            low, high = (0.5, 1) if "variance" in variable.name or variable.name == "gamma" else (-0.3, 0.3)
            variable.assign(np.random.default_rng(i).uniform(low, high, variable.shape))
    return model


def save(model, path):
    (model.save_weights if path.name.endswith(".weights.h5") else model.save)(path)
    return path


def distance(mine, other, x=None):
    x = np.random.default_rng(1).standard_normal((2, SIZE, SIZE, 3)).astype(np.float32) if x is None else x
    with no_grad(), oracle.one_thread():
        expected = np.asarray(other(x, training=False).detach())
        found = softmax(mine(Tensor(x))).numpy()
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.filterwarnings("ignore")  # Keras calls its own .h5 files legacy
@pytest.mark.parametrize("ending", [".keras", ".h5", ".weights.h5"])
@pytest.mark.parametrize("shortcut_first", [False, True])
def test_layers_without_names_are_taken_by_the_graph_or_in_their_order(
    tmp_path, keras, ending, shortcut_first
):
    other, model = theirs(keras, shortcut_first=shortcut_first), ours()
    report = load(model, save(other, tmp_path / f"a{ending}"))
    assert report.tensors == 5 * 6 + 2 and distance(model, other) < 1e-5
    assert ("taken in their order" in str(report)) == (ending == ".weights.h5")


def test_an_order_that_the_shapes_do_not_tell_is_refused(tmp_path, keras):
    """Branch and shortcut of this block end in the same shapes, and no other block says which comes first."""
    layers = keras.layers
    inputs = keras.Input((SIZE, SIZE, 3))
    y = layers.BatchNormalization()(layers.Conv2D(4, 1)(inputs))
    short = layers.BatchNormalization()(layers.Conv2D(4, 1)(inputs))
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(layers.Add()([y, short])))
    other = keras.Model(inputs, layers.Dense(3, activation="softmax")(x))
    block = ResidualBlock(3, (Conv(4, 1),), stage=2, block="a", bias=True, shortcut="C")
    model = nn.Sequential(res2a=block, pool=nn.GlobalAvgPool2d(), fc=nn.Linear(4, 3)).eval()
    with pytest.raises(
        CheckpointError, match="adds the branch to the shortcut, or the shortcut to the branch: the"
    ):
        load(model, save(other, tmp_path / "a.weights.h5"))
    load(model, save(other, tmp_path / "a.keras"))
    assert distance(model, other) < 1e-5  # its configuration tells, or they are alike


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eps": 1e-5}, r"layer 'batch_norm\w*' \(batch norm\) has epsilon 1e-05, ours 0.001 \(our bn1\)"),
        ({"norm": {"epsilon": 1e-2}}, r"epsilon 0.01, ours 0.001 \(our bn1\)"),
        ({"norm": {"axis": 1}}, "axis 1, ours none"),
        ({"first": {"strides": 1}}, r"layer 'conv2d\w*' \(convolution\) has stride 1, ours 2 \(our conv1\)"),
        ({"first": {"padding": "same"}}, r"has padding \(1, 2\), \(1, 2\), ours 1 \(our conv1\)"),
        ({"zeros": 0}, "has padding 0, ours 1"),
        ({"zeros": ((2, 1), (1, 1))}, r"has padding \(2, 1\), \(1, 1\), ours 1"),
        ({"first": {"dilation_rate": 2, "strides": 1}}, "has stride 1, ours 2, dilation 2, ours 1"),
        ({"first": {"use_bias": False}}, "has bias no, ours yes"),
        ({"first": {"activation": "relu"}}, r"the file has relu 'conv2d\w*', our model has batch norm 'bn1'"),
        ({"relu": "swish"}, r"where the file has silu 'activation\w*', our model has relu"),
        ({"relu": "relu6"}, r"where the file has relu6 'activation\w*', our model has relu"),
        ({"last": "sigmoid"}, r"the file has sigmoid 'dense\w*', and our model has nothing there"),
    ],
)  # fmt: skip
def test_what_contradicts_our_model_is_refused_with_the_layer_and_both_values(
    tmp_path, keras, change, message
):
    model = ours()
    before = {name: array.copy() for name, array in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        load(model, save(theirs(keras, **change), tmp_path / "a.keras"))
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.parametrize(
    ("pool", "message"),
    [
        (lambda layers: layers.AveragePooling2D(3, 2, padding="same"), "average pool .*, our model has"),
        (lambda layers: layers.MaxPooling2D(2, 2), "has kernel 2, ours 3, padding 0, ours 1"),
        (lambda layers: layers.MaxPooling2D(3, 2, padding="same"), r"has padding \(0, 1\), \(0, 1\), ours 1"),
        (lambda layers: layers.LayerNormalization(), "variables of the shapes|LayerNormalization"),
    ],
)  # fmt: skip
def test_pooling_is_that_of_the_file(tmp_path, keras, pool, message):
    with pytest.raises(CheckpointError, match=message):
        load(ours(), save(theirs(keras, pool=pool(keras.layers)), tmp_path / "a.keras"))


def test_equal_networks_may_be_written_differently(tmp_path, keras):
    """Padding inside the convolution, averages over all there is, and layers that do nothing in use."""
    layers = keras.layers
    other = theirs(
        keras, size=17, zeros=0, first={"padding": "same"},
        front=lambda x: layers.GaussianNoise(0.1)(layers.RandomFlip("horizontal")(x)),
        end=lambda x: layers.Flatten()(layers.Identity()(layers.AveragePooling2D(x.shape[1])(x))),
    )  # fmt: skip
    model = ours()
    load(model, save(other, tmp_path / "a.keras"))
    assert distance(model, other, np.ones((2, 17, 17, 3), np.float32)) < 1e-5


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("ending", [".keras", ".h5"])
def test_a_model_inside_the_model_and_all_but_the_head(tmp_path, keras, ending):
    other, model = theirs(keras, nested=True), ours()
    path = save(other, tmp_path / f"a{ending}")
    load(model, path)
    assert distance(model, other) < 1e-5
    headless = ours()
    fc = headless.fc.weight.data.copy()
    report = load(headless, path, head=False)
    assert report.left_out == ("fc.weight", "fc.bias") and report.tensors == 30
    np.testing.assert_array_equal(headless.fc.weight.data, fc)
    np.testing.assert_array_equal(headless.conv1.weight.data, model.conv1.weight.data)


def test_all_but_the_head_of_a_model_without_a_top(tmp_path, keras):
    whole = theirs(keras)
    top = next(i for i, layer in enumerate(whole.layers) if "global" in layer.name)
    path = save(keras.Model(whole.inputs, whole.layers[top - 1].output), tmp_path / "a.keras")
    model = ours()
    assert load(model, path, head=False).tensors == 30
    with pytest.raises(CheckpointError, match="our model has nothing there|the file has nothing there"):
        load(ours(), path)


# ------------------------------------------------------------------------------------ scaling of pictures


SCALINGS = {
    "rescaling": lambda k: k.layers.Rescaling(1 / 127.5, offset=-1),
    "rescaling by channel": lambda k: k.layers.Rescaling([0.1, 0.2, 0.3], offset=[1.0, 2.0, 3.0]),
    "after augmentation": lambda k: lambda x: k.layers.Rescaling(1 / 255)(k.layers.RandomFlip()(x)),
    "given": lambda k: k.layers.Normalization(mean=[100.0, 110, 120], variance=[50.0, 60, 70]),
    "caffe": lambda k: k.applications.resnet.preprocess_input,
    "tf": lambda k: k.applications.resnet_v2.preprocess_input,
    "torch": lambda k: k.applications.densenet.preprocess_input,
    "two": lambda k: (
        lambda x: k.layers.Normalization(mean=0.5, variance=0.25)(k.layers.Rescaling(1 / 255)(x))
    ),
}


@pytest.mark.parametrize("how", SCALINGS)
def test_scaling_is_that_of_the_file(tmp_path, keras, how):
    other = theirs(keras, front=SCALINGS[how](keras))
    path, model = save(other, tmp_path / "a.keras"), ours()
    load(model, path)
    normalize, channels, _ = normalize_of(File.read(path).network(SIZE).scaling)
    pictures = np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3), np.uint8)
    scaled = normalize(pictures)[..., list(channels)]
    with no_grad(), oracle.one_thread():
        expected = np.asarray(other(pictures.astype(np.float32), training=False).detach())
        found = softmax(model(Tensor(np.ascontiguousarray(scaled)))).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("ending", [".keras", ".h5"])
def test_normalization_that_was_fitted_to_pixels_of_0_to_1_says_so(tmp_path, keras, ending):
    layer = keras.layers.Normalization()
    layer.adapt(np.random.default_rng(0).uniform(0, 1, (8, SIZE, SIZE, 3)).astype(np.float32))
    found = File.read(save(theirs(keras, front=layer), tmp_path / f"a{ending}")).network(SIZE)
    normalize, _, note = normalize_of(found.scaling)
    np.testing.assert_allclose(normalize.mean, 0.5, atol=0.02)
    np.testing.assert_allclose(normalize.std, 12**-0.5, atol=0.02)
    assert "pixels of 0..1" in note


def test_channels_that_are_turned_round(tmp_path, keras):
    """The torch backend draws such a slice and does not run it."""
    other = theirs(keras, front=lambda x: x[..., ::-1] / 255)
    found = File.read(save(other, tmp_path / "a.keras")).network(SIZE)
    normalize, channels, _ = normalize_of(found.scaling)
    assert channels == (2, 1, 0) and normalize == Normalize.none()


def test_a_scale_of_zero_is_no_scale():
    with pytest.raises(CheckpointError, match="pictures are multiplied by 0, no scale"):
        normalize_of([(0, 0.0, 0.0), (1, 1.0, 0.0), (2, 1.0, 0.0)])


def test_two_scales_of_one_picture_are_refused(tmp_path, keras):
    layers = keras.layers
    inputs = keras.Input((SIZE, SIZE, 3))
    x = layers.Add()([layers.Conv2D(4, 1)(layers.Rescaling(0.5)(inputs)), layers.Conv2D(4, 1)(inputs)])
    model = keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))
    with pytest.raises(CheckpointError, match="takes the picture in another scale than the layer before"):
        load(ours(), save(model, tmp_path / "a.keras"))


# --------------------------------------------------------------------- configurations that no Keras writes


def dense(name, reads, **more):
    node = [[[reads, 0, 0, {}]]] if reads else []
    return {"class_name": "Dense", "config": {"name": name, "units": 3, **more}, "inbound_nodes": node}


def functional(*layers, inputs="x", outputs="d"):
    first = {"class_name": "InputLayer", "config": {"name": "x", "batch_shape": [None, 8, 8, 3]}}
    return {
        "class_name": "Functional",
        "config": {
            "layers": [first, *layers], "input_layers": [[inputs, 0, 0]], "output_layers": [[outputs, 0, 0]]
        },
    }  # fmt: skip


def reading(kind, name, *reads, **more):
    nodes = [[[there, 0, 0, {}] for there in reads]]
    return {"class_name": kind, "config": {"name": name, **more}, "inbound_nodes": nodes}


def doubled(kind, times=40):
    """Each layer reads the one before twice: with one layer more there is twice as much."""
    names = ["x", "r", *(f"d{i}" for i in range(times))]
    layers = [reading(kind, there, before, before) for before, there in itertools.pairwise(names[1:])]
    return functional(reading("ReLU", "r", "x"), *layers, outputs=names[-1])


BRANCHING = functional(dense("d", "x"))
for _ in range(20):
    twice = {"name": "m", "inbound_nodes": [[["x", 0, 0, {}]], [["m", 0, 0, {}]]]}
    BRANCHING = functional({**BRANCHING, **twice}, outputs="m")
    BRANCHING["config"]["output_layers"] = [["m", 1, 0]]
LARGE = functional(dense("d", "x"))
LARGE["config"]["layers"][0]["config"]["batch_shape"] = [None, 60000, 60000, 3]
DEEP = functional(dense("d", "x"))
for _ in range(40):
    DEEP = {"class_name": "Sequential", "config": {"layers": [DEEP]}}


@pytest.mark.parametrize(
    "config",
    [
        functional(dense("d", "e"), dense("e", "d")), functional(dense("d", "nowhere")),
        functional(dense("d", "x"), outputs="other"), functional(dense("d", "x", units=-1)),
        functional(dense("d", "x", units=True)), functional(dense("d", "x", units=2**40)),
        functional({"class_name": "Rescaling", "config": {"name": "d", "scale": "1e999"},
                    "inbound_nodes": [[["x", 0, 0, {}]]]}),
        functional({"class_name": "BatchNormalization", "config": {"name": "d", "epsilon": -1},
                    "inbound_nodes": [[["x", 0, 0, {}]]]}),
        functional({"class_name": "Conv2D", "config": {"name": "d", "filters": 2, "kernel_size": [99, 99]},
                    "inbound_nodes": [[["x", 0, 0, {}]]]}),
        functional({"class_name": "Conv2D", "config": {"name": "d"}, "inbound_nodes": [[["x", 0, 0, {}]]]}),
        functional({"class_name": "Add", "config": {"name": "d"}, "inbound_nodes": [[]]}),
        functional(inputs="x", outputs="x") | {"config": {"layers": 3}},
        {"class_name": "Sequential", "config": {"layers": []}}, {"class_name": "Sequential", "config": 5},
        DEEP, doubled("Concatenate"), BRANCHING, LARGE,
    ],
)  # fmt: skip
def test_a_configuration_that_makes_no_sense_is_refused_in_words(config):
    with pytest.raises(CheckpointError, match="configuration"):
        network(json.loads(json.dumps(config)), {}, size=(8, 8))


def test_a_configuration_of_keras_1_or_of_a_class_of_ones_own_is_not_read():
    old = functional(reading("Convolution2D", "d", "x", nb_filter=3, nb_row=1, nb_col=1))
    for config in (old, {"class_name": "MyNet", "config": {"width": 3}}, None, []):
        assert network(config, {}, size=(8, 8)) is None


@pytest.mark.parametrize("kind", ["Add", "Multiply"])
def test_a_layer_that_is_read_twice_is_walked_through_once(kind):
    config = doubled(kind)
    end = reading("MaxPooling2D", "end", "d39", pool_size=2, strides=2, padding="valid")
    config["config"]["layers"].append(end)
    config["config"]["output_layers"] = ["end", 0, 0]
    found = network(config, {}, size=(8, 8)).scores
    assert len(layers_of(found)) == 43 and matched(found, found) == {}

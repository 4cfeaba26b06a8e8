"""Files of Keras, read in each layout that Keras writes; the same outputs as the model that wrote them."""

import io
import json
import zipfile

import h5py
import numpy as np
import oracle
import pytest
from blog_resnet import blog_resnet50

from minires.errors import CheckpointError, ConfigError
from minires.models import build
from minires.tensor import Tensor, no_grad
from minires.weights.keras import files, names
from minires.weights.keras.applications import variant_for
from minires.weights.keras.pretrained import load


def read(path):
    """The arrays of a file, read in this process."""
    return files.parse(path)[0]


NORM = ("gamma", "beta", "moving_mean", "moving_variance")


def layers_of(rng=None):
    """A convolution, two batch norms whose names are not in the order of the model, and a dense layer."""
    rng = rng or np.random.default_rng(0)
    shapes = {
        "conv_x": {"kernel": (3, 3, 2, 4), "bias": (4,)},
        "norm_z": dict.fromkeys(NORM, (4,)),
        "norm_a": dict.fromkeys(NORM, (4,)),
        "fc6": {"kernel": (4, 3), "bias": (3,)},
        "fc7": {"kernel": (3, 2)},
    }
    return {
        layer: {name: rng.uniform(0.1, 1, shape).astype(np.float32) for name, shape in variables.items()}
        for layer, variables in shapes.items()
    }


KINDS = {"conv_x": "Conv2D", "norm_z": "BatchNormalization", "norm_a": "BatchNormalization",
         "fc6": "Dense", "fc7": "Dense", "pool": "MaxPooling2D"}  # fmt: skip


def flat(layers):
    return {
        f"{layer}/{name}": array for layer, variables in layers.items() for name, array in variables.items()
    }


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def write_legacy(group, layers, path=lambda layer, name: f"{layer}/{name}:0"):
    """As keras/src/legacy/saving/legacy_h5_format.py: layers without weights are in it too."""
    group.attrs["layer_names"] = [b"pool", *(layer.encode() for layer in layers)]
    group.create_group("pool").attrs["weight_names"] = np.zeros(0)
    for layer, variables in layers.items():
        inside = group.create_group(layer)
        inside.attrs["weight_names"] = [path(layer, name).encode() for name in variables]
        for name, array in variables.items():
            inside[path(layer, name)] = array


def write_numbered(group, layers, *, names=True):
    """As keras/src/saving/saving_lib.py; ``names`` is False for its first versions."""
    counts = {}
    for layer, variables in layers.items():
        kind = {"Conv2D": "conv2d", "BatchNormalization": "batch_normalization", "Dense": "dense"}[
            KINDS[layer]
        ]
        number = counts[kind] = counts.get(kind, -1) + 1
        inside = group.create_group(f"layers/{kind}_{number}/vars" if number else f"layers/{kind}/vars")
        if names:
            inside.attrs["name"] = layer
        for i, array in enumerate(variables.values()):
            inside[str(i)] = array


def config_of(layers):
    named = [{"class_name": KINDS[layer], "config": {"name": layer}} for layer in ["pool", *layers]]
    return {"class_name": "Functional", "config": {"name": "whole", "layers": named}}


def write_archive(path, config, weights):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if len(weights) > 2**20 else 0) as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("config.json", config if isinstance(config, str) else json.dumps(config))
        archive.writestr("model.weights.h5", weights)


def numbered_bytes(layers, **options):
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        write_numbered(file, layers, **options)
    return buffer.getvalue()


# -------------------------------------------------------------------------- the layouts, without Keras


@pytest.mark.parametrize("inside", ["", "model_weights"])
@pytest.mark.parametrize(
    "path",
    [
        lambda layer, name: f"{layer}/{name}:0",  # Keras 2
        lambda layer, name: f"{layer}_3/{name}:0",  # Keras 2, after other models in the session
        lambda layer, name: f"whole/{layer}/{name}",  # Keras 3
        lambda layer, name: f"{layer}_{ {'kernel': 'W', 'bias': 'b'}.get(name, name)}_1:0",  # Keras 1
        lambda layer, name: layer + "_" + {"moving_mean": "running_mean", "moving_variance": "running_std",
                                           "kernel": "W", "bias": "b"}.get(name, name),
    ],
    ids=["keras2", "session", "keras3", "keras1", "keras1_running"],
)  # fmt: skip
def test_legacy(tmp_path, inside, path):
    layers = layers_of()
    with h5py.File(tmp_path / "a.h5", "w") as file:
        write_legacy(file.create_group(inside) if inside else file, layers, path)
        file.create_group("optimizer_weights")["x"] = np.zeros(3)
    assert_same(read(tmp_path / "a.h5"), flat(layers))


def test_legacy_with_a_model_inside_and_lists_in_pieces(tmp_path):
    layers = layers_of()
    base = {f"{layer}/{name}": array for layer in ("conv_x", "norm_z", "norm_a")
            for name, array in layers[layer].items()}  # fmt: skip
    with h5py.File(tmp_path / "a.h5", "w") as file:
        write_legacy(file, {"base": base, "fc6": layers["fc6"], "fc7": layers["fc7"]},
                     lambda layer, name: name if layer == "base" else f"{layer}/{name}:0")  # fmt: skip
        for group, name in ((file, "layer_names"), (file["base"], "weight_names")):
            for i, part in enumerate(np.array_split(group.attrs.pop(name), 3)):
                group.attrs[f"{name}{i}"] = part
    assert_same(read(tmp_path / "a.h5"), flat(layers))


def test_numbered(tmp_path):
    layers = layers_of()
    (tmp_path / "a.weights.h5").write_bytes(numbered_bytes(layers))
    assert_same(read(tmp_path / "a.weights.h5"), flat(layers))


def test_numbered_without_names(tmp_path):
    """The file of an early Keras 3 has nothing but the names of the groups."""
    layers = layers_of()
    (tmp_path / "a.weights.h5").write_bytes(numbered_bytes(layers, names=False))
    groups = ("conv2d", "batch_normalization", "batch_normalization_1", "dense", "dense_1")
    renamed = dict(zip(groups, layers.values(), strict=True))
    assert_same(read(tmp_path / "a.weights.h5"), flat(renamed))


@pytest.mark.parametrize("names", [True, False])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_archive(tmp_path, names, compression):
    layers = layers_of()
    with zipfile.ZipFile(tmp_path / "a.keras", "w", compression) as archive:
        archive.writestr("config.json", json.dumps(config_of(layers)))
        archive.writestr("model.weights.h5", numbered_bytes(layers, names=names))
    assert_same(read(tmp_path / "a.keras"), flat(layers))
    assert [path.name for path in tmp_path.iterdir()] == ["a.keras"]  # nothing was unpacked


def test_the_eleventh_layer_of_a_kind_is_not_taken_for_the_second(tmp_path):
    """In the file the groups stand in the order of their letters: dense, dense_1, dense_10, dense_2."""
    layers = {f"x{i}": {"kernel": np.full((2, 2), i, np.float32)} for i in range(12)}
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for i, variables in enumerate(layers.values()):
            file[f"layers/dense_{i}/vars/0" if i else "layers/dense/vars/0"] = variables["kernel"]
    named = [{"class_name": "Dense", "config": {"name": layer}} for layer in layers]
    write_archive(tmp_path / "a.keras", {"config": {"layers": named}}, buffer.getvalue())
    assert_same(read(tmp_path / "a.keras"), flat(layers))


# ---------------------------------------------------------------------------------- files that are refused


def h5(change):
    """A numbered file that ``change`` did something to."""

    def make(path):
        path.write_bytes(numbered_bytes(layers_of()))
        with h5py.File(path, "r+") as file:
            change(file)

    return make


def replaced(name, array):
    def change(file):
        del file[name]
        file[name] = array

    return change


def legacy(change):
    def make(path):
        with h5py.File(path, "w") as file:
            write_legacy(file, layers_of())
            change(file)

    return make


def archive(config=None, weights=None):
    def make(path):
        layers = layers_of()
        write_archive(path, config or config_of(layers), weights or numbered_bytes(layers, names=False))

    return make


def flipped(make, position):
    """One bit of the file is another."""

    def broken(path):
        make(path)
        content = bytearray(path.read_bytes())
        content[position] ^= 16
        path.write_bytes(content)

    return broken


def cut(make):
    def broken(path):
        make(path)
        path.write_bytes(path.read_bytes()[:-3000])

    return broken


LAMBDA = {"class_name": "Lambda", "config": {"name": "lambda", "function": "4wEAAAAAAAAA"}}
INSIDE = {"config": {"layers": [{"class_name": "Sequential", "config": {"name": "in", "layers": [LAMBDA]}}]}}
KERNEL = "layers/conv2d/vars/0"
VARIANCE = "layers/batch_normalization/vars/3"


def unwritten(shape, *, fill=0, **options):
    """An array of which nothing, or the first numbers, are in the file."""

    def change(file):
        del file[KERNEL]
        array = file.create_dataset(KERNEL, shape, "f4", **options)
        if fill:
            array[(slice(fill),) * len(shape)] = 1.0

    return change


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), "this is a folder, not a file"),
        (lambda path: path.write_bytes(b"no"), "is damaged or not a file of Keras: .*signature"),
        (cut(h5(lambda file: None)), "is damaged or not a file of Keras: .*truncated"),
        (cut(archive()), "is damaged or not a file of Keras"),
        (flipped(archive(), 6000), "not a file of Keras: Bad CRC-32 for file 'model.weights.h5'"),
        (h5(lambda file: file.move("layers", "data")), "no group layers or .*; it has data"),
        (h5(lambda file: file.clear()), "no group layers or .*; it has nothing"),
        (h5(replaced(KERNEL, np.zeros((3, 3, 2, 4), np.int8))), "vars/0' has the type int8, not floating"),
        (h5(replaced(KERNEL, h5py.ExternalLink("b.h5", "x"))), "'0' in .*vars' is a link to elsewhere"),
        (h5(replaced(KERNEL, h5py.SoftLink("/layers/dense/vars/0"))), "'0' in .*vars' is a link"),
        (h5(replaced("layers/conv2d", np.zeros(2))), "'/layers/conv2d' is an array and should be a group"),
        (h5(lambda file: (file.pop(KERNEL), file.create_group(KERNEL))), "vars/0' is a group and should be"),
        (h5(lambda file: file.move(KERNEL, "layers/conv2d/vars/2")), "'conv_x' has variables 1, 2 instead"),
        (h5(replaced("layers/dense/vars/1", np.zeros((2, 2)))), r"'fc6' .* of the shapes \(4, 3\), \(2"),
        (
            h5(lambda file: file["layers/dense/vars"].attrs.modify("name", "fc7")),
            "two layers of this file have one name: fc7/kernel is there twice",
        ),
        (
            h5(lambda file: (file.pop(KERNEL), file.create_dataset(KERNEL, (9, 9, 9, 9), "f4"))),
            r"vars/0' \(9, 9, 9, 9\) needs 26244 bytes, the file has 0",
        ),
        (
            h5(lambda file: (file.pop(KERNEL), file["layers/conv2d/vars"].create_dataset(
                "0", (2, 2), "f4", external=[("numbers.bin", 0, 16)]))),
            "the numbers of '/layers/conv2d/vars/0' are in another file",
        ),
        (h5(replaced(KERNEL, np.full((3, 3, 2, 4), np.nan))), "conv_x/kernel: all numbers are NaN"),
        (h5(replaced(VARIANCE, np.full(4, -1.0))), "norm_z/moving_variance is a variance, and -1 is in it"),
        (h5(unwritten((30000, 30000))), r"\(30000, 30000\) needs 3,600,000,000 bytes; the limit is"),
        (h5(unwritten((9, 9, 9, 9), compression="gzip")), "needs 26244 bytes, the file has 0"),
        (h5(unwritten((8,) * 4, compression="gzip", chunks=(4,) * 4, fill=4)), "16 pieces, the file has 1"),
        (h5(replaced(KERNEL, np.full((3, 3, 2, 4), b"x"))), "vars/0' has the type"),
        (
            h5(lambda file: file["layers/conv2d"].__setitem__("layers", file["layers"])),
            "is there twice|groups more than",
        ),
        (legacy(lambda file: file.attrs.create("layer_names", np.full(20_001, b"x"))), "has 20,001 values"),
        (archive(config="[" * 100_000), "its configuration is nested too deeply"),
        (archive(config=" " * 2**24 + "{}"), "config.json in it unpacks to 16,777,218 bytes"),
        (archive(weights=b"\0" * 2**28), "model.weights.h5 in it unpacks to 268,435,456 bytes, where"),
        (legacy(lambda file: file.pop("norm_a")), "'norm_a' should be in this file but is not in '/'"),
        (legacy(lambda file: file["fc6"].pop("fc6")), "'fc6/kernel:0' should be .* not in '/fc6'"),
        (
            legacy(lambda file: file["fc6"].attrs.create("weight_names", [b"fc6/alpha:0"])),
            "layer 'fc6' has the variable 'fc6/alpha:0'; only kernel, bias and those of batch norm",
        ),
        (legacy(lambda file: file.attrs.create("layer_names", [b"pool"])), "holds layers but no weights"),
        (legacy(lambda file: file.attrs.modify("model_config", json.dumps(INSIDE))), "has a Lambda layer"),
        (archive(config=INSIDE), "has a Lambda layer, whose code is in the file"),
        (archive(config="{"), "is damaged or not a file of Keras: Expecting property name"),
        (archive(config={"config": {"layers": [{"config": {}}]}}), "a layer as .*KeyError.*class_name"),
        (archive(weights=b"x" * 2000), "is damaged or not a file of Keras: .*signature"),
        (
            lambda path: zipfile.ZipFile(path, "w").writestr("archive/data.pkl", b""),
            "this zip has no config.json, so it is not a .keras file; it has archive/data.pkl",
        ),
    ],
)  # fmt: skip
def test_refused(tmp_path, make, message):
    path = tmp_path / "a.file"
    make(path)
    with pytest.raises(CheckpointError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)


# ----------------------------------------------------------------------------------- names, without Keras


def released(model, head):
    """The arrays of one of our models under the names that Keras has for the released ResNet."""
    leaves = {"weight": "kernel", "running_mean": "moving_mean", "running_var": "moving_variance"}
    found = {}
    for name, array in model.state_dict().items():
        layer, leaf = name.rsplit(".", 1)
        found[f"{head if layer.startswith('fc') else layer}/{leaves.get(leaf, leaf)}"] = array
    return found


@pytest.mark.parametrize("head", ["fc6", "fc1000", "dense_4", "predictions"])
@pytest.mark.parametrize("kind", ["ResNet50-signs", "ResNet50-fc1000"])
def test_the_last_dense_layer_may_have_any_name(kind, head):
    model = build(**variant_for(kind), classes=4, initializer="zeros")
    oracle.shake(model)
    state = names.to_state(released(model, head), model)
    assert_same(state, model.state_dict())


def test_what_does_not_fit_is_counted_and_named():
    model = build("resnet50_signs", initializer="zeros")
    arrays = released(model, "fc6")
    for stage in "bc":
        del arrays[f"res2{stage}_branch2a/bias"]
    arrays["conv1/kernel"] = np.zeros((3, 3, 3, 64))
    arrays |= {f"extra{i}/kernel": np.zeros((1, 1, 2, 2)) for i in range(8)}
    with pytest.raises(CheckpointError) as caught:
        names.to_state(arrays, model)
    assert str(caught.value).splitlines() == [
        "these weights of Keras do not fit the model (326 arrays there, 320 here); build it with the options "
        "that variant_for gives",
        "  2 missing: res2b_branch2a/bias (our res2b_branch2a.bias), "
        "res2c_branch2a/bias (our res2c_branch2a.bias)",
        "  8 unexpected: extra0/kernel (1, 1, 2, 2), extra1/kernel (1, 1, 2, 2), extra2/kernel (1, 1, 2, 2), "
        "extra3/kernel (1, 1, 2, 2), extra4/kernel (1, 1, 2, 2) and 3 more",
        "  1 misshapen: conv1/kernel is (3, 3, 3, 64), our conv1.weight is (7, 7, 3, 64)",
    ]


def test_two_heads_are_one_too_many():
    model = build("resnet50_signs", initializer="zeros")
    arrays = released(model, "fc6") | {"other/kernel": np.zeros((6, 6))}
    with pytest.raises(CheckpointError, match=r"2 missing: predictions/kernel \(our fc6.weight\)"):
        names.to_state(arrays, model)


def test_no_variant():
    with pytest.raises(ConfigError, match="unknown application of Keras 'ResNet18'. Did you mean 'ResNet1"):
        variant_for("ResNet18")


def test_a_file_is_read_in_a_process_of_its_own(tmp_path):
    layers = layers_of()
    write_archive(tmp_path / "a.keras", config_of(layers), numbered_bytes(layers, names=False))
    arrays, info = files.read(tmp_path / "a.keras")
    assert_same(arrays, flat(layers))
    assert info == {"config": config_of(layers), "notes": None, "models": 1}
    (tmp_path / "a.keras").write_bytes(b"no")
    with pytest.raises(CheckpointError, match="a.keras is damaged or not a file of Keras"):
        files.read(tmp_path / "a.keras")


# --------------------------------------------------------------------------------------------- with Keras


def shaken(model, seed=0):
    """Every weight of a Keras model at random, so that no two could be exchanged unseen."""
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        shape = tuple(variable.shape)
        if variable.name == "gamma":
            variable.assign(rng.uniform(0.5, 1.0, shape))
        elif variable.name == "moving_variance":
            variable.assign(rng.uniform(0.5, 1.5, shape))
        elif variable.name in ("bias", "beta", "moving_mean"):
            variable.assign(rng.normal(0, 0.1, shape))
    return model


def save(model, path):
    if path.name.endswith(".weights.h5"):
        model.save_weights(path)
    else:
        model.save(path)
    return path


@pytest.fixture
def _in_this_process(monkeypatch):
    monkeypatch.setattr(files, "read", files.parse)


def distance(ours, theirs, path, size):
    """The relative distance of the outputs, ours with the weights of the file."""
    load(ours, path)
    x = np.random.default_rng(1).standard_normal((2, size, size, 3)).astype(np.float32)
    with no_grad(), oracle.one_thread():
        mine, expected = ours.eval()(Tensor(x)).numpy(), np.asarray(theirs(x, training=False).detach())
    assert mine.shape == expected.shape
    return np.linalg.norm(mine - expected) / np.linalg.norm(expected)


FILES = ("a.h5", "a.weights.h5", "a.keras")


@pytest.mark.filterwarnings("ignore")  # Keras calls its own .h5 files legacy
@pytest.mark.usefixtures("_in_this_process")
@pytest.mark.parametrize(
    ("kind", "endings"),
    [
        ("VGG16", ("a.h5",)), ("VGG19", ("a.keras",)),
        ("ResNet50", FILES), ("ResNet101", ("a.weights.h5",)), ("ResNet152", ("a.keras",)),
        ("ResNet50V2", FILES), ("ResNet101V2", ("a.keras",)), ("ResNet152V2", ("a.h5",)),
        ("DenseNet121", FILES), ("DenseNet169", ("a.keras",)), ("DenseNet201", ("a.weights.h5",)),
    ],
)  # fmt: skip
def test_equals_the_application(tmp_path, kind, endings):
    keras = oracle.keras()
    theirs = shaken(getattr(keras.applications, kind)(
        weights=None, input_shape=(64, 64, 3), classes=5, classifier_activation=None
    ))  # fmt: skip
    size = {"size": 64} if kind.startswith("VGG") else {}
    for name in endings:
        ours = build(**variant_for(kind), classes=5, **size)
        path = save(theirs, tmp_path / name)
        assert distance(ours, theirs, path, 64) < 1e-4, name
        path.unlink()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FILES)
def test_a_new_head_on_an_application(tmp_path, name):
    """How pictures of other classes are learnt: the application without its top is a layer of a new model."""
    keras = oracle.keras()
    base = keras.applications.ResNet50(weights=None, include_top=False, input_shape=(64, 64, 3))
    base.trainable = False
    layers = keras.layers
    theirs = keras.Sequential(
        [base, layers.GlobalAveragePooling2D(), layers.Dropout(0.2), layers.Dense(3, name="gestures")]
    )
    theirs.compile("adam", "mse")
    theirs.fit(np.zeros((2, 64, 64, 3)), np.zeros((2, 3)), verbose=0)  # with the state of an optimiser
    shaken(theirs)
    ours = build(**variant_for("ResNet50"), classes=3)
    assert distance(ours, theirs, save(theirs, tmp_path / name), 64) < 1e-4


@pytest.mark.filterwarnings("ignore")
def test_the_names_in_config_json_are_those_in_the_weights(tmp_path):
    """An early Keras 3 wrote the names in config.json only."""
    keras = oracle.keras()
    model = keras.applications.DenseNet121(weights=None, input_shape=(32, 32, 3), classes=5)
    path = save(model, tmp_path / "a.keras")
    expected = read(path)
    with zipfile.ZipFile(path) as archive:
        config, weights = archive.read("config.json").decode(), io.BytesIO(archive.read("model.weights.h5"))
    with h5py.File(weights, "r+") as file:
        file.visititems(lambda name, item: item.attrs.pop("name", None) and None)
    write_archive(path, config, weights.getvalue())
    assert_same(read(path), expected)


@pytest.mark.parametrize(("kind", "classes"), [("ResNet50-signs", 6), ("ResNet50-fc1000", 1000)])
def test_equals_the_resnet_of_the_blogs(tmp_path, kind, classes):
    keras = oracle.keras()
    theirs = blog_resnet50(keras, size=64, classes=classes, signs=kind.endswith("signs"))
    shaken(theirs)
    layers = {
        layer.name: {variable.name: variable.value.detach().numpy() for variable in layer.variables}
        for layer in theirs.layers
        if layer.variables
    }
    assert f"fc{classes}" in layers and "bn5c_branch2c" in layers
    with h5py.File(tmp_path / "a.h5", "w") as file:
        write_legacy(file.create_group("model_weights"), layers)
    ours = build(**variant_for(kind), classes=classes)
    assert distance(ours, theirs, tmp_path / "a.h5", 64) < 1e-4

"""Our weights in Keras's own models, by load_weights, and back again."""

from __future__ import annotations

import json

import h5py
import numpy as np
import oracle
import pytest
from blog_resnet import blog_resnet50

from minires.cli import main
from minires.data import Normalize
from minires.errors import CheckpointError, ConfigError
from minires.models import build
from minires.tensor import Tensor, no_grad
from minires.train import Trained, load_model, save_model
from minires.weights import import_weights
from minires.weights.keras import files
from minires.weights.keras.applications import APPLICATIONS
from minires.weights.keras.export import export_keras


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch):
    monkeypatch.setattr(files, "read", files.parse)


def trained(kind, **options):
    application = APPLICATIONS[kind]
    variant = {**application.options, **({"size": 32} if kind.startswith("VGG") else {}), **options}
    side = 32 if kind.startswith("VGG") else 64
    model = oracle.shake(build(application.model, classes=3, **{"initializer": "glorot_uniform", **variant}))
    return Trained(
        model.eval(),
        application.model,
        variant,
        ("fist", "palm", "流"),
        application.normalize,
        (side, side),
        "own",
    )


@pytest.fixture(scope="module")
def signs():
    return trained("ResNet50-signs")


@pytest.mark.parametrize(
    "kind", ["ResNet50-signs", "ResNet50-fc1000", "ResNet50", "ResNet50V2", "DenseNet121", "VGG16"]
)
def test_keras_loads_it_and_gives_the_same_scores(tmp_path, kind):
    keras, ours = oracle.keras(), trained(kind)
    side = ours.size[0]
    said = export_keras(ours, tmp_path / "a.weights.h5")
    if "-" in kind:
        theirs = blog_resnet50(keras, size=64, classes=3, signs=kind == "ResNet50-signs")
    else:
        theirs = getattr(keras.applications, kind)(
            weights=None, input_shape=(side, side, 3), classes=3, classifier_activation=None
        )
    theirs.load_weights(tmp_path / "a.weights.h5")
    x = np.random.default_rng(0).standard_normal((2, side, side, 3)).astype(np.float32)
    blue_first = "channels blue, green, red" in said
    assert blue_first == APPLICATIONS[kind].blue_first
    with no_grad(), oracle.one_thread():
        scores = ours.model(Tensor(x)).numpy()
        expected = theirs(x[..., ::-1].copy() if blue_first else x, training=False).detach().numpy()
    assert np.linalg.norm(scores - expected) < 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize("normalize", [None, Normalize((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))])
def test_it_comes_back_bit_for_bit_with_classes_and_scaling(tmp_path, normalize):
    ours = trained("ResNet50", bn_momentum=0.9)
    if normalize:
        ours = Trained(**{**vars(ours), "normalize": normalize})
    export_keras(ours, tmp_path / "a.weights.h5")
    import_weights(tmp_path / "a.weights.h5", "resnet50_keras", tmp_path / "b.safetensors")
    again = load_model(tmp_path / "b.safetensors")
    assert (again.classes, again.size, again.normalize) == (ours.classes, ours.size, ours.normalize)
    assert again.variant == {"bn_momentum": 0.9}
    found = again.model.state_dict()
    for name, array in ours.model.state_dict().items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_the_command_writes_it(tmp_path, signs, capsys):
    save_model(tmp_path / "signs.safetensors", signs)
    assert (
        main(["export", str(tmp_path / "signs.safetensors"), "--keras", str(tmp_path / "a.weights.h5")]) == 0
    )
    assert (
        "for Keras; its ResNet50-signs, for pictures scaled as (pixel / 255 - 0) / 1"
        in capsys.readouterr().out
    )
    arrays, info = files.parse(tmp_path / "a.weights.h5")
    assert len(arrays) == 320 and info["notes"]["classes"] == list(signs.classes)
    np.testing.assert_array_equal(arrays["res2a_branch1/kernel"], signs.model.res2a.res2a_branch1.weight.data)


def test_what_keras_has_not_is_refused(tmp_path, signs):
    cases = [
        (signs, "a.h5", r"a.h5: Keras reads weights from files whose names end in .weights.h5"),
        (trained("DenseNet121", bn_eps=1e-5), "a.weights.h5",
         r"DenseNet121 is another network than this densenet121: "
         r"layer 'bn_conv1' \(batch norm\) has epsilon 1e-05, Keras's 1.001e-05"),
        (Trained(**{**vars(signs), "name": "resnet18"}), "a.weights.h5", "no network that is our resnet18"),
    ]  # fmt: skip
    for model, name, message in cases:
        with pytest.raises(ConfigError, match=message):
            export_keras(model, tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "resnet18"}, "it was written from our resnet18: --model resnet18"),
        ({"channels": [0, 0, 1]}, "its attribute minires is damaged"),
        ({"normalize": {"mean": [0, 0], "std": [1, 1]}}, "its attribute minires is damaged"),
        ({"size": "x"}, "its attribute minires is damaged"),
        ({"size": 10**6}, "its attribute minires is damaged"),
        ({"options": 3}, "its attribute minires is damaged"),
    ],
)  # fmt: skip
def test_notes_that_are_damaged_are_refused(tmp_path, signs, change, message):
    path = tmp_path / "a.weights.h5"
    export_keras(signs, path)
    with h5py.File(path, "r+") as file:
        notes = json.loads(file.attrs["minires"])
        file.attrs["minires"] = json.dumps({**notes, **change})
    with pytest.raises(CheckpointError, match=message):
        import_weights(path, "resnet50_signs", tmp_path / "b.safetensors")


@pytest.mark.parametrize("noted", [True, False])
def test_a_network_of_keras_with_one_output_is_no_softmax(tmp_path, noted):
    model = oracle.shake(build("resnet50_signs", classes=1))
    normalize = APPLICATIONS["ResNet50-signs"].normalize
    one = Trained(model.eval(), "resnet50_signs", {}, ("yes",), normalize, (64, 64), "own")
    export_keras(one, tmp_path / "a.weights.h5")
    if not noted:
        with h5py.File(tmp_path / "a.weights.h5", "r+") as file:
            del file.attrs["minires"]
    with pytest.raises(CheckpointError, match=r"a.weights.h5: its last layer has one output, .* always 1"):
        import_weights(tmp_path / "a.weights.h5", "resnet50_signs", tmp_path / "b.safetensors")
    assert not (tmp_path / "b.safetensors").exists()

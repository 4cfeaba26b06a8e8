"""What a model file says of itself is checked before it is used, and how large it says it is, too."""

from __future__ import annotations

import numpy as np
import pytest

from minires import models
from minires.data import Normalize
from minires.errors import CheckpointError
from minires.train import Trained, checkpoint, load_model, save_model


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    model = models.build("resnet20_cifar", classes=3)
    save_model(path, Trained(model, "resnet20_cifar", {}, ("a", "b", "c"), Normalize.none(), (32, 32), "x"))
    return checkpoint.read(path)


def load(arrays, info, path):
    checkpoint.write(path, arrays, {name: value for name, value in info.items() if name != "format"})
    return load_model(path)


NO_NUMBERS = ["x", None, [], {}, True]
WRONG = {
    "kind": [None, "modle", 1],
    "model": [None, 3, [], "resnet20_cifra"],
    "variant": [None, 3, [], {"shortcut": "C"}, {"shortcut": [1]}, {"nothing": 1}, {"initializer": {}}],
    "classes": [None, 3, [], "abc", [1, 2, 3], ["a", None, "c"], ["a", "b"], {"a": 1}],
    "normalize": [None, 3, {}, {"mean": [0, 0, 0]}, {"mean": [0, 0], "std": [1, 1, 1]},
                  {"mean": [0, 0, 0], "std": [1, 0, 1]}, {"mean": ["a", 0, 0], "std": [1, 1, 1]}],
    "size": [None, 32, [32], [32, 32, 3], [0, 32], [32, -1], [32.5, 32], [32, 10**9], ["32", 32], [True, 32]],
    "dataset": [None, 3, []],
}  # fmt: skip


@pytest.mark.parametrize("field", WRONG)
def test_a_field_that_is_missing_or_wrong_is_named_with_the_file(good, field, tmp_path):
    arrays, info = good
    path = tmp_path / "model.safetensors"
    assert load(arrays, info, path).classes == ("a", "b", "c")
    with pytest.raises(CheckpointError, match=f"model.safetensors does not say .*: {field} is missing"):
        load(arrays, {name: value for name, value in info.items() if name != field}, path)
    for wrong in WRONG[field]:
        with pytest.raises(CheckpointError, match="model.safetensors"):
            load(arrays, {**info, field: wrong}, path)


@pytest.mark.parametrize(
    "claim",
    [{"classes": [""] * 200_000}, {"model": "vgg16"}, {"variant": {"widths": [10**6] * 3}},
     {"variant": {"repeats": [10**6] * 3}}, {"model": "resnet50_signs", "variant": {"size": 10**6}}],
)  # fmt: skip
def test_a_model_larger_than_its_file_is_not_built(good, claim, tmp_path):
    arrays, info = good
    with pytest.raises(CheckpointError, match="holds a .*numbers") as refused:
        load(arrays, {**info, **claim}, tmp_path / "model.safetensors")
    assert "more than there are numbers for" in str(refused.value) and len(str(refused.value)) < 3000


def test_a_model_that_diverged_is_loaded_and_it_is_said(good, tmp_path):
    arrays, info = good
    arrays = {**arrays, "fc.bias": np.array([1, np.nan, np.inf], np.float32)}
    with pytest.warns(UserWarning, match=r"in .*model.safetensors these have .*: fc.bias \(2 of 3\)"):
        load(arrays, info, tmp_path / "model.safetensors")

"""Names of classes as people keep them, and what becomes of them when weights are brought in."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file
from weights.in_this_process import in_this_process

from minires import limits
from minires.cli import main
from minires.data import cifar
from minires.errors import CheckpointError, ConfigError
from minires.models import build
from minires.tensor import Tensor
from minires.train import load_model
from minires.weights import class_names, import_weights, load_pretrained, names_of, variant_for
from minires.weights.classes import names_in
from minires.weights.sources import known_as
from minires.weights.torch.export import export_torch

THREE = ("cat", "dog", "eel")


@pytest.mark.parametrize(
    "content",
    [
        "cat\ndog\neel\n", "\ufeffcat\r\ndog\r\neel\r\n\r\n", '["cat", "dog", "eel"]',
        '{"0": "cat", "1": "dog", "2": "eel"}', '{"2": "eel", "0": "cat", "1": "dog"}',
        '{"dog": 1, "cat": 0, "eel": 2}', '{"id2label": {"0": "cat", "1": "dog", "2": "eel"}, "depths": [3]}',
        '{"classes": ["cat", "dog", "eel"]}', '{"1": "cat", "2": "dog", "3": "eel"}', "cat, dog,eel\n",
        "0 cat\n1 dog\n2 eel\n", "2: dog\n3: eel\n1: cat\n",
    ],
)  # fmt: skip
def test_names_are_read_from_text_and_json(content, tmp_path):
    path = tmp_path / "names, of three"
    path.write_bytes(content.encode())
    assert class_names(str(path)) == THREE


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('["cat", 3]', "holds no names"), ("{}", "holds no names"), ('{"1": "cat"}', "holds no names"),
        ('["cat"', "no JSON"), (b"\xff\xfe\xfa", "UTF-8"), ("cat\n\ndog", "name of class 1 is empty"),
        ('{"cat": 0, "dog": 0}', "holds no names"),
    ],
)  # fmt: skip
def test_what_are_no_names_is_refused(content, words, tmp_path):
    path = tmp_path / "names"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=f"--class-names .*{words}"):
        class_names(str(path))


def test_numbers_that_are_those_of_no_outputs_belong_to_the_names(tmp_path):
    path = tmp_path / "names"
    path.write_text("7 up\n12 monkeys\n")
    assert class_names(str(path)) == ("7 up", "12 monkeys")


def test_names_on_the_command_line():
    assert class_names("cat, dog,eel") == THREE
    with pytest.raises(ConfigError, match="names.txt: no such file, and a list needs at least two names"):
        class_names("names.txt")
    for text in ('["cat", "dog", "eel"]', '{"0": "cat", "1": "dog", "2": "eel"}'):
        assert class_names(text) == THREE
    with pytest.raises(ConfigError, match="--class-names has 'cat' twice"):
        class_names("cat, dog,cat")
    with pytest.raises(ConfigError, match="--class-names has 'cat' twice"):
        class_names('["cat", "cat ", "dog"]')
    with pytest.raises(ConfigError, match="--class-names: the name of class 0 is empty"):
        class_names(",")
    with pytest.raises(ConfigError, match="--class-names: this is no JSON"):
        class_names('["cat", "dog"')
    with pytest.raises(ConfigError, match="name of class 1 is empty"):
        class_names("cat,,dog")
    assert names_in([True, "a"]) is None and names_in("abc") is None and names_in({0: "a", 2: "b"}) is None


def weights(path, classes=3, name="resnet18", source="torchvision", **small):
    small = small or {"repeats": (1, 1, 1, 1), "widths": (4, 4, 4, 4)}
    model = build(name, classes=classes, **{**variant_for(source, name), **small})
    export_torch(model, path, source)
    return model, small


def test_classes_are_as_many_as_the_file_has_outputs(tmp_path):
    _, small = weights(tmp_path / "w.safetensors")
    out = tmp_path / "model.safetensors"
    report = import_weights(tmp_path / "w.safetensors", "resnet18", out, variant=small)
    assert load_model(out).classes == ("0", "1", "2")
    assert "the 3 classes have no names in the file" in str(report)
    report = import_weights(tmp_path / "w.safetensors", "resnet18", out, variant=small, classes=THREE)
    assert load_model(out).classes == THREE == report.classes and not report.notes
    with pytest.raises(ConfigError, match="2 classes were given, and the last layer of .* has 3 outputs"):
        import_weights(tmp_path / "w.safetensors", "resnet18", out, variant=small, classes=("a", "b"))


def test_names_that_a_file_has_twice_get_their_numbers_with_a_word(tmp_path):
    _, small = weights(tmp_path / "w.safetensors")
    (tmp_path / "names.txt").write_text("crane\ndog\ncrane\n")
    given, out = class_names(str(tmp_path / "names.txt")), tmp_path / "o.safetensors"
    assert given == ("crane", "dog", "crane")
    said = "more than one class is called 'crane': the number of the class stands behind the later names"
    report = import_weights(tmp_path / "w.safetensors", "resnet18", out, variant=small, classes=given)
    assert load_model(out).classes == ("crane", "dog", "crane (2)") and said in report.notes
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet18", "label_names": given}))
    report = import_weights(tmp_path / "w.safetensors", "resnet18", out, variant=small)
    assert load_model(out).classes == ("crane", "dog", "crane (2)") and said in report.notes


def test_ten_outputs_for_small_pictures_are_cifar10_and_others_are_not(tmp_path):
    for count, expected in ((10, cifar.CLASSES), (4, tuple("0123"))):
        weights(tmp_path / "w.safetensors", count, "resnet20_cifar", "akamaster", last_gamma=1.0)
        import_weights(tmp_path / "w.safetensors", "resnet20_cifar", tmp_path / "model.safetensors")
        assert load_model(tmp_path).classes == expected


def test_names_of_a_config_beside_the_file_are_taken(tmp_path):
    model, small = weights(tmp_path / "model.safetensors")
    config = {"architecture": "resnet18", "num_classes": 3, "label_names": THREE,
              "pretrained_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.1, 0.3]}}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    out = tmp_path / "ours.safetensors"
    report = import_weights(tmp_path, "resnet18", out, variant=small)
    trained = load_model(out)
    assert trained.classes == THREE and "3 classes are from the config.json" in report.notes[-1]
    assert trained.normalize.mean == (0.5, 0.4, 0.3) and trained.normalize.std == (0.2, 0.1, 0.3)
    x = Tensor(np.random.default_rng(0).random((1, 32, 32, 3), np.float32))
    np.testing.assert_array_equal(trained.model(x).numpy(), model.eval()(x).numpy())
    (tmp_path / "config.json").write_text(json.dumps({**config, "label_names": ["cat", "dog"]}))
    with pytest.raises(CheckpointError, match="names 2 classes, and the last layer has 3 outputs"):
        import_weights(tmp_path, "resnet18", out, variant=small)
    assert import_weights(tmp_path, "resnet18", out, variant=small, classes="abc").classes == ("a", "b", "c")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="config.json, which belongs to the weights .* cannot be read"):
        import_weights(tmp_path, "resnet18", out, variant=small)


@pytest.mark.parametrize(
    "architecture", ["resnetblur18", "resnet18d", "seresnet18", "resnext50_32x4d", "timm/vgg16"]
)
def test_a_config_that_says_another_network_is_believed(architecture, tmp_path):
    _, small = weights(tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": architecture}))
    with pytest.raises(CheckpointError, match=f"says '{architecture}', which is (no network here|our )"):
        import_weights(tmp_path, "resnet18", tmp_path / "ours.safetensors", variant=small)


@pytest.mark.parametrize(("in_bottleneck", "stride_on"), [(True, "1x1"), (False, "3x3"), (None, "3x3")])
def test_options_of_a_config_of_hugging_face_are_taken(in_bottleneck, stride_on, tmp_path):
    small = {"repeats": (1, 1, 1, 1), "widths": (4, 4, 4, 4)}
    model = build("resnet50", classes=3, initializer="zeros", **small)
    there = names_of("huggingface", model)
    order = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}
    state = {there[n]: a.transpose(order[a.ndim]).copy() for n, a in model.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    config = {"model_type": "resnet", "layer_type": "bottleneck", "id2label": {"0": "a", "1": "b", "2": "c"}}
    if in_bottleneck is not None:
        config["downsample_in_bottleneck"] = in_bottleneck
    (tmp_path / "config.json").write_text(json.dumps(config))
    out = tmp_path / "ours.safetensors"
    import_weights(tmp_path, "resnet50", out, variant=small)
    assert load_model(out).variant["stride_on"] == stride_on and load_model(out).classes == ("a", "b", "c")
    other = "3x3" if stride_on == "1x1" else "1x1"
    with pytest.raises(ConfigError, match=f"states stride_on='{stride_on}', not '{other}'"):
        import_weights(tmp_path, "resnet50", out, variant={**small, "stride_on": other})
    load_pretrained(build("resnet50", classes=3, stride_on=stride_on, **small), tmp_path)
    with pytest.raises(CheckpointError, match=f"states stride_on='{stride_on}', and the model has '{other}'"):
        load_pretrained(build("resnet50", classes=3, stride_on=other, **small), tmp_path)
    for key, value in {"downsample_in_first_stage": True, "hidden_act": "gelu"}.items():
        (tmp_path / "config.json").write_text(json.dumps({**config, key: value}))
        with pytest.raises(CheckpointError, match=f"{key} is {value!r}; the models here have"):
            import_weights(tmp_path, "resnet50", out, variant=small)


@pytest.mark.parametrize(("key", "value"), [("act_layer", "silu"), ("in_chans", 1), ("global_pool", "max")])
def test_a_network_of_timm_made_otherwise_is_refused(key, value, tmp_path):
    _, small = weights(tmp_path / "model.safetensors")
    usual = {"num_classes": 3, "in_chans": 3, "global_pool": "avg", "drop_rate": 0.1, "act_layer": "relu"}
    for config in ({"model_args": usual | {key: value}}, usual | {key: value}):
        (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet18", **config}))
        with pytest.raises(CheckpointError, match=f"made with {key}={value!r}, which none here is"):
            import_weights(tmp_path, "resnet18", tmp_path / "ours.safetensors", variant=small)
    for config in ({"model_args": usual}, usual):
        (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet18", **config}))
        import_weights(tmp_path, "resnet18", tmp_path / "ours.safetensors", variant=small)
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet18", "num_classes": 1000}))
    with pytest.raises(CheckpointError, match="num_classes=1000, and the last layer has 3 outputs"):
        import_weights(tmp_path, "resnet18", tmp_path / "ours.safetensors", variant=small)


HALVES = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.25, 0.125]}


@pytest.mark.parametrize(
    ("processor", "scaled"),
    [
        (HALVES, lambda x: (x / 255 - HALVES["image_mean"]) / HALVES["image_std"]),
        ({**HALVES, "do_normalize": False}, lambda x: x / 255),
        ({"do_normalize": False, "rescale_factor": 1 / 127.5}, lambda x: x / 127.5),
        ({"do_normalize": False, "do_rescale": False}, lambda x: x),
        ({**HALVES, "rescale_factor": 1 / 127.5},
         lambda x: (x / 127.5 - HALVES["image_mean"]) / HALVES["image_std"]),
        ({"image_mean": [123, 116, 103], "image_std": [58, 57, 56], "do_rescale": False},
         lambda x: (x - [123, 116, 103]) / [58, 57, 56]),
        ({"image_mean": 0.5, "image_std": 0.25}, lambda x: (x / 255 - 0.5) / 0.25),
    ],
)  # fmt: skip
def test_pixels_are_scaled_as_hugging_face_scales_them(processor, scaled, tmp_path):
    _, small = weights(tmp_path / "model.safetensors")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    import_weights(tmp_path, "resnet18", tmp_path / "ours.safetensors", variant=small)
    x = np.arange(0, 255, 5, dtype=np.uint8).reshape(1, 1, 17, 3)
    ours = load_model(tmp_path / "ours.safetensors").normalize(x)
    np.testing.assert_allclose(ours, scaled(x.astype(float)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("processor", "words"),
    [
        ({**HALVES, "image_std": [0, 1, 1]}, "the latter positive"),
        ({"image_mean": ["a"] * 3}, "three numbers"),
        ({**HALVES, "rescale_factor": 0}, "rescale_factor is 0"),
        ({**HALVES, "rescale_offset": True}, "shifted"),
        ({"rescale_factor": 0.5}, "an image_mean not stated"),
    ],
)  # fmt: skip
def test_a_scaling_that_cannot_be_followed_is_refused(processor, words, tmp_path):
    _, small = weights(tmp_path / "model.safetensors")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    with pytest.raises(CheckpointError, match=f"preprocessor_config.json: .*{words}"):
        import_weights(tmp_path, "resnet18", tmp_path / "ours.safetensors", variant=small)


@pytest.mark.parametrize(
    ("name", "content", "side"),
    [
        ("config.json", {"architecture": "resnet18", "pretrained_cfg": {"input_size": [3, 64, 64]}}, 64),
        ("config.json", {"architecture": "resnet18", "pretrained_cfg": {"input_size": [3, 64, 96]}}, 224),
        ("preprocessor_config.json", {"size": {"shortest_edge": 80}}, 80),
        ("preprocessor_config.json", {"size": {"height": 80, "width": 80}}, 80),
        ("preprocessor_config.json", {"size": 80, "crop_size": {"height": 64, "width": 64}}, 64),
        ("preprocessor_config.json", {"size": 80, "crop_size": 64, "do_center_crop": False}, 80),
    ],
)
def test_the_size_of_pictures_that_is_stated_beside_the_file_is_taken(name, content, side, tmp_path):
    _, small = weights(tmp_path / "model.safetensors")
    (tmp_path / name).write_text(json.dumps(content))
    report = import_weights(tmp_path, "resnet18", tmp_path / "ours.safetensors", variant=small)
    assert load_model(tmp_path / "ours.safetensors").size == (side, side)
    assert any(f"pictures of {side}x{side}, as " in note and name in note for note in report.notes) == (
        side != 224
    )


@pytest.mark.parametrize("name", ["resnet18_cats", "my_resnet18_v3", "resnet18_pretrained", "resnet_18"])
def test_a_name_that_a_user_made_up_is_no_other_network(name, tmp_path):
    _, small = weights(tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": name}))
    report = import_weights(tmp_path, "resnet18", tmp_path / "ours.safetensors", variant=small)
    assert any("taken for a name of your own" in note for note in report.notes) == (name != "resnet_18")


@pytest.mark.parametrize("name", ["my_resnetblur50_cats", "resnetaa50_v3", "resnet50d", "ecaresnet26t",
    "seresnext26t_32x4d", "res2net50_26w_4s", "resnet50_gn", "gluon_resnet50_v1e", "wide_resnet101_2",
    "skresnet18", "resnetv2_50x1_bit", "densenetblur121d", "resnest50d_1s4x24d"])  # fmt: skip
def test_known_relatives_are_no_networks_here(name):
    assert known_as(name) is None


def test_names_of_classes_that_contradict_each_other_are_refused_unless_given(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(limits, "apart", in_this_process)
    model, small = weights(tmp_path / "w.pth")
    state = torch.load(tmp_path / "w.pth", weights_only=True)
    numbers = {"dog": torch.tensor(0), "cat": torch.tensor([1]), "eel": torch.tensor(2)}
    out = tmp_path / "o.safetensors"
    torch.save({"state_dict": state, "classes": list(THREE), "class_to_idx": numbers}, tmp_path / "c.pth")
    with pytest.raises(
        CheckpointError, match="classes says that output 0 is 'cat', class_to_idx that output 1"
    ):
        import_weights(tmp_path / "c.pth", "resnet18", out, variant=small)
    assert import_weights(tmp_path / "c.pth", "resnet18", out, variant=small, classes=THREE).classes == THREE
    torch.save({"state_dict": state, "class_to_idx": numbers}, tmp_path / "c.pth")
    found = import_weights(tmp_path / "c.pth", "resnet18", out, variant=small)
    assert found.classes == ("dog", "cat", "eel")


def test_what_looks_alike_is_refused_by_the_name_of_its_file(tmp_path):
    _, small = weights(tmp_path / "resnetblur18-84f4748f.safetensors")
    with pytest.raises(CheckpointError, match="the name of .* says 'resnetblur18', which is no network here"):
        import_weights(
            tmp_path / "resnetblur18-84f4748f.safetensors",
            "resnet18",
            tmp_path / "o.safetensors",
            variant=small,
        )


def test_the_command_takes_names_and_says_where_they_are_from(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights(tmp_path / "w.safetensors", 4, "resnet20_cifar", "akamaster", last_gamma=1.0)
    command = ["import-weights", "w.safetensors", "--model", "resnet20_cifar", "--out", "o.safetensors"]
    assert main([*command, "--class-names", "a,b,c,d"]) == 0
    assert load_model("o.safetensors").classes == tuple("abcd")
    assert main([*command, "--class-names", "d,c,b,a"]) == 2
    assert "o.safetensors is there already; choose another --out" in capsys.readouterr().err
    assert load_model("o.safetensors").classes == tuple("abcd")
    command[-1] = "p.safetensors"
    assert main([*command, "--class-names", "a,b,c"]) == 2
    assert (
        "3 classes were given, and the last layer of w.safetensors has 4 outputs" in capsys.readouterr().err
    )
    assert main([*command, "--class-names", "a,b,c,d", "--classes", "3"]) == 2
    assert "--class-names has 4 names, and --classes says 3. Commas separate" in capsys.readouterr().err
    assert main([*command[:-1], "o.pth"]) == 2
    assert "--out is o.pth, but a model of minires is written as .safetensors" in capsys.readouterr().err
    assert main(["import-weights", "w.safetensors", "--model", "resnet20_cifar", "--json"]) == 0
    assert "4 classes have no names" in json.loads(capsys.readouterr().out)["notes"][0]

"""What Hugging Face and timm write beside weights: whose it is, and what of it no model of ours can be."""

import contextlib
import json
import os

import pytest
from safetensors.numpy import save_file

from minires.cli import main
from minires.errors import CheckpointError, MiniresError
from minires.models import build
from minires.train import load_model
from minires.weights import import_weights, load_pretrained, names_of, variant_for
from minires.weights.torch import beside
from minires.weights.torch.export import export_torch

HALF = {"mean": [0.5] * 3, "std": [0.5] * 3}
SMALL = {"repeats": (1, 1, 1, 1), "widths": (4, 4, 4, 4)}


def weights(path, name="resnet18", source="torchvision"):
    model = build(name, classes=3, **{**variant_for(source, name), **SMALL})
    export_torch(model, path, source)


def of_transformers(path):
    model = build("resnet50", classes=3, initializer="zeros", **SMALL)
    there, order = names_of("huggingface", model), {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}
    save_file({there[n]: a.transpose(order[a.ndim]).copy() for n, a in model.state_dict().items()}, path)


def write(folder, **config):
    (folder / "config.json").write_text(json.dumps(config))


def imported(path, model="resnet18"):
    out = path.parent / "ours" / "o.safetensors"
    out.parent.mkdir(exist_ok=True)
    report = import_weights(path, model, out, variant=SMALL)
    return load_model(out), "\n".join(report.notes)


# --------------------------------------------------------------------------------- the older form of timm's


def test_what_an_older_config_of_timm_says_beside_the_architecture_is_taken(tmp_path):
    weights(tmp_path / "model.safetensors")
    old = {
        "architecture": "resnet18", "num_classes": 3, "num_features": 512, "pool_size": [4, 4],
        "input_size": [3, 128, 128], "crop_pct": 0.875, "interpolation": "bilinear", "first_conv": "conv1",
        "classifier": "fc", "global_pool": "avg", "labels": ["a", "b", "c"], **HALF,
    }  # fmt: skip
    write(tmp_path, **old)
    trained, notes = imported(tmp_path / "model.safetensors")
    assert trained.normalize.mean == (0.5,) * 3 and trained.normalize.std == (0.5,) * 3
    assert trained.size == (128, 128) and trained.classes == ("a", "b", "c")
    assert "pixels are scaled with mean 0.5, 0.5, 0.5 and deviation 0.5, 0.5, 0.5, as " in notes
    nested = {key: value for key, value in old.items() if key != "architecture"}
    write(tmp_path, architecture="resnet18", pretrained_cfg=nested)
    trained, _ = imported(tmp_path / "model.safetensors")
    assert trained.normalize.mean == (0.5,) * 3 and trained.classes == ("a", "b", "c")
    write(tmp_path, architecture="resnet18", pretrained_cfg={"mean": None}, **HALF)  # timm reads one place
    assert imported(tmp_path / "model.safetensors")[0].normalize.mean[0] == 0.485


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"num_classes": 1000}, "num_classes=1000, and the last layer has 3 outputs"),
        ({"num_classes": "5"}, "num_classes=5, and the last layer has 3 outputs"),
        ({"num_classes": 5.0}, "num_classes=5, and the last layer has 3 outputs"),
        ({"mean": [123.675, 116.28, 103.53]}, "are of pixels 0..255, it seems, and must be of 0..1 there"),
        ({"std": [58.395, 57.12, 57.375]}, "are of pixels 0..255, it seems, and must be of 0..1 there"),
        ({"aa_layer": "blurpool"}, "made with aa_layer='blurpool'"),
        ({"block_args": {"attn_layer": "se"}}, "made with block_args="),
        ({"stem_type": "deep"}, "made with stem_type='deep'"),
        ({"global_pool": "max"}, "made with global_pool='max'"),
        ({"label_offset": 1}, "label_offset is 1: timm leaves out"),
    ],
)
def test_what_no_model_here_is_is_refused_in_either_form(said, words, tmp_path):
    weights(tmp_path / "model.safetensors")
    for config in ({**HALF, **said}, {"pretrained_cfg": {**HALF, **said}}):
        write(tmp_path, architecture="resnet18", **config)
        with pytest.raises(CheckpointError, match=words):
            imported(tmp_path / "model.safetensors")


def test_what_an_option_of_timms_leaves_as_it_is_is_no_matter(tmp_path):
    weights(tmp_path / "model.safetensors")
    same = {
        "features_only": False, "exportable": True, "img_size": 224, "avg_down": False, "block_args": {},
        "aa_layer": "", "down_kernel_size": 1, "base_width": 64, "cardinality": 1, "stem_width": 64,
        "bn_eps": 1e-5, "no_jit": True, "layers": [1, 1, 1, 1],
    }  # fmt: skip
    write(tmp_path, architecture="resnet18", model_args=same, pretrained_cfg=HALF)
    assert imported(tmp_path / "model.safetensors")[0].normalize.mean == (0.5,) * 3
    others = {
        "features_only": True,
        "avg_down": True,
        "global_pool": "",
        "down_kernel_size": 3,
        "bn_eps": 1e-3,
    }
    for other in ({key: value} for key, value in others.items()):
        write(tmp_path, architecture="resnet18", model_args=other)
        with pytest.raises(CheckpointError, match=f"made with {next(iter(other))}="):
            imported(tmp_path / "model.safetensors")


def test_a_network_with_one_output_is_no_softmax(tmp_path):
    model = build("resnet18", classes=1, **{**variant_for("torchvision", "resnet18"), **SMALL})
    export_torch(model, tmp_path / "model.safetensors", "torchvision")
    with pytest.raises(CheckpointError, match="one output, for yes or no through a sigmoid, it seems"):
        imported(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    "said",
    [{"architecture": "vit_base"}, {"model_type": "convnext"}, {"model_type": "vit", "num_labels": 1}],
)
@pytest.mark.parametrize("name", ["model.safetensors", "w.safetensors"])
def test_a_config_of_no_network_known_here_is_left_aside_with_a_word(name, said, tmp_path):
    weights(tmp_path / name)
    write(tmp_path, **said, **HALF, pretrained_cfg=HALF, label_names=["a", "b", "c"])
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": 0.5, "image_std": 0.5}')
    trained, notes = imported(tmp_path / name)
    assert trained.normalize.mean[0] == 0.485 and trained.classes == ("0", "1", "2")
    assert "left aside: " in notes and repr(next(iter(said.values()))) in notes


@pytest.mark.parametrize("file", ["microsoft/resnet-50", "timm/resnet18.a1_in1k", "hf_hub:timm/resnet18"])
def test_a_name_of_a_hub_is_no_file_and_nothing_is_downloaded(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=f"{file}: no such file; if .* fetch its folder first, as min"):
        import_weights(file, "resnet18", "o.safetensors")
    (tmp_path / "runs").mkdir()
    for own in ("runs/gone", "none/gone.pth", "gone", "a/b/c"):
        with pytest.raises(CheckpointError, match="no such file$"):
            import_weights(own, "resnet18", "o.safetensors")


@pytest.mark.parametrize(
    ("name", "is_theirs"),
    [
        ("model.safetensors", True), ("pytorch_model.bin", True), ("model.fp16.safetensors", True),
        ("pytorch_model-00001-of-00002.bin", True), ("model.fp16-00001-of-00002.safetensors", True),
        ("model.safetensors.index.json", True), ("model.safetensors.index.fp16.json", True),
        ("model_final.safetensors", False), ("model_card.bin", False), ("modelnet.bin", False),
        ("model-1-of-2.safetensors", False), ("my_model.safetensors", False), ("model.pth", False),
    ],
)  # fmt: skip
def test_what_transformers_and_timm_call_their_files(name, is_theirs):
    assert (beside.CALLED.fullmatch(name) is not None) == is_theirs


@pytest.mark.parametrize("name", ["model.fp16.safetensors", "model-00001-of-00001.safetensors"])
def test_the_config_belongs_to_a_file_that_is_called_as_theirs_are(name, tmp_path):
    weights(tmp_path / name)
    write(tmp_path, architecture="resnet50", pretrained_cfg=HALF)
    with pytest.raises(MiniresError, match="architecture says 'resnet50'"):
        imported(tmp_path / name)


@pytest.mark.parametrize("name", ["model_final.safetensors", "my_model.safetensors", "model-2.safetensors"])
def test_and_not_to_one_that_is_called_alike(name, tmp_path):
    weights(tmp_path / name)
    write(tmp_path, architecture="resnet50", pretrained_cfg=HALF)
    trained, notes = imported(tmp_path / name)
    assert trained.normalize.mean[0] == 0.485 and "says 'resnet50', and not what this file is to be" in notes
    (tmp_path / "model_card.bin").write_bytes(b"not of this")
    write(tmp_path, architecture="resnet18", pretrained_cfg=HALF)
    assert imported(tmp_path / name)[0].normalize.mean[0] == 0.5


# ------------------------------------------------------------------------------------------- two that differ


@pytest.mark.parametrize(("mean", "fits"), [(0.501, True), (0.51, False)])
def test_means_that_differ_by_rounding_are_the_same(mean, fits, tmp_path):
    weights(tmp_path / "model.safetensors")
    write(tmp_path, architecture="resnet18", pretrained_cfg=HALF)
    told = {"image_mean": [mean] * 3, "image_std": [0.5] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(told))
    refused = pytest.raises(CheckpointError, match="mean 0.51, .* and .* mean 0.5")
    with contextlib.nullcontext() if fits else refused:
        imported(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("processor", "words"),
    [
        ({"image_mean": [0.1] * 3, "image_std": [0.5] * 3}, "mean 0.1, 0.1, 0.1 .* and .* mean 0.5"),
        ({"do_normalize": False}, "states mean 0, 0, 0 and deviation 1, 1, 1, and .* mean 0.5"),
        (
            {"size": {"shortest_edge": 96}},
            "preprocessor_config.json states pictures of 96x96, and .* 128x128",
        ),
    ],
)
@pytest.mark.parametrize("nested", [True, False])
def test_two_files_that_prepare_pictures_otherwise_are_refused(nested, processor, words, tmp_path):
    weights(tmp_path / "model.safetensors")
    pretrained = {**HALF, "input_size": [3, 128, 128]}
    write(tmp_path, architecture="resnet18", **({"pretrained_cfg": pretrained} if nested else pretrained))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    with pytest.raises(CheckpointError, match=f"(?s){words}.*; correct the wrong one, or move it"):
        imported(tmp_path / "model.safetensors")
    same = {"image_mean": 0.5, "image_std": 0.5, "size": 128}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(same))
    trained, _ = imported(tmp_path / "model.safetensors")
    assert trained.normalize.mean == (0.5,) * 3 and trained.size == (128, 128)


# ------------------------------------------------------------------------------------- no softmax at its end


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"problem_type": "multi_label_classification"}, "problem_type is 'multi_label_classification'"),
        ({"problem_type": "regression"}, "problem_type is 'regression'"),
        ({"problem_type": ["x"]}, r"problem_type is \['x'\]"),
        ({"id2label": {"0": "good"}}, "there is one label"),
    ],
)
def test_what_ends_in_no_softmax_is_refused_but_for_the_layers_below(said, words, tmp_path):
    of_transformers(tmp_path / "model.safetensors")
    write(tmp_path, model_type="resnet", **said)
    with pytest.raises(CheckpointError, match=f"config.json: {words}, of which transformers takes no softm"):
        imported(tmp_path / "model.safetensors", "resnet50")
    model = build("resnet50", classes=3, stride_on="3x3", **SMALL)
    with pytest.raises(CheckpointError, match=words):
        load_pretrained(model, tmp_path)
    assert load_pretrained(model, tmp_path, head=False).left_out == ("fc.weight", "fc.bias")
    write(tmp_path, model_type="resnet", problem_type="single_label_classification")
    imported(tmp_path / "model.safetensors", "resnet50")


# ----------------------------------------------------------------------------------- files of another name


def test_a_config_that_says_the_same_network_belongs_to_a_file_of_any_name(tmp_path):
    weights(tmp_path / "resnet18.safetensors")
    write(tmp_path, architecture="resnet18.a1_in1k", pretrained_cfg=HALF, label_names=["a", "b", "c"])
    trained, notes = imported(tmp_path / "resnet18.safetensors")
    assert trained.normalize.mean == (0.5,) * 3 and trained.classes == ("a", "b", "c")
    assert "pixels are scaled with mean 0.5" in notes and "left aside" not in notes


@pytest.mark.parametrize(
    ("config", "others", "words"),
    [
        ({"architecture": "resnet50", "pretrained_cfg": HALF}, (), "config.json, which says 'resnet50'"),
        ({"architecture": "resnet18", "pretrained_cfg": HALF}, ("model.safetensors",), "which belongs to m"),
        ({"model_type": "resnet", "depths": [2, 2, 2, 2]}, (), "says a ResNet of transformers with depths"),
        ("{", (), "config.json, which belongs to the weights beside it, cannot be read"),
        (None, ("preprocessor_config.json",), "preprocessor_config.json, as no config.json says"),
    ],
)  # fmt: skip
def test_what_may_belong_to_other_weights_is_left_aside_with_a_word(config, others, words, tmp_path):
    weights(tmp_path / "w.safetensors")
    if config is not None:
        text = config if isinstance(config, str) else json.dumps(config)
        (tmp_path / "config.json").write_text(text)
    for name in others:
        (tmp_path / name).write_text('{"image_mean": 0.1, "image_std": 0.1}')
    trained, notes = imported(tmp_path / "w.safetensors")
    assert trained.normalize.mean[0] == 0.485 and "left aside: " in notes and words in notes


def test_what_says_nothing_of_a_network_is_no_matter_of_weights(tmp_path):
    weights(tmp_path / "w.safetensors")
    write(tmp_path, lr=0.1, mean=[1, 2, 3])
    assert "config.json" not in imported(tmp_path / "w.safetensors")[1]


def test_a_config_of_transformers_belongs_to_a_file_of_as_many_blocks(tmp_path):
    of_transformers(tmp_path / "w.safetensors")
    for depths, stride_on in ([1, 1, 1, 1], "1x1"), ([3, 4, 6, 3], "3x3"):
        write(tmp_path, model_type="resnet", depths=depths, downsample_in_bottleneck=True)
        assert imported(tmp_path / "w.safetensors", "resnet50")[0].variant["stride_on"] == stride_on
    write(tmp_path, model_type="resnet", depths=[1, 1, 1, 1], downsample_in_bottleneck=True)
    with pytest.raises(CheckpointError, match="states stride_on='1x1', and the model has '3x3'"):
        load_pretrained(build("resnet50", classes=3, stride_on="3x3", **SMALL), tmp_path / "w.safetensors")


def test_a_config_that_is_too_long_is_refused_and_not_passed_over(tmp_path, monkeypatch):
    weights(tmp_path / "model.safetensors")
    write(tmp_path, architecture="resnet18", pretrained_cfg=HALF)
    monkeypatch.setattr(beside, "LONGEST", 20)
    with pytest.raises(CheckpointError, match="config.json, .*: it has .* bytes, and may have 20"):
        imported(tmp_path / "model.safetensors")


def test_two_networks_in_one_file_are_asked_about_in_the_words_of_the_command(tmp_path, monkeypatch, capsys):
    weights(tmp_path / "w.safetensors")
    from minires.weights import read

    state = read(tmp_path / "w.safetensors")
    both = {f"{part}.{name}": array for part in ("encoder_q", "encoder_k") for name, array in state.items()}
    save_file(both, tmp_path / "moco.safetensors")
    monkeypatch.chdir(tmp_path)
    assert main(["import-weights", "moco.safetensors", "--model", "resnet18"]) == 1
    said = capsys.readouterr().err
    assert "say which: --container encoder_" in said and "container=" not in said
    with pytest.raises(CheckpointError, match="say which: container='encoder_"):
        read("moco.safetensors")
    assert not os.path.exists("resnet18.safetensors")

"""Files of PyTorch's users: known by what is in them; the weights found wherever they are, or refused."""

import argparse
import io
import json
import math
import os
import shutil
import struct
import sys
import tarfile
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save_file
from weights.in_this_process import in_this_process

from minires import limits
from minires.errors import CheckpointError, ConfigError, MiniresError
from minires.weights import import_weights, read
from minires.weights.contents import kind_of
from minires.weights.torch.files import find

STATE = {  # of a small ResNet, as far as names tell
    "conv1.weight": np.ones((2, 3, 7, 7), np.float32),
    "layer1.0.conv1.weight": np.full((2, 2, 3, 3), 0.5, np.float32),
    "fc.weight": np.arange(6, dtype=np.float32).reshape(3, 2),
}


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.fixture
def direct(monkeypatch):
    monkeypatch.setattr(limits, "apart", in_this_process)


def prefixed(before, state=None, **more):
    return {f"{before}{name}": array for name, array in (state or STATE).items()} | more


def same(found, state=STATE):
    assert found.keys() == state.keys()
    for name, array in state.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], array, err_msg=name)


# ------------------------------------------------------------------------------------------- what it is


def zipped(*names):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in names:
            archive.writestr(name, b"abc")
    return content.getvalue()


def tarred():
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("weights.pth"))
    return content.getvalue()


STRANGERS = {
    "empty": (b"", "is empty: 0 bytes"),
    "git lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "a Git LFS.*git lfs pull"),
    "page": (b"\n <!DOCTYPE html><html><body>404</body></html>", "a web page"),
    "gguf": (b"GGUF\x03\x00\x00\x00" + bytes(40), "a GGUF file"),
    "onnx": (b"\x08\x08\x12\x07pytorch\x1a\x052.9.0:\xa4\x01", "a file of ONNX or TensorFlow"),
    "frozen graph": (b"\n\x1b\n\x05input\x12\x0bPlaceholder*\x05", "a file of TensorFlow or Caffe"),
    "tf lite": (b"\x1c\x00\x00\x00TFL3" + bytes(40), "a file of TensorFlow Lite"),
    "gzip": (b"\x1f\x8b\x08\x00" + bytes(40), "packed with gzip; unpack it"),
    "npy": (b"\x93NUMPY\x01\x00" + bytes(40), "one array of NumPy's"),
    "tar": (tarred(), "a tar archive"),
    "text": (b"conv1.weight 0.5 0.25\n", "text .'conv1.weight 0.5 0.25'"),
    "json": (b'{"layers": 50}', "JSON, which holds no weights"),
    "picture": (b"\xff\xd8\xff\xe0" + bytes(40), "a picture"),
    "noise": (bytes(range(200, 250)), "50 bytes of no kind known here"),
    "pickle": (b"\x80\x04\x95\x1a\x00\x00\x00\x00\x00\x00\x00}\x94.", "a pickle, and not one of torch"),
    "torchscript": (zipped("m/code/__torch__.py", "m/data.pkl", "m/constants.pkl"), "program of TorchScript"),
    "exported": (zipped("m/archive_format", "m/models/model.json", "m/version"), "a program of torch.export"),
    "zip": (zipped("holiday.jpg", "notes.txt"), "a zip of holiday.jpg, notes.txt; unpack it"),
    "empty zip": (zipped(), "an empty zip"),
    "half a zip": (zipped("m/data.pkl", "m/data/0")[:60], "is the download complete"),
}  # fmt: skip


@pytest.mark.parametrize("ending", ["pth", "safetensors", "h5"])
@pytest.mark.parametrize("kind", STRANGERS)
def test_what_holds_no_weights_is_called_by_its_name(kind, ending, tmp_path):
    content, words = STRANGERS[kind]
    path = tmp_path / f"model.{ending}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{path.name} .*{words}"):
        read(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes have names on POSIX systems")
def test_what_is_no_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    for name, words in {"pipe.pth": "a pipe", "none.pth": "no such file"}.items():
        with pytest.raises(CheckpointError, match=words):
            read(tmp_path / name)


@pytest.mark.parametrize(
    "name", ["weights", "weights.pth", "weights.h5", "WEIGHTS.SAFETENSORS", "w.txt", "7f3a"]
)
def test_the_ending_does_not_count(name, tmp_path):
    save_file(STATE, tmp_path / name)
    same(read(tmp_path / name))
    os.unlink(tmp_path / name)
    np.savez(tmp_path / "w.npz", **STATE)
    shutil.move(tmp_path / "w.npz", tmp_path / name)
    same(read(tmp_path / name))


@pytest.mark.parametrize("name", ["last.ckpt", "BEST.PTH", "none", "weights.safetensors"])
@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_saved_is_known_under_any_name(name, zipped, tmp_path, torch, direct):
    state = {name: torch.tensor(array) for name, array in STATE.items()}
    torch.save(state, tmp_path / name, _use_new_zipfile_serialization=zipped)
    assert kind_of(tmp_path / name) == "torch"
    same(read(tmp_path / name))


def test_our_own_model_is_not_imported_but_used(tmp_path):
    save_file(STATE, tmp_path / "model.safetensors", metadata={"minires": "{}"})
    with pytest.raises(CheckpointError, match="a model of minires itself, .* use it as it is"):
        read(tmp_path / "model.safetensors")


# ----------------------------------------------------------------------------------- where the weights are


@pytest.mark.parametrize(
    "before",
    [
        "", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "net.", "backbone.",
        "model._orig_mod.", "_orig_mod.model.", "module.model._orig_mod.backbone.", "_forward_module.model.",
    ],
)  # fmt: skip
def test_a_prefix_of_all_names_goes(before, tmp_path):
    save_file(prefixed(before), tmp_path / "w")
    same(read(tmp_path / "w"))


def test_wrapped_parts_inside_a_model_are_unwrapped(tmp_path):
    names = ["conv1._orig_mod.weight", "layer1._orig_mod.0.module.conv1.weight", "fc.weight"]
    save_file(dict(zip(names, STATE.values(), strict=True)), tmp_path / "w")
    same(read(tmp_path / "w"))
    averaged = {**prefixed("module."), "n_averaged": np.ones((), np.int64)}
    save_file(averaged, tmp_path / "w")  # of torch.optim.swa_utils
    same(read(tmp_path / "w"))
    save_file({"a.module.weight": STATE["fc.weight"], "a.weight": STATE["fc.weight"]}, tmp_path / "w")
    with pytest.raises(CheckpointError, match="two tensors with one name, a.weight"):
        read(tmp_path / "w")


def test_what_is_beside_the_network_is_left_aside_with_a_word(tmp_path):
    save_file(prefixed("model.", **{"criterion.weight": np.ones(3, np.float32)}), tmp_path / "w")
    found = find(tmp_path / "w")
    same(found.arrays)
    assert found.notes == (
        "beside the network under model. and not of it, left aside: criterion.weight",
    )  # fmt: skip


def test_of_a_model_and_its_average_the_model_is_taken_and_the_other_can_be_asked_for(tmp_path):
    twice = {name: 2 * array for name, array in STATE.items()}
    save_file(prefixed("ema_model.module.", twice) | prefixed("model."), tmp_path / "w")
    found = find(tmp_path / "w")
    same(found.arrays)
    assert found.notes == ("taken: model; the file also holds ema_model (--container ema_model)",)
    same(read(tmp_path / "w", container="ema_model"), twice)
    with pytest.raises(CheckpointError, match="nothing in it is called 'best'.*they begin with .*model"):
        read(tmp_path / "w", container="best")
    save_file(prefixed("left.", twice) | prefixed("right."), tmp_path / "w")
    with pytest.raises(CheckpointError, match="holds 2 state dicts, left, right; say which"):
        read(tmp_path / "w")
    same(read(tmp_path / "w", container="left"), twice)


CONTAINERS = [
    "state_dict", "model_state_dict", "model", "net", "network", "state_dict_ema", "model_ema", "ema",
    "params", "weights", "anything",
]  # fmt: skip


@pytest.mark.parametrize("container", CONTAINERS)
def test_weights_are_found_in_the_one_entry_that_holds_them(container, tmp_path, torch, direct):
    state = {f"module.{name}": torch.tensor(array) for name, array in STATE.items()}
    optimizer = {
        "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(3)}},
        "param_groups": [{"lr": 1}],
    }
    content = {"epoch": 3, container: state, "optimizer": optimizer, "best": 0.5}
    for saved in (content, {"checkpoint": content}, [state, optimizer]):
        torch.save(saved, tmp_path / "w")
        found = find(tmp_path / "w")
        same(found.arrays)
        assert not found.notes


@pytest.mark.parametrize(
    "ema", ["state_dict_ema", "model_ema", "ema", "ema_state_dict", "teacher", "model_swa"]
)
@pytest.mark.parametrize("model", ["state_dict", "model", "net", "mine"])
def test_of_two_containers_the_model_is_taken(model, ema, tmp_path, torch, direct):
    state = {name: torch.tensor(array) for name, array in STATE.items()}
    twice = {name: 2 * tensor for name, tensor in state.items()}
    torch.save(
        {ema: {"module": twice, "decay": 0.99} if ema == "ema" else twice, model: state}, tmp_path / "w"
    )
    found = find(tmp_path / "w")
    same(found.arrays)
    assert f"taken: {model}; the file also holds {ema}" in found.notes[0]
    same(read(tmp_path / "w", container=ema), {name: 2 * array for name, array in STATE.items()})
    with pytest.raises(CheckpointError, match="'best'"):
        read(tmp_path / "w", container="best")


def test_any_part_of_the_place_chooses_if_it_is_of_one_place(tmp_path, torch, direct):
    state = {name: torch.tensor(array) for name, array in STATE.items()}
    twice = {name: 2 * tensor for name, tensor in state.items()}
    torch.save({"state_dict": {"a": {"net": state}, "b": {"net": twice}}}, tmp_path / "w")
    for name in ("b", "b.net", "state_dict.b", "state_dict.b.net"):
        same(read(tmp_path / "w", container=name), {name: 2 * array for name, array in STATE.items()})
    with pytest.raises(CheckpointError, match="'net' may be state_dict.a.net or state_dict.b.net; which one"):
        read(tmp_path / "w", container="net")


def test_a_checkpoint_of_lightning(tmp_path, torch, direct):
    state = {f"model.{name}": torch.tensor(array) for name, array in STATE.items()}
    torch.save(
        {
            "epoch": 4, "global_step": 500, "pytorch-lightning_version": "2.5.0", "state_dict": state,
            "loops": {"fit_loop": {"state_dict": {}}}, "callbacks": {"Best": {"best": torch.ones(())}},
            "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": []}],
            "hyper_parameters": {"model_name": "resnet18", "lr": 1e-3, "class_names": ["a", "b", "c"]},
        },
        tmp_path / "last.ckpt",
    )  # fmt: skip
    found = find(tmp_path / "last.ckpt")
    same(found.arrays)
    assert found.said["classes"] == ["a", "b", "c"]
    assert found.said["classes_from"] == "hyper_parameters.class_names"
    assert found.said["named"] == [["hyper_parameters.model_name", "resnet18"]]


def test_options_of_a_program_may_stand_beside_the_weights(tmp_path, torch, direct):
    options = argparse.Namespace(model="resnetblur50", lr=0.1)
    state = {name: torch.tensor(array) for name, array in STATE.items()}
    torch.save({"state_dict": state, "args": options}, tmp_path / "w")
    assert find(tmp_path / "w").said["named"] == [["args.model", "resnetblur50"]]


def test_what_holds_no_state_dict_says_what_it_holds(tmp_path, torch, direct):
    for content, words in {
        "tensor": (torch.ones(3), "holds a Tensor, not a state dict"),
        "none": ({"epoch": 3, "best": 0.5}, r"holds no state dict, .* it has epoch \(int\), best \(float\)"),
        "two": (
            {"left": {"a.weight": torch.ones(3)}, "right": {"a.weight": torch.ones(3)}},
            "holds 2 state dicts, left, right; say which: container='left'",
        ),
        "mixed": ({"a.weight": torch.ones(3), "b.c": [1.0]}, r"1 of its 2 entries are none: b.c \(list"),
    }.values():  # fmt: skip
        torch.save(content, tmp_path / "w")
        with pytest.raises(CheckpointError, match=words):
            read(tmp_path / "w")
    inside = {}
    inside["self"] = inside
    torch.save(inside, tmp_path / "w")
    with pytest.raises(CheckpointError, match="holds no state dict"):
        read(tmp_path / "w")


# ------------------------------------------------------------------------------------------ what is refused


def test_objects_are_refused_with_their_names(tmp_path, torch, direct):
    torch.save(torch.nn.Sequential(torch.nn.Linear(2, 2)), tmp_path / "w")
    with pytest.raises(CheckpointError, match="torch.nn.modules.container.Sequential, which is no tensor"):
        read(tmp_path / "w")
    torch.save({"fc.weight": np.ones(3)}, tmp_path / "w")
    with pytest.raises(CheckpointError, match="NumPy's .* or arrays with numpy.savez"):
        read(tmp_path / "w")


def odd_tensors(torch):
    return {
        "int8": torch.ones(3, dtype=torch.int8), "bool": torch.ones(3, dtype=torch.bool),
        "complex64": torch.ones(3, dtype=torch.complex64), "int64": torch.ones(3, dtype=torch.int64),
        "float8_e4m3fn": torch.ones(3).to(torch.float8_e4m3fn), "sparse": torch.eye(3).to_sparse(),
        "sparse_csr": torch.eye(3).to_sparse_csr(), "meta": torch.ones(3, device="meta"),
        "quantised": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    }  # fmt: skip


@pytest.mark.parametrize(
    "kind",
    ["int8", "bool", "complex64", "int64", "float8_e4m3fn", "sparse", "sparse_csr", "meta", "quantised"],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_no_floating_point_numbers_are_refused_by_their_names(kind, tmp_path, torch, direct):
    odd = odd_tensors(torch)[kind]
    torch.save({"conv1.weight": torch.ones(3), "fc.weight": odd}, tmp_path / "w")
    with pytest.raises(CheckpointError, match=f"fc.weight is .*{kind}.* floating-point"):
        read(tmp_path / "w")


@pytest.mark.parametrize("dtype", ["int8", "bool", "int64", "uint16"])
def test_the_other_readers_have_the_same_rule(dtype, tmp_path):
    state = {**STATE, "fc.weight": np.ones(3, dtype), "bn.num_batches_tracked": np.ones((), np.int64)}
    save_file(state, tmp_path / "w")
    with pytest.raises(CheckpointError, match="fc.weight is .* floating-point"):
        read(tmp_path / "w")
    np.savez(tmp_path / "w.npz", **state)
    with pytest.raises(CheckpointError, match=f"fc.weight is {dtype}, .* floating-point"):
        read(tmp_path / "w.npz")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_floating_point_numbers_of_any_width_become_float32(dtype, tmp_path, torch, direct):
    from safetensors.torch import save_file as save_torch

    state = {n: torch.tensor(a).to(getattr(torch, dtype)) for n, a in STATE.items()}
    state["fc.weight"] = (state["fc.weight"] / 3).t().contiguous().t()  # a view, in another order
    expected = {name: tensor.float().numpy() for name, tensor in state.items()}
    counted = {**state, "bn1.num_batches_tracked": torch.tensor(3)}
    torch.save(counted, tmp_path / "w")
    same(read(tmp_path / "w"), expected)
    save_torch({name: tensor.contiguous() for name, tensor in counted.items()}, tmp_path / "w")
    found = read(tmp_path / "w")
    same({name: found[name] for name in expected}, expected)


def test_tensors_that_share_numbers_are_read(tmp_path, torch, direct):
    shared = torch.ones(3, 3)
    torch.save(
        {"conv1.weight": shared, "fc.weight": shared[0], "layer1.0.bn1.weight": shared.t()}, tmp_path / "w"
    )
    assert read(tmp_path / "w")["fc.weight"].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("conv1.weight", math.nan, r"conv1.weight: 1 of the 6 numbers are NaN or infinite .* at \(1, 2\)"),
        ("conv1.weight", -math.inf, "conv1.weight: 1 of the 6 numbers"),
        ("bn1.running_var", -0.5, "bn1.running_var is a variance, and -0.5 is in it"),
        ("bn1.running_var", math.nan, "bn1.running_var: 1 of the 6"),
    ],
)
def test_numbers_that_no_network_has_are_refused_with_the_tensor(name, value, words, tmp_path):
    array = np.ones((2, 3), np.float32)
    array[1, 2] = value
    state = {"fc.weight": np.ones(3, np.float32), name: array}
    save_file(state, tmp_path / "w")
    with pytest.raises(CheckpointError, match=words):
        read(tmp_path / "w")
    np.savez(tmp_path / "w.npz", **state)
    with pytest.raises(CheckpointError, match=words):
        read(tmp_path / "w.npz")
    save_file({**state, name: np.full((2, 3), np.nan, np.float32)}, tmp_path / "w")
    with pytest.raises(CheckpointError, match=f"{name}: all numbers are NaN"):
        read(tmp_path / "w")


def test_a_number_too_large_for_float32_and_a_tensor_without_numbers_are_refused(tmp_path):
    save_file({"fc.weight": np.array([1e300])}, tmp_path / "w")
    with pytest.raises(CheckpointError, match="infinite in float32"), np.errstate(over="ignore"):
        read(tmp_path / "w")
    save_file({"fc.weight": np.ones((0, 3), np.float32)}, tmp_path / "w")
    with pytest.raises(CheckpointError, match=r"fc.weight \(0, 3\) has no numbers"):
        read(tmp_path / "w")


# ---------------------------------------------------------------------------------------- damage and limits


def large(torch, path):
    torch.save({name: torch.tensor(array).repeat_interleave(50, 0) for name, array in STATE.items()}, path)
    return path.read_bytes()


def test_one_changed_byte_is_found_out_anywhere_in_the_numbers(tmp_path, torch, direct):
    whole = large(torch, tmp_path / "w")
    with zipfile.ZipFile(tmp_path / "w") as archive:
        places = [one.header_offset + 200 for one in archive.infolist() if "/data/" in one.filename]
    assert len(places) == 3
    for place in places:
        (tmp_path / "w").write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(CheckpointError, match="w is damaged: Bad CRC-32 for file"):
            read(tmp_path / "w")
    (tmp_path / "w").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="w is damaged"):
        read(tmp_path / "w")


def test_what_unfolds_to_more_than_it_may_is_not_read(tmp_path, torch, direct, monkeypatch):
    monkeypatch.setattr(limits, "UNFOLDED", 100_000)
    torch.save({"fc.weight": torch.zeros(1_000_000)}, tmp_path / "plain")
    assert read(tmp_path / "plain")["fc.weight"].size == 1_000_000
    with zipfile.ZipFile(tmp_path / "plain") as old, zipfile.ZipFile(tmp_path / "packed", "w", 8) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(CheckpointError, match=r"packed unfolds to 4,\d{3},\d{3} bytes; a file of its"):
        read(tmp_path / "packed")
    torch.save({"fc.weight": torch.zeros(1).expand(10_000, 10_000)}, tmp_path / "expanded")
    with pytest.raises(CheckpointError, match=r"its tensors unfold to more .* fc.weight \(10000, 10000\)"):
        read(tmp_path / "expanded")
    np.savez_compressed(tmp_path / "w.npz", **{"fc.weight": np.zeros(1_000_000)})
    with pytest.raises(CheckpointError, match="w.npz unfolds to 8,000,"):
        read(tmp_path / "w.npz")


def test_an_array_whose_head_promises_more_than_there_is(tmp_path):
    np.savez(tmp_path / "w.npz", **STATE)
    with zipfile.ZipFile(tmp_path / "w.npz") as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    content["fc.weight.npy"] = content["fc.weight.npy"].replace(b"(3, 2)", b"(3, 9)")
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
        for name, one in content.items():
            archive.writestr(name, one)
    with pytest.raises(CheckpointError, match="no plain array: an array .* in 152 bytes"):
        read(tmp_path / "w.npz")
    np.savez(tmp_path / "w.npz", **{"fc.weight": np.array([{}], dtype=object)}, allow_pickle=True)
    with pytest.raises(CheckpointError, match="no plain array"):
        read(tmp_path / "w.npz")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_zip_that_holds_a_name_twice_is_refused(tmp_path, torch, direct):
    large(torch, tmp_path / "w")
    with zipfile.ZipFile(tmp_path / "w", "a") as archive:
        archive.writestr(archive.namelist()[0], b"other")
    with pytest.raises(CheckpointError, match="holds w/data.pkl 2 times"):
        read(tmp_path / "w")


def test_a_damaged_safetensors_file(tmp_path):
    save_file(STATE, tmp_path / "w")
    whole = (tmp_path / "w").read_bytes()
    (tmp_path / "w").write_bytes(whole[:-8])
    with pytest.raises(CheckpointError, match="damaged or not a safetensors file"):
        read(tmp_path / "w")
    (tmp_path / "w").write_bytes(struct.pack("<Q", 1 << 60) + whole[8:])
    with pytest.raises(CheckpointError, match="no kind known here"):
        read(tmp_path / "w")


@pytest.mark.parametrize("kind", ["zip", "pickle", "safetensors", "npz", "index"])
@pytest.mark.filterwarnings("ignore")
def test_whatever_is_wrong_in_a_file_is_said_in_words(kind, tmp_path, torch, direct):
    state = {name: torch.tensor(array) for name, array in STATE.items()}
    path = tmp_path / "w"
    if kind in ("zip", "pickle"):
        torch.save({"state_dict": state}, path, _use_new_zipfile_serialization=kind == "zip")
    elif kind == "npz":
        np.savez(tmp_path / "w.npz", **STATE)
        path = tmp_path / "w.npz"
    elif kind == "safetensors":
        save_file(STATE, path)
    else:
        path.write_text(json.dumps({"weight_map": {"fc.weight": "model-00001-of-00002.safetensors"}}))
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(100):
        content = bytearray(whole)
        for place in rng.integers(0, rng.choice([100, len(whole)]), rng.choice([1, 3])):
            content[min(place, len(whole) - 1)] = rng.integers(256)
        path.write_bytes(content[: rng.integers(len(whole)) if rng.random() < 0.3 else len(whole)])
        try:
            found = read(path)
        except MiniresError as error:
            assert path.name in str(error)
        else:
            for name in found.keys() & STATE.keys():
                assert kind in ("pickle", "safetensors") or (found[name] == STATE[name]).all()


def test_pickles_are_opened_in_a_process_of_its_own(tmp_path, torch):
    import subprocess

    state = {f"module.{name}": torch.tensor(array) for name, array in STATE.items()}
    torch.save({"state_dict": state, "arch": "resnet18"}, tmp_path / "w")
    code = (
        "import sys; from minires.weights.torch.files import find; "
        f"found = find({str(tmp_path / 'w')!r}); "
        "print(sorted(found.arrays), found.said['named'], 'torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == f"{sorted(STATE)} [['arch', 'resnet18']] False", run.stdout + run.stderr


def test_without_pytorch_a_pickle_is_refused_with_the_way_out(tmp_path, torch, monkeypatch):
    torch.save({"fc.weight": torch.ones(3)}, tmp_path / "w")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ConfigError, match="needs PyTorch: pip install torch; a .safetensors file"):
        read(tmp_path / "w")


# ----------------------------------------------------------------------------------------- several files


def sharded(folder, stem="model", ending=".safetensors"):
    names, count = list(STATE), len(STATE)
    files = {name: f"{stem}-{n:05}-of-{count:05}{ending}" for n, name in enumerate(names, 1)}
    for name, file in files.items():
        save_file({name: STATE[name]}, folder / file)
    (folder / f"{stem}{ending}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return files


@pytest.mark.parametrize(("stem", "ending"), [("model", ".safetensors"), ("pytorch_model", ".bin")])
def test_the_parts_of_a_model_are_put_together(stem, ending, tmp_path):
    files = sharded(tmp_path, stem, ending)
    for path in (tmp_path, tmp_path / f"{stem}{ending}.index.json", tmp_path / files["fc.weight"]):
        found = find(path)
        assert found.arrays.keys() == STATE.keys() and "read from 3 files" in found.notes[0]
    (tmp_path / f"{stem}{ending}.index.json").unlink()
    assert read(tmp_path / files["fc.weight"]).keys() == STATE.keys()  # their names tell how many there are
    (tmp_path / files["conv1.weight"]).unlink()
    with pytest.raises(CheckpointError, match=f"of which 1 are not in its folder: {stem}-00001-of"):
        read(tmp_path / files["fc.weight"])


@pytest.mark.parametrize("source", ["folder", "index", "part"])
def test_no_part_of_a_model_is_written_over(source, tmp_path):
    files = sharded(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    path = {"folder": tmp_path, "index": index, "part": tmp_path / files["fc.weight"]}[source]
    (tmp_path / "link.safetensors").symlink_to(tmp_path / files["conv1.weight"])
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for name in (*files.values(), "link.safetensors"):
        with pytest.raises(ConfigError, match=f"{name} is the file that is imported, or a part of it: out"):
            import_weights(path, "resnet18", tmp_path / name)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("other", ["model.safetensors", "pytorch_model.bin"])
def test_of_a_whole_file_and_parts_the_same_is_taken_as_by_transformers(other, tmp_path):
    sharded(tmp_path)
    save_file({name: 2 * array for name, array in STATE.items()}, tmp_path / other)
    found, whole = find(tmp_path), other == "model.safetensors"
    taken, left = (other, "model.safetensors.index.json")[:: 1 if whole else -1]
    same(found.arrays, {name: (2 if whole else 1) * array for name, array in STATE.items()})
    assert found.notes[0] == f"taken: {taken}; left aside in its folder: {left}"
    assert not any("left aside" in note for note in find(tmp_path / taken).notes)  # it was asked for


def test_only_files_of_their_own_model_count_beside_parts(tmp_path):
    files = sharded(tmp_path)
    (tmp_path / "dir.index.json").mkdir()
    (tmp_path / "broken.index.json").write_bytes(b"\xff{")
    (tmp_path / "empty.index.json").touch()
    (tmp_path / "odd.index.json").write_text('{"weight_map": {"a": 3}}')
    part = tmp_path / files["fc.weight"]
    same(read(part))
    own = tmp_path / "model.safetensors.index.json"
    own.rename(tmp_path / "a.index.json")  # it names the parts, whatever its own name
    assert "read from 3 files" in find(part).notes[0]
    own.write_text("{")
    with pytest.raises(CheckpointError, match="model.safetensors.index.json is JSON, which holds no weights"):
        read(part)


def test_an_index_that_does_not_fit_its_parts(tmp_path):
    files = sharded(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {**files, "bn1.weight": files["fc.weight"]}}))
    with pytest.raises(CheckpointError, match="names 1 tensors that are in none .*, such as bn1.weight"):
        read(tmp_path)
    for place in ("../model.safetensors", "/etc/passwd", "a\\b", "..", 3):
        index.write_text(json.dumps({"weight_map": {**files, "bn1.weight": place}}))
        with pytest.raises(CheckpointError, match="bn1.weight is said to be in .* no name of a file"):
            read(index)


def test_folders(tmp_path):
    with pytest.raises(CheckpointError, match="a folder with no file of weights known here: it is empty"):
        read(tmp_path)
    save_file(STATE, tmp_path / "best.safetensors")
    (tmp_path / "old.pth").mkdir()  # no file
    same(read(tmp_path))
    save_file(STATE, tmp_path / "last.safetensors")
    with pytest.raises(CheckpointError, match="several files that may be weights: best.safetensors, last"):
        read(tmp_path)
    (tmp_path / "saved_model.pb").write_bytes(b"abc")
    with pytest.raises(CheckpointError, match="a SavedModel of TensorFlow"):
        read(tmp_path)
    hub = tmp_path / "models--someone--resnet-18"
    for revision in ("0a1b", "2c3d"):
        (hub / "snapshots" / revision).mkdir(parents=True)
        save_file(STATE, hub / "snapshots" / revision / "model.safetensors")
    with pytest.raises(CheckpointError, match="holds 2 versions of a model"):
        read(hub)
    (hub / "refs").mkdir()
    (hub / "refs" / "main").write_text("2c3d\n")
    assert find(hub).path.parent.name == "2c3d"
    (hub / "refs" / "main").write_bytes(b"\xff\xfe\x002c3d")
    with pytest.raises(CheckpointError, match="holds 2 versions of a model"):
        read(hub)
    shutil.rmtree(hub / "snapshots" / "0a1b")
    assert find(hub).path.parent.name == "2c3d"

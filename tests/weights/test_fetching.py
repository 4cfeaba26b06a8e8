"""Known files that are fetched or brought: whole and right, or nothing at all. The server is local."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import socket
from dataclasses import replace

import numpy as np
import pytest
from command_line import call
from local_server import serving

from minires import weights
from minires.data import Normalize
from minires.errors import CheckpointError, ConfigError, DataError, MiniresError
from minires.models import build
from minires.train import Trained, load_model, save_model
from minires.weights import fetching
from minires.weights.torch.export import export_torch

NAME = "resnet20_cifar-akamaster"
CLASSES = tuple("abcdefghij")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A file with akamaster's names, and the model whose weights it has."""
    model = build("resnet20_cifar", seed=3, pad="both")
    trained = Trained(
        model, "resnet20_cifar", {"pad": "both"}, CLASSES, Normalize.imagenet(), (32, 32), "cifar10"
    )
    path = tmp_path_factory.mktemp("theirs") / "resnet20-0.safetensors"
    export_torch(trained, path, "akamaster")
    return path, model


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home" / "minires" / "weights"


@pytest.fixture
def serve():
    with serving() as start:
        yield start


@pytest.fixture
def known(theirs, monkeypatch):
    """Makes the file above the known one, at an address."""

    def at(url, **changes):
        content = theirs[0].read_bytes()
        one = replace(
            weights.KNOWN[NAME], file=theirs[0].name, sha256=hashlib.sha256(content).hexdigest(), url=url,
            mib=len(content) / 2**20, **changes,
        )  # fmt: skip
        monkeypatch.setitem(weights.KNOWN, NAME, one)
        return one

    return at


@pytest.mark.parametrize("length", [None, "unknown"])
@pytest.mark.parametrize("digits", [8, 64])
def test_a_file_is_fetched_checked_and_made_a_model_of_ours(cache, theirs, serve, known, length, digits):
    path, model = theirs
    known(serve(path.read_bytes(), length=length))
    weights.KNOWN[NAME] = replace(weights.KNOWN[NAME], sha256=weights.KNOWN[NAME].sha256[:digits])
    taken = weights.fetch(NAME)
    assert taken.path == cache / f"{NAME}.safetensors" and taken.report.tensors == 97
    assert taken.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert list(cache.iterdir()) == [taken.path]
    trained = load_model(weights.path_of(NAME))
    assert (trained.name, trained.variant, trained.normalize) == (
        "resnet20_cifar", {"pad": "both"}, Normalize.imagenet()
    )  # fmt: skip
    for name, array in model.state_dict().items():
        assert np.array_equal(trained.model.state_dict()[name], array)


def test_a_model_that_is_here_is_not_fetched_again(cache, theirs, serve, known, tmp_path):
    known(serve(theirs[0].read_bytes()))
    first = weights.fetch(NAME)
    known("http://127.0.0.1:9/never-asked")
    assert weights.fetch(NAME) == fetching.Taken(first.path)
    copy = weights.fetch(NAME, tmp_path / "copy.safetensors")
    assert copy.path.read_bytes() == first.path.read_bytes() and copy.report is None


def test_a_model_may_be_written_elsewhere_with_names_of_its_classes(cache, theirs, serve, known, tmp_path):
    known(serve(theirs[0].read_bytes()))
    taken = weights.fetch(NAME, tmp_path / "mine.safetensors", classes=CLASSES)
    assert load_model(taken.path).classes == CLASSES
    assert list(cache.iterdir()) == []  # what was downloaded is a model now
    with pytest.raises(ConfigError, match="mine.safetensors is there already"):
        weights.fetch(NAME, tmp_path / "mine.safetensors")


def test_what_is_not_the_known_file_leaves_nothing(cache, theirs, serve, known):
    content = theirs[0].read_bytes()
    changed = bytearray(content)
    changed[-1] ^= 1  # one bit of the last number
    for wrong, length, said in (
        (bytes(changed), None, r"archive.zip is not resnet20-0.safetensors, or not all of it: its SHA-256"),
        (content[:-1], None, "is not resnet20-0.safetensors, or not all of it"),
        (content, len(content) + 100, f"connection ended after {len(content):,} of"),
        (content + bytes(2**21), None, r"over [\d,]+ bytes; this is not resnet20-0.safetensors"),
        (b"", None, "or not all of it"),
    ):
        known(serve(wrong, length=length))
        with pytest.raises((DataError, CheckpointError), match=said):
            weights.fetch(NAME)
        assert list(cache.iterdir()) == []
    known(serve(status=404))
    with pytest.raises(DataError, match="the server answered 404 Not Found"):
        weights.fetch(NAME)
    with socket.socket() as free:  # a port on which nobody listens
        free.bind(("127.0.0.1", 0))
        known(f"http://127.0.0.1:{free.getsockname()[1]}/a.zip")
    with pytest.raises(DataError, match=rf"no network: cannot reach .*`minires weights {NAME} --verify resn"):
        weights.fetch(NAME)
    known("file:///etc/hosts")
    with pytest.raises(ConfigError, match="only https addresses, got file:///etc/hosts"):
        weights.fetch(NAME)
    assert list(cache.iterdir()) == []


def test_a_full_disk_is_named_and_nothing_is_left(cache, theirs, serve, known, monkeypatch):
    known(serve(theirs[0].read_bytes()))

    def full(url, write, **options):
        write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fetching.download, "fetch", full)
    with pytest.raises(MiniresError, match="resnet20-0.safetensors: No space left on device; nothing was"):
        weights.fetch(NAME)
    assert list(cache.iterdir()) == []


def test_an_import_that_fails_costs_no_second_download(cache, theirs, serve, known):
    known(serve(theirs[0].read_bytes()))
    with pytest.raises(ConfigError, match="3 classes were given"):
        weights.fetch(NAME, classes=("a", "b", "c"))
    assert [path.name for path in cache.iterdir()] == ["resnet20-0.safetensors"]
    known("http://127.0.0.1:9/never-asked")
    assert weights.fetch(NAME).report.tensors == 97
    assert [path.name for path in cache.iterdir()] == [f"{NAME}.safetensors"]


def test_what_is_left_of_a_damaged_download_is_fetched_again(cache, theirs, serve, known):
    known(serve(theirs[0].read_bytes()))
    cache.mkdir(parents=True)
    (cache / "resnet20-0.safetensors").write_bytes(b"damaged")
    assert weights.fetch(NAME).report.tensors == 97


def test_a_missing_pytorch_is_said_before_anything_is_fetched(cache, known, monkeypatch):
    known("http://127.0.0.1:9/never-asked")
    weights.KNOWN[NAME] = replace(weights.KNOWN[NAME], file="resnet20-12fca82f.th")
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else there(name))
    with pytest.raises(ConfigError, match="reading it needs PyTorch: pip install torch; nothing was fetched"):
        weights.fetch(NAME)
    assert not cache.exists()


def test_a_file_that_was_brought_is_checked_whatever_its_name_and_stays(cache, theirs, known, tmp_path):
    known("http://127.0.0.1:9/never-asked")
    brought = tmp_path / "renamed.bin"
    shutil.copy(theirs[0], brought)
    taken = weights.take(NAME, brought)
    assert brought.is_file() and load_model(taken.path).name == "resnet20_cifar"
    brought.write_bytes(theirs[0].read_bytes() + b"x")
    for wrong in (brought, tmp_path / "nowhere.bin", tmp_path):
        with pytest.raises(CheckpointError, match=f"{wrong.name}(:| is)"):
            weights.check(NAME, wrong)
    with pytest.raises(ConfigError, match="unknown weight file 'resnet20'"):
        weights.check("resnet20", brought)


def test_a_file_of_the_package_is_always_here_and_not_fetched(cache, theirs, monkeypatch, tmp_path):
    monkeypatch.setattr("minires.train.starters.__file__", str(tmp_path / "starters.py"))
    trained = Trained(
        theirs[1], "resnet20_cifar", {"pad": "both"}, CLASSES, Normalize.none(), (32, 32), "drawn"
    )
    save_model(tmp_path / "starter.safetensors", trained)
    one = replace(
        weights.KNOWN[NAME], file="starter.safetensors", url="", source="", mib=None, trained_on="drawn",
        sha256=hashlib.sha256((tmp_path / "starter.safetensors").read_bytes()).hexdigest(),
    )  # fmt: skip
    monkeypatch.setitem(weights.KNOWN, "small-one", one)
    assert load_model(weights.path_of("small-one")).classes == CLASSES and one.normalize is None
    for use in (weights.fetch, lambda name: weights.take(name, theirs[0])):
        with pytest.raises(ConfigError, match="small-one is part of this package"):
            use("small-one")


# ------------------------------------------------------------------------------------------ the command


def test_the_command_lists_shows_fetches_and_says_what_next(cache, theirs, serve, known, capsys):
    status, out, _ = call(capsys, "weights")
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line}
    assert status == 0 and rows.keys() >= weights.KNOWN.keys()
    assert rows["resnet50-torchvision-v2"][1:] == ["resnet50", "ImageNet-1K", "80.9", "BSD-3-Clause", "102.5"]
    assert all(name in call(capsys, "weights", "vgg")[1] for name in weights.KNOWN if "vgg" in name)
    assert "resnet50-torchvision-v2" not in call(capsys, "weights", "vgg")[1]
    shown = call(capsys, "weights", "resnet50-torchvision-v2")[1]
    for word in ("80.858%", "torchvision 0.28", "BSD-3-Clause", "resnet50-11ad3fa6.pth", "11ad3fa6... (the f",
                 "(0.485, 0.456, 0.406)", "--fetch"):  # fmt: skip
        assert word in shown
    known(serve(theirs[0].read_bytes()))
    status, out, _ = call(capsys, "weights", NAME, "--fetch")
    assert status == 0 and f"minires train --start-from {NAME} --data PATH" in out and "all 64 digits" in out
    assert call(capsys, "weights", NAME)[1].count(str(cache)) >= 2
    (row,) = [line for line in call(capsys, "weights")[1].splitlines() if line.startswith(NAME)]
    assert row.endswith("  yes")


def test_the_command_as_json(cache, theirs, serve, known, capsys):
    listed = json.loads(call(capsys, "weights", "--json")[1])["weights"]
    assert [one["name"] for one in listed] == list(weights.KNOWN)
    assert all(one["here"] is weights.KNOWN[one["name"]].packaged for one in listed)
    one = known(serve(theirs[0].read_bytes()))
    got = json.loads(call(capsys, "weights", NAME, "--fetch", "--out", "m.safetensors", "--json")[1])
    assert (got["digest"], got["out"], got["tensors"]) == (one.sha256, "m.safetensors", 97)
    assert got["normalize"]["mean"] == [0.485, 0.456, 0.406] and got["whole_hash"]
    got = json.loads(call(capsys, "weights", NAME, "--json")[1])
    assert got["here"] is False and got["path"] == str(cache / f"{NAME}.safetensors")


def test_the_command_checks_what_was_brought_and_refuses_in_words(cache, theirs, known, capsys, tmp_path):
    known("http://127.0.0.1:9/never-asked")
    (tmp_path / "other.bin").write_bytes(b"other")
    for status, said, arguments in (
        (1, "other.bin is not resnet20-0.safetensors", (NAME, "--verify", "other.bin")),
        (1, "nothing.bin: no such file", (NAME, "--verify", "nothing.bin")),
        (2, "unknown weight file 'resnet5'; the nearest", ("resnet5", "--fetch")),
        (2, "unknown weight file 'xyz'; ", ("xyz",)),
        (2, "which file? minires weights NAME --fetch", ("--fetch",)),
        (2, "--out goes with --fetch or --verify FILE", (NAME, "--out", "m.safetensors")),
        (2, "other.bin is there already; choose another --out", (NAME, "--fetch", "--out", "other.bin")),
        (2, "a model of minires is written as .safetensors",
         (NAME, "--verify", theirs[0], "--out", "m.bin")),
    ):  # fmt: skip
        got, out, err = call(capsys, "weights", *arguments)
        assert (got, out) == (status, "") and said in err and len(err.splitlines()) == 1
    status, out, _ = call(capsys, "weights", NAME, "--verify", theirs[0], "--out", "m.safetensors")
    assert status == 0 and "minires train --start-from m.safetensors" in out
    assert load_model("m.safetensors").name == "resnet20_cifar"


def test_a_name_may_stand_wherever_a_trained_model_may(cache, theirs, known, capsys, tmp_path):
    known("http://127.0.0.1:9/never-asked")
    for command in (("predict", NAME, "x.png"), ("train", "--start-from", NAME), ("evaluate", NAME),
                    ("export", NAME, "--onnx", "x.onnx"), ("trace", NAME), ("play", NAME)):  # fmt: skip
        status, out, err = call(capsys, *command)
        assert (status, out) == (2, "") and f"{NAME} is known, and not here yet: `minires weights" in err
    weights.take(NAME, theirs[0])
    status, out, err = call(capsys, "export", NAME, "--torch", "again.safetensors", "--names", "akamaster")
    assert status == 0 and (tmp_path / "again.safetensors").read_bytes() == theirs[0].read_bytes()
    status, out, _ = call(
        capsys, "train", "--start-from", NAME, "--data", "hands", "--model", "resnet18", "--epochs", "1"
    )
    assert status == 2

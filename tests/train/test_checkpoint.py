"""Checkpoint files: what goes in comes out, every kind of damage is found, failed writes lose nothing."""

from __future__ import annotations

import errno
import json
import os

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from minires.errors import CheckpointError, MiniresError
from minires.train import checkpoint
from minires.train.checkpoint import Checkpoints

ARRAYS = {
    "weight": np.arange(600, dtype=np.float32).reshape(20, 30),
    "steps": np.array([3, 2**40], np.int64),
    "lr": np.array(0.1, np.float64),
    "transposed": np.arange(6.0).reshape(2, 3).T,
}
INFO = {"kind": "checkpoint", "loss": 0.1 + 0.2, "state": {"big": 2**127 + 1, "none": None}}


def save(folder, *steps):
    for step in steps:
        groups = {"model": ARRAYS, "optimizer": {"a/b": np.full(3, step)}}
        Checkpoints(folder).save(step, groups, {"step": step})


def latest(folder):
    """The path, arrays and info of the checkpoint that is used."""
    taken = []
    if Checkpoints(folder).latest(lambda *found: taken.append(found)) is None:
        return None
    return taken[-1]


def names(folder):
    return sorted(os.listdir(folder))


def test_round_trip_is_exact_and_readable_by_others(tmp_path):
    checkpoint.write(tmp_path / "x.safetensors", ARRAYS, INFO)
    arrays, info = checkpoint.read(tmp_path / "x.safetensors")
    assert arrays.keys() == ARRAYS.keys()
    for name, array in arrays.items():
        assert array.dtype == ARRAYS[name].dtype and array.shape == ARRAYS[name].shape
        assert np.array_equal(array, ARRAYS[name])
    assert {key: info[key] for key in INFO} == INFO
    assert np.array_equal(load_file(tmp_path / "x.safetensors")["weight"], ARRAYS["weight"])
    for _ in range(5):
        checkpoint.write(tmp_path / "y.safetensors", ARRAYS, INFO)
        assert (tmp_path / "y.safetensors").read_bytes() == (tmp_path / "x.safetensors").read_bytes()


def test_every_kind_of_damage_is_found(tmp_path):
    path = tmp_path / "x.safetensors"
    checkpoint.write(path, ARRAYS, INFO)
    whole = path.read_bytes()
    places = np.random.default_rng(0).choice(len(whole), 150, replace=False)
    unnoticed = 0
    for place in places:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        try:
            arrays, info = checkpoint.read(path)
        except CheckpointError:
            continue
        # Blanks between the entries of the header may change without any meaning.
        assert all(np.array_equal(array, arrays[name]) for name, array in ARRAYS.items())
        assert {key: info[key] for key in INFO} == INFO
        unnoticed += 1
    assert unnoticed <= 1
    for size in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="x.safetensors is damaged"):
            checkpoint.read(path)
    path.write_bytes(whole + b"more")
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.read(path)


def test_swapped_arrays_and_changed_info_are_found(tmp_path):
    path = tmp_path / "x.safetensors"
    checkpoint.write(path, {"a": np.zeros(2), "b": np.ones(2)}, INFO)
    arrays = load_file(path)
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    save_file({"a": arrays["b"], "b": arrays["a"]}, path, metadata)
    with pytest.raises(CheckpointError, match="checksum"):
        checkpoint.read(path)
    save_file(arrays, path, {"minires": metadata["minires"].replace("checkpoint", "something")})
    with pytest.raises(CheckpointError, match="checksum"):
        checkpoint.read(path)
    save_file(arrays, path, metadata)
    checkpoint.read(path)


def test_foreign_missing_and_future_files_are_named(tmp_path, monkeypatch):
    save_file({"a": np.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="other.safetensors was not written by minires"):
        checkpoint.read(tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="none.safetensors does not exist"):
        checkpoint.read(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match="damaged or not a safetensors file"):
        checkpoint.read(tmp_path)
    monkeypatch.setattr(checkpoint, "FORMAT", 99)
    checkpoint.write(tmp_path / "new.safetensors", ARRAYS, INFO)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="format is 99"):
        checkpoint.read(tmp_path / "new.safetensors")
    os.rename(tmp_path / "new.safetensors", tmp_path / "checkpoint-00000005.safetensors")
    with pytest.raises(CheckpointError, match="format is 99"):  # not set aside: it is not damaged
        latest(tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        *[(b"\x80" + bytes([protocol]) + b"}q", "one of PyTorch") for protocol in range(2, 6)],
        (b"PK\x03\x04", "one of PyTorch or Keras"), (b"\x89HDF\r\n\x1a\n", "one of Keras"),
        (b"<!doctype html>", "a web page"),
        (b"epoch,step,lr\n1,2,3\n", "no safetensors file: it holds text"),
        (b'{"model":{"a":1}}', "no safetensors file: it holds text"),
        (('{"names":["' + "\u00e9" * 40).encode(), "no safetensors file: it holds text"),
        (b"", "damaged or not a safetensors file"),
        (b"\xff" * 20, "damaged or not a safetensors file"),
    ],
)  # fmt: skip
def test_what_a_file_is_that_is_no_checkpoint_is_said(content, words, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=words):
        checkpoint.read(tmp_path / "x.safetensors")


def test_a_damaged_file_of_ours_is_not_taken_for_one_of_others(tmp_path):
    """The length of its header, with which it begins, may look like the beginning of a pickle."""
    path, begin = tmp_path / "ours.safetensors", b""
    for length in range(400, 1000):
        checkpoint.write(path, {"a": np.zeros(3)}, {"kind": "model", "pad": "x" * length})
        if (begin := path.read_bytes()[:2]) == b"\x80\x03":
            break
    assert begin == b"\x80\x03"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(checkpoint.Damaged, match="damaged or not a safetensors file") as caught:
        checkpoint.read(path)
    assert not isinstance(caught.value, checkpoint.Foreign)


def test_the_last_two_are_kept_and_the_newest_is_used(tmp_path):
    save(tmp_path, 5, 10, 9_999_999, 100_000_000)
    assert names(tmp_path) == ["checkpoint-09999999.safetensors", "checkpoint-100000000.safetensors"]
    path, groups, info = latest(tmp_path)
    assert path.name == "checkpoint-100000000.safetensors" and info["step"] == 100_000_000
    assert np.array_equal(groups["model"]["weight"], ARRAYS["weight"])
    assert groups["optimizer"]["a/b"][0] == 100_000_000
    assert latest(tmp_path / "nowhere") is None


def test_a_damaged_one_is_set_aside_with_a_warning(tmp_path):
    save(tmp_path, 5, 10)
    newest = tmp_path / "checkpoint-00000010.safetensors"
    newest.write_bytes(newest.read_bytes()[:-7])
    with pytest.warns(UserWarning, match="00000010.safetensors is damaged.*using the checkpoint before"):
        path, _, info = latest(tmp_path)
    assert info["step"] == 5 and (tmp_path / (newest.name + ".damaged")).exists()
    save(tmp_path, 7)  # the damaged one does not push a good one out
    assert [path.name for path in Checkpoints(tmp_path).paths()] == [
        "checkpoint-00000005.safetensors",
        "checkpoint-00000007.safetensors",
    ]


def test_all_damaged_is_an_error(tmp_path):
    save(tmp_path, 5, 10)
    for path in Checkpoints(tmp_path).paths():
        path.write_bytes(b"nothing")
    before = names(tmp_path)
    for _ in range(2):  # nothing is moved: the second time it is so again
        with pytest.raises(CheckpointError, match="all 2 checkpoints .* damaged, and nothing was changed"):
            latest(tmp_path)
    assert names(tmp_path) == before
    Checkpoints(tmp_path).paths()[0].unlink()
    with pytest.raises(CheckpointError, match="the only checkpoint .* is damaged, and nothing was changed"):
        latest(tmp_path)


@pytest.mark.parametrize("call", ["fsync", "replace", "write"])
def test_a_full_disk_loses_nothing(call, tmp_path, monkeypatch):
    save(tmp_path, 5, 10)
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if call == "write":
        opened = os.fdopen

        class FullFile:
            def __init__(self, *arguments):
                self.file = opened(*arguments)

            def __enter__(self):
                return self

            def __exit__(self, *_):
                self.file.close()

            def write(self, content):
                self.file.write(content[:100])
                full()

        monkeypatch.setattr("minires.files.os.fdopen", FullFile)
    else:
        monkeypatch.setattr(f"minires.files.os.{call}", full)
    with pytest.raises(MiniresError, match="00000015.safetensors: No space left on device.*Free some space"):
        save(tmp_path, 15)
    monkeypatch.undo()
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before


def test_a_read_only_folder_is_named(tmp_path, monkeypatch):
    save(tmp_path, 5)

    def read_only(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    # Permissions do not bind the super-user, so the refusal is made here.
    monkeypatch.setattr("minires.files.tempfile.mkstemp", read_only)
    with pytest.raises(MiniresError, match="00000010.safetensors: Read-only file system.*another folder"):
        save(tmp_path, 10)
    assert names(tmp_path) == ["checkpoint-00000005.safetensors"]


def test_a_really_full_disk_loses_nothing(tmp_path):
    """On Linux a file-size limit makes real writes fail half-way."""
    resource = pytest.importorskip("resource")
    signal = pytest.importorskip("signal")
    save(tmp_path, 5)
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        with pytest.raises(MiniresError, match="00000010.safetensors"):
            save(tmp_path, 10)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert names(tmp_path) == ["checkpoint-00000005.safetensors"]
    assert json.dumps(latest(tmp_path)[2]["step"]) == "5"

"""CIFAR-10 in its binary form and as zips of picture folders."""

import io
import os
import zipfile

import numpy as np
import pytest
from PIL import Image

import minires.data as data
from minires.data import cifar
from minires.errors import DataError

real = pytest.mark.skipif("MINIRES_DATA" not in os.environ, reason="needs CIFAR-10: set MINIRES_DATA")


def write_binary(root, each=20):
    root.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    pixels = {}
    for name in (*cifar.TRAIN_FILES, cifar.TEST_FILE):
        images = rng.integers(0, 256, (each, 32, 32, 3), dtype=np.uint8)
        labels = (np.arange(each) % 10).astype(np.uint8)
        records = np.concatenate([labels[:, None], images.transpose(0, 3, 1, 2).reshape(each, -1)], axis=1)
        records.tofile(root / name)
        pixels |= {f"{name}[{i}]": (images[i], labels[i]) for i in range(each)}
    return pixels


def write_zip(path, part, each, classes=cifar.CLASSES):
    with zipfile.ZipFile(path, "w") as archive:
        for k, name in enumerate(classes):
            for i in range(each):
                file = io.BytesIO()
                Image.new("RGB", (32, 32), (20 * k, 0, 0)).save(file, "PNG")
                archive.writestr(f"{part}/{name}/{i:04d}.png", file.getvalue())


def test_binary_form(tmp_path):
    pixels = write_binary(tmp_path / "cifar-10-batches-bin")
    for path in (tmp_path, tmp_path / "cifar-10-batches-bin"):
        splits = data.load(path)
        assert [len(p) for p in (splits.train, splits.val, splits.test)] == [90, 10, 20]
        assert splits.train.classes[3] == "cat" and splits.train.name == "cifar10"
        for part in (splits.train, splits.val, splits.test):
            for name, image, label in zip(part.names, part.images, part.labels, strict=True):
                assert np.array_equal(image, pixels[name][0]) and label == pixels[name][1]
    assert all(name.startswith("test_batch.bin") for name in splits.test.names)


def test_zips_of_picture_folders(tmp_path, monkeypatch):
    folder = tmp_path / "cifar10"
    folder.mkdir()
    write_zip(folder / "cifar10_jpeg_train.zip", "train", 10)
    write_zip(folder / "cifar10_jpeg_test.zip", "test", 2)
    monkeypatch.setenv("MINIRES_DATA", str(tmp_path))
    assert data.find("cifar10") == folder
    splits = data.load("cifar10")
    assert [len(p) for p in (splits.train, splits.val, splits.test)] == [90, 10, 20]
    for part in (splits.train, splits.val, splits.test):
        assert np.array_equal(part.images[:, 0, 0, 0], 20 * part.labels)
    assert set(splits.test.names) >= {"test/airplane/0000.png", "test/truck/0001.png"}


def test_other_classes_are_refused(tmp_path):
    write_zip(tmp_path / "cifar10_train.zip", "train", 10, ("red", "blue"))
    write_zip(tmp_path / "cifar10_test.zip", "test", 2, ("red", "blue"))
    with pytest.raises(DataError, match="not the classes of CIFAR-10: blue, red"):
        data.load(tmp_path)


def test_a_damaged_or_missing_batch_is_named(tmp_path):
    write_binary(tmp_path)
    batch = tmp_path / "data_batch_3.bin"
    content = batch.read_bytes()
    batch.write_bytes(content[:-5])
    with pytest.raises(DataError, match=r"data_batch_3.bin: 61,455 bytes are no multiple of 3073"):
        data.load(tmp_path)
    batch.write_bytes(bytes([10]) + content[1:])
    with pytest.raises(DataError, match=r"label 10 of data_batch_3.bin\[0\] is outside 0\.\.9"):
        data.load(tmp_path)
    batch.unlink()
    with pytest.raises(DataError, match="data_batch_3.bin: no such file"):
        data.load(tmp_path)


@pytest.mark.parametrize(
    "name", ["cifar-10-batches-py/data_batch_1", "data_batch_1", "cifar-10-python.tar.gz"]
)
def test_pickles_are_refused(tmp_path, monkeypatch, name):
    path = tmp_path / "cifar10" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\x80\x02}q\x00.")
    monkeypatch.setenv("MINIRES_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "none"))
    for what in ("cifar10", tmp_path / "cifar10"):
        with pytest.raises(DataError, match="made of pickles.*get the binary version"):
            data.load(what)


@real
def test_the_real_test_half():
    found = data.find("cifar10")
    if found is None or not (found / "cifar10_jpeg_test.zip").is_file():
        pytest.skip("needs cifar10/cifar10_jpeg_test.zip below MINIRES_DATA")
    entries = cifar.archives.in_zip(found / "cifar10_jpeg_test.zip")
    assert len(entries) == 10_000
    assert sorted({entry.parts[1] for entry in entries}) == list(cifar.CLASSES)
    assert data.decode(entries[4321].read()).shape == (32, 32, 3)


def test_a_file_larger_than_all_of_cifar_10_is_not_read(tmp_path):
    write_binary(tmp_path)
    os.truncate(tmp_path / "data_batch_3.bin", 3073 * 60_001)
    with pytest.raises(DataError, match=r"data_batch_3.bin: 184,383,073 bytes, where all .* has 184,380,000"):
        data.load(tmp_path)

"""Downloading and preparing: verified, written whole or not at all, nothing trusted. The server is local."""

import os
import shutil
import socket
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from local_server import serving
from PIL import Image

import minires.data as data
from minires.data import cifar, fetch, signs
from minires.errors import ConfigError, DataError

real = pytest.mark.skipif(
    "MINIRES_DATA" not in os.environ, reason="needs SIGNS: set MINIRES_DATA to its folder"
)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NO_PROXY", "*")
    return tmp_path / "home" / "minires"


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """A small SIGNS, known as the public copy while the test runs."""
    root = tmp_path / "pictures" / "64x64_SIGNS"
    for part in ("train", "val", "test"):
        (root / f"{part}_signs").mkdir(parents=True)
        for k in range(6):
            Image.new("RGB", (8, 8), (40 * k, 0, 0)).save(root / f"{part}_signs" / f"{k}_{part}.jpg")
    monkeypatch.setattr(signs, "KNOWN", signs.digest(root))
    return root


def repository(path, root, extra=()):
    """Zip ``root`` as GitHub does: everything below one folder named after the repository."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("pytorch_template-abc/README.md", "hello")
        archive.writestr("pytorch_template-abc/data/64x64_SIGNS/.DS_Store", "x")
        for file in sorted(root.rglob("*.jpg")):
            archive.write(file, f"pytorch_template-abc/data/64x64_SIGNS/{file.relative_to(root)}")
        for name, content in extra:
            archive.writestr(name, content)
    return path


@pytest.fixture
def serve():
    with serving() as start:
        yield start


def left_over(cache):
    """Everything in the cache but the set itself and the empty folders above it."""
    return [
        p for p in cache.rglob("*") if "64x64_SIGNS" not in p.relative_to(cache).parts and p.name != "signs"
    ]


@pytest.mark.parametrize("length", [None, "unknown"])
def test_download_unpacks_only_the_pictures_and_verifies(cache, pictures, serve, tmp_path, length):
    url = serve(repository(tmp_path / "a.zip", pictures).read_bytes(), length=length)
    report = data.download("signs", url=url)
    target = cache / "signs" / "64x64_SIGNS"
    assert "SHA-256 verified" in report and str(target) in report
    assert sorted(p.relative_to(target) for p in target.rglob("*") if p.is_file()) == sorted(
        p.relative_to(pictures) for p in pictures.rglob("*.jpg")
    )
    assert left_over(cache) == []
    assert len(data.load(target).train) == 6
    assert "already there" in data.download("signs", url="http://127.0.0.1:9/never-asked")


def test_download_replaces_a_damaged_copy(cache, pictures, serve, tmp_path):
    target = cache / "signs" / "64x64_SIGNS"
    shutil.copytree(pictures, target)
    (target / "val_signs" / "0_val.jpg").write_bytes(b"damaged")
    data.download("signs", url=serve(repository(tmp_path / "a.zip", pictures).read_bytes()))
    assert signs.digest(target) == signs.KNOWN and left_over(cache) == []


def test_other_contents_are_refused_and_the_old_copy_kept(cache, pictures, serve, tmp_path):
    target = cache / "signs" / "64x64_SIGNS"
    shutil.copytree(pictures, target)
    (target / "val_signs" / "0_val.jpg").write_bytes(b"mine")
    extra = [("x/data/64x64_SIGNS/train_signs/0_more.jpg", b"more")]
    url = serve(repository(tmp_path / "a.zip", pictures, extra).read_bytes())
    with pytest.raises(DataError, match="these 19 pictures are not the known copy of SIGNS"):
        data.download("signs", url=url)
    assert (target / "val_signs" / "0_val.jpg").read_bytes() == b"mine" and left_over(cache) == []


@pytest.mark.parametrize(
    "name", ["../../train_signs/0_x.jpg", "C:/train_signs/0_x.jpg", "a/train_signs/..\\0_x.jpg"]
)
def test_a_member_that_leads_outside_is_refused(cache, pictures, serve, tmp_path, name):
    url = serve(repository(tmp_path / "a.zip", pictures, [(name, b"evil")]).read_bytes())
    with pytest.raises(DataError, match="leads outside the archive"):
        data.download("signs", url=url)
    assert list((cache / "signs").iterdir()) == []
    assert not list(tmp_path.rglob("0_x.jpg"))


def test_what_is_no_archive_is_refused(cache, pictures, serve, tmp_path, monkeypatch):
    good = repository(tmp_path / "a.zip", pictures).read_bytes()
    with pytest.raises(DataError, match="not an archive of SIGNS, or damaged"):
        data.download("signs", url=serve(b"<html>sorry</html>"))
    at = good.index(b"\xff\xd8\xff") + 30  # inside the first picture
    with pytest.raises(DataError, match="or damaged: .*Bad CRC"):
        data.download("signs", url=serve(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]))
    with pytest.raises(DataError, match="train_signs/.*in this archive"):
        empty = tmp_path / "empty"
        empty.mkdir()
        data.download("signs", url=serve(repository(tmp_path / "b.zip", empty).read_bytes()))
    with pytest.raises(DataError, match=rf"connection ended after .* of {len(good) + 100:,} bytes"):
        data.download("signs", url=serve(good, length=len(good) + 100))
    monkeypatch.setattr(signs, "MAX_PICTURE_BYTES", 10)
    with pytest.raises(DataError, match="bytes, no such picture"):
        data.download("signs", url=serve(good))
    monkeypatch.setattr(fetch, "MAX_ARCHIVE_BYTES", 100)
    with pytest.raises(DataError, match="over 100 bytes; this is not the archive"):
        data.download("signs", url=serve(good))
    assert list((cache / "signs").iterdir()) == []


def test_no_network_is_said_plainly(cache, serve):
    with socket.socket() as free:  # a port on which nobody listens
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(
        DataError, match=rf"no network: cannot reach 127.0.0.1:{port} \(.*refused.*--from PATH"
    ):
        data.download("signs", url=f"http://127.0.0.1:{port}/a.zip")
    with pytest.raises(DataError, match="no network: cannot reach minires.invalid"):
        data.download("signs", url="https://minires.invalid/a.zip")
    with pytest.raises(DataError, match="the server answered 404 Not Found"):
        data.download("signs", url=serve(status=404))
    with pytest.raises(ConfigError, match="only https addresses, got file:///etc/hosts"):
        data.download("signs", url="file:///etc/hosts")
    assert list((cache / "signs").iterdir()) == []


def test_the_public_address_is_https():
    assert signs.URL.startswith("https://") and "littlecapa/pytorch_template" in signs.URL


def test_only_sets_made_of_files_can_be_fetched(cache, tmp_path):
    for name, hint in (("hands", "needs no files"), ("cifar10", "--from PATH"), ("sings", "'signs'")):
        with pytest.raises(ConfigError, match=hint):
            data.download(name)
    with pytest.raises(ConfigError, match="'hands' cannot be prepared"):
        data.prepare("hands", tmp_path)
    with pytest.raises(DataError, match="nowhere: no such file"):
        data.prepare("signs", tmp_path / "nowhere")


@pytest.mark.parametrize("form", ["folder", "folder above", "zip"])
def test_prepare_copies_the_verified_pictures(cache, pictures, tmp_path, form):
    source = {"folder": pictures, "folder above": pictures.parent, "zip": tmp_path / "a.zip"}[form]
    if form == "zip":
        repository(source, pictures)
    report = data.prepare("signs", source)
    target = cache / "signs" / "64x64_SIGNS"
    assert str(target) in report and signs.digest(target) == signs.KNOWN
    assert data.prepare("signs", source) == report  # once more: replaced
    assert data.prepare("signs", target) == report  # from itself
    assert left_over(cache) == []


def test_prepare_refuses_other_pictures(cache, pictures, tmp_path):
    next(pictures.rglob("0_val.jpg")).unlink()
    with pytest.raises(DataError, match="these 17 pictures are not the known copy"):
        data.prepare("signs", pictures)
    with pytest.raises(DataError, match="no SIGNS here"):
        data.prepare("signs", tmp_path)
    assert list((cache / "signs").iterdir()) == []


def test_prepare_hdf5(cache, pictures, tmp_path):
    shutil.copytree(pictures, cache / "signs" / "64x64_SIGNS")  # pictures that are there stay
    source = tmp_path / "h5"
    source.mkdir()
    for half, n in (("train", 1080), ("test", 120)):
        with h5py.File(source / f"{half}_signs.h5", "w") as file:
            file[f"{half}_set_x"] = np.zeros((n, 2, 2, 3), np.uint8)
            file[f"{half}_set_y"] = np.arange(n) % 6
    for path in (source, source / "train_signs.h5"):
        assert "1,080 + 120 pictures" in data.prepare("signs", path)
    assert sorted(p.name for p in (cache / "signs").iterdir()) == [
        "64x64_SIGNS",
        "test_signs.h5",
        "train_signs.h5",
    ]
    assert (cache / "signs" / "test_signs.h5").read_bytes() == (source / "test_signs.h5").read_bytes()
    with h5py.File(source / "test_signs.h5", "w") as file:
        file["test_set_x"], file["test_set_y"] = np.zeros((12, 2, 2, 3), np.uint8), np.arange(12) % 6
    with pytest.raises(DataError, match=r"expected \(864, 216, 120\) .* found \(864, 216, 12\)"):
        data.prepare("signs", source)


def test_prepare_cifar10(cache, tmp_path, monkeypatch):
    source = tmp_path / "cifar-10-batches-bin"
    source.mkdir()
    records = np.zeros((20, cifar.RECORD), np.uint8)
    records[:, 0] = np.arange(20) % 10
    for name in (*cifar.TRAIN_FILES, cifar.TEST_FILE):
        records.tofile(source / name)
    with pytest.raises(DataError, match=r"expected \(45000, 5000, 10000\) .* found \(90, 10, 20\)"):
        data.prepare("cifar10", tmp_path)
    assert not (cache / "cifar10").exists()
    monkeypatch.setattr(cifar, "check_counts", lambda *args, **options: None)
    assert str(cache / "cifar10") in data.prepare("cifar10", tmp_path)
    assert len(data.load(cache / "cifar10").test) == 20


def test_a_cache_that_cannot_be_written_is_named(cache, pictures):
    cache.parent.write_text("a file where the cache folder should be")
    with pytest.raises(DataError, match="cannot write .*minires.*; nothing was changed"):
        data.prepare("signs", pictures)


def test_a_full_disk_is_named_and_nothing_is_left(cache, pictures, monkeypatch):
    def full(source, target):
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fetch.shutil, "copyfile", full)
    with pytest.raises(DataError, match="64x64_SIGNS: No space left on device; nothing was changed"):
        data.prepare("signs", pictures)
    assert list((cache / "signs").iterdir()) == []


@real
def test_the_real_pictures_survive_the_way_over_a_server(cache, serve, tmp_path):
    found = data.find("signs")
    if found is None or found.name != "64x64_SIGNS":
        pytest.skip("needs signs/64x64_SIGNS below MINIRES_DATA")
    data.download("signs", url=serve(repository(tmp_path / "a.zip", found).read_bytes()))
    assert "the known public copy" in data.load(cache / "signs").source


@pytest.mark.parametrize("way", ["prepare", "download"])
def test_a_wrong_minires_data_is_said_before_anything_is_copied(cache, pictures, monkeypatch, way):
    monkeypatch.setenv("MINIRES_DATA", "/nonexistent")
    options = {"source": pictures} if way == "prepare" else {"url": "http://localhost:9/", "timeout": 1.0}
    with pytest.raises(ConfigError, match="MINIRES_DATA names /nonexistent, which is not a folder"):
        getattr(data, way)("signs", **options)
    assert not cache.exists()

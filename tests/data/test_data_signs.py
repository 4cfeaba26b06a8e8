"""SIGNS in both public forms, and finding data sets by name."""

import os
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

import minires.data as data
from minires.data import signs
from minires.errors import ConfigError, DataError

real = pytest.mark.skipif(
    "MINIRES_DATA" not in os.environ, reason="needs SIGNS: set MINIRES_DATA to its folder"
)


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Three empty places in which data is looked for: MINIRES_DATA, ./data, the cache."""
    (tmp_path / "named").mkdir()
    monkeypatch.setenv("MINIRES_DATA", str(tmp_path / "named"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return [tmp_path / "named", tmp_path / "data", tmp_path / "cache" / "minires"]


def write_folders(root, parts=(("train", 10), ("val", 3), ("test", 2)), side=8):
    for part, each in parts:
        (root / f"{part}_signs").mkdir(parents=True)
        for k in range(6):
            for i in range(each):
                Image.new("RGB", (side, side), (40 * k, 0, 0)).save(
                    root / f"{part}_signs" / f"{k}_IMG_{i}.jpg"
                )
    return root


def write_h5(root, train=60, test=12, **changes):
    root.mkdir(parents=True, exist_ok=True)
    for half, n in (("train", train), ("test", test)):
        labels = np.arange(n) % 6
        images = np.broadcast_to((40 * labels)[:, None, None, None], (n, 8, 8, 3)).astype(np.uint8)
        with h5py.File(root / f"{half}_signs.h5", "w") as file:
            contents = {f"{half}_set_x": images, f"{half}_set_y": labels, "list_classes": np.arange(6)}
            for key, value in (contents | changes).items():
                if value is not None:
                    file[key] = value
    return root


def check_labels(splits, tolerance):
    for part in (splits.train, splits.val, splits.test):
        assert np.abs(part.images[:, 4, 4, 0].astype(int) - 40 * part.labels).max() <= tolerance


def test_picture_folders(tmp_path):
    write_folders(tmp_path / "64x64_SIGNS")
    (tmp_path / "64x64_SIGNS" / "train_signs" / ".DS_Store").write_bytes(b"x")
    for path in (tmp_path, tmp_path / "64x64_SIGNS"):
        splits = data.load(path)
        assert [len(p) for p in (splits.train, splits.val, splits.test)] == [60, 18, 12]
        assert splits.train.classes == ("0", "1", "2", "3", "4", "5") and splits.train.name == "signs"
        assert splits.val.names[0] == "val_signs/0_IMG_0.jpg"
        assert "not the known public copy" in splits.source
        check_labels(splits, 3)  # JPEG rounds


def test_picture_folders_without_val_are_split_by_seed(tmp_path):
    write_folders(tmp_path, (("train", 10), ("test", 2)))
    splits = data.load(tmp_path, seed=1)
    assert [len(splits.train), len(splits.val)] == [48, 12]
    assert data.load(tmp_path, seed=2).val.names != splits.val.names


def test_hdf5(tmp_path):
    write_h5(tmp_path)
    for path in (tmp_path, tmp_path / "train_signs.h5", tmp_path / "test_signs.h5"):
        splits = data.load(path)
        assert [len(p) for p in (splits.train, splits.val, splits.test)] == [48, 12, 12]
        assert np.bincount(splits.val.labels).tolist() == [2] * 6
        check_labels(splits, 0)
    assert data.load(tmp_path, size=16).test.images.shape == (12, 16, 16, 3)


def test_hdf5_labels_in_a_row_are_read(tmp_path):
    splits = data.load(write_h5(tmp_path, test_set_y=(np.arange(12) % 6)[None]))
    assert splits.test.labels.tolist() == [*range(6)] * 2


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"train_set_x": None},
            r"train_signs.h5: no data set train_set_x .*it has: list_classes, train_set_y",
        ),
        ({"test_set_x": None, "test_set_y": None}, r"no data set test_set_x and test_set_y"),
        (
            {"train_set_x": np.zeros((60, 8, 8), np.uint8)},
            r"must be uint8 \(N, H, W, 3\), it is uint8 \(60, 8, 8\)",
        ),
        ({"train_set_x": np.zeros((60, 8, 8, 3))}, "it is float64"),
        ({"train_set_y": np.zeros(59, int)}, r"must hold 60 integer labels, it is int64 \(59,\)"),
        ({"train_set_y": np.zeros(60)}, "integer labels, it is float64"),
        ({"train_set_y": np.full(60, 6)}, r"label 6 of train_signs.h5\[0\] is outside 0\.\.5"),
    ],
)
def test_odd_hdf5_is_refused(tmp_path, changes, message):
    write_h5(tmp_path, **changes)
    with pytest.raises(DataError, match=message):
        data.load(tmp_path)


@pytest.mark.parametrize("kind", ["link", "outside", "elsewhere", "virtual", "nothing stored", "text"])
def test_pictures_that_do_not_stand_in_the_hdf5_file_itself_are_refused(tmp_path, kind):
    write_h5(tmp_path)
    shape, name = (12, 8, 8, 3), "test_set_x"
    with h5py.File(tmp_path / "test_signs.h5", "a") as file:
        real = file[name][()]
        del file[name]
        with h5py.File(tmp_path / "other.h5", "w") as other:
            other["x"] = real
        if kind == "link":
            file["real"], file[name] = real, h5py.SoftLink("/real")
        elif kind == "outside":
            file[name] = h5py.ExternalLink("other.h5", "/x")
        elif kind == "elsewhere":
            (tmp_path / "raw").write_bytes(real.tobytes())
            file.create_dataset(name, shape, "u1", external=[("raw", 0, real.nbytes)])
        elif kind == "virtual":
            layout = h5py.VirtualLayout(shape, "u1")
            layout[:] = h5py.VirtualSource("other.h5", "x", shape)
            file.create_virtual_dataset(name, layout)
        elif kind == "text":
            file[name] = "pictures"
        else:
            file.create_dataset(name, (12, 8000, 8000, 3), "u1", chunks=(1, 80, 80, 3))
    said = "is a link|are in another file|the limit is|has the type object"
    with pytest.raises(DataError, match=rf"test_signs\.h5: .*{name}.* ({said})"):
        data.load(tmp_path)


def test_a_missing_or_damaged_hdf5_half_is_named(tmp_path):
    write_h5(tmp_path)
    content = (tmp_path / "train_signs.h5").read_bytes()
    (tmp_path / "train_signs.h5").write_bytes(content[:1000])
    with pytest.raises(DataError, match="train_signs.h5: cannot read this HDF5 file"):
        data.load(tmp_path)
    (tmp_path / "train_signs.h5").unlink()
    with pytest.raises(DataError, match="train_signs.h5: no such file; .*needs both"):
        data.load(tmp_path / "test_signs.h5")
    with pytest.raises(DataError, match="no SIGNS here: expected the folders train_signs/"):
        signs.read(tmp_path)


def write_cats(root, classes, *, test=True, top=1):
    """The course's other set, of two classes, in the same form."""
    root.mkdir(parents=True, exist_ok=True)
    for half, n in (("train", 20), ("test", 6))[: 2 if test else 1]:
        with h5py.File(root / f"{half}_catvnoncat.h5", "w") as file:
            labels = np.arange(n) % (top + 1)
            file[f"{half}_set_x"] = (100 * labels[:, None, None, None] + np.zeros((n, 8, 8, 3))).astype(
                np.uint8
            )
            file[f"{half}_set_y"] = labels
            if classes is not None:
                file["list_classes"] = classes
    return root


@pytest.mark.parametrize(
    "classes",
    [
        np.array([b"non-cat", b"cat"], "S7"),
        np.array(["non-cat", "cat"], object),
        np.array([b"non-cat", b"cat"])[None],
    ],
)
def test_an_hdf5_file_names_its_classes(tmp_path, classes):
    write_cats(tmp_path, classes)
    for path in (tmp_path, tmp_path / "train_catvnoncat.h5", tmp_path / "test_catvnoncat.h5"):
        splits = data.load(path)
        assert [len(p) for p in (splits.train, splits.val, splits.test)] == [16, 4, 6]
        assert splits.train.classes == splits.test.classes == ("non-cat", "cat")
        assert splits.train.name == "catvnoncat" and splits.source.startswith("catvnoncat (HDF5 files")
    assert (splits.test.images[:, 0, 0, 0] == 100 * splits.test.labels).all()


def test_an_hdf5_file_without_names_of_classes_has_numbers(tmp_path):
    assert data.load(write_cats(tmp_path / "a", None, top=7)).test.classes == tuple("01234567")
    assert data.load(write_cats(tmp_path / "b", None)).train.classes == ("0", "1")
    assert data.load(write_h5(tmp_path / "c", list_classes=None)).train.classes == tuple("012345")


@pytest.mark.parametrize(
    "classes, message",
    [
        (np.array([b"cat"]), r"label 1 of train_catvnoncat.h5\[1\] is outside 0\.\.0"),
        (np.array([b"cat", b"cat"]), "must name each class once"),
        (np.array([b"cat", b" cat "]), "must name each class once"),
        (np.array([b"cat", b""]), "train_catvnoncat.h5: list_classes: the name of class 1 is empty"),
        (np.array([b"  ", b"cat"]), "list_classes: the name of class 0 is empty"),
        (np.zeros((0,), "S1"), "must name each class once"),
        (np.array([0.5, 1.5]), "list_classes' must be names, it is float64"),
    ],
)
def test_a_list_of_classes_that_does_not_fit_is_refused(tmp_path, classes, message):
    with pytest.raises(DataError, match=message):
        data.load(write_cats(tmp_path, classes))


def test_a_label_far_beyond_the_pictures_is_refused_at_once(tmp_path):
    for half in ("train", "test"):
        with h5py.File(tmp_path / f"{half}_foo.h5", "w") as file:
            file[f"{half}_set_x"] = np.zeros((20, 8, 8, 3), np.uint8)
            file[f"{half}_set_y"] = np.where(np.arange(20) % 2, 10**9, 0)
    with pytest.raises(DataError, match="has the label 1,000,000,000 for .* pictures, and no list_classes"):
        data.load(tmp_path)


def test_halves_of_different_sizes_need_a_size(tmp_path):
    for half, side in (("train", 8), ("test", 6)):
        with h5py.File(tmp_path / f"{half}_foo.h5", "w") as file:
            file[f"{half}_set_x"] = np.random.default_rng(0).integers(0, 255, (20, side, side, 3), np.uint8)
            file[f"{half}_set_y"] = np.arange(20) % 2
    with pytest.raises(DataError, match=r"differ in size: .* is \(8, 8\), .* is \(6, 6\)"):
        data.load(tmp_path)
    assert data.load(tmp_path, size=6).test.images.shape[1:] == (6, 6, 3)


def test_the_ending_of_an_hdf5_file_may_be_in_capitals(tmp_path):
    write_cats(tmp_path, None)
    for path in list(tmp_path.glob("*.h5")):
        path.rename(path.with_suffix(".H5"))
    assert data.load(tmp_path).train.classes == ("0", "1")


def test_halves_that_name_different_classes_are_refused(tmp_path):
    write_cats(tmp_path, np.array([b"non-cat", b"cat"]))
    with h5py.File(tmp_path / "test_catvnoncat.h5", "a") as file:
        del file["list_classes"]
        file["list_classes"] = np.array([b"cat", b"non-cat"])
    with pytest.raises(DataError, match="names the classes non-cat, cat, test_catvnoncat.h5 cat, non-cat"):
        data.load(tmp_path)


@pytest.mark.parametrize("half", ["train", "test"])
def test_the_names_of_one_half_are_those_of_the_other(tmp_path, half):
    write_cats(tmp_path, np.array([b"non-cat", b"cat"]))
    with h5py.File(tmp_path / f"{half}_catvnoncat.h5", "a") as file:
        del file["list_classes"]
    splits = data.load(tmp_path)
    assert splits.train.classes == splits.val.classes == splits.test.classes == ("non-cat", "cat")


def test_hdf5_files_beside_folders_of_pictures_are_no_set(tmp_path):
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for i in range(5):
            Image.new("RGB", (8, 8), (i, len(label), 0)).save(tmp_path / label / f"{i}.png")
    write_cats(tmp_path, None)
    (tmp_path / "weights.h5").write_bytes(b"x")
    assert data.load_part(tmp_path).pictures.classes == ("a", "b")


def test_one_half_alone_is_a_part_to_test_on(tmp_path):
    write_cats(tmp_path, np.array([b"non-cat", b"cat"]), test=False)
    for path in (tmp_path, tmp_path / "train_catvnoncat.h5"):
        part = data.load_part(path)
        assert (part.split, len(part.pictures), part.pictures.classes) == ("train", 20, ("non-cat", "cat"))
    write_cats(tmp_path, np.array([b"non-cat", b"cat"]))
    assert data.load_part(tmp_path).split == "test" and len(data.load_part(tmp_path).pictures) == 6
    assert len(data.load_part(tmp_path, "all").pictures) == 26
    with pytest.raises(DataError, match="test_x.h5: no such file"):
        data.load((tmp_path / "train_catvnoncat.h5").rename(tmp_path / "train_x.h5"))


def test_pictures_of_any_kind_are_read_from_the_folders(tmp_path):
    write_folders(tmp_path, (("train", 10), ("test", 2)))
    Image.new("RGB", (8, 8), (120, 0, 0)).save(tmp_path / "test_signs" / "3_more.png")
    (tmp_path / "test_signs" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "test_signs" / "notes.txt").write_bytes(b"x")
    splits = data.load(tmp_path)
    assert len(splits.test) == 13 and "test_signs/3_more.png" in splits.test.names
    os.mkfifo(tmp_path / "train_signs" / "0_pipe.jpg")
    with pytest.raises(DataError, match="train_signs/0_pipe.jpg: this is a pipe"):
        data.load(tmp_path)


def test_odd_picture_folders_are_refused(tmp_path):
    write_folders(tmp_path)
    train = tmp_path / "train_signs"
    (train / "7_IMG.jpg").write_bytes(b"")
    with pytest.raises(
        DataError, match=r"1 file names do not begin with a label 0..5:\n  train_signs/7_IMG.jpg"
    ):
        data.load(tmp_path)
    (train / "7_IMG.jpg").rename(train / "5_IMG.jpg")
    with pytest.raises(DataError, match=r"1 unreadable picture;.*\n  train_signs/5_IMG.jpg"):
        data.load(tmp_path)
    for path in (tmp_path / "val_signs").iterdir():
        path.unlink()
    (train / "5_IMG.jpg").unlink()
    with pytest.raises(DataError, match="val_signs: no picture in this folder"):
        data.load(tmp_path)


def test_the_digest_tells_any_change_of_name_or_content(tmp_path):
    write_folders(tmp_path)
    before = signs.digest(tmp_path)
    (tmp_path / "train_signs" / "notes.txt").write_text("does not matter")
    assert signs.digest(tmp_path) == before
    one = tmp_path / "val_signs" / "3_IMG_0.jpg"
    one.rename(one.with_name("2_IMG_9.jpg"))
    assert signs.digest(tmp_path) != before
    one.with_name("2_IMG_9.jpg").rename(one)
    assert signs.digest(tmp_path) == before
    content = one.read_bytes()
    one.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert signs.digest(tmp_path) != before


def test_places_are_searched_in_order_and_folders_preferred(places):
    assert data.find("signs") is None and data.find("hands") is None
    with pytest.raises(DataError, match="'signs' not found in .*named/signs, .*--download"):
        data.load("signs")
    named, here, cache = (place / "signs" for place in places)
    write_folders(cache / "64x64_SIGNS")
    assert data.find("signs") == cache / "64x64_SIGNS"
    write_h5(here)
    assert data.find("signs").resolve() == here
    (named / "64x64_SIGNS" / "test_signs").mkdir(parents=True)  # half a set is none
    assert data.find("signs").resolve() == here
    write_h5(named)
    assert data.find("signs") == named and data.load("signs").train.names[0].startswith("train_signs.h5[")
    (named / "64x64_SIGNS" / "test_signs").rmdir()
    write_folders(named / "64x64_SIGNS")
    assert data.find("signs") == named / "64x64_SIGNS"


def test_unknown_names_get_the_nearest(places, monkeypatch):
    for ask in (data.load, data.find):
        with pytest.raises(ConfigError, match="unknown data set 'sings'. Did you mean 'signs'"):
            ask("sings")
    known = "unknown data set 'zzz'. Known: signs, hands, cifar10, or the path"
    with pytest.raises(ConfigError, match=known):
        data.load("zzz")
    with pytest.raises(DataError, match="photos/here: no such file or folder"):
        data.load("photos/here")
    monkeypatch.setenv("MINIRES_DATA", "/no/such/place")
    with pytest.raises(ConfigError, match="MINIRES_DATA names /no/such/place"):
        data.find("signs")


@real
def test_the_real_pictures():
    splits = data.load("signs")
    assert [len(p) for p in (splits.train, splits.val, splits.test)] == [864, 216, 120]
    assert splits.train.images.shape == (864, 64, 64, 3)
    assert splits.source.endswith("the known public copy)") and "not the" not in splits.source
    assert set(splits.test.labels) == set(range(6))


@real
def test_the_real_hdf5_half():
    path = Path(os.environ["MINIRES_DATA"]) / "signs" / "test_signs.h5"
    if not path.is_file():
        pytest.skip(f"needs {path}")
    half = signs._read_h5_half(path, "test", None)
    assert half.images.shape == (120, 64, 64, 3)
    # the picture folders hold the same photographs, as JPEG: each has a near twin of the same label
    pictures = data.load("signs")
    whole = pictures.train.join(pictures.val).join(pictures.test)
    for image, label in zip(half.images[:10].astype(np.int16), half.labels[:10], strict=True):
        distance = np.abs(whole.images.astype(np.int16) - image).mean(axis=(1, 2, 3))
        assert distance.min() < 4 and whole.labels[distance.argmin()] == label

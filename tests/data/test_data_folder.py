"""Picture folders and zips of them: layouts, splits, and what is refused."""

import io

import numpy as np
import pytest
from packing import write, zipped
from PIL import Image

import minires.data as data
from minires.data import archives
from minires.errors import DataError

TWO = {"a": 5, "b": 5}


def picture(value, side=4):
    file = io.BytesIO()
    Image.new("RGB", (side, side), (value, 0, 0)).save(file, "PNG")
    return file.getvalue()


def tree(counts, prefix=""):
    """{path: bytes} with `counts` = {class: number}; red is 10 times the class plus the place in it."""
    return {
        f"{prefix}{name}/{i}.png": picture(10 * k + i)
        for k, (name, count) in enumerate(counts.items())
        for i in range(count)
    }


def everything(splits):
    parts = (splits.train, splits.val, splits.test)
    return {
        n: (int(i[0, 0, 0]), int(y))
        for p in parts
        for n, i, y in zip(p.names, p.images, p.labels, strict=True)
    }


@pytest.mark.parametrize("form", ["folder", "zip", "folder in a zip"])
def test_class_folders_are_split_by_seed(tmp_path, form):
    files = tree({"cat": 10, "ape": 10}) | {"readme.txt": b"hello", ".DS_Store": b"x", "cat/Thumbs.db": b"x"}
    if form == "folder":
        path = write(tmp_path / "pets", files)
    else:
        inside = "around/" if form == "folder in a zip" else ""
        path = zipped(tmp_path / "pets.zip", {inside + n: c for n, c in files.items()} | {"__MACOSX/a": b"x"})
    splits = data.load(path, seed=3)
    assert splits.train.classes == ("ape", "cat") and splits.train.name == "pets"
    assert [len(p) for p in (splits.train, splits.val, splits.test)] == [13, 3, 4]
    found = everything(splits)
    assert len(found) == 20
    for name, (red, label) in found.items():
        *_, kind, place = name.split("/")
        assert label == ("ape", "cat").index(kind)
        assert red == {"cat": 0, "ape": 10}[kind] + int(place[0])
    assert data.load(path, seed=3).val.names == splits.val.names
    assert data.load(path, seed=4).val.names != splits.val.names
    assert str(path) in splits.source


def test_train_and_test_folders_stand_as_they_are(tmp_path):
    files = tree({"a": 10, "b": 10}, "train/") | tree({"a": 2, "b": 1}, "test/")
    splits = data.load(write(tmp_path / "set", files))
    assert sorted(splits.test.names) == ["test/a/0.png", "test/a/1.png", "test/b/0.png"]
    assert [len(splits.train), len(splits.val)] == [16, 4]
    assert all(name.startswith("train/") for name in splits.train.names + splits.val.names)

    files |= tree({"a": 3}, "valid/")
    splits = data.load(zipped(tmp_path / "set.zip", files))
    assert splits.val.names == ("valid/a/0.png", "valid/a/1.png", "valid/a/2.png")
    assert len(splits.train) == 20


def test_only_a_train_folder_gives_all_three_parts(tmp_path):
    splits = data.load(write(tmp_path / "set", tree({"a": 10, "b": 10}, "train/")))
    assert [len(p) for p in (splits.train, splits.val, splits.test)] == [13, 3, 4]


def test_a_class_folder_with_no_picture_is_named(tmp_path):
    root = write(tmp_path / "set", tree(TWO) | {"d/notes.txt": b"none here"})
    (root / "c").mkdir()
    with pytest.raises(DataError, match=r"class folders with no picture.*\n  c\n  d"):
        data.load(root)
    with pytest.raises(DataError, match=r"no picture.*\n  test/b"):
        data.load(
            zipped(
                tmp_path / "s.zip",
                tree(TWO, "train/") | {"test/a/0.png": picture(0), "test/b/": b""},
            )
        )


def test_an_empty_set_is_refused(tmp_path):
    (tmp_path / "set" / "a").mkdir(parents=True)
    with pytest.raises(DataError, match="no picture found"):
        data.load(tmp_path / "set")
    with pytest.raises(DataError, match="no picture found"):
        data.load(zipped(tmp_path / "none.zip", {}))


@pytest.mark.parametrize(
    "files, message",
    [
        (tree({"a": 5}), "only one class, a"),
        (
            tree(TWO) | {"loose.png": picture(0)},
            r"1 picture outside any class folder.*\n  loose.png",
        ),
        (tree(TWO, "train/") | tree({"c": 5}, "test/"), "classes c do not occur in train/"),
        (tree(TWO, "train/") | tree({"c": 5}, "extra/"), "extra beside train"),
        (tree(TWO, "test/"), "no train/"),
        (tree(TWO) | {"a/film.heic": b"ftypheic"}, "1 unreadable.*\n  a/film.heic: "),
        (
            tree(TWO) | {"b/x.png": picture(0)[:30], "b/y.jpg": b""},
            "2 unreadable.*\n.*x.png.*\n.*y.jpg",
        ),
        (tree(TWO) | {"b/x.png": picture(0, 9)}, "differ in size"),
        (tree(TWO, "train/") | {"test/a/x.png": picture(0, 9)}, "differ in size"),
    ],
)
def test_odd_sets_are_refused(tmp_path, files, message):
    with pytest.raises(DataError, match=message):
        data.load(write(tmp_path / "set", files))
    with pytest.raises(DataError, match=message):
        data.load(zipped(tmp_path / "set.zip", files))


@pytest.mark.parametrize("name", ["../a/x.png", "a/../../x.png", "C:/a/x.png", "a\\..\\x.png"])
def test_a_member_that_leads_outside_is_refused(tmp_path, name):
    with pytest.raises(DataError, match="leads outside the archive"):
        data.load(zipped(tmp_path / "evil.zip", tree(TWO) | {name: picture(0)}))


def test_a_damaged_zip_is_named(tmp_path):
    good = zipped(tmp_path / "set.zip", tree(TWO)).read_bytes()
    (tmp_path / "cut.zip").write_bytes(good[:-40])
    with pytest.raises(DataError, match="cut.zip: cannot read this zip"):
        data.load(tmp_path / "cut.zip")
    at = good.index(picture(12)[8:])  # a member's bytes changed: its checksum tells
    (tmp_path / "bad.zip").write_bytes(good[:at] + b"\xff" + good[at + 1 :])
    with pytest.raises(DataError, match=r"1 unreadable.*\n.*b/2.png.*damaged"):
        data.load(tmp_path / "bad.zip")


def test_a_member_of_absurd_size_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_FILE_BYTES", 1000)
    files = tree(TWO) | {"a/huge.png": bytes(2000)}
    with pytest.raises(DataError, match="a/huge.png: 2,000 bytes, the limit is 1,000"):
        data.load(zipped(tmp_path / "set.zip", files))


def test_linked_class_folders_are_followed_and_circles_refused(tmp_path):
    root = write(tmp_path / "set", tree({"a": 5}))
    write(tmp_path / "elsewhere", tree({"b": 5}))
    (root / "b").symlink_to(tmp_path / "elsewhere" / "b")
    assert data.load(root).train.classes == ("a", "b")
    (root / "a" / "again").symlink_to(root)
    with pytest.raises(DataError, match="a/again: this link leads in a circle"):
        data.load(root)


def test_size_makes_all_pictures_squares(tmp_path):
    files = tree(TWO) | {"b/x.png": picture(0, 9)}
    assert data.load(write(tmp_path / "set", files), size=8).train.images.shape[1:] == (8, 8, 3)


def test_labels_are_int64_and_pictures_uint8(tmp_path):
    train = data.load(write(tmp_path / "set", tree(TWO))).train
    assert train.labels.dtype == np.int64 and train.images.dtype == np.uint8

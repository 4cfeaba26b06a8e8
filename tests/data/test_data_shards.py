"""Shards of WebDataset: labels, class names, parts, patterns, and what is refused."""

import io
import json
import tarfile
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minires import data
from minires.data import archives, shards
from minires.errors import DataError


def picture(value, kind="PNG"):
    file = io.BytesIO()
    Image.new("RGB", (6, 4), (value, 10, 20)).save(file, kind)
    return file.getvalue()


def tar(path, members, mode="w"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            content = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def samples(numbers, labels=("0", "1"), form="cls", prefix=""):
    """Members of a shard: the red of a picture is its number, and its label follows from that."""
    found = {}
    for number in numbers:
        label = labels[number % len(labels)]
        found[f"{prefix}{number:03}.png"] = picture(number)
        found[f"{prefix}{number:03}.{form}"] = label if form == "cls" else json.dumps({"label": label})
    return found


def fill(root, count=3, **options):
    for shard in range(count):
        tar(root / f"set-{shard:03}.tar", samples(range(10 * shard, 10 * shard + 10), **options))
    return root


def everything(splits):
    parts = (splits.train, splits.val, splits.test)
    return {
        name: (int(image[0, 0, 0]), part.classes[label])
        for part in parts
        for name, image, label in zip(part.names, part.images, part.labels, strict=True)
    }


@pytest.mark.parametrize("form", ["cls", "json"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_folder_of_shards_is_a_set_split_by_seed(tmp_path, form, stream):
    root = fill(tmp_path / "shards", form=form)
    splits = data.load(root, size=4, seed=3, stream=stream)
    assert splits.train.classes == ("0", "1") and splits.source == f"shards (shards at {root})"
    assert [len(p) for p in (splits.train, splits.val, splits.test)] == [19, 5, 6]
    found = everything(splits)
    assert found == {f"set-{n // 10:03}.tar/{n:03}.png": (n, str(n % 2)) for n in range(30)}
    assert data.load(root, size=4, seed=3).val.names == splits.val.names
    assert data.load(root, size=4, seed=4).val.names != splits.val.names


def test_a_pattern_stands_for_its_shards_alone(tmp_path):
    fill(tmp_path / "shards", 12)
    pattern = tmp_path / "shards" / "set-{001..002}.tar"
    assert data.is_there(pattern) and not data.is_there(tmp_path / "shards" / "other-{0..2}.tar")
    splits = data.load(pattern, size=4)
    assert {name.split("/")[0] for name in everything(splits)} == {"set-001.tar", "set-002.tar"}
    assert splits.train.name == "set" and len(everything(splits)) == 20
    both = data.load(str(tmp_path / "shards" / "set-{000,011}.tar"), size=4)
    assert {name.split("/")[0] for name in everything(both)} == {"set-000.tar", "set-011.tar"}
    with pytest.raises(DataError, match="2 of 4 shards are not there:\n  set-012.tar\n  set-013.tar"):
        data.load(tmp_path / "shards" / "set-{010..013}.tar")
    with pytest.raises(DataError, match="the limit is 100,000"):
        data.load(tmp_path / "shards" / "set-{000000..999999}.tar")


def test_numbers_of_a_pattern_keep_their_zeros():
    names = [path.name for path in shards.expanded(Path("a-{8..11}-{x,y}.tar"))]
    assert names == [f"a-{n}-{letter}.tar" for n in (8, 9, 10, 11) for letter in "xy"]
    assert shards.expanded(Path("{3..1}.tar")) == []


@pytest.mark.parametrize("layout", ["{}/000.tar", "photos-{}-000.tar", "{}.tar"])
def test_parts_are_told_by_the_names_of_shards_or_their_folders(tmp_path, layout):
    for at, part in enumerate(("train", "validation", "test")):
        tar(tmp_path / "set" / layout.format(part), samples(range(10 * at, 10 * at + 10)))
    splits = data.load(tmp_path / "set", size=4)
    assert [len(p) for p in (splits.train, splits.val, splits.test)] == [10, 10, 10]
    assert set(splits.val.images[:, 0, 0, 0].tolist()) == set(range(10, 20))
    part = data.load_part(tmp_path / "set", size=4)
    assert part.split == "test" and len(part.pictures) == 10
    tar(tmp_path / "set" / layout.format("more"), samples(range(40, 44)))
    with pytest.raises(DataError, match="more.* beside test, train, val shards: of which part is it"):
        data.load(tmp_path / "set", size=4)


@pytest.mark.parametrize(
    "name, content",
    [
        ("classes.txt", "owl\n cat \nape\n"),
        ("classes.json", '["owl", "cat", "ape"]'),
        ("class_names.json", '{"0": "owl", "1": ["n02", "cat"], "2": "ape"}'),
        ("classes.json", '{"owl": 0, "cat": 1, "ape": 2}'),
    ],
)
def test_numbers_have_the_names_and_the_order_of_a_file_beside_them(tmp_path, name, content):
    root = fill(tmp_path / "shards", labels=("0", "1", "2"))
    (root / name).write_text(content)
    splits = data.load(root, size=4)
    assert splits.train.classes == ("owl", "cat", "ape")
    assert all(label == ("owl", "cat", "ape")[n % 3] for n, label in everything(splits).values())
    assert data.load(root / "set-{000..002}.tar", size=4).train.classes == ("owl", "cat", "ape")
    assert data.survey(root).counts["train"] == np.bincount(splits.train.labels).tolist()


def test_numbers_without_names_are_in_the_order_of_numbers(tmp_path):
    root = fill(tmp_path / "shards", labels=("2", "10", "9", "0", "1"))
    assert data.load(root, size=4).train.classes == ("0", "1", "2", "9", "10")


def test_names_are_labels_too(tmp_path):
    root = fill(tmp_path / "shards", labels=("owl", "cat"))
    assert data.load(root, size=4).train.classes == ("cat", "owl")


def test_a_single_shard_is_known_by_its_labels(tmp_path):
    path = tar(tmp_path / "one.tar", samples(range(20), prefix="deep/"))
    splits = data.load(path, size=4)
    assert everything(splits)["one.tar/deep/007.png"] == (7, "1")
    with pytest.raises(DataError, match="have no labels"):
        data.load(tar(tmp_path / "two.tar", {f"{i}.png": picture(i) for i in range(9)}), size=4)


def test_a_folder_of_tars_that_are_no_shards_is_refused_as_before(tmp_path):
    tar(tmp_path / "set" / "a.tar", {"cat/1.png": picture(1), "dog/2.png": picture(2)})
    with pytest.warns(UserWarning, match="archives inside are not opened"):
        with pytest.raises(DataError, match="no picture found"):
            data.load(tmp_path / "set")


@pytest.mark.parametrize(
    "members, said",
    [
        ({"a.png": picture(1), "a.cls": ""}, "a.cls must hold a number or a name, not ''"),
        ({"a.png": picture(1), "a.cls": "1\n2"}, "a.cls must hold a number or a name"),
        ({"a.png": picture(1), "a.json": "{"}, "a.json is no JSON"),
        ({"a.png": picture(1), "a.json": '{"text": "a cat"}'}, "a.json says no label; expected label or cls"),
        ({"a.png": picture(1), "a.json": '{"label": [1]}'}, "a label is a number or a name"),
        ({"a.png": picture(1), "a.json": '{"label": true}'}, "a label is a number or a name"),
        ({"a.png": picture(1), "a.jpg": picture(1), "a.cls": "1"}, "a has several pictures: a.jpg and a.png"),
        ({"b.txt": "caption", "b.cls": "1"}, "no picture found in these shards"),
    ],
)
def test_what_is_wrong_with_a_label_is_said(tmp_path, members, said):
    fill(tmp_path / "shards")
    tar(tmp_path / "shards" / "zzz.tar", members)
    if "no picture" in said:
        for path in (tmp_path / "shards").glob("set-*"):
            path.unlink()
    with pytest.raises(DataError, match=said), pytest.warns() if "no picture" in said else nullcontext():
        data.load(tmp_path / "shards", size=4)


def test_pictures_without_a_label_are_named_and_labels_without_a_picture_left_out(tmp_path):
    root = fill(tmp_path / "shards")
    tar(root / "x.tar", samples([40, 41]) | {"lost.cls": "1"})
    with pytest.warns(UserWarning, match="x.tar: 1 key without a picture left out"):
        assert len(everything(data.load(root, size=4))) == 32
    tar(root / "y.tar", {"a.png": picture(0), "b.png": picture(0), "c.png": picture(0), "c.cls": "1"})
    with pytest.raises(DataError, match="2 pictures without a label.*\n  y.tar/a.png\n  y.tar/b.png"):
        with pytest.warns(UserWarning, match="without a picture"):
            data.load(root, size=4)


@pytest.mark.parametrize(
    "content, said",
    [
        ("owl\n", "the label 1 has no name in .*classes.txt, which names 1 classes, 0 to 0"),
        ("owl\nowl\n", "classes 0 and 1 are both called owl"),
        ("owl\n\n", "the name of class 1 is empty"),
    ],
)
def test_class_names_that_do_not_fit_are_refused(tmp_path, content, said):
    root = fill(tmp_path / "shards")
    (root / "classes.txt").write_text(content)
    with pytest.raises(DataError, match=said):
        data.load(root, size=4)


@pytest.mark.parametrize("content", ["{", "3", '{"a": "b"}', '{"0": 1.5}', '["a", 2]'])
def test_a_file_of_class_names_that_is_none_is_refused(tmp_path, content):
    root = fill(tmp_path / "shards")
    (root / "classes.json").write_text(content)
    with pytest.raises(DataError, match="classes.json: expected a list of names"):
        data.load(root, size=4)


def test_a_compressed_or_damaged_shard_is_refused(tmp_path):
    root = fill(tmp_path / "shards")
    tar(root / "set-001.tar", samples(range(4)), "w:gz")
    with pytest.raises(DataError, match="set-001.tar: this shard is compressed.*unpack it to a plain tar"):
        data.load(root)
    content = tar(root / "set-001.tar", samples(range(4))).read_bytes()
    (root / "set-001.tar").write_bytes(content[:3000])
    with pytest.raises(DataError, match="set-001.tar: cannot read this tar: it is cut off or damaged"):
        data.load(root)


def test_shards_are_opened_for_each_picture_and_a_change_is_noticed(tmp_path, monkeypatch):
    root = fill(tmp_path / "shards", 60)
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (50, before[1]))
    try:
        images = data.load_part(root, size=4, stream=True).pictures.images
        assert images[::7].shape[0] == 86
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    tar(root / "set-003.tar", samples(range(12)))
    with pytest.raises(data.Unreadable, match="set-003.tar: was changed while it was in use"):
        images[:]


def test_a_large_tar_is_not_read_through_to_be_listed(tmp_path, monkeypatch):
    path = tar(tmp_path / "a.tar", {f"{i}.png": bytes(10**6) for i in range(20)})
    read = []
    watched = archives._Watched.read
    monkeypatch.setattr(archives._Watched, "read", lambda self, n: read.append(n) or watched(self, n))
    found = archives.in_tar(path)
    assert len(found) == 20 and sum(read) < 200_000
    assert found[3].read() == bytes(10**6)

"""What ``survey`` says of a data set: counts without a size, and what is doubtful."""

import io

import numpy as np
import pytest
from PIL import Image

import minires.data as data
from minires.data import counts, twins
from minires.errors import ConfigError, DataError


def photo(seed, side=40):
    """A smooth picture with structure, as a photograph has it."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)


def save(path, picture, kind="PNG", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    file = io.BytesIO()
    picture.save(file, kind, **options)
    path.write_bytes(file.getvalue())


def fill(root, counts, start=0):
    for folder, count in counts.items():
        for i in range(count):
            save(root / folder / f"{i}.png", photo(start := start + 1, side=20 + i % 3))
    return root


def said(root, words):
    return [warning for warning in data.survey(root).warnings if words in warning]


def test_pictures_of_any_size_are_counted_by_the_parts_that_training_has(tmp_path):
    fill(tmp_path, {"cat": 30, "dog": 30})
    found, splits = data.survey(tmp_path), data.load(tmp_path, size=8)
    assert found.classes == ("cat", "dog") and found.smallest == (20, 20) and found.largest == (22, 22)
    for part in ("train", "val", "test"):
        assert found.counts[part] == np.bincount(getattr(splits, part).labels).tolist()
    assert found.name == splits.train.name and found.source == splits.source


def test_the_size_is_that_of_the_upright_picture(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for i in range(10):
        for label in ("a", "b"):
            picture = photo(hash(label + str(i)) % 1000).resize((3000, 200))
            save(tmp_path / label / f"{i}.jpg", picture, "JPEG", exif=exif)
    assert data.survey(tmp_path).largest == (3000, 200)


def test_a_set_without_a_training_part_is_counted_too(tmp_path):
    fill(tmp_path, {"test/cat": 2, "test/dog": 1})
    assert data.survey(tmp_path).counts == {"test": [2, 1]}
    fill(tmp_path, {"val/cow": 2}, start=9)
    found = data.survey(tmp_path)
    assert found.classes == ("cat", "cow", "dog") and found.counts == {"val": [0, 2, 0], "test": [2, 0, 1]}
    assert said(tmp_path, "val has no picture of cat, dog") and said(tmp_path, "test has no picture of cow")


def test_few_pictures_uneven_classes_and_single_ones_are_warned_of(tmp_path):
    fill(tmp_path / "a", {"train/cat": 40, "train/Cow": 9, "train/cow": 1, "test/cat": 10})
    assert said(tmp_path / "a", "few pictures: 40 to train 3 classes")
    assert said(tmp_path / "a", "the test part has 10 pictures: each is 10.0% of the accuracy")
    assert said(
        tmp_path / "a", "uneven classes: 50 pictures of cat, 1 of cow; who always says cat is right in 83%"
    )
    assert said(tmp_path / "a", "a single picture of cow: it can be in one part only")
    assert said(tmp_path / "a", "Cow and cow are taken for different classes")
    fill(
        tmp_path / "b",
        {"train/cat": 40, "train/cow": 40, "val/cat": 20, "val/cow": 20, "test/cat": 20, "test/cow": 20},
    )
    assert data.survey(tmp_path / "b").warnings == []


def test_twins_in_different_parts_are_named(tmp_path):
    fill(tmp_path, {"train/cat": 6, "train/dog": 6, "val/cat": 3, "val/dog": 3, "test/cat": 3, "test/dog": 3})
    save(tmp_path / "test/cat/same.png", photo(1, side=20))  # train/cat/0.png
    save(tmp_path / "test/dog/smaller.jpg", photo(9, side=64).resize((33, 33)), "JPEG", quality=60)
    save(tmp_path / "train/cat/within.png", photo(2, side=21))  # nothing is wrong with train/cat/1.png
    save(tmp_path / "train/cat/nearly.png", photo(4, side=90))  # train/cat/3.png: the same part and class
    found = data.survey(tmp_path).twins
    assert [(t.one, t.other, t.nearly) for t in found] == [
        (("train", "cat", "train/cat/0.png"), ("test", "cat", "test/cat/same.png"), False),
        (("train", "dog", "train/dog/2.png"), ("test", "dog", "test/dog/smaller.jpg"), True),
    ]
    assert said(
        tmp_path,
        "1 pair of pictures that are the same, byte for byte, in different parts: train/cat/0.png (train)",
    )
    assert said(
        tmp_path,
        "1 pair of pictures that are nearly the same in different parts: train/dog/2.png (train) and test",
    )
    assert said(tmp_path, "what shows the same scene or person belongs into one part")


def test_the_same_picture_in_two_classes_is_named(tmp_path):
    fill(tmp_path, {"train/cat": 6, "train/dog": 6, "val/cat": 3, "val/dog": 3, "test/cat": 3, "test/dog": 3})
    save(tmp_path / "train/dog/x.png", photo(3, side=22))
    assert said(tmp_path, "in different classes: train/cat/2.png (train) and train/dog/x.png (train)")


def test_different_photographs_are_no_twins():
    looks = [twins.Look.at(photo(seed), str(seed).encode()) for seed in range(300)]
    assert twins.nearly(looks) == [] == twins.same(looks)
    looks += [twins.Look.at(photo(seed, side=90), b"x%d" % seed) for seed in range(0, 300, 50)]
    assert twins.nearly(looks) == [(seed, 300 + place) for place, seed in enumerate(range(0, 300, 50))]


def test_many_equal_pictures_take_no_time_and_no_end_of_pairs(monkeypatch):
    black = Image.new("RGB", (8, 8))
    looks = [twins.Look.at(black, b"%d" % (i % 2000)) for i in range(6_000)]
    assert len(twins.nearly(looks)) == twins.ENOUGH
    assert len(twins.same(looks)) == 2000
    monkeypatch.setattr(twins, "MOST", 100)
    assert twins.nearly(looks) == []


def test_of_very_many_pictures_some_are_looked_at(tmp_path, monkeypatch):
    fill(tmp_path, {"cat": 30, "dog": 31})
    save(tmp_path / "cat" / "99.png", photo(7, side=40))
    monkeypatch.setattr(twins, "MOST", 60)
    monkeypatch.setattr(twins, "ENOUGH", 20)
    looked, look = [], counts.look
    monkeypatch.setattr(counts, "look", lambda content, name: looked.append(name) or look(content, name=name))
    found = data.survey(tmp_path)
    assert sum(map(sum, found.counts.values())) == 62 and len(looked) <= 20 and found.twins == []
    assert found.counts == {
        part: np.bincount(getattr(data.load(tmp_path, size=4), part).labels).tolist() for part in found.counts
    }
    (warning,) = [one for one in found.warnings if "looked at" in one]
    assert warning.startswith(f"62 pictures: looked at {len(looked)} of them") and "--check" in warning


def test_what_cannot_be_read_is_named(tmp_path):
    fill(tmp_path, {"cat": 6, "dog": 6})
    (tmp_path / "cat" / "x.png").write_bytes(b"<html>")
    with pytest.raises(
        DataError, match="1 unreadable picture; mend or remove it:.*\n  cat/x.png: .*web page"
    ):
        data.survey(tmp_path)


def test_a_size_that_is_none_is_refused(tmp_path):
    for size in (0, -3):
        with pytest.raises(ConfigError, match=f"picture size must be at least 1, got {size}"):
            data.survey(tmp_path, size=size)


@pytest.mark.usefixtures("registries_as_before")
def test_a_set_that_is_no_files_is_surveyed():
    @data.register("drawn")
    def drawn(*, size=None, seed=0):
        images = np.stack([np.asarray(photo(place, side=8)) for place in (*range(60), 59)])
        labels = np.arange(61) % 2
        whole = data.Dataset(images, labels, ("even", "odd"), tuple(map(str, range(61))), "drawn")
        return data.Splits(whole.take(range(40)), whole.take(range(40, 60)), whole.take([60]), "drawn ones")

    found = data.survey("drawn")
    assert (found.name, found.source, found.largest) == ("drawn", "drawn ones", (8, 8))
    assert found.counts == {"train": [20, 20], "val": [10, 10], "test": [1, 0]}
    assert [(t.one, t.other, t.nearly) for t in found.twins] == [
        (("val", "odd", "59"), ("test", "even", "60"), False)
    ]

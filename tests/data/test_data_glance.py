"""``glance`` counts as ``load`` divides, and reads a few pictures only."""

import numpy as np
import pytest
from PIL import Image

from minires import data
from minires.data.glancing import LOOKED_AT
from minires.data.tree import Entry
from minires.errors import ConfigError, DataError


def fill(root, counts, size=(50, 30)):
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", size, (number, 0, 0)).save(root / folder / f"{number}.png")
    return root


@pytest.mark.parametrize(
    "counts",
    [
        {"cat": 30, "dog": 11},
        {"train/cat": 13, "train/dog": 8},
        {"train/cat": 13, "train/dog": 8, "test/dog": 3, "test/cat": 2},
        {"train/cat": 9, "train/dog": 8, "val/cat": 2, "val/dog": 1, "test/dog": 3, "test/cat": 2},
    ],
)
def test_the_parts_are_those_of_load(counts, tmp_path):
    seen, splits = data.glance(fill(tmp_path, counts)), data.load(tmp_path, size=8)
    assert seen.classes == splits.train.classes and seen.shorter == 30
    for part, counts in seen.counts.items():
        held = getattr(splits, part)
        assert list(counts) == np.bincount(held.labels, minlength=2).tolist()
        assert seen.total(part) == len(held)


def test_few_pictures_are_read_however_many_there_are(tmp_path, monkeypatch):
    fill(tmp_path, {"cat": 90, "dog": 90})
    read = []

    def counting(root):
        def wrapped(entry):
            return entry.read and (lambda: read.append(entry.name) or entry.read())

        return [Entry(entry.parts, wrapped(entry)) for entry in on_disk(root)]

    on_disk = data.sources.tree.on_disk
    monkeypatch.setattr(data.sources.tree, "on_disk", counting)
    assert data.glance(tmp_path).shorter == 30
    assert 0 < len(read) <= LOOKED_AT


def test_a_picture_that_cannot_be_read_does_not_matter_here(tmp_path):
    fill(tmp_path, {"cat": 5, "dog": 5}, size=(20, 70))
    (tmp_path / "cat" / "0.png").write_bytes(b"none")
    assert data.glance(tmp_path).shorter == 20


def test_signs_in_its_own_layout_are_known_at_a_path(tmp_path):
    for folder, count in (("train_signs", 6), ("val_signs", 3), ("test_signs", 2)):
        (tmp_path / folder).mkdir()
        for number in range(count):
            name = f"{number % 6}_IMG_{number}.jpg"
            Image.new("RGB", (64, 64), (40 * number, 0, 0)).save(tmp_path / folder / name)
    seen = data.glance(tmp_path)
    assert [seen.total(part) for part in ("train", "val", "test")] == [6, 3, 2] and seen.shorter == 64


def test_what_is_no_data_set_is_refused_as_by_load(tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        data.glance(tmp_path / "nothing.zip")
    with pytest.raises(ConfigError, match="data set"):
        data.glance("hand")

"""Dataset: its checks, take, split and join."""

from dataclasses import replace

import numpy as np
import pytest

from minires.data import Dataset, Splits
from minires.errors import ConfigError, DataError, ShapeError


def make(counts=(10, 20, 5), name="toy"):
    labels = np.repeat(np.arange(len(counts)), counts).astype(np.int64)
    images = np.arange(len(labels), dtype=np.uint8)[:, None, None, None] + np.zeros((1, 4, 4, 3), np.uint8)
    names = tuple(f"{name}-{i}" for i in range(len(labels)))
    return Dataset(images, labels, tuple("abc"[: len(counts)]), names, name)


def test_take_keeps_pictures_labels_and_names_together():
    part = make().take([3, 30, 12])
    assert part.images[:, 0, 0, 0].tolist() == [3, 30, 12]
    assert part.labels.tolist() == [0, 2, 1]
    assert part.names == ("toy-3", "toy-30", "toy-12")
    assert len(part) == 3


def test_it_is_printed_in_one_line():
    assert repr(make()) == "Dataset 'toy': 35 pictures of 4x4, 3 classes (a, b, c)"
    many = replace(make(), classes=tuple("abcdefgh"))
    assert repr(many).endswith("8 classes (a, b, c, d, e, f, ...)")
    lines = repr(Splits(make(), make((1,)), make((2,)), "a toy")).splitlines()
    assert lines[0] == "Splits from a toy"
    assert lines[2] == "  val: Dataset 'toy': 1 pictures of 4x4, 1 classes (a)"


def test_split_is_stratified_and_loses_nothing():
    first, second = make().split(0.8, seed=0)
    assert np.bincount(first.labels).tolist() == [8, 16, 4]
    assert np.bincount(second.labels).tolist() == [2, 4, 1]
    together = sorted(first.names + second.names)
    assert together == sorted(make().names)
    assert all(int(n.split("-")[1]) == i[0, 0, 0] for n, i in zip(first.names, first.images, strict=True))


def test_split_has_exactly_the_rounded_share_where_classes_do_not_divide():
    first, second = make((7, 7, 7)).split(0.5, seed=1)
    assert len(first) == round(0.5 * 21) and len(second) == 21 - len(first)
    assert set(np.bincount(first.labels)) <= {3, 4}


def test_a_class_of_one_picture_is_in_the_larger_part():
    first, second = make((1, 14, 14)).split(0.7, seed=0)  # shares 0.7, 9.8, 9.8: of three, two
    assert np.bincount(first.labels).tolist() == [1, 10, 9]
    assert np.bincount(make((1, 9, 9)).split(0.3, seed=0)[1].labels)[0] == 1


def test_split_follows_the_seed():
    assert make().split(0.5, seed=4)[0].names == make().split(0.5, seed=4)[0].names
    assert make().split(0.5, seed=4)[0].names != make().split(0.5, seed=5)[0].names
    assert make().split(0.5, seed=2**64 - 1)[0].names != make().split(0.5, seed=2**32 - 1)[0].names


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1, 1.5])
def test_split_refuses_a_fraction_outside_0_to_1(fraction):
    with pytest.raises(ConfigError, match="above 0 and below 1"):
        make().split(fraction, seed=0)


def test_split_refuses_an_empty_part():
    with pytest.raises(DataError, match="2 pictures are too few"):
        make((1, 1)).split(0.9, seed=0)


def test_join():
    whole = make().join(make((1, 1, 1), "more"))
    assert len(whole) == 38 and whole.names[-1] == "more-2" and whole.labels[-1] == 2
    with pytest.raises(DataError, match="classes"):
        make().join(make((1, 1)))
    small = make()
    other = Dataset(np.zeros((35, 5, 5, 3), np.uint8), small.labels, small.classes, small.names, "big")
    with pytest.raises(DataError, match="sizes differ"):
        small.join(other)


def test_bad_contents_are_refused():
    good = make()
    with pytest.raises(DataError, match="'none' is empty"):
        Dataset(good.images[:0], good.labels[:0], good.classes, (), "none")
    with pytest.raises(DataError, match=r"label 2 of toy-30 is outside 0\.\.1 \(2 classes; 5 such"):
        Dataset(good.images, good.labels, ("a", "b"), good.names, "x")
    with pytest.raises(DataError, match="label -1"):
        Dataset(good.images, good.labels - 1, good.classes, good.names, "x")
    with pytest.raises(ShapeError, match="float64"):
        Dataset(good.images.astype(float), good.labels, good.classes, good.names, "x")
    with pytest.raises(ShapeError, match="35 pictures need"):
        Dataset(good.images, good.labels[:-1], good.classes, good.names, "x")
    with pytest.raises(ShapeError, match="as many names"):
        Dataset(good.images, good.labels, good.classes, good.names[1:], "x")


def test_lists_of_labels_are_taken():
    pictures = np.zeros((4, 8, 8, 3), np.uint8)
    made = Dataset(pictures, [0, 1, 0, 1], ("a", "b"), ("p",) * 4, "mine")
    assert made.labels.dtype == np.int64 and made.take([1]).labels.tolist() == [1]
    with pytest.raises(ShapeError, match="4 pictures need int64 labels"):
        Dataset(pictures, [0, 1, 0], ("a", "b"), ("p",) * 4, "mine")

"""A subset of a data set: how many of each class, which, always the same ones, and what is refused."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from train.small_run import stripes, write_pictures

from minires.data import Dataset, Stream, load
from minires.data.subset import chosen, shares
from minires.errors import ConfigError


@pytest.mark.parametrize(("counts", "pictures", "expected"), [
    ((50, 30, 20), 10, (5, 3, 2)),
    ((50, 30, 20), 100, (50, 30, 20)),
    ((7, 7, 7), 10, (4, 3, 3)),  # of equal remainders the first
    ((10, 10, 10), 5, (2, 2, 1)),
    ((60, 25, 15), 9, (6, 2, 1)),  # 5.4, 2.25, 1.35: the largest remainder is the first
    ((90, 9, 1), 10, (8, 1, 1)),  # 9, 0.9, 0.1: the last must have one, and the first is furthest above
    ((97, 1, 1, 1), 4, (1, 1, 1, 1)),
    ((97, 1, 1, 1), 3, (3, 0, 0, 0)),  # too few for one of each
    ((0, 8, 2), 5, (0, 4, 1)),  # of a class that has none none is asked for
    ((0, 99, 1), 2, (0, 1, 1)),
    ((1,), 1, (1,)),
])  # fmt: skip
def test_each_class_has_its_share_and_one_at_least(counts, pictures, expected):
    assert tuple(shares(counts, pictures, where="x")) == expected


def test_shares_of_any_counts_add_up_and_are_near_the_exact_ones():
    rng = np.random.default_rng(0)
    for _ in range(300):
        counts = rng.integers(0, 200, rng.integers(1, 12))
        if not counts.sum():
            continue
        pictures = int(rng.integers(1, counts.sum() + 1))
        found, exact = shares(counts, pictures, where="x"), pictures * counts / counts.sum()
        assert found.sum() == pictures and (found <= counts).all() and (found >= 0).all()
        if pictures >= (counts > 0).sum():
            assert (found[counts > 0] > 0).all()
        if (exact[counts > 0] >= 1).all():
            assert (np.abs(found - exact) < 1).all()


def test_the_choice_is_this_one_wherever_it_is_made():
    """By hand: ranks of k * phi without its whole part, 0, .618, .236, .854, .472, .090, .708, ..."""
    phi = (1 + 5**0.5) / 2
    by_hand = np.sort(np.argsort(np.arange(1000) * phi % 1)[:137])
    assert chosen(np.zeros(1000, int), 1, 137, where="x").tolist() == by_hand.tolist()
    assert chosen([0] * 7 + [1] * 2, 2, 4, where="x").tolist() == [0, 2, 5, 7]


def test_a_larger_choice_has_all_of_a_smaller_one_and_spreads_over_the_class():
    labels = np.zeros(500, int)
    before: set[int] = set()
    for pictures in range(1, 501, 7):
        places = chosen(labels, 1, pictures, where="x").tolist()
        assert before <= set(places) and places == sorted(places)
        before = set(places)
        if pictures > 10:
            assert max(np.diff([*places, 500 + places[0]])) < 3 * 500 / pictures


def test_some_takes_pictures_labels_and_names_together_and_all_are_all():
    whole = stripes(93, 0)
    part = whole.some(31)
    places = [whole.names.index(name) for name in part.names]
    assert places == sorted(places) and len(set(places)) == 31
    assert np.array_equal(part.images, whole.images[places])
    assert np.array_equal(part.labels, whole.labels[places])
    assert np.bincount(part.labels).tolist() == [11, 10, 10] and part.classes == whole.classes
    assert whole.some(93) is whole and whole.some(np.int64(5)).names == whole.some(5).names


def test_it_does_not_hang_on_names_or_pixels():
    one = stripes(30, 0)
    other = Dataset(stripes(30, 7).images, one.labels, one.classes, tuple(map(str, range(30))), "other")
    places = [int(name) for name in other.some(11).names]
    assert one.some(11).names == tuple(one.names[place] for place in places)


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "5", None, True])
def test_a_number_that_is_none_is_refused(wrong):
    with pytest.raises(ConfigError, match="the number of pictures"):
        stripes(9, 0).some(wrong)


def test_more_than_there_are_are_refused_with_the_numbers():
    with pytest.raises(ConfigError, match="10 pictures of data set 'stripes' .* only 9 .* ask for 9 at most"):
        stripes(9, 0).some(10)


def test_a_stream_stays_one_and_has_the_same_pictures(tmp_path):
    path = str(write_pictures(tmp_path / "pictures"))
    with warnings.catch_warnings(action="ignore"):
        kept, streamed = (load(path, size=12, stream=stream).train.some(20) for stream in (False, True))
    assert isinstance(streamed.images, Stream) and streamed.names == kept.names
    assert np.array_equal(streamed.images[:], kept.images)

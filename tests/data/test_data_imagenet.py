"""Steps of the papers, each beside an independent implementation: random scale and crop, PCA colour."""

import math

import numpy as np
import pytest
from PIL import Image

from minires.data import augment, build
from minires.errors import ConfigError


def photo(width, height, seed=0):
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def only(*spec):
    (step,) = build([list(spec)]).steps
    return step


def cubic(t):  # with a = -0.5
    near, far = 1.5 * t**3 - 2.5 * t**2 + 1, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    return np.where(t < 1, near, np.where(t < 2, far, 0))


FILTERS = {
    "bilinear": (1, lambda t: np.maximum(0, 1 - t)),
    "bicubic": (2, cubic),
    "lanczos": (3, lambda t: np.where(t < 3, np.sinc(t) * np.sinc(t / 3), 0)),
}


def scaled(x, axis, length, first, count, resample):
    """``count`` places, from ``first`` on, of the axis of a picture that was scaled to ``length``."""
    _, weight = FILTERS[resample]
    ratio = x.shape[axis] / length
    centres = (first + np.arange(count) + 0.5) * ratio
    weights = weight(np.abs(np.arange(x.shape[axis]) + 0.5 - centres[:, None]) / max(1, ratio))
    weights /= weights.sum(axis=1, keepdims=True)
    return np.moveaxis(np.tensordot(weights, x, (1, axis)), 0, axis)


@pytest.mark.parametrize("size", [(90, 61), (61, 90), (200, 300), (64, 64)])
@pytest.mark.parametrize("resample", FILTERS)
def test_scale_crop_is_to_scale_the_picture_and_to_cut_a_square(size, resample):
    image, step = photo(*size), only("scale_crop", {"shorter": [40, 70], "resample": resample})
    shorter = set()
    for seed in range(30):
        rng = np.random.default_rng(seed)
        target = rng.integers(40, 71)  # drawn in this order: the scale, the left, the top
        wide, high = (round(side * target / min(size)) for side in size)
        left, top = rng.integers(0, wide - 32 + 1), rng.integers(0, high - 32 + 1)
        expected = np.asarray(image, float)
        for axis, length, first in ((1, wide, left), (0, high, top)):
            expected = np.clip(scaled(expected, axis, length, first, 32, resample), 0, 255)
        found = step.from_picture(image, 32, np.random.default_rng(seed))
        assert found.shape == (32, 32, 3) and found.dtype == np.uint8
        assert np.abs(found - expected).max() < 1.3  # Pillow rounds after each of its two passes
        shorter.add(int(target))
    assert len(shorter) > 15


def test_scale_crop_takes_one_number_and_uses_both_ends():
    step = only("scale_crop", {"shorter": 32})
    whole = np.asarray(photo(64, 64).resize((32, 32), Image.Resampling.BILINEAR))
    assert np.array_equal(step.from_picture(photo(64, 64), 32, np.random.default_rng(0)), whole)
    assert step.shorter == (32, 32) and only("scale_crop", {}).shorter == (256, 480)
    drawn = {int(np.random.default_rng(seed).integers(3, 5)) for seed in range(20)}
    assert drawn == {3, 4}


@pytest.mark.parametrize(
    "options, said",
    [
        ({"shorter": [480, 256]}, "shorter goes from 480 to 256; swap them"),
        ({"shorter": 0}, "shorter must be a whole number of at least 1"),
        ({"shorter": [1, 2, 3]}, "shorter must be a whole number"),
        ({"shorter": [256.5, 480]}, "shorter must be a whole number"),
        ({"resample": "nearest"}, "resample"),
    ],
)
def test_scale_crop_refuses_what_is_no_range(options, said):
    with pytest.raises(ConfigError, match=said):
        build([["scale_crop", options]])


def test_scale_crop_must_be_the_first_step():
    with pytest.raises(ConfigError, match="must be the first of the list"):
        build(["flip", ["scale_crop", {}]])
    assert augment.needs_stream(build([["scale_crop", {}], "flip"]))
    assert not augment.needs_stream(build(["crop", "flip"])) and not augment.needs_stream(None)


@pytest.mark.parametrize("size", [(120, 80), (50, 200), (64, 64)])
def test_crop_of_a_picture_in_its_file_is_that_of_the_inception_paper(size):
    options = {"scale": [0.08, 1.0], "ratio": [3 / 4, 4 / 3]}
    image, step = photo(*size), only("crop", options)
    fallen_back = 0
    for seed in range(60):
        rng, box = np.random.default_rng(seed), None
        for _ in range(10):
            area = image.width * image.height * rng.uniform(0.08, 1.0)
            ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
            wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if wide <= image.width and high <= image.height:
                left, top = rng.integers(0, image.width - wide + 1), rng.integers(0, image.height - high + 1)
                box = (left, top, left + wide, top + high)
                break
        if box is None:
            fallen_back += 1
            own = image.width / image.height
            wide = image.width if own < 4 / 3 else round(image.height * 4 / 3)
            high = image.height if own > 3 / 4 else round(image.width / (3 / 4))
            left, top = (image.width - wide) // 2, (image.height - high) // 2
            box = (left, top, left + wide, top + high)
        expected = np.asarray(image.resize((24, 24), Image.Resampling.BILINEAR, box=tuple(map(int, box))))
        assert np.array_equal(step.from_picture(image, 24, np.random.default_rng(seed)), expected)
    assert fallen_back or size != (50, 200)


def test_crop_finds_the_largest_box_where_none_fits():
    step = only("crop", {"scale": [1.0, 1.0], "ratio": [1.0, 1.0]})
    image = photo(90, 40)
    expected = image.resize((16, 16), Image.Resampling.BILINEAR, box=(25, 0, 65, 40))
    assert np.array_equal(step.from_picture(image, 16, np.random.default_rng(0)), np.asarray(expected))


def test_what_a_picture_may_be_reduced_to_is_enough_for_the_step():
    assert only("scale_crop", {"shorter": [256, 480]}).least(224) == 480
    assert only("crop", {"scale": [0.25, 1.0]}).least(224) == 448


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_pca_colour_adds_the_eigenvectors_by_random_amounts(dtype):
    x = np.random.default_rng(3).integers(0, 256, (5, 4, 6, 3)).astype(dtype)
    values, vectors = [0.3, 0.2, 0.1], [[1.0, 0.0, 0.5], [0.0, 1.0, 0.5], [0.5, 0.0, 1.0]]
    step = only("pca_colour", {"std": 0.5, "values": values, "vectors": vectors})
    found = step(x, np.random.default_rng(9))
    amounts = np.random.default_rng(9).normal(0, 0.5, (5, 3))
    expected = np.empty(x.shape)
    for n, i, j in np.ndindex(5, 4, 6):
        for colour in range(3):
            light = sum(vectors[colour][k] * amounts[n, k] * values[k] for k in range(3))
            expected[n, i, j, colour] = min(255, max(0, x[n, i, j, colour] + 255 * light))
    if dtype == np.uint8:
        assert found.dtype == np.uint8 and np.abs(found - np.rint(expected)).max() <= 1
        assert (found == np.rint(expected)).mean() > 0.999
    else:
        assert np.allclose(found, expected, atol=1e-3)


def test_the_colours_of_imagenet_are_eigenvectors():
    step = only("pca_colour", {})
    vectors, values = np.array(step.vectors), np.array(step.values)
    assert np.allclose(vectors.T @ vectors, np.eye(3), atol=1e-3)
    assert (np.diff(values) < 0).all() and step.std == 0.1
    grey = vectors[:, 0] / vectors[0, 0]  # most of the difference is light and dark
    assert np.allclose(grey, 1, atol=0.05)


@pytest.mark.parametrize(
    "options, said",
    [
        ({"std": -1}, "std is -1; it must be at least 0"),
        ({"values": [1, 2]}, "values must be 3 numbers"),
        ({"values": [1, 2, -3]}, "must be at least 0"),
        ({"vectors": [[1, 2, 3]]}, "vectors must be 3 lists of 3 numbers"),
        ({"vectors": [[1, 2, 3], [1, 2], [1, 2, 3]]}, r"vectors\[1\] must be 3 numbers"),
    ],
)
def test_pca_colour_refuses_what_is_no_matrix(options, said):
    with pytest.raises(ConfigError, match=said):
        build([["pca_colour", options]])

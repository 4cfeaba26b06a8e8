"""What is done with pictures of ImageNet, beside torchvision itself: scale, crop, mirror, normalise, views.

torchvision has no light along the colours' eigenvectors: ``pca_colour`` is held by test_data_imagenet.py.
"""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from minires.data import Normalize, augment, build
from minires.data.pictures import decode
from minires.train.multicrop import cut

pytest.importorskip("torchvision", reason="needs torchvision")
from torchvision.transforms import v2  # noqa: E402

SIZES = [(90, 61), (61, 90), (200, 123), (64, 64), (57, 211)]  # wide, high
MODES = [v2.InterpolationMode.BILINEAR, v2.InterpolationMode.BICUBIC, v2.InterpolationMode.LANCZOS]


def photo(wide, high):
    small = np.random.default_rng(5).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((wide, high), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("scale", "side"), [(37, 32), (40, 33), (50, 50), (256, 224)])
def test_one_crop_and_ten_are_resize_and_center_crop_or_ten_crop(size, scale, side):
    picture = photo(*size)
    resized = v2.Resize(scale)(picture)
    middle = np.asarray(v2.CenterCrop(side)(resized))
    assert np.array_equal(cut(picture, scale, side, 1), middle[None])
    # There the middle is the last of five, and what is left in a mirrored picture is right in ours.
    theirs = [np.asarray(view) for view in v2.TenCrop(side)(resized)]
    theirs = [theirs[place] for place in (4, 0, 1, 2, 3, 9, 6, 5, 8, 7)]
    if (resized.width - side) % 2:  # theirs is the middle of the mirrored picture then, a column beside ours
        theirs[5] = middle[:, ::-1]
    assert np.array_equal(cut(picture, scale, side, 10), theirs)
    whole = [np.asarray(resized), np.asarray(v2.functional.horizontal_flip(resized))]
    assert np.array_equal(cut(picture, scale, side, "full"), whole)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
def test_scale_crop_is_resize_and_crop(size, mode):
    picture = photo(*size)
    (step,) = build([["scale_crop", {"shorter": [40, 70], "resample": mode.value}]]).steps
    for seed in range(20):
        rng = np.random.default_rng(seed)
        shorter = int(rng.integers(40, 71))  # drawn in this order: the scale, the left, the top
        wide, high = (round(length * shorter / min(size)) for length in size)
        theirs = v2.functional.resize(picture, [high, wide], interpolation=mode)
        assert max(map(abs, np.subtract(theirs.size, v2.Resize(shorter)(picture).size))) <= 1
        left, top = int(rng.integers(0, wide - 32 + 1)), int(rng.integers(0, high - 32 + 1))
        expected = np.asarray(v2.functional.crop(theirs, top, left, 32, 32))
        found = step.from_picture(picture, 32, np.random.default_rng(seed))
        # Of 255: Pillow rounds after each of its two passes, and its weights, too.
        assert np.abs(found.astype(int) - expected).max() <= 2 and (found != expected).mean() < 0.15


def test_flip_and_normalize_are_those_of_torchvision():
    batch = np.stack([np.asarray(photo(40, 40)), np.asarray(photo(50, 50))[:40, 5:45]])
    found = augment.Flip(p=1)(batch, np.random.default_rng(0))
    pipeline = v2.Compose([v2.ToImage(), v2.ToDtype(dtype=_float32(), scale=True),
                           v2.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])])  # fmt: skip
    for one, mirrored in zip(batch, found, strict=True):
        theirs = v2.RandomHorizontalFlip(p=1)(Image.fromarray(one))
        assert np.array_equal(mirrored, np.asarray(theirs))
        np.testing.assert_allclose(
            Normalize.imagenet()(mirrored), pipeline(theirs).numpy().transpose(1, 2, 0), atol=1e-6
        )


@pytest.mark.parametrize("size", SIZES)
def test_the_square_of_a_set_is_the_largest_in_the_middle_resized(size, tmp_path):
    picture = photo(*size)
    picture.save(tmp_path / "a.png")
    square = v2.CenterCrop(min(size))(picture)
    theirs = v2.Resize(32, interpolation=v2.InterpolationMode.LANCZOS)(square)
    found = decode(tmp_path / "a.png", size=32)
    assert np.array_equal(found, theirs)


def _float32():
    import torch

    return torch.float32

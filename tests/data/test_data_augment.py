"""Augmentations and normalisation: what they compute, that they leave their input alone, what they refuse."""

import json

import numpy as np
import pytest

from minires.data import Dataset, Normalize, augment, build
from minires.errors import ConfigError

EVERY = [["shift", {"pixels": 3}], "flip", ["jitter", {}], ["crop", {"scale": [0.5, 0.9]}]]


def batch(n=16, height=12, width=10, dtype=np.uint8):
    return np.random.default_rng(7).integers(0, 256, (n, height, width, 3)).astype(dtype)


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("spec", EVERY, ids=lambda s: s if isinstance(s, str) else s[0])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_shape_dtype_input_and_seed(spec, dtype):
    x = batch(dtype=dtype)
    before = x.copy()
    y = build([spec])(x, rng(1))
    assert y.shape == x.shape and y.dtype == x.dtype
    assert np.array_equal(x, before) and not np.shares_memory(x, y)
    assert not np.array_equal(y, x)
    assert np.array_equal(y, build([spec])(x, rng(1)))
    assert not np.array_equal(y, build([spec])(x, rng(2)))
    one = build([spec])(x[:1, ::-1], rng(1))  # a batch of one, not contiguous
    assert one.shape == (1, 12, 10, 3)


@pytest.mark.parametrize("mode, options", [("edge", {}), ("constant", {"constant_values": 9})])
def test_shift_gives_a_window_of_the_padded_picture(mode, options):
    x = batch(n=200)
    shift = augment.Shift(pixels=2, mode=mode, value=9.0) if options else augment.Shift(pixels=2)
    y = shift(x, rng())
    padded = np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)), mode, **options)
    places = set()
    for i in range(len(x)):
        fits = [(a, b) for a in range(5) for b in range(5)
                if np.array_equal(y[i], padded[i, a : a + 12, b : b + 10])]  # fmt: skip
        assert len(fits) == 1
        places.add(fits[0])
    assert len(places) == 25  # every shift occurs
    assert np.array_equal(augment.Shift(pixels=0)(x, rng()), x)


def test_flip_mirrors_about_half_left_to_right():
    x = batch(n=400)
    y = augment.Flip()(x, rng())
    mirrored = np.array([np.array_equal(b, a[:, ::-1]) for a, b in zip(x, y, strict=True)])
    same = np.array([np.array_equal(b, a) for a, b in zip(x, y, strict=True)])
    assert (mirrored ^ same).all() and 160 < mirrored.sum() < 240
    assert np.array_equal(augment.Flip(p=1)(x, rng()), x[:, :, ::-1])
    assert np.array_equal(augment.Flip(p=0)(x, rng()), x)


def test_jitter_is_the_formula():
    x = batch(n=5, dtype=np.float32)
    y = augment.ColorJitter(brightness=0.3, contrast=0.4, saturation=0.5)(x, rng(3))
    draws = rng(3).uniform(-1, 1, size=(3, 5))
    for i in range(5):
        b, c, s = 1 + np.array([0.3, 0.4, 0.5]) * draws[:, i]
        grey = x[i].astype(float) @ [0.299, 0.587, 0.114]
        step = b * (c * x[i] + (1 - c) * grey.mean())
        step_grey = step @ [0.299, 0.587, 0.114]
        want = np.clip(s * step + (1 - s) * step_grey[..., None], 0, 255)
        assert np.allclose(y[i], want, atol=1e-2)
    whole = augment.ColorJitter(brightness=0.3, contrast=0.4, saturation=0.5)(x.astype(np.uint8), rng(3))
    assert np.abs(whole - y).max() <= 0.5 + 1e-2
    assert np.array_equal(
        augment.ColorJitter(brightness=0, contrast=0, saturation=0)(batch(), rng()), batch()
    )


def test_crop_of_the_whole_is_the_identity_and_of_a_ramp_a_piece():
    x = batch()
    assert np.array_equal(augment.RandomResizedCrop(scale=(1, 1), ratio=(1, 1))(x, rng()), x)
    ramp = np.zeros((50, 32, 32, 3), np.float32)
    ramp[..., 0] = np.arange(32)  # red: the column; green: the row
    ramp[..., 1] = np.arange(32)[:, None]
    y = augment.RandomResizedCrop(scale=(0.25, 0.25), ratio=(0.5, 2.0))(ramp, rng())
    inner = y[:, 4:-4, 4:-4]
    wide, tall = (np.diff(inner[..., c], axis=2 - c) for c in (0, 1))
    assert np.allclose(wide, wide[:, :1, :1], atol=1e-4) and np.allclose(tall, tall[:, :1, :1], atol=1e-4)
    area = wide[:, 0, 0] * tall[:, 0, 0]
    assert np.allclose(area, 0.25, atol=1e-4)  # a quarter of the picture, enlarged
    ratio = wide[:, 0, 0] / tall[:, 0, 0]
    assert 0.5 <= ratio.min() < 0.7 and 1.4 < ratio.max() <= 2.0 + 1e-4
    assert y.min() >= 0 and y.max() <= 31 and len(np.unique(y[:, 16, 16, 0])) > 40


def test_compose_runs_in_order_and_survives_json():
    x = batch()
    spec = json.loads(json.dumps(EVERY))
    got, generator = x, rng(5)
    for one in EVERY:
        got = build([one])(got, generator)
    assert np.array_equal(build(spec)(x, rng(5)), got)
    for nothing in (None, []):
        assert build(nothing)(x, rng()) is x


@pytest.mark.parametrize(
    "spec, message",
    [
        (["flp"], "unknown augmentation 'flp'. Did you mean 'flip'"),
        ([["shift", {"pixel": 3}]], "augmentation shift 'pixel'. Did you mean 'pixels'"),
        ([["shift", {"pixels": -1}]], "pixels must be a whole number >= 0, got -1"),
        ([["shift", {"pixels": 1.5}]], "got 1.5"),
        ([["shift", {"mode": "wrap"}]], "'edge' or 'constant', got 'wrap'"),
        ([["shift", {"value": 256}]], "0 to 255, got 256"),
        ([["flip", {"p": 1.5}]], "0 to 1, got 1.5"),
        ([["flip", {"p": "half"}]], "got 'half'"),
        ([["jitter", {"contrast": -0.1}]], "contrast must be a number from 0 to 1"),
        ([["crop", {"scale": [0.9, 0.5]}]], "scale must be two numbers"),
        ([["crop", {"scale": [0, 1]}]], "scale must be two numbers"),
        ([["crop", {"ratio": 1}]], "ratio must be two numbers"),
        ("flip", "expected a list"),
        ([["flip"]], r"expected a name or \[name, \{options\}\], got \['flip'\]"),
        ([3], "got 3"),
    ],
)
def test_bad_specs_are_refused(spec, message):
    with pytest.raises(ConfigError, match=message):
        build(spec)


def test_normalize():
    x = batch(n=30)
    assert np.allclose(Normalize.none()(x), x / 255, atol=1e-7)
    set_ = Dataset(x, np.zeros(30, np.int64), ("a",), tuple("n" * 30), "x")
    measured = Normalize.of(set_)
    assert np.allclose(measured.mean, x.mean((0, 1, 2)) / 255) and np.allclose(
        measured.std, x.std((0, 1, 2)) / 255
    )
    y = measured(x)
    assert y.dtype == np.float32 and y.shape == x.shape
    assert np.allclose(y.mean((0, 1, 2)), 0, atol=1e-5) and np.allclose(y.std((0, 1, 2)), 1, atol=1e-5)
    assert np.allclose(measured(x.astype(np.float32)), y)
    back = Normalize(**json.loads(json.dumps({"mean": measured.mean, "std": measured.std})))
    assert back == measured
    flat = Dataset(np.full((2, 4, 4, 3), 51, np.uint8), np.zeros(2, np.int64), ("a",), ("a", "b"), "x")
    assert np.allclose(Normalize.of(flat)(flat.images), 0, atol=1e-6)


@pytest.mark.parametrize(
    "mean, std", [([0, 0], [1, 1, 1]), ([0, 0, 0], [1, 0, 1]), ([0, np.nan, 0], [1, 1, 1])]
)
def test_normalize_refuses(mean, std):
    with pytest.raises(ConfigError, match="3 means and 3 positive deviations"):
        Normalize(mean, std)

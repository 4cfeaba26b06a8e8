"""Several views of a test picture: where they are cut, and that their probabilities are averaged."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from quick_runs import draw_nothing

from minires import data, models, nn
from minires.data import Dataset, Normalize
from minires.errors import ConfigError, ShapeError
from minires.models import build
from minires.tensor import Tensor, no_grad
from minires.train import Config, Trainer, evaluate, load_model
from minires.train.multicrop import cut, evaluate_crops, usual_scale

NORMALIZE = Normalize((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))


def photo(seed, wide=90, high=60):
    small = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((wide, high), Image.Resampling.BICUBIC)


SIZES = [(90, 60, 37, 32), (61, 97, 40, 33), (40, 40, 32, 32)]


@pytest.mark.parametrize(("wide", "high", "scale", "side"), SIZES)
def test_ten_crops_are_corners_and_middle_and_their_mirror_images(wide, high, scale, side):
    """As torchvision's Resize and TenCrop have it, written a second time."""
    picture = photo(0, wide, high)
    if wide <= high:
        size = scale, int(scale * high / wide)
    else:
        size = int(scale * wide / high), scale
    resized = picture.resize(size, Image.Resampling.BILINEAR)
    w, h = size
    left, top = int(round((w - side) / 2.0)), int(round((h - side) / 2.0))
    boxes = [(left, top), (0, 0), (w - side, 0), (0, h - side), (w - side, h - side)]
    views = [resized.crop((x, y, x + side, y + side)) for x, y in boxes]
    views += [view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for view in views]
    expected = np.stack([np.asarray(view) for view in views])
    found = cut(picture, scale, side, 10)
    assert np.array_equal(found, expected)
    assert np.array_equal(cut(picture, scale, side, 1), expected[:1])


def test_the_whole_picture_keeps_its_shape():
    views = cut(photo(1, 90, 61), 30, 32, "full")
    assert views.shape == (2, 30, 44, 3) and np.array_equal(views[0, :, ::-1], views[1])


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    for k, label in enumerate(("cat", "dog")):
        (root / label).mkdir()
        for i in range(3):
            photo(10 * k + i, 90 + i, 60 + 7 * i).save(root / label / f"{i}.png")
    return data.load_part(root, size=32, stream=True).pictures


@pytest.fixture(scope="module")
def model():
    return build("resnet20_cifar", classes=2, seed=3).eval()


def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("crops", [1, 10, "full"])
def test_probabilities_are_the_mean_over_views_and_scales(crops, pictures, model):
    found = evaluate_crops(model, pictures, NORMALIZE, side=32, crops=crops, scales=(36, 48), batch_size=30)
    for place in range(len(pictures)):
        picture = pictures.images.picture(place, least=48)
        each = []
        for scale in (36, 48):
            with no_grad():
                logits = model(Tensor(NORMALIZE(cut(picture, scale, 32, crops)))).numpy().astype(float)
            each.append(softmax(logits).mean(axis=0))
        np.testing.assert_allclose(found.probabilities[place], np.mean(each, axis=0), rtol=1e-4)
    right = found.probabilities.argmax(axis=1) == pictures.labels
    assert found.accuracy == right.mean()
    truth = found.probabilities[np.arange(6), pictures.labels]
    assert found.loss == pytest.approx(-np.log(truth).mean())


class Stripes(nn.Module):
    def __init__(self, *, classes, rng):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 5, stride=2, bias=False, rng=rng)
        self.norm = nn.BatchNorm2d(8, relu=True)
        self.pool = nn.GlobalAvgPool2d()
        self.fc = nn.Linear(8, classes, rng=rng)

    def forward(self, x):
        return self.fc(self.pool(self.norm(self.conv(x))))


def stripes(folder, count, seed):
    """Pictures of 80x80 with a striped thing of 16x16 somewhere; which way it is striped is the class."""
    rng = np.random.default_rng(seed)
    for label in ("across", "down"):
        (folder / label).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(90, 150, (80, 80, 3))
            top, left = rng.integers(0, 65, 2)
            thing = np.repeat(np.arange(16) % 8 // 4, 16).reshape(16, 16) * 120 + 60
            pixels[top : top + 16, left : left + 16] = (thing if label == "across" else thing.T)[..., None]
            Image.fromarray(pixels.astype(np.uint8)).save(folder / label / f"{number}.png")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small network that was trained with random crops at random scales, and the pictures to test it on."""
    root = tmp_path_factory.mktemp("stripes")
    stripes(root / "set" / "train", 80, 0)
    stripes(root / "set" / "test", 60, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, "stripes", models.Entry(Stripes, size=32, classes=2))
        draw_nothing(patch)
        config = Config(
            model="stripes", data=str(root / "set"), size=32, stream=True, train_on="train+val", epochs=8,
            batch_size=16, optimizer={"name": "adam", "lr": 2e-2}, schedule={"name": "cosine"},
            augment=[["scale_crop", {"shorter": [48, 64]}], "flip"], recalibrate=True,
        )  # fmt: skip
        Trainer(config, root / "run", say=lambda line: None).run()
        yield load_model(root / "run"), data.load_part(root / "set", "test", size=32, stream=True).pictures


def test_ten_crops_find_what_one_crop_of_the_middle_misses(trained):
    found, pictures = trained
    one, ten = (
        evaluate_crops(found.model, pictures, found.normalize, side=32, crops=crops, scales=(64,))
        for crops in (1, 10)
    )
    assert one.accuracy > 0.6  # it has learnt what it can see
    assert ten.accuracy >= one.accuracy + 0.1  # the loss need not fall: views without the thing know nothing


def test_ten_crops_are_the_mean_of_ten_passes_with_one_crop_each(trained):
    found, pictures = trained
    ten = evaluate_crops(found.model, pictures, found.normalize, side=32, crops=10, scales=(64,))
    for place in (0, 59, 60, 119):
        resized = pictures.images.picture(place, least=64).resize((64, 64), Image.Resampling.BILINEAR)
        each = []
        for left, top in ((0, 0), (32, 0), (0, 32), (32, 32), (16, 16)):
            view = resized.crop((left, top, left + 32, top + 32))
            for turned in (view, view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)):
                pixels = np.asarray(turned)[None] / 255
                x = (pixels - found.normalize.mean) / found.normalize.std
                with no_grad():
                    each.append(softmax(found.model(Tensor(x.astype(np.float32))).numpy()[0].astype(float)))
        np.testing.assert_allclose(ten.probabilities[place], np.mean(each, axis=0), rtol=1e-4)


def test_one_crop_of_pictures_of_that_size_is_the_plain_test(model):
    images = np.random.default_rng(0).integers(0, 256, (7, 32, 32, 3), dtype=np.uint8)
    held = Dataset(images, np.arange(7) % 2, ("a", "b"), tuple("1234567"), "noise")
    one = evaluate_crops(model, held, NORMALIZE, side=32, crops=1, scales=(32,))
    plain = evaluate(model, held, NORMALIZE)
    np.testing.assert_allclose(one.probabilities, plain.probabilities, rtol=1e-4)
    assert one.accuracy == plain.accuracy


def test_without_scales_it_is_as_256_to_224(pictures, model):
    assert usual_scale(224) == 256
    one = evaluate_crops(model, pictures, NORMALIZE, side=32, crops=10)
    same = evaluate_crops(model, pictures, NORMALIZE, side=32, crops=10, scales=(37,))
    assert np.array_equal(one.probabilities, same.probabilities)


def test_what_cannot_be_cut_is_refused(pictures, model):
    for options, message in [
        ({"crops": 5}, "crops must be one of 1, 10, 'full'"),
        ({"crops": 10, "scales": (31,)}, "scales=31: squares of 32 cannot be cut"),
        ({"crops": 1, "scales": (0,)}, "a scale"),
    ]:
        with pytest.raises(ConfigError, match=message):
            evaluate_crops(model, pictures, NORMALIZE, side=32, **options)


def test_a_model_of_one_size_is_named_as_such(pictures):
    rng = np.random.default_rng(0)
    flat = nn.Sequential(flatten=nn.Flatten(), fc=nn.Linear(32 * 32 * 3, 2, rng=rng))
    with pytest.raises(ShapeError, match="pictures of 32x32 only.*use crops=10"):
        evaluate_crops(flat, pictures, NORMALIZE, side=32, crops="full", scales=(40,))
    assert evaluate_crops(flat, pictures, NORMALIZE, side=32, crops=10, scales=(40,)).loss > 0

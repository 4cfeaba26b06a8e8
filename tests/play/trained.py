"""A model that has seen some rendered hands, and a picture of one, for the tests of `minires play`."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from minires import data
from minires.data import Dataset, Splits, hands
from minires.train import Config, Trainer


def trained_run(out: Path) -> Path:
    """A run folder with a ResNet-20 for 32x32, trained for two seconds."""
    parts = (_hands(96, 0), _hands(6, 1), _hands(6, 2))
    config = Config(model="resnet20_cifar", data="hands", size=32, epochs=2, batch_size=16)
    Trainer(config, out, splits=Splits(*parts, "some rendered hands"), say=lambda line: None).run()
    return out


def a_picture() -> bytes:
    """A picture file: of SIGNS where it is there, else a rendered hand."""
    place = data.find("signs")
    real = sorted(place.rglob("test_signs/*.jpg")) if place else []
    return real[17].read_bytes() if real else encoded(Image.fromarray(hands.render(3, seed=7)))


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _hands(count: int, seed: int) -> Dataset:
    labels = np.arange(count) % 6
    images = np.stack([hands.render(sign, seed=(seed, i)) for i, sign in enumerate(labels)])
    small = np.stack([np.asarray(Image.fromarray(image).resize((32, 32))) for image in images])
    return Dataset(small, labels, hands.CLASSES, tuple(map(str, range(count))), "hands")

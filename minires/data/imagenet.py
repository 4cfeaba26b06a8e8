"""What papers do with the pictures of ImageNet while they train: crops of pictures at a random scale, and
random light along the colours in which pictures differ most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from minires.errors import ConfigError, number, one_of, plain, several, whole

RESAMPLE = {name: Image.Resampling[name.upper()] for name in ("bilinear", "bicubic", "lanczos")}
# Of the pixels of ImageNet's training pictures, from 0 to 1, red, green and blue: the eigenvalues of their
# covariance, and its eigenvectors, one in a column. From the code of fb.resnet.torch.
EIGENVALUES = (0.2175, 0.0188, 0.0045)
EIGENVECTORS = (
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)


@dataclass(frozen=True, kw_only=True)
class ScaleCrop:
    """Scale each picture so that its shorter side is a random one of ``shorter``; cut out a random square.

    ``shorter`` is (from, to) in pixels, both included, or one number; ``resample`` is bilinear, bicubic or
    lanczos. The picture is taken as it is in its file: the step must be the first, and the set a stream.

    Raises: ConfigError for a range that is empty, and where ``shorter`` is less than the side of the square.
    Source: Simonyan & Zisserman 2014, section 3.1 ("scale jittering"); He et al. 2015, "Deep Residual
    Learning", section 3.4: from 256 to 480.
    """

    only_from_picture: ClassVar[bool] = True
    shorter: Any = (256, 480)
    resample: str = "bilinear"

    def __post_init__(self) -> None:
        given = plain(self.shorter)
        ends = given if isinstance(given, list | tuple) and len(given) == 2 else (given, given)
        low, high = (whole("augmentation scale_crop: shorter", one, most=65535) for one in ends)
        if low > high:
            raise ConfigError(f"augmentation scale_crop: shorter goes from {low} to {high}; swap them")
        object.__setattr__(self, "shorter", (low, high))
        one_of("augmentation scale_crop: resample", self.resample, tuple(RESAMPLE))

    def __call__(self, x: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
        raise ConfigError(
            "the augmentation scale_crop needs the pictures as they are in their files: use it as the first "
            "step, and load the data with stream=True"
        )

    def least(self, size: int) -> int:
        """How many pixels the shorter side of a picture should have at least."""
        if self.shorter[0] < size:
            raise ConfigError(
                f"augmentation scale_crop: no square of {size} pixels fits into a picture whose shorter side "
                f"is {self.shorter[0]}; let shorter begin at {size} or above, or make the size smaller"
            )
        high: int = self.shorter[1]
        return high

    def from_picture(self, image: Image.Image, size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
        """The square of ``size`` pixels, scaled and cut out in one step.

        Shapes: -> (size, size, 3).
        """
        self.least(size)
        shorter = int(rng.integers(self.shorter[0], self.shorter[1] + 1))
        wide, high = (round(side * shorter / min(image.size)) for side in image.size)
        left, top = int(rng.integers(0, wide - size + 1)), int(rng.integers(0, high - size + 1))
        across, down = image.width / wide, image.height / high  # pixels of the picture for one of the scaled
        box = (left * across, top * down, (left + size) * across, (top + size) * down)
        return cut(image, box, size, self.resample)


@dataclass(frozen=True, kw_only=True)
class PcaColour:
    """Add to all pixels of a picture a random amount of each colour in which pictures differ.

    *Math*: x' = x + 255 [p1 p2 p3] [a1 l1, a2 l2, a3 l3]^T, with a ~ N(0, ``std``), l the eigenvalues and p
    the eigenvectors (the columns) of the covariance of red, green and blue, pixels from 0 to 1; clipped to
    0..255, and rounded where x is uint8. Those of ImageNet if none are given.
    Shapes: (N, H, W, 3) -> (N, H, W, 3).
    Raises: ConfigError for a negative deviation or eigenvalue, or vectors that are not 3 x 3 numbers.
    Source: Krizhevsky et al. 2012, "ImageNet Classification with Deep Convolutional Neural Networks", 4.1.
    """

    std: float = 0.1
    values: Any = EIGENVALUES
    vectors: Any = EIGENVECTORS

    def __post_init__(self) -> None:
        what = "augmentation pca_colour:"
        std = number(f"{what} std", self.std, least=0)
        values = several(f"{what} values", plain(self.values), count=3, least=0)
        rows = plain(self.vectors)
        if not isinstance(rows, list | tuple) or len(rows) != 3:
            raise ConfigError(f"{what} vectors must be 3 lists of 3 numbers, not {self.vectors!r}")
        vectors = tuple(several(f"{what} vectors[{i}]", row, count=3) for i, row in enumerate(rows))
        for name, value in (("std", std), ("values", values), ("vectors", vectors)):
            object.__setattr__(self, name, value)

    def __call__(self, x: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
        return self.apply(x, *self.draw(len(x), rng))

    def draw(self, count: int, rng: np.random.Generator) -> tuple[NDArray[Any], ...]:
        return (rng.normal(0, self.std, size=(count, 3)),)

    def apply(self, x: NDArray[Any], amounts: NDArray[Any]) -> NDArray[Any]:
        amounts = amounts * np.array(self.values)  # (N, 3)
        light = 255 * amounts @ np.array(self.vectors).T  # (N, 3): red, green, blue
        y = x.astype(np.float32)
        y += light.astype(np.float32)[:, None, None]
        np.clip(y, 0, 255, out=y)
        return np.rint(y, out=y).astype(np.uint8) if x.dtype == np.uint8 else y


def cut(
    image: Image.Image, box: tuple[float, float, float, float], size: int, resample: str = "bilinear"
) -> NDArray[np.uint8]:
    """The box (left, top, right, bottom) of a picture, resized to a square.

    Shapes: -> (size, size, 3).
    """
    return np.asarray(image.resize((size, size), RESAMPLE[resample], box=box))

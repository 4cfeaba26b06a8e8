"""Changes to the pictures of a training batch that keep their labels, and the normalisation of pixels.

Each is a small object called with a batch and a random generator: it returns a new batch of the same shape
and dtype, uint8 or float32, pixels from 0 to 255, and leaves its input as it was. In a recipe they are
written as JSON: ``[["shift", {"pixels": 4}], "flip"]``.

A step may have ``from_picture(image, size, rng)``, too, which takes a picture of a stream as it is in its
file, upright and in RGB, and gives uint8 (size, size, 3): as the first step it is used in the place of the
centre square. ``least(size)`` may say how many pixels the shorter side must have of a picture that is read at
a fraction of its size (``size``, if it does not). One that is ``only_from_picture`` is of no use elsewhere.

One that has ``draw(count, rng)``, the random numbers of so many pictures, each array with a row per picture,
and ``apply(x, *drawn)``, is applied to a part of a batch only where several processes share the batch; of one
that has not, each makes the whole.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from PIL import Image

from minires.data.dataset import Dataset
from minires.data.imagenet import PcaColour, ScaleCrop, cut
from minires.data.streaming import PIECE, Stream
from minires.errors import ConfigError, as_number, as_whole, plain, several, unknown
from minires.registry import Registry

Batch = NDArray[Any]  # (N, H, W, 3), uint8 or float32
Augmentation = Callable[[Batch, np.random.Generator], Batch]
Drawn = tuple[NDArray[Any], ...]  # random numbers of pictures, a row for each


@dataclass(frozen=True, kw_only=True)
class Shift:
    """Move each picture by up to ``pixels`` in both directions, the border padded.

    ``mode`` "edge" repeats the border pixels, "constant" pads with ``value``.

    Shapes: (N, H, W, 3) -> (N, H, W, 3).
    Raises: ConfigError for a negative shift or an unknown mode.
    Source: with 4 pixels of zeros, He et al. 2015, "Deep Residual Learning", section 4.2.
    """

    pixels: int = 4
    mode: str = "edge"
    value: float = 0.0

    def __post_init__(self) -> None:
        _plain(self)
        _need(_whole(self.pixels, 0), "shift", "pixels", self.pixels, "a whole number >= 0")
        _need(self.mode in ("edge", "constant"), "shift", "mode", self.mode, "'edge' or 'constant'")
        _need(_number(self.value, 0, 255), "shift", "value", self.value, "a number from 0 to 255")

    def __call__(self, x: Batch, rng: np.random.Generator) -> Batch:
        return self.apply(x, *self.draw(len(x), rng))

    def draw(self, count: int, rng: np.random.Generator) -> Drawn:
        down, right = rng.integers(0, 2 * self.pixels + 1, size=(2, count))
        return down, right

    def apply(self, x: Batch, down: NDArray[Any], right: NDArray[Any]) -> Batch:
        p = self.pixels
        options: dict[str, Any] = {"constant_values": self.value} if self.mode == "constant" else {}
        padded = np.pad(x, ((0, 0), (p, p), (p, p), (0, 0)), self.mode, **options)  # type: ignore[call-overload]
        # every window of the padded picture, as a view: (N, 2p+1, 2p+1, 1, H, W, 3)
        windows = sliding_window_view(padded, x.shape[1:], axis=(1, 2, 3))
        shifted: Batch = windows[np.arange(len(x)), down, right, 0]
        return shifted


@dataclass(frozen=True, kw_only=True)
class Flip:
    """Mirror each picture left to right with probability ``p``.

    Shapes: (N, H, W, 3) -> (N, H, W, 3).
    Raises: ConfigError when p is not a probability.
    """

    p: float = 0.5

    def __post_init__(self) -> None:
        _plain(self)
        _need(_number(self.p, 0, 1), "flip", "p", self.p, "a number from 0 to 1")

    def __call__(self, x: Batch, rng: np.random.Generator) -> Batch:
        return self.apply(x, *self.draw(len(x), rng))

    def draw(self, count: int, rng: np.random.Generator) -> Drawn:
        return (rng.random(count) < self.p,)

    def apply(self, x: Batch, mirrored: NDArray[np.bool_]) -> Batch:
        y = x.copy()
        if mirrored.any():
            y[mirrored] = _mirrored(x[mirrored])
        return y


@dataclass(frozen=True, kw_only=True)
class ColorJitter:
    """Change brightness, contrast and saturation of each picture by random factors.

    *Math*: with b, c, s drawn from 1-v .. 1+v: x' = b (c x + (1-c) m), m the picture's mean grey; then
    x'' = s x' + (1-s) g', g' the grey of each pixel; clipped to 0..255, and rounded where x is uint8.
    Shapes: (N, H, W, 3) -> (N, H, W, 3).
    Raises: ConfigError when a strength is not from 0 to 1.
    Differs: torchvision draws the order of the three at random; here it is fixed.
    """

    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2

    def __post_init__(self) -> None:
        _plain(self)
        for name in ("brightness", "contrast", "saturation"):
            value = getattr(self, name)
            _need(_number(value, 0, 1), "jitter", name, value, "a number from 0 to 1")

    def __call__(self, x: Batch, rng: np.random.Generator) -> Batch:
        return self.apply(x, *self.draw(len(x), rng))

    def draw(self, count: int, rng: np.random.Generator) -> Drawn:
        strength = np.array([[self.brightness], [self.contrast], [self.saturation]])
        b, c, s = 1 + strength * rng.uniform(-1, 1, size=(3, count))
        return b, c, s

    def apply(self, x: Batch, *factors: NDArray[np.float64]) -> Batch:
        b, c, s = np.stack(factors).astype(np.float32)[:, :, None, None, None]  # each (N, 1, 1, 1)
        # All three are linear in the pixel and its grey: one gain, one grey gain and one offset per picture.
        y = x.astype(np.float32)
        grey = (y @ GREY)[..., None]  # (N, H, W, 1)
        mean = grey.mean(axis=(1, 2, 3), keepdims=True)
        grey *= b * c * (1 - s)
        grey += b * (1 - c) * mean
        y *= b * c * s
        y += grey
        np.clip(y, 0, 255, out=y)
        return np.rint(y, out=y).astype(np.uint8) if x.dtype == np.uint8 else y


@dataclass(frozen=True, kw_only=True)
class RandomResizedCrop:
    """Cut a random box out of each picture and resize it, bilinearly, to the whole size.

    The box has ``scale`` (from, to) of the picture's area and a width-to-height ratio in ``ratio``,
    relative to that of the picture; a side that would not fit is cut to the picture's.

    Of a stream, as the first step, the box is cut out of the picture as it is in its file: ``scale`` is a
    share of its area and ``ratio`` that of the box itself, drawn up to ten times until it fits;
    else it is the largest centred box of a ratio in the range.

    Shapes: (N, H, W, 3) -> (N, H, W, 3).
    Raises: ConfigError for ranges that are empty or out of bounds.
    Source: Szegedy et al. 2014, "Going Deeper with Convolutions", section 6.
    """

    scale: tuple[float, float] = (0.6, 1.0)
    ratio: tuple[float, float] = (0.85, 1.18)

    def __post_init__(self) -> None:
        _plain(self)
        _need(_range(self.scale, 1), "crop", "scale", self.scale, "two numbers 0 < from <= to <= 1")
        _need(_range(self.ratio, 100), "crop", "ratio", self.ratio, "two numbers 0 < from <= to")

    def __call__(self, x: Batch, rng: np.random.Generator) -> Batch:
        return self.apply(x, *self.draw(len(x), rng))

    def draw(self, count: int, rng: np.random.Generator) -> Drawn:
        area = rng.uniform(*self.scale, size=count)
        ratio = np.exp(rng.uniform(math.log(self.ratio[0]), math.log(self.ratio[1]), size=count))
        down, right = rng.random((2, count))
        return area, ratio, down, right

    def apply(self, x: Batch, area: Any, ratio: Any, down: Any, right: Any) -> Batch:
        _, height, width, _ = x.shape
        tall = np.minimum(np.sqrt(area / ratio), 1) * height
        wide = np.minimum(np.sqrt(area * ratio), 1) * width
        top, left = down * (height - tall), right * (width - wide)
        y = _sample(x, top, tall, axis=1)
        y = _sample(y, left, wide, axis=2)
        return np.rint(y).astype(np.uint8) if x.dtype == np.uint8 else y

    def least(self, size: int) -> int:
        """How many pixels the shorter side of a picture should have at least."""
        return math.ceil(size / math.sqrt(self.scale[0]))

    def from_picture(self, image: Image.Image, size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
        """The box of a picture as it is in its file, resized. Shapes: -> (size, size, 3)."""
        width, height = image.size
        low, high = self.ratio
        for _ in range(TRIES):
            area = width * height * rng.uniform(*self.scale)
            ratio = math.exp(rng.uniform(math.log(low), math.log(high)))
            wide, tall = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < wide <= width and 0 < tall <= height:
                left, top = int(rng.integers(0, width - wide + 1)), int(rng.integers(0, height - tall + 1))
                return cut(image, (left, top, left + wide, top + tall), size)
        ratio = min(max(width / height, low), high)
        wide, tall = max(1, min(width, round(height * ratio))), max(1, min(height, round(width / ratio)))
        left, top = (width - wide) // 2, (height - tall) // 2
        return cut(image, (left, top, left + wide, top + tall), size)


@dataclass(frozen=True)
class Compose:
    """Apply several augmentations one after the other; none at all changes nothing."""

    steps: tuple[Augmentation, ...] = ()

    def __post_init__(self) -> None:
        for step in self.steps[1:]:
            if getattr(step, "only_from_picture", False):
                raise ConfigError(
                    f"augmentation: {type(step).__name__} takes pictures as they are in their files, and "
                    "must be the first of the list"
                )

    def __call__(self, x: Batch, rng: np.random.Generator) -> Batch:
        for step in self.steps:
            x = step(x, rng)
        return x


@dataclass(frozen=True)
class Normalize:
    """Scale pixels to 0..1, then subtract ``mean`` and divide by ``std`` per channel.

    *Math*: y = (x / 255 - mean) / std.
    Shapes: uint8 or float32 (N, H, W, 3), pixels 0..255 -> float32 of the same shape.
    Raises: ConfigError unless there are three means and three positive deviations.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        try:  # lists, as they come from JSON, become tuples
            object.__setattr__(self, "mean", several("mean", self.mean, count=3))
            object.__setattr__(self, "std", several("std", self.std, count=3, above=0))
        except ConfigError as error:
            raise ConfigError(
                f"normalize: expected 3 means and 3 positive deviations, got {self.mean} and {self.std}: "
                f"{error}"
            ) from None

    @classmethod
    def none(cls) -> Normalize:
        """Return the one that only scales to 0..1."""
        return cls((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))

    @classmethod
    def imagenet(cls) -> Normalize:
        """Return that of the pictures of ImageNet, as PyTorch's networks have it."""
        return cls((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

    @classmethod
    def of(cls, dataset: Dataset, *, seed: int = 0) -> Normalize:
        """Measure mean and deviation of each channel on a data set (its training part, as a rule); of one
        that is not in memory on ``MEASURED`` pictures, chosen by ``seed``."""
        # From the 256 counts of each channel: exact, and without a float copy of all pictures.
        levels = np.arange(256) / 255
        mean, std = [], []
        for counts in _counts(dataset.images, seed):
            share = counts / counts.sum()
            m = float(share @ levels)
            mean.append(m)
            std.append(float(np.sqrt(share @ (levels - m) ** 2)) or 1.0)  # a constant channel becomes zeros
        return cls((mean[0], mean[1], mean[2]), (std[0], std[1], std[2]))

    def __call__(self, x: Batch) -> NDArray[np.float32]:
        gain = (1 / (255 * np.array(self.std))).astype(np.float32)
        offset = (np.array(self.mean) / np.array(self.std)).astype(np.float32)
        y = x.astype(np.float32, order="C")
        # Row by row, (N, H, W, 3) -> (N, H, W*3): loops over three numbers take several times as long.
        width = x.shape[-2]
        rows = y.reshape(*x.shape[:-2], 3 * width)
        rows *= np.tile(gain, width)
        rows -= np.tile(offset, width)
        return y


def _counts(images: NDArray[np.uint8] | Stream, seed: int) -> NDArray[np.int64]:
    """How often each channel has each of the 256 levels: (3, 256)."""
    if not isinstance(images, Stream):
        return np.stack([np.bincount(images[..., k].reshape(-1), minlength=256) for k in range(3)])
    chosen: Any = slice(None)
    if len(images) > MEASURED:
        chosen = np.sort(np.random.default_rng([seed, 0x3EA5]).permutation(len(images))[:MEASURED])
    pieces = np.arange(len(images))[chosen]
    cuts = (pieces[start : start + PIECE] for start in range(0, len(pieces), PIECE))
    counts = np.zeros((3, 256), np.int64)
    for batch in images.batches(cuts):
        counts += _counts(batch, seed)
    return counts


def augmented(
    augment: Augmentation, images: Any, chosen: NDArray[np.int64], given: NDArray[np.int64],
    rng: np.random.Generator,
) -> Batch:  # fmt: skip
    """The pictures at the places ``given`` of the batch ``images[chosen]``, as they are in the whole batch
    when that is augmented."""
    steps = augment.steps if isinstance(augment, Compose) else (augment,)
    if not all(map(_draws_apart, steps)):
        whole = augment(images[chosen], rng)
        if len(whole) != len(chosen):
            raise ConfigError(f"augmentation: {len(chosen)} pictures went in, and {len(whole)} came out")
        return whole[given]
    x: Batch = images[chosen[given]]
    for step in steps:
        drawn = step.draw(len(chosen), rng)  # type: ignore[attr-defined]
        x = step.apply(x, *(numbers[given] for numbers in drawn))  # type: ignore[attr-defined]
    return x


def _draws_apart(step: Any) -> bool:
    """Whether calling a step is to draw, and to apply what was drawn: not so where a subclass calls anew."""
    if not (hasattr(step, "draw") and hasattr(step, "apply")):
        return False
    own = next(kind for kind in type(step).__mro__ if {"apply", "draw", "__call__"} & vars(kind).keys())
    return bool({"apply", "draw"} & vars(own).keys())


def begun_by(augment: Augmentation | None) -> tuple[Any, Augmentation | None]:
    """The first step, if it takes pictures as they are in their files and else None, and what follows."""
    steps = augment.steps if isinstance(augment, Compose) else (augment,) if augment is not None else ()
    if steps and hasattr(steps[0], "from_picture"):
        return steps[0], Compose(steps[1:])
    return None, augment


def least_of(step: Any, size: int) -> int:
    """How many pixels the shorter side of a picture should have at least for a first step: the size, unless
    it says another number. Raises: what the step raises, if it cannot make squares of that size."""
    own = getattr(step, "least", None)
    return size if own is None else int(own(size))


def needs_stream(augment: Augmentation | None) -> bool:
    """Whether the first step is of use for a stream only."""
    return bool(getattr(begun_by(augment)[0], "only_from_picture", False))


AUGMENTATIONS: Registry[Callable[..., Augmentation]] = Registry(
    "augmentation",
    {
        "shift": Shift, "flip": Flip, "jitter": ColorJitter, "crop": RandomResizedCrop,
        "scale_crop": ScaleCrop, "pca_colour": PcaColour,
    },
)  # fmt: skip
MEASURED = 10_000  # pictures of a stream, for mean and deviation
TRIES = 10  # to find a box that fits into a picture
GREY = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601


Make = TypeVar("Make", bound=Callable[..., Augmentation])


def register(name: str) -> Callable[[Make], Make]:
    """Give an augmentation of your own a name: above a class or function, or called with one.

    Called with the options of a recipe it gives an augmentation: a function of a batch and a random generator
    that returns a new batch.

    Shapes of a batch: (N, H, W, 3).
    Raises: ConfigError if the name is another augmentation's.

    >>> import numpy as np
    >>> from minires.data import augment
    >>> @augment.register("dim")
    ... def dim(most=0.5):
    ...     def apply(x, rng):
    ...         return (x * (1 - most * rng.random((len(x), 1, 1, 1)))).astype(x.dtype)
    ...     return apply
    >>> augmentation = augment.build([["dim", {"most": 0.3}], "flip"])
    >>> augmentation(np.full((2, 4, 4, 3), 200, np.uint8), np.random.default_rng(0)).shape
    (2, 4, 4, 3)
    """

    AUGMENTATIONS.name_given(name)

    def add(make: Make) -> Make:
        AUGMENTATIONS.add(name, make)
        return make

    return add


def build(spec: Sequence[Any] | None) -> Compose:
    """Make the augmentation that a JSON-able list describes: names, or pairs of a name and its options.

    Raises: ConfigError for an unknown name (with the nearest), an unknown option or a bad value.

    >>> build([["shift", {"pixels": 4}], "flip"])
    Compose(steps=(Shift(pixels=4, mode='edge', value=0.0), Flip(p=0.5)))
    """
    if spec is None:
        return Compose()
    if isinstance(spec, str) or not isinstance(spec, Sequence):
        raise ConfigError(
            f'augmentation: expected a list, [["shift", {{"pixels": 4}}], "flip"], got {spec!r}'
        )
    return Compose(tuple(_build_one(entry) for entry in spec))


def _build_one(entry: Any) -> Augmentation:
    name, options = (entry, {}) if isinstance(entry, str) else (entry if _is_pair(entry) else (None, None))
    if not isinstance(name, str) or not isinstance(options, dict):
        own = "; give your own a name first: minires.data.augment.register" if callable(entry) else ""
        raise ConfigError(f"augmentation: expected a name or [name, {{options}}], got {entry!r}{own}")
    make = AUGMENTATIONS.find(name)
    known = inspect.signature(make).parameters
    for option in options:
        if option not in known:
            raise ConfigError(unknown(f"option of the augmentation {name}", option, known))
    for option, one in known.items():
        if one.default is one.empty and one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY):
            if option not in options:
                raise ConfigError(f"the augmentation {name} needs {option}")
    return make(**{k: tuple(v) if isinstance(v, list) else v for k, v in options.items()})


def _is_pair(entry: Any) -> bool:
    return isinstance(entry, Sequence) and len(entry) == 2


def _sample(x: Batch, start: NDArray[Any], length: NDArray[Any], *, axis: int) -> NDArray[np.float32]:
    """Resample ``axis`` of each picture from start .. start+length to its full size, bilinearly."""
    n, height, width, _ = x.shape
    size = x.shape[axis]
    at = start[:, None] + (np.arange(size) + 0.5) * (length / size)[:, None] - 0.5  # (N, size)
    at = np.clip(at, 0, size - 1)
    low = at.astype(np.int64)
    high = np.minimum(low + 1, size - 1)
    weight = (at - low).astype(np.float32)
    # One take along a flattened axis is several times faster than indexing with two arrays.
    if axis == 1:
        pieces: Batch = x.reshape(n * height, width, 3)
        first = np.arange(n)[:, None] * height  # of each picture: (N, 1)
        weight = weight[:, :, None, None]
    else:
        pieces = x.reshape(n * height * width, 3)
        first = np.arange(n * height).reshape(n, height, 1) * width  # of each row: (N, H, 1)
        low, high, weight = low[:, None], high[:, None], weight[:, None, :, None]
    below = np.take(pieces, first + low, axis=0).astype(np.float32)
    above: NDArray[np.float32] = np.take(pieces, first + high, axis=0).astype(np.float32)
    above -= below
    above *= weight
    above += below
    return above


def _mirrored(x: Batch) -> Batch:
    """The pictures, right to left: each pixel is moved as a whole, not number by number."""
    x = np.ascontiguousarray(x)
    pixels = x.view(np.dtype((np.void, 3 * x.itemsize)))[..., 0]  # (N, H, W)
    turned: Batch = np.ascontiguousarray(pixels[..., ::-1])[..., None].view(x.dtype)
    return turned


def _plain(augmentation: Any) -> None:
    """Put Python's own numbers in the place of NumPy's, and tuples in that of lists."""
    for name, value in vars(augmentation).items():
        made = plain(value)
        object.__setattr__(augmentation, name, tuple(made) if isinstance(made, list) else made)


def _need(good: bool, kind: str, option: str, value: Any, wanted: str) -> None:
    if not good:
        raise ConfigError(f"augmentation {kind}: {option} must be {wanted}, got {value!r}")


def _whole(value: Any, low: int) -> bool:
    number = as_whole(value)
    return number is not None and number >= low


def _number(value: Any, low: float, high: float) -> bool:
    number = as_number(value)
    return number is not None and low <= number <= high


def _range(value: Any, high: float) -> bool:
    if not isinstance(value, tuple) or len(value) != 2:
        return False
    return all(_number(v, 1e-6, high) for v in value) and value[0] <= value[1]

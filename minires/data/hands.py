"""hands: pictures of hands that show 0 to 5, drawn from a seed; stands in for SIGNS without a download.

A hand is a set of rounded, tapered capsules (arm, palm, the joints of each finger) that raise a height
map; its slope gives the shading, so knuckles, folded fingers and creases come out by themselves. The
outline is drawn at four times the size and averaged down. Skin, light, background, view (palm or back,
left or right), pose, size, angle, blur, noise and JPEG quality are drawn anew for each picture; the sign
is the number of fingers up.

The same seed gives the same pictures wherever NumPy and Pillow round alike.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from minires.data.dataset import Dataset, Splits
from minires.data.pictures import resize
from minires.data.registry import Entry

CLASSES = ("0", "1", "2", "3", "4", "5")
TRAIN, TEST = 1080, 120
SIZE = 64
FINE = 4 * SIZE  # side of the drawing
PICTURES_SEED = 0  # the set is always the same one; a run's own seed only chooses train and val

Floats = NDArray[np.float32]
Point = NDArray[np.float64]

# Which fingers are up for each sign: 0 the thumb to 4 the little finger.
UP: tuple[tuple[int, ...], ...] = ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), (0, 1, 2, 3, 4))
# The hand's own frame: y points to the finger tips, the thumb is on the left, the palm about 1 high.
KNUCKLES = np.array([[-0.34, -0.22], [-0.30, 0.40], [-0.09, 0.47], [0.12, 0.43], [0.31, 0.32]])
LENGTHS = (0.72, 0.74, 0.84, 0.77, 0.60)
LEANS = (-48.0, -9.0, -1.0, 7.0, 17.0)  # degrees from y
WIDTHS = (0.125, 0.112, 0.115, 0.108, 0.094)
# Skin from light to dark, linear interpolation in between.
TONES = [[250, 214, 190], [232, 184, 150], [205, 150, 112], [160, 108, 76], [112, 72, 50], [74, 48, 36]]
SKINS = np.array(TONES) / 255
NAIL = np.array([1.0, 0.82, 0.8], np.float32)


@dataclass
class Canvas:
    """The height map of a hand, and the transform from the hand's frame to its pixels."""

    height: Floats  # (FINE, FINE), below zero where there is no hand
    nail: Floats  # (FINE, FINE), 1 on finger nails
    matrix: NDArray[np.float64]  # (2, 2)
    origin: Point  # (2,)
    scale: float  # pixels per unit, for widths

    def capsule(
        self, a: Point, b: Point, wide_a: float, wide_b: float, *, lift: float = 0.0, depth: float = 1.0
    ) -> None:
        """Raise the map by a rounded bar from ``a`` to ``b``; ``depth`` below 1 flattens it."""
        a, b = self.matrix @ a + self.origin, self.matrix @ b + self.origin
        wide_a, wide_b, lift = wide_a * self.scale, wide_b * self.scale, lift * self.scale
        reach = max(wide_a, wide_b) + 1
        low = np.clip(np.floor(np.minimum(a, b) - reach), 0, FINE).astype(int)
        high = np.clip(np.ceil(np.maximum(a, b) + reach), 0, FINE).astype(int)
        if (high <= low).any():
            return
        x = np.arange(low[0], high[0], dtype=np.float32)[None, :] - np.float32(a[0])
        y = np.arange(low[1], high[1], dtype=np.float32)[:, None] - np.float32(a[1])
        along = (b - a).astype(np.float32)
        t = np.clip((x * along[0] + y * along[1]) / max(float(along @ along), 1e-3), 0, 1)
        wide = np.float32(wide_a) + np.float32(wide_b - wide_a) * t
        inside = wide * wide - (x - t * along[0]) ** 2 - (y - t * along[1]) ** 2
        box = self.height[low[1] : high[1], low[0] : high[0]]
        bar = np.float32(lift) + np.float32(depth) * np.sqrt(np.maximum(inside, 0))
        np.copyto(box, np.maximum(box, bar), where=inside > 0)

    def paint_nail(self, at: Point, direction: Point, wide: float) -> None:
        """Mark an oval nail at ``at``, long side along ``direction``."""
        centre = self.matrix @ at + self.origin
        axis = self.matrix @ direction
        axis = axis / np.hypot(*axis)
        reach = int(2 * wide * self.scale) + 1
        low = np.clip(centre.astype(int) - reach, 0, FINE)
        high = np.clip(centre.astype(int) + reach, 0, FINE)
        x = np.arange(low[0], high[0])[None, :] - centre[0]
        y = np.arange(low[1], high[1])[:, None] - centre[1]
        u, v = x * axis[0] + y * axis[1], x * axis[1] - y * axis[0]
        inside = (u / 1.25) ** 2 + (v / 0.8) ** 2 < (wide * self.scale) ** 2
        self.nail[low[1] : high[1], low[0] : high[0]][inside] = 1


def read(*, size: int | None = None, seed: int = 0) -> Splits:
    """Return the set: 864 pictures to train, 216 to validate (chosen by ``seed``), 120 to test."""
    whole = _rendered()
    images = resize(whole, size)
    labels = np.arange(TRAIN + TEST, dtype=np.int64) % len(CLASSES)
    names = tuple(f"hands-{i:04d}" for i in range(TRAIN + TEST))
    everything = Dataset(images, labels, CLASSES, names, "hands")
    train, val = everything.take(np.arange(TRAIN)).split(0.8, seed=seed)
    test = everything.take(np.arange(TRAIN, TRAIN + TEST))
    return Splits(train, val, test, "hands (rendered, seed 0)")


@lru_cache(maxsize=1)
def _rendered() -> NDArray[np.uint8]:
    return np.stack([render(i % len(CLASSES), seed=(PICTURES_SEED, i)) for i in range(TRAIN + TEST)])


def render(sign: int, *, seed: int | tuple[int, ...]) -> NDArray[np.uint8]:
    """Draw one picture of a hand with ``sign`` fingers up.

    Shapes: (64, 64, 3) uint8.
    """
    rng = np.random.default_rng(seed)
    canvas = _draw_hand(UP[sign], rng)
    return _photograph(canvas, rng)


def _draw_hand(up: tuple[int, ...], rng: np.random.Generator) -> Canvas:
    """Draw arm, palm, folded fingers, and fingers up, in a random pose."""
    angle = np.deg2rad(np.clip(rng.normal(0, 12), -28, 28))
    scale = FINE * rng.uniform(0.38, 0.46)
    slant = rng.uniform(0.8, 1.0)  # turned a little about the long axis
    side = rng.choice([-1.0, 1.0])  # left or right hand
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.diag([side * slant, -1.0]) * scale  # pixels count downwards
    # Keep the middle of what is seen near the middle of the picture.
    middle = np.array([0.0, 0.45 if up else 0.1])
    origin = np.full(2, FINE / 2) + rng.uniform(-0.06, 0.06, 2) * FINE - matrix @ middle
    canvas = Canvas(
        np.full((FINE, FINE), -1, np.float32),
        np.zeros((FINE, FINE), np.float32),
        matrix,
        origin,
        float(scale),
    )
    back = rng.random() < 0.4  # seen from the back
    plump = rng.uniform(0.88, 1.12)

    elbow = np.array([rng.uniform(-0.9, 0.9), -3.0])
    wrist = np.array([0.02, -0.55])
    canvas.capsule(wrist, elbow, 0.27 * plump, 0.40 * plump, lift=-0.03, depth=0.6)
    for k in range(1, 5):  # the palm: one flat bar per finger, from the wrist
        canvas.capsule(wrist + [(k - 2.5) * 0.07, 0.08], KNUCKLES[k], 0.2, 0.145, lift=0.02, depth=0.55)
    canvas.capsule(np.array([-0.09, -0.42]), KNUCKLES[0] + [0.08, 0.02], 0.2, 0.17, lift=0.02, depth=0.65)

    spread = rng.uniform(1.3, 1.8)
    for k in (1, 2, 3, 4):
        lean = LEANS[k] * spread + rng.normal(0, 2)
        if k in up:
            _finger_up(canvas, k, lean, plump, back, rng)
        else:
            _finger_folded(canvas, k, plump, back, rng)
    if 0 in up:
        _finger_up(canvas, 0, LEANS[0] + rng.normal(0, 6), plump, back, rng)
    else:
        _thumb_folded(canvas, up, plump, back, rng)
    return canvas


def _finger_up(
    canvas: Canvas, k: int, lean: float, plump: float, back: bool, rng: np.random.Generator
) -> None:
    length = LENGTHS[k] * rng.uniform(0.88, 1.08)
    bend = rng.normal(0, 4)
    at, wide = KNUCKLES[k], WIDTHS[k] * plump
    for share, taper in ((0.45, 0.95), (0.30, 0.92), (0.25, 0.88)):
        towards = np.array([np.sin(np.deg2rad(lean)), np.cos(np.deg2rad(lean))])
        tip = at + towards * length * share
        canvas.capsule(at, tip, wide, wide * taper, lift=0.06)
        canvas.capsule(tip, tip, wide * taper * 1.05, wide * taper * 1.05, lift=0.06)  # the joint
        at, wide, lean = tip, wide * taper, lean + bend
    if back:
        canvas.paint_nail(at + towards * 0.02, towards, wide * 0.75)


def _finger_folded(canvas: Canvas, k: int, plump: float, back: bool, rng: np.random.Generator) -> None:
    wide = WIDTHS[k] * plump
    knuckle = KNUCKLES[k] + rng.normal(0, 0.012, 2)
    if back:  # only the first joint is seen, from above
        canvas.capsule(knuckle - [0, 0.1], knuckle + [0, 0.05], wide, wide, lift=0.1)
        return
    top = knuckle + [0, 0.07]
    middle = knuckle + [-0.3 * knuckle[0], -0.32 + rng.normal(0, 0.02)]
    canvas.capsule(knuckle, top, wide, wide, lift=0.1)
    canvas.capsule(top, middle, wide, wide * 0.9, lift=0.17)


def _thumb_folded(
    canvas: Canvas, up: tuple[int, ...], plump: float, back: bool, rng: np.random.Generator
) -> None:
    wide = WIDTHS[0] * plump
    joint = KNUCKLES[0] + [-0.04, 0.22]
    if back:  # behind the palm: a bump at its side
        canvas.capsule(KNUCKLES[0], joint + [0.06, 0], wide, wide, lift=-0.05)
        return
    tip = np.array([rng.uniform(0.0, 0.12), 0.12 if 1 not in up or 2 not in up else 0.0])
    canvas.capsule(KNUCKLES[0], joint, wide * 1.1, wide, lift=0.12)
    canvas.capsule(joint, tip, wide, wide * 0.85, lift=0.24)


def _photograph(canvas: Canvas, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Shade the hand, put it before a background, and take the picture: light, blur, noise, JPEG."""
    hand = (canvas.height > -0.5).astype(np.float32)
    cover = _reduce(hand)[..., None]  # (SIZE, SIZE, 1), 0 to 1
    skin = _skin(rng)
    background = _background(rng, skin)

    shade = _shading(canvas, rng) * hand
    nail = _reduce(shade * canvas.nail)[..., None] * 0.35
    lit = _reduce(shade)[..., None] - nail
    hand_colour = lit * skin + nail * NAIL  # already multiplied by cover

    shadow = Image.fromarray((cover[..., 0] * 255).astype(np.uint8))
    shadow = shadow.filter(ImageFilter.GaussianBlur(float(rng.uniform(1.5, 5))))
    down, right = rng.integers(-6, 7, size=2) + 6
    dark = np.pad(np.asarray(shadow, np.float32) / 255, 6, mode="edge")
    dark = dark[down : down + SIZE, right : right + SIZE, None]
    background = background * (1 - rng.uniform(0.1, 0.4) * dark)

    picture = hand_colour + background * (1 - cover)
    angle = rng.uniform(0, 2 * np.pi)
    axis = np.linspace(-1, 1, SIZE)
    ramp = np.cos(angle) * axis[None, :] + np.sin(angle) * axis[:, None]
    picture = picture * (1 + rng.uniform(0, 0.25) * ramp)[..., None]
    picture = picture * rng.uniform(0.75, 1.15) * rng.normal(1, 0.03, 3)
    return _develop(picture, rng)


def _shading(canvas: Canvas, rng: np.random.Generator) -> Floats:
    """Lambert shading of the height map by one light, with a floor of ambient light."""
    height = np.maximum(canvas.height, 0)
    down, right = np.gradient(height)
    steep = np.sqrt(1 + down**2 + right**2)
    angle = rng.uniform(0, 2 * np.pi)
    tilt = rng.uniform(0.35, 0.9)
    light = np.array([np.cos(angle) * np.sin(tilt), np.sin(angle) * np.sin(tilt), np.cos(tilt)])
    facing = (light[2] - light[0] * right - light[1] * down) / steep
    ambient = rng.uniform(0.4, 0.6)
    shading: Floats = (ambient + (1.05 - ambient) * np.maximum(facing, 0)).astype(np.float32)
    return shading


def _skin(rng: np.random.Generator) -> NDArray[np.float64]:
    at = rng.uniform(0, len(SKINS) - 1)
    low = min(int(at), len(SKINS) - 2)
    tone = SKINS[low] + (at - low) * (SKINS[low + 1] - SKINS[low])
    skin: NDArray[np.float64] = np.clip(tone * rng.normal(1, 0.03, 3), 0.05, 1)
    return skin


def _background(rng: np.random.Generator, skin: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a plain, graded, patterned or cluttered background that the skin stands out from.

    Shapes: (SIZE, SIZE, 3), 0 to 1.
    """
    while True:
        base = rng.uniform(0.1, 0.95) + rng.normal(0, 0.07, 3)
        if abs(base.mean() - skin.mean()) > 0.25:
            break
    kind = rng.choice(["plain", "graded", "cloudy", "striped", "cluttered"])
    field = np.broadcast_to(np.clip(base, 0.02, 1), (SIZE, SIZE, 3)).copy()
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    if kind == "graded":
        angle = rng.uniform(0, 2 * np.pi)
        field *= (1 + 0.35 * (np.cos(angle) * (x - 0.5) + np.sin(angle) * (y - 0.5)))[..., None]
    elif kind == "cloudy":
        cells = int(rng.integers(3, 12))
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells), dtype=np.uint8))
        smooth = np.asarray(noise.resize((SIZE, SIZE), Image.Resampling.BICUBIC), np.float64) / 255
        field *= (1 + rng.uniform(0.15, 0.4) * (smooth - 0.5))[..., None]
    elif kind == "striped":
        angle = rng.uniform(0, np.pi)
        wave = np.sin((np.cos(angle) * x + np.sin(angle) * y) * rng.uniform(15, 70) + rng.uniform(0, 6))
        field *= (1 + rng.uniform(0.05, 0.14) * wave)[..., None]
    elif kind == "cluttered":
        image = Image.fromarray((field * 255).astype(np.uint8))
        draw = ImageDraw.Draw(image)
        for _ in range(int(rng.integers(3, 8))):
            left, top = rng.integers(-12, SIZE, 2)
            wide, high = rng.integers(6, 36, 2)
            fill = tuple(int(v) for v in np.clip((base + rng.normal(0, 0.08, 3)) * 255, 0, 255))
            box = (int(left), int(top), int(left + wide), int(top + high))
            (draw.rectangle if rng.random() < 0.6 else draw.ellipse)(box, fill=fill)
        image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.5, 2.5))))
        field = np.asarray(image, np.float64) / 255
    return field


def _develop(picture: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Blur a little, add noise, and pass through JPEG."""
    image = Image.fromarray((np.clip(picture, 0, 1) * 255).astype(np.uint8))
    image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, 0.6))))
    noisy = np.asarray(image, np.float32) + rng.normal(0, rng.uniform(0, 5), (SIZE, SIZE, 3))
    file = io.BytesIO()
    Image.fromarray(np.clip(np.rint(noisy), 0, 255).astype(np.uint8)).save(
        file, "JPEG", quality=int(rng.integers(55, 96))
    )
    with Image.open(file) as image:
        return np.array(image.convert("RGB"))


def _reduce(fine: Floats) -> Floats:
    """Average blocks of 4 x 4: (FINE, FINE) -> (SIZE, SIZE)."""
    step = FINE // SIZE
    rows = fine.reshape(SIZE, step, FINE).sum(axis=1)
    means: Floats = rows.reshape(SIZE, SIZE, step).sum(axis=2) / step**2
    return means


ENTRY = Entry(read=read, title="drawn hands that show 0 to 5, 64x64")

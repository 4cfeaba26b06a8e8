"""Pictures that are there twice: byte for byte, or nearly.

Nearly the same are two pictures whose *difference hashes* (dHash: for each place of a grey 9x8 thumbnail one
bit, whether it gets brighter to the right) differ in few bits, and whose 16x16 thumbnails differ little: the
same photograph, resized, compressed anew or slightly cut.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

BITS = 6  # of 64 that may differ
LEVELS = 3.0  # of 255, by which the grey of the thumbnails may differ in the mean
LEVELS_OF_COLOUR = 8.0  # JPEG keeps it less well
MOST = 50_000  # pictures that are compared each with each
ENOUGH = 1_000
_ROWS = 512


@dataclass(frozen=True)
class Look:
    """What is kept of a picture to find its twins: the hash of its bytes, its dHash, its thumbnail."""

    content: bytes
    bits: NDArray[np.float32]
    thumbnail: NDArray[np.uint8]

    @classmethod
    def at(cls, picture: Image.Image, content: bytes) -> Look:
        small = picture.resize((64, 64), Image.Resampling.BILINEAR, reducing_gap=3.0)
        grey = np.asarray(small.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
        bits = np.where(np.diff(grey, axis=1) > 0, 1, -1).reshape(-1)
        thumbnail = np.asarray(small.resize((16, 16), Image.Resampling.BOX), dtype=np.uint8)
        return cls(hashlib.sha256(content).digest(), bits.astype(np.float32), thumbnail)


def same(looks: Sequence[Look]) -> list[list[int]]:
    """The groups of pictures that are the same byte for byte, by their places."""
    groups: dict[bytes, list[int]] = {}
    for place, look in enumerate(looks):
        groups.setdefault(look.content, []).append(place)
    return [group for group in groups.values() if len(group) > 1]


def nearly(looks: Sequence[Look]) -> list[tuple[int, int]]:
    """The pairs of pictures that are nearly the same and not the same byte for byte, by their places.

    Of pictures that are the same byte for byte the first stands for all. At most ``ENOUGH`` pairs are looked
    for, and none among more than ``MOST`` pictures.

    >>> ramp = Image.linear_gradient("L").convert("RGB")
    >>> smaller, turned = ramp.resize((50, 50)), ramp.rotate(90)
    >>> nearly([Look.at(picture, picture.tobytes()) for picture in (ramp, smaller, turned)])
    [(0, 1)]
    """
    first: dict[bytes, int] = {}
    for place, look in enumerate(looks):
        first.setdefault(look.content, place)
    places = np.array([*first.values()], dtype=np.int64)
    if len(places) < 2 or len(places) > MOST:
        return []
    bits = np.stack([looks[place].bits for place in places])  # (N, 64), each 1 or -1
    thumbnails = np.stack([looks[place].thumbnail for place in places])
    found: list[tuple[int, int]] = []
    for start in range(0, len(places), _ROWS):
        agreeing = bits[start : start + _ROWS] @ bits.T  # 64 less two for each bit that differs
        for one, agrees in enumerate(agreeing, start):
            after = one + 1 + np.flatnonzero(agrees[one + 1 :] >= 64 - 2 * BITS)
            apart = thumbnails[after].astype(np.int16) - thumbnails[one]
            grey, colour = np.abs(apart.mean(axis=3)).mean(axis=(1, 2)), np.abs(apart).mean(axis=(1, 2, 3))
            alike = after[(grey <= LEVELS) & (colour <= LEVELS_OF_COLOUR)]
            found += [(int(places[one]), int(places[other])) for other in alike]
            if len(found) >= ENOUGH:
                return found[:ENOUGH]
    return found

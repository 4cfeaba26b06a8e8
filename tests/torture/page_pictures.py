"""Pictures that are sent to the page of ``minires play``: large, broken, poisonous."""

from __future__ import annotations

import io
import random
import re
import struct
import zlib
from collections.abc import Callable

from PIL import Image
from play.trained import a_picture, encoded


def noise(rng: random.Random, side: int) -> bytes:
    """A BMP of random bytes, three for a pixel."""
    return encoded(Image.frombytes("RGB", (side, side), rng.randbytes(3 * side * side)), "BMP")


def png(wide: int, high: int, *, kind: int = 0, bits: int = 1, rows: int | None = None) -> bytes:
    """A PNG of black pixels, some kilobytes long; with ``rows`` it is cut off after them."""
    deflate = zlib.compressobj(9)
    channels = {0: 1, 2: 3, 6: 4}[kind]
    row = bytes(1 + (wide * bits * channels + 7) // 8)
    content = b"".join(deflate.compress(row) for _ in range(high if rows is None else rows)) + deflate.flush()
    head = struct.pack(">IIBBBBB", wide, high, bits, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + _chunk(b"IDAT", content) + _chunk(b"IEND", b"")


def text_bomb() -> bytes:
    """A small PNG with a comment that unfolds to 100 MB."""
    whole = png(8, 8)
    text = _chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(100_000_000), 9))
    return whole[:33] + text + whole[33:]


def poison(side: int = 7900, scans: int = 450) -> bytes:
    """A JPEG in which a scan of a progressive picture is repeated, no more often than is allowed."""
    picture = encoded(Image.new("L", (side, side)), "JPEG", progressive=True, quality=1)
    places = [one.start() for one in re.finditer(rb"\xff\xda", picture)]
    return picture[: places[1]] + picture[places[1] : places[2]] * scans + picture[places[1] :]


def _chunk(kind: bytes, content: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + check


def _frames() -> bytes:
    frames = [Image.new("P", (64, 64), number % 256) for number in range(3000)]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], optimize=False, duration=10)


def _claims(kind: str) -> bytes:
    """A tiny file of this kind that claims 65,535 pixels a side."""
    whole = bytearray(encoded(Image.new("RGB", (8, 8)), kind))
    if kind == "GIF":
        whole[6:10] = struct.pack("<HH", 65_535, 65_535)
    elif kind == "BMP":
        whole[18:26] = struct.pack("<ii", 65_535, 65_535)
    elif kind == "JPEG":
        place = whole.index(b"\xff\xc0") + 5
        whole[place : place + 4] = struct.pack(">HH", 65_535, 65_535)
    return bytes(whole)


def _tiff() -> bytes:
    file = io.BytesIO()
    Image.new("L", (5000, 5000)).save(file, "TIFF", compression="tiff_deflate")
    return file.getvalue()


# How each is made, and which statuses it may get.
BROKEN: dict[str, tuple[Callable[[], bytes], tuple[int, ...]]] = {
    "a PNG of 20,000 x 20,000": (lambda: png(20_000, 20_000), (422,)),
    "a PNG of 9,000 x 9,000": (lambda: png(9_000, 9_000), (200, 422)),
    "a PNG of 8,000 x 8,000, all that is allowed": (lambda: png(8_000, 8_000, kind=6, bits=8), (200, 422)),
    "a PNG of 2**31 - 1 pixels a side": (lambda: png(2**31 - 1, 2**31 - 1, rows=0), (422,)),
    "a PNG of one row of 60,000,000": (lambda: png(60_000_000, 1, rows=0), (422,)),
    "a PNG cut off": (lambda: encoded(Image.effect_noise((300, 300), 90))[:-3000], (422,)),
    "a PNG that lacks most of its rows": (lambda: png(4_000, 4_000, rows=10), (200, 422)),
    "a PNG with a comment of 100 MB": (text_bomb, (200, 422)),
    "a JPEG cut off": (lambda: encoded(Image.new("RGB", (900, 900), "teal"), "JPEG")[:-300], (422,)),
    "a GIF of 3,000 frames": (_frames, (200,)),
    "a TIFF of 5,000 x 5,000": (_tiff, (200,)),
    "a GIF that claims 65,535 x 65,535": (lambda: _claims("GIF"), (422,)),
    "a BMP that claims 65,535 x 65,535": (lambda: _claims("BMP"), (422,)),
    "a JPEG that claims 65,535 x 65,535": (lambda: _claims("JPEG"), (422,)),
    "a JPEG of 5,000 scans": (lambda: poison(500, 5_000), (422,)),
    "PostScript": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", (422,)),
    "half a picture": (lambda: a_picture()[: len(a_picture()) // 2], (422,)),
}

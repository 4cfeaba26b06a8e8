"""One picture file to one RGB array, whatever its mode; a picture that cannot be read is named.

    format    JPEG, PNG, BMP, GIF, WebP, TIFF, PPM; AVIF where Pillow has it (11.3)
    numbers   1, 2, 4, 8 or 16 bits; grey, colour, palette, CMYK; transparent ones are laid over white
    turned    as EXIF says
    large     up to 64 million pixels. A larger JPEG is read at a half, a quarter or an eighth of its size
              where it is to be resized anyway: up to 256 million pixels, half of that if progressive
    several   of an animation the first picture

A set may take half of the machine's memory, and without a size no picture of it more than 16 million pixels.
"""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError, features
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, TiffImageFile

from minires.data.contents import describe
from minires.data.tree import read_file
from minires.data.twins import Look
from minires.errors import ConfigError, DataError, counted

# Formats whose readers are plain decoders. EPS is left out on purpose: reading it starts Ghostscript.
FORMATS: tuple[str, ...] = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
with warnings.catch_warnings(action="ignore"):  # an older Pillow does not know the name
    FORMATS += ("AVIF",) if features.check("avif") else ()
MAX_PIXELS = 64_000_000
REDUCED, REDUCED_PROGRESSIVE = 4, 2  # so many times the pixels, of a JPEG that is read at a smaller size
MAX_PIXELS_UNSIZED = 16_000_000
MAX_SCANS = 500  # of a progressive JPEG; each goes over the whole picture
SHARE = 0.5  # of the memory
# Of the seven passes of an interlaced PNG: the first column and row, and from one to the next.
ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
MAX_NAMED = 10
Decode = Callable[..., NDArray[np.uint8]]  # such as decode_all


def check_size(size: int | None) -> None:
    """Check the side that pictures are to have. Raises: ConfigError if it is no side."""
    if size is not None and size < 1:
        raise ConfigError(f"picture size must be at least 1, got {size}")


def decode(
    source: Path | bytes, *, name: str | None = None, size: int | None = None, draft: bool = False
) -> NDArray[np.uint8]:
    """Decode one picture to RGB, upright, and resize it when ``size`` is given.

    EXIF rotation is applied. Greyscale, palette and CMYK become RGB; 16-bit greyscale is scaled to 8 bits;
    alpha is laid over white. With ``size``, the largest centred square is cut out and resized with a Lanczos
    filter, so nothing is distorted; without it the picture keeps its size and shape. Of an animation the
    first frame is taken. ``draft`` reads a JPEG at a fraction of its size, see :func:`picture`.

    Shapes: (H, W, 3), or (size, size, 3).
    Raises: DataError that names the picture and the cause (truncated, not a picture, too large, ...).
    """
    check_size(size)
    rgb = picture(source, name=name, least=size, draft=draft)
    if size is not None:
        rgb = _square(rgb, size)
    return np.array(rgb, dtype=np.uint8)


def picture(
    source: Path | bytes, *, name: str | None = None, least: int | None = None, draft: bool = False
) -> Image.Image:
    """One picture as Pillow has it, in RGB and upright, of the size that it has in its file.

    With ``least``, a JPEG may be read at a half, a quarter or an eighth of its size, both its sides still
    twice ``least``: where it is too large else, or with ``draft`` wherever it can be, which is faster.

    Raises: DataError, as ``decode``.
    """
    name = name or (str(source) if isinstance(source, Path) else "picture")
    try:
        content = source if isinstance(source, bytes) else read_file(source, name="")
    except DataError as error:
        raise DataError(f"{name}: cannot read this picture{error.message}") from error
    try:
        with _open(content) as image:
            width, height = image.size
            if least is not None and (draft or width * height > MAX_PIXELS):
                _reduce(image, 2 * least)
            if image.width * image.height > MAX_PIXELS:
                smaller = "give a size, or " if isinstance(image, JpegImageFile) and least is None else ""
                raise DataError(
                    f"{name}: {width} x {height} pixels are more than the limit of {MAX_PIXELS:,}; "
                    f"{smaller}make the picture smaller first"
                )
            return _loaded(image, content)
    except DataError:
        raise
    except Exception as error:  # broken files make Pillow raise nearly any kind of exception
        raise DataError(f"{name}: cannot read this picture: {_cause(error, content)}") from error


def look(content: bytes, *, name: str) -> tuple[tuple[int, int], Look]:
    """The height and width of a picture, and what tells its twins. A JPEG is read at a fraction of its size.

    Raises: DataError, as ``decode``.
    """
    try:
        with _open(content) as image:
            original = image.size
            _reduce(image, 128)
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{original[0]} x {original[1]} pixels are more than {MAX_PIXELS:,}")
            turned = _loaded(image, content)
            wide, high = sorted(original, reverse=turned.width > turned.height)
            return (high, wide), Look.at(turned, content)
    except Exception as error:  # as in decode
        raise DataError(f"{name}: cannot read this picture: {_cause(error, content)}") from error


def resize(images: NDArray[np.uint8], size: int | None) -> NDArray[np.uint8]:
    """Resize every picture of a batch as ``decode`` does; None, or the size they have, changes nothing.

    Shapes: (N, H, W, 3) -> (N, size, size, 3).
    """
    if size is None or images.shape[1:3] == (size, size):
        return images
    check_size(size)
    return np.stack([np.asarray(_square(Image.fromarray(image), size)) for image in images])


def decode_all(
    files: Sequence[tuple[str, Callable[[], bytes]]], *, size: int | None, where: str
) -> NDArray[np.uint8]:
    """Decode many pictures, given as (name, function that returns the bytes), into one array.

    Shapes: (N, H, W, 3), all pictures of one size.
    Raises: DataError that names every unreadable picture (the first ten and the count), or two pictures
    of different sizes when no ``size`` was given, or says that all together take too much memory, before
    they do; nothing is left out silently.
    """
    images: NDArray[np.uint8] | None = None
    broken: list[str] = []
    first = ""
    if size is not None:
        check_memory(len(files), size, size, where=where, resized=True)
    for place, (name, read) in enumerate(files):
        try:
            image = decode(read(), name=name, size=size)
        except (DataError, OSError) as error:
            broken.append(str(error))
            continue
        if broken:
            continue
        if images is None:
            first = name
            check_memory(len(files), *image.shape[:2], where=where, resized=size is not None)
            images = np.empty((len(files), *image.shape), np.uint8)
        if image.shape != images.shape[1:]:
            raise differ(where, first, images.shape[1:3], name, image.shape[:2])
        images[place] = image
    if broken:
        raise DataError(unreadable(broken, where))
    if images is None:
        raise DataError(f"{where}: no picture found")
    return images


def memory() -> int:
    """How many bytes of memory the machine has for this process: all, or what its container was given."""
    found = []
    if hasattr(os, "sysconf"):
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            found.append(int(Path(limit).read_text()))
        except (OSError, ValueError):  # not there, or "max"
            continue
    return min(found, default=8 * 2**30)


class Differ(DataError):
    """Pictures differ in size that must not."""


def differ(
    where: str, one: str, size: Sequence[int], other: str, other_size: Sequence[int]
) -> Differ:
    """The error of two pictures that differ in their (height, width)."""
    return Differ(
        f"{where}: pictures differ in size: {one} is {_size(size)}, {other} is {_size(other_size)}; "
        "give a size, such as size=64, to which all are resized"
    )


def check_unsized(height: int, width: int, *, where: str) -> None:
    """Raise DataError if pictures are too large to be kept as they are."""
    if height * width > MAX_PIXELS_UNSIZED:
        raise DataError(
            f"{where}: pictures of {width} x {height} pixels are more than the limit of "
            f"{MAX_PIXELS_UNSIZED:,} without a size; give a size, such as size=64, to which all are resized"
        )


def check_memory(count: int, height: int, width: int, *, where: str, resized: bool) -> None:
    """Raise DataError if so many pictures of this size are more than a set may take in memory."""
    smaller = "give a smaller size, or fewer pictures" if resized else "give a size, such as size=64"
    if not resized:
        check_unsized(height, width, where=where)
    needed, most = count * height * width * 3, int(SHARE * memory())
    if needed > most:
        raise DataError(
            f"{where}: {counted(count, 'picture')} of {width} x {height} take {needed / 2**20:,.0f} MB of "
            f"memory, the limit is {most / 2**20:,.0f} MB, half of what there is; {smaller}, or stream=True"
        )


def unreadable(broken: list[str], where: str = "") -> str:
    """Say of pictures that cannot be read which they are, and why.

    >>> print(unreadable(["a.jpg: the file is empty"], "photos"))
    photos: 1 unreadable picture; mend or remove it:
      a.jpg: the file is empty
    """
    them = "it" if len(broken) == 1 else "them"
    count = counted(len(broken), "unreadable picture")
    return listing(f"{where and f'{where}: '}{count}; mend or remove {them}", broken)


def listing(head: str, lines: list[str]) -> str:
    """Return ``head`` followed by at most ten lines and the number of those not shown."""
    shown = "".join(f"\n  {line}" for line in lines[:MAX_NAMED])
    more = f"\n  ... and {len(lines) - MAX_NAMED} more" if len(lines) > MAX_NAMED else ""
    return f"{head}:{shown}{more}"


def _open(content: bytes) -> Image.Image:
    """The picture, not read yet. A large JPEG is opened, too, which ``Image.open`` would refuse."""
    if content.startswith(b"\xff\xd8\xff"):
        if (scans := content.count(b"\xff\xda")) > MAX_SCANS:
            raise ValueError(f"it is drawn in {scans:,} scans, the limit is {MAX_SCANS}")
        try:
            return JpegImageFile(io.BytesIO(content))
        except SyntaxError as error:
            raise UnidentifiedImageError(str(error)) from error
    if content.startswith(b"MM\0*") and (place := _photometric(content)):  # white is 0, which Pillow refuses
        content = content[:place] + b"\0\1" + content[place + 2 :]
    return Image.open(io.BytesIO(content), formats=FORMATS)


def _loaded(image: Image.Image, content: bytes) -> Image.Image:
    """The whole of an open picture, upright, in RGB."""
    _mend_transparency(image)
    image.load()
    if isinstance(image, PngImageFile):
        _check_png(image, content)
    white, inverted = 65535, False
    if isinstance(image, TiffImageFile) and image.mode.startswith("I;16"):
        white = 2 ** image.tag_v2.get(BITSPERSAMPLE, (16,))[0] - 1
        inverted = image.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == 0 or (
            content.startswith(b"MM\0*") and _photometric(content) > 0
        )
    ImageOps.exif_transpose(image, in_place=True)
    return _to_rgb(image, white=white, inverted=inverted)


def _photometric(content: bytes) -> int:
    """Where a big-endian TIFF of one 16-bit channel says that 0 is white; 0 if it does not."""
    start = int.from_bytes(content[4:8])
    found = {}
    for entry in range(int.from_bytes(content[start : start + 2])):
        place = start + 2 + 12 * entry
        number, _, count, value = struct.unpack(">HHIH", content[place : place + 10].ljust(10, b"\0"))
        if count == 1:
            found[number] = value, place + 8
    if found.get(BITSPERSAMPLE, (1,))[0] != 16:
        return 0
    value, place = found.get(PHOTOMETRIC_INTERPRETATION, (1, 0))
    return place if value == 0 else 0


def _check_png(image: PngImageFile, content: bytes) -> None:
    """Raise ValueError if the packed rows of a PNG end early, which Pillow takes for black rows."""
    width, height, depth, kind, _, _, interlaced = struct.unpack(">IIBBBBB", content[16:29])
    last = image.crop((0, height - 1, width, height))
    if not interlaced and last.getbbox(alpha_only=False):
        return
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[kind]
    needed = 0
    for left, top, right, down in ADAM7 if interlaced else [(0, 0, 1, 1)]:
        across, rows = -(-(width - left) // right), -(-(height - top) // down)
        needed += rows * (1 + (across * bits + 7) // 8) if across > 0 and rows > 0 else 0
    place, unpack, there = 8, zlib.decompressobj(), 0
    while place + 8 <= len(content) and not unpack.eof:
        length = int.from_bytes(content[place : place + 4])
        if content[place + 4 : place + 8] == b"IDAT":
            packed = content[place + 8 : place + 8 + length]
            while packed and there < needed:
                there += len(unpack.decompress(packed, 2**20))
                packed = unpack.unconsumed_tail
        place += length + 12
    while there < needed and (rest := unpack.decompress(unpack.unconsumed_tail, 2**20)):
        there += len(rest)
    if there < needed:
        raise ValueError(f"its rows end after {there:,} of {needed:,} bytes")


def _reduce(image: Image.Image, least: int) -> None:
    """Have a JPEG read at a fraction of its size, not below ``least``, if that makes it small enough."""
    if isinstance(image, JpegImageFile):
        times = REDUCED_PROGRESSIVE if image.info.get("progressive") else REDUCED  # that is read whole first
        if image.width * image.height <= times * MAX_PIXELS:
            image.draft(None, (least, least))


def _mend_transparency(image: Image.Image) -> None:
    """Bring the colour that a PNG calls transparent to the 8 bits to which Pillow brings the pixels."""
    transparent = image.info.get("transparency")
    tile = getattr(image, "tile", None)
    raw = str(tile[0][3]) if tile else ""  # such as "L;2"
    if isinstance(transparent, int) and raw in ("L;2", "L;4"):
        image.info["transparency"] = transparent * 255 // (2 ** int(raw[-1]) - 1)
    if isinstance(transparent, tuple) and raw == "RGB;16B":
        image.info["transparency"] = tuple(value >> 8 for value in transparent)


def _to_rgb(image: Image.Image, *, white: int, inverted: bool) -> Image.Image:
    """Convert any of Pillow's modes to RGB; ``white`` is the largest grey of more than 8 bits, or, if
    ``inverted``, black is."""
    if image.mode in ("I", "I;16", "I;16B", "I;16L", "I;16N"):  # 16-bit greyscale
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError(f"integer pixels from {grey.min()} to {grey.max()} do not fit into 16 bits")
        shown = np.minimum((grey * 255 + white // 2) // white, 255).astype(np.uint8)
        if inverted:
            shown = 255 - shown
        if (transparent := image.info.get("transparency")) is not None:  # one grey, laid over white
            shown[grey == transparent] = 255
        return Image.fromarray(shown).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating point pixels have no agreed range; save the picture with 8 or 16 bits")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _square(image: Image.Image, size: int) -> Image.Image:
    """Cut out the largest centred square and resize it."""
    if image.size == (size, size):
        return image
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return square.resize((size, size), Image.Resampling.LANCZOS)


def _size(shape: Sequence[int]) -> str:
    return f"{shape[1]} x {shape[0]}"


def _cause(error: Exception, content: bytes) -> str:
    """Say in plain words why Pillow gave up."""
    if isinstance(error, UnidentifiedImageError):
        known = f"not a picture in a known format ({', '.join(FORMATS)}), or damaged"
        if not content:
            return f"the file is empty, {known}"
        return f"this is {what}" if (what := describe(content)) else known
    if isinstance(error, Image.DecompressionBombError):
        return f"it has more than {MAX_PIXELS:,} pixels; make it smaller first"
    return str(error) or type(error).__name__

"""One picture file to one RGB array, whatever its mode; a picture that cannot be read is named."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from minires.errors import ConfigError, DataError

# Formats whose readers are plain decoders. EPS is left out on purpose: reading it starts Ghostscript.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
MAX_PIXELS = 64_000_000
MAX_NAMED = 10


def decode(source: Path | bytes, *, name: str | None = None, size: int | None = None) -> NDArray[np.uint8]:
    """Decode one picture to RGB, upright, and resize it when ``size`` is given.

    EXIF rotation is applied. Greyscale, palette and CMYK become RGB; 16-bit greyscale is scaled to 8 bits;
    alpha is laid over white. With ``size``, the largest centred square is cut out and resized with a Lanczos
    filter, so nothing is distorted; without it the picture keeps its size and shape. Of an animation the
    first frame is taken.

    Shapes: (H, W, 3), or (size, size, 3).
    Raises: DataError that names the picture and the cause (truncated, not a picture, too large, ...).
    """
    name = name or (str(source) if isinstance(source, Path) else "picture")
    if size is not None and size < 1:
        raise ConfigError(f"picture size must be at least 1, got {size}")
    try:
        file = io.BytesIO(source if isinstance(source, bytes) else source.read_bytes())
        with Image.open(file, formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise DataError(
                    f"{name}: {width} x {height} pixels are more than the limit of {MAX_PIXELS:,}; "
                    "make the picture smaller first"
                )
            image.load()
            rgb = _to_rgb(ImageOps.exif_transpose(image))
    except DataError:
        raise
    except Exception as error:  # broken files make Pillow raise nearly any kind of exception
        raise DataError(f"{name}: cannot read this picture: {_cause(error)}") from error
    if size is not None:
        rgb = _square(rgb, size)
    return np.array(rgb, dtype=np.uint8)


def resize(images: NDArray[np.uint8], size: int | None) -> NDArray[np.uint8]:
    """Resize every picture of a batch as ``decode`` does; None, or the size they have, changes nothing.

    Shapes: (N, H, W, 3) -> (N, size, size, 3).
    """
    if size is None or images.shape[1:3] == (size, size):
        return images
    if size < 1:
        raise ConfigError(f"picture size must be at least 1, got {size}")
    return np.stack([np.asarray(_square(Image.fromarray(image), size)) for image in images])


def decode_all(
    files: Iterable[tuple[str, Callable[[], bytes]]], *, size: int | None, where: str
) -> NDArray[np.uint8]:
    """Decode many pictures, given as (name, function that returns the bytes), into one array.

    Shapes: (N, H, W, 3), all pictures of one size.
    Raises: DataError that names every unreadable picture (the first ten and the count), or two pictures
    of different sizes when no ``size`` was given; nothing is left out silently.
    """
    images: list[NDArray[np.uint8]] = []
    broken: list[str] = []
    first = ""
    for name, read in files:
        try:
            image = decode(read(), name=name, size=size)
        except (DataError, OSError) as error:
            broken.append(str(error))
            continue
        first = first or name
        if not broken and images and image.shape != images[0].shape:
            raise DataError(
                f"{where}: pictures differ in size: {first} is {_size(images[0])}, {name} is {_size(image)}; "
                "give a size, such as size=64, to which all are resized"
            )
        images.append(image)
    if broken:
        raise DataError(listing(f"{where}: {len(broken)} unreadable pictures; mend or remove them", broken))
    if not images:
        raise DataError(f"{where}: no picture found")
    return np.stack(images)


def listing(head: str, lines: list[str]) -> str:
    """Return ``head`` followed by at most ten lines and the number of those not shown."""
    shown = "".join(f"\n  {line}" for line in lines[:MAX_NAMED])
    more = f"\n  ... and {len(lines) - MAX_NAMED} more" if len(lines) > MAX_NAMED else ""
    return f"{head}:{shown}{more}"


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert any of Pillow's modes to RGB."""
    if image.mode in ("I", "I;16", "I;16B", "I;16L", "I;16N"):  # 16-bit greyscale
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError(f"integer pixels from {grey.min()} to {grey.max()} do not fit into 16 bits")
        return Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating point pixels have no agreed range; save the picture with 8 or 16 bits")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _square(image: Image.Image, size: int) -> Image.Image:
    """Cut out the largest centred square and resize it."""
    if image.size == (size, size):
        return image
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return square.resize((size, size), Image.Resampling.LANCZOS)


def _size(image: NDArray[np.uint8]) -> str:
    return f"{image.shape[1]} x {image.shape[0]}"


def _cause(error: Exception) -> str:
    """Say in plain words why Pillow gave up."""
    if isinstance(error, UnidentifiedImageError):
        return f"not a picture in a known format ({', '.join(FORMATS)}), or damaged"
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, Image.DecompressionBombError):
        return f"it has more than {MAX_PIXELS:,} pixels; make it smaller first"
    return str(error) or type(error).__name__

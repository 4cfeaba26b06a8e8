"""Pictures that were decoded and resized once, kept in a file that later runs map into memory.

    pixels/PLACE-STATE.uint8   the pixels, uint8 (N, H, W, 3); it is there whole or not at all

PLACE stands for where the pictures are and for the size; STATE for the names, sizes and times of the files,
how they were decoded, and by which Pillow. Where the state is another, they are decoded anew, and pixels that
nobody has asked for in the last hour are removed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import features
from tqdm import tqdm

from minires.data.fetch import make_folder
from minires.data.pictures import unreadable
from minires.data.search_path import cache
from minires.data.streaming import PIECE, Files, Stream
from minires.errors import DataError
from minires.files import atomic_write

FORMAT = 1
LEFT = 3600.0  # seconds since the time of a file that nobody is about to read, or writes


def kept(stream: Stream) -> Files:
    """The files of a stream with their pixels from the cache, into which they are brought if need be.

    Raises: DataError that names every picture which cannot be read, or says what is wrong with the cache.
    """
    files, folder = stream.files, place_of_all()
    make_folder(folder)
    place = _key(files.where, files.named[0][0], files.size, files.square, files.draft)
    jpeg = features.version("libjpeg_turbo") or features.version("jpg")
    state = _key(FORMAT, stream.shape, stream.fingerprint(), PIL.__version__, jpeg)
    path = folder / f"{place}-{state}.uint8"
    try:
        pixels = _mapped(path, stream.shape)
    except (OSError, ValueError):  # not there, or of another size
        for pattern in (f"{place}-*.uint8", f".{place}-*.tmp"):
            for left in folder.glob(pattern):
                _remove_if_old(left)
        _write(stream, path)
        pixels = _mapped(path, stream.shape)
    return replace(files, pixels=pixels)


def place_of_all() -> Path:
    """The folder of all pixels that are kept."""
    return cache() / "pixels"


def _mapped(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """The pixels in a file, whose time says from now on when it was last used.

    Raises: OSError if it is not there; ValueError if it has another size.
    """
    if path.stat().st_size != int(np.prod(shape)):
        raise ValueError(f"{path} has another size")
    with suppress(OSError):  # of another user
        os.utime(path)
    return np.memmap(path, np.uint8, mode="r", shape=shape)


def _key(*known: Any) -> str:
    return hashlib.sha256(repr(known).encode(errors="backslashreplace")).hexdigest()[:32]


def _remove_if_old(path: Path) -> None:
    """Remove pixels of another state, or what a write that was killed has left; not what another run has just
    asked for, or may be writing now."""
    with suppress(OSError):  # some systems keep what is in use
        if time.time() - path.stat().st_mtime > LEFT:
            path.unlink()


def _write(stream: Stream, path: Path) -> None:
    """Decode all pictures into a file, which is there whole or not at all."""
    count, needed = len(stream), int(np.prod(stream.shape))
    if needed > (free := shutil.disk_usage(path.parent).free):
        raise DataError(
            f"{path.parent}: the cache of {count:,} pictures needs {needed / 1e9:.1f} GB, and "
            f"{free / 1e9:.1f} GB are free; make room, let XDG_CACHE_HOME name another folder, or "
            "leave cache out"
        )
    broken: list[str] = []
    cuts = [slice(start, start + PIECE) for start in range(0, count, PIECE)]
    with atomic_write(path) as file, tqdm(
        total=count, desc="filling the cache", unit=" pictures", disable=None
    ) as bar:  # fmt: skip
        for batch, wrong in stream.tried(cuts):
            broken += [text for _, text in wrong]
            if not broken:
                file.write(batch.data)
            bar.update(len(batch))
        if broken:
            raise DataError(unreadable(broken, stream.files.where))

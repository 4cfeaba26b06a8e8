"""Pictures that were decoded and resized once, kept in a file that later runs map into memory.

    pixels/KEY.uint8   the pixels, uint8 (N, H, W, 3)
    pixels/KEY.json    by what they are known: names, sizes and times of the files, how they were decoded, and
                       by which Pillow; it is written last, and says that the other is whole

KEY stands for the place of the pictures and the size. Where what is known of them has changed they are
decoded anew, and take the place of the old ones.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import features
from tqdm import tqdm

from minires.data.fetch import make_folder
from minires.data.pictures import unreadable
from minires.data.search_path import cache
from minires.data.streaming import PIECE, Files, Stream
from minires.errors import DataError
from minires.files import atomic_write

FORMAT = 1
LEFT = 3600.0  # seconds since the last change of a file that nobody writes any more


def kept(stream: Stream) -> Files:
    """The files of a stream with their pixels from the cache, into which they are brought if need be.

    Raises: DataError that names every picture which cannot be read, or says what is wrong with the cache.
    """
    files, folder = stream.files, cache() / "pixels"
    make_folder(folder)
    place = repr((files.where, files.named[0][0], files.size, files.square, files.draft))
    stem = folder / hashlib.sha256(place.encode(errors="backslashreplace")).hexdigest()[:32]
    pixels, about = stem.with_suffix(".uint8"), stem.with_suffix(".json")
    known = {
        "format": FORMAT, "where": files.where, "shape": list(stream.shape), "pictures": stream.fingerprint(),
        "pillow": PIL.__version__, "jpeg": features.version("libjpeg_turbo") or features.version("jpg"),
    }  # fmt: skip
    if not _is_there(pixels, about, known, int(np.prod(stream.shape))):
        with suppress(OSError):
            about.unlink(missing_ok=True)
        _write(stream, pixels)
        with atomic_write(about) as file:
            file.write(json.dumps(known, indent=2).encode())
    mapped = np.memmap(pixels, np.uint8, mode="r", shape=stream.shape)
    return replace(files, pixels=mapped)


def _is_there(pixels: Path, about: Path, known: dict[str, Any], size: int) -> bool:
    try:
        return json.loads(about.read_bytes()) == known and pixels.stat().st_size == size
    except (OSError, ValueError):
        return False


def _remove_leftovers(path: Path) -> None:
    """Remove what writes that were killed have left; not what another run may be writing now."""
    for left in path.parent.glob(f".{path.name}.*.tmp"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > LEFT:
                left.unlink()


def _write(stream: Stream, path: Path) -> None:
    """Decode all pictures into a file, which is there whole or not at all."""
    count, needed = len(stream), int(np.prod(stream.shape))
    _remove_leftovers(path)
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

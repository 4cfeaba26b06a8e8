"""SIGNS: photographs of hands that show 0 to 5, 1,080 for training and 120 for testing, 64x64 RGB.

Two public forms are read: the picture folders of Stanford's CS230 examples (``64x64_SIGNS/train_signs``,
``val_signs``, ``test_signs`` with 864 + 216 + 120 JPEGs, the label is the first character of the file
name) and the two HDF5 files of the Coursera course (``train_signs.h5``, ``test_signs.h5``).
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from minires.data.dataset import Dataset, Splits
from minires.data.pictures import decode_all, listing, resize
from minires.errors import DataError

CLASSES = ("0", "1", "2", "3", "4", "5")
FOLDER = "64x64_SIGNS"
TRAIN, VAL, TEST = "train_signs", "val_signs", "test_signs"
# SHA-256 over the contents of the known public copy of the picture folders, see `digest`.
KNOWN = "75bdba965d71642dda699839af00dca07e7f29bf032a26ff1c415655b5d1e37d"


def locate(path: Path) -> Path | None:
    """Return what of ``path`` can be read as SIGNS: a folder of picture folders, or of both HDF5 files.

    Picture folders are preferred, because theirs are the official train and val parts.
    """
    for folder in (path / FOLDER, path):
        if (folder / TRAIN).is_dir() and (folder / TEST).is_dir():
            return folder
    if (path / f"{TRAIN}.h5").is_file() and (path / f"{TEST}.h5").is_file():
        return path
    return None


def read(path: Path, *, size: int | None = None, seed: int = 0) -> Splits:
    """Read SIGNS from a folder in either form, or from one of the two HDF5 files (its sister lies beside it).

    Where there is no val part (HDF5), a fifth of the training pictures is split off by ``seed``: 864 + 216.

    Raises: DataError when something is missing, unreadable or labelled outside 0..5.
    """
    if path.is_file():
        return _read_h5(
            path.with_name(path.name.replace("test", "train")),
            path.with_name(path.name.replace("train", "test")),
            size=size,
            seed=seed,
        )
    found = locate(path)
    if found is None:
        raise DataError(
            f"{path}: no SIGNS here: expected the folders {TRAIN}/ and {TEST}/ with .jpg files, or the "
            f"files {TRAIN}.h5 and {TEST}.h5"
        )
    if (found / TRAIN).is_dir():
        return _read_folders(found, size=size, seed=seed)
    return _read_h5(found / f"{TRAIN}.h5", found / f"{TEST}.h5", size=size, seed=seed)


def pictures(root: Path) -> list[Path]:
    """List the JPEGs of the three folders in the order of their names' bytes."""
    found = [p for part in (TRAIN, VAL, TEST) for p in (root / part).glob("*.jpg")]
    return sorted(
        (p for p in found if not p.name.startswith(".")),
        key=lambda p: p.relative_to(root).as_posix().encode(),
    )


def digest(root: Path) -> str:
    """Return the SHA-256 over names and contents: for each picture its path, a zero byte, and the SHA-256 of
    its bytes, in the order of the paths. Other files in the folder do not matter."""
    total = hashlib.sha256()
    for path in pictures(root):
        total.update(path.relative_to(root).as_posix().encode() + b"\0")
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def _read_folders(root: Path, *, size: int | None, seed: int) -> Splits:
    train = _read_folder(root, TRAIN, size)
    test = _read_folder(root, TEST, size)
    if (root / VAL).is_dir():
        val = _read_folder(root, VAL, size)
    else:
        train, val = train.split(0.8, seed=seed)
    known = "the known public copy" if digest(root) == KNOWN else "not the known public copy"
    return Splits(train, val, test, f"signs (picture folders at {root}, {known})")


def _read_folder(root: Path, part: str, size: int | None) -> Dataset:
    paths = [p for p in pictures(root) if p.parent.name == part]
    names = tuple(p.relative_to(root).as_posix() for p in paths)
    if not paths:
        raise DataError(f"{root / part}: no .jpg picture in this folder")
    odd = [name for name, p in zip(names, paths, strict=True) if p.name[0] not in CLASSES]
    if odd:
        raise DataError(listing(f"{root}: {len(odd)} file names do not begin with a label 0..5", odd))
    images = decode_all(
        ((n, p.read_bytes) for n, p in zip(names, paths, strict=True)), size=size, where=str(root)
    )
    labels = np.array([int(p.name[0]) for p in paths], dtype=np.int64)
    return Dataset(images, labels, CLASSES, names, "signs")


def _read_h5(train_path: Path, test_path: Path, *, size: int | None, seed: int) -> Splits:
    whole = _read_h5_half(train_path, "train", size)
    test = _read_h5_half(test_path, "test", size)
    train, val = whole.split(0.8, seed=seed)
    return Splits(train, val, test, f"signs (HDF5 files {train_path} and {test_path.name})")


def _read_h5_half(path: Path, half: str, size: int | None) -> Dataset:
    import h5py  # costs a tenth of a second, and only this form needs it

    if not path.is_file():
        raise DataError(f"{path}: no such file; the HDF5 form of SIGNS needs both {TRAIN}.h5 and {TEST}.h5")
    keys = (f"{half}_set_x", f"{half}_set_y")
    try:
        with h5py.File(path, "r") as file:
            if missing := [key for key in keys if not isinstance(file.get(key), h5py.Dataset)]:
                raise DataError(
                    f"{path}: no data set {' and '.join(missing)} in this HDF5 file; expected {keys[0]} "
                    f"(N, 64, 64, 3) and {keys[1]} (N,), it has: {', '.join(sorted(file)) or 'nothing'}"
                )
            images, labels = file[keys[0]][()], np.asarray(file[keys[1]][()])
    except OSError as error:
        raise DataError(f"{path}: cannot read this HDF5 file: {error}") from error
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
        raise DataError(f"{path}: {keys[0]} must be uint8 (N, H, W, 3), it is {images.dtype} {images.shape}")
    if labels.dtype.kind not in "iu" or labels.size != len(images):  # some copies store (1, N)
        raise DataError(
            f"{path}: {keys[1]} must hold {len(images)} integer labels, it is {labels.dtype} {labels.shape}"
        )
    flat: NDArray[np.int64] = labels.reshape(-1).astype(np.int64)
    names = tuple(f"{path.name}[{i}]" for i in range(len(images)))
    return Dataset(resize(images, size), flat, CLASSES, names, "signs")

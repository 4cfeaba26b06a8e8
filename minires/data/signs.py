"""SIGNS: photographs of hands that show 0 to 5, 1,080 for training and 120 for testing, 64x64 RGB.

Two public forms are read: the picture folders of Stanford's CS230 examples (``64x64_SIGNS/train_signs``,
``val_signs``, ``test_signs`` with 864 + 216 + 120 JPEGs, the label is the first character of the file
name) and the two HDF5 files of the Coursera course (``train_signs.h5``, ``test_signs.h5``).
"""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from minires.data.archives import name_in_zip, safe_parts
from minires.data.dataset import Dataset, Splits
from minires.data.fetch import check_counts, copy_files, fetch_file, make_folder, staging
from minires.data.pictures import decode_all, listing, resize
from minires.data.registry import Entry
from minires.data.search_path import cache
from minires.errors import DataError
from minires.files import atomic_write

CLASSES = ("0", "1", "2", "3", "4", "5")
FOLDER = "64x64_SIGNS"
TRAIN, VAL, TEST = "train_signs", "val_signs", "test_signs"
# SHA-256 over the contents of the known public copy of the picture folders, see `digest`.
KNOWN = "75bdba965d71642dda699839af00dca07e7f29bf032a26ff1c415655b5d1e37d"

# The repository as a zip. It also holds other things; only the pictures below INSIDE are taken.
URL = "https://codeload.github.com/littlecapa/pytorch_template/zip/HEAD"
INSIDE = ("data", FOLDER)
MAX_PICTURE_BYTES = 2**20
HDF5 = (".h5", ".hdf5")


def locate(path: Path) -> Path | None:
    """Return what of ``path`` can be read as SIGNS: a folder of picture folders, or one or both HDF5 files.

    Picture folders are preferred, because theirs are the official train and val parts.
    """
    if path.is_file() and path.suffix in HDF5:
        return path
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
        [(n, p.read_bytes) for n, p in zip(names, paths, strict=True)], size=size, where=str(root)
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


def download(*, url: str = URL, timeout: float = 30.0) -> str:
    """Fetch SIGNS into the cache, check its SHA-256, and return a report of one line.

    Raises: DataError when the network cannot be reached, or when what came is not the known copy; nothing is
    left behind then.
    """
    target = cache() / "signs" / FOLDER
    if target.is_dir() and digest(target) == KNOWN:
        return f"signs: already there and verified, {target}"
    with staging(target) as staged:
        archive = staged.parent / "archive.zip"
        fetch_file("signs", url, archive, timeout=timeout)
        _unpack(archive, staged, where=url)
        _verify(staged, where=url)
    return f"signs: 1,200 pictures, SHA-256 verified, now in {target}"


def prepare(source: Path) -> str:
    """Verify SIGNS at ``source``, copy it into the cache, and return a report of one line.

    It comes as a folder or zip with ``64x64_SIGNS`` or its three folders inside, which must be the known
    public copy, or as a folder with both HDF5 files.

    Raises: DataError when the source is not complete, not readable or not the known copy; nothing is left
    behind then.
    """
    if source.suffix in HDF5:
        source = source.parent
    found = None if source.is_file() else locate(source)
    if source.is_dir() and found is None:
        read(source)  # raises the error that says what was expected
    if found is not None and not (found / TRAIN).is_dir():
        splits = read(found)
        check_counts(splits, (864, 216, 120), where=str(found))
        target = cache() / "signs"
        make_folder(target)
        for half in (TRAIN, TEST):
            with atomic_write(target / f"{half}.h5") as file, open(found / f"{half}.h5", "rb") as half_file:
                shutil.copyfileobj(half_file, file)
        return f"signs: 1,080 + 120 pictures from the HDF5 files, readable and complete, now in {target}"
    target = cache() / "signs" / FOLDER
    with staging(target) as staged:
        if found is None:
            _unpack(source, staged, where=str(source))
        else:
            for path in pictures(found):
                copy_files([path], staged / path.parent.name)
        _verify(staged, where=str(source))
    return f"signs: 1,200 pictures, SHA-256 verified, now in {target}"


def _verify(root: Path, *, where: str) -> None:
    got = digest(root)
    if got != KNOWN:
        raise DataError(
            f"{where}: these {len(pictures(root))} pictures are not the known copy of SIGNS (SHA-256 "
            f"{got[:16]}..., expected {KNOWN[:16]}...); to use them as they are, give their path"
        )


def _unpack(archive: Path, target: Path, *, where: str) -> None:
    """Write the pictures of SIGNS in a zip below ``target``; names are checked, all else is left out."""
    try:
        with zipfile.ZipFile(archive) as opened:
            for info in opened.infolist():
                place = _place(info, where)
                if place is None:
                    continue
                if info.file_size > MAX_PICTURE_BYTES:
                    raise DataError(f"{where}: {info.filename}: {info.file_size:,} bytes, no such picture")
                (target / place[0]).mkdir(parents=True, exist_ok=True)
                (target / place[0] / place[1]).write_bytes(opened.read(info))
    except (zipfile.BadZipFile, RuntimeError, EOFError) as error:
        raise DataError(f"{where}: not a zip, or damaged: {error}; fetch it again") from error
    if not target.is_dir():
        raise DataError(f"{where}: no {'/'.join(INSIDE)}/train_signs/*.jpg in this zip")


def _place(info: zipfile.ZipInfo, where: str) -> tuple[str, str] | None:
    """Return (part, file name) of a member that is a picture of SIGNS, else None."""
    *above, name = safe_parts(name_in_zip(info), where=where) or ("",)
    if info.is_dir() or not above or above[-1] not in (TRAIN, VAL, TEST):
        return None
    hidden = name.startswith(".") or "__MACOSX" in above
    return None if hidden or not name.endswith(".jpg") else (above[-1], name)


ENTRY = Entry(
    read=read,
    locate=locate,
    title="photographs of hands that show 0 to 5, 64x64",
    how="get it with `minires data signs --download`, or use --data hands, which needs no download",
    prepare=prepare,
    download=download,
    stand_in="hands",
)

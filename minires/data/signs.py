"""SIGNS: photographs of hands that show 0 to 5, 1,080 for training and 120 for testing, 64x64 RGB.

Two public forms are read: the picture folders of Stanford's CS230 examples (``64x64_SIGNS/train_signs``,
``val_signs``, ``test_signs`` with 864 + 216 + 120 JPEGs, the label is the first character of the file
name) and the two HDF5 files of the Coursera course (``train_signs.h5``, ``test_signs.h5``).

The folders are found in a zip or tar, too, and below others (the raw ``SIGNS dataset/train_signs``). Other
HDF5 files of the same form are read like these two, with the classes that they name themselves: the
course's ``train_catvnoncat.h5`` and ``test_catvnoncat.h5`` have ``list_classes`` non-cat and cat.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minires import limits
from minires.data import class_names, registry, sources, tree
from minires.data.dataset import Dataset, Splits
from minires.data.fetch import check_counts, copy_files, fetch_file, make_folder, staging
from minires.data.opening import of_set
from minires.data.pictures import Decode, decode_all, listing, resize
from minires.data.search_path import cache
from minires.data.tree import Entry
from minires.errors import CheckpointError, DataError
from minires.files import atomic_write

CLASSES = ("0", "1", "2", "3", "4", "5")
FOLDER = "64x64_SIGNS"
TRAIN, VAL, TEST = "train_signs", "val_signs", "test_signs"
FOLDERS = {"train": TRAIN, "val": VAL, "test": TEST}
LABELLED = re.compile("[0-5]_")
# SHA-256 over the contents of the known public copy of the picture folders, see `digest`.
KNOWN = "75bdba965d71642dda699839af00dca07e7f29bf032a26ff1c415655b5d1e37d"

# The repository as a zip. It also holds other things; only the pictures below INSIDE are taken.
URL = "https://codeload.github.com/littlecapa/pytorch_template/zip/HEAD"
INSIDE = ("data", FOLDER)
MAX_PICTURE_BYTES = 2**20
HDF5 = (".h5", ".hdf5")
MOST_NUMBERED = 1000  # classes without names, where there are not more pictures


def locate(path: Path) -> Path | None:
    """Return what of ``path`` can be read as SIGNS: a folder of picture folders, or one or both HDF5 files.

    Picture folders are preferred, because theirs are the official train and val parts.
    """
    if path.is_file() and path.suffix.lower() in HDF5:
        return path
    for folder in (path / FOLDER, path):
        if (folder / TRAIN).is_dir() and (folder / TEST).is_dir() and not _has_classes(folder / TRAIN):
            return folder
    return path if len(_h5_pairs(path)) == 1 else None


def read(
    path: Path, *, size: int | None = None, seed: int = 0, decode: Decode = decode_all
) -> Splits:
    """Read SIGNS from a folder in either form, or from one of the two HDF5 files (its sister lies beside it).

    Where there is no val part (HDF5), a fifth of the training pictures is split off by ``seed``: 864 + 216.

    Raises: DataError when something is missing, unreadable or labelled outside 0..5, or outside the classes
    that the HDF5 file names.
    """
    if path.is_file():
        return _read_h5(*_h5_halves(path), size=size, seed=seed)
    found = locate(path)
    if found is None:
        raise DataError(
            f"{path}: no SIGNS here: expected the folders {TRAIN}/ and {TEST}/ with pictures, or the "
            f"files {TRAIN}.h5 and {TEST}.h5"
        )
    if (found / TRAIN).is_dir():
        return read_entries(_entries(found), size=size, seed=seed, where=str(found), decode=decode)
    return _read_h5(*_h5_pairs(found)[0], size=size, seed=seed)


def parts(
    path: Path, *, size: int | None = None, decode: Decode = decode_all
) -> dict[str, Callable[[], Dataset]]:
    """The parts of SIGNS at ``path`` as they stand, each to be read by a call; none if it is not SIGNS.

    One HDF5 file without its sister, or a folder with one of them, is one part.
    """
    if (found := locate(path)) is not None and (found / TRAIN).is_dir():
        return entry_parts(_entries(found), size=size, where=str(found), decode=decode)
    files = [path] if found == path and path.is_file() else _h5_in(path)
    halves = _h5_halves(files[0]) if files else ()
    if files != [path] and len({*halves}) < 2:  # of neither half by its name
        return {}
    if len({*files, *halves}) > 2:  # several sets
        return {}
    there = [(half, file) for half, file in zip(("train", "test"), halves, strict=False) if file.is_file()]
    return {half: partial(_read_h5_half, file, half, size) for half, file in there}


def inside(entries: list[Entry]) -> list[Entry] | None:
    """The pictures of SIGNS in a tree of files, with paths from its folders on; None if it is another set."""
    held = [e for e in entries if e.read is not None and not tree.not_picture(e.parts[-1])]
    around = {e.parts[:-2] for e in held}
    folders = {e.parts[-2] for e in held if len(e.parts) > 1}
    if len(around) != 1 or not folders or not folders <= {TRAIN, VAL, TEST}:
        return None
    if not all(LABELLED.match(e.parts[-1]) for e in held):
        return None
    return [Entry(e.parts[-2:], e.read) for e in held]


def read_entries(
    entries: list[Entry], *, size: int | None, seed: int, where: str, decode: Decode = decode_all
) -> Splits:
    """Read SIGNS from the pictures in its folders, ``train_signs/0_x.jpg``. Raises: as ``read``."""
    found = entry_parts(entries, size=size, where=where, decode=decode)
    if missing := [name for part, name in FOLDERS.items() if part not in found and part != "val"]:
        raise DataError(f"{where}: no folder {' and '.join(missing)}: `minires evaluate` can use the rest")
    train, test = found["train"](), found["test"]()
    if "val" in found:
        val = found["val"]()
    else:
        train, val = train.split(0.8, seed=seed)
    known = "the known public copy" if _digest(entries) == KNOWN else "not the known public copy"
    return Splits(train, val, test, f"signs (picture folders at {where}, {known})")


def entry_parts(
    entries: list[Entry], *, size: int | None, where: str, decode: Decode = decode_all
) -> dict[str, Callable[[], Dataset]]:
    """The parts of SIGNS among these pictures, each to be read by a call."""
    there, decode = {e.parts[0] for e in entries}, of_set(decode, len(entries))
    return {
        part: partial(_read_folder, [e for e in entries if e.parts[0] == name], name, size, where, decode)
        for part, name in FOLDERS.items()
        if name in there
    }


def pictures(root: Path) -> list[Path]:
    """List the pictures of the three folders in the order of their names' bytes; what is one by its name is
    told as for any folder."""
    found = [p for part in (TRAIN, VAL, TEST) for p in (root / part).glob("*")]
    left_out = (tree.hidden, tree.not_picture, tree.is_archive)
    return sorted(
        (p for p in found if not p.is_dir() and not any(no(p.name) for no in left_out)),
        key=lambda p: os.fsencode(p.relative_to(root)),
    )


def digest(root: Path) -> str:
    """Return the SHA-256 over names and contents: for each picture its path, a zero byte, and the SHA-256 of
    its bytes, in the order of the paths. Other files in the folder do not matter."""
    return _digest(_entries(root))


def _digest(entries: list[Entry]) -> str:
    total = hashlib.sha256()
    for entry in sorted(entries, key=lambda entry: entry.name.encode()):
        if entry.read is not None:
            total.update(entry.name.encode() + b"\0")
            total.update(hashlib.sha256(entry.read()).digest())
    return total.hexdigest()


def _has_classes(folder: Path) -> bool:
    """Whether a folder holds folders, and no files: the classes of a set of another kind."""
    held = [p for p in folder.iterdir() if not tree.hidden(p.name)]
    return bool(held) and all(p.is_dir() for p in held)


def _entries(root: Path) -> list[Entry]:
    named = [((p.parent.name, tree.writable(p.name)), p) for p in pictures(root)]
    held = [Entry(parts, tree.OnDisk(str(path), "/".join(parts))) for parts, path in named]
    return held + [Entry((part,), None) for part in (TRAIN, VAL, TEST) if (root / part).is_dir()]


def _read_folder(entries: list[Entry], part: str, size: int | None, where: str, decode: Decode) -> Dataset:
    held = [e for e in entries if e.read is not None]
    names = tuple(e.name for e in held)
    if not held:
        raise DataError(f"{where}/{part}: no picture in this folder")
    odd = [e.name for e in held if e.parts[-1][0] not in CLASSES]
    if odd:
        raise DataError(listing(f"{where}: {len(odd)} file names do not begin with a label 0..5", odd))
    images = decode([(e.name, e.read) for e in held if e.read], size=size, where=where)
    labels = np.array([int(e.parts[-1][0]) for e in held], dtype=np.int64)
    return Dataset(images, labels, CLASSES, names, "signs")


def _h5_in(folder: Path) -> list[Path]:
    """The HDF5 files in a folder that may be a set: those of SIGNS, others only where no folder is beside."""
    if not folder.is_dir():
        return []
    visible = [p for p in folder.iterdir() if not tree.hidden(p.name)]
    files = sorted(p for p in visible if p.suffix.lower() in HDF5)
    signs = [p for p in files if p.stem in (TRAIN, TEST)]
    return files if files and not any(p.is_dir() for p in visible) else signs


def _h5_pairs(folder: Path) -> list[tuple[Path, Path]]:
    """The pairs of HDF5 files, train and test, in a folder; that of SIGNS alone if it is there."""
    files = _h5_in(folder)
    pairs = [(p, _h5_halves(p)[1]) for p in files if _h5_halves(p)[0] == p]
    found = [pair for pair in pairs if pair[1] in files and pair[1] != pair[0]]
    return [pair for pair in found if pair[0].name == f"{TRAIN}.h5"] or found


def _h5_halves(path: Path) -> tuple[Path, Path]:
    """The HDF5 files with the training and the test pictures, of which ``path`` is one, or both."""
    train = re.sub(r"(?<![a-z])test", "train", path.name, count=1, flags=re.IGNORECASE)
    test = re.sub(r"(?<![a-z])train", "test", path.name, count=1, flags=re.IGNORECASE)
    return path.with_name(train), path.with_name(test)


def _read_h5(train_path: Path, test_path: Path, *, size: int | None, seed: int) -> Splits:
    whole = _read_h5_half(train_path, "train", size)
    test = _read_h5_half(test_path, "test", size)
    classes = max(whole.classes, test.classes, key=lambda names: (not _numbers(names), len(names)))
    for half in (whole, test):
        count = len(half.classes)
        same = half.classes == classes[:count] or _numbers(half.classes)
        if not same or count > len(classes):
            raise DataError(
                f"{train_path} names the classes {', '.join(whole.classes)}, {test_path.name} "
                f"{', '.join(test.classes)}"
            )
    if whole.images.shape[1:] != test.images.shape[1:]:
        raise DataError(
            f"{train_path}: pictures differ in size: {whole.names[0]} is {whole.images.shape[1:3]}, "
            f"{test.names[0]} is {test.images.shape[1:3]} (height, width); give a size, such as size=64"
        )
    train, val = replace(whole, classes=classes).split(0.8, seed=seed)
    source = f"{whole.name} (HDF5 files {train_path} and {test_path.name})"
    return Splits(train, val, replace(test, classes=classes), source)


def _numbers(classes: tuple[str, ...]) -> bool:
    return classes == tuple(map(str, range(len(classes))))


def _read_h5_half(path: Path, half: str, size: int | None) -> Dataset:
    if not path.is_file():
        raise DataError(f"{path}: no such file; the HDF5 form of SIGNS needs both {TRAIN}.h5 and {TEST}.h5")
    arrays, named = limits.apart(h5_contents, path, half, error=DataError)
    images, labels = arrays[f"{half}_set_x"], arrays[f"{half}_set_y"]
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
        raise DataError(
            f"{path}: {half}_set_x must be uint8 (N, H, W, 3), it is {images.dtype} {images.shape}"
        )
    if labels.dtype.kind not in "iu" or labels.size != len(images):  # some copies store (1, N)
        raise DataError(
            f"{path}: {half}_set_y must hold {len(images)} integer labels, it is {labels.dtype} "
            f"{labels.shape}"
        )
    flat: NDArray[np.int64] = labels.reshape(-1).astype(np.int64)
    names = tuple(f"{path.name}[{i}]" for i in range(len(images)))
    name = re.sub(r"(?i)(?<![a-z])(train|test)[_ -]?|[_ -](train|test)$", "", path.stem) or path.stem
    if named is not None:
        classes = tuple(class_names.stripped(named, f"{path}: list_classes"))
        if not classes or len({*classes}) < len(classes):
            raise DataError(f"{path}: list_classes must name each class once, it is {list(classes)}")
    elif name == "signs":
        classes = CLASSES
    else:
        largest = int(flat.max(initial=0))
        if largest >= max(len(images), MOST_NUMBERED):
            raise DataError(
                f"{path}: {half}_set_y has the label {largest:,} for {len(images):,} pictures, and no "
                "list_classes; number the classes from 0"
            )
        classes = tuple(map(str, range(largest + 1)))
    return Dataset(resize(images, size), flat, classes, names, name)


def h5_contents(path: str, half: str) -> tuple[dict[str, NDArray[Any]], list[str] | None]:
    """The pictures and labels of an HDF5 file as they stand in it, and the names of its classes if any.

    It is to be read in a process of its own: see :func:`minires.limits.apart`.

    Raises: DataError if they are not there, are links or too many, or the file is damaged.
    """
    import h5py  # costs a tenth of a second, and only this form needs it

    from minires import hdf5

    most, keys = limits.unfolded(os.path.getsize(path)), (f"{half}_set_x", f"{half}_set_y")
    try:
        with h5py.File(path, "r") as file:
            if missing := [key for key in keys if key not in file]:
                raise DataError(
                    f"{path}: no data set {' and '.join(missing)} in this HDF5 file; expected {keys[0]} "
                    f"(N, 64, 64, 3) and {keys[1]} (N,), it has: {', '.join(sorted(file)) or 'nothing'}"
                )
            arrays = {key: hdf5.array(file, key, kinds="iuf", most=most) for key in keys}
            named = hdf5.texts(file, "list_classes") if "list_classes" in file else None
    except CheckpointError as error:
        raise DataError(f"{path}: {error}") from error
    except hdf5.DAMAGED as error:
        raise DataError(f"{path}: cannot read this HDF5 file: {error}") from error
    return arrays, named


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

    It comes as a folder, zip or tar with ``64x64_SIGNS`` or its three folders inside, which must be the known
    public copy, or as a folder with both HDF5 files.

    Raises: DataError when the source is not complete, not readable or not the known copy; nothing is left
    behind then.
    """
    if source.suffix.lower() in HDF5:
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
    """Write the pictures of SIGNS in a zip or tar below ``target``; all else is left out."""
    try:
        for entry in sources.entries(archive):
            *above, name = entry.parts
            if entry.read is None or not above or above[-1] not in (TRAIN, VAL, TEST) or name[-4:] != ".jpg":
                continue
            content = entry.read()
            if len(content) > MAX_PICTURE_BYTES:
                raise DataError(f"{entry.name}: {len(content):,} bytes, no such picture")
            (target / above[-1]).mkdir(parents=True, exist_ok=True)
            (target / above[-1] / name).write_bytes(content)
    except DataError as error:
        cause = error.message.removeprefix(f"{archive}: ")
        raise DataError(f"{where}: not an archive of SIGNS, or damaged: {cause}") from error
    if not target.is_dir():
        raise DataError(f"{where}: no {'/'.join(INSIDE)}/train_signs/*.jpg in this archive")


ENTRY = registry.Entry(
    read=read,
    locate=locate,
    parts=parts,
    decodes=True,
    title="photographs of hands that show 0 to 5, 64x64",
    how="get it with `minires data signs --download`, or use --data hands, which needs no download",
    prepare=prepare,
    download=download,
    stand_in="hands",
)

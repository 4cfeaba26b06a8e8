"""CIFAR-10: 50,000 + 10,000 pictures of 32x32 in ten classes.

Read from the official binary form (``cifar-10-batches-bin``, Krizhevsky 2009) or from zips of picture
folders (``train/class/0000.jpg``). Of the training pictures 45,000 train and 5,000 validate, as in He et
al. 2015, section 4.2. The official Python form consists of pickles, which can run any code: refused.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from minires.data import archives, folder
from minires.data.dataset import Dataset, Splits
from minires.data.fetch import check_counts, copy_files, staging
from minires.data.pictures import Decode, decode_all, resize
from minires.data.registry import Entry
from minires.data.search_path import cache
from minires.errors import DataError
from minires.limits import regular_file

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
BINARY = "cifar-10-batches-bin"
TRAIN_FILES = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
TEST_FILE = "test_batch.bin"
RECORD = 1 + 3 * 32 * 32
MOST = 60_000  # records
PACKED = "cifar-10-binary.tar.gz"
PICKLES = ("cifar-10-batches-py", "cifar-10-python.tar.gz", "data_batch_1")


def locate(path: Path) -> Path | None:
    """Return the folder below or at ``path`` that CIFAR-10 can be read from, or None."""
    for place in (path / BINARY, path):
        if (place / TEST_FILE).is_file():
            return place
    return path if zips(path) else None


def read(
    path: Path, *, size: int | None = None, seed: int = 0, decode: Decode = decode_all
) -> Splits:
    """Read CIFAR-10 from a folder in either form.

    Raises: DataError when files are missing or damaged, or when only the pickled form is there.
    """
    found = locate(path)
    if found is None:
        refuse_pickles(path)
        raise DataError(
            f"{path}: no CIFAR-10 here: expected {BINARY}/{TEST_FILE} and its five sisters (unpack "
            "cifar-10-binary.tar.gz), or zips of picture folders, cifar10_train.zip and cifar10_test.zip"
        )
    if (found / TEST_FILE).is_file():
        return _read_binary(found, size=size, seed=seed)
    found_zips = zips(found)
    entries = [entry for path in found_zips for entry in archives.in_zip(path)]
    where = ", ".join(str(path) for path in found_zips)
    splits = folder.split_up(
        entries, size=size, seed=seed, name="cifar10", where=where, train_share=0.9, decode=decode
    )
    if splits.train.classes != CLASSES:
        raise DataError(f"{where}: not the classes of CIFAR-10: {', '.join(splits.train.classes)}")
    return splits


def refuse_pickles(path: Path) -> None:
    """Raise DataError when ``path`` is or holds CIFAR-10 in its pickled form, or its packed binary form."""
    if path.name == PACKED and path.is_file():
        raise DataError(f"{path}: unpack this archive of CIFAR-10, and give the folder {BINARY}")
    for name in PICKLES:
        found = path if path.name == name else path / name
        if found.exists():
            raise DataError(
                f"{found}: this is the Python version of CIFAR-10, made of pickles, which can run any "
                "code when read; get the binary version, cifar-10-binary.tar.gz, and unpack it here"
            )


def zips(path: Path) -> list[Path]:
    """List the zips of CIFAR-10 pictures in a folder."""
    return sorted(path.glob("cifar10*.zip"))


def _read_binary(root: Path, *, size: int | None, seed: int) -> Splits:
    halves = [_read_file(root / name, size) for name in TRAIN_FILES]
    whole = Dataset(
        np.concatenate([part.images for part in halves]),
        np.concatenate([part.labels for part in halves]),
        CLASSES,
        tuple(name for part in halves for name in part.names),
        "cifar10",
    )
    train, val = whole.split(0.9, seed=seed)
    return Splits(train, val, _read_file(root / TEST_FILE, size), f"cifar10 (binary files at {root})")


def _read_file(path: Path, size: int | None) -> Dataset:
    if not path.exists():
        raise DataError(
            f"{path}: no such file; CIFAR-10 in binary form is data_batch_1.bin to _5.bin and {TEST_FILE}"
        )
    if (found := regular_file(path, DataError)) > MOST * RECORD:
        raise DataError(f"{path}: {found:,} bytes, where all of CIFAR-10 has {MOST * RECORD:,}")
    data = np.fromfile(path, dtype=np.uint8)
    if len(data) == 0 or len(data) % RECORD:
        raise DataError(
            f"{path}: {len(data):,} bytes are no multiple of {RECORD} (label + 3 x 32 x 32); "
            "the file is damaged, unpack it again"
        )
    records = data.reshape(-1, RECORD)  # label, then the red, green and blue planes
    images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)  # (N, C, H, W) -> (N, H, W, C)
    names = tuple(f"{path.name}[{i}]" for i in range(len(records)))
    labels = records[:, 0].astype(np.int64)
    return Dataset(resize(np.ascontiguousarray(images), size), labels, CLASSES, names, "cifar10")


def prepare(source: Path) -> str:
    """Verify CIFAR-10 at ``source``, copy it into the cache, and return a report of one line.

    It comes as a folder in its binary form or with zips of picture folders.

    Raises: DataError when the source is not complete or not readable; nothing is left behind then.
    """
    splits = read(source)
    check_counts(splits, (45_000, 5_000, 10_000), where=str(source))
    found = locate(source)
    assert found is not None  # it was just read
    binary = (found / TEST_FILE).is_file()
    target = cache() / "cifar10"
    with staging(target) as staged:
        wanted = [found / n for n in (*TRAIN_FILES, TEST_FILE)] if binary else zips(found)
        copy_files(wanted, staged)
    return f"cifar10: 50,000 + 10,000 pictures, readable and complete, now in {target}"


ENTRY = Entry(
    read=read,
    locate=locate,
    title="ten kinds of animals and vehicles, 32x32",
    how=f"put {BINARY}/ (from cifar-10-binary.tar.gz) or zips of picture folders there",
    refuse=refuse_pickles,
    decodes=True,
    prepare=prepare,
)

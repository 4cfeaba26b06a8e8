"""Put a data set into the user's cache: from a path at hand, or from its public copy on the network."""

from __future__ import annotations

import http.client
import os
import shutil
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from minires.data import cifar, folder, signs
from minires.data.dataset import Splits
from minires.data.search_path import cache
from minires.errors import ConfigError, DataError
from minires.files import atomic_write

# The repository as a zip. It also holds other things; only the pictures below SIGNS_INSIDE are taken.
SIGNS_URL = "https://codeload.github.com/littlecapa/pytorch_template/zip/HEAD"
SIGNS_INSIDE = ("data", signs.FOLDER)
MAX_ARCHIVE_BYTES = 500 * 2**20
MAX_PICTURE_BYTES = 2**20


def download(name: str, *, url: str = SIGNS_URL, timeout: float = 30.0) -> str:
    """Fetch a data set into the cache, check its SHA-256, and return a report of one line.

    Raises: ConfigError for a set that cannot be downloaded; DataError when the network cannot be reached,
    or when what came is not the known copy; nothing is left behind then.
    """
    if name != "signs":
        hint = {"hands": "hands is rendered and needs none"}.get(name, "use --from PATH")
        raise ConfigError(f"no download for data set {name!r}: {hint}; only signs can be downloaded")
    target = cache() / "signs" / signs.FOLDER
    if target.is_dir() and signs.digest(target) == signs.KNOWN:
        return f"signs: already there and verified, {target}"
    with _staging(target) as staged:
        archive = staged.parent / "archive.zip"
        _fetch(url, archive, timeout)
        _unpack_signs(archive, staged, where=url)
        _verify_signs(staged, where=url)
    return f"signs: 1,200 pictures, SHA-256 verified, now in {target}"


def prepare(name: str, source: Path) -> str:
    """Verify a data set at ``source``, copy it into the cache, and return a report of one line.

    SIGNS comes as a folder or zip with ``64x64_SIGNS`` or its three folders inside, which must be the known
    public copy, or as a folder with both HDF5 files; CIFAR-10 as a folder in its binary form or with zips.

    Raises: ConfigError for a set that is not made of files; DataError when the source is not complete, not
    readable or not the known copy; nothing is left behind then.
    """
    source = Path(source)
    if name not in ("signs", "cifar10"):
        raise ConfigError(f"data set {name!r} cannot be prepared from files; only signs and cifar10 can")
    if not source.exists():
        raise DataError(f"{source}: no such file or folder")
    if name == "cifar10":
        return _prepare_cifar(source)
    if source.suffix in (".h5", ".hdf5"):
        source = source.parent
    found = None if source.is_file() else signs.locate(source)
    if source.is_dir() and found is None:
        signs.read(source)  # raises the error that says what was expected
    if found is not None and not (found / signs.TRAIN).is_dir():
        splits = signs.read(found)
        _counted(splits, (864, 216, 120), where=str(found))
        target = cache() / "signs"
        _make(target)
        for half in (signs.TRAIN, signs.TEST):
            with atomic_write(target / f"{half}.h5") as file, open(found / f"{half}.h5", "rb") as half_file:
                shutil.copyfileobj(half_file, file)
        return f"signs: 1,080 + 120 pictures from the HDF5 files, readable and complete, now in {target}"
    target = cache() / "signs" / signs.FOLDER
    with _staging(target) as staged:
        if found is None:
            _unpack_signs(source, staged, where=str(source))
        else:
            for path in signs.pictures(found):
                _copy([path], staged / path.parent.name)
        _verify_signs(staged, where=str(source))
    return f"signs: 1,200 pictures, SHA-256 verified, now in {target}"


def _prepare_cifar(source: Path) -> str:
    splits = cifar.read(source)
    _counted(splits, (45_000, 5_000, 10_000), where=str(source))
    found = cifar.locate(source)
    assert found is not None  # it was just read
    binary = (found / cifar.TEST_FILE).is_file()
    target = cache() / "cifar10"
    with _staging(target) as staged:
        wanted = [found / n for n in (*cifar.TRAIN_FILES, cifar.TEST_FILE)] if binary else cifar.zips(found)
        _copy(wanted, staged)
    return f"cifar10: 50,000 + 10,000 pictures, readable and complete, now in {target}"


def _counted(splits: Splits, wanted: tuple[int, int, int], *, where: str) -> None:
    got = (len(splits.train), len(splits.val), len(splits.test))
    if got != wanted:
        raise DataError(f"{where}: expected {wanted} pictures to train, validate and test, found {got}")


def _verify_signs(root: Path, *, where: str) -> None:
    got = signs.digest(root)
    if got != signs.KNOWN:
        raise DataError(
            f"{where}: these {len(signs.pictures(root))} pictures are not the known copy of SIGNS (SHA-256 "
            f"{got[:16]}..., expected {signs.KNOWN[:16]}...); to use them as they are, give their path"
        )


def _unpack_signs(archive: Path, target: Path, *, where: str) -> None:
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
        raise DataError(f"{where}: no {'/'.join(SIGNS_INSIDE)}/train_signs/*.jpg in this zip")


def _place(info: zipfile.ZipInfo, where: str) -> tuple[str, str] | None:
    """Return (part, file name) of a member that is a picture of SIGNS, else None."""
    *above, name = folder.safe_parts(info.filename, where=where)
    if info.is_dir() or not above or above[-1] not in (signs.TRAIN, signs.VAL, signs.TEST):
        return None
    hidden = name.startswith(".") or "__MACOSX" in above
    return None if hidden or not name.endswith(".jpg") else (above[-1], name)


def _fetch(url: str, path: Path, timeout: float) -> None:
    if urllib.parse.urlsplit(url).scheme not in ("https", "http"):
        raise ConfigError(f"download: only https addresses, got {url}")
    try:
        with urllib.request.urlopen(url, timeout=timeout) as reply, open(path, "wb") as file:
            total = int(reply.headers.get("Content-Length") or 0) or None
            with tqdm(total=total, unit="B", unit_scale=True, desc="signs", leave=False) as bar:
                while block := reply.read(2**16):
                    file.write(block)
                    bar.update(len(block))
                    if bar.n > MAX_ARCHIVE_BYTES:
                        raise DataError(f"{url}: over {MAX_ARCHIVE_BYTES:,} bytes; this is not the archive")
                if total is not None and bar.n < total:
                    raise DataError(f"{url}: connection ended after {bar.n:,} of {total:,} bytes; try again")
    except urllib.error.HTTPError as error:
        raise DataError(
            f"{url}: the server answered {error.code} {error.reason}; it may have moved"
        ) from error
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        cause = getattr(error, "reason", None) or error
        raise DataError(
            f"no network: cannot reach {urllib.parse.urlsplit(url).netloc} ({cause}); connect and try again, "
            "or bring the pictures another way and run `minires data signs --from PATH`, or use --data hands"
        ) from error


def _copy(paths: list[Path], target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for path in paths:
        shutil.copyfile(path, target / path.name)


@contextmanager
def _staging(target: Path) -> Iterator[Path]:
    """Yield a folder to fill; it becomes ``target`` in one step when the block ends without an error.

    An earlier ``target`` is replaced only then. The folder is made beside it, so that renaming is atomic.
    """
    _make(target.parent)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as work:
            staged = Path(work) / "new"
            yield staged
            if target.exists():
                os.replace(target, Path(work) / "old")
            os.replace(staged, target)
    except OSError as error:
        raise _cannot_write(target, error) from error


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(folder, error) from error


def _cannot_write(path: Path, error: OSError) -> DataError:
    return DataError(
        f"cannot write {path}: {error.strerror or error}; nothing was changed. Free some space, or set "
        "XDG_CACHE_HOME to another folder"
    )

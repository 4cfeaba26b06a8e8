"""The files in a zip or tar, as a list. They are read one by one and never unpacked beside the archive, so
that a path in it can do no harm.

Known by content, not by name: zip, and tar as it is or compressed with gzip, bzip2, xz or lzma. Links,
devices and sparse files are left out, which a warning says; of two files of one name the last counts, as when
unpacking.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import os
import re
import stat
import tarfile
import tempfile
import threading
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

from minires import beginnings
from minires.data.tree import MAX_FILE_BYTES, Entry, hidden, is_archive, not_picture, writable
from minires.errors import DataError
from minires.limits import regular_file

MAX_MEMBERS = 2_000_000
# Pictures are compressed already: what unfolds to more than this and to as many times its size is none.
UNFOLDED, TIMES = 2**30, 100
_COMPRESSED: dict[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open, b"]\0\0": lzma.open,
}  # fmt: skip
_PICTURES = (b"\xff\xd8", b"\x89PNG", b"GIF8", b"BM", b"RIFF", b"II", b"MM", b"P")
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA}
_LISTED = 3


def kind(path: Path) -> str:
    """``"zip"``, ``"tar"``, or ``""`` for a file that is neither.

    Raises: DataError for an archive of another kind, and for what is called a zip or tar and is none.
    """
    regular_file(path, DataError)
    try:
        with open(path, "rb") as file:
            head = file.read(tarfile.BLOCKSIZE)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")):
        return "zip"
    if head.startswith(tuple(_COMPRESSED)) or _is_tar_header(head):
        return "tar"
    if packed := beginnings.packed(head):
        raise DataError(f"{path}: this is {packed}, or pack it as zip or tar")
    if not head.startswith(_PICTURES) and zipfile.is_zipfile(path):  # something stands before the zip
        return "zip"
    if is_archive(path.name):
        what = f"it is {beginnings.words(head) or 'no zip or tar'}" if head else "the file is empty"
        raise DataError(
            f"{path}: cannot read this {path.suffix[1:]}: {what}; fetch it again, or pack the pictures as "
            "zip or tar"
        )
    return ""


def in_zip(path: Path) -> list[Entry]:
    """List the files and folders in a zip, sorted, hidden ones left out.

    Raises: DataError when it is no zip, is damaged, encrypted or packed in a way that cannot be read, has a
    member whose path leads outside, or unfolds to far more than pictures do.
    """
    size = regular_file(path, DataError)
    try:
        archive = zipfile.ZipFile(path)
        members = archive.infolist()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: cannot read this zip: a name in it is marked as UTF-8 and is none ({error.object!r}); "
            "pack it again, or unpack it and give the folder"
        ) from error
    except Exception as error:  # broken files make zipfile raise nearly any kind of exception
        raise DataError(f"{path}: cannot read this zip: it is cut off or damaged ({error})") from error
    listed, names, lock = _Listed(path), _unmarked_names(members, path), threading.Lock()
    unfolded = 0
    for info in members:
        name = names[info.filename] if _is_unmarked(info) else info.filename
        name = name.lstrip("/")  # as unzip takes it
        folder = name.endswith(("/", "\\"))
        if not (parts := listed.parts(name)):
            continue
        link = stat.S_ISLNK(info.external_attr >> 16) and info.create_system == 3
        if link or folder:
            listed.add(parts, None, special=link)
            continue
        if info.flag_bits & 1:
            raise DataError(
                f"{path}: this zip is encrypted ({name} needs a password); unpack it and give the folder"
            )
        if info.compress_type not in _METHODS:
            method = zipfile.compressor_names.get(info.compress_type, "unknown")  # type: ignore[attr-defined]
            raise DataError(
                f"{path}: {name} is packed by method {info.compress_type} ({method}), which cannot be read; "
                "pack it again as an ordinary zip, or unpack it and give the folder"
            )
        unfolded += info.file_size
        listed.add(parts, _InZip(archive, info, "/".join(parts), lock))
    _check_size(path, size, unfolded)
    return listed.entries()


def in_tar(path: Path, *, reopen: bool = False) -> list[Entry]:
    """List the files and folders in a tar, compressed or not, sorted, hidden ones left out.

    The pictures of a compressed tar are kept, as they are, in a temporary file, which has no name. With
    ``reopen`` a tar that is not compressed is opened for each reading, so that thousands can be used.

    Raises: DataError when it is no tar or is damaged, has a member whose path leads outside, or unfolds to
    far more than pictures do.
    """
    size = regular_file(path, DataError)
    try:
        return _in_tar(path, size, reopen)
    except DataError:
        raise
    except Exception as error:  # gzip, bz2, lzma, tarfile: each has its own, and damage brings others
        cause = "it ends too early" if isinstance(error, EOFError) else str(error) or type(error).__name__
        raise DataError(f"{path}: cannot read this tar: it is cut off or damaged ({cause})") from error


def is_compressed(path: Path) -> bool:
    """Whether a file begins as one that is compressed by gzip, bzip2, xz or lzma."""
    with open(path, "rb") as file:
        return file.read(6).startswith(tuple(_COMPRESSED))


def _in_tar(path: Path, size: int, reopen: bool) -> list[Entry]:
    with open(path, "rb") as file:
        head = file.read(6)
    unpack = next((how for magic, how in _COMPRESSED.items() if head.startswith(magic)), None)
    source = _Watched((unpack or open)(path, "rb"), path, size, skip=unpack is None)
    kept: _Slices | _Reopened = _Reopened(path)
    if unpack or not reopen:
        kept = _Slices(tempfile.TemporaryFile() if unpack else open(path, "rb"))
    told = _file_stamp(path)  # of the whole, beside the place in it
    listed = _Listed(path)
    try:
        try:
            archive = tarfile.TarFile(fileobj=source)  # type: ignore[arg-type]
        except tarfile.ReadError as error:
            what = "compressed, but no tar inside" if unpack else "not a tar, or damaged"
            raise DataError(f"{path}: cannot read this tar: {what} ({error})") from error
        for member in archive:
            if not (parts := listed.parts(member.name)):
                continue
            if member.size < 0:
                raise DataError(f"{path}: damaged: {member.name} has {member.size:,} bytes in this tar")
            linked = _safe_parts(member.linkname, where=str(path)) if member.islnk() else ()
            if (target := listed.found.get(linked)) and target.read:  # two names of one file
                listed.add(parts, target.read)
            elif member.isdir():
                listed.add(parts, None)
            elif not member.isreg() or member.issparse():
                listed.add(parts, None, special=True)
            elif member.size > MAX_FILE_BYTES:
                listed.add(parts, partial(_refuse_size, "/".join(parts), member.size))
            elif unpack is None:
                listed.add(parts, _InFile(kept, member.offset_data, member.size, told))
            elif not_picture(parts[-1]) or any(map(hidden, parts)):
                listed.add(parts, bytes)  # never asked for
            else:
                source.seek(member.offset_data)
                content = source.read(member.size)
                listed.add(parts, _InFile(kept, kept.append(content), member.size, told))
        if source.last.strip(b"\0") or len(source.last) < tarfile.BLOCKSIZE:
            raise EOFError  # a tar ends with zeros
        while source.read(tarfile.BLOCKSIZE):  # to its end, where gzip, bzip2 and xz have their checksums
            pass
    finally:
        source.close()
    return listed.entries()


def _safe_parts(member: str, *, where: str) -> tuple[str, ...]:
    """Return the parts of the path of an archive's member; none for the archive's own folder.

    Raises: DataError when the path is absolute or leads out of the archive.
    """
    parts = PurePosixPath(plain := member.replace("\\", "/")).parts  # of Windows' own tools
    drive = "[A-Za-z]:" if os.name == "nt" else "[A-Za-z]:(/|$)"
    if plain.startswith("/") or ".." in parts or re.match(drive, plain):
        raise DataError(f"{where}: member {member!r} has a path that leads outside the archive; refused")
    return parts


class _Listed:
    """What was found in an archive: the last of each path, and in words what was left out."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[tuple[str, ...], Entry] = {}
        self._twice: list[str] = []
        self._special: list[str] = []
        self._count = 0

    def parts(self, name: str) -> tuple[str, ...]:
        """The parts of a member's path, which is one more to be counted."""
        self._count += 1
        if self._count > MAX_MEMBERS:
            raise DataError(f"{self.path}: more than {MAX_MEMBERS:,} files, which is the limit")
        return tuple(map(writable, _safe_parts(name, where=str(self.path))))

    def add(self, parts: tuple[str, ...], read: Callable[[], bytes] | None, *, special: bool = False) -> None:
        if any(map(hidden, parts)):
            return
        if special:
            self._special.append("/".join(parts))
            return
        if parts in self.found and read is not None:
            self._twice.append("/".join(parts))
        self.found[parts] = Entry(parts, read)

    def entries(self) -> list[Entry]:
        left = {
            "links, devices or sparse files, which are left out": self._special,
            "files under a name that another file has, too; of each the last is used": self._twice,
        }
        for what, names in left.items():
            if names:
                shown = ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")
                warnings.warn(f"{self.path}: {len(names)} {what}: {shown}", stacklevel=2)
        return sorted(self.found.values(), key=lambda entry: entry.parts)


class _Watched:
    """A file that is read from its beginning to its end, as ``tarfile`` needs it, and not without a limit."""

    def __init__(self, file: IO[bytes], path: Path, size: int, *, skip: bool) -> None:
        self._file, self._path, self._size, self._skip = file, path, size, skip
        self.last = b""

    def read(self, count: int) -> bytes:
        if count > MAX_FILE_BYTES + tarfile.BLOCKSIZE:
            raise DataError(f"{self._path}: damaged: {count:,} bytes of description in this tar")
        self.last = self._file.read(count)
        _check_size(self._path, self._size, self._file.tell())
        return self.last

    def seek(self, place: int) -> None:
        if self._skip and place > self._file.tell():  # a file itself, where reading all would take long
            self._file.seek(place)
        while (left := place - self._file.tell()) > 0 and self.read(min(left, 2**20)):
            pass

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()


class _Slices:
    """Parts of a file by their places; several threads may read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._lock = file, threading.Lock()

    def append(self, content: bytes) -> int:
        try:
            place = self._file.seek(0, 2)
            self._file.write(content)
            self._file.flush()
        except OSError as error:
            raise DataError(
                f"cannot keep the pictures of a compressed tar in {tempfile.gettempdir()}: {error.strerror}; "
                "set TMPDIR to a folder with more room, or unpack the tar"
            ) from error
        return place

    def read(self, place: int, size: int) -> bytes:
        if hasattr(os, "pread"):  # no thread waits for another
            return os.pread(self._file.fileno(), size, place)
        with self._lock:
            self._file.seek(place)
            return self._file.read(size)

    def __del__(self) -> None:
        self._file.close()


class _Reopened:
    """Parts of a file, which is opened for each: a system allows a process some hundreds of open files."""

    def __init__(self, path: Path) -> None:
        self._path, self._told = path, _file_stamp(path)

    def append(self, content: bytes) -> int:
        raise AssertionError("what is not compressed is read where it lies")

    def read(self, place: int, size: int) -> bytes:
        try:
            with open(self._path, "rb", buffering=0) as file:
                file.seek(place)
                content = file.read(size)
        except OSError as error:
            raise DataError(f"{self._path}: cannot be read: {error.strerror}") from error
        if _file_stamp(self._path) != self._told:
            raise DataError(f"{self._path}: was changed while it was in use; begin again")
        return content


@dataclass(frozen=True, slots=True)
class _InFile:
    """Reads a part of a file."""

    kept: _Slices | _Reopened
    place: int
    count: int
    told: str  # of the whole archive

    def __call__(self) -> bytes:
        return self.kept.read(self.place, self.count)

    def size(self) -> int:
        """How many bytes it has."""
        return self.count

    def stamp(self) -> str:
        """What is another when the archive is."""
        return f"{self.told} {self.place} {self.count}"


@dataclass(frozen=True, slots=True)
class _InZip:
    """Reads a member of a zip; several threads may, at once but for the look at its own header."""

    archive: zipfile.ZipFile
    info: zipfile.ZipInfo
    name: str
    lock: threading.Lock  # ``zipfile`` counts who has the file open, and not for several threads

    def __call__(self) -> bytes:
        size = self.info.file_size
        if size > MAX_FILE_BYTES:
            _refuse_size(self.name, size)
        try:
            with self.lock:
                member = self.archive.open(self.info)
            try:
                return member.read(size)  # without a number, a size that is a lie would not limit it
            finally:
                with self.lock:
                    member.close()
        except Exception as error:  # broken files make zipfile and zlib raise nearly any kind of exception
            raise DataError(f"{self.name}: damaged in the zip: {error or 'it ends too early'}") from error

    def size(self) -> int:
        """How many bytes it has, as the zip says."""
        return self.info.file_size

    def stamp(self) -> str:
        """What is another when the content is: its size and checksum."""
        return f"{self.info.file_size} {self.info.CRC:08x}"


def _file_stamp(path: Path) -> str:
    found = os.stat(path)
    return f"{found.st_size} {found.st_mtime_ns}"


def _refuse_size(name: str, size: int) -> bytes:
    raise DataError(f"{name}: {size:,} bytes, the limit is {MAX_FILE_BYTES:,}")


def _check_size(path: Path, size: int, unfolded: int) -> None:
    if unfolded > max(UNFOLDED, TIMES * size):
        raise DataError(
            f"{path}: its {size:,} bytes unfold to more than {TIMES} times as many ({unfolded:,} so far), "
            "which pictures never do; refused. If you trust it, unpack it and give the folder"
        )


def _is_unmarked(info: zipfile.ZipInfo) -> bool:
    """Whether the encoding of a name is not said, and matters."""
    return not info.flag_bits & 0x800 and not info.filename.isascii()


def _unmarked_names(members: list[zipfile.ZipInfo], path: Path) -> dict[str, str]:
    """The names whose encoding a zip does not say, by what ``zipfile`` made of them: UTF-8 if all are that,
    else the GB 2312 of a Chinese Windows if all can be that, which a warning says, else as they are.
    """
    raws = {info.filename: info.filename.encode("cp437") for info in members if _is_unmarked(info)}
    with contextlib.suppress(UnicodeDecodeError):
        return {name: raw.decode("utf-8") for name, raw in raws.items()}
    if not all(re.fullmatch(rb"([\x00-\x7f]|[\xb0-\xf7][\xa1-\xfe])+", raw) for raw in raws.values()):
        return {name: name for name in raws}
    names = {name: raw.decode("gbk", "replace") for name, raw in raws.items()}
    first = next(iter(names.values()))
    warnings.warn(f"{path}: names in this zip are read as Chinese (GBK), such as {first}", stacklevel=3)
    return names


def _is_tar_header(head: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.TarError:
        return False
    return True

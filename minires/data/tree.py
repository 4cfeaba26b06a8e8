"""The files below a folder, as a list: what is hidden, what is no picture, and reading one with care."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePath

from minires.errors import DataError
from minires.limits import regular_file

# Files that commonly lie beside pictures. Any other file in a class folder is taken for a picture, and
# named in the error if it is none: a format that cannot be read is never skipped silently.
NOT_PICTURES = {
    ".txt", ".md", ".rst", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".html", ".htm",
    ".ini", ".db", ".log", ".py", ".ipynb", ".sh", ".url", ".md5", ".sha1", ".sha256",
    ".xmp", ".aae", ".identifier", ".mat", ".pdf", ".doc", ".docx", ".xls", ".xlsx", ".pptx", ".rtf", ".m",
    ".h5", ".hdf5", ".parquet", ".arrow", ".feather", ".tfrecord", ".tfrecords", ".mdb",
    ".keras", ".pth", ".pt", ".ckpt", ".pkl", ".npy", ".npz", ".onnx", ".safetensors",
}  # fmt: skip
NOT_PICTURE_NAMES = {"readme", "license", "licence", "copying", "notice", "authors", "citation", "changelog"}
USUAL = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".heic", ".avif"}
ARCHIVES = {
    ".zip", ".tar", ".tgz", ".gz", ".bz2", ".tbz2", ".xz", ".txz", ".lzma", ".zst", ".z", ".lz", ".7z",
    ".rar", ".cab", ".iso", ".dmg",
}  # fmt: skip
# What systems and storage devices put beside the files of a user, in lower case.
SYSTEM = {
    "__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "@eadir", "@__thumb", "@recycle",
    "#recycle", "$recycle.bin", "recycler", "system volume information", "lost+found", "__pycache__",
    "@synoeastream", "#snapshot", "network trash folder", "temporary items", "zbthumbnail.info",
}  # fmt: skip
MAX_DEPTH = 64
MAX_FILE_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class Entry:
    """A file or folder of the tree: its path inside, and how to read it (None for a folder)."""

    parts: tuple[str, ...]
    read: Callable[[], bytes] | None

    @property
    def name(self) -> str:
        return "/".join(self.parts)


@dataclass(frozen=True, slots=True)
class OnDisk:
    """Reads a file below a folder, which errors call ``name``."""

    path: str
    name: str

    def __call__(self) -> bytes:
        return read_file(Path(self.path), name=self.name)

    def size(self) -> int:
        """How many bytes the file has; -1 if it is gone."""
        try:
            return os.stat(self.path).st_size
        except OSError:
            return -1

    def stamp(self) -> str:
        """What is another when the file is: its size and the time of its last change."""
        try:
            found = os.stat(self.path)
        except OSError:  # gone: who reads it says so
            return "not there"
        return f"{found.st_size} {found.st_mtime_ns}"


def stamp(read: Callable[[], bytes]) -> str:
    """What is another when the file that ``read`` reads is: what it says itself, or else a hash of it."""
    said = getattr(read, "stamp", None)
    return str(said()) if said is not None else hashlib.sha256(read()).hexdigest()


def size_of(read: Callable[[], bytes]) -> int:
    """How many bytes ``read`` reads: as it says itself, or else as they are counted."""
    said = getattr(read, "size", None)
    return int(said()) if said is not None else len(read())


def on_disk(root: Path) -> list[Entry]:
    """List the files and folders below ``root``, sorted, hidden ones left out.

    Raises: DataError when ``root`` is no folder or cannot be listed, or a link leads back to a folder above.
    """
    if not root.is_dir():
        raise DataError(f"{root}: not a folder, a zip or a tar of picture folders")
    found: list[Entry] = []

    def walk(folder: Path, parts: tuple[str, ...], above: frozenset[tuple[int, int]]) -> None:
        try:
            itself = os.stat(folder)
            listed = list(os.scandir(folder))
        except OSError as error:
            raise DataError(f"{folder}: cannot list this folder: {error.strerror}") from error
        if (itself.st_dev, itself.st_ino) in above:
            raise DataError(f"{folder}: this link leads in a circle, to a folder above it; remove it")
        if len(parts) > MAX_DEPTH:
            raise DataError(f"{folder}: folders are nested more than {MAX_DEPTH} deep")
        above |= {(itself.st_dev, itself.st_ino)}
        for one in listed:
            if hidden(one.name):
                continue
            inside = (*parts, writable(one.name))
            if _is_folder(one):
                before = len(found)
                found.append(Entry(inside, None))
                walk(folder / one.name, inside, above)
                if len(found) > before + 1 or not is_picture(one.name):
                    continue  # and else an empty folder that is called like a picture
                found.pop()
            found.append(Entry(inside, OnDisk(os.path.join(folder, one.name), "/".join(inside))))

    walk(root, (), frozenset())
    return sorted(found, key=lambda entry: entry.parts)


def read_file(path: Path, *, name: str | None = None) -> bytes:
    """The bytes of a regular file of at most ``MAX_FILE_BYTES``; ``name`` is what errors call it.

    Raises: DataError for anything else; a pipe or a device is never opened.
    """
    name = str(path) if name is None else name
    if path.is_symlink() and not path.exists():
        raise DataError(f"{name}: a link to {os.readlink(path)}, which is not there; remove it")
    try:
        size = regular_file(path, DataError)
    except DataError as error:
        raise DataError(error.message.replace(os.fspath(path), name, 1)) from error
    if size > MAX_FILE_BYTES:
        raise DataError(f"{name}: {size:,} bytes, the limit is {MAX_FILE_BYTES:,}")
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error.strerror}; allow it, or remove it") from error


def hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or is one that a system makes for itself."""
    return name.startswith(".") or name.lower() in SYSTEM


def not_picture(name: str) -> bool:
    """Whether a file is by its name no picture: a list, a description, a checksum."""
    path = PurePath(name)
    return path.suffix.lower() in NOT_PICTURES or (not path.suffix and is_about(name))


def is_about(name: str) -> bool:
    """Whether a file is by its name about the others: README.txt, LICENSE."""
    return PurePath(name).stem.lower() in NOT_PICTURE_NAMES


def is_picture(name: str) -> bool:
    """Whether a file is by its name a picture of a usual format."""
    return PurePath(name).suffix.lower() in USUAL


def is_archive(name: str) -> bool:
    """Whether a file is by its name an archive."""
    return PurePath(name).suffix.lower() in ARCHIVES


def writable(name: str) -> str:
    """A file name that can be written into a UTF-8 file: bytes that are no UTF-8 become ``\\xNN``."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False

"""Where pictures come from: a folder, a zip, a tar, or one picture.

    photos/                       every picture below it, however deep, whether or not folders are classes
    photos.zip                    as if unpacked; backslashes between folders are taken for slashes
    photos.tar  .tar.gz .tgz      as if unpacked; known by content, not by name
      .tar.bz2  .tar.xz  .tar.lzma
    photo.jpg                     itself

Hidden files, those of systems (``Thumbs.db``, ``__MACOSX``, ``@eaDir``), lists and descriptions (``.txt``,
``.csv``, ``README``) are left out; archives inside are left out, too, which a warning says. Any other file is
taken for a picture, and named in the error if it is none.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from minires.data import archives, contents, tree
from minires.data.tree import Entry
from minires.errors import DataError
from minires.files import check_name


@dataclass(frozen=True)
class Picture:
    """A picture that was found: its path inside the folder or archive, and how to get its bytes."""

    name: str
    read: Callable[[], bytes] = field(repr=False)


def pictures_at(path: str | os.PathLike[str]) -> list[Picture]:
    """List the pictures at ``path``: below a folder, in a zip or tar, or the one picture that it is.

    They are sorted by name, and not read yet: ``data.decode(picture.read(), name=picture.name, size=64)``.

    Raises: DataError when nothing is there, no picture is in it, or the archive cannot be read.

    >>> import pathlib, tempfile
    >>> from PIL import Image
    >>> from minires import data
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> (folder / "cat").mkdir()
    >>> Image.new("RGB", (6, 4)).save(folder / "cat" / "tom.png")
    >>> found = data.pictures_at(folder)
    >>> found
    [Picture(name='cat/tom.png')]
    >>> data.decode(found[0].read(), name=found[0].name).shape
    (4, 6, 3)
    """
    check_name(path, DataError)
    path = Path(path)
    if not os.path.lexists(path):
        raise DataError(f"{path}: no such file or folder")
    if not path.is_dir() and not archives.kind(path):
        return [Picture(tree.writable(path.name), partial(tree.read_file, path))]
    there = entries(path)
    found = [e for e in pictures_of(there, str(path)) if e.read is not None]
    if not found:
        raise DataError(f"{path}: no picture found{instead_of_pictures(there)}")
    return [Picture(e.name, partial(_read, e, path)) for e in found]


def _read(entry: Entry, path: Path) -> bytes:
    """The bytes of a file below ``path``, which errors name from there on."""
    assert entry.read is not None
    try:
        return entry.read()
    except DataError as error:
        raise DataError(error.message.replace(entry.name, str(path / entry.name), 1)) from error


def instead_of_pictures(found: list[Entry]) -> str:
    """Name a file of those in which there is no picture, with what it is; "" if there is none."""
    files = [entry for entry in found if entry.read is not None]
    told = min(files, key=lambda entry: tree.is_about(entry.parts[-1]), default=None)
    if told is None or told.read is None:
        return ""
    try:
        what = contents.describe(told.read())
    except DataError:  # too large, or not to be read
        what = ""
    return f"; {told.name} is {what or 'by its name no picture'}"


def entries(path: Path) -> list[Entry]:
    """List the files and folders of a folder, a zip or a tar, sorted, hidden ones left out.

    Raises: DataError when ``path`` is nothing of these, or cannot be read.
    """
    if path.is_dir():
        return tree.on_disk(path)
    kind = archives.kind(path)
    if not kind:
        raise DataError(
            f"{path}: not a folder, a zip or a tar; a data set is one of these, with a folder per class. "
            "`minires predict` and `minires trace --image` take a picture by itself"
        )
    return archives.in_zip(path) if kind == "zip" else archives.in_tar(path)


def pictures_of(found: list[Entry], where: str) -> list[Entry]:
    """Leave out the files that are no pictures by their names, archives with a warning; folders stay."""
    inner = [entry.name for entry in found if entry.read is not None and tree.is_archive(entry.parts[-1])]
    if inner:
        shown = ", ".join(inner[:3]) + (", ..." if len(inner) > 3 else "")
        warnings.warn(f"{where}: archives inside are not opened, unpack them first: {shown}", stacklevel=2)
    return [
        entry
        for entry in found
        if entry.read is None or not (tree.is_archive(entry.parts[-1]) or tree.not_picture(entry.parts[-1]))
    ]

"""A data set at a path that is no registered one: SIGNS in a tree of files, or folders of any classes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from minires.data import archives, folder, shards, signs, sources
from minires.data.dataset import Dataset, Splits
from minires.data.layout import Layout, layout
from minires.data.pictures import Decode, decode_all
from minires.data.tree import Entry, not_picture


@dataclass(frozen=True)
class Tree:
    """The files of a folder, zip or tar, as a data set."""

    name: str
    where: str
    files: list[Entry]
    of_signs: list[Entry] | None  # the pictures, where they are those of SIGNS
    shards: Layout | None = None  # what is in them, where they are shards of WebDataset

    @classmethod
    def at(cls, path: Path) -> Tree:
        """List the files. Raises: DataError if ``path`` is no folder, zip, tar or pattern of shards, or
        cannot be read."""
        if shards.is_pattern(path):
            name = path.name.partition("{")[0].strip("-_.") or "shards"
            return cls(name, str(path), [], None, shards.at_pattern(path))
        files = sources.entries(path)
        name, found = called(path), shards.among(path, files)
        return cls(name, str(path), files, None if found else of_signs(name, files), found)

    def no_labels(self) -> str:
        """Say which parts have pictures without labels; "" if there are none."""
        with warnings.catch_warnings(action="ignore"):  # they were told when the parts were looked for
            held = {} if self.of_signs or self.shards else layout(self.files, self.where).unlabelled
        return f"The pictures of {' and '.join(sorted(held))} have no labels. " if any(held) else ""

    def count(self) -> int:
        """How many pictures there are, as far as their names tell."""
        if self.shards:
            return sum(len(held) for by_class in self.shards.parts.values() for held in by_class.values())
        return sum(e.read is not None and not not_picture(e.parts[-1]) for e in self.files)

    @property
    def source(self) -> str:
        kind = "shards" if self.shards else "picture folders"
        return f"{'signs' if self.of_signs else self.name} ({kind} at {self.where})"

    def splits(self, *, size: int | None, seed: int, decode: Decode = decode_all) -> Splits:
        """Train, val and test; what is not there is split off. Raises: DataError, as ``folder.split_up``."""
        if self.of_signs is not None:
            return signs.read_entries(self.of_signs, size=size, seed=seed, where=self.where, decode=decode)
        return folder.split_up(
            self.files, size=size, seed=seed, name=self.name, where=self.where, decode=decode,
            found=self.shards,
        )  # fmt: skip

    def parts(self, *, size: int | None, decode: Decode = decode_all) -> dict[str, Callable[[], Dataset]]:
        """The labelled parts that are there, each to be read by a call. Raises: as ``folder.parts``."""
        if self.of_signs is not None:
            return signs.entry_parts(self.of_signs, size=size, where=self.where, decode=decode)
        return folder.parts(
            self.files, size=size, name=self.name, where=self.where, decode=decode, found=self.shards
        )


def called(path: Path) -> str:
    """The name of a folder, or that of an archive without its ending."""
    return path.resolve().name if path.is_dir() else path.stem.removesuffix(".tar")


def of_signs(name: str, files: list[Entry]) -> list[Entry] | None:
    """The pictures, where the files at a path are those of SIGNS, or the path is one of its folders."""
    named = [Entry((name, *e.parts), e.read) for e in files] if name in signs.FOLDERS.values() else files
    return signs.inside(named)


def is_tree(path: Path) -> bool:
    """Whether there is a folder, a zip or a tar."""
    return path.is_dir() or (path.is_file() and archives.kind(path) != "")

"""Pictures that are decoded when they are asked for, so that a set may be larger than the memory.

A :class:`Stream` stands where an array of pictures stands, in ``Dataset.images``: it has their shape and
dtype, and indexing it decodes. :mod:`minires.data.opening` tells when one is made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from minires import backend
from minires.data import ahead
from minires.data.pictures import Differ, check_memory, decode, differ, picture, unreadable
from minires.data.tree import stamp
from minires.errors import DataError, ShapeError, Unreadable, as_whole

PIECE = 64  # pictures that are decoded at a time where one after the other is asked for
Named = tuple[str, Callable[[], bytes]]
Pixels = NDArray[np.uint8]
Broken = list[tuple[str, str]]  # names, and what is wrong
Make = Callable[[int], NDArray[Any]]  # a picture, by its place


class Cached(Protocol):
    """Pictures by their places."""

    def __getitem__(self, place: int) -> Pixels: ...


@dataclass(frozen=True, eq=False)
class Files:
    """Pictures in files that are to be brought to one size (height, width); ``square`` cuts them to it.

    Without ``square`` all must have that size. ``pixels`` are all of them, in their order, in a cache.
    """

    named: Sequence[Named]
    size: tuple[int, int]
    where: str
    square: bool = True
    draft: bool = False
    pixels: Cached | None = None

    def decoded(self, place: int) -> Pixels:
        """The picture at a place. Raises: DataError that names it, or OSError."""
        if self.pixels is not None:
            return np.array(self.pixels[place])
        name, read = self.named[place]
        image = decode(read(), name=name, size=self.size[0] if self.square else None, draft=self.draft)
        if image.shape[:2] != self.size:
            raise differ(self.where, self.named[0][0], self.size, name, image.shape[:2])
        return image


class Stream:
    """Pictures as if in an array, uint8 (N, H, W, 3), decoded when they are asked for.

    An index is a number, a slice, or an array of numbers or truths; what is had is an array. ``take`` and
    ``join`` decode nothing. The pictures are the same, to the bit, as in memory.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, files: Files, places: NDArray[np.int64] | None = None) -> None:
        self.files = files
        self.places = np.arange(len(files.named)) if places is None else places

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (len(self.places), *self.files.size, 3)

    def __len__(self) -> int:
        return len(self.places)

    def __repr__(self) -> str:
        return f"Stream of {len(self):,} pictures of {self.files.size[0]}x{self.files.size[1]}"

    def __getitem__(self, key: Any) -> Pixels:
        """Decode the pictures at an index. Raises: Unreadable that names those which cannot be read."""
        key, *rest = key if isinstance(key, tuple) else (key,)
        (found,) = self.batches([key if as_whole(key) is None else [key]])
        first = slice(None) if as_whole(key) is None else 0
        picked: Pixels = found[(first, *rest)]
        return picked

    def __iter__(self) -> Iterator[Pixels]:
        for piece in self.batches(slice(at, at + PIECE) for at in range(0, len(self), PIECE)):
            yield from piece

    def __array__(self, dtype: Any = None, copy: Any = None) -> NDArray[Any]:
        check_memory(len(self), *self.files.size, where=self.files.where, resized=self.files.square)
        return self[:] if dtype is None else self[:].astype(dtype)

    def take(self, places: NDArray[np.int64]) -> Stream:
        """The pictures at these places, in that order."""
        return Stream(self.files, self.places[places])

    def join(self, other: Stream) -> Stream:
        """These pictures followed by others."""
        if self.files is other.files:
            return Stream(self.files, np.concatenate([self.places, other.places]))
        both = (self, other)
        named = [stream.named(place) for stream in both for place in range(len(stream))]
        cached = all(stream.files.pixels is not None for stream in both)
        return Stream(replace(self.files, named=named, pixels=_After(self, other) if cached else None))

    def batches(self, cuts: Iterable[Any]) -> Iterator[Pixels]:
        """The pictures at several indices, one batch after the other, the next ones decoded ahead.

        Raises: Unreadable, in the place of its batch.
        """
        wanted = (self._places(cut) for cut in cuts)
        return self.made(wanted, self.decoded, batch_size=PIECE, dtype=np.uint8)

    def made(
        self,
        batches: Iterable[NDArray[np.int64]],
        make: Make,
        *,
        batch_size: int,
        dtype: Any = np.float32,
        order: NDArray[np.int64] | None = None,
    ) -> Generator[NDArray[Any], None, None]:
        """Batches of pictures that ``make(place)`` gives, each of the size of all, several batches ahead;
        with ``order``, these are the places in it, and it holds those of the pictures.

        Raises: Unreadable, in the place of its batch, for a DataError or OSError of ``make``.
        """
        with closing(self._tried(batches, make, batch_size, dtype, order)) as found:
            for batch, broken in found:
                if broken:
                    text = unreadable([text for _, text in broken], self.files.where)
                    raise Unreadable(text, [name for name, _ in broken])
                yield batch

    def tried(self, cuts: Iterable[Any]) -> Iterator[tuple[Pixels, Broken]]:
        """As ``batches``, with the names of the pictures that cannot be read and why, in the place of an
        error; their pixels mean nothing."""
        return self._tried((self._places(cut) for cut in cuts), self.decoded, PIECE, np.uint8)

    def decoded(self, place: int) -> Pixels:
        """The picture at a place. Raises: DataError that names it, or OSError."""
        return self.files.decoded(int(self.places[place]))

    def picture(self, place: int, *, least: int) -> Image.Image:
        """The picture at a place as it is in its file, upright and in RGB.

        One that is very large, or any with ``draft``, may be reduced to twice ``least`` pixels of each side.

        Raises: DataError that names it, or OSError.
        """
        name, read = self.named(place)
        return picture(read(), name=name, least=least, draft=self.files.draft)

    def named(self, place: int) -> Named:
        """The name of the picture at a place, and what reads its bytes."""
        return self.files.named[int(self.places[place])]

    def fingerprint(self, *, without: frozenset[str] = frozenset()) -> str:
        """What the pictures are known by: their names in their order, the size and the time of each file but
        of those ``without``, and how they are decoded."""
        digest = hashlib.sha256(repr((self.files.size, self.files.square, self.files.draft)).encode())
        for place in range(len(self)):
            name, read = self.named(place)
            told = "" if name in without else stamp(read)
            digest.update(f"{len(name)} {name} {told}\n".encode(errors="backslashreplace"))
        return digest.hexdigest()

    def _places(self, key: Any) -> NDArray[np.int64]:
        """The places that an index asks for."""
        if isinstance(key, slice):
            return np.arange(*key.indices(len(self)))
        chosen = np.asarray(key)
        if chosen.ndim != 1 or (chosen.size and chosen.dtype.kind not in "iub"):
            raise ShapeError(
                "pictures that are not in memory are had by a place, a slice or a list of places, as in "
                f"images[0:10]; not by {key!r}"
            )
        if not chosen.size:
            return np.empty(0, np.int64)
        places: NDArray[np.int64] = np.arange(len(self))[chosen]  # which refuses what is not there
        return places

    def _tried(
        self,
        batches: Iterable[NDArray[np.int64]],
        make: Make,
        batch_size: int,
        dtype: Any,
        order: NDArray[np.int64] | None = None,
    ) -> Generator[tuple[NDArray[Any], Broken], None, None]:
        threads = backend.threads()
        jobs = (self._job(places, make, threads, dtype, order) for places in batches)
        return ahead.in_order(jobs, threads=threads, ahead=ahead.enough(batch_size, threads))

    def _job(
        self,
        places: NDArray[np.int64],
        make: Make,
        threads: int,
        dtype: Any,
        order: NDArray[np.int64] | None,
    ) -> ahead.Job[tuple[NDArray[Any], Broken], Broken]:
        """A batch, made in parts, into one array."""
        batch: NDArray[Any] = np.empty((len(places), *self.files.size, 3), dtype)

        def part(which: range) -> Broken:
            broken = []
            for at in which:
                try:
                    batch[at] = make(int(places[at]))
                except Differ:
                    raise
                except (DataError, OSError) as error:
                    place = int(places[at] if order is None else order[places[at]])
                    broken.append((self.named(place)[0], str(error)))
            return broken

        def whole(parts: list[Broken]) -> tuple[NDArray[Any], Broken]:
            return batch, [one for part in parts for one in part]

        return ahead.Job([partial(part, which) for which in ahead.groups(len(places), threads)], whole)


class _After:
    """The cached pixels of one stream behind those of another."""

    def __init__(self, *streams: Stream) -> None:
        self.first, self.second = streams

    def __getitem__(self, place: int) -> Pixels:
        count = len(self.first)
        return self.first.decoded(place) if place < count else self.second.decoded(place - count)


def batches(images: Pixels | Stream, cuts: Iterable[Any]) -> Iterator[Pixels]:
    """The pictures at several indices, one batch after the other; those of a stream are decoded ahead."""
    return images.batches(cuts) if isinstance(images, Stream) else (images[cut] for cut in cuts)

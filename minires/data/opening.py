"""Whether the pictures of a set come into memory, or are decoded when they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from minires.data import pixel_cache
from minires.data.pictures import Decode, check_unsized, decode, decode_all, memory, unreadable
from minires.data.streaming import Files, Named, Stream
from minires.errors import ConfigError, DataError, Unreadable, one_of, truth

STREAM_FROM = 2**30  # bytes of pixels
SHARE = 4  # of the memory, that much less


def limit() -> int:
    """How many bytes of pixels a set may take in memory, if it is not told."""
    return min(STREAM_FROM, memory() // SHARE)


@dataclass(frozen=True, kw_only=True)
class Opener:
    """In the place of ``decode_all``: into memory, or as a :class:`Stream` where ``stream`` says so, or says
    nothing and they are more than :func:`limit` allows.

    ``total`` is the number of pictures of the whole set; ``cache`` is "pixels" or None. A ``draft`` and a
    ``cache`` are for a stream.
    """

    stream: bool | None = None
    draft: bool = False
    cache: str | None = None
    total: int = 0

    def __post_init__(self) -> None:
        if self.stream is not None:
            truth("stream", self.stream)
        truth("draft", self.draft)
        if self.cache is not None:
            one_of("cache", self.cache, ("pixels",))
        for name, given in (("draft", self.draft), ("cache", self.cache)):
            if given and self.stream is False:
                raise ConfigError(f"{name} is for a stream; leave it out, or stream=False")

    @property
    def wanted(self) -> str:
        """Which option asks for a stream, in words; "" if none does."""
        given = {"stream=True": self.stream, "draft": self.draft, "cache": self.cache}
        return next((name for name, value in given.items() if value), "")

    def __call__(self, files: Sequence[Named], *, size: int | None, where: str) -> Any:
        if not files or self.stream is False:
            return decode_all(files, size=size, where=where)
        shape = (size, size) if size is not None else self._first(files[0], where)
        if shape is None or not (self.wanted or self._bytes(files, shape) > limit()):
            return decode_all(files, size=size, where=where)
        found = Stream(Files(files, shape, where, square=size is not None, draft=self.draft))
        return Stream(pixel_cache.kept(found)) if self.cache else found

    def _bytes(self, files: Sequence[Named], size: tuple[int, int]) -> int:
        return max(self.total, len(files)) * size[0] * size[1] * 3

    def _first(self, named: Named, where: str) -> tuple[int, int] | None:
        """The size of the first picture; None if it cannot be read, and then others are to be named, too."""
        name, read = named
        try:
            height, width, _ = decode(read(), name=name).shape
        except (DataError, OSError) as error:
            if self.wanted:
                raise Unreadable(unreadable([str(error)], where), [name]) from error
            return None
        check_unsized(height, width, where=where)
        return height, width


def of_set(decode: Decode, total: int) -> Decode:
    """``decode``, told how many pictures the whole set has, if it wants to know."""
    return replace(decode, total=total) if isinstance(decode, Opener) else decode

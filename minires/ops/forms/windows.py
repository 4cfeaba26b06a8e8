"""Where the windows of a convolution or a pool stand, place by place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minires.ops.forms.values import Shape


@dataclass(frozen=True)
class Windows:
    """Windows of ``size`` on pictures (H, W), as the options of an operation say it; a dense layer's sees one
    place. ``dilation`` is from one pixel under the window to the next."""

    size: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    first: tuple[int, int] = (0, 0)  # the row and the column where the first window starts

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Windows:
        if "kernel" not in options:
            return cls()
        (top, _), (left, _) = options["padding"]
        size, stride, dilation = (
            _pair(options.get(name, (1, 1))) for name in ("kernel", "stride", "dilation")
        )
        return cls(size, stride, dilation, (-top, -left))

    def corner(self, i: int, j: int) -> tuple[int, int]:
        """Where the window at (i, j) starts, which may be outside of the picture."""
        return self.first[0] + i * self.stride[0], self.first[1] + j * self.stride[1]

    def under(self, i: int, j: int, kh: int, kw: int) -> tuple[int, int]:
        """The row and the column under the pixel (kh, kw) of the window at (i, j)."""
        row, column = self.corner(i, j)
        return row + kh * self.dilation[0], column + kw * self.dilation[1]

    def over(self, row: int, column: int, places: Shape) -> Iterator[tuple[int, int, int, int]]:
        """The windows over a pixel of the picture: their place (i, j), and which (kh, kw) of theirs it is."""
        for kh in range(self.size[0]):
            for kw in range(self.size[1]):
                i, j = (
                    divmod(at - first - k * apart, stride)
                    for at, first, k, apart, stride in zip(
                        (row, column), self.first, (kh, kw), self.dilation, self.stride, strict=True
                    )
                )
                if i[1] == j[1] == 0 and 0 <= i[0] < places[0] and 0 <= j[0] < places[1]:
                    yield i[0], j[0], kh, kw

    def plain(self) -> dict[str, Sequence[int]]:
        """As plain data, for the page."""
        return {"size": self.size, "stride": self.stride, "dilation": self.dilation, "first": self.first}


def _pair(value: Any) -> tuple[int, int]:
    high, wide = value
    return int(high), int(wide)

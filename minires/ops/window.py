"""A window that slides over the height and width of a picture: the geometry of convolution and pooling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from minires.backend import Array
from minires.errors import ShapeError
from minires.ops import checks
from minires.ops.checks import pair

# What is under a window, in the text of a formula: see minires.ops.call_texts.
UNDER = (
    "n, i{stride > 1?*stride} + kh{dilation > 1?*dilation}{padding > 0? - top}, "
    "j{stride > 1?*stride} + kw{dilation > 1?*dilation}{padding > 0? - left}"
)

WORDS = ("same", "same_lower", "ceil")  # that a padding may be
Padding = int | tuple[int, int] | tuple[tuple[int, int], tuple[int, int]] | str


@dataclass(frozen=True)
class Window:
    """Where a window of ``size`` stands on a picture (H, W): ``out`` places, ``stride`` apart.

    ``top, bottom, left, right`` rows and columns are added around the picture first. The pixels of a window
    are ``dilation`` apart, so that it reaches over ``extent`` rows and columns.
    """

    size: tuple[int, int]
    stride: tuple[int, int]
    top: int
    bottom: int
    left: int
    right: int
    out: tuple[int, int]
    dilation: tuple[int, int] = (1, 1)

    def options(self) -> dict[str, Any]:
        """What the operation was called with, in full: the padding is that of all four sides."""
        padding = ((self.top, self.bottom), (self.left, self.right))
        return {"kernel": self.size, "stride": self.stride, "padding": padding, "dilation": self.dilation}

    @property
    def extent(self) -> tuple[int, int]:
        """How many rows and columns lie between the first and the last of the window, both included."""
        return extent(self.size, self.dilation)

    @property
    def is_dense(self) -> bool:
        """Whether its pixels lie side by side."""
        return self.extent == self.size

    @property
    def has_border(self) -> bool:
        """Whether it looks beyond the picture anywhere."""
        return bool(self.top or self.bottom or self.left or self.right)

    @property
    def is_pointwise(self) -> bool:
        """A 1x1 window on every pixel: the columns of im2col are the picture itself."""
        return self.size == (1, 1) and self.stride == (1, 1) and not self.has_border

    def summed(self, dtype: Any) -> Any:
        """The dtype in which the pixels under a window, or the gradients from the windows over a pixel, are
        added up: a sum of few is right to 1e-6 in float32."""
        return dtype if self.size[0] * self.size[1] <= 16 else np.dtype(np.float64)

    def down(self, width: int) -> Window:
        """The window of a column: it goes by all ``width`` columns of a picture, and sees one at a time."""
        (kh, _), (sh, _), (dh, _) = self.size, self.stride, self.dilation
        return Window((kh, 1), (sh, 1), self.top, self.bottom, 0, 0, (self.out[0], width), (dh, 1))

    def across(self) -> Window:
        """The window of a line, for what :meth:`down` leaves: the two together are this one."""
        (_, kw), (_, sw), (_, dw) = self.size, self.stride, self.dilation
        return Window((1, kw), (1, sw), 0, 0, self.left, self.right, self.out, (1, dw))

    def pad(self, xp: Any, x: Array, value: float = 0.0) -> Array:
        """``x`` (N, H, W, C) with the border of this window, filled with ``value``."""
        if not self.has_border:
            return x
        border = ((0, 0), (self.top, self.bottom), (self.left, self.right), (0, 0))
        return xp.pad(x, border, constant_values=value)

    def crop(self, padded: Array) -> Array:
        """The inverse of :meth:`pad`: the picture without its border."""
        height, width = padded.shape[1:3]
        return padded[:, self.top : height - self.bottom, self.left : width - self.right, :]

    def at(self, padded: Array, kh: int, kw: int) -> Array:
        """The pixel (kh, kw) of the window at every place: a view (N, OH, OW, C) of the padded picture."""
        (sh, sw), (oh, ow) = self.stride, self.out
        row, column = kh * self.dilation[0], kw * self.dilation[1]
        return padded[:, row : row + sh * oh : sh, column : column + sw * ow : sw, :]


def extent(size: Any, dilation: Any) -> tuple[int, int]:
    """How many rows and columns a window of this size reaches over, its pixels so far apart."""
    (kh, kw), (dh, dw) = size, dilation
    return (kh - 1) * dh + 1, (kw - 1) * dw + 1


def sides(op: str, padding: Padding) -> tuple[int, int, int, int]:
    """Padding as (top, bottom, left, right), from an int, a pair (height, width), or four sides.

    Raises: ShapeError if it is none of these, or negative.
    """
    if isinstance(padding, tuple | list) and len(padding) == 2 and isinstance(padding[0], tuple | list):
        top, bottom = pair(op, "padding (top, bottom)", padding[0], least=0)
        left, right = pair(op, "padding (left, right)", padding[1], least=0)
        return top, bottom, left, right
    height, width = pair(op, "padding", padding, least=0)
    return height, height, width, width


def window(
    op: str, picture: tuple[int, int], size: Any, stride: Any, padding: Padding, dilation: Any = 1
) -> Window:
    """The window of an operation on a picture (H, W).

    size, stride, dilation: an int or a pair (height, width) each.
    padding: an int, a pair (height, width), four sides ((top, bottom), (left, right)) or a word: ``"same"``
        adds what makes the output ceil(H / stride), the odd one at the bottom and the right, and
        ``"same_lower"`` the odd one at the top and the left; ``"ceil"`` adds at the bottom and the right what
        lets the last window cover the last row and column.

    Shapes: out = (H + top + bottom - extent) // stride + 1 with extent = (KH - 1) * dilation + 1.
    Raises: ShapeError if a value makes no sense or the window is larger than the padded picture.
    Source: the rule of "same" is TensorFlow's, "same_lower" is ONNX's, that of "ceil" is how Caffe's pooling
    rounds up.

    >>> window("conv2d", (8, 8), 3, 2, "same")
    Window(size=(3, 3), stride=(2, 2), top=0, bottom=1, left=0, right=1, out=(4, 4), dilation=(1, 1))
    """
    kh, kw = pair(op, "kernel size", size)
    sh, sw = pair(op, "stride", stride)
    dh, dw = pair(op, "dilation", dilation)
    (height, width), (high, wide) = picture, extent((kh, kw), (dh, dw))
    word = padding if isinstance(padding, str) else None
    if word in WORDS[:2]:
        missing_h = max(0, (-(-height // sh) - 1) * sh + high - height)
        missing_w = max(0, (-(-width // sw) - 1) * sw + wide - width)
        top, left = missing_h // 2, missing_w // 2
        bottom, right = missing_h - top, missing_w - left
        if word == "same_lower":
            top, bottom, left, right = bottom, top, right, left
    elif word == "ceil":
        top = left = 0
        bottom, right = _overhang(height, high, sh), _overhang(width, wide, sw)
    elif word is not None:
        *words, last = map(repr, WORDS)
        raise ShapeError(
            f"{op}: padding must be an int, a pair, four sides, {', '.join(words)} or {last}, not {word!r}"
        )
    else:
        top, bottom, left, right = sides(op, padding)
    padded = (height + top + bottom, width + left + right)
    if high > padded[0] or wide > padded[1]:
        dilated = f", dilated to {high}x{wide}," if (high, wide) != (kh, kw) else ""
        raise ShapeError(
            f"{op}: the kernel {kh}x{kw}{dilated} is larger than the padded picture {padded[0]}x{padded[1]} "
            f"(picture {height}x{width}). Use a larger picture, more padding or a smaller kernel"
        )
    out = ((padded[0] - high) // sh + 1, (padded[1] - wide) // sw + 1)
    checks.size(op, padded)
    return Window((kh, kw), (sh, sw), top, bottom, left, right, out, (dh, dw))


def check_border(op: str, win: Window, picture: tuple[int, int]) -> None:
    """No window of a pool may lie in the border alone: each sees a pixel of the picture (H, W).

    Raises: ShapeError with the numbers.
    """
    axes = zip(picture, win.extent, (win.top, win.left), (win.bottom, win.right), strict=True)
    is_inside = all(size > 0 and max(before, after) < extent for size, extent, before, after in axes)
    # The pixels of a dilated window may lie on both sides of a picture smaller than its gaps; and in a wide
    # border there may be no window, as the next one would begin further away.
    if not (is_inside and win.is_dense or _all_see(win, picture)):
        (kh, kw), (high, wide), (height, width) = win.size, win.extent, picture
        dilated = "" if win.is_dense else f", dilated to {high}x{wide}"
        raise ShapeError(
            f"{op}: padding {win.top}, {win.bottom} (top, bottom) and {win.left}, {win.right} (left, right) "
            f"must be smaller than the kernel {kh}x{kw}{dilated}, and leave in each window a pixel of the "
            f"picture {height}x{width}"
        )


def _all_see(win: Window, picture: tuple[int, int]) -> bool:
    """Whether there is a pixel of the picture in every window."""
    for size, out, step, kernel, apart, before in zip(
        picture, win.out, win.stride, win.size, win.dilation, (win.top, win.left), strict=True
    ):
        starts = (place * step - before for place in range(out))
        if not all(any(0 <= start + k * apart < size for k in range(kernel)) for start in starts):
            return False
    return True


def _overhang(size: int, extent: int, stride: int) -> int:
    """How far the last window reaches past the picture if windows cover all of it; each starts inside."""
    places = min(-(-(size - extent) // stride) + 1, -(-size // stride))
    return max(0, (places - 1) * stride + extent - size) if places > 0 else 0

"""A window that slides over the height and width of a picture: the geometry of convolution and pooling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from minires.backend import Array
from minires.errors import ShapeError
from minires.ops.checks import pair

Padding = int | tuple[int, int] | tuple[tuple[int, int], tuple[int, int]] | str


@dataclass(frozen=True)
class Window:
    """Where a window of ``size`` stands on a picture (H, W): ``out`` places, ``stride`` apart.

    ``top, bottom, left, right`` rows and columns are added around the picture first.
    """

    size: tuple[int, int]
    stride: tuple[int, int]
    top: int
    bottom: int
    left: int
    right: int
    out: tuple[int, int]

    def options(self) -> dict[str, Any]:
        """What the operation was called with, in full: kernel, stride, and the padding of all four sides."""
        padding = ((self.top, self.bottom), (self.left, self.right))
        return {"kernel": self.size, "stride": self.stride, "padding": padding}

    @property
    def is_pointwise(self) -> bool:
        """A 1x1 window on every pixel: the columns of im2col are the picture itself."""
        padded = self.top or self.bottom or self.left or self.right
        return self.size == (1, 1) and self.stride == (1, 1) and not padded

    def pad(self, xp: Any, x: Array, value: float = 0.0) -> Array:
        """``x`` (N, H, W, C) with the border of this window, filled with ``value``."""
        if not (self.top or self.bottom or self.left or self.right):
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
        return padded[:, kh : kh + sh * oh : sh, kw : kw + sw * ow : sw, :]


def sides(op: str, padding: Padding) -> tuple[int, int, int, int]:
    """Padding as (top, bottom, left, right), from an int, a pair (height, width), or four sides.

    Raises: ShapeError if it is none of these, or negative.
    """
    if isinstance(padding, tuple | list) and len(padding) == 2 and not isinstance(padding[0], int):
        top, bottom = pair(op, "padding (top, bottom)", padding[0], least=0)
        left, right = pair(op, "padding (left, right)", padding[1], least=0)
        return top, bottom, left, right
    height, width = pair(op, "padding", padding, least=0)
    return height, height, width, width


def window(op: str, picture: tuple[int, int], size: Any, stride: Any, padding: Padding) -> Window:
    """The window of an operation on a picture (H, W).

    ``padding`` is an int, a pair (height, width), four sides ((top, bottom), (left, right)) or a word:
    ``"same"`` adds what makes the output ceil(H / stride), the odd one at the bottom and the right;
    ``"ceil"`` adds at the bottom and the right what lets the last window cover the last row and column.

    Raises: ShapeError if a value makes no sense or the window is larger than the padded picture.
    Source: the rule of "same" is TensorFlow's, that of "ceil" is how Caffe's pooling rounds up.
    """
    kh, kw = pair(op, "kernel size", size)
    sh, sw = pair(op, "stride", stride)
    height, width = picture
    if padding == "same":
        missing_h = max(0, (-(-height // sh) - 1) * sh + kh - height)
        missing_w = max(0, (-(-width // sw) - 1) * sw + kw - width)
        top, left = missing_h // 2, missing_w // 2
        bottom, right = missing_h - top, missing_w - left
    elif padding == "ceil":
        top = left = 0
        bottom, right = _overhang(height, kh, sh), _overhang(width, kw, sw)
    elif isinstance(padding, str):
        raise ShapeError(
            f"{op}: padding must be an int, a pair, four sides, 'same' or 'ceil', not {padding!r}"
        )
    else:
        top, bottom, left, right = sides(op, padding)
    padded = (height + top + bottom, width + left + right)
    if kh > padded[0] or kw > padded[1]:
        raise ShapeError(
            f"{op}: the kernel {kh}x{kw} is larger than the padded picture {padded[0]}x{padded[1]} "
            f"(picture {height}x{width}). Use a larger picture, more padding or a smaller kernel"
        )
    out = ((padded[0] - kh) // sh + 1, (padded[1] - kw) // sw + 1)
    return Window((kh, kw), (sh, sw), top, bottom, left, right, out)


def _overhang(size: int, kernel: int, stride: int) -> int:
    """How far the last window reaches past the picture if windows cover all of it; each starts inside."""
    if kernel > size:
        return 0
    places = min(-(-(size - kernel) // stride) + 1, -(-size // stride))
    return max(0, (places - 1) * stride + kernel - size)

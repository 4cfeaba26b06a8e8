"""Groups of a convolution, and several small ones taken as one.

Groups of few channels make products too small to be fast. So several are joined, with a kernel that is zero
where a channel of one would meet a channel of another. (NaN or infinity in one then shows in the results of
all that are joined, as zero times these is NaN.)
"""

from __future__ import annotations

import math
from typing import Any

from minires import backend
from minires.backend import Array

MOST = 16  # channels of a group made of several, on the CPU


def by_group(matrix: Array, groups: int) -> Array:
    """(..., R, O), any leading axes -> the view (G, R, O/G), R being all of them together."""
    *rows, columns = matrix.shape
    return matrix.reshape(math.prod(rows), groups, columns // groups).swapaxes(0, 1)


def left(groups: int, w_shape: tuple[int, ...], most: int) -> int:
    """How many groups are left when as many are joined as have at most ``most`` channels together."""
    widest = max(w_shape[2], w_shape[3] // groups)
    joined = 1
    while 2 * joined * widest <= most and groups % (2 * joined) == 0:
        joined *= 2
    return groups // joined


def joined_shape(w_shape: tuple[int, ...], groups: int, left: int) -> tuple[int, int, int, int]:
    """The shape of the kernel when ``left`` groups are left: (KH, KW, C/left, O)."""
    kh, kw, depth, outputs = w_shape
    return kh, kw, depth * groups // left, outputs


def join(xp: Any, w: Array, groups: int, left: int) -> Array:
    """(KH, KW, C/groups, O) -> (KH, KW, C/left, O)."""
    kh, kw, depth, outputs = w.shape
    many = groups // left
    if many == 1:
        return w
    wide = w.astype(backend.accumulator(w.dtype), copy=False)  # CuPy has no where for bfloat16
    parts = wide.reshape(kh, kw, 1, depth, left, many, outputs // groups)
    own = xp.eye(many, dtype=bool).reshape(many, 1, 1, many, 1)
    joined = xp.where(own, parts, xp.zeros((), wide.dtype)).reshape(kh, kw, many * depth, outputs)
    return joined.astype(w.dtype, copy=False)


def part(xp: Any, dw: Array, groups: int, left: int) -> Array:
    """The adjoint of join: (KH, KW, C/left, O) -> (KH, KW, C/groups, O)."""
    kh, kw, depth, outputs = dw.shape
    many = groups // left
    if many == 1:
        return dw
    joined = dw.reshape(kh, kw, many, depth // many, left, many, outputs // groups)
    parts = xp.moveaxis(joined.diagonal(axis1=2, axis2=5), -1, 4)  # (KH, KW, C/groups, left, many, O/groups)
    return parts.reshape(kh, kw, depth // many, outputs)

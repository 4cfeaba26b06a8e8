"""The adjoint of a convolution, at stride 1 a convolution again: it goes from dy to dx.

Its window is turned round: where the window of the one reaches ``top`` rows beyond the picture, the window of
the other reaches KH - 1 - top rows beyond the output (where KH is the extent of a window that is dilated).
Its kernel is flipped in both directions, with input and output channels exchanged.
"""

from __future__ import annotations

import numpy as np

from minires.backend import Array
from minires.ops.window import Window


def _sides(win: Window) -> tuple[int, int, int, int]:
    kh, kw = win.extent
    return kh - 1 - win.top, kh - 1 - win.bottom, kw - 1 - win.left, kw - 1 - win.right


def exists(win: Window) -> bool:
    """Whether there is a window for it. (Of a 1x1 window both are the same, and there is nothing to turn.)"""
    return win.stride == (1, 1) and win.size != (1, 1) and min(_sides(win)) >= 0


def window(win: Window, x_shape: tuple[int, ...]) -> Window:
    """The window that looks from the output back at the picture, (N, OH, OW, O) -> (N, H, W, C)."""
    return Window(win.size, (1, 1), *_sides(win), out=(x_shape[1], x_shape[2]), dilation=win.dilation)


def kernel(w: Array, groups: int) -> Array:
    """(KH, KW, C/G, O) -> (KH, KW, O/G, C), turned by 180 degrees; doing it twice changes nothing."""
    kh, kw, c, o = w.shape
    by_group = w[::-1, ::-1].reshape(kh, kw, c, groups, o // groups)
    return np.ascontiguousarray(by_group.transpose(0, 1, 4, 3, 2)).reshape(kh, kw, o // groups, groups * c)

"""What conv2d asks of the shapes of its arguments."""

from __future__ import annotations

from typing import Any

from minires.errors import ShapeError, as_whole
from minires.ops import checks
from minires.ops.window import Padding, Window
from minires.ops.window import window as window_of


def window(
    x_shape: tuple[int, ...],
    w_shape: tuple[int, ...],
    stride: Any,
    padding: Padding,
    dilation: Any,
    groups: int,
) -> Window:
    """The window of a kernel w on pictures x. Raises: ShapeError if their shapes do not fit."""
    checks.rank_of_shape("conv2d", "x", x_shape, "(N, H, W, C)")
    checks.rank_of_shape("conv2d", "w", w_shape, "(KH, KW, C/groups, O)")
    (_, h, width, c), (kh, kw, depth, o) = x_shape, w_shape
    count = as_whole(groups)
    if count is None or count < 1 or c % count or o % count:
        raise ShapeError(
            f"conv2d: groups={groups} must divide the {c} input channels of x {x_shape} "
            f"and the {o} output channels of w {w_shape}"
        )
    if depth * groups != c:
        raise ShapeError(
            f"conv2d: w {w_shape} expects {depth * groups} input channels (with groups={groups}), "
            f"but x {x_shape} has {c}. x must be channels last, (N, H, W, C)"
        )
    return window_of("conv2d", (h, width), (kh, kw), stride, padding, dilation)

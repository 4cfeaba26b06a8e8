"""Convolution by the columns of the other side, on the CPU.

Through the adjoint (``adjoint.py``, at stride 1) each of the three products can be had from the columns of
what lies on the other side. Where that has fewer channels, its columns are smaller:

    forward       y  = backward_x of the adjoint, from x
    backward_x    dx = forward of the adjoint, from dy
    backward_w    dw = backward_w of the adjoint, with x and dy exchanged

Adding columns back, as backward_x does, takes up to twice as long as reading them.
"""

from __future__ import annotations

from minires.backend import Array
from minires.ops.conv2d import adjoint, columns
from minires.ops.window import Window


def forward(x: Array, w: Array, b: Array | None, relu: bool, win: Window, groups: int) -> Array:
    """y, with a ReLU behind it where asked."""
    shape = (len(x), *win.out, w.shape[-1])
    y = columns.backward_x(x, adjoint.kernel(w, groups), shape, adjoint.window(win, x.shape), groups)
    columns.epilogue(y, b, relu)
    return y


def backward_x(dy: Array, w: Array, shape: tuple[int, ...], win: Window, groups: int) -> Array:
    """dx of ``shape`` (N, H, W, C)."""
    return columns.forward(dy, adjoint.kernel(w, groups), None, False, adjoint.window(win, shape), groups)


def backward_w(dy: Array, x: Array, shape: tuple[int, ...], win: Window, groups: int) -> Array:
    """dw of ``shape`` (KH, KW, C/G, O)."""
    kh, kw, depth, outputs = shape
    turned = (kh, kw, outputs // groups, depth * groups)
    dw = columns.backward_w(x, dy, turned, adjoint.window(win, x.shape), groups)
    return adjoint.kernel(dw, groups)

"""A border of zeros around pictures.

    y[n, top + i, left + j, c] = x[n, i, j, c], zero elsewhere
    dx = dy without its border

Shapes: x (N, H, W, C) -> y (N, top + H + bottom, left + W + right, C).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from minires import backend
from minires.backend import Array
from minires.ops import checks
from minires.ops.onnx_graph import Graph
from minires.ops.registry import Case, Words, operation
from minires.ops.window import Padding, sides
from minires.tensor import Call, Tensor, record


def _forward(xp: Any, x: Array, border: tuple[int, int, int, int]) -> Array:
    top, bottom, left, right = border
    return xp.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))


def _backward(xp: Any, dy: Array, border: tuple[int, int, int, int]) -> Array:
    top, bottom, left, right = border
    return dy[:, top : dy.shape[1] - bottom, left : dy.shape[2] - right, :]


def _cases() -> Iterator[Case]:
    for padding in (1, 0, (2, 1), ((0, 1), (2, 3))):
        yield Case(f"padding={padding}", {"x": (2, 3, 4, 2)}, {"padding": padding})


def _onnx(graph: Graph, call: Call) -> str:
    (x,), ((top, bottom), (left, right)) = call.inputs.values(), call.options["padding"]
    return graph.add("Pad", graph.value(x), graph.integers("border", (0, 0, top, left, 0, 0, bottom, right)))


@operation(
    math="y[n, top + i, left + j, c] = x[n, i, j, c], zero elsewhere",
    backward="dx = dy without its border",
    english=Words(
        "Zero padding",
        "A border of zeros is put around the picture.",
        "The gradient of the border is cut off.",
    ),
    chinese=Words("补零", "在图片四周补上零。", "边界上的梯度被裁掉。"),
    label="zero padding",
    onnx=_onnx,
    cases=_cases,
)
def pad(x: Tensor, padding: Padding) -> Tensor:
    """Add a border of zeros to the height and the width of pictures.

    ``padding`` is an int, a pair (height, width), or four sides ((top, bottom), (left, right)).
    Shapes: see the head of this file.
    Raises: ShapeError if ``x`` is not (N, H, W, C) or the padding makes no sense.
    """
    x = checks.as_tensor(x)
    checks.rank("pad", "x", x, "(N, H, W, C)")
    checks.same_floats("pad", x=x)
    border = sides("pad", padding)
    xp = backend.array_module(x.data)
    top, bottom, left, right = border
    return record(
        "pad",
        _forward(xp, x.data, border),
        inputs={"x": x},
        options={"padding": ((top, bottom), (left, right))},
        backward=lambda dy: (_backward(xp, dy, border),),
    )

"""A border around pictures: of one number, or made of the picture's own pixels.

    y[n, i, j, c] = x[n, rows[i], columns[j], c]

``rows`` says from which row of x each row of y comes, ``columns`` the same of columns. For a picture of
four columns, abcd, with three more on either side:

    constant    vvv abcd vvv    v is a number
    edge        aaa abcd ddd    the nearest pixel
    reflect     dcb abcd cba    mirrored at the outermost pixel, which is not repeated
    wrap        bcd abcd abc    as if the picture were repeated

The adjoint adds the gradient of each row of the border to that of the row it came from, and the same with the
columns:

    dx[n, h, w, c] = sum over rows[i] = h and columns[j] = w of dy[n, i, j, c]

Source: the names and rules are those of NumPy's pad.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from minires import backend
from minires.backend import Array
from minires.errors import ConfigError, ShapeError, one_of
from minires.ops import checks
from minires.ops.forms import Moved
from minires.ops.onnx_graph import Graph
from minires.ops.registry import Case, Words, operation
from minires.ops.window import Padding, sides
from minires.tensor import Call, Tensor, record

MODES = ("constant", "edge", "reflect", "wrap")
Sides = tuple[tuple[int, int], tuple[int, int]]  # (top, bottom), (left, right)

# ------------------------------------------------------------------------------ reference implementation


def _forward(xp: Any, x: Array, border: Sides, mode: str, value: float) -> Array:
    options = {"constant_values": value} if mode == "constant" else {}
    return xp.pad(x, ((0, 0), *border, (0, 0)), mode, **options)


def _backward(dy: Array, border: Sides, mode: str) -> Array:
    dx = dy
    for axis, (before, after) in zip((1, 2), border, strict=True):
        dx = _folded(dx, axis, before, after, mode)
    return dx.astype(dy.dtype, copy=False)


def _folded(dy: Array, axis: int, before: int, after: int, mode: str) -> Array:
    """dy without the border along one axis, whose numbers are added to those they are copies of."""
    size = dy.shape[axis] - before - after
    others = (slice(None),) * axis
    inner = dy[*others, before : before + size]
    if mode == "constant" or not before + after:
        return inner
    inner = inner.astype(np.float64)  # a copy, to add to; a pixel at the edge may have many copies
    origin = np.pad(np.arange(size), (before, after), mode)  # type: ignore[call-overload]
    for place in (*range(before), *range(before + size, before + size + after)):
        inner[*others, origin[place]] += dy[*others, place]
    return inner


# ----------------------------------------------------------------------------------------------- public


def _cases() -> Iterator[Case]:
    picture = (2, 3, 4, 2)
    for padding in (1, 0, (2, 1), ((0, 1), (2, 3))):
        yield Case(f"padding={padding}", {"x": picture}, {"padding": padding})
    yield Case("value -0.5", {"x": picture}, {"padding": (1, 2), "value": -0.5})
    for mode, most in [("edge", ((4, 1), (0, 5))), ("reflect", ((2, 1), (0, 3))), ("wrap", ((3, 1), (0, 4)))]:
        for padding in (0, 1, (0, 2), most):
            yield Case(f"{mode}, padding={padding}", {"x": picture}, {"padding": padding, "mode": mode})


def _moved(x: Array, *, padding: Sides, mode: str, value: float = 0.0) -> Array:
    return _forward(np, x, padding, mode, 0)


def _onnx(graph: Graph, call: Call) -> str:
    (x,), ((top, bottom), (left, right)) = call.inputs.values(), call.options["padding"]
    mode, border = call.options["mode"], graph.integers("border", (0, 0, top, left, 0, 0, bottom, right))
    if mode == "wrap" and graph.opset < 19:
        raise ConfigError(f"pad with mode 'wrap' is in ONNX from opset 19 on, not in {graph.opset}")
    value = [graph.weight(np.asarray(call.options["value"]))] if call.options.get("value") else []
    return graph.add("Pad", graph.value(x), border, *value, mode=mode)


@operation(
    math="""
        y[n, top + i, left + j, c] = x[n, i, j, c]
        beyond the picture {mode == "constant"?value|a copy of one of its pixels\
|value, or with another mode than "constant" a copy of one of its pixels}
    """,
    backward="""
        dx = dy without its border
        {mode == "constant"?|each number of the border is added to the one it is a copy of\
|each number of a border of copies is added to the one it is a copy of}
    """,
    english=Words(
        "Padding",
        'A border is put around the picture: {mode == "constant"?of one number|of copies of its own pixels}.',
        'The gradient of the border is {mode == "constant"?cut off|added to the pixels it is a copy of}.',
    ),
    chinese=Words(
        "填充",
        '在图片四周加一圈边：{mode == "constant"?填同一个数|复制图片自己的像素}。',
        '边界上的梯度{mode == "constant"?被裁掉|加到它所复制的像素上}。',
    ),
    arithmetic=Moved(_moved, fill="value", channelwise=True),
    label="padding",
    onnx=_onnx,
    cases=_cases,
)
def pad(x: Tensor, padding: Padding, *, mode: str = "constant", value: float = 0.0) -> Tensor:
    """Add a border to the height and the width of pictures.

    padding: an int, a pair (height, width), or four sides ((top, bottom), (left, right)); not negative.
        (To cut pictures, index them: x[:, 1:-1, 1:-1].)
    mode: what the border is made of: "constant" of ``value``, "edge" of the nearest pixel, "reflect" of the
        picture mirrored at its outermost pixels, "wrap" of the picture's other side.
    value: the number of a constant border.

    Shapes: x (N, H, W, C) -> y (N, top + H + bottom, left + W + right, C).
    Raises: ShapeError if ``x`` is not (N, H, W, C), the padding makes no sense, or a border is larger than
    the picture gives: H - 1 rows and W - 1 columns mirrored, H and W wrapped; ConfigError for an unknown
    mode, or a value that is no number or that the mode has no use for.
    Source: NumPy's pad. Differs: NumPy mirrors and wraps more than once; PyTorch calls "edge" replicate and
    "wrap" circular, and takes negative padding.

    >>> x = Tensor(np.arange(1.0, 5.0).reshape(1, 1, 4, 1))
    >>> for mode in MODES:
    ...     print(pad(x, (0, 2), mode=mode).numpy().ravel())
    [0. 0. 1. 2. 3. 4. 0. 0.]
    [1. 1. 1. 2. 3. 4. 4. 4.]
    [3. 2. 1. 2. 3. 4. 3. 2.]
    [3. 4. 1. 2. 3. 4. 1. 2.]
    """
    x = checks.as_tensor(x)
    checks.rank("pad", "x", x, "(N, H, W, C)")
    checks.same_floats("pad", x=x)
    top, bottom, left, right = sides("pad", padding)
    border, value = ((top, bottom), (left, right)), checks.number("pad", "value", value, nan=True)
    checks.size("pad", (len(x), top + x.shape[1] + bottom, left + x.shape[2] + right, x.shape[3]))
    _check_mode(mode, value, border, (x.shape[1], x.shape[2]))
    return record(
        "pad",
        _forward(backend.array_module(x.data), x.data, border, mode, value),
        inputs={"x": x},
        options={"padding": border, "mode": mode, **({"value": value} if mode == "constant" else {})},
        backward=lambda dy: (_backward(dy, border, mode),),
    )


def _check_mode(mode: str, value: float, border: Sides, picture: tuple[int, int]) -> None:
    """Raises: ConfigError if the mode is unknown or has no value; ShapeError if the border is too large."""
    one_of("pad: mode", mode, MODES)
    if mode == "constant":
        return
    if value != 0:
        raise ConfigError(
            f"pad: value={value:g} is for mode 'constant' only; {mode!r} takes the picture's own pixels"
        )
    for name, size, (before, after) in zip(("rows", "columns"), picture, border, strict=True):
        most = {"edge": max(before, after) if size else 0, "reflect": max(0, size - 1), "wrap": size}[mode]
        if max(before, after) > most:
            raise ShapeError(
                f"pad: of {size} {name} mode {mode!r} can make at most {most} more on each side, "
                f"but padding asks for {before} before and {after} behind them"
            )

"""Local response normalisation: a channel is divided by a norm of its neighbours at the same place.

    s[c] = k + alpha * sum of x[j]^2 over the channels j with |j - c| <= (size - 1) / 2
    y[c] = x[c] / s[c]^beta
    dx[c] = dy[c] / s[c]^beta - 2 alpha beta x[c] * sum over the same j of dy[j] y[j] / s[j]

Channels beyond the first and the last count as 0.

Shapes: x (..., C); y has the shape of x.

Source: Krizhevsky, Sutskever, Hinton 2012, ImageNet classification with deep convolutional neural networks,
section 3.3 (k = 2, size = 5, alpha = 1e-4, beta = 0.75), and with these numbers VGG's A-LRN.
Differs: Caffe and PyTorch divide alpha by the size and start from k = 1; their result is had here with
``alpha / size``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from minires import backend
from minires.backend import Array
from minires.errors import ConfigError, ShapeError, as_whole
from minires.ops import checks
from minires.ops.forms import Formula, Near
from minires.ops.mixed_precision import mixed
from minires.ops.onnx_graph import Graph
from minires.ops.registry import Case, Shape, Words, operation
from minires.tensor import Call, Tensor, record


def _neighbours(xp: Any, x: Array, size: int) -> Array:
    """The sum over each channel and its neighbours: ``size`` of them, where there are so many."""
    total = x.astype(np.float64 if size > 16 else x.dtype)  # of many more than usual no digit is lost
    for step in range(1, size // 2 + 1):
        total[..., step:] += x[..., :-step]
        total[..., :-step] += x[..., step:]
    return total.astype(x.dtype, copy=False)


def _forward(xp: Any, x: Array, size: int, k: float, alpha: float, beta: float) -> tuple[Array, Array]:
    s = k + alpha * _neighbours(xp, x * x, size)
    return x * s**-beta, s


def _backward(
    xp: Any, dy: Array, x: Array, y: Array, s: Array, size: int, alpha: float, beta: float
) -> Array:
    return dy * s**-beta - 2 * alpha * beta * x * _neighbours(xp, dy * y / s, size)


def _cases() -> Iterator[Case]:
    strong = {"k": 0.5, "alpha": 0.3, "beta": 0.75}  # the usual numbers hardly change x
    table: list[tuple[str, Shape, dict[str, Any]]] = [
        ("as published", (2, 2, 3, 7), {}),
        ("strong", (2, 2, 3, 7), strong),
        ("three neighbours, beta 1", (1, 2, 2, 4), {**strong, "size": 3, "beta": 1.0}),
        ("itself alone", (3, 4), {**strong, "size": 1}),
        ("more neighbours than channels", (2, 3, 3), {**strong, "size": 9}),
        ("one channel", (2, 1, 1, 1), strong),
    ]
    for name, x, options in table:
        yield Case(name, {"x": x}, options)


def _onnx(graph: Graph, call: Call) -> str:
    (x,), options = call.inputs.values(), call.options
    if x.ndim != 4:
        raise ConfigError(f"local_response_norm can be written for pictures (N, H, W, C) only, not {x.shape}")
    size = options["size"]
    alpha = options["alpha"] * size  # which ONNX divides by it
    return graph.add("LRN", graph.value(x), size=size, alpha=alpha, beta=options["beta"], bias=options["k"])


@operation(
    arithmetic=Formula(
        """
        s = k + alpha * sum(x * x, near)
        y = x / s ** beta
        dx = dy / s ** beta - 2 * alpha * beta * x * sum(dy * y / s, near)
        """,
        axes={"near": Near(-1, "size")},
    ),
    english=Words(
        "Local response norm",
        "Each number is divided by a norm of its neighbours among the channels.",
        "A number also weakens its neighbours: what that costs them is taken off its own gradient.",
    ),
    chinese=Words(
        "局部响应归一化",
        "每个数除以相邻通道的范数。",
        "一个数也会削弱它的相邻通道，这部分损失从它自己的梯度中减去。",
    ),
    short="LRN",
    role="small",
    onnx=_onnx,
    cases=_cases,
)
@mixed()
def local_response_norm(
    x: Tensor, size: int = 5, *, k: float = 2.0, alpha: float = 1e-4, beta: float = 0.75
) -> Tensor:
    """Divide each channel by a norm of the ``size`` channels around it.

    size: how many channels, itself in their middle; those beyond the first and the last count as 0.
    k, alpha, beta: of the norm, which is (k + alpha * the sum of the squares) to the power of beta.

    Shapes: x (..., C); y as x.
    Raises: ShapeError if ``x`` has no channels or is not a float, ``size`` is not odd, or ``k`` is
    not above 0 or ``alpha`` below 0 (the norm could be 0); ConfigError for what is no number.
    Source: Krizhevsky, Sutskever, Hinton 2012, section 3.3. Differs: Caffe and PyTorch divide alpha by the
    size and start from k = 1; their result is had here with ``alpha / size``.

    >>> local_response_norm(Tensor([[1.0, 2.0]]), 3, k=1.0, alpha=1.0, beta=1.0).numpy().round(3)
    array([[0.167, 0.333]], dtype=float32)
    """
    x = checks.as_tensor(x)
    checks.same_floats("local_response_norm", x=x)
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ShapeError(f"local_response_norm: x must be (..., C) with at least one channel, not {x.shape}")
    neighbours = as_whole(size)
    if neighbours is None or neighbours < 1 or neighbours % 2 == 0:
        raise ShapeError(
            f"local_response_norm: size must be odd, as many neighbours on both sides, not {size!r}"
        )
    size = neighbours
    k, alpha, beta = (
        checks.number("local_response_norm", name, value)
        for name, value in (("k", k), ("alpha", alpha), ("beta", beta))
    )
    if k <= 0 or alpha < 0:
        raise ShapeError(
            f"local_response_norm: k must be above 0 and alpha not below 0, but k={k} and alpha={alpha}"
        )
    xp, data = backend.array_module(x.data), x.data
    y, s = _forward(xp, data, size, k, alpha, beta)

    def backward(dy: Array) -> tuple[Array]:
        return (_backward(xp, dy, data, y, s, size, alpha, beta),)

    return record(
        "local_response_norm",
        y,
        inputs={"x": x},
        options={"size": size, "k": k, "alpha": alpha, "beta": beta},
        saved={"x": data, "y": y, "s": s},
        backward=backward,
    )

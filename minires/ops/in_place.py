"""``x += y`` and its like.

A tensor is never changed in place while a tape may need its numbers: ``x += y`` is ``x = x + y``, a new
tensor. For a parameter that would be a trap, since the model and the optimiser would go on with the old one.
So it is refused there, but for the one place where it is meant, an update by hand:

>>> from minires import Tensor, no_grad
>>> w = Tensor([1.0, 2.0], requires_grad=True)
>>> (w * w).sum().backward()
>>> with no_grad():
...     w -= 0.25 * w.grad
>>> w.tolist(), w.requires_grad
([0.5, 1.0], True)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minires.errors import MiniresError, ShapeError
from minires.tensor import Tensor, is_recording


def augmented(sign: str, operation: Callable[[Any, Any], Tensor]) -> Callable[[Tensor, Any], Tensor]:
    """The augmented assignment ``x sign= y`` for an operation ``x sign y``.

    Raises (what it returns): MiniresError if x is a leaf that needs a gradient and operations are recorded;
    ShapeError if the result does not fit into that leaf.
    """

    def change(x: Tensor, y: Any) -> Tensor:
        if x.node is None or x.node.op != "leaf":
            return operation(x, y)
        if is_recording():
            raise MiniresError(
                f"x {sign}= ... would leave this parameter behind (a tensor that needs a gradient and is no "
                "result): x would be a new tensor, and an optimiser has the old one. "
                f"Write y = x {sign} ... for a result, or put the line inside `with minires.no_grad():` to "
                "change the parameter's numbers"
            )
        result = operation(x, y).data
        if result.shape != x.shape:
            raise ShapeError(f"x {sign}= ...: the result has shape {result.shape}, but x has {x.shape}")
        x.data[...] = result
        return x

    return change


def set_item(x: Tensor, index: Any, value: Any) -> None:
    """``x[index] = value`` is refused, with what to write instead."""
    raise MiniresError(
        "the elements of a tensor cannot be set, since the tape may need the old ones. ops.where(mask, a, x) "
        "makes a new tensor; x.data[index] = value changes the numbers where no tape needs them"
    )

"""A tensor on another device: the same numbers, in the memory of a GPU or back on the CPU."""

from __future__ import annotations

from minires import backend
from minires.ops.forms import Formula
from minires.ops.registry import Words, operation
from minires.tensor import Tensor, record


@operation(
    math="y = x, on another device",
    backward="dx = dy, on the device of x",
    arithmetic=Formula("y = x\ndx = dy"),
    english=Words("Move", "The same numbers on another device.", "The gradient goes back to where x is."),
    chinese=Words("搬移", "同样的数，放到另一设备上。", "梯度回到原来的设备。"),
    role="silent",
    unchecked="nothing is computed, and a second device is needed",
)
def to(x: Tensor, device: str) -> Tensor:
    """The tensor on another device (itself if it is there already); the gradient finds its way back.

    device: "cpu", "cuda" or "cuda:1"; another dtype is what ``astype`` is for.

    Shapes: any. Raises: ConfigError for an unknown device.

    >>> x = Tensor([1.0])
    >>> to(x, "cpu") is x
    True
    """
    moved = backend.to_device(x.data, device)
    if moved is x.data:
        return x
    home = x.device
    return record(
        "to",
        moved,
        inputs={"x": x},
        options={"device": device},
        backward=lambda dy: (backend.to_device(dy, home),),
    )

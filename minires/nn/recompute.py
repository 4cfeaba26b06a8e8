"""Recomputing activations: less memory for more arithmetic.

The tape keeps what each operation needs for its backward, so the memory of a training step grows with every
layer. A recomputed block keeps nothing but its inputs. When the gradient of its result arrives, the block
runs a second time, on a tape of its own that is followed back at once and thrown away:

    forward      y = block(x)                        keep x
    backward     y = block(x) again, recorded;       dx and the gradients of the parameters from dy

With each of l equal blocks recomputed the memory is that of l inputs and one block, for one more
forward pass: about a third more arithmetic.

Source: Chen, Xu, Zhang, Guestrin 2016, Training deep nets with sublinear memory cost, arXiv:1604.06174.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from minires import backend, tensor
from minires.backend import Array
from minires.errors import MiniresError
from minires.nn import hooks
from minires.nn.module import Module
from minires.nn.paths import locate
from minires.ops.arithmetic import mul
from minires.ops.registry import Case, Words, operation
from minires.tape import reachable
from minires.tensor import Tensor, is_recording, is_watched, record, set_apart, with_settings


class _Product(Module):
    """A block for the cases: x1 * x2."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return mul(a, b)


def _cases() -> Iterator[Case]:
    inputs = {"a": (2, 3), "b": (2, 3)}
    yield Case("a product", inputs, call=lambda recompute, a, b: recompute(_Product(), a, b))


@operation(
    math="y = block(x1, x2, ...), of which nothing but the inputs is kept",
    backward="the block runs again and is followed back: dx1, dx2, ..., and dw1, dw2, ... of its parameters",
    english=Words(
        "Recomputed block",
        "A whole block as one step: only its inputs are kept.",
        "The block runs a second time, and its gradients are those of that run.",
    ),
    chinese=Words("重算的模块", "整个模块作为一步，只保留其输入。", "模块再运行一次，梯度由这次运行得到。"),
    label="recomputed block",
    cases=_cases,
)
def recompute(block: Module, *inputs: Any) -> Tensor:
    """Run ``block(*inputs)`` keeping only the inputs, and run it again when its gradient is asked for.

    Results and gradients are those of the plain call, to the last bit where no tensor is used both inside and
    outside (sums are then made in another order). The second run finds dropout's random generators, running
    statistics and modes as the first one did, and leaves them as they are: masks are the same and statistics
    move once. Hooks on tensors inside are called in the second run, if they are registered in ``forward``.

    On the tape it is one step, named after the block, whose parents are the inputs and all parameters that
    the block uses. Without recording it is a plain call, and while somebody watches every operation, too.

    The state that the second run finds is that of the block's own modules: what it borrows from elsewhere (a
    batch norm of another block, a global random generator) would move twice.

    Shapes: those of the block.
    Raises: MiniresError if the block does not return one tensor, or uses a tensor that was computed outside
    and is not among the inputs.
    Source: arXiv:1604.06174.

    >>> from minires.nn import Linear
    >>> block = Linear(2, 2)
    >>> x = Tensor([[1.0, 2.0]], requires_grad=True)
    >>> y = recompute(block, x)
    >>> y.node.op, bool((y.data == block(x).data).all())
    ('recompute', True)
    """
    if not hasattr(block, "named_modules"):
        what = getattr(block, "__name__", type(block).__name__)
        raise MiniresError(f"recompute takes a module, not {what}; nn.Sequential(function) makes one of it")
    if not is_recording() or is_watched() or hooks.is_moved(block):
        return block(*inputs)
    _, path = locate(block)
    settings, reference = tensor.settings(), backend.is_reference()
    before = _state(block)
    now = Tensor(0.0, requires_grad=True).node  # what is recorded from here on has a higher number
    kept = [_leaf(x) for x in inputs]  # not the inputs themselves, which would keep their own past
    # This run is recorded too, to see which parameters are used; its tape is gone when we return.
    y = block(*kept)
    if not isinstance(y, Tensor):
        raise MiniresError(f"recompute: a block must return one tensor, not {type(y).__name__}")
    if y.node is None or now is None:
        return y
    used = sorted(reachable(y.node), key=lambda node: node.number)
    outside = [node for node in used if node.op != "leaf" and node.number < now.number]
    if outside:
        raise MiniresError(
            f"recompute: the block uses {outside[-1]}, which was computed outside; make it an input"
        )
    own = {id(x.node) for x in kept if isinstance(x, Tensor)}
    found = [node.output() for node in used if node.op == "leaf" and id(node) not in own]
    parameters = [parameter for parameter in found if parameter is not None]

    def backward(dy: Array) -> list[Array | None]:
        after = _state(block)
        again = [_leaf(x) for x in kept]
        with set_apart(parameters):
            _set_state(block, before)
            try:
                with with_settings(**settings), backend.reference(reference):
                    y = block(*again)
            finally:
                _set_state(block, after)
            y.backward(dy)
            return [x.grad for x in (*again, *parameters) if isinstance(x, Tensor)]

    tensors = [x for x in inputs if isinstance(x, Tensor)]
    with with_settings(path=path):
        return record(
            "recompute",
            y.data,
            inputs={
                **{f"x{i}": x for i, x in enumerate(tensors, 1)},
                **{f"w{i}": parameter for i, parameter in enumerate(parameters, 1)},
            },
            saved={f"x{i}": x.data for i, x in enumerate(tensors, 1)},
            backward=backward,
        )


def _leaf(x: Any) -> Any:
    """A tensor as a leaf of its own, over the same values; anything else as it is."""
    return Tensor(x.data, requires_grad=x.requires_grad, name=x.name) if isinstance(x, Tensor) else x


_State = tuple[list[Array], dict[str, Any], list[bool], list[hooks.Around | None]]


def _state(block: Module) -> _State:
    """Copies of the buffers, the states of the random generators, the modes of the modules, and what stands
    around them: hooks, and what ``minires.intervene`` changes."""
    buffers = [buffer.copy() for _, buffer in block.named_buffers()]
    modes = [module.training for module in block.modules()]
    return buffers, block.random_states(), modes, hooks.standing(block)


def _set_state(block: Module, state: _State) -> None:
    """Set everything to what :func:`_state` gave."""
    buffers, generators, modes, arounds = state
    hooks.put_back(block, arounds)
    for (_, buffer), values in zip(block.named_buffers(), buffers, strict=True):
        buffer[...] = values
    block.load_random_states(generators)
    for module, training in zip(block.modules(), modes, strict=True):
        module.training = training

"""Finding the first layer whose output or gradient is not finite, after a step that went wrong."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from minires import backend
from minires.backend import Array
from minires.nn.module import Module
from minires.tensor import Tensor

UNSEEN = "not found, as a share of the batch cannot be looked at by itself"
NOTHING = "nothing: run again, the step was finite, so the cause is not in model and batch alone"


class _Found(Exception):
    """Ends the forward pass at the layer that it names."""


def first_not_finite(
    model: Module, x: Tensor, loss_of: Callable[[Tensor], Tensor], *, place: int = 0
) -> str:
    """Run the step again and say what was the first thing in it that was NaN or infinite.

    Looked at in this order: the input, the parameters and running statistics, the output of each layer, the
    loss, and the gradients from the loss back to the input. ``loss_of`` makes the loss from the model's
    output, and ``place`` is the number of the first of these pictures; ``NOTHING`` says that all was finite.
    The model's running statistics and random states move on as in any forward pass.
    """
    if bad := _bad(x.data):
        pictures = sorted({place + int(index) for index in np.argwhere(~np.isfinite(x.numpy()))[:, 0]})
        shown = ", ".join(map(str, pictures[:10])) + (", ..." if len(pictures) > 10 else "")
        return f"the input: {bad} in the pictures [{shown}] of the batch"
    for path, parameter in model.named_parameters():
        if bad := _bad(parameter.data):
            return f"the parameter {path} {parameter.shape}: {bad}"
    try:
        with _watched(model):
            logits = model(x)
    except _Found as found:
        return str(found)
    loss = loss_of(logits)
    if bad := _bad(loss.data):
        return f"the loss itself, of finite logits up to {float(abs(logits.data).max()):g}: {bad}"
    for step in loss.backward_steps():
        for gradient in step.outgoing:
            if gradient is not None and (bad := _bad(gradient)):
                layer = step.node.path or "the loss"
                return f"the gradient that {layer} ({step.node.op}) hands back, {gradient.shape}: {bad}"
    return NOTHING


@contextmanager
def _watched(model: Module) -> Iterator[None]:
    """Inside this block each layer's output is checked; the first bad one raises ``_Found``."""
    modules = list(model.named_modules())

    def checked(path: str, module: Module, forward: Callable[..., Tensor], *x: Any, **options: Any) -> Tensor:
        y = forward(*x, **options)
        if bad := _bad(y.data):
            raise _Found(f"the output of {path} ({type(module).__name__}) {tuple(y.shape)}: {bad}")
        return y

    for path, module in modules:
        # A layer's forward ends before that of the block around it, so the innermost is named.
        vars(module)["forward"] = functools.partial(checked, path, module, module.forward)
    try:
        yield
    finally:
        for _, module in modules:
            vars(module).pop("forward", None)  # a module under two paths is taken off once


def _bad(array: Array) -> str:
    """Say how much of an array is not finite; nothing if all of it is."""
    if not backend.is_float(array.dtype):
        return ""
    xp: Any = backend.array_module(array)
    if bool(xp.isfinite(array).all()):
        return ""
    nans, infinities = int(xp.isnan(array).sum()), int(xp.isinf(array).sum())
    return f"{nans} NaN and {infinities} infinite of {array.size} values"

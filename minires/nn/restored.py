"""A model that is used in another mode for a while and is left as it was.

``model.eval()`` and ``model.train()`` set every module inside, and forget what mode each had. Whoever needs a
mode for a while asks for it here, so that a batch norm that was put into inference mode by itself, say, is in
inference mode afterwards too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from minires.nn.module import Module


@contextmanager
def modes(model: Module, *, training: bool | None = None) -> Iterator[None]:
    """Inside this block the whole model trains (``training=True``) or does not (``False``); with None only
    what the block itself sets changes. Behind it each module has its own mode again, after an error, too.

    >>> from minires import nn
    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    >>> _ = model[0].eval()
    >>> with modes(model, training=False):
    ...     [module.training for module in model.modules()]
    [False, False, False]
    >>> [module.training for module in model.modules()]
    [True, False, True]
    """
    before = [(module, module.training) for module in model.modules()]
    try:
        if training is not None:
            model.train(training)
        yield
    finally:
        for module, mode in before:
            module.training = mode


@contextmanager
def left_as_it_is(model: Module) -> Iterator[None]:
    """Put modes, running statistics and random generators back at the end of this block.

    >>> from minires import nn
    >>> from minires.tensor import Tensor
    >>> norm = nn.BatchNorm2d(1)
    >>> with left_as_it_is(norm):
    ...     y = norm(Tensor([[1.0], [3.0]]))
    >>> norm.running_mean
    array([0.], dtype=float32)
    """
    buffers = [(buffer, buffer.copy()) for _, buffer in model.named_buffers()]
    generators = model.random_states()
    try:
        with modes(model):
            yield
    finally:
        for buffer, values in buffers:
            buffer[...] = values
        model.load_random_states(generators)

"""A new last layer that begins where it fits what the layers before it say of the training pictures.

    features    what the last layer gets, of pictures as they are augmented, in inference mode
    fit         softmax regression on them, with a little weight decay

A last layer that begins with random weights sends random gradients through all the others in its first steps,
and these forget some of what they were taken over for. One that fits leaves them alone until it is their
turn.

Source: Kumar et al. arXiv:2202.10054, "Fine-tuning can distort pretrained features", section 3: linear
probing, then fine-tuning.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from contextlib import closing

import numpy as np
from numpy.typing import NDArray

from minires import backend
from minires.data import Loader
from minires.data.loader import Batches, Pair
from minires.errors import ConfigError
from minires.nn.layers import Linear
from minires.nn.module import Module, Parameter
from minires.nn.restored import modes
from minires.ops.cross_entropy import cross_entropy
from minires.optim import Adam
from minires.tensor import Tensor, no_grad

VIEWS, EACH = 2048, 16  # of all pictures as augmented, and of each
STEPS, LR, DECAY = 300, 0.05, 0.01


def fit_to(model: Module, loader: Loader) -> str:
    """Fit the last layer to the pictures of a loader, each seen in up to ``EACH`` ways; what to say of it."""
    views = min(VIEWS, EACH * len(loader.dataset))
    with closing(_endless(loader)) as batches:
        right = fit_last_layer(model, batches, views=views)
    return f"the new last layer was fitted to the pictures as augmented, and gets {right:.0%} of them right"


def _endless(loader: Loader) -> Batches:
    for epoch in itertools.count():
        with closing(loader.epoch(epoch)) as batches:
            yield from batches


def fit_last_layer(model: Module, batches: Iterable[Pair], *, views: int = VIEWS) -> float:
    """Fit the last dense layer of ``model`` to batches of pictures and labels, of which ``views`` are enough.

    Only that layer is changed. Returns the share of these pictures that it gets right then.

    Shapes: batches of x (N, H, W, 3) normalised, and y (N,) class numbers.
    Raises: ConfigError if the model does not end in a dense layer.

    >>> from minires import nn
    >>> rng = np.random.default_rng(0)
    >>> net = nn.Sequential(pool=nn.GlobalAvgPool2d(), fc=nn.Linear(3, 2, rng=rng))
    >>> y = np.arange(40) % 2
    >>> x = (rng.standard_normal((40, 4, 4, 3)) + y[:, None, None, None]).astype(np.float32)
    >>> fit_last_layer(net, [(x, y)])
    1.0
    """
    head = _last(model)
    x, y = _features(model, head, batches, views)
    mean, deviation = x.mean(axis=0), x.std(axis=0) + 1e-6
    layer = Linear(head.in_features, head.out_features, initializer="zeros")
    optimizer = Adam(layer.named_parameters(), LR, weight_decay=DECAY)
    scaled = Tensor(((x - mean) / deviation).astype(np.float32))
    for _ in range(STEPS):
        loss = cross_entropy(layer(scaled), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with no_grad():
        right = float((layer(scaled).numpy().argmax(axis=1) == y).mean())
    weight = layer.weight.numpy() / deviation[:, None]  # (in_features, classes)
    _set(head.weight, weight)
    if head.bias is not None and layer.bias is not None:
        _set(head.bias, layer.bias.numpy() - mean @ weight)
    return right


def _last(model: Module) -> Linear:
    """The last dense layer, which must be the last that has weights."""
    layers = [part for part in model.modules() if isinstance(part, Linear)]
    last = [id(parameter) for parameter in model.parameters()][-1:]
    if not layers or last[0] not in [id(parameter) for parameter in layers[-1].parameters()]:
        raise ConfigError("the model does not end in a dense layer, which could be fitted to its pictures")
    return layers[-1]


def _features(
    model: Module, head: Linear, batches: Iterable[Pair], views: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """What the last layer gets of at most so many pictures (N, in_features), and their labels."""
    kept, device = (head.weight, head.bias), head.weight.device
    found, labels, count = [], [], 0
    try:  # as the identity it gives what it gets
        head.weight = Parameter(backend.to_device(np.eye(head.in_features, dtype=np.float32), device))
        head.bias = None
        with modes(model, training=False), no_grad():
            for x, y in batches:
                found.append(model(Tensor(backend.to_device(x, device))).numpy())
                labels.append(y)
                count += len(y)
                if count >= views:
                    break
    finally:
        head.weight, head.bias = kept
    return np.concatenate(found).astype(np.float64), np.concatenate(labels)


def _set(parameter: Tensor, value: NDArray[np.floating]) -> None:
    parameter.data[...] = backend.to_device(value.astype(np.float32), parameter.device)

"""Classes of uneven size: how much each picture's loss counts, so that each class counts as much.

A picture of class k counts ``N / (K * pictures of class k)``, with N pictures in K classes that have some:
the pictures of a class count N / K together, and all of them N, as without weights. (The other way, to draw
each class equally often, is that of :class:`minires.data.Loader`.)

Source: King & Zeng 2001, Logistic regression in rare events data; scikit-learn's ``class_weight="balanced"``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from minires import backend
from minires.data import Dataset
from minires.errors import counted
from minires.ops.cross_entropy import cross_entropy
from minires.tensor import Tensor, as_array

WAYS = ("none", "weights", "sampler")


def class_weights(labels: NDArray[np.int64], classes: int) -> NDArray[np.float64]:
    """What a picture of each class counts; 0 for a class without pictures.

    >>> class_weights(np.array([0, 0, 0, 1]), 3)
    array([0.66666667, 2.        , 0.        ])
    """
    counts = np.bincount(labels, minlength=classes)
    there = counts > 0
    found = np.zeros(classes)
    found[there] = len(labels) / (there.sum() * counts[there])
    return found


class Loss:
    """The loss of a batch: the mean of the cross entropies of its pictures, each by its weight.

    ``weights`` are those of the classes, or None. With ``label_smoothing`` it is the whole loss of a picture,
    smoothing included, that counts by the weight of the picture's own class.

    >>> loss = Loss(weights=np.array([0.5, 2.0]))
    >>> logits = Tensor([[2.0, 0.0], [2.0, 0.0]])
    >>> one, other = cross_entropy(logits, [0, 1], reduction="none").tolist()
    >>> bool(np.isclose(loss(logits, np.array([0, 1])).item(), (0.5 * one + 2 * other) / 2))
    True
    """

    def __init__(self, *, label_smoothing: float = 0.0, weights: NDArray[np.float64] | None = None) -> None:
        self.label_smoothing, self.weights = label_smoothing, weights
        self._placed: dict[tuple[str, str], Any] = {}  # a graph of the GPU reads them at a fixed place

    def __call__(self, logits: Tensor, y: Any) -> Tensor:
        if self.weights is None:
            return cross_entropy(logits, y, label_smoothing=self.label_smoothing)
        losses = cross_entropy(logits, y, label_smoothing=self.label_smoothing, reduction="none")
        place = losses.device, str(losses.dtype)
        if place not in self._placed:
            self._placed[place] = backend.to_device(self.weights.astype(losses.dtype), losses.device)
        weighed: Tensor = losses * self._placed[place][backend.to_device(as_array(y), losses.device)]
        return weighed.mean()


def loss(way: str, train_set: Dataset, *, label_smoothing: float) -> Loss:
    """The loss of a run with the setting ``balance`` on these pictures."""
    weights = class_weights(train_set.labels, len(train_set.classes)) if way == "weights" else None
    return Loss(label_smoothing=label_smoothing, weights=weights)


def words(way: str, train_set: Dataset) -> str | None:
    """What the setting ``balance`` does to these pictures; None where it does nothing."""
    counts = np.bincount(train_set.labels, minlength=len(train_set.classes))
    there = np.flatnonzero(counts)
    few, many = (int(there[place]) for place in (counts[there].argmin(), counts[there].argmax()))
    small, large = (f"{train_set.classes[k]} ({counted(int(counts[k]), 'picture')})" for k in (few, many))
    if way != "none" and few == many:
        return f"each class has {counted(int(counts[few]), 'picture')}: there is nothing to balance"
    if way == "weights":
        of = class_weights(train_set.labels, len(train_set.classes))
        return (
            f"the loss of each picture counts by its class, from {of[many]:.3g} in {large} to {of[few]:.3g} "
            f"in {small}"
        )
    if way == "sampler":
        return (
            f"each epoch draws each class equally often, about {len(train_set) // len(there)} times, from "
            f"{large} to {small}"
        )
    return None

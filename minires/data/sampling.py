"""Which pictures an epoch shows, and in which order."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def balanced(labels: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw as many places as there are labels, each class that occurs equally often, in random order.

    Where the number is no multiple of that of the classes some of them, drawn too, come once more. Within a
    class no picture comes twice more often than another: all of them as often as they fit, and the rest is
    drawn. So an epoch shows some pictures of a large class, and those of a small one several times.

    Shapes: labels (N,) -> (N,) places.

    >>> labels = np.array([0] * 9 + [1] * 2 + [2])
    >>> drawn = balanced(labels, np.random.default_rng(0))
    >>> np.bincount(labels[drawn]).tolist(), np.bincount(drawn)[9:].tolist()
    ([4, 4, 4], [2, 2, 4])
    """
    classes = np.unique(labels)
    each, rest = divmod(len(labels), len(classes))
    more = set(rng.choice(len(classes), rest, replace=False).tolist())
    parts = []
    for k, label in enumerate(classes):
        places = np.flatnonzero(labels == label)
        whole, some = divmod(each + (k in more), len(places))
        parts += [np.tile(places, whole), rng.permutation(places)[:some]]
    return rng.permutation(np.concatenate(parts))

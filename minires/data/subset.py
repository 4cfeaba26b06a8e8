"""Some pictures of a set: how many of each class, and which; always the same ones.

What is chosen follows from the number of pictures, their labels and how many are wanted, and from nothing
else: no seed, no machine. Of each class so many, in proportion, and those spread evenly over the class as it
stands in the set, which may be sorted by who is on the pictures, or by when they were taken:

    picture number k of its class has the rank of k * phi, without its whole part (phi the golden ratio)

and the smallest ranks are taken. The steps between those that are taken have three lengths at most, whatever
their number, and never fall in with a period of the set; and of a class that gets more pictures, all that it
had before are among them.

Source: Sos, On the distribution mod 1 of the sequence n alpha, Ann. Univ. Sci. Budapest. 1 (1958); Knuth, The
Art of Computer Programming 3, section 6.4 (the whole-number form, Fibonacci hashing).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from minires.errors import ConfigError, counted, whole

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / phi, odd: k * GOLDEN modulo 2**64 ranks k


def shares(counts: Sequence[int] | NDArray[np.int64], pictures: int, *, where: str) -> NDArray[np.int64]:
    """How many of each class there are among so many ``pictures`` of a set that ``where`` names, and that has
    ``counts`` of each.

    Each class has its share ``pictures * count / N`` rounded up or down, the largest remainders up, of equal
    ones the first classes; and at least one picture, where there are pictures enough for that: then the
    classes that are furthest above their share give one away.

    Shapes: counts (K,) -> (K,).
    Raises: ConfigError if that is no whole number from 1 to all pictures.

    >>> shares([50, 30, 20], 10, where="pets").tolist()
    [5, 3, 2]
    >>> shares([90, 9, 1], 10, where="pets").tolist(), shares([90, 9, 1], 2, where="pets").tolist()
    ([8, 1, 1], [2, 0, 0])
    >>> shares([90, 9, 1], 101, where="pets")
    Traceback (most recent call last):
    ...
    minires.errors.ConfigError: 101 pictures of pets are asked for, but there are only 100 to learn from; ...
    """
    have = np.asarray(counts, dtype=np.int64)
    total, wanted = int(have.sum()), whole("the number of pictures", pictures)
    if wanted > total:
        raise ConfigError(
            f"{counted(wanted, 'picture')} of {where} are asked for, but there are only {total:,} to learn "
            f"from; ask for {total} at most, or leave the number out, which takes all"
        )
    exact = wanted * have  # of each, times all: in whole numbers
    found, rest = exact // total, exact % total
    found[np.argsort(-rest, kind="stable")[: wanted - found.sum()]] += 1
    there = have > 0
    if wanted >= there.sum():
        while (empty := np.flatnonzero(there & (found == 0))).size:
            above = np.where(found > 1, found * total - exact, np.iinfo(np.int64).min)
            found[above.argmax()] -= 1
            found[empty[0]] += 1
    return found


def chosen(labels: ArrayLike, classes: int, pictures: int, *, where: str) -> NDArray[np.int64]:
    """The places of so many ``pictures``, in the order of the set, of which the ``labels`` are these.

    Shapes: labels (N,) -> (pictures,).
    Raises: as :func:`shares`.

    >>> chosen([0, 0, 0, 0, 1, 1, 0, 0], 2, 4, where="pets").tolist()
    [0, 2, 4, 7]
    """
    labels = np.asarray(labels)
    found = []
    for k, count in enumerate(shares(np.bincount(labels, minlength=classes), pictures, where=where)):
        places = np.flatnonzero(labels == k)
        ranks = np.arange(len(places), dtype=np.uint64) * GOLDEN  # modulo 2**64
        found.append(places[np.argsort(ranks, kind="stable")[:count]])
    return np.sort(np.concatenate(found))

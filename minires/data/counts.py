"""What a data set holds, without bringing its pictures to one size; and what in it is doubtful.

Warned of are few pictures, classes of very different sizes, a class with one picture or none in a part, class
names that differ in case alone, and pictures that are there twice in different parts or classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from minires import backend
from minires.data import ahead, twins
from minires.data.dataset import Dataset
from minires.data.parts import fold
from minires.data.pictures import look, unreadable
from minires.data.streaming import Named
from minires.data.twins import Look
from minires.errors import DataError, counted

FEW_PER_CLASS, FEW_IN_TEST = 20, 30
UNEVEN = 4  # times as many pictures in the largest class as in the smallest
_SHOWN = 5


@dataclass(frozen=True)
class Twins:
    """Two pictures that are the same, or nearly: each as part, class and name."""

    one: tuple[str, str, str]
    other: tuple[str, str, str]
    nearly: bool


@dataclass(frozen=True)
class Survey:
    """What a data set holds: the pictures of each class in each part, their sizes, twins, and warnings.

    ``counts`` has for each part a number for each of ``classes``; sizes are (height, width).
    """

    name: str
    source: str
    classes: tuple[str, ...]
    counts: dict[str, list[int]]
    smallest: tuple[int, int]
    largest: tuple[int, int]
    twins: list[Twins]
    warnings: list[str] = field(default_factory=list)


class Looker:
    """In the place of ``decode_all``: looks at each picture, and keeps none."""

    def __init__(self, *, every: int = 1) -> None:
        self.every = every  # of so many pictures one is looked at
        self.looks: dict[str, Look] = {}
        self.sizes: list[tuple[int, int]] = []

    def decode(
        self, files: Sequence[tuple[str, Callable[[], bytes]]], *, size: int | None, where: str
    ) -> NDArray[np.uint8]:
        broken, chosen = [], files[:: self.every]
        seen = ahead.each(_looked, chosen, threads=backend.threads())
        for (name, _), found in zip(chosen, seen, strict=True):
            if isinstance(found, str):
                broken.append(found)
                continue
            shape, self.looks[name] = found
            self.sizes.append(shape)
        if broken:
            raise DataError(unreadable(broken, where))
        return np.zeros((len(files), 1, 1, 3), np.uint8)

    def add(self, part: Dataset) -> None:
        """Look at pictures that are in memory."""
        for name, image in zip(part.names, part.images, strict=True):
            self.looks[name] = Look.at(Image.fromarray(image), image.tobytes())
            self.sizes.append(image.shape[:2])


def _looked(named: Named) -> tuple[tuple[int, int], Look] | str:
    """What is seen of a picture, or what is wrong with it."""
    name, read = named
    try:
        return look(read(), name=name)
    except (DataError, OSError) as error:
        return str(error)


def summed_up(parts: dict[str, Dataset], looker: Looker, source: str) -> Survey:
    """Sum up the parts of a data set, whose pictures the ``looker`` has seen."""
    first = next(iter(parts.values()))
    classes = first.classes
    counts = {name: np.bincount(part.labels, minlength=len(classes)).tolist() for name, part in parts.items()}
    found = _twins(parts, looker) if looker.every == 1 else []
    sizes = sorted(looker.sizes, key=lambda size: (size[0] * size[1], size))
    warnings = [*of_counts(classes, counts), *_warn_of_twins(found, len(looker.looks))]
    if looker.every > 1:
        warnings.append(
            f"{sum(map(sum, counts.values())):,} pictures: looked at {len(looker.looks):,} of them, for "
            "their sizes, and for none that is there twice; --check decodes every one"
        )
    return Survey(first.name, source, classes, counts, sizes[0], sizes[-1], found, warnings)


def _twins(parts: dict[str, Dataset], looker: Looker) -> list[Twins]:
    """The twins in different parts, or of different classes."""
    seen = [
        (part, held.classes[label], name)
        for part, held in parts.items()
        for name, label in zip(held.names, held.labels, strict=True)
    ]
    looks = [looker.looks[name] for _, _, name in seen]
    pairs = [(group[0], other, False) for group in twins.same(looks) for other in _others(group, seen)]
    pairs += [(one, other, True) for one, other in twins.nearly(looks)]
    return [Twins(seen[a], seen[b], nearly) for a, b, nearly in pairs if seen[a][:2] != seen[b][:2]]


def _others(group: list[int], seen: list[tuple[str, str, str]]) -> list[int]:
    """Of the same picture, one in each other part and class."""
    first = {seen[place][:2]: place for place in reversed(group)}
    return [place for place in first.values() if place != group[0]]


def of_counts(classes: Sequence[str], counts: Mapping[str, Sequence[int]]) -> list[str]:
    """What is doubtful in how many pictures of each class each part has, in words."""
    found = []
    total = np.sum([*counts.values()], axis=0)
    train = counts.get("train")
    if train is not None and sum(train) < FEW_PER_CLASS * len(classes):
        found.append(
            f"few pictures: {sum(train)} to train {len(classes)} classes; a network learns them by heart"
        )
    for part in ("val", "test"):
        if 0 < sum(counts.get(part, [])) < FEW_IN_TEST:
            count = sum(counts[part])
            found.append(
                f"the {part} part has {counted(count, 'picture')}: each is {100 / count:.1f}% of the accuracy"
            )
    if single := [label for label, count in zip(classes, total, strict=True) if count == 1]:
        found.append(f"a single picture of {_few(single)}: it can be in one part only")
    high, low = int(total.argmax()), int(total.argmin())
    if total[high] >= UNEVEN * total[low]:
        share = 100 * total[high] / total.sum()
        found.append(
            f"uneven classes: {total[high]} pictures of {classes[high]}, {total[low]} of {classes[low]}; who "
            f"always says {classes[high]} is right in {share:.0f}%"
        )
    for part, of_part in counts.items():
        if missing := [label for label, count in zip(classes, of_part, strict=True) if not count]:
            found.append(f"{part} has no picture of {_few(missing)}")
    folded: dict[str, list[str]] = {}
    for label in classes:
        folded.setdefault(fold(label), []).append(label)
    found += [f"{' and '.join(same)} are taken for different classes" for same in folded.values() if same[1:]]
    return found


def _warn_of_twins(found: list[Twins], pictures: int) -> list[str]:
    kinds = {
        "the same, byte for byte,": [twin for twin in found if not twin.nearly],
        "nearly the same": [twin for twin in found if twin.nearly],
    }
    said = []
    for words, some in kinds.items():
        across = [twin for twin in some if twin.one[0] != twin.other[0]]
        labels = [twin for twin in some if twin.one[0] == twin.other[0]]
        for what, those, way in (
            ("parts", across, "look at them: what shows the same scene or person belongs into one part"),
            ("classes", labels, "look at them: a label may be wrong"),
        ):
            if those:
                lines = [f"{one.one[2]} ({one.one[0]}) and {one.other[2]} ({one.other[0]})" for one in those]
                more = f", and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
                pairs = counted(len(those), "pair")
                said.append(
                    f"{pairs} of pictures that are {words} in different {what}: {', '.join(lines[:_SHOWN])}"
                    f"{more}; {way}"
                )
    if pictures > twins.MOST:
        said.append(f"more than {twins.MOST:,} pictures: not looked for pictures that are nearly the same")
    return said


def _few(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")

"""Which of the folders of a tree are parts, which are classes, and which merely stand around them.

    cat/1.jpg  dog/2.jpg                          classes
    train/cat/1.jpg  test/cat/2.jpg               parts with classes, by the names in ``data.parts``
    train/cat/1.jpg  test/2.jpg                   a part whose pictures have no labels
    cat/train/1.jpg  cat/test/2.jpg               the same, the other way round
    pets/  pets/v2/  train/train/cat/1.jpg        folders around the whole or around a part do not matter

Top folders that hold folders of the same names, and are no parts by their own names, are refused: each could
be a class or a part.
"""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass, field

from minires.data.parts import PARTS, UNLABELLED, mixed, part_of, parts_of, says_nothing
from minires.data.pictures import listing
from minires.data.sources import pictures_of
from minires.data.tree import Entry
from minires.errors import DataError, counted

ByClass = dict[str, list[Entry]]


@dataclass
class Layout:
    """The pictures of a tree by part and class; the only part is "" where there are no folders for parts.

    ``unlabelled`` has the parts whose pictures stand in no class folder.
    """

    parts: dict[str, ByClass] = field(default_factory=dict)
    unlabelled: dict[str, list[Entry]] = field(default_factory=dict)


def layout(entries: list[Entry], where: str) -> Layout:
    """Sort the entries of a tree by part and class; ``where`` names the tree in messages.

    Raises: DataError when there is no picture, or the folders cannot be told apart; it says which.
    """
    entries = pictures_of(entries, where)
    pictures = [e for e in entries if e.read is not None]
    if not pictures:
        raise DataError(f"{where}: no picture found; expected class/picture.jpg")
    depth = _around(entries, pictures)
    if all(len(e.parts) == depth + 1 for e in pictures):
        return Layout(unlabelled={"": pictures})
    tops: dict[str, list[Entry]] = {}
    for e in pictures:
        tops.setdefault(e.parts[depth], []).append(e)
    known = parts_of(tops)
    nested = {top for top, held in tops.items() if any(len(e.parts) > depth + 2 for e in held)}
    if known.keys() == tops.keys() or known.keys() & nested:
        if extra := sorted(tops.keys() - known.keys()):
            raise DataError(
                f"{where}: {', '.join(extra)} beside {', '.join(sorted(known))}: use either class "
                "folders or train/val/test folders"
            )
        return _parted(entries, known, depth, where)
    if mixed(tops):
        raise DataError(
            f"{where}: {', '.join(sorted(tops)[:6])} are named for parts and classes at once; make folders "
            "in folders of them: train/A, train/B, test/A, test/B"
        )
    if _inside_out(tops, depth):
        return _turned(pictures, depth, where)
    _refuse_alike(tops, depth, where)
    return Layout({"": _by_class(entries, pictures, depth, where)})


def _around(entries: list[Entry], pictures: list[Entry]) -> int:
    """How many folders stand around the whole set."""
    depth = 0
    while True:
        tops = {e.parts[depth] for e in entries if len(e.parts) > depth}
        held = {e.parts[depth] for e in pictures if len(e.parts) > depth}
        below = {e.parts[depth + 1] for e in pictures if len(e.parts) > depth + 2}
        parts_below = {*parts_of(below).values()} - {UNLABELLED}
        if len(held) != 1 or any(len(e.parts) < depth + 3 for e in pictures):
            return depth
        if len(tops) > 1 and not parts_below:  # an empty class folder beside the only other
            return depth
        if part_of(*held) and len(parts_below) < 2:
            return depth
        depth += 1


def _parted(entries: list[Entry], known: dict[str, str], depth: int, where: str) -> Layout:
    found = Layout()
    merged = Counter(known.values())
    for part in (part for part in merged if merged[part] > 1 and part != UNLABELLED):
        same = ", ".join(sorted(top for top in known if known[top] == part))
        warnings.warn(f"{where}: {same} are taken together for the part {part}", stacklevel=2)
    for top in sorted(known, key=lambda top: (known[top] != "train", top)):
        part = known[top]
        of_part = [e for e in entries if len(e.parts) > depth + 1 and e.parts[depth] == top]
        pictures = [e for e in of_part if e.read is not None]
        classes = found.parts.get("train", {})
        level = _inside_part(pictures, top, part, depth + 1, classes)
        if part == UNLABELLED or all(len(e.parts) == level + 1 for e in pictures):
            found.unlabelled.setdefault(part, []).extend(pictures)
            continue
        for name, held in _by_class(of_part, pictures, level, where).items():
            found.parts.setdefault(part, {}).setdefault(name, []).extend(held)
    found.parts = {part: found.parts[part] for part in PARTS if part in found.parts}
    return found


def _inside_part(pictures: list[Entry], top: str, part: str, level: int, classes: ByClass) -> int:
    """The place of the class in the paths of a part: behind the one folder in which all of it stands."""
    while True:
        folders = {e.parts[level] for e in pictures}
        if len(folders) > 1 or any(len(e.parts) < level + 2 for e in pictures):
            return level
        (name,) = folders
        again = name == top or part_of(name) == part or says_nothing(name)
        deep = all(len(e.parts) > level + 2 for e in pictures) and (part == "train" or classes)
        if name in classes or not (again or deep):
            return level
        level += 1


def _inside_out(tops: dict[str, list[Entry]], depth: int) -> bool:
    """Whether each folder holds parts, and these are several: cat/train/1.jpg, cat/test/2.jpg."""
    below = {e.parts[depth + 1] for held in tops.values() for e in held if len(e.parts) > depth + 2}
    known = parts_of(below)
    right_below = all(len(e.parts) == depth + 3 for held in tops.values() for e in held)
    return right_below and known.keys() == below and len({*known.values()} & {*PARTS}) > 1


def _turned(pictures: list[Entry], depth: int, where: str) -> Layout:
    known = parts_of({e.parts[depth + 1] for e in pictures})
    found: dict[str, ByClass] = {}
    for e in pictures:
        found.setdefault(known[e.parts[depth + 1]], {}).setdefault(e.parts[depth], []).append(e)
    warnings.warn(
        f"{where}: each class folder holds {', '.join(sorted(known))}: these are taken for parts",
        stacklevel=2,
    )
    return Layout({part: found[part] for part in PARTS if part in found})


def _refuse_alike(tops: dict[str, list[Entry]], depth: int, where: str) -> None:
    below = {
        top: {e.parts[depth + 1] for e in held}
        for top, held in tops.items()
        if all(len(e.parts) > depth + 2 for e in held)
    }
    times = Counter(name for names in below.values() for name in names)
    shared = {top: {name for name in names if times[name] > 1} for top, names in below.items()}
    alike = [top for top in sorted(shared) if len(shared[top]) > 1]
    for place, one in enumerate(alike):
        for other in alike[place + 1 :]:
            if len(both := sorted(shared[one] & shared[other])) > 1:
                raise DataError(
                    f"{where}: {one} and {other} hold folders of the same names ({', '.join(both[:5])}): are "
                    "these classes, and the two parts? Then name the two train and test. If the two are "
                    "classes, put their pictures right into them"
                )


def _by_class(entries: list[Entry], pictures: list[Entry], level: int, where: str) -> ByClass:
    """Sort a part by class; ``level`` is the place of the class in a path."""
    if loose := [e.name for e in pictures if len(e.parts) < level + 2]:
        raise DataError(listing(f"{where}: {counted(len(loose), 'picture')} outside any class folder", loose))
    found: ByClass = {}
    for e in entries:
        if len(e.parts) > level:
            held = found.setdefault(e.parts[level], [])
            if e.read is not None:
                held.append(e)
    if empty := ["/".join((*_above(entries, level), name)) for name, held in found.items() if not held]:
        raise DataError(listing(f"{where}: class folders with no picture; fill or remove them", empty))
    return found


def _above(entries: list[Entry], level: int) -> tuple[str, ...]:
    return entries[0].parts[max(0, level - 1) : level]

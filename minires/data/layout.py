"""Which of the folders of a tree are parts, which are classes, and which merely stand around them.

    cat/1.jpg  dog/2.jpg                          classes
    train/cat/1.jpg  test/cat/2.jpg               parts with classes, by the names in ``data.parts``
    train/cat/1.jpg  test/2.jpg                   a part whose pictures have no labels
    cat/train/1.jpg  cat/test/2.jpg               the same, the other way round
    pets/  pets/v2/  train/train/cat/1.jpg        folders around the whole or around a part do not matter

    images/cat/1.jpg  lists/all.txt               folders of lists do not matter
    cat/1.jpg  dog/2.jpg  test/3.jpg              classes, and pictures without labels

Class folders that could as well be parts, copies, or folders around the classes are refused, see
:mod:`minires.data.doubts`.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

from minires.data.doubts import belongs, refuse_doubtful
from minires.data.parts import (
    PARTS,
    UNLABELLED,
    UNSORTED,
    is_weak,
    mixed,
    part_of,
    parts_of,
    says_nothing,
    words_of,
)  # fmt: skip
from minires.data.pictures import listing
from minires.data.sources import instead_of_pictures, pictures_of
from minires.data.tree import Entry, not_picture
from minires.errors import DataError, counted

ByClass = dict[str, list[Entry]]


@dataclass
class Layout:
    """The pictures of a tree by part and class; the only part is "" where there are no folders for parts.

    ``unlabelled`` has the parts whose pictures stand in no class folder; ``order`` is that of the classes, if
    it is another than that of their names.
    """

    parts: dict[str, ByClass] = field(default_factory=dict)
    unlabelled: dict[str, list[Entry]] = field(default_factory=dict)
    order: tuple[str, ...] = ()


def layout(entries: list[Entry], where: str) -> Layout:
    """Sort the entries of a tree by part and class; ``where`` names the tree in messages.

    Raises: DataError when there is no picture, or the folders cannot be told apart; it says which.
    """
    found = _sorted(pictures_of(_without_lists(entries, where), where), entries, where)
    found.parts = {part: _named(by_class, where) for part, by_class in found.parts.items()}
    return found


def _named(by_class: ByClass, where: str) -> ByClass:
    """The classes with names without space around them."""
    found: ByClass = {}
    for folder, held in by_class.items():
        if not (name := folder.strip()):
            raise DataError(f"{where}: a class folder is called {folder!r}: give it a name with letters")
        if name in found:
            raise DataError(
                f"{where}: two class folders are called {name!r}, but for the space around ({folder!r}): put "
                "their pictures into one, or give one another name"
            )
        found[name] = held
    return found


def _sorted(entries: list[Entry], everything: list[Entry], where: str) -> Layout:
    pictures = [e for e in entries if e.read is not None]
    if not pictures:
        what = instead_of_pictures(everything)
        raise DataError(f"{where}: no picture found; expected class/picture.jpg{what}")
    depth = _around(entries, pictures)
    if all(len(e.parts) == depth + 1 for e in pictures):
        return Layout(unlabelled={"": pictures})
    tops: dict[str, list[Entry]] = {}
    for e in pictures:
        tops.setdefault(e.parts[depth], []).append(e)
    known = parts_of(tops)
    nested = {top for top, held in tops.items() if any(len(e.parts) > depth + 2 for e in held)}
    if not nested and len(tops) == 1 and says_nothing(*tops):
        return Layout(unlabelled={"": pictures})
    if known.keys() == tops.keys() or (known.keys() & nested and not _weak(known, nested)):
        if extra := sorted(tops.keys() - known.keys()):
            _leave_beside_parts(extra, known, nested, where)
        return _parted(entries, known, depth, where)
    if both := mixed({e.parts[depth] for e in pictures if len(e.parts) > depth + 1}):
        raise DataError(
            f"{where}: {', '.join(both[:6])} are named for parts and classes at once; make folders "
            "in folders of them: train/A, train/B, test/A, test/B"
        )
    if _inside_out(tops, depth):
        return _turned(pictures, depth, where)
    left = {top: part for top, part in known.items() if part != "train" and not is_weak(top)}
    if len(tops) - len(left) < 2:
        left = {}
    labelled = [e for e in pictures if e.parts[depth] not in left]
    found = Layout()
    for top, part in left.items():
        found.unlabelled.setdefault(part, []).extend(tops[top])
    entries = [e for e in entries if len(e.parts) <= depth or e.parts[depth] not in left]
    found.parts[""] = _by_class(entries, labelled, depth, where)
    refuse_doubtful(labelled, depth, where)
    _say_doubtful(tops.keys() - left.keys(), known.keys() - left.keys(), where)
    return found


def _weak(known: dict[str, str], nested: set[str]) -> bool:
    """Whether the folders ``nested`` that hold folders are classes, though names of some may be parts'."""
    parts = known.keys() & nested
    others = nested - known.keys()
    return all(map(is_weak, parts)) and bool(others or len({known[top] for top in parts} & {*PARTS}) < 2)


def _leave_beside_parts(extra: list[str], known: dict[str, str], nested: set[str], where: str) -> None:
    """Leave out the folders ``extra`` beside those of two parts, where no folders of classes are in them.

    Raises: DataError if they do, or there is one part alone: these may be the classes.
    """
    beside = f"{where}: {', '.join(extra)} beside {', '.join(sorted(known))}"
    if nested & {*extra} or len({known[top] for top in known.keys() & nested} & {*PARTS}) < 2:
        raise DataError(
            f"{beside}: use either class folders or train/val/test folders; what is neither, move elsewhere"
        )
    warnings.warn(f"{beside}: the pictures there are of no part and no class, and are left out", stacklevel=3)


def _without_lists(entries: list[Entry], where: str) -> list[Entry]:
    """Leave out folders that hold lists and no pictures, where those beside them hold folders of pictures:
    ``parts/parts.txt`` beside ``images/cat/1.jpg``; without a word ``labels`` beside ``images``.
    """
    lists: set[tuple[str, ...]] = set()
    other: set[tuple[str, ...]] = set()
    around: set[tuple[str, ...]] = set()  # of folders that hold folders of pictures
    for e in entries:
        listed = e.read is not None and not_picture(e.parts[-1])
        if e.read is not None:
            (lists if listed else other).update(e.parts[:k] for k in range(1, len(e.parts)))
            if not listed:
                around.update(e.parts[:k] for k in range(len(e.parts) - 2))
    left = {folder for folder in lists - other if folder[:-1] in around}
    if first := sorted({"/".join(folder) for folder in left if folder[:-1] not in left}):
        shown = ", ".join(first[:5]) + (", ..." if len(first) > 5 else "")
        warnings.warn(f"{where}: folders that hold lists and no picture are left out: {shown}", stacklevel=3)
    for folder in lists - other - left:
        beside = [one[-1] for one in other if one[:-1] == folder[:-1]]
        if beside and all(map(says_nothing, beside)) and belongs(folder[-1], beside):
            left.add(folder)
    return [e for e in entries if not any(e.parts[:k] in left for k in range(1, len(e.parts) + 1))]


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
        by_class = _by_class(of_part, pictures, level, where)
        refuse_doubtful(pictures, level, where)
        for name, held in by_class.items():
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


def _say_doubtful(tops: Collection[str], parts: Collection[str], where: str) -> None:
    """Warn of folders that are taken for classes, though their names say a part, or that they are of none."""
    doubtful = {top for top in tops if {*words_of(top)} & UNSORTED} | {*parts}
    if doubtful:
        beside = ", ".join(sorted({*tops} - doubtful)[:5])
        warnings.warn(
            f"{where}: {', '.join(sorted(doubtful))}, beside {beside}, "
            "is taken for a class by its place; if its pictures are of several classes, move it elsewhere",
            stacklevel=3,
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

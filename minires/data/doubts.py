"""Class folders that are perhaps none: they could as well be parts, copies of the set, or stand around it.

    data/train/cat  data/test/cat  results        the parts are inside: data is no class
    monday/cat  tuesday/cat                       are cat the class, monday and tuesday parts?
    cat  dog  old/cat                             the same pictures again?
    images/cat  images/dog  figures               is images a class?
    images  annotations                           pictures, and what belongs to them
    images_1  images_2                            is a number a class?

All of these are refused, and what to do is said. A folder in which all of a class stands is no matter, nor
are folders of which many pictures stand outside, right in the class. Where folders in a class may be classes,
and are taken as one, it is said.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection

from minires.data.parts import PARTS, fold, part_of, parts_of, says_nothing, words_of
from minires.data.tree import Entry
from minires.errors import DataError, counted

STRAY = 0.25  # so many pictures of a folder may stand outside the folders in it, and yet these be classes
# What belongs to the pictures in a folder beside, and shows no class: the last word of a folder's name.
BELONGING = {
    "masks", "annotation", "annotations", "trimaps", "truth", "groundtruth", "bbox", "segmentation",
    "segmentations",
}  # fmt: skip
PERHAPS_BELONGING = {"mask", "label", "labels", "gt"}  # but where other classes stand beside, a class
# Folders with these words in their names, and else the same but for numbers, are parts of one heap.
HEAPS = {
    "images", "imgs", "pictures", "pics", "photos", "dataset", "folder", "batch", "chunk", "shard",
    "图片", "图像", "圖片", "画像",
}  # fmt: skip
CALL_PARTS = "call parts train, val and test"


def refuse_doubtful(pictures: list[Entry], level: int, where: str) -> None:
    """Refuse class folders that are perhaps none; ``level`` is their place in the path of a picture.

    Raises: DataError that says which, why, and what to do.
    """
    tops: dict[str, list[Entry]] = {}
    for e in pictures:
        tops.setdefault(e.parts[level], []).append(e)
    for above, names in _siblings(pictures, level).items():
        _refuse_belonging(above, names, where)
    _refuse_parts_inside(tops, level, where)
    inner = {top: _inner(held, level) for top, held in tops.items()}
    _refuse_copies(inner, where)
    _refuse_same(tops, inner, level, where)
    _refuse_around(tops, level, where)
    _refuse_heap(tops.keys(), where)
    _say_merged(tops, level, where)


def belongs(name: str, beside: Collection[str]) -> bool:
    """Whether what a folder holds belongs to the pictures in those ``beside`` it: masks beside images.

    >>> belongs("cell_masks", ["cell_images"]), belongs("mask", ["photo"]), belongs("mask", ["photo", "hat"])
    (True, True, False)
    """
    words = words_of(name)
    shared = set.intersection(*({*words_of(one)} for one in (name, *beside)))
    saying = {word for word in shared if not says_nothing(word)}
    bare = [" ".join(word for word in words_of(one) if word not in saying) for one in beside]
    pictures = sum(map(says_nothing, bare))
    if not words or not pictures or words[-1] in saying:
        return False
    own = [word for word in words if word not in saying and not says_nothing(word)]
    if {*own} <= BELONGING | PERHAPS_BELONGING | {"ground"} and words[-1] in BELONGING:
        return True
    return words[-1] in BELONGING | PERHAPS_BELONGING and pictures == len(beside)


def _siblings(pictures: list[Entry], level: int) -> dict[tuple[str, ...], set[str]]:
    """The names of the folders in each folder, from the place ``level`` of a path on."""
    found: dict[tuple[str, ...], set[str]] = {}
    for e in pictures:
        for place in range(level, len(e.parts) - 1):
            found.setdefault(e.parts[:place], set()).add(e.parts[place])
    return found


def _refuse_belonging(above: tuple[str, ...], names: set[str], where: str) -> None:
    for name in sorted(names):
        others = sorted(names - {name})
        if others and belongs(name, others):
            beside = next((other for other in others if says_nothing(other)), others[0])
            raise DataError(
                f"{where}: {'/'.join((*above, name))} stands beside {beside}: what it holds seems to "
                "belong to the pictures there, and to show no class of its own. Move it elsewhere, or give "
                "the path of a folder of classes; if it is a class, give its folder another name"
            )


def _refuse_parts_inside(tops: dict[str, list[Entry]], level: int, where: str) -> None:
    for top, held in tops.items():
        for above, names in _siblings(held, level + 1).items():
            known = parts_of(names)
            if len({*known.values()} & {*PARTS}) > 1:
                inside, others = ", ".join(sorted(known)), ", ".join(sorted(tops.keys() - {top})[:5])
                raise DataError(
                    f"{where}: {'/'.join(above)} holds {inside}, which are named like parts"
                    + (f", and {top} stands beside {others}" if others else "")
                    + f": is {top} a class? If not, give its path alone; if it is, call these folders by "
                    "other names"
                )


def _refuse_copies(inner: dict[str, dict[str, bool]], where: str) -> None:
    folded = {fold(top): top for top in inner}
    everywhere = set.intersection(*(set(names) for names in inner.values()))
    for top, names in inner.items():
        if inside := sorted(names.keys() & folded.keys() - everywhere - {fold(top)}):
            raise DataError(
                f"{where}: {top} holds folders with the names of those beside it "
                f"({', '.join(folded[name] for name in inside[:5])}): is it a class, or does it hold the "
                "same pictures again? Remove it, or give its path alone"
            )


def _nested(held: list[Entry], level: int) -> bool:
    """Whether the pictures of a folder stand in folders in it, but for a few that stray."""
    loose = sum(len(e.parts) == level + 2 for e in held)
    return loose < len(held) and loose <= max(1, STRAY * len(held))


def _refuse_same(
    tops: dict[str, list[Entry]], inner: dict[str, dict[str, bool]], level: int, where: str
) -> None:
    holders: dict[str, list[str]] = {}
    for top, held in tops.items():
        for name in inner[top] if _nested(held, level) else ():
            holders.setdefault(name, []).append(top)
    for name, (one, *others) in sorted(holders.items()):
        alike = [other for other in others if inner[one][name] or inner[other][name]]
        if alike:
            both = [name for name in inner[one] if name in inner[alike[0]]]
            raise DataError(
                f"{where}: {one} and {alike[0]} hold folders of the same names ({', '.join(both[:5])}): are "
                f"these the classes? Then give the path of one, or {CALL_PARTS}; if {one} and {alike[0]} are "
                "classes, put their pictures right into them"
            )


def _refuse_around(tops: dict[str, list[Entry]], level: int, where: str) -> None:
    """Refuse one folder of folders beside one of pictures, and a folder of folders whose name is no class."""
    nested = sorted(top for top, held in tops.items() if _nested(held, level))
    for top in nested:
        inside = sorted({e.parts[level + 1] for e in tops[top] if len(e.parts) > level + 2})
        beside = sorted(tops.keys() - {top})
        no_class = says_nothing(top) or part_of(top) == "train"
        if len(inside) > 1 and beside and (no_class or (len(beside) == 1 and beside[0] not in nested)):
            shown = "/".join(tops[top][0].parts[: level + 1])
            raise DataError(
                f"{where}: {shown} holds folders ({', '.join(inside[:5])}) and stands beside "
                f"{', '.join(beside[:5])}: are the folders in it the classes? Then give its path alone, or "
                f"{CALL_PARTS}; if {top} is a class, put its pictures right into it"
            )


def _refuse_heap(tops: Collection[str], where: str) -> None:
    """Refuse folders of which only numbers tell one from another, where their names say nothing else."""
    bare = {" ".join(re.sub(r"\d+$", "", word) for word in words_of(top)) for top in tops}
    words = bare.copy().pop()
    if len(tops) > 1 and len(bare) == 1 and (says_nothing(words) or {*words.split()} & HEAPS):
        shown = ", ".join(sorted(tops)[:3]) + (", ..." if len(tops) > 3 else "")
        raise DataError(
            f"{where}: of {shown} only the numbers differ: are these parts of one heap of pictures? Then "
            "make a folder for each class, class/picture.jpg; if they are classes, call their folders by "
            "other names"
        )


def _say_merged(tops: dict[str, list[Entry]], level: int, where: str) -> None:
    """Warn where folders in a class, however deep, are not told apart; those that say nothing, or the name
    of the class again, do not count."""
    merged = []
    for top, held in sorted(tops.items()):
        saying = {
            tuple(n for n in e.parts[level + 1 : -1] if not says_nothing(n) and fold(n) != fold(top))
            for e in held
        }
        if len(saying) > 1 or (says_nothing(top) and any(saying)):
            shown = ", ".join(sorted("/".join(names) for names in saying if names)[:3])
            merged.append(f"{'/'.join(held[0].parts[: level + 1])} ({shown}) is of the class {top}")
    if merged:
        count = len(merged) - 1
        more = f"; the same in {counted(count, 'other class', 'other classes')}" if count else ""
        warnings.warn(
            f"{where}: folders in class folders are not told apart: all in {merged[0]}{more}", stacklevel=4
        )


def _inner(held: list[Entry], level: int) -> dict[str, bool]:
    """The names of the folders in a class folder, however deep, and whether others stand beside each."""
    found: dict[str, bool] = {}
    for names in _siblings(held, level + 1).values():
        saying = {fold(name) for name in names if not says_nothing(name)}
        for name in sorted(saying):
            found[name] = found.get(name, False) or len(saying) > 1
    return found

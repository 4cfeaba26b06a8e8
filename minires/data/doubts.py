"""Class folders that are perhaps none: they could as well be parts, copies of the set, or stand around it.

    data/train/cat  data/test/cat  results        the parts are inside: data is no class
    monday/cat  tuesday/cat                       are cat the class, monday and tuesday parts?
    cat  dog  old/cat                             the same pictures again?
    images/cat  images/dog  figures               is images a class?
    images  annotations                           pictures, and what belongs to them

All of these are refused, and what to do is said. A folder in which all of a class stands is no matter, nor
are folders of which many pictures stand outside, right in the class.
"""

from __future__ import annotations

import warnings

from minires.data.parts import PARTS, fold, parts_of, says_nothing, words_of
from minires.data.tree import Entry
from minires.errors import DataError, counted

STRAY = 0.25  # so many pictures of a folder may stand outside the folders in it, and yet these be classes
# Pictures that belong to those in a folder beside theirs, and show no class.
BELONGING = {
    "masks", "annotation", "annotations", "trimaps", "ground truth", "groundtruth", "gt", "bbox",
    "segmentation", "segmentations", "label", "labels",
}  # fmt: skip


def refuse_doubtful(pictures: list[Entry], level: int, where: str) -> None:
    """Refuse class folders that are perhaps none; ``level`` is their place in the path of a picture.

    Raises: DataError that says which, why, and what to do.
    """
    tops: dict[str, list[Entry]] = {}
    for e in pictures:
        tops.setdefault(e.parts[level], []).append(e)
    _refuse_belonging(pictures, level, where)
    _refuse_parts_inside(tops, level, where)
    inner = {top: _inner(held, level) for top, held in tops.items()}
    _refuse_copies(inner, where)
    _refuse_same(tops, inner, level, where)
    _refuse_around(tops, level, where)


def _siblings(pictures: list[Entry], level: int) -> dict[tuple[str, ...], set[str]]:
    """The names of the folders in each folder, from the place ``level`` of a path on."""
    found: dict[tuple[str, ...], set[str]] = {}
    for e in pictures:
        for place in range(level, len(e.parts) - 1):
            found.setdefault(e.parts[:place], set()).add(e.parts[place])
    return found


def _refuse_belonging(pictures: list[Entry], level: int, where: str) -> None:
    for above, names in _siblings(pictures, level).items():
        belonging = sorted(name for name in names if " ".join(words_of(name)) in BELONGING)
        others = sorted(name for name in names - {*belonging} if says_nothing(name))
        if belonging and others:
            shown = "/".join((*above, belonging[0]))
            raise DataError(
                f"{where}: {shown} stands beside {others[0]}: its pictures seem to belong to those there, "
                "and show no class of their own. Move it elsewhere, or give the path of a folder of classes"
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


def _refuse_same(
    tops: dict[str, list[Entry]], inner: dict[str, dict[str, bool]], level: int, where: str
) -> None:
    holders: dict[str, list[str]] = {}
    for top, held in tops.items():
        loose = sum(len(e.parts) == level + 2 for e in held)
        for name in inner[top] if loose <= max(1, STRAY * len(held)) else ():
            holders.setdefault(name, []).append(top)
    for name, (one, *others) in sorted(holders.items()):
        alike = [other for other in others if inner[one][name] or inner[other][name]]
        if alike:
            both = [name for name in inner[one] if name in inner[alike[0]]]
            raise DataError(
                f"{where}: {one} and {alike[0]} hold folders of the same names ({', '.join(both[:5])}): are "
                "these classes, and the two parts? Then name the two train and test, or give the path of "
                "one; if they are classes, put their pictures right into them"
            )


def _refuse_around(tops: dict[str, list[Entry]], level: int, where: str) -> None:
    """Refuse one folder of folders beside one of pictures, and a folder of folders whose name is no class;
    say which folders are not told apart."""
    inside = {t: {e.parts[level + 1] for e in held if len(e.parts) > level + 2} for t, held in tops.items()}
    loose = {top for top, held in tops.items() if any(len(e.parts) < level + 3 for e in held)}
    nested = sorted(tops.keys() - loose)
    for top in nested:
        beside = sorted(tops.keys() - {top})
        if len(inside[top]) < 2 or not beside:
            continue
        held, others = ", ".join(sorted(inside[top])[:5]), ", ".join(beside[:5])
        shown = f"{where}: {top} holds folders ({held}) and stands beside {others}"
        if says_nothing(top) or (len(beside) == 1 and not inside[beside[0]]):
            raise DataError(
                f"{shown}: are the folders in it the classes? Then give its path alone, or name the two "
                f"train and test; if {top} is a class, put its pictures right into it"
            )


    saying = {top: sorted(name for name in inside[top] if not says_nothing(name)) for top in nested}
    merged = [top for top, names in saying.items() if names and (names[1:] or names != saying[nested[0]])]
    if merged:
        held, count = ", ".join(saying[merged[0]][:3]), len(merged) - 1
        more = f"; the same in {counted(count, 'other class', 'other classes')}" if count else ""
        warnings.warn(
            f"{where}: folders in class folders are not told apart: all in {merged[0]} ({held}) is of the "
            f"class {merged[0]}{more}",
            stacklevel=4,
        )


def _inner(held: list[Entry], level: int) -> dict[str, bool]:
    """The names of the folders in a class folder, however deep, and whether others stand beside each."""
    found: dict[str, bool] = {}
    for names in _siblings(held, level + 1).values():
        saying = {fold(name) for name in names if not says_nothing(name)}
        for name in sorted(saying):
            found[name] = found.get(name, False) or len(saying) > 1
    return found

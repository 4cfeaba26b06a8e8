"""Picture folders, ``class/picture.jpg``, on disk or in a zip or tar, with or without folders for parts.

    cat/1.jpg  dog/2.jpg                      split into train, val and test by seed (64 : 16 : 20)
    train/cat/1.jpg  test/cat/2.jpg           val is split off train by seed (80 : 20)
    train/cat/1.jpg  val/...  test/...        as they stand
    train/cat/1.jpg  test/2.jpg               the test pictures have no labels: a test part is split off train

Which folders are parts, and which classes, is told by :mod:`minires.data.layout`; what is read, by
:mod:`minires.data.sources` and :mod:`minires.data.pictures`.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable, Collection
from functools import partial
from pathlib import PurePath

import numpy as np

from minires.data.dataset import Dataset, Splits
from minires.data.layout import ByClass, Layout, layout
from minires.data.opening import of_set
from minires.data.parts import PARTS, UNLABELLED, matching, part_of
from minires.data.pictures import Decode, decode_all
from minires.data.tree import Entry
from minires.errors import DataError, counted


def split_up(
    entries: list[Entry],
    *,
    size: int | None,
    seed: int,
    name: str,
    where: str,
    train_share: float = 0.8,
    decode: Decode = decode_all,
    found: Layout | None = None,
) -> Splits:
    """Turn the entries of a tree into train, val and test; ``where`` names the tree in messages.

    ``found`` is what is known of their parts and classes already. Pictures are resized as in
    ``pictures.decode``; without ``size`` all must have one size. Where there is no val part, ``train_share``
    of the training pictures stay and the others validate.

    Raises: DataError naming an empty set, a class folder with no picture, pictures outside any class folder,
    every unreadable picture, a damaged archive, or classes that only the val or test part has.
    """
    shards, found = found is not None, found or layout(entries, where)
    decode = of_set(decode, _count(found))
    read = partial(_dataset, size=size, name=name, where=where, decode=decode, order=found.order)
    source = f"{name} ({'shards' if shards else 'picture folders'} at {where})"
    if "" in found.parts:
        whole = read(found.parts[""], None)
        _say_left_out(found.unlabelled, (), where, beside_classes=True)
        rest, test = whole.split(0.8, seed=seed)
        train, val = rest.split(train_share, seed=seed)
        return Splits(train, val, test, source)
    if "train" not in found.parts:
        if not found.parts:
            raise DataError(no_labels(found, entries, where))
        there = "/, ".join(found.parts)
        raise DataError(
            f"{where}: there is a folder {there}/ but no train/; only `minires evaluate` can use it"
        )
    train = read(found.parts["train"], None)
    other = {part: read(found.parts[part], train.classes) for part in found.parts if part != "train"}
    for part in other.values():
        if part.images.shape[1:] != train.images.shape[1:]:
            raise DataError(
                f"{where}: pictures differ in size: {train.names[0]} is {train.images.shape[1:3]}, "
                f"{part.names[0]} is {part.images.shape[1:3]} (height, width); give a size, such as size=64"
            )
    _say_left_out(found.unlabelled, other, where)
    if "test" not in other:
        train, other["test"] = train.split(0.8, seed=seed)
    if "val" not in other:
        train, other["val"] = train.split(train_share, seed=seed)
    return Splits(train, other["val"], other["test"], source)


def parts(
    entries: list[Entry],
    *,
    size: int | None,
    name: str,
    where: str,
    decode: Decode = decode_all,
    found: Layout | None = None,
) -> dict[str, Callable[[], Dataset]]:
    """The labelled parts of a tree as they stand, each to be read by a call; "" where it has no parts.

    Raises: DataError as ``split_up``; where no picture has a label, it says what can be done with them.
    """
    found = found or layout(entries, where)
    if not found.parts:
        raise DataError(no_labels(found, entries, where))
    _say_left_out(found.unlabelled, PARTS, where)
    decode = of_set(decode, _count(found))
    read = partial(_dataset, size=size, name=name, where=where, decode=decode, least=1, order=found.order)
    return {part: partial(read, by_class, None) for part, by_class in found.parts.items()}


def _count(found: Layout) -> int:
    return sum(len(held) for by_class in found.parts.values() for held in by_class.values())


def _say_left_out(
    unlabelled: dict[str, list[Entry]],
    labelled: Collection[str],
    where: str,
    *,
    beside_classes: bool = False,
) -> None:
    for part, held in unlabelled.items():
        have = "has no label and is left out" if len(held) == 1 else "have no labels and are left out"
        other_way = part == UNLABELLED or part in labelled
        warnings.warn(
            f"{where}: {counted(len(held), f'{part} picture')} {have}"
            + ("" if other_way else f"; a part {part} is split off train")
            + ". `minires predict` says what is on them"
            + "; if they are a class, give their folder another name" * beside_classes,
            stacklevel=4,
        )


def no_labels(found: Layout, entries: list[Entry], where: str) -> str:
    """Say that the pictures of a tree have no labels, what is not read as such, and what to do."""
    without = [(part, found.unlabelled[part]) for part in PARTS if part in found.unlabelled]
    flat = ", ".join(f"{_folder(held, part)}/" for part, held in without)
    words = [
        f"{where}: the pictures{flat and ' in '}{flat} have no labels: they stand in no class folders. Put "
        "them into a folder for each class, class/picture.jpg"
    ]
    files = [e for e in entries if e.read is not None]
    if listed := next((e.name for e in files if _is_list(e.parts[-1])), ""):
        words.append(
            f"labels in lists, such as {listed}, are not read: where the set was exported, choose folders of "
            "classes (often called classification, or folder structure)"
        )
    names = [e.name for held in found.unlabelled.values() for e in held]
    if spoken := _named_for_classes(names):
        words.append(f"names of files, such as {spoken}, are not taken for labels")
    words.append("`minires predict` says what is on pictures without labels")
    return "; ".join(words)


def _folder(held: list[Entry], part: str) -> str:
    """What the folder of a part is called."""
    return next((name for name in held[0].parts[:-1] if part_of(name) == part), part)


def _is_list(name: str) -> bool:
    path = PurePath(name)
    known = path.suffix.lower() in (".csv", ".tsv", ".json", ".jsonl", ".xml", ".txt", ".yaml", ".yml")
    return known and not path.name.lower().startswith("readme")


def _named_for_classes(names: list[str]) -> str:
    """The first of the names if they are a few words with numbers, cat.0.jpg and dog.0.jpg; else ""."""
    found = [re.match(r"([^\W\d_]+)[\W_]*\d+", PurePath(name).name) for name in names]
    times = Counter(match[1].casefold() for match in found if match)
    several = len(times) > 1 and min(times.values()) > 1 and all(found)
    return PurePath(names[0]).name if several else ""


def _dataset(
    by_class: ByClass,
    classes: tuple[str, ...] | None,
    *,
    size: int | None,
    name: str,
    where: str,
    decode: Decode = decode_all,
    least: int = 2,
    order: tuple[str, ...] = (),
) -> Dataset:
    if classes is None:
        classes = tuple(label for label in order if label in by_class) or tuple(sorted(by_class))
    known = matching(by_class, classes)
    if unknown := sorted(by_class.keys() - known.keys()):
        raise DataError(
            f"{where}: classes {', '.join(unknown)} do not occur in train/ ({', '.join(classes)})"
        )
    if len(classes) < least:
        raise DataError(
            f"{where}: only one class, {classes[0]}; expected a folder per class, class/picture.jpg"
        )
    held: dict[str, list[Entry]] = {}
    for label, entries in by_class.items():
        held.setdefault(known[label], []).extend(entries)
    chosen = [(k, e) for k, label in enumerate(classes) for e in held.get(label, [])]
    names = tuple(e.name for _, e in chosen)
    images = decode(
        [(n, e.read) for n, (_, e) in zip(names, chosen, strict=True) if e.read], size=size, where=where
    )
    labels = np.array([k for k, _ in chosen], dtype=np.int64)
    return Dataset(images, labels, classes, names, name)

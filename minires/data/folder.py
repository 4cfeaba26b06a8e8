"""Picture folders, ``class/picture.jpg``, on disk or in a zip, with or without train and test folders.

Layouts read, with or without one folder around them:

    cat/1.jpg  dog/2.jpg                      split into train, val and test by seed (64 : 16 : 20)
    train/cat/1.jpg  test/cat/2.jpg           val is split off train by seed (80 : 20)
    train/cat/1.jpg  val/...  test/...        as they stand

Files of a zip are read in memory and never unpacked, so a member's path can do no harm.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from minires.data.dataset import Dataset, Splits
from minires.data.pictures import decode_all, listing
from minires.data.sources import entries as entries_at
from minires.data.sources import pictures_of
from minires.data.tree import Entry
from minires.errors import DataError

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


def read(path: Path, *, size: int | None = None, seed: int = 0) -> Splits:
    """Read a picture folder or a zip of one.

    Pictures are resized as in ``pictures.decode``; without ``size`` all must have one size.

    Raises: DataError naming an empty set, a class folder with no picture, pictures outside any class
    folder, every unreadable picture, a damaged zip, or classes that only the test part has.
    """
    return split_up(
        entries_at(path),
        size=size,
        seed=seed,
        name=path.stem if path.is_file() else path.resolve().name,
        where=str(path),
    )


def split_up(
    entries: list[Entry],
    *,
    size: int | None,
    seed: int,
    name: str,
    where: str,
    train_share: float = 0.8,
) -> Splits:
    """Turn the entries of a tree into train, val and test; ``where`` names the tree in messages.

    Where there is no val part, ``train_share`` of the training pictures stay and the others validate.

    Raises: DataError, as ``read``.
    """
    tree = _classes_by_part(entries, where)
    source = f"{name} (picture folders at {where})"
    if "" in tree:
        whole = _dataset(tree[""], None, size=size, name=name, where=where)
        rest, test = whole.split(0.8, seed=seed)
        train, val = rest.split(train_share, seed=seed)
        return Splits(train, val, test, source)
    if "train" not in tree:
        raise DataError(f"{where}: there is a folder {'/, '.join(tree)}/ but no train/")
    train = _dataset(tree["train"], None, size=size, name=name, where=where)
    other = {
        part: _dataset(tree[part], train.classes, size=size, name=name, where=where)
        for part in ("val", "test")
        if part in tree
    }
    for part in other.values():
        if part.images.shape[1:] != train.images.shape[1:]:
            raise DataError(
                f"{where}: pictures differ in size: {train.names[0]} is {train.images.shape[1:3]}, "
                f"{part.names[0]} is {part.images.shape[1:3]} (height, width); give a size, such as size=64"
            )
    if "test" not in other:
        train, other["test"] = train.split(0.8, seed=seed)
    if "val" not in other:
        train, other["val"] = train.split(train_share, seed=seed)
    return Splits(train, other["val"], other["test"], source)


def _classes_by_part(entries: list[Entry], where: str) -> dict[str, dict[str, list[Entry]]]:
    """Sort pictures into {part: {class: entries}}; the only part is "" where there are no split folders."""
    entries = pictures_of(entries, where)
    depth = 0
    while True:  # step into folders that stand around the whole set
        tops = {e.parts[depth] for e in entries if len(e.parts) > depth}
        pictures = [e for e in entries if e.read is not None]
        if not pictures:
            raise DataError(f"{where}: no picture found; expected class/picture.jpg")
        alone = len(tops) == 1 and not tops & SPLIT_NAMES.keys()
        if not alone or any(len(e.parts) < depth + 3 for e in pictures):
            break
        depth += 1
    parted = any(len(e.parts) > depth + 2 and e.parts[depth] in SPLIT_NAMES for e in pictures)
    if parted and (extra := sorted(tops - SPLIT_NAMES.keys())):
        raise DataError(
            f"{where}: {', '.join(extra)} beside {', '.join(sorted(tops - {*extra}))}: use either class "
            "folders or train/val/test folders"
        )
    level = depth + 1 if parted else depth  # the place of the class in a path
    loose = ["/".join(e.parts) for e in pictures if len(e.parts) < level + 2]
    if loose:
        raise DataError(listing(f"{where}: {len(loose)} pictures outside any class folder", loose))
    tree: dict[str, dict[str, list[Entry]]] = {}
    for e in entries:
        if len(e.parts) > level:
            part = SPLIT_NAMES[e.parts[depth]] if parted else ""
            found = tree.setdefault(part, {}).setdefault(e.parts[level], [])
            if e.read is not None:
                found.append(e)
    empty = [f"{part}/{k}".lstrip("/") for part, of in tree.items() for k, found in of.items() if not found]
    if empty:
        raise DataError(listing(f"{where}: class folders with no picture; fill or remove them", empty))
    return tree


def _dataset(
    by_class: dict[str, list[Entry]],
    classes: tuple[str, ...] | None,
    *,
    size: int | None,
    name: str,
    where: str,
) -> Dataset:
    if classes is None:
        classes = tuple(sorted(by_class))
    if unknown := sorted(by_class.keys() - set(classes)):
        raise DataError(
            f"{where}: classes {', '.join(unknown)} do not occur in train/ ({', '.join(classes)})"
        )
    if len(classes) < 2:
        raise DataError(
            f"{where}: only one class, {classes[0]}; expected a folder per class, class/picture.jpg"
        )
    chosen = [(k, e) for k, label in enumerate(classes) for e in by_class.get(label, [])]
    names = tuple("/".join(e.parts) for _, e in chosen)
    images = decode_all(
        [(n, e.read) for n, (_, e) in zip(names, chosen, strict=True) if e.read], size=size, where=where
    )
    labels = np.array([k for k, _ in chosen], dtype=np.int64)
    return Dataset(images, labels, classes, names, name)

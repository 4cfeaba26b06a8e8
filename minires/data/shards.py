"""WebDataset's shards: tars in which KEY.jpg stands beside KEY.cls or KEY.json, which holds its label.

    shards/000000.tar  shards/000001.tar          split into train, val and test by seed, as a picture folder
    set-train-000.tar  set-val-000.tar            parts by the names of the tars,
    train/000.tar      val/000.tar                or of the folders that they stand in
    shards/set-train-{000000..001023}.tar         a path may be a pattern: these tars, and no others

A label is a number, or the name of a class. Names of numbered classes are read from ``classes.txt`` (a name
in each line) or ``classes.json`` (a list, or numbers and names) beside the tars; else the numbers are the
names. The pictures are read where they lie, by several threads: a shard must not be compressed as a whole.
"""

from __future__ import annotations

import itertools
import json
import re
import tarfile
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath
from typing import Any

from minires.data import archives, class_names, tree
from minires.data.layout import Layout
from minires.data.parts import PARTS, part_of, parts_of
from minires.data.pictures import listing
from minires.data.tree import Entry
from minires.errors import DataError, counted
from minires.limits import regular_file

CLASS_FILES = ("classes.txt", "classnames.txt", "classes.json", "class_names.json")
LABELS = ("label", "cls", "class", "class_name")  # in KEY.json
LONGEST = 64 * 2**20  # bytes of a file of class names
MOST = 100_000  # shards that a pattern stands for
_LOOKED_AT = 20  # members by which a shard is known
_BRACES = re.compile(r"\{([^{}]*)\}")


def is_pattern(path: Path) -> bool:
    """Whether a path is a pattern of shards, with braces, and no file or folder.

    >>> is_pattern(Path("set-{000..009}.tar")), is_pattern(Path("set.tar"))
    (True, False)
    """
    return _BRACES.search(path.name) is not None and not path.exists()


def expanded(pattern: Path) -> list[Path]:
    """The paths for which a pattern stands: of ``{000..012}`` each number, of ``{a,b}`` each word.

    >>> [path.name for path in expanded(Path("set-{08..10}.tar"))]
    ['set-08.tar', 'set-09.tar', 'set-10.tar']

    Raises: DataError for too many, or one that is not there.
    """
    pieces = _BRACES.split(pattern.name)  # text, what stands in braces, text, ...
    choices = [_choices(piece) if at % 2 else [piece] for at, piece in enumerate(pieces)]
    count = 1
    for choice in choices:
        count *= len(choice)
    if count > MOST:
        raise DataError(f"{pattern}: this stands for {count:,} files, the limit is {MOST:,}")
    return [pattern.parent / "".join(chosen) for chosen in itertools.product(*choices)]


def _choices(inside: str) -> Sequence[str]:
    if ends := re.fullmatch(r"(\d{1,9})\.\.(\d{1,9})", inside):
        first, last = ends.groups()
        return [str(n).zfill(len(first)) for n in range(int(first), min(int(last), int(first) + MOST) + 1)]
    return inside.split(",")


def at_pattern(pattern: Path) -> Layout:
    """The pictures in the shards for which a pattern stands, by part and class.

    Raises: DataError if one is not there, or as :func:`among`.
    """
    paths = expanded(pattern)
    if missing := [path.name for path in paths if not path.exists()]:
        raise DataError(listing(f"{pattern}: {len(missing)} of {len(paths)} shards are not there", missing))
    if not paths:
        raise DataError(f"{pattern}: this stands for no file; write {{000..009}}")
    beside = [path for name in CLASS_FILES if (path := pattern.parent / name).is_file()]
    return _sorted([(path.name, path) for path in paths], beside, str(pattern))


def among(path: Path, files: list[Entry]) -> Layout | None:
    """The pictures in shards by part and class, where ``files``, those at a path, are shards, or members of
    one; None if they are not.

    Raises: DataError for a shard that is compressed or damaged, and for pictures without a label.
    """
    held = [entry for entry in files if entry.read is not None]
    if path.is_file():
        keys = {_key(entry)[0] for entry in held if _key(entry)[1] == "cls"}
        pictures = [entry for entry in held if tree.is_picture(entry.parts[-1])]
        if not pictures or any(_key(entry)[0] not in keys for entry in pictures):
            return None
        return _by_class({"": [(path.name, held)]}, [], str(path))
    tars = [entry for entry in held if entry.parts[-1].lower().endswith(".tar")]
    others = len(held) - len(tars) - sum(tree.not_picture(entry.parts[-1]) for entry in held)
    if not tars or others or any(len(entry.parts) > 2 for entry in tars):
        return None
    paths = [(entry.name, path.joinpath(*entry.parts)) for entry in tars]
    if not _is_shard(paths[0][1]):
        return None
    named = [entry for entry in held if entry.parts[-1].lower() in CLASS_FILES]
    beside = [path.joinpath(*entry.parts) for entry in sorted(named, key=lambda one: len(one.parts))]
    return _sorted(paths, beside, str(path))


def _is_shard(path: Path) -> bool:
    try:
        with tarfile.open(path, "r:") as archive:
            names = [member.name for member in itertools.islice(archive, _LOOKED_AT)]
    except (tarfile.TarError, OSError, EOFError):
        return archives.is_compressed(path)  # and is refused as such
    return any(PurePath(name).name.partition(".")[2].lower() in ("cls", "json") for name in names)


def _sorted(named: list[tuple[str, Path]], beside: list[Path], where: str) -> Layout:
    """The pictures in tars, whose names say to which part each belongs."""
    folders = {name: part_of(name.split("/")[0]) for name, _ in named if "/" in name}
    known = {**parts_of(PurePath(name).stem for name, _ in named if "/" not in name)}
    parts: dict[str, list[tuple[str, list[Entry]]]] = {}
    for name, path in named:
        part = (folders.get(name) if "/" in name else known.get(PurePath(name).stem)) or ""
        if archives.is_compressed(path):
            raise DataError(
                f"{path}: this shard is compressed, and pictures are read from shards where they lie; unpack "
                "it to a plain tar first (pictures are compressed already): gunzip, for example"
            )
        parts.setdefault(part, []).append((name, archives.in_tar(path, reopen=True)))
    if "" in parts and len(parts) > 1:
        raise DataError(
            f"{where}: {parts[''][0][0]} beside {', '.join(sorted(parts.keys() - {''}))} shards: of which "
            "part is it? Name it for one, or give a pattern: set-train-{000..099}.tar"
        )
    return _by_class({part: parts[part] for part in ("", *PARTS) if part in parts}, beside, where)


def _by_class(
    parts: dict[str, list[tuple[str, list[Entry]]]], beside: list[Path], where: str
) -> Layout:
    # a label may be one of another part, too: the names are those of all
    labelled = {
        part: [one for shard in shards for one in _samples(*shard, where)] for part, shards in parts.items()
    }
    labels = {label for held in labelled.values() for label, _ in held}
    if not labels:
        raise DataError(f"{where}: no picture found in these shards; expected KEY.jpg beside KEY.cls")
    names, order = _names(labels, beside, where)
    found = Layout(order=order)
    for part, held in labelled.items():
        for label, entry in held:
            found.parts.setdefault(part, {}).setdefault(names[label], []).append(entry)
    return found


def _samples(shard: str, entries: Iterable[Entry], where: str) -> list[tuple[str, Entry]]:
    """The pictures of a shard with their labels."""
    samples: dict[str, dict[str, Entry]] = {}
    for entry in entries:
        if entry.read is not None:
            key, ending = _key(entry)
            samples.setdefault(key, {})[ending] = entry
    found, without, alone = [], [], 0
    for key, held in samples.items():
        pictures = [entry for entry in held.values() if tree.is_picture(entry.parts[-1])]
        if not pictures:
            alone += 1
            continue
        if len(pictures) > 1:
            both = " and ".join(entry.name for entry in pictures)
            raise DataError(f"{where}: {shard}/{key} has several pictures: {both}; keep one")
        label = _label(held, f"{shard}/{key}", where)
        if label is None:
            without.append(f"{shard}/{pictures[0].name}")
            continue
        found.append((label, Entry((*shard.split("/"), *pictures[0].parts), pictures[0].read)))
    if without:
        what = f"{counted(len(without), 'picture')} without a label: neither KEY.cls nor KEY.json is beside"
        raise DataError(listing(f"{where}: {what}", without))
    if alone:
        warnings.warn(f"{where}: {shard}: {counted(alone, 'key')} without a picture left out", stacklevel=2)
    return found


def _key(entry: Entry) -> tuple[str, str]:
    """The key of a sample and what stands behind it, as WebDataset has them: up to the first point."""
    stem, _, ending = entry.parts[-1].partition(".")
    return "/".join((*entry.parts[:-1], stem)), ending.lower()


def _label(held: dict[str, Entry], key: str, where: str) -> str | None:
    """The label of a sample as text; None if there is none."""
    if (told := held.get("cls")) is not None and told.read is not None:
        text = told.read().decode("utf-8", "replace").strip()
        if not text or "\n" in text or len(text) > 1000:
            raise DataError(f"{where}: {key}.cls must hold a number or a name, not {text[:50]!r}")
        return text
    if (told := held.get("json")) is None or told.read is None:
        return None
    try:
        content: Any = json.loads(told.read())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: {key}.json is no JSON: {error}") from error
    if isinstance(content, dict):
        name = next((one for one in LABELS if one in content), None)
        if name is None:
            raise DataError(f"{where}: {key}.json says no label; expected {' or '.join(LABELS)} in it")
        content = content[name]
    if isinstance(content, bool) or not isinstance(content, int | str) or not str(content).strip():
        raise DataError(f"{where}: {key}.json: a label is a number or a name, not {str(content)[:50]!r}")
    return str(content).strip()


def _names(labels: set[str], beside: list[Path], where: str) -> tuple[dict[str, str], tuple[str, ...]]:
    """The name of the class of each label, and all names in the order of the classes."""
    if not all(re.fullmatch(r"\d{1,9}", label) for label in labels):
        return {label: label for label in labels}, tuple(sorted(labels))
    numbers = sorted({int(label) for label in labels})
    if not beside:
        return {label: str(int(label)) for label in labels}, tuple(map(str, numbers))
    known = _class_names(beside[0])
    if beyond := [number for number in numbers if number not in known]:
        raise DataError(
            f"{where}: the label {beyond[0]} has no name in {beside[0]}, which names {len(known)} classes, "
            f"{min(known, default=0)} to {max(known, default=0)}"
        )
    return {label: known[int(label)] for label in labels}, tuple(known[number] for number in sorted(known))


def _class_names(path: Path) -> dict[int, str]:
    """The names of numbered classes. Raises: DataError if there are none, or two classes have one."""
    if regular_file(path, DataError) > LONGEST:
        raise DataError(f"{path}: too large for a list of class names")
    text = path.read_bytes().decode("utf-8-sig", "replace")
    if path.suffix.lower() == ".txt":
        found = dict(enumerate(text.splitlines()))
    else:
        found = _of_json(path, text)
    known = dict(zip(found, class_names.stripped(found.values(), path), strict=True))
    numbers: dict[str, int] = {}
    for number, name in known.items():
        if name in numbers:
            raise DataError(f"{path}: classes {numbers[name]} and {number} are both called {name}")
        numbers[name] = number
    return known


def _of_json(path: Path, text: str) -> dict[int, str]:
    wanted = 'a list of names, or {"0": "tench", ...}'
    try:
        content = json.loads(text)
        if isinstance(content, list):
            content = dict(enumerate(content))
        if all(type(value) is int for value in content.values()):  # {"tench": 0}
            content = {number: name for name, number in content.items()}
        named = [(int(number), name) for number, name in content.items()]
        found = {number: name[-1] if isinstance(name, list) else name for number, name in named}
    except (ValueError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise DataError(f"{path}: expected {wanted}: {error}") from error
    if not all(isinstance(name, str) for name in found.values()):
        raise DataError(f"{path}: expected {wanted}")
    return found

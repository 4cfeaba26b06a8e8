"""Data sets: ``load("signs")``, ``load("hands")``, ``load("cifar10")``, or any picture folder, zip or tar.

A data set of your own gets a name with :func:`register`, and is then loaded and trained on by it.
"""

from __future__ import annotations

import inspect
import itertools
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from minires.data import augment, cifar, hands, shards, signs, twins
from minires.data.at_path import Tree, is_tree
from minires.data.augment import Compose, Normalize, build
from minires.data.checking import Checked, Collector, unreadable
from minires.data.counts import Looker, Survey, summed_up
from minires.data.dataset import Dataset, LabelledPart, Splits
from minires.data.glancing import Glance, Glancer
from minires.data.loader import Loader
from minires.data.opening import Opener
from minires.data.pictures import Decode, check_size, decode
from minires.data.registry import Entry
from minires.data.search_path import cache, roots
from minires.data.sources import Picture, pictures_at
from minires.data.streaming import Stream
from minires.errors import ConfigError, DataError, UnknownName, Unreadable, as_seed, one_of, whole
from minires.files import check_name
from minires.registry import Registry

__all__ = [
    "SETS",
    "Checked",
    "Compose",
    "Dataset",
    "Entry",
    "Glance",
    "Loader",
    "Normalize",
    "Opener",
    "LabelledPart",
    "Picture",
    "Splits",
    "Stream",
    "Survey",
    "Unreadable",
    "augment",
    "build",
    "cache",
    "check",
    "decode",
    "download",
    "entry",
    "find",
    "glance",
    "is_there",
    "load",
    "load_part",
    "names",
    "pictures_at",
    "prepare",
    "register",
    "survey",
]

SETS: Registry[Entry] = Registry(
    "data set", {"signs": signs.ENTRY, "hands": hands.ENTRY, "cifar10": cifar.ENTRY}
)

Read = TypeVar("Read", bound=Callable[..., Splits])


def names() -> tuple[str, ...]:
    """Return the names of the known data sets.

    >>> names()
    ('signs', 'hands', 'cifar10')
    """
    return tuple(SETS)


def entry(name: str) -> Entry:
    """Return what the registry knows of a data set. Raises: ConfigError with the nearest name if unknown.

    >>> entry("signs").title
    'photographs of hands that show 0 to 5, 64x64'
    """
    return SETS.find(name)


def register(
    name: str, *, locate: Callable[[Path], Path | None] | None = None, title: str = "", how: str = ""
) -> Callable[[Read], Read]:
    """Give a data set of your own a name: above a function that returns its three parts, or called with one.

    The function takes the keywords ``size``, the side to which the pictures are to be resized or None, and
    ``seed``, which chooses the validation pictures where the set itself does not. For a set that is made of
    files there is also ``locate(path)``, which says what of a path can be read, or None: the function then
    gets that first. Its files are looked for where ours are, see :func:`find`; ``how`` says how to get them.

    Raises: ConfigError if the name is another set's, or the function does not take ``size`` and ``seed``.

    >>> import numpy as np
    >>> from minires import data
    >>> @data.register("stripes", title="stripes across or down, drawn")
    ... def stripes(*, size=None, seed=0):
    ...     rng = np.random.default_rng(0)
    ...     images = rng.integers(0, 100, (40, size or 8, size or 8, 3), dtype=np.uint8)
    ...     labels = np.arange(40) % 2
    ...     images[labels == 0, ::2] += 150
    ...     images[labels == 1, :, ::2] += 150
    ...     names = tuple(f"stripes-{i}" for i in range(40))
    ...     whole = data.Dataset(images, labels, ("across", "down"), names, "stripes")
    ...     train, rest = whole.split(0.6, seed=seed)
    ...     return data.Splits(train, *rest.split(0.5, seed=seed), "stripes (drawn)")
    >>> data.load("stripes", size=16).train.images.shape
    (24, 16, 16, 3)
    >>> data.load("strips")
    Traceback (most recent call last):
    ...
    minires.errors.UnknownName: no file or folder strips here, and unknown data set 'strips'. Did you ...
    """

    SETS.name_given(name)

    def add(read: Read) -> Read:
        taken = inspect.signature(read).parameters
        if missing := [keyword for keyword in ("size", "seed") if keyword not in taken]:
            raise ConfigError(
                f"the data set {name} is read with the keywords size and seed; it does not take "
                f"{' and '.join(missing)}"
            )
        SETS.add(name, Entry(read=read, locate=locate, title=title, how=how), maker=read)
        return read

    return add


def find(name: str) -> Path | None:
    """Return the folder in which a data set lies, or None where there is none or it needs none.

    Looked for in ``MINIRES_DATA/NAME``, ``data/NAME`` and the user's cache, in that order.

    Raises: ConfigError for an unknown name, or when MINIRES_DATA is not a folder.
    """
    locate = entry(name).locate
    if locate is not None:
        for root in roots():
            if found := locate(root / name):
                return found
    return None


def is_there(path: str | os.PathLike[str]) -> bool:
    """Whether something is at a path, or the first of the shards for which it stands: set-{000..009}.tar."""
    place = Path(path)
    return os.path.lexists(place) or (shards.is_pattern(place) and shards.expanded(place)[0].exists())


def load(
    name_or_path: str | os.PathLike[str],
    *,
    size: int | None = None,
    seed: int = 0,
    stream: bool | None = None,
    draft: bool = False,
    cache: str | None = None,
) -> Splits:
    """Load a data set by name, or from a path: a picture folder, zip or tar, shards of WebDataset, SIGNS or
    CIFAR-10 in any form.

    ``size`` resizes the pictures to squares; ``seed`` chooses the validation pictures where the set itself
    does not. A known name is never taken for a path; write ``./signs`` for a folder of that name.

    With ``stream`` the pictures are decoded when they are asked for, and not kept: see
    :class:`~minires.data.streaming.Stream`. None does so where they would take more than 1 GiB, or a quarter
    of the memory. Of a stream alone: ``draft`` reads JPEGs at a fraction of their size where it is still
    twice what is needed, which is faster and other by a little; ``cache="pixels"`` keeps the resized pictures
    in a file in the user's cache, for this run and later ones.

    Raises: ConfigError for a name that is neither known nor a path, or what cannot be streamed; DataError
    when the set is not found, not complete or not readable.
    """
    name = _text(name_or_path)
    size = None if size is None else whole("size", size)
    opener = Opener(stream=stream, draft=draft, cache=cache)
    splits = _loaded(name, size, as_seed(seed), opener)
    if opener.wanted and not isinstance(splits.train.images, Stream):
        raise ConfigError(
            f"{name}: {opener.wanted} is for pictures in files, one each: folders, zips, tars and shards; "
            "this set is made or read as a whole, and stands in memory"
        )
    return splits


def _loaded(name: str, size: int | None, seed: int, decode: Decode) -> Splits:
    options: dict[str, Any] = {"size": size, "seed": seed}

    def read(known: Entry, *found: Path) -> Splits:
        return known.read(*found, **options, **({"decode": decode} if known.decodes else {}))

    if name in SETS:
        if SETS[name].locate is None:
            return read(SETS[name])
        place = find(name)
        if place is None:
            raise DataError(_not_found(name))
        return read(SETS[name], place)
    path = Path(name)
    for known in reversed(SETS.values()):  # a user's own before ours
        if known.locate is not None and (found := known.locate(path)):
            return read(known, found)
    return _tree(path).splits(**options, decode=decode)


def load_part(
    name_or_path: str | os.PathLike[str],
    split: str | None = None,
    *,
    size: int | None = None,
    seed: int = 0,
    stream: bool | None = None,
    draft: bool = False,
) -> LabelledPart:
    """Load pictures with labels, to test a model on them: a data set by name, or whatever is at a path.

    At a path all pictures are taken where there are no folders for parts, and else those of test, or of the
    only part; ``split`` asks for train, val, test or all. A part that is not there is split off as ``load``
    does. Which classes occur, and in which order, is that of the folders: see ``Dataset.with_classes``.
    ``stream`` and ``draft`` are those of ``load``.

    Raises: DataError as ``load``, for pictures without labels, and if none of several parts is chosen.

    >>> from pathlib import Path
    >>> import tempfile
    >>> from PIL import Image
    >>> root = Path(tempfile.mkdtemp())
    >>> for name in ("dog", "cat"):
    ...     (root / "test" / name).mkdir(parents=True)
    ...     Image.new("RGB", (8, 8)).save(root / "test" / name / "1.png")
    >>> part = load_part(root, size=8)
    >>> part.split, part.pictures.names
    ('test', ('test/cat/1.png', 'test/dog/1.png'))
    >>> part.pictures.with_classes(("dog", "cat", "cow")).labels
    array([1, 0])
    """
    if split is not None:
        one_of("split", split, ("train", "val", "test", "all"))
    name = _text(name_or_path)
    size = None if size is None else whole("size", size)
    opener = Opener(stream=stream, draft=draft)
    parts = {} if name in SETS else _parts(name, size, opener)
    if split is None and parts:
        if len(parts) > 1 and "test" not in parts:
            there = f"There are {' and '.join(parts)} with labels: try split={[*parts][-1]!r}"
            raise DataError(f"{name}: which part? {_tree(Path(name)).no_labels()}{there}")
        split = "test" if "test" in parts else next(iter(parts)) or "all"
    if parts and split != "all" and split not in parts and not {"", "train"} & parts.keys():
        raise DataError(f"{name}: there is no part {split}; there is {' and '.join(parts)}")
    if split == "all" and parts:
        held = [read() for read in parts.values()]
    elif split in parts:
        held = [parts[split]()]
    else:
        splits = load(name, size=size, seed=seed, stream=stream, draft=draft)
        split = split or "test"
        held = [splits.train, splits.val, splits.test] if split == "all" else [getattr(splits, split)]
        return LabelledPart(_joined(held), split, splits.source)
    return LabelledPart(_joined(held), split, f"{held[0].name} (pictures at {name})")


def survey(name_or_path: str | os.PathLike[str], *, size: int | None = None, seed: int = 0) -> Survey:
    """Count the pictures of a data set by part and class, and look for what is doubtful in it.

    The parts are those that ``load`` gives; of pictures at a path that has no train part, those that are
    there. The pictures may be of any size, and are not kept; of more than 50,000 some are looked at.

    Raises: DataError, as ``load``.

    >>> import tempfile
    >>> from PIL import Image
    >>> root = Path(tempfile.mkdtemp())
    >>> for name in ("cat", "dog"):
    ...     (root / name).mkdir()
    ...     for i in range(10):
    ...         Image.new("RGB", (30 + i, 20), (9 * i, len(name), 0)).save(root / name / f"{i}.png")
    >>> found = survey(root)
    >>> found.counts, found.largest
    ({'train': [7, 6], 'val': [1, 2], 'test': [2, 2]}, (20, 39))
    >>> found.warnings[0]
    'few pictures: 13 to train 2 classes; a network learns them by heart'
    """
    name, looker = _text(name_or_path), Looker()
    check_size(size)
    if _is_known(name):
        splits = load(name, size=size, seed=seed)
        for part in (splits.train, splits.val, splits.test):
            looker.add(part)
        return _survey_of(splits, looker)
    tree = _tree(Path(name))
    if (count := tree.count()) > twins.MOST:
        looker = Looker(every=-(-count // twins.ENOUGH))
    with warnings.catch_warnings(action="ignore"):  # they are told where the parts are read
        there = tree.parts(size=size, decode=looker.decode)
    needed = {"train", "test"} if tree.of_signs else {"train"}
    if "" in there or needed <= there.keys():
        return _survey_of(tree.splits(size=size, seed=seed, decode=looker.decode), looker)
    parts = {part: read() for part, read in tree.parts(size=size, decode=looker.decode).items()}
    return summed_up(_of_one_list(parts), looker, tree.source)


def glance(name_or_path: str | os.PathLike[str], *, seed: int = 0) -> Glance:
    """Count the pictures of a data set as ``load`` would divide them, and measure some of them.

    Of pictures at a path none is kept, and few are read; a known set is loaded.

    Raises: DataError, as ``load``, but for pictures that cannot be read.

    >>> import tempfile
    >>> from PIL import Image
    >>> root = Path(tempfile.mkdtemp())
    >>> for name in ("cat", "dog"):
    ...     (root / name).mkdir()
    ...     for i in range(10):
    ...         Image.new("RGB", (50, 40), (9 * i, 0, 0)).save(root / name / f"{i}.png")
    >>> found = glance(root)
    >>> found.classes, found.counts["train"], found.shorter
    (('cat', 'dog'), (7, 6), 40)
    """
    name, glancer = _text(name_or_path), Glancer()
    if _is_known(name):
        return glancer.of(load(name, seed=seed))
    with warnings.catch_warnings(action="ignore"):  # they are told when the pictures are read
        return glancer.of(_tree(Path(name)).splits(size=None, seed=seed, decode=glancer.decode))


def check(
    name_or_path: str | os.PathLike[str], *, told: Callable[[int, int], object] = lambda done, count: None
) -> Checked:
    """Decode every picture of a data set once, on all threads, and name those that cannot be read.

    ``told`` hears how many are done, and how many there are.

    Raises: DataError, as ``load``, if the set itself cannot be found or read.

    >>> import tempfile
    >>> from PIL import Image
    >>> root = Path(tempfile.mkdtemp())
    >>> for name in ("cat", "dog"):
    ...     (root / name).mkdir()
    ...     Image.new("RGB", (8, 8)).save(root / name / "1.png")
    >>> _ = (root / "dog" / "2.png").write_bytes(b"<html>")
    >>> checked = check(root)
    >>> checked.count, checked.unreadable[0][:38]
    (3, 'dog/2.png: cannot read this picture: t')
    """
    name, collector = _text(name_or_path), Collector()
    if _is_known(name):
        splits = _loaded(name, None, 0, collector.decode)
        source, count = splits.source, sum(map(len, (splits.train, splits.val, splits.test)))
    else:
        tree = _tree(Path(name))
        parts = tree.parts(size=None, decode=collector.decode).values()
        source, count = tree.source, sum(len(read()) for read in parts)
    done = itertools.count(1)
    return Checked(source, count, unreadable(collector.named, lambda: told(next(done), count)))


def _survey_of(splits: Splits, looker: Looker) -> Survey:
    return summed_up({"train": splits.train, "val": splits.val, "test": splits.test}, looker, splits.source)


def _text(name_or_path: object) -> str:
    if not isinstance(name_or_path, str | os.PathLike):
        raise ConfigError(f"a data set is named, or is the path of a folder or archive; not {name_or_path!r}")
    check_name(name_or_path, DataError)
    return os.fspath(name_or_path)


def _parts(name: str, size: int | None, decode: Opener) -> dict[str, Callable[[], Dataset]]:
    """The labelled parts at a path as they stand; none for a user's own set, which only ``load`` reads."""
    path = Path(name)
    for known in reversed(SETS.values()):
        options = {"decode": decode} if known.decodes else {}
        if known.parts is not None and (found := known.parts(path, size=size, **options)):
            return found
        if known.locate is not None and known.locate(path):
            return {}
    return _tree(path).parts(size=size, decode=decode)


def _is_known(name: str) -> bool:
    """Whether it is read by a known set's own reader; SIGNS in a tree of files is read as a tree."""
    path = Path(name)
    return name in SETS or (_located(path) and not (is_tree(path) and _tree(path).of_signs))


def _located(path: Path) -> bool:
    return any(known.locate is not None and known.locate(path) for known in SETS.values())


def _tree(path: Path) -> Tree:
    """The files at the path of a set that is no known one."""
    for known in SETS.values():
        if known.refuse is not None:
            known.refuse(path)
    if not os.path.lexists(path) and not shards.is_pattern(path):
        if len(path.parts) == 1 and not path.suffix:
            raise UnknownName(
                f"no file or folder {path} here, and {SETS.unknown(str(path))}, or the path of a picture "
                "folder, zip or tar"
            )
        raise DataError(f"{path}: no such file or folder")
    return Tree.at(path)


def _of_one_list(parts: dict[str, Dataset]) -> dict[str, Dataset]:
    """Several parts with the classes of all; a class may be missing in some."""
    held = [*parts.values()]
    classes = held[0].classes
    if any(part.classes != classes for part in held):
        classes = tuple(sorted({label for part in held for label in part.classes}))
    return {name: part.with_classes(classes) for name, part in parts.items()}


def _joined(parts: list[Dataset]) -> Dataset:
    first, *others = _of_one_list({str(place): part for place, part in enumerate(parts)}).values()
    for part in others:
        first = first.join(part)
    return first


def download(name: str, **options: Any) -> str:
    """Fetch a data set into the cache, check it, and return a report of one line.

    Raises: ConfigError for a set that cannot be downloaded; DataError when the network cannot be reached,
    or when what came is not the known copy; nothing is left behind then.
    """
    known = entry(name)
    if known.download is None:
        able = ", ".join(one for one in SETS if SETS[one].download)
        why = "it is made when used and needs no files" if known.locate is None else "use --from PATH"
        raise ConfigError(f"no download for data set {name!r}: {why}; there is one for {able}")
    roots()  # a wrong MINIRES_DATA is said before anything is fetched
    return known.download(**options)


def prepare(name: str, source: str | os.PathLike[str]) -> str:
    """Verify a data set at ``source``, copy it into the cache, and return a report of one line.

    SIGNS comes as a folder or zip with ``64x64_SIGNS`` or its three folders inside, which must be the known
    public copy, or as a folder with both HDF5 files; CIFAR-10 as a folder in its binary form or with zips.

    Raises: ConfigError for a set that is not made of files; DataError when the source is not complete, not
    readable or not the known copy; nothing is left behind then.
    """
    known = entry(name)
    if known.prepare is None:
        able = ", ".join(one for one in SETS if SETS[one].prepare)
        raise ConfigError(f"data set {name!r} cannot be prepared from files; {able} can")
    if not Path(source).exists():
        raise DataError(f"{source}: no such file or folder")
    roots()  # a wrong MINIRES_DATA is said before anything is copied
    return known.prepare(Path(source))


def _not_found(name: str) -> str:
    looked, known = [root / name for root in roots()], SETS[name]
    for place in looked:
        if known.refuse is not None:
            known.refuse(place)
    message = f"data set {name!r} not found in {', '.join(map(str, looked))}"
    return f"{message}; {known.how}" if known.how else message

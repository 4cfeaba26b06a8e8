"""The pictures that a command is given: files, folders, archives, with or without labels."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minires.commands.loading import check_is_there, config_of_run, folder_of
from minires.errors import DataError, MiniresError, counted

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from minires.data import Dataset, LabelledPart, Splits
    from minires.train import Trained


ASKED = 1000  # pictures of a large set that are looked for among those that a run was trained on
SPLITS = ("train", "val", "test", "all")


@dataclass(frozen=True)
class Shown:
    """A picture: its name, what may be its label (the last one first), how to decode it, and to read it.

    These are the folders that it stands in below the path given; of SIGNS it is in the name (``named``).
    """

    name: str
    labels: tuple[str, ...]
    decode: Callable[..., NDArray[np.uint8]]
    read: Callable[[], bytes]
    named: bool = False


def pictures_of(paths: list[str]) -> list[Shown]:
    """All pictures at some paths, each a picture, a folder, a zip or a tar."""
    from minires import data
    from minires.data.at_path import called, is_tree, of_signs
    from minires.data.tree import Entry, read_file

    found = []
    for path in paths:
        if not is_tree(Path(path)):
            read = partial(read_file, Path(path), name=path)
            found.append(Shown(path, (), partial(data.decode, Path(path), name=path), read))
            continue
        held = data.pictures_at(path)
        files = [Entry(tuple(picture.name.split("/")), picture.read) for picture in held]
        named = of_signs(called(Path(path)), files) is not None
        for picture, file in zip(held, files, strict=True):
            name = f"{path.rstrip('/')}/{picture.name}"
            labels = (file.parts[-1][0],) if named else file.parts[:-1]
            found.append(Shown(name, labels, partial(_decode, picture, name), picture.read, named))
    return found


def _decode(picture: Any, name: str, *, size: int) -> NDArray[np.uint8]:
    from minires import data

    return data.decode(picture.read(), name=name, size=size)


def labelled(
    model: str,
    asked: str | None,
    split: str | None,
    trained: Trained,
    side: int,
    *,
    stream: bool | None = None,
) -> LabelledPart:
    """The pictures to test a model on, with its classes in its order: those of ``asked``, a name or path, or
    else of the data set that it was trained on; ``stream`` is that of ``data.load``."""
    from minires import data

    part = part_of_run(model, asked, split, side, stream=stream)
    try:
        fitting = part.pictures.with_classes(trained.classes)
    except DataError as error:
        raise DataError(
            f"{model} knows the classes {_few(trained.classes)}, but {part.source} has "
            f"{_few(part.pictures.classes)}; choose a data set with the same classes"
        ) from error
    return data.LabelledPart(fitting, part.split, part.source)


def part_of_run(
    model: str, asked: str | None, split: str | None, side: int, *, stream: bool | None = None
) -> LabelledPart:
    """The pictures of ``asked``, a name or path, or else of the data set that a run was trained on, with the
    classes that they have; ``stream`` is that of ``data.load``."""
    from minires import data

    own = None
    if asked is None:
        config = config_of_run(model)
        check_is_there(config, model, ", or give pictures with --data")
        own = config.data
    if own is None or split == "all":
        return data.load_part(own or asked or "", split, size=side, stream=stream)
    splits, split = data.load(own, size=side, stream=stream, draft=config.draft), split or "test"
    is_as_trained(model, splits)
    return data.LabelledPart(getattr(splits, split), split, splits.source)


class Learnt:
    """The pictures that a run was trained on: by their pixels where they are in memory, and by their files
    where they are not."""

    def __init__(self, parts: Sequence[Dataset]) -> None:
        from minires.data import Stream
        from minires.data.tree import size_of

        self.pixels: set[bytes] = set()
        self.files: dict[int, list[Callable[[], bytes]]] = {}  # by their sizes
        self._hashes: dict[int, set[bytes]] = {}
        for images in (part.images for part in parts):
            if isinstance(images, Stream):
                for place in range(len(images)):
                    _, read = images.named(place)
                    self.files.setdefault(size_of(read), []).append(read)
            else:
                self.pixels.update(map(fingerprint, images))

    def __bool__(self) -> bool:
        return bool(self.pixels or self.files)

    def among(self, dataset: Dataset) -> tuple[int, int]:
        """How many pictures of a data set are among them, and of how many that is: of a large set, known by
        its files, ``ASKED`` are looked for."""
        from minires.data import Stream

        images = dataset.images
        if not self.files:
            return sum(fingerprint(image) in self.pixels for image in images), len(images)
        if not isinstance(images, Stream):
            return 0, len(images)
        places = some(len(images))
        return sum(self.has_file(images.named(place)[1]) for place in places), len(places)

    def has_file(self, read: Callable[[], bytes]) -> bool:
        """Whether a file has the bytes of one of theirs."""
        from minires.data.tree import size_of

        size = size_of(read)
        if size not in self.files:
            return False
        if size not in self._hashes:
            self._hashes[size] = {_hash(one) for one in self.files[size]} - {b""}
        return _hash(read) in self._hashes[size]


def some(count: int) -> range:
    """The places of ``ASKED`` of so many pictures, or of all."""
    return range(0, count, max(1, -(-count // ASKED)))


def _hash(read: Callable[[], bytes]) -> bytes:
    try:
        return hashlib.sha256(read()).digest()
    except (DataError, OSError):  # gone, or not to be read
        return b""


def learnt(model: str, side: int) -> Learnt:
    """The pictures that a run was trained on; none where its data set is not found."""
    from minires import data
    from minires.train import state

    try:
        config = config_of_run(model)
        with warnings.catch_warnings(action="ignore"):  # they were told when it was trained
            splits = data.load(config.data, size=side, stream=config.stream)
        if not is_as_trained(model, splits):
            return Learnt([])
        return Learnt([state.trained_on(config, splits)])
    except (MiniresError, OSError, MemoryError):
        return Learnt([])


def is_as_trained(model: str, splits: Splits) -> bool:
    """Whether the parts of the data set that a run has learnt from are as they were; warns if they are not.
    Of the others it may have had fewer, as the runs of a lab have."""
    from minires.train import continuing, report, run_folder

    try:
        before = run_folder.read_json(folder_of(model) / continuing.SUMMARY).get("parts")
    except MiniresError:  # there is none, or none that can be read
        return True
    now, learnt = report.parts(splits), config_of_run(model).train_on.split("+")
    if not isinstance(before, dict) or all(before.get(name) == now.get(name) for name in learnt):
        return True
    warnings.warn(
        f"the pictures are others than when {model} was trained ({_counts(before)}; now {_counts(now)}), and "
        "so are their parts: some that are for testing now may have been for training then",
        stacklevel=1,
    )
    return False


def _counts(parts: dict[str, Any]) -> str:
    counts = {name: held.get("pictures") for name, held in parts.items() if isinstance(held, dict)}
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def fingerprint(image: NDArray[np.uint8]) -> bytes:
    """What tells a decoded picture from others, wherever its file lies."""
    return hashlib.sha256(image.tobytes()).digest()


def warn_of_learnt(model: str, known: int, total: int) -> None:
    """Warn if ``known`` of ``total`` pictures are those that the run was trained on."""
    if known:
        some = f"{known:,} of these {counted(total, 'picture')}" if total > 1 else "this picture"
        warnings.warn(
            f"{model} was trained on {some}: how many of them it gets right says little of new ones. "
            f"`minires evaluate {model}` tests it on pictures of its data set that it has not seen",
            stacklevel=3,
        )


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(names[:20]) + (f", ... ({len(names)} in all)" if len(names) > 20 else "")

"""The pictures that a command is given: files, folders, archives, with or without labels."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minires.commands.loading import check_is_there, config_of_run
from minires.errors import DataError, MiniresError, counted

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from minires.data import LabelledPart
    from minires.train import Trained


SPLITS = ("train", "val", "test", "all")


@dataclass(frozen=True)
class Shown:
    """A picture: its name, what may be its label (the last one first), and how to decode it.

    These are the folders that it stands in below the path given; of SIGNS it is in the name (``named``).
    """

    name: str
    labels: tuple[str, ...]
    decode: Callable[..., NDArray[np.uint8]]
    named: bool = False


def pictures_of(paths: list[str]) -> list[Shown]:
    """All pictures at some paths, each a picture, a folder, a zip or a tar."""
    from minires import data
    from minires.data.at_path import called, is_tree, of_signs
    from minires.data.tree import Entry

    found = []
    for path in paths:
        if not is_tree(Path(path)):
            found.append(Shown(path, (), partial(data.decode, Path(path), name=path)))
            continue
        held = data.pictures_at(path)
        files = [Entry(tuple(picture.name.split("/")), picture.read) for picture in held]
        named = of_signs(called(Path(path)), files) is not None
        for picture, file in zip(held, files, strict=True):
            name = f"{path.rstrip('/')}/{picture.name}"
            labels = (file.parts[-1][0],) if named else file.parts[:-1]
            found.append(Shown(name, labels, partial(_decode, picture, name), named))
    return found


def _decode(picture: Any, name: str, *, size: int) -> NDArray[np.uint8]:
    from minires import data

    return data.decode(picture.read(), name=name, size=size)


def labelled(
    model: str, asked: str | None, split: str | None, trained: Trained, side: int,
    *, stream: bool | None = None,
) -> LabelledPart:  # fmt: skip
    """The pictures to test a model on, with its classes in its order: those of ``asked``, a name or path, or
    else of the data set that it was trained on. ``stream`` is as in ``data.load``."""
    from minires import data

    own = None
    if asked is None:
        config = config_of_run(model)
        check_is_there(config, model, ", or give pictures with --data")
        own = config.data
    if own is not None and split in (None, "train", "val", "test"):
        splits, split = data.load(own, size=side, stream=stream), split or "test"
        part = data.LabelledPart(getattr(splits, split), split, splits.source)
    else:
        part = data.load_part(own or asked or "", split, size=side, stream=stream)
    try:
        fitting = part.pictures.with_classes(trained.classes)
    except DataError as error:
        raise DataError(
            f"{model} knows the classes {_few(trained.classes)}, but {part.source} has "
            f"{_few(part.pictures.classes)}; choose a data set with the same classes"
        ) from error
    return data.LabelledPart(fitting, part.split, part.source)


def learnt(model: str, side: int) -> frozenset[bytes]:
    """The fingerprints of the pictures that a run was trained on; none where its data set is not found."""
    from minires import data

    try:
        config = config_of_run(model)
        with warnings.catch_warnings(action="ignore"):  # they were told when it was trained
            splits = data.load(config.data, size=side)
    except (MiniresError, OSError, MemoryError):
        return frozenset()
    parts = [splits.train, splits.val] if config.train_on == "train+val" else [splits.train]
    return frozenset(fingerprint(image) for part in parts for image in part.images)


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

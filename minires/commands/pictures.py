"""The pictures that a command is given: files, folders, archives, with or without labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minires.commands.loading import data_of_run
from minires.errors import DataError, MiniresError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from minires.data import Part
    from minires.train import Trained


@dataclass(frozen=True)
class Shown:
    """A picture: its name, the folders that it stands in below the path given, and how to decode it."""

    name: str
    folders: tuple[str, ...]
    decode: Callable[..., NDArray[np.uint8]]


def pictures_of(paths: list[str]) -> list[Shown]:
    """All pictures at some paths, each a picture, a folder, a zip or a tar."""
    from minires import data
    from minires.data.at_path import is_tree

    found = []
    for path in paths:
        if not is_tree(Path(path)):
            found.append(Shown(path, (), partial(data.decode, Path(path), name=path)))
            continue
        for picture in data.pictures_at(path):
            name = f"{path.rstrip('/')}/{picture.name}"
            found.append(Shown(name, tuple(picture.name.split("/")[:-1]), partial(_decode, picture, name)))
    return found


def _decode(picture: Any, name: str, *, size: int) -> NDArray[np.uint8]:
    from minires import data

    return data.decode(picture.read(), name=name, size=size)


def labelled(model: str, asked: str | None, split: str | None, trained: Trained, side: int) -> Part:
    """The pictures to test a model on, with its classes in its order: those of ``asked``, a name or path, or
    else of the data set that it was trained on."""
    from minires import data

    own = data_of_run(model) if asked is None else None
    if own is not None and split in (None, "train", "val", "test"):
        splits, split = data.load(own, size=side), split or "test"
        part = data.Part(getattr(splits, split), split, splits.source)
    else:
        part = data.load_part(own or asked or "", split, size=side)
    try:
        fitting = part.pictures.with_classes(trained.classes)
    except DataError as error:
        raise DataError(
            f"{model} knows the classes {_few(trained.classes)}, but {part.source} has "
            f"{_few(part.pictures.classes)}; choose a data set with the same classes"
        ) from error
    return data.Part(fitting, part.split, part.source)


def trained_on(model: str, asked: str | None) -> bool:
    """Whether the run says that it was trained on this data set; None stands for its own."""
    try:
        own = data_of_run(model)
    except MiniresError:
        return False
    return asked in (None, own) or Path(asked or "").resolve() == Path(own).resolve()


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(names[:20]) + (f", ... ({len(names)} in all)" if len(names) > 20 else "")

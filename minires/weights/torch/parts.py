"""Models that are cut into several files with an index, and folders as Hugging Face leaves them."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from minires.errors import CheckpointError
from minires.files import check_name
from minires.weights.contents import kind_of

USUAL = (  # what the weights of a folder are called; the first that is there is taken, as transformers does
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
)  # fmt: skip
WEIGHTS = re.compile(r".*\.(safetensors|pth|pt|th|ckpt|bin|tar|npz|h5|keras)", re.IGNORECASE)
SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})(\..*|)")
ON_A_HUB = re.compile(r"(hf[-_]hub:|hf:/+)?[\w.-]+/[\w.-]+")  # owner/name
SHOWN = 5
LONGEST_REVISION = 1000  # bytes


def in_folder(path: Path) -> Path:
    """``path`` itself if it is no folder; else the file of weights in it.

    Raises: CheckpointError if there is none, or it cannot be told which.
    """
    check_name(path, CheckpointError)
    if not path.is_dir():
        missing = not os.path.lexists(path) and not path.parent.is_dir() and not WEIGHTS.fullmatch(path.name)
        if missing and ON_A_HUB.fullmatch(os.fspath(path)):
            raise CheckpointError(
                f"{path}: no such file; if it is a model of Hugging Face's, fetch its folder first, as "
                "minires downloads nothing"
            )
        return path
    snapshots = path / "snapshots"  # models--microsoft--resnet-50 in the cache of Hugging Face
    if snapshots.is_dir():
        revisions = sorted(one for one in snapshots.iterdir() if one.is_dir())
        main = path / "refs" / "main"
        if main.is_file():
            with open(main, "rb") as file:
                wanted = file.read(LONGEST_REVISION).strip()
            revisions = [one for one in revisions if os.fsencode(one.name) == wanted] or revisions
        if len(revisions) == 1:
            return in_folder(revisions[0])
        names = ", ".join(one.name for one in revisions[:SHOWN])
        raise CheckpointError(
            f"{path} holds {len(revisions)} versions of a model; give the folder of one: {names}"
        )
    for name in USUAL:
        if (path / name).is_file():
            return path / name
    held = sorted(one.name for one in path.iterdir())
    if "saved_model.pb" in held:
        raise CheckpointError(f"{path} is a SavedModel of TensorFlow; save the model as .keras")
    if "data.pkl" in held:
        raise CheckpointError(f"{path} is what was in a file of torch.save; give that file, before unpacking")
    weights = [name for name in held if WEIGHTS.fullmatch(name) and (path / name).is_file()]
    if len(weights) == 1:
        return path / weights[0]
    what = "several files that may be weights" if weights else "no file of weights known here"
    few = ", ".join((weights or held)[:SHOWN])
    raise CheckpointError(f"{path} is a folder with {what}: {few or 'it is empty'}; give the file")


def left_aside(taken: Path) -> list[str]:
    """A sentence on the other weights in the folder in which ``taken`` was found, if there are any."""
    if taken.name not in USUAL:
        return []
    others = [name for name in USUAL if name != taken.name and (taken.parent / name).is_file()]
    return [f"taken: {taken.name}; left aside in its folder: {', '.join(others)}"] if others else []


def of_one_model(path: Path) -> tuple[list[Path], list[str]]:
    """The files that hold the model of which ``path`` is the index, one part or the whole; and the tensors
    that its index names (none where there is no index).

    Raises: CheckpointError if the index is none, or a part is missing.
    """
    if path.is_file() and kind_of(path) == "index":
        return _of_index(path)
    found = SHARD.fullmatch(path.name)
    if found is None:
        return [path], []
    stem, _, count, ending = found.groups()
    own = path.with_name(f"{stem}{ending}.index.json")
    for index in sorted(path.parent.glob("*.index.json"), key=lambda one: one != own):
        if not index.is_file():
            continue
        try:
            if kind_of(index) == "index" and path.name in _weight_map(index).values():
                return _of_index(index)
        except CheckpointError:
            if index == own:
                raise  # what is wrong in those of others does not matter
    files = [path.with_name(f"{stem}-{n:05}-of-{count}{ending}") for n in range(1, min(int(count), 9999) + 1)]
    return _all_there(path, files), []


def _of_index(index: Path) -> tuple[list[Path], list[str]]:
    weight_map = _weight_map(index)
    files = [index.with_name(name) for name in sorted(set(weight_map.values()))]
    return _all_there(index, files), list(weight_map)


def _weight_map(index: Path) -> dict[str, str]:
    found: Any = json.loads(index.read_bytes())["weight_map"]
    for name, file in found.items():
        if not isinstance(file, str) or file != Path(file).name or "\\" in file or not file.strip("."):
            raise CheckpointError(
                f"{index}: {name} is said to be in {file!r}, which is no name of a file in the same folder"
            )
    if not found:
        raise CheckpointError(f"{index} is an index of no tensors")
    return dict(found)


def _all_there(path: Path, files: list[Path]) -> list[Path]:
    if missing := [file.name for file in files if not os.path.isfile(file)]:
        raise CheckpointError(
            f"{path} belongs to a model in {len(files)} files, of which {len(missing)} are not in its "
            f"folder: {', '.join(missing[:SHOWN])}"
        )
    return files

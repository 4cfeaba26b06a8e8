"""Checkpoints: safetensors files from which a run goes on to the same bits.

A file holds arrays by name and, in the metadata that the safetensors format provides, one JSON object with
everything else and the SHA-256 of all of it. The checksum covers names, types, shapes and values of the
arrays and the other entries of the JSON object, so a file that was cut short or had a bit flipped anywhere
is found out, while any program that reads safetensors can still open it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from minires.errors import CheckpointError
from minires.files import atomic_write

FORMAT = 1  # to be raised when the contents change
KEPT = 2  # checkpoints that stay in the folder
Arrays = dict[str, np.ndarray]


class Damaged(CheckpointError):
    """A file does not hold what was written into it."""


def write(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray], info: Mapping[str, Any]) -> None:
    """Write arrays and JSON-able ``info`` to a safetensors file with a checksum, whole or not at all.

    Raises: MiniresError that names the file and the cause (disk full, folder read-only, ...).
    """
    arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    info = {**info, "format": FORMAT}
    # One entry, because safetensors writes several in an order that changes from run to run.
    content = save(arrays, {"minires": _json({**info, "sha256": _checksum(arrays, info)})})
    with atomic_write(path) as file:
        file.write(content)


def read(path: str | os.PathLike[str]) -> tuple[Arrays, dict[str, Any]]:
    """Read what :func:`write` wrote, and check that it is what was written.

    Raises: Damaged if the file is not whole or was not written by minires; CheckpointError if it is missing
    or of another version.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {}).get("minires")
            arrays = {name: file.get_tensor(name) for name in file.keys()}
        info = None if text is None else json.loads(text)
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist; give the run folder or a file that is in it") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise Damaged(f"{path} is damaged or not a safetensors file: {error}") from error
    if not isinstance(info, dict) or "sha256" not in info:
        raise Damaged(f"{path} was not written by minires: it has no checksum in its metadata")
    if info.pop("sha256") != _checksum(arrays, info):
        raise Damaged(f"{path} is damaged: its contents do not have the checksum written into it")
    if info["format"] != FORMAT:
        raise CheckpointError(
            f"{path} was written by another version of minires: its format is {info['format']}, not {FORMAT}"
        )
    return arrays, info


class Checkpoints:
    """The checkpoints of a run folder, ``checkpoint-<step>.safetensors``; the last two are kept."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def save(self, step: int, groups: Mapping[str, Arrays], info: Mapping[str, Any]) -> Path:
        """Write a checkpoint of ``{group: {name: array}}`` and ``info``, then drop the ones no longer kept.

        Raises: MiniresError if it cannot be written; the earlier checkpoints are untouched then.
        """
        path = self.folder / f"checkpoint-{step:08d}.safetensors"
        flat = {f"{group}/{name}": array for group, part in groups.items() for name, array in part.items()}
        write(path, flat, info)
        for old in self.paths()[:-KEPT]:
            old.unlink(missing_ok=True)
        return path

    def paths(self) -> list[Path]:
        """The checkpoints in the folder, oldest first."""
        found = [
            (int(match[1]), path)
            for path in self.folder.glob("checkpoint-*.safetensors")
            if (match := re.fullmatch(r"checkpoint-(\d+)\.safetensors", path.name))
        ]
        return [path for _, path in sorted(found)]

    def latest(self) -> tuple[Path, dict[str, Arrays], dict[str, Any]] | None:
        """Read the newest undamaged checkpoint: its path, arrays by group and name, and info.

        None if there is no checkpoint. A damaged one is set aside as ``<file>.damaged``, with a warning.

        Raises: CheckpointError if there are checkpoints and all are damaged, or one is of another version.
        """
        self._remove_leftovers()
        paths = self.paths()
        for path in reversed(paths):
            try:
                arrays, info = read(path)
            except Damaged as error:
                # It must not count as one of the two that are kept.
                os.replace(path, path.with_name(path.name + ".damaged"))
                warnings.warn(f"{error}; using the checkpoint before it", stacklevel=2)
                continue
            groups: dict[str, Arrays] = {}
            for name, array in arrays.items():
                group, _, rest = name.partition("/")
                groups.setdefault(group, {})[rest] = array
            return path, groups, info
        if paths:
            raise CheckpointError(
                f"all {len(paths)} checkpoints in {self.folder} are damaged; start again in another folder"
            )
        return None

    def _remove_leftovers(self) -> None:
        """Remove the temporary file of a write that was killed."""
        for path in self.folder.glob(".checkpoint-*.safetensors.*.tmp"):
            path.unlink(missing_ok=True)


def differences(saved: Mapping[str, Any], here: Mapping[str, Any], *, ignore: tuple[str, ...]) -> list[str]:
    """List what differs between two configurations, leaving out the names in ``ignore``."""
    return [
        f"{key} is {saved.get(key)!r} there and {here.get(key)!r} here"
        for key in dict.fromkeys([*saved, *here])
        if key not in ignore and saved.get(key) != here.get(key)
    ]


def _json(info: Mapping[str, Any]) -> str:
    return json.dumps(info, sort_keys=True, allow_nan=False)


def _checksum(arrays: Mapping[str, np.ndarray], info: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(json.dumps([name, array.dtype.str, array.shape]).encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).data)
    digest.update(_json(info).encode())
    return digest.hexdigest()

"""Checkpoints: safetensors files from which a run goes on to the same bits.

A file holds arrays by name and, in the metadata that the safetensors format provides, one JSON object with
everything else and the SHA-256 of all of it. The checksum covers names, types, shapes and values of the
arrays and the other entries of the JSON object, so a file that was cut short or had a bit flipped anywhere
is found out, while any program that reads safetensors can still open it.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import re
import stat
import warnings
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from minires import beginnings
from minires.errors import CheckpointError, ConfigError
from minires.files import atomic_write, remove_leftovers, why
from minires.train.fields import Kind, parsed, shortened

FORMAT = 1  # to be raised when the contents change
KEPT = 2  # checkpoints that stay in the folder
PATTERN = "checkpoint-*.safetensors"
# How files begin in which others keep weights.
OTHERS = {
    b"PK\x03\x04": "PyTorch or Keras", b"\x89HDF": "Keras",
    **{b"\x80" + bytes([protocol]): "PyTorch" for protocol in range(2, 6)},
}  # fmt: skip
Arrays = dict[str, np.ndarray]
Taker = Callable[[Path, dict[str, Arrays], dict[str, Any]], None]


class Damaged(CheckpointError):
    """A file does not hold what was written into it, or not what a file of its kind has."""


class Foreign(Damaged):
    """A file was written by another program."""


class Misfit(CheckpointError):
    """The arrays of a checkpoint are those of another model."""


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

    Raises: Damaged if the file is not whole, whatever is wrong inside, and Foreign, which is one, if it was
    not written by minires; CheckpointError if it is missing, may not be read, or is of another version.
    """
    _open_once(Path(path))
    try:
        with safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {}).get("minires")
            arrays = {name: file.get_tensor(name) for name in file.keys()}
        info = None if text is None else parsed(text)
        written = info.pop("sha256", None) if isinstance(info, dict) else None
        whole = written is not None and written == _checksum(arrays, info or {})
    except MemoryError:
        raise
    except Exception as error:  # each library on the way has errors of its own
        with open(path, "rb") as file:
            start = file.read(64)
        begins_so = start[8:9] == b"{"  # behind the length of the header
        for magic, whose in OTHERS.items():
            if start.startswith(magic) and not begins_so:
                raise Foreign(f"{path} is no safetensors file: it looks like one of {whose}") from error
        known = beginnings.words(start)
        if not known and _is_text(start):
            raise Damaged(f"{path} is no safetensors file: it holds text") from error
        raise Damaged(f"{path} is damaged or not a safetensors file: {known or shortened(error)}") from error
    if not isinstance(info, dict) or written is None:
        raise Foreign(f"{path} was not written by minires: it has no checksum in its metadata")
    if not whole:
        raise Damaged(f"{path} is damaged: its contents do not have the checksum written into it")
    if type(version := info.get("format")) is not int:
        raise Damaged(f"{path} is damaged: its format must be a whole number, not {version!r}")
    if version != FORMAT:
        raise CheckpointError(
            f"{path} was written by another version of minires: its format is {version}, not {FORMAT}"
        )
    return arrays, info


def _is_text(start: bytes) -> bool:
    """Whether a file begins with text; the length of a header, with which ours do, has zeros."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(start)  # the last letter may be cut
    except UnicodeDecodeError:
        return False
    return len(start) > 8 and b"\0" not in start


def check(path: str | os.PathLike[str], info: Mapping[str, Any], kind: Kind) -> None:
    """Check that a file says what a file of its kind says. Raises: Damaged with the field that is wrong."""
    try:
        kind("", info)
    except ConfigError as error:
        raise Damaged(f"{path} does not say what it should: {shortened(error)}") from error


def _open_once(path: Path) -> None:
    """Find out what the system says of a file; safetensors says of all that it does not exist."""
    try:
        if stat.S_ISDIR(os.stat(path).st_mode):
            raise Damaged(f"{path} is damaged or not a safetensors file: it is a folder")
        if not path.is_file():  # a pipe would wait for ever
            raise Damaged(f"{path} is damaged or not a safetensors file: it is a device or a pipe")
        with open(path, "rb") as file:
            file.read(1)
    except FileNotFoundError:
        if path.is_symlink():
            raise Damaged(f"{path} is a link to {os.readlink(path)}, which is not there") from None
        raise CheckpointError(f"{path} does not exist; give a run folder, or its model.safetensors") from None
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {why(error)}") from error
    except ValueError as error:  # a null byte in the name
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"cannot read {path}: {error}") from error


class Checkpoints:
    """The checkpoints of a run folder, ``checkpoint-<step>.safetensors``: the last two, or ``all``."""

    def __init__(self, folder: str | os.PathLike[str], *, all: bool = False) -> None:
        self.folder = Path(folder)
        self._kept = None if all else KEPT

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step lies."""
        return self.folder / f"checkpoint-{step:08d}.safetensors"

    def save(
        self, step: int, groups: Mapping[str, Arrays], info: Mapping[str, Any], *, keep: Collection[int] = ()
    ) -> Path:
        """Write a checkpoint of ``{group: {name: array}}`` and ``info``, then drop the ones no longer kept;
        those of the steps ``keep`` stay.

        Raises: MiniresError if it cannot be written; the earlier checkpoints are untouched then.
        """
        path = self.path(step)
        flat = {f"{group}/{name}": array for group, part in groups.items() for name, array in part.items()}
        write(path, flat, info)
        if self._kept is not None:
            stay = {self.path(one) for one in keep}
            self._remove([one for one in self.paths()[: -self._kept] if one not in stay])
        return path

    def paths(self) -> list[Path]:
        """The checkpoints in the folder, oldest first."""
        found = [
            (int(match[1]), path)
            for path in self.folder.glob(PATTERN)
            if (match := re.fullmatch(r"checkpoint-([0-9]{1,18})\.safetensors", path.name))
        ]
        return [path for _, path in sorted(found)]

    @staticmethod
    def read(path: Path) -> tuple[dict[str, Arrays], dict[str, Any]]:
        """The arrays of a checkpoint by group and name, and its info. Raises: as :func:`read`."""
        arrays, info = read(path)
        groups: dict[str, Arrays] = {}
        for name, array in arrays.items():
            group, _, rest = name.partition("/")
            groups.setdefault(group, {})[rest] = array
        return groups, info

    def latest(self, take: Taker) -> Path | None:
        """Read the newest checkpoint that is undamaged and that ``take(path, groups, info)`` takes, which
        gets its arrays by group and name, and its info. None if there is no checkpoint.

        A newer one that is damaged, or does not fit where this one does, is set aside as ``<file>.damaged``,
        with a warning. Where there is none to use, all stay as they are.

        Raises: CheckpointError if there are checkpoints and all are damaged, or one is of another version;
        what ``take`` raises.
        """
        failed: list[tuple[Path, CheckpointError]] = []
        for path in reversed(self.paths()):
            try:
                take(path, *self.read(path))
            except (Damaged, Misfit) as error:
                failed.append((path, error))
                continue
            for bad, reason in failed:
                self._set_aside(bad)  # it must not count as one of the two that are kept
                warnings.warn(f"{reason}; using the checkpoint before it", stacklevel=2)
            return path
        if not failed:
            return None
        if misfits := [error for _, error in failed if isinstance(error, Misfit)]:
            raise misfits[0]
        one = len(failed) == 1
        which = "the only checkpoint" if one else f"all {len(failed)} checkpoints"
        raise CheckpointError(
            f"{which} in {self.folder} {'is' if one else 'are'} damaged, and nothing was changed: "
            f"{failed[0][1]}. Put a good copy in its place, or start again in another folder"
        )

    def remove(self) -> None:
        """Remove all checkpoints, those of a run that is finished."""
        self._remove(self.paths())

    def remove_leftovers(self) -> None:
        """Remove what writes that were killed have left; only for who holds the lock of the folder."""
        remove_leftovers(self.folder, PATTERN)

    def _remove(self, paths: list[Path]) -> None:
        for path in paths:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                warnings.warn(f"{path} is not needed any more, but stays: {why(error)}", stacklevel=3)

    def _set_aside(self, path: Path) -> None:
        aside = path.with_name(f"{path.name}.damaged")
        number = 1
        while os.path.lexists(aside):  # never onto one that is there
            number += 1
            aside = path.with_name(f"{path.name}.damaged-{number}")
        try:
            os.rename(path, aside)
        except OSError as error:
            raise CheckpointError(f"{path} is damaged and cannot be set aside: {why(error)}") from error


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

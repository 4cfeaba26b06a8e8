"""Weight files as PyTorch's users write them, read into NumPy arrays: one file, or the parts of one.

What a file is shows in its first bytes (:mod:`minires.weights.contents`); its name may end in anything.

    torch.save     a pickle, alone or in a zip: only PyTorch's safe loader opens it, in a process of its own
    safetensors    names and numbers alone; needs no PyTorch
    numpy.savez    the same

One rule for all of them: floating-point numbers of any width become float32; every other kind of tensor is
refused by its name. Where the weights are in the file, and what stands before their names, is found by
:mod:`minires.weights.torch.containers`.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import shlex
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from minires import limits
from minires.errors import CheckpointError, ConfigError
from minires.weights.contents import DAMAGED_ZIP, kind_of
from minires.weights.name_tables import modern
from minires.weights.sources import recognise
from minires.weights.torch import parts, pickled
from minires.weights.torch.containers import is_called, without_prefix
from minires.weights.values import COUNTERS, check_values

Arrays = dict[str, np.ndarray[Any, Any]]
FLOATS = ("F16", "BF16", "F32", "F64")
SHOWN = 3


@dataclass(frozen=True)
class Found:
    """The arrays of a file by their names, without what stands before all of them.

    ``said`` is what the file says of itself: ``named``, architectures with where they stand, ``classes`` and
    ``classes_from``. ``notes`` are sentences on what was chosen or left aside.
    """

    path: Path
    arrays: Arrays
    said: Mapping[str, Any]
    notes: tuple[str, ...] = ()


def read(path: str | os.PathLike[str], *, container: str | None = None) -> Arrays:
    """The arrays of a weight file by their names there, in the layout that they have there, in float32.

    ``container`` chooses between several models in one file: the name of an entry of a checkpoint
    ("state_dict_ema"), or what the names begin with ("ema_model").

    Raises: ConfigError if the file needs PyTorch and it is not installed; CheckpointError if the file is
    missing, damaged, of another kind, or holds more than weights.
    """
    return find(path, container=container).arrays


def find(path: str | os.PathLike[str], *, container: str | None = None) -> Found:
    """As :func:`read`, with what the file says of itself."""
    given, path = Path(path), parts.in_folder(Path(path))
    files, expected = parts.of_one_model(path)
    arrays: Arrays = {}
    odd: dict[str, str] = {}
    said: dict[str, Any] = {}
    for file in files:
        more, about = _read(file, container)
        if twice := arrays.keys() & more.keys():
            raise CheckpointError(f"{min(twice)} is in two of the files that {path.name} belongs to")
        arrays |= more
        odd |= about.pop("odd", {})
        said = about
    missing = sorted(name for name in expected if name not in arrays and name not in odd)
    if missing := [name for name in missing if not name.endswith(COUNTERS)]:
        raise CheckpointError(
            f"{path}: its index names {len(missing)} tensors that are in none of its {len(files)} files, "
            f"such as {missing[0]}"
        )
    if not arrays and not odd:
        raise CheckpointError(f"{path}: there is no tensor in it")
    notes = [] if path == given else parts.left_aside(path)
    if len(files) > 1:
        notes.append(f"read from {len(files)} files, {files[0].name} and those that follow")
    inside, more_notes = _inside(path, [*arrays, *odd], said, container)
    for old in inside.values():
        if old in odd:
            raise CheckpointError(
                f"{path}: {old} is {odd[old]}, and weights are floating-point numbers, of 16, 32 or 64 bits"
            )
    kept = {name: arrays[old] for name, old in inside.items()}
    check_values(path, {inside[name]: array for name, array in kept.items()})
    return Found(path, kept, said, (*notes, *more_notes))


def _inside(
    path: Path, names: list[str], said: Mapping[str, Any], container: str | None
) -> tuple[dict[str, str], list[str]]:
    """The names without a prefix, new -> old, and sentences on what was taken and what was not."""
    taken, others = said.get("container", ""), said.get("containers", [])
    fits = container is None or is_called(taken, container)
    try:
        inside, prefix, rest = without_prefix(
            names, lambda names: recognise(map(modern, names)) is not None, None if fits else container
        )
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    notes = []
    for chosen, more in ((taken, others), (prefix, rest)):
        if more:
            way = shlex.quote(more[0]) if len(more) == 1 else f"with one of {', '.join(more)}"
            also = f"the file also holds {', '.join(more)} (--container {way})"
            notes.append(f"taken: {chosen or 'the outermost'}; {also}")
    aside = sorted(set(names) - set(inside.values()) - {n for n in names if _under(n, rest)})
    if aside:
        few = ", ".join(aside[:SHOWN]) + (f" and {len(aside) - SHOWN} more" if len(aside) > SHOWN else "")
        notes.append(f"beside the network under {prefix}. and not of it, left aside: {few}")
    return inside, notes


def _under(name: str, prefixes: Sequence[str]) -> bool:
    return any(name.startswith(f"{prefix}.") or f".{prefix}." in name for prefix in prefixes)


# ------------------------------------------------------------------------------------- one file, by kind


def _read(path: Path, container: str | None) -> tuple[Arrays, dict[str, Any]]:
    kind = kind_of(path)
    if kind not in READERS:
        raise CheckpointError(f"{path} is a file of Keras's, not of PyTorch's; it has no names of PyTorch's")
    return READERS[kind](path, container)


def _read_torch(path: Path, container: str | None) -> tuple[Arrays, dict[str, Any]]:
    if importlib.util.find_spec("torch") is None:
        raise ConfigError(
            f"{path} was written by PyTorch, and reading it needs PyTorch: pip install torch; "
            "a .safetensors file needs none"
        )
    return limits.apart(pickled.read, path, container, imports=["torch"], error=CheckpointError)


def _read_safetensors(path: Path, container: str | None) -> tuple[Arrays, dict[str, Any]]:
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            types = {name: file.get_slice(name).get_dtype() for name in file.keys()}
            if "minires" in metadata:
                raise CheckpointError(
                    f"{path} is a model of minires itself, not weights of others: use it as it is, with "
                    f"minires evaluate {path} or minires.train.load_model"
                )
            plain = {name: np.asarray(file.get_tensor(name), np.float32)
                     for name, kind in types.items() if kind in FLOATS and kind != "BF16"}  # fmt: skip
            halves = _bfloat16(path, [name for name, kind in types.items() if kind == "BF16"])
    except CheckpointError:
        raise
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged or not a safetensors file: {error}") from error
    found = {name: (plain | halves)[name] for name in types if name in plain or name in halves}
    odd = {name: kind for name, kind in types.items() if kind not in FLOATS and not name.endswith(COUNTERS)}
    named = [[f"metadata {key}", text] for key, text in metadata.items() if key in ("architecture", "arch")]
    counters = [name for name in found if name.endswith(COUNTERS)]
    return {n: a for n, a in found.items() if n not in counters}, {"odd": odd, "named": named}


def _bfloat16(path: Path, names: Sequence[str]) -> Arrays:
    """Tensors in bfloat16, which NumPy has not: the upper half of a float32. The file was checked."""
    if not names:
        return {}
    found = {}
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        head = json.loads(file.read(length))
        for name in names:
            start, end = head[name]["data_offsets"]
            file.seek(8 + length + start)
            upper = np.frombuffer(file.read(end - start), "<u2").astype(np.uint32)
            found[name] = (upper << np.uint32(16)).view(np.float32).reshape(head[name]["shape"])
    return found


def _read_npz(path: Path, container: str | None) -> tuple[Arrays, dict[str, Any]]:
    arrays: Arrays = {}
    odd: dict[str, str] = {}
    most = limits.unfolded(path.stat().st_size)
    try:
        with zipfile.ZipFile(path) as archive:
            needed = sum(one.file_size for one in archive.infolist())
            if needed > most:
                raise CheckpointError(
                    f"{path} unfolds to {needed:,} bytes; a file of its size may have {most:,}"
                )
            for one in archive.infolist():
                with archive.open(one) as file:
                    array = _npy(file.read())
                name = one.filename.removesuffix(".npy")
                if name.endswith(COUNTERS):
                    continue
                if array.dtype.kind == "f":
                    arrays[name] = np.asarray(array, np.float32)
                else:
                    odd[name] = str(array.dtype)
    except CheckpointError:
        raise
    except (*DAMAGED_ZIP, TypeError, SyntaxError, MemoryError) as error:
        raise CheckpointError(f"{path} is damaged, or holds what is no plain array: {error}") from error
    return arrays, {"odd": odd}


def _npy(content: bytes) -> np.ndarray[Any, Any]:
    """One array of numpy.savez's. Its head is not believed: the numbers must be there."""
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    heads = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in heads:
        raise ValueError(f"an array in version {version} of the format")
    shape, _, dtype = heads[version](file)
    if dtype.hasobject or int(np.prod(shape, dtype=object)) * dtype.itemsize != len(content) - file.tell():
        raise ValueError(f"an array {shape} of {dtype} in {len(content):,} bytes")
    return np.asarray(np.load(io.BytesIO(content), allow_pickle=False))


READERS: dict[str, Callable[[Path, str | None], tuple[Arrays, dict[str, Any]]]] = {
    "torch": _read_torch, "safetensors": _read_safetensors, "npz": _read_npz,
}  # fmt: skip

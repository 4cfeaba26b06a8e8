"""What may be taken from an HDF5 file of somebody else: groups and arrays that stand in the file itself.

HDF5 can refer to other files (external links, external storage, virtual arrays), to other places of the same
file (soft links, and groups that contain themselves), to code (filters that are plugins), and can claim an
array of any size of which nothing is stored. None of that is followed or believed.

The library behind h5py can loop or crash over a damaged file: read one by :func:`minires.limits.apart`.
"""

from __future__ import annotations

import math
from typing import Any

import h5py
import numpy as np

from minires.errors import CheckpointError

# What h5py raises where a file is not what it should be.
DAMAGED = (OSError, EOFError, RuntimeError, LookupError, TypeError, ValueError, MemoryError, AttributeError)
MOST_TEXTS = 100_000
FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32, h5py.h5z.FILTER_LZF}


def member(group: h5py.Group, path: str) -> Any:
    """What stands at ``path`` in an HDF5 group itself, not behind a link.

    Raises: CheckpointError if there is nothing, or a link.
    """
    for part in path.split("/"):
        if not isinstance(group, h5py.Group) or not part or part not in group:
            raise CheckpointError(f"{path!r} should be in this file but is not in {group.name!r}")
        if not isinstance(group.get(part, getlink=True), h5py.HardLink):
            raise CheckpointError(f"{part!r} in {group.name!r} is a link to elsewhere; it is not followed")
        group = group[part]
    return group


def subgroup(group: h5py.Group, path: str) -> h5py.Group:
    """The group at ``path``. Raises: CheckpointError if there is none."""
    found = member(group, path)
    if not isinstance(found, h5py.Group):
        raise CheckpointError(f"{found.name!r} is an array and should be a group")
    return found


def array(group: h5py.Group, path: str, *, kinds: str, most: int) -> np.ndarray:
    """The numbers at ``path``, of one of these ``kinds`` of dtype ("f", "iu", ...), at most ``most`` bytes.

    Raises: CheckpointError if there are none, they are of another kind, more, not all stored, or not in this
    file.
    """
    found = member(group, path)
    if not isinstance(found, h5py.Dataset):
        raise CheckpointError(f"{found.name!r} is a group and should be an array")
    if found.external or found.is_virtual:
        raise CheckpointError(f"the numbers of {found.name!r} are in another file; these are not read")
    if found.dtype.kind not in kinds or found.shape is None:
        words = {"f": "floating-point", "i": "whole"}
        wanted = " or ".join(words[kind] for kind in kinds if kind in words)
        raise CheckpointError(f"{found.name!r} has the type {found.dtype}, not {wanted} numbers")
    needed = math.prod(found.shape) * found.dtype.itemsize
    if needed > most:
        raise CheckpointError(f"{found.name!r} {found.shape} needs {needed:,} bytes; the limit is {most:,}")
    plan = found.id.get_create_plist()
    filters = {plan.get_filter(place)[0] for place in range(plan.get_nfilters())}
    if not filters <= FILTERS:
        raise CheckpointError(f"{found.name!r} is packed by the unknown filter {min(filters - FILTERS)}")
    stored = found.id.get_storage_size()
    if stored < needed and not filters or needed and not stored:  # a filter may compress
        raise CheckpointError(f"{found.name!r} {found.shape} needs {needed} bytes, the file has {stored}")
    pieces = math.prod(-(-n // c) for n, c in zip(found.shape, found.chunks or found.shape, strict=True) if n)
    if found.chunks and needed and found.id.get_num_chunks() < pieces:
        raise CheckpointError(
            f"{found.name!r} {found.shape} is of {pieces} pieces, the file has {found.id.get_num_chunks()}"
        )
    return np.asarray(found[()])


def texts(group: h5py.Group, path: str) -> list[str]:
    """The names at ``path``: text, or whole numbers written out; bytes that are no UTF-8 as escapes.

    Raises: CheckpointError if there are none, more than MOST_TEXTS, or they are of another kind.
    """
    found = member(group, path)
    if isinstance(found, h5py.Dataset) and found.dtype.kind in "iu":
        return [str(one) for one in array(group, path, kinds="iu", most=8 * MOST_TEXTS).reshape(-1).tolist()]
    if not isinstance(found, h5py.Dataset) or h5py.check_string_dtype(found.dtype) is None:
        raise CheckpointError(f"{found.name!r} must be names, it is {getattr(found, 'dtype', 'a group')}")
    if found.external or found.is_virtual or found.shape is None or math.prod(found.shape) > MOST_TEXTS:
        raise CheckpointError(f"{found.name!r} must be at most {MOST_TEXTS:,} names in this file itself")
    names = np.ravel(found[()]).tolist()
    return [one.decode("utf-8", "backslashreplace") if isinstance(one, bytes) else str(one) for one in names]

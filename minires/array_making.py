"""Arrays of what people give: numbers, lists, NumPy's and CuPy's arrays, and those of other libraries."""

from __future__ import annotations

from typing import Any

import numpy as np

from minires import backend
from minires.backend import Array
from minires.errors import MiniresError, ShapeError


def is_array(value: Any) -> bool:
    """Whether a value is an array of NumPy or CuPy."""
    return isinstance(value, np.ndarray) or backend.is_cupy(value)


def as_it_is(value: Any) -> Any:
    """``value``; an array where it is one of NumPy's numbers, as NumPy makes them of arrays without axes."""
    return np.asarray(value) if isinstance(value, np.generic) else value


def made_of(data: Any, dtype: Any) -> Array:
    """``data`` as an array: numbers and lists become ``dtype``, arrays keep theirs.

    With ``dtype`` None numbers and lists become what NumPy makes of them.

    Raises: ShapeError if there is something else than numbers, or lists are of unequal lengths; MiniresError
    for an array that does not become one of NumPy's.
    """
    if type(data) is np.ndarray:
        return data
    if isinstance(data, np.ma.MaskedArray):
        raise MiniresError("a tensor has no masked places; give the array as x.filled(value)")
    if is_array(data):  # a memory map, a matrix are arrays of other classes, with rules of their own
        return np.asarray(data) if backend.device_of(data) == "cpu" else data
    try:
        array = np.asarray(data)
    except ValueError as error:
        raise ShapeError(f"a tensor is made of numbers, lists of equal lengths, or arrays: {error}") from None
    except Exception as error:  # each library has its own reasons, and errors, for one that it cannot give
        raise _not_ours(type(data), error) from error
    if dtype is None or hasattr(data, "dtype"):
        return array
    if array.dtype.kind not in "biuf":
        raise ShapeError(f"a tensor is made of numbers, lists of numbers, or arrays, not of {data!r}")
    return array.astype(dtype)


def _not_ours(kind: type, error: Exception) -> MiniresError:
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
    return MiniresError(
        f"a {name} does not become a NumPy array by itself ({error}); convert it before, in PyTorch for "
        "example with x.detach().cpu().numpy()"
    )

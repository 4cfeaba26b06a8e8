"""Weights in a quarter of the room: whole numbers from -127 to 127 and a scale for each output channel.

    scale[o] = max |w[..., o]| / 127        q = round(w / scale)        w is read as  q * scale

Only for keeping and sending: a model computes with float32. What has one axis, biases and batch norm's
numbers, stays as it is; there is little of it, and it is the finer part. For an array ``conv1.weight`` a file
holds whole numbers under that name, and the scales as ``conv1.weight/scale``.

Source: symmetric quantisation per channel, Krishnamoorthi arXiv:1806.08342, section 2.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from minires.errors import CheckpointError

Arrays = Mapping[str, np.ndarray]
MOST = 127
_SCALE = "/scale"


def packed(arrays: Arrays) -> dict[str, np.ndarray]:
    """Give kernels and dense weights as int8 with their scales.

    Shapes: (..., O) float32 -> (..., O) int8, and (O,) float32.
    Raises: CheckpointError for weights that are not finite.

    >>> small = packed({"fc.weight": np.array([[1.0, -0.5], [0.25, 0.5]], np.float32)})
    >>> small["fc.weight"]
    array([[ 127, -127],
           [  32,  127]], dtype=int8)
    >>> unpacked(small)["fc.weight"].round(2)
    array([[ 1.  , -0.5 ],
           [ 0.25,  0.5 ]], dtype=float32)
    """
    found: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        if array.ndim < 2 or array.dtype != np.float32:
            found[name] = array
            continue
        if not np.isfinite(array).all():
            raise CheckpointError(f"{name} holds numbers that are not finite, which int8 cannot")
        largest = np.abs(array).max(axis=tuple(range(array.ndim - 1)))
        scale = np.where(largest > 0, largest / MOST, 1).astype(np.float32)
        found[name] = np.rint(array / scale).astype(np.int8)
        found[name + _SCALE] = scale
    return found


def unpacked(arrays: Arrays) -> dict[str, np.ndarray]:
    """Give what :func:`packed` was given, as far as it was kept; what is not int8 stays as it is.

    Raises: CheckpointError if whole numbers have no scales that fit.
    """
    found: dict[str, np.ndarray] = {}
    scales = {name: array for name, array in arrays.items() if name.endswith(_SCALE)}
    for name, array in arrays.items():
        if name.endswith(_SCALE):
            continue
        if array.dtype == np.int8:
            scale = scales.pop(name + _SCALE, None)
            fits = scale is not None and array.ndim > 0 and scale.shape == array.shape[-1:]
            if scale is None or not fits or scale.dtype != np.float32:
                raise CheckpointError(f"{name} is of whole numbers, and has no scale for each output channel")
            array = array * scale
        found[name] = array
    return {**found, **scales}  # a scale of nothing is an array that no model has, and is refused by its name

"""What no weights can be: not finite, or a variance below zero."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np

from minires.errors import CheckpointError

# The whole numbers in a state dict, which are no weights: of a batch norm, and of a moving average.
COUNTERS = ("num_batches_tracked", "n_averaged")
VARIANCES = ("running_var", "moving_variance", "/variance")


def check_values(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray]) -> None:
    """Raise CheckpointError, with the first tensor's name and place, if numbers of a file cannot be right."""
    found = []
    for name, array in arrays.items():
        if not array.size:
            found.append(f"{name} {array.shape} has no numbers")
            continue
        wrong = ~np.isfinite(array)
        if wrong.any():
            first = tuple(map(int, np.argwhere(wrong)[0]))
            few = f"{int(wrong.sum()):,} of the {array.size:,}"
            which = "all" if wrong.all() else f"{few}"
            found.append(f"{name}: {which} numbers are NaN or infinite in float32, the first at {first}")
        elif name.endswith(VARIANCES) and array.min() < 0:
            found.append(f"{name} is a variance, and {array.min():g} is in it; none is below zero")
    if found:
        more = f"; and {len(found) - 1} more tensors like that" if len(found) > 1 else ""
        raise CheckpointError(
            f"{os.fspath(path)} holds numbers that no trained network has: {found[0]}{more}. "
            "Nothing was loaded"
        )

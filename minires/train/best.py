"""The best epoch by validation: which it is, when to wait no longer for a better one, and its weights.

An epoch is better than another if more validation pictures were right, or as many with a lower loss. All of
this follows from the figures of the epochs, which a checkpoint holds; so a run that goes on decides as one
that was not interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minires.errors import CheckpointError, counted
from minires.nn.module import Module
from minires.train.checkpoint import Arrays, Checkpoints
from minires.train.ema import EMA

Row = Mapping[str, Any]


def best(history: Sequence[Row]) -> Row | None:
    """The best of these epochs, the first of equal ones; None if there is none that was validated.

    >>> figures = [(0.5, 1.0), (0.75, 0.9), (0.75, 0.8), (0.5, 0.1)]
    >>> best([{"epoch": 1 + k, "val_accuracy": a, "val_loss": b} for k, (a, b) in enumerate(figures)])
    {'epoch': 3, 'val_accuracy': 0.75, 'val_loss': 0.8}
    """
    validated = [row for row in history if row["val_accuracy"] is not None]
    return max(validated, key=_merit, default=None)


def _merit(row: Row) -> tuple[float, float]:
    return row["val_accuracy"], -(math.inf if row["val_loss"] is None else row["val_loss"])


def spent(history: Sequence[Row], patience: int | None) -> str | None:
    """Why no better epoch is waited for any longer, in words; None as long as it is."""
    row = best(history)
    if patience is None or row is None or len(history) - row["epoch"] < patience:
        return None
    return (
        f"validation has not got better for {counted(patience, 'epoch')} (patience): the best was epoch "
        f"{row['epoch']}, with {100 * row['val_accuracy']:.2f}%"
    )


def steps_to_keep(history: Sequence[Row]) -> set[int]:
    """The steps whose checkpoints hold the weights of the best epoch: of all, and of all but the last one,
    which is what counts again if the newest checkpoint should be damaged."""
    found = best(history), best(history[:-1])
    return {row["step"] for row in found if row}


def weights_of(
    row: Row, checkpoints: Checkpoints, check: Callable[[Path, dict[str, Any]], None]
) -> dict[str, Arrays]:
    """What the checkpoint of the epoch with these figures holds; ``check`` sees what it says of itself.

    Raises: CheckpointError, with what to do, if it cannot be read or ``check`` does not like it.
    """
    path = checkpoints.path(row["step"])
    try:
        groups, info = checkpoints.read(path)
        check(path, info)
        return groups
    except CheckpointError as error:
        raise CheckpointError(
            f"the weights of epoch {row['epoch']}, the best by validation, cannot be read: {error}. Put a "
            "good copy in its place, or go on with keep='last', which takes those of the last epoch"
        ) from error


def check(checkpoints: Checkpoints, history: Sequence[Row]) -> None:
    """Check that the weights of the best epoch so far are there. Raises: CheckpointError if not."""
    row = best(history)
    if row and not checkpoints.path(row["step"]).exists():
        raise CheckpointError(
            f"keep='best' needs the weights of epoch {row['epoch']}, the best so far, and "
            f"{checkpoints.path(row['step'])} is not there, as the run did not keep it; go on with "
            "keep='last', which takes the weights of the last epoch, or begin a new run"
        )


@contextmanager
def weights(model: Module, ema: EMA | None, groups: Mapping[str, Arrays]) -> Iterator[None]:
    """Inside this block the model has the weights of a checkpoint, the averaged ones where there are such;
    behind it its own, and ``ema`` its own averages.

    Raises: CheckpointError if they are those of another model.
    """
    own, averages = model.state_dict(), ema.state_dict() if ema else {}
    try:
        model.load_state_dict(groups.get("model", {}))
        if ema:
            ema.load_state_dict(groups.get("ema", {}))
            with ema.swap():
                yield
        else:
            yield
    finally:
        model.load_state_dict(own)
        if ema:
            ema.load_state_dict(averages)

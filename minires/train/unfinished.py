"""The model of a run that is not finished: the weights of its newest good checkpoint.

Files are only read: the run may go on meanwhile, and what it removes while we look is looked for again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minires import models
from minires.data import Normalize
from minires.errors import CheckpointError
from minires.train import checkpoint, continuing, state
from minires.train.checkpoint import Arrays, Checkpoints, Damaged

_TRIES = 5  # a run under way removes its older checkpoints when it has written a new one


@dataclass(frozen=True, eq=False)
class Found:
    """A checkpoint as a model file has it: its weights, the averaged ones where there are some, and what
    they are of; ``place`` says in words where in its run it was written."""

    path: Path
    arrays: Arrays
    info: dict[str, Any]
    place: str


def newest(folder: Path) -> Found | None:
    """The newest good checkpoint of the run in a folder; None if there is no checkpoint at all.

    Raises: CheckpointError if all are damaged, or it is of an older version and does not say enough.
    """
    for _ in range(_TRIES):
        failed: list[Damaged] = []
        gone = False
        for path in reversed(Checkpoints(folder).paths()):
            try:
                return _as_model(path, len(failed))
            except Damaged as error:
                failed.append(error)
            except CheckpointError:
                gone = not os.path.lexists(path)
                if not gone:
                    raise
                break  # there is a newer one, or the model
        if not gone:
            if failed:
                raise CheckpointError(
                    f"there is no model in {folder} yet, and no checkpoint that is whole: {failed[0]}"
                )
            return None
    return None


def _as_model(path: Path, damaged: int) -> Found:
    """Raises: Damaged if it is not whole; CheckpointError if it does not say enough."""
    arrays, info = checkpoint.read(path)
    checkpoint.check(path, info, state.KIND)
    weights, averages = _group(arrays, "model"), _group(arrays, "ema")
    averages.pop("updates", None)
    trained = info.get("trained") or _older(path, info)
    at, epochs = info["progress"], info["config"].get("epochs")
    epoch = min(at["epoch"] + 1, epochs) if type(epochs) is int else at["epoch"] + 1
    within = at["batch"] or not at["epoch"]
    place = f"step {at['step']:,} ({f'in epoch {epoch}' if within else 'after epoch ' + str(at['epoch'])}"
    place += f" of {epochs})" if type(epochs) is int else ")"
    if averages:
        place += ", its averaged weights"
    if damaged:
        place += f"; {damaged} newer {'ones are' if damaged > 1 else 'one is'} damaged"
    return Found(path, weights | averages, {"kind": "model", **trained}, place)


def _group(arrays: Arrays, name: str) -> Arrays:
    start = f"{name}/"
    return {path.removeprefix(start): array for path, array in arrays.items() if path.startswith(start)}


def _older(path: Path, info: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint of an older version says of its model, as far as it does."""
    config, held = info["config"], info["data"]
    classes = held.get("class names") if isinstance(held, dict) else None
    normalize = config.get("normalize")
    if normalize == "none":
        normalize = {"mean": list(Normalize.none().mean), "std": list(Normalize.none().std)}
    entry = models.entry(config["model"]) if config.get("model") in tuple(models.MODELS) else None
    size = config.get("size") or (entry.size if entry else None)
    absent = {
        "the names of the classes": not isinstance(classes, list),
        "how the pictures were normalised": not isinstance(normalize, dict),
        "the size of the pictures": not size,
    }
    if any(absent.values()):
        missing = " and ".join(what for what, is_absent in absent.items() if is_absent)
        raise CheckpointError(
            f"{path} is a checkpoint of an older version, which does not say {missing}; go on with the run, "
            f"and the next one does: {continuing.way_on(path.parent)}"
        )
    variant = entry.fitted(size) if entry and type(size) is int else {}
    if isinstance(own := config.get("variant"), dict):
        variant |= own
    return {
        "model": config.get("model"), "variant": variant, "classes": classes, "normalize": normalize,
        "size": [size, size], "dataset": str(config.get("data")),
    }  # fmt: skip

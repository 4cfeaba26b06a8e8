"""What is said where a run begins, and what ``summary.json`` holds, come it to its end or not."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from minires import backend
from minires.data import Dataset, Splits, Stream
from minires.data.augment import MEASURED
from minires.data.pixel_cache import place_of_all
from minires.distributed import Communicator
from minires.errors import ConfigError, counted
from minires.nn.module import Module
from minires.train import best, run_folder
from minires.train.config import Config
from minires.train.evaluation import Evaluation


def summary(
    config: Config,
    splits: Splits,
    train_set: Dataset,
    model: Module,
    history: Sequence[Mapping[str, Any]],
    *,
    test: Evaluation | None = None,
    val: Evaluation | None = None,
    **others: Any,
) -> dict[str, Any]:
    """The figures of a run as plain data for JSON; what was not measured, or is not finite, is None.

    The training figures are those of the last epoch that came to its end, of which there are ``epochs_done``;
    ``best_epoch`` is the best by validation, ``kept_epoch`` that whose weights were tested and are the model.
    ``others`` are put beside them.
    """
    last, best_epoch = history[-1] if history else {}, (best.best(history) or {}).get("epoch")
    return {
        "model": config.model,
        "dataset": train_set.name,
        "source": splits.source,
        "recipe": config.recipe,
        "epochs": config.epochs,
        "epochs_done": len(history),
        "best_epoch": best_epoch,
        "kept_epoch": None if test is None else best_epoch if config.keep == "best" else len(history),
        "seed": config.seed,
        "test_accuracy": test.accuracy if test else None,
        "test_loss": run_folder.finite(test.loss if test else None),
        "val_accuracy": val.accuracy if val else None,
        "val_loss": run_folder.finite(val.loss if val else None),
        "train_accuracy": last.get("train_accuracy"),
        "train_loss": last.get("train_loss"),
        "train_pictures": len(train_set),
        "left_out_of_each_epoch": left_out(config, train_set),
        "test_pictures": len(splits.test),
        "parts": parts(splits),
        "parameters": sum(parameter.size for parameter in model.parameters()),
        "threads": backend.threads(),
        "versions": run_folder.versions(),
        **others,
    }


def parts(splits: Splits) -> dict[str, dict[str, Any]]:
    """How many pictures each part has, and what their names are known by, wherever they lie."""
    found = {}
    for name in ("train", "val", "test"):
        if held := getattr(splits, name):
            names = "\n".join(held.names).encode(errors="backslashreplace")
            found[name] = {"pictures": len(held), "names": hashlib.sha256(names).hexdigest()[:16]}
    return found


def of_stream(train_set: Dataset, *, measured: bool) -> list[str]:
    """What is to be said of training pictures that are not in memory, whose mean was ``measured`` or not."""
    if not isinstance(train_set.images, Stream):
        return []
    by = counted(backend.threads(), "thread")
    if train_set.images.files.pixels is None:
        said = [f"the pictures are decoded while they are needed (stream), by {by}"]
    else:
        said = [f"the pictures come resized from the cache in {place_of_all()}, by {by}"]
    if measured and len(train_set) > MEASURED:
        some = f"{MEASURED:,} of the {len(train_set):,} training pictures, chosen by the seed"
        said.append(f"mean and deviation of the pixels were measured on {some}")
    return said


def batches(config: Config, train_set: Dataset, comm: Communicator, folder: Path) -> list[str]:
    """What is special about the batches of an epoch, and who shares them, in words."""
    found, count = [], len(train_set)
    if left := left_out(config, train_set):
        found.append(
            f"each epoch has {count - left} of these {count} draws, in whole batches of {config.batch_size}"
            if config.balance == "sampler" else
            f"each epoch leaves out {left} of the {count} training pictures, others each time, which make no "
            f"whole batch of {config.batch_size} (drop_last=False trains on them)"
        )  # fmt: skip
    if config.batch_size > count:
        found.append(
            f"batch_size is {config.batch_size}, and there are {count} training pictures: "
            "each epoch is one step, on all of them"
        )
    return [*found, *([_ranks(comm, config, folder), *scaled(config)] if comm.size > 1 else [])]


def left_out(config: Config, train_set: Dataset) -> int:
    """How many training pictures make no whole batch, and are left out of an epoch."""
    return len(train_set) % config.batch_size if config.drop_last else 0


def begins(
    config: Config, splits: Splits, train_set: Dataset, val_set: Dataset | None, folder: Any
) -> list[str]:
    """What is trained on what, and where it is kept, in lines."""
    learns = str(len(train_set))
    if config.pictures is not None:
        learns += f" of {len(splits.train) + (len(splits.val) if config.train_on == 'train+val' else 0)}"
    first = (
        f"{config.model} on {splits.source}: {learns} training, "
        f"{len(val_set) if val_set else 0} validation, {len(splits.test)} test pictures; "
        f"recipe {config.recipe}, {counted(config.epochs, 'epoch')}, seed {config.seed}; run folder "
        f"{folder}"
    )
    return [first, *of_stream(train_set, measured=config.normalize == "data")]


def _ranks(comm: Communicator, config: Config, folder: Path) -> str:
    """That several processes do a run, in words."""
    machines = f" on {comm.hosts} machines" if comm.hosts > 1 else ""
    sync = config.batch_norm == "sync"
    norm = "over all of them" if sync else "in each by itself (--batch-norm sync: over all)"
    threads = counted(backend.threads(), "thread")
    stop = f"to stop and save: touch {shlex.quote(str(folder / 'STOP'))}"
    return f"{comm.size} processes{machines}, with {threads} each; batch norm {norm}; {stop}"


def scaled(config: Config) -> list[str]:
    """What is usual where the batch is larger than that of the recipe, and the learning rate is not.

    Source: Goyal et al. 2017, arXiv:1706.02677, section 2.1.
    """
    with suppress(ConfigError):  # a recipe of pictures that were looked at has no settings of its own
        own = Config.of(config.recipe)
        times, rate = config.batch_size / own.batch_size, own.optimizer.get("lr")
        if times >= 2 and config.optimizer == own.optimizer and own.optimizer.get("name") == "sgd" and rate:
            return [
                f"batch_size is {times:g} times that of the recipe {config.recipe}, with its learning rate "
                f"{rate:g}; {times * rate:g}, with warm-up, is the usual start"
            ]
    return []

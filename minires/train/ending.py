"""What is kept of a run: its state, to go on from, and its ends: its weights are tested, kept and summed up,
or its loss was not finite."""

from __future__ import annotations

import dataclasses
import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from minires import backend, data
from minires.distributed import Communicator
from minires.errors import MiniresError
from minires.train import checks, continuing, model_file, report, run_folder
from minires.train.checkpoint import Arrays
from minires.train.ema import EMA
from minires.train.evaluation import Evaluation, evaluate, recalibrate
from minires.train.observers import Run
from minires.train.state import Progress


class Ending(Run, Protocol):
    """What the end of a run needs besides what observers may read."""

    given: Any  # the folder, as it was named
    comm: Communicator
    ema: EMA | None
    device: str
    variant: dict[str, Any]
    warnings: list[str]


@dataclass(frozen=True)
class Tested:
    """What the weights that are kept have shown; ``found`` are warnings of what in them is not finite."""

    test: Evaluation
    val: Evaluation | None
    found: list[str]

    def losses(self) -> dict[str, float | None]:
        """The losses, by the part of the pictures."""
        return {"validation": self.val.loss if self.val else None, "test": self.test.loss}

    def is_finite(self) -> bool:
        """Whether the weights and the losses are."""
        return not self.found and all(loss is None or math.isfinite(loss) for loss in self.losses().values())


def trained(run: Ending) -> model_file.Trained:
    """The model as it is now, with what is needed to use it."""
    shown = run.train_set
    return model_file.Trained(
        run.model, run.config.model, run.variant, shown.classes, run.normalize,
        (shown.images.shape[1], shown.images.shape[2]), shown.name,
    )  # fmt: skip


def checkpoint(run: Ending, *, fingerprint: dict[str, Any]) -> tuple[dict[str, Arrays], dict[str, Any]]:
    """The arrays and the info of a checkpoint of the run as it stands, whose data have this fingerprint."""
    groups = {"model": run.model.state_dict(), "optimizer": run.optimizer.state_dict()}
    if run.ema:
        groups["ema"] = run.ema.state_dict()
    return groups, {
        "kind": "checkpoint",
        "config": run.config.to_dict(),
        "trained": model_file.described(trained(run)),
        "data": fingerprint,
        "threads": backend.threads(),
        "ranks": run.comm.size,
        "progress": dataclasses.asdict(run.progress),
        "random": run.model.random_states(),
        "schedule": run.schedule.state_dict(),
        "history": run.history,
        "warnings": run.warnings,
    }


def test(run: Ending, kept: AbstractContextManager[Any]) -> Tested:
    """Test the weights that the model has inside the block ``kept``, and write them.

    Raises: MiniresError, with how to go on, if the file cannot be written.
    """
    test_set: data.Dataset = run.splits.test
    with kept:
        if run.config.recalibrate:
            recalibrate(run.model, run.train_set.images, run.normalize, comm=run.comm)
        val = evaluate(run.model, run.val_set, run.normalize, comm=run.comm) if run.val_set else None
        result = evaluate(run.model, test_set, run.normalize, comm=run.comm)
        found = checks.not_finite("in the model that is kept", checks.numbers(run.model))
        try:
            run.comm.first(lambda: model_file.save_model(run.out / model_file.NAME, trained(run)), "model")
        except MiniresError as error:
            raise continuing.stopped(error, run.given, run.progress.step) from error
    return Tested(result, val, found)


def doubts(run: Ending, tested: Tested) -> list[str]:
    """What makes the result doubtful, in words."""
    last, labels = run.history[-1], run.train_set.labels
    shown = {
        "none": labels,
        "sampler": np.arange(len(labels)) % len(np.unique(labels)),  # so often is each class drawn
        "weights": None,  # the frequent classes, which decide on the accuracy, count less
    }
    return [*tested.found, *checks.outcome(
        last["train_loss"], last["train_accuracy"], shown[run.config.balance], run.splits.test.classes,
        **tested.losses(),
    )]  # fmt: skip


def diverged(run: Ending, tested: Tested) -> bool:
    """Whether the run has come to nothing."""
    return not tested.is_finite() or checks.diverged(
        run.history[-1]["train_loss"], len(run.splits.test.classes)
    )


def result(run: Ending, tested: Tested) -> str:
    """The last line of the report."""
    test, count = tested.test, len(run.splits.test)
    return (
        f"test accuracy {100 * test.accuracy:.2f}% ({round(test.accuracy * count)} of "
        f"{count}), test loss {run_folder.shown(test.loss)}, {run.progress.seconds:.0f} s; "
        f"see {run.given}"
    )


def place(progress: Progress, step: int) -> str:
    """A step of the epoch under way, in words."""
    return f"step {step} (epoch {progress.epoch + 1}, batch {progress.batch - (progress.step - step)})"


def lost(what: str, place: str, first: str) -> tuple[str, bool]:
    """Why a run is stopped whose loss or gradient is not finite, in words, and whether it has diverged."""
    diverged = not first.startswith("the input")
    return (
        f"{checks.LOST if diverged else ''}{what} at {place}. First not finite: {first}. The run is "
        "stopped, and what it has saved is kept; "
        + (f"try {checks.GENTLER}" if diverged else "mend the pictures or their normalisation")
    ), diverged


def summary(
    run: Ending, *, diverged: bool, tested: Tested | None = None, stopped_early: str | None = None
) -> dict[str, Any]:
    """Write ``summary.json``, and give what it holds. Raises: MiniresError if it cannot be written."""
    test, val = (tested.test, tested.val) if tested else (None, None)
    content = report.summary(
        run.config, run.splits, run.train_set, run.model, run.history, test=test, val=val, diverged=diverged,
        stopped_early=stopped_early, seconds=run.progress.seconds, steps=run.progress.step,
        device=run.device, ranks=run.comm.size, warnings=run.warnings,
    )  # fmt: skip
    run_folder.write_json(run.out / continuing.SUMMARY, content)
    return content

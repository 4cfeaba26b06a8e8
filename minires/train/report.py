"""What ``summary.json`` holds, of a run that came to its end and of one that did not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from minires import backend
from minires.train import run_folder
from minires.train.evaluation import Evaluation

if TYPE_CHECKING:
    from minires.train.trainer import Trainer


def summary(
    run: Trainer, *, diverged: bool, test: Evaluation | None = None, val: Evaluation | None = None
) -> dict[str, Any]:
    """The figures of a run as plain data for JSON; what was not measured, or is not finite, is None.

    The training figures are those of the last epoch that came to its end. Units: seconds.
    """
    config, last = run.config, run.history[-1] if run.history else {}
    return {
        "model": config.model,
        "dataset": run.train_set.name,
        "source": run.splits.source,
        "recipe": config.recipe,
        "epochs": config.epochs,
        "seed": config.seed,
        "diverged": diverged,
        "test_accuracy": test.accuracy if test else None,
        "test_loss": run_folder.finite(test.loss if test else None),
        "val_accuracy": val.accuracy if val else None,
        "val_loss": run_folder.finite(val.loss if val else None),
        "train_accuracy": last.get("train_accuracy"),
        "train_loss": last.get("train_loss"),
        "seconds": run.progress.seconds,
        "steps": run.progress.step,
        "train_pictures": len(run.train_set),
        "left_out_of_each_epoch": left_out(run),
        "test_pictures": len(run.splits.test),
        "parameters": sum(parameter.size for parameter in run.model.parameters()),
        "device": run.device,
        "threads": backend.threads(),
        "warnings": run.warnings,
        "versions": run_folder.versions(),
    }


def left_out(run: Trainer) -> int:
    """How many training pictures make no whole batch, and are left out of an epoch."""
    return len(run.train_set) % run.config.batch_size if run.config.drop_last else 0

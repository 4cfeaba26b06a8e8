"""The subcommands of the program, a file each: options, help, and the function that does the work.

A function imports what it needs when it runs, so that ``minires --help`` answers at once and ``minires
doctor`` works where a package is missing.
"""

from minires.commands import (
    compare,
    data,
    diff,
    doctor,
    evaluate,
    export,
    gradcheck,
    import_weights,
    lab,
    models,
    play,
    plot,
    predict,
    responses,
    summary,
    trace,
    train,
    watch,
    weights,
)
from minires.commands.loading import FAILED
from minires.commands.registry import Command
from minires.registry import Registry

__all__ = ["COMMANDS", "FAILED", "Command"]

COMMANDS: Registry[Command] = Registry("command", {
    "train": train.COMMAND,
    "watch": watch.COMMAND,
    "evaluate": evaluate.COMMAND,
    "compare": compare.COMMAND,
    "lab": lab.COMMAND,
    "predict": predict.COMMAND,
    "models": models.COMMAND,
    "summary": summary.COMMAND,
    "plot": plot.COMMAND,
    "responses": responses.COMMAND,
    "trace": trace.COMMAND,
    "play": play.COMMAND,
    "diff": diff.COMMAND,
    "weights": weights.COMMAND,
    "import-weights": import_weights.COMMAND,
    "export": export.COMMAND,
    "gradcheck": gradcheck.COMMAND,
    "data": data.COMMAND,
    "doctor": doctor.COMMAND,
})  # fmt: skip

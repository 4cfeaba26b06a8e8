"""What the subcommands of the program do: each calls the library and prints what comes back.

A function imports what it needs when it runs, so that ``minires --help`` answers at once and ``minires
doctor`` works where a package is missing. Each returns the exit status.
"""

from minires.commands.checks import run_data, run_doctor, run_gradcheck
from minires.commands.loading import FAILED
from minires.commands.models import run_diff, run_export, run_import_weights, run_plot, run_summary
from minires.commands.pictures import run_play, run_trace
from minires.commands.training import run_evaluate, run_predict, run_train

__all__ = [
    "FAILED",
    "run_data",
    "run_diff",
    "run_doctor",
    "run_evaluate",
    "run_export",
    "run_gradcheck",
    "run_import_weights",
    "run_play",
    "run_plot",
    "run_predict",
    "run_summary",
    "run_trace",
    "run_train",
]

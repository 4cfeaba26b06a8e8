"""What models are made of and cost, how they look, and how two differ; what several runs have come to."""

from minires.inspect.differences import Diff, Setting, diff, parse
from minires.inspect.disagreements import Disagreement, disagreement
from minires.inspect.drawing import plot, plot_tape
from minires.inspect.runs import Compared, Group, Run, compare_runs
from minires.inspect.summary import Layer, Summary, summarize

__all__ = [
    "Compared", "Diff", "Disagreement", "Group", "Layer", "Run", "Setting", "Summary", "compare_runs", "diff",
    "disagreement", "parse", "plot", "plot_tape", "summarize",
]  # fmt: skip

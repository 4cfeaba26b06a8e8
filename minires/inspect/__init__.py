"""Looking into models: what they are made of and cost, how they look and differ, what one pass does."""

from minires.inspect.diff import Diff, Setting, diff, parse
from minires.inspect.plot import plot, plot_tape
from minires.inspect.summary import Layer, Summary, summarize
from minires.inspect.trace import trace, trace_page

__all__ = [
    "Diff", "Layer", "Setting", "Summary", "diff", "parse", "plot", "plot_tape", "summarize", "trace",
    "trace_page",
]  # fmt: skip

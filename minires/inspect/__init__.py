"""Looking into models: what they are made of, what that costs, how they look, and how two of them differ."""

from minires.inspect.diff import Diff, Setting, diff, parse
from minires.inspect.plot import plot, plot_tape
from minires.inspect.summary import Layer, Summary, summarize

__all__ = ["Diff", "Layer", "Setting", "Summary", "diff", "parse", "plot", "plot_tape", "summarize"]

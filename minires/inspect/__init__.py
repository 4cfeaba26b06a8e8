"""What models are made of and cost, how they look, how two differ, how strong their layers respond, and on
which paths their gradient comes.

What several runs have come to is told by :mod:`minires.inspect.runs`, on which pictures they disagree by
:mod:`minires.inspect.disagreements`; these two know the trainer, and are imported by themselves.
"""

from minires.inspect.differences import Diff, Setting, diff, parse
from minires.inspect.drawing import plot, plot_tape
from minires.inspect.effective_paths import PathLengths, path_lengths
from minires.inspect.layer_responses import draw_responses, responses_of
from minires.inspect.summary import Layer, Summary, summarize

__all__ = [
    "Diff", "Layer", "PathLengths", "Setting", "Summary", "diff", "draw_responses", "parse", "path_lengths",
    "plot", "plot_tape", "responses_of", "summarize",
]  # fmt: skip

"""Watching a run, while it goes and afterwards, in the browser or the terminal: ``serve("runs/mine")``."""

from minires.watch.server import serve
from minires.watch.terminal import follow

__all__ = ["follow", "serve"]

"""Trying a trained model in the browser, on this machine alone: ``serve("runs/signs-default-1")``."""

from minires.play.server import serve

__all__ = ["serve"]

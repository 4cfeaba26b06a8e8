"""Looking into models: what they are made of, and what that costs."""

from minires.inspect.summary import Layer, Summary, summarize

__all__ = ["Layer", "Summary", "summarize"]

"""The trace page: every number of one picture's pass, in a file of its own."""

from minires.debug.trace_page.build import trace, trace_html

__all__ = ["trace", "trace_html"]

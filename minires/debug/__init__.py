"""One recorded pass through a network: step through it, explain its numbers, write it down as a page."""

from minires.debug.cam import ActivationMaps, activation_maps, overlay
from minires.debug.recording import Recording, record_passes
from minires.debug.step import Stepper
from minires.debug.tape import record_tape
from minires.debug.trace_page import trace, trace_html

__all__ = [
    "ActivationMaps", "Recording", "Stepper", "activation_maps", "overlay", "record_passes", "record_tape",
    "trace", "trace_html",
]  # fmt: skip

"""Weights that others trained: read from files of PyTorch's and Keras's and brought into our models."""

from minires.weights.classes import class_names
from minires.weights.fetching import Taken, check, fetch, take
from minires.weights.known import KNOWN, Known, path_of, place_of
from minires.weights.name_tables import names_of
from minires.weights.pretrained import import_weights, load_pretrained
from minires.weights.report import Report
from minires.weights.sources import SOURCES, recognise, variant_for
from minires.weights.torch.files import read

__all__ = [
    "KNOWN", "SOURCES", "Known", "Report", "Taken", "check", "class_names", "fetch", "import_weights",
    "load_pretrained", "names_of", "path_of", "place_of", "read", "recognise", "take", "variant_for",
]  # fmt: skip

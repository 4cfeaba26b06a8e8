"""Weights that others trained: read from files of PyTorch's, renamed, and brought to our layout."""

from minires.weights.name_tables import SOURCES, names_of, recognise
from minires.weights.pretrained import Report, import_weights, load_pretrained, variant_for
from minires.weights.torch.files import read

__all__ = [
    "SOURCES", "Report", "import_weights", "load_pretrained", "names_of", "read", "recognise", "variant_for",
]  # fmt: skip

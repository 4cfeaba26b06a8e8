"""A from-scratch deep-learning engine for understanding residual networks and really running them."""

from minires import ops  # noqa: F401  (gives Tensor its operators)
from minires.backend import set_threads, specification
from minires.errors import CheckpointError, ConfigError, DataError, MiniresError, ShapeError
from minires.gradcheck import GradcheckError, gradcheck
from minires.tensor import Tensor, cut, no_grad, unfused

__version__ = "0.1.0"
__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "GradcheckError",
    "MiniresError",
    "ShapeError",
    "Tensor",
    "cut",
    "gradcheck",
    "no_grad",
    "set_threads",
    "specification",
    "unfused",
]

"""What the registry knows of a model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from minires.nn.module import Module


@dataclass(frozen=True)
class Paper:
    """Where a model comes from; ``title`` is that of the paper, ``arxiv`` its number there.

    >>> print(Paper("He et al.", 2015, "Deep residual learning for image recognition", "1512.03385"))
    He et al. 2015, arXiv:1512.03385
    """

    authors: str
    year: int
    title: str
    arxiv: str = ""

    def __str__(self) -> str:
        return f"{self.authors} {self.year}" + (f", arXiv:{self.arxiv}" if self.arxiv else "")


@dataclass(frozen=True)
class Entry:
    """How a model is made: ``make(classes=, **preset)``, the picture size it is for, its usual classes.

    ``preset`` are the options that make this row of the paper's table out of the family; a user's own
    options go before them. ``title`` says in a line what it is, ``paper`` where it comes from.
    """

    make: Callable[..., Module]
    size: int = 224
    classes: int = 1000
    preset: Mapping[str, Any] = field(default_factory=dict)
    title: str = ""
    paper: Paper | None = None

    @property
    def options(self) -> set[str]:
        """The names of the options that ``build`` takes for this model."""
        return set(inspect.signature(self.make).parameters) - {"classes", "rng"}

    @property
    def takes_rng(self) -> bool:
        """Whether ``make`` has the keyword ``rng``."""
        return "rng" in inspect.signature(self.make).parameters

    def fitted(self, size: int) -> dict[str, Any]:
        """The option that fits the model to pictures of ``size``: none where it takes any size."""
        return {"size": size} if size != self.size and "size" in self.options else {}

    def to_look_at(self, size: int) -> dict[str, Any]:
        """Options for a model of which only shapes and counts are wanted: fitted to pictures of ``size``, and
        with zeros for weights, since there is nothing to see in random numbers, and VGG has many."""
        return {**self.fitted(size), **({"initializer": "zeros"} if "initializer" in self.options else {})}

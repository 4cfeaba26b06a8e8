"""What is said of weights that were loaded."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Report:
    """What was loaded: ``left_out`` are parameters of the model that kept the values they had."""

    path: str
    source: str
    tensors: int
    numbers: int
    left_out: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = f"{self.path}: {self.tensors} tensors, {self.numbers:,} numbers, named as {self.source}'s are"
        return f"{text}; not loaded: {', '.join(self.left_out)}" if self.left_out else text

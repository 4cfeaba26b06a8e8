"""What is said of weights that were loaded."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Report:
    """What was loaded: ``left_out`` are parameters of the model that kept the values they had.

    ``notes`` say what was assumed because the file does not state it, and how else it was read.
    """

    path: str
    source: str
    tensors: int
    numbers: int
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = f"{self.path}: {self.tensors} tensors, {self.numbers:,} numbers, named as {self.source}'s are"
        if self.left_out:
            text = f"{text}; not loaded: {', '.join(self.left_out)}"
        return "\n  ".join([text, *self.notes])

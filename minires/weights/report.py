"""What is said of weights that were loaded."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Report:
    """What was loaded: ``left_out`` are parameters of the model that kept the values they had.

    ``notes`` say what was chosen, what was assumed because the file does not state it, and how else it was
    read; ``classes`` are the names of the outputs where a model was written.
    """

    path: str
    source: str
    tensors: int
    numbers: int
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = f"{self.path}: {self.tensors} tensors, {self.numbers:,} numbers, named as {self.source}'s are"
        text = f"{text}; not loaded: {', '.join(self.left_out)}" if self.left_out else text
        return "\n".join([text, *(f"  {note}" for note in self.notes)])

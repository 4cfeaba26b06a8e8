"""What a lab has found, when all of its runs are done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minires.lab.expect import Judged, overall
from minires.lab.lab import Lab, Numbers
from minires.lab.scale import Case, Scale


@dataclass(frozen=True)
class Outcome:
    """What a lab has found: the numbers, each expectation held against them, the further questions, too, and
    where all of it stands.

    ``core_seconds`` are those of all runs, those of before included, times the threads of each; ``when`` are
    the days on which they were.
    """

    lab: Lab
    scale: Scale
    seeds: int
    cases: Mapping[str, Case]
    numbers: Numbers
    judged: tuple[Judged, ...]
    further: tuple[Judged, ...]
    core_seconds: float
    when: str
    folder: Path

    @property
    def verdict(self) -> str:
        """The verdict on the whole claim."""
        return overall([one.verdict for one in self.judged])


def outcome(
    lab: Lab, scale: Scale, cases: Mapping[str, Case], rows: list[dict[str, Any]], folder: Path
) -> Outcome:
    """What rows of results say."""
    numbers = Numbers({name: [row["measured"] for row in rows if row["case"] == name] for name in cases})
    judged, further = (
        tuple(one.judge(numbers) for one in which) for which in (lab.expects, lab.further)
    )
    seeds = len({row["seed"] for row in rows})
    core_seconds = sum(row["seconds"] * row["threads"] for row in rows)
    days = sorted({row["date"] for row in rows})
    when = " to ".join(dict.fromkeys(days[:1] + days[-1:]))
    return Outcome(lab, scale, seeds, cases, numbers, judged, further, core_seconds, when, folder)


def in_words(seconds: float) -> str:
    """A time that a person reads.

    >>> in_words(4.2), in_words(80), in_words(4000)
    ('4 s', '1.3 min', '1.1 h')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"

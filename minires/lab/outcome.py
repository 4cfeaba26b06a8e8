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

    ``when`` are the days on which its runs were.
    """

    lab: Lab
    scale: Scale
    seeds: int
    cases: Mapping[str, Case]
    numbers: Numbers
    judged: tuple[Judged, ...]
    further: tuple[Judged, ...]
    when: str
    folder: Path

    @property
    def alike(self) -> list[str]:
        """The cases of which all seeds, if they are several, gave the same numbers."""
        return [
            case for case, seeds in self.numbers.items()
            if len(seeds) > 1 and seeds.count(seeds[0]) == len(seeds)
        ]  # fmt: skip

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
    days = sorted({row["date"] for row in rows})
    when = " to ".join(dict.fromkeys(days[:1] + days[-1:]))
    return Outcome(lab, scale, seeds, cases, numbers, judged, further, when, folder)

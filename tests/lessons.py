"""The lessons in tutorials/ and the answers to their exercises, cut into cells."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
TUTORIALS = ROOT / "tutorials"
ANSWERS = ROOT / "tests/tutorials/answers"
LESSONS = sorted(TUTORIALS.glob("[0-9][0-9]_*.py"))
_CELL = re.compile(r"^# %%(.*)\n", re.MULTILINE)


@dataclass(frozen=True)
class Cell:
    """One cell: the comment that heads it as prose, and the code below; ``line`` is where the code begins.

    ``label`` is what stands behind the ``# %%``.
    """

    label: str
    prose: str
    code: str
    line: int

    @property
    def heading(self) -> str:
        """The heading that the prose begins with, or nothing."""
        found = re.match(r"(.+)\n([-=~])\2{2,}(\n|$)", self.prose)
        return found[1] if found else ""


def cells(path: Path) -> list[Cell]:
    """The cells of a file; what stands above the first ``# %%``, the docstring, is none."""
    text = path.read_text(encoding="utf-8")
    starts = list(_CELL.finditer(text))
    ends = [start.start() for start in starts[1:]] + [len(text)]
    found = []
    for start, end in zip(starts, ends, strict=True):
        body = text[start.end() : end]
        prose = re.match(r"(#.*\n)*", body)[0]
        line = text[: start.end()].count("\n") + prose.count("\n") + 1
        plain = "\n".join(re.sub("^# ?", "", row) for row in prose.splitlines())
        found.append(Cell(start[1].strip(), plain.strip(), body[len(prose) :], line))
    return found


def exercises(lesson: Path) -> list[Cell]:
    """The cells with code between the headings "Exercises" and "What you now know"."""
    all_cells = cells(lesson)
    headings = [cell.heading for cell in all_cells]
    assert headings.count("Exercises") == 1, f"{lesson.name} needs one cell with the heading Exercises"
    return [cell for cell in all_cells[headings.index("Exercises") :] if cell.code.strip()]


def first_code(lesson: Path) -> Cell:
    """The lesson's first cell with code: its imports."""
    return next(cell for cell in cells(lesson) if cell.code.strip())


def answers(lesson: Path) -> list[Cell]:
    """The answers to the exercises of a lesson, labelled "exercise 1, right" or "exercise 1, wrong: why"."""
    path = ANSWERS / f"lesson_{lesson.name[:2]}.py"
    assert path.exists(), f"the exercises of {lesson.name} need their answers in {path.name}"
    return cells(path)

"""Every lesson has its form, and its exercises tell a right answer from a wrong one and from none."""

from __future__ import annotations

import ast
import linecache
import re
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import matplotlib
import pytest
from lessons import ANSWERS, LESSONS, Cell, answers, cells, exercises, first_code

matplotlib.use("Agg")
every_lesson = pytest.mark.parametrize("lesson", LESSONS, ids=[path.stem for path in LESSONS])


@pytest.fixture(scope="module", autouse=True)
def its_own_modules():
    """What a lesson's cell puts into linecache is taken out again."""
    before = set(linecache.cache)
    yield
    for name in set(linecache.cache) - before:
        del linecache.cache[name]


def names_of_stubs(code: str) -> dict[str, ast.stmt]:
    """The statements of a cell that define a name beginning with ``your_``, by that name."""
    found = {}
    for statement in ast.parse(code).body:
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement]
        names = [getattr(target, "id", getattr(target, "name", "")) for target in targets]
        found |= {name: statement for name in names if name.startswith("your_")}
    return found


def with_answer(exercise: Cell, answer: Cell) -> str:
    """The code of the exercise with the answer in the place of its stubs."""
    stubs, given = names_of_stubs(exercise.code), names_of_stubs(answer.code)
    assert stubs.keys() == given.keys(), f"{answer.label}: answers {set(given)}, asked are {set(stubs)}"
    lines = exercise.code.splitlines()
    for statement in sorted(stubs.values(), key=lambda s: -s.lineno):
        first = min([statement.lineno, *(d.lineno for d in getattr(statement, "decorator_list", []))])
        del lines[first - 1 : statement.end_lineno]
        at = first - 1
    return "\n".join([*lines[:at], answer.code, *lines[at:]])


def run(lesson: Path, code: str) -> list[str]:
    """Run the imports of a lesson, then the code of one exercise, and nothing else; what it printed."""
    namespace = {"__name__": "__main__"}
    name = f"<exercise of {lesson.stem}>"
    linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
    with redirect_stdout(StringIO()) as out:
        exec(compile(first_code(lesson).code, str(lesson), "exec"), namespace)
        out.seek(0)
        out.truncate()
        exec(compile(code, name, "exec"), namespace)
    return out.getvalue().splitlines()


def of_exercise(lesson: Path, number: int, kind: str) -> list[Cell]:
    return [cell for cell in answers(lesson) if re.match(rf"exercise {number}, {kind}\b", cell.label)]


# ----------------------------------------------------------------------------------------------- its form


def test_lessons_are_numbered_from_one_without_a_gap():
    assert [path.name[:2] for path in LESSONS] == [f"{n:02}" for n in range(1, len(LESSONS) + 1)]
    assert len(LESSONS) == 14


def test_there_are_no_answers_to_nothing():
    known = {f"lesson_{path.name[:2]}.py" for path in LESSONS}
    assert {path.name for path in ANSWERS.glob("*.py")} <= known


@every_lesson
def test_it_has_a_title_and_a_summary(lesson):
    doc = ast.get_docstring(ast.parse(lesson.read_text(encoding="utf-8")))
    title, line, empty, summary = doc.splitlines()[:4]
    assert re.fullmatch(rf"{lesson.name[:2]} · \S.*", title)
    assert re.fullmatch("=+", line) and len(line) >= len(title)
    assert empty == "" and summary.strip(), "one sentence below the title says what the reader will see"


@every_lesson
def test_its_cells(lesson):
    found = cells(lesson)
    assert not [cell.label for cell in found if cell.label], "nothing stands behind # %%"
    assert [cell.heading for cell in found][-1] == "What you now know"
    assert not found[-1].code.strip(), "nothing comes after what the reader now knows"
    assert 3 <= len(re.findall(r"^[*-] ", found[-1].prose, re.MULTILINE)) <= 5
    imports = ast.walk(ast.parse(first_code(lesson).code))
    assert "check" in {a.name for node in imports if isinstance(node, ast.ImportFrom) for a in node.names}
    for cell in found:
        if cell not in exercises(lesson):
            assert not re.search(r"\bcheck\(", cell.code), (
                f"line {cell.line}: check() stands only in exercises"
            )


@every_lesson
def test_it_imports_only_what_every_reader_has(lesson):
    allowed = {"minires", "numpy", "matplotlib", "threadpoolctl"}  # minires asks pip for all of these
    for node in ast.walk(ast.parse(lesson.read_text(encoding="utf-8"))):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            root = name.split(".")[0]
            assert root in allowed or root in sys.stdlib_module_names, (
                f"{lesson.name} line {node.lineno}: {name}"
            )


@every_lesson
def test_it_claims_what_it_asserts(lesson):
    """Claims are asserted and results are drawn in the cells above the exercises."""
    above = [cell.code for cell in cells(lesson) if cell not in exercises(lesson)]
    asserts = sum(isinstance(node, ast.Assert) for node in ast.walk(ast.parse("\n".join(above))))
    assert asserts >= 3
    assert len(re.findall(r"plt\.(subplots|figure)\(", "\n".join(above))) >= 2, "at least two pictures"


@every_lesson
def test_it_has_three_exercises_with_answers(lesson):
    found = exercises(lesson)
    assert len(found) == 3
    for number, exercise in enumerate(found, 1):
        assert re.match(rf"\*\*Exercise {number}\.\*\* \S", exercise.prose)
        assert names_of_stubs(exercise.code), f"exercise {number}: an answer is called your_..."
        assert "assert " not in exercise.code
        assert len(of_exercise(lesson, number, "right")) == 1
        assert of_exercise(lesson, number, "wrong: ")
    labels = [cell.label for cell in answers(lesson)]
    assert all(re.fullmatch(r"exercise [123], (right|wrong: \S.*)", label) for label in labels), labels


# ------------------------------------------------------------------------------------------- its exercises


@every_lesson
@pytest.mark.parametrize("number", [1, 2, 3])
def test_an_exercise_tells_right_from_wrong(lesson, number):
    exercise = exercises(lesson)[number - 1]
    calls = len(re.findall(r"^check\(", exercise.code, re.MULTILINE))
    assert calls >= 1

    untouched = run(lesson, exercise.code)
    assert len(untouched) >= calls
    assert all(line.startswith("open: ") for line in untouched), untouched

    (right,) = of_exercise(lesson, number, "right")
    said = run(lesson, with_answer(exercise, right))
    assert len(said) >= calls
    assert all(line.startswith("right: ") for line in said), said

    for wrong in of_exercise(lesson, number, "wrong: "):
        said = run(lesson, with_answer(exercise, wrong))
        assert any(line.startswith("not yet: ") for line in said), f"{wrong.label}: {said}"
        crashed = [line for line in said if "SyntaxError" in line or "NameError" in line]
        assert not crashed, f"{wrong.label} is not wrong but broken: {crashed}"

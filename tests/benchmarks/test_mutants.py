"""mutants.py: on a package of one function, whose tests leave a hole, it finds the hole and nothing else."""

import ast
import json
import os
import subprocess
import sys

import mutants
import mutations
import pytest
import tests_of

CODE = '''"""A text with 1 + 1 in it."""

__all__ = ["clipped"]


def clipped(x: "int | None", most: int = 10) -> int:
    """Not above ``most``: 3 < 4 and not 5."""
    if x < 0:
        raise ValueError(f"{x + 1} is below 0, {1}")
    while x > most:
        x -= 1
        if x == 5 and not most:
            break
    return x
'''
WEAK = """
import pytest
from minires.ops.clipped import clipped

def test_numbers():
    assert clipped(3, 10) == 3 and clipped(12, most=11) == 11 and clipped(0, 1) == 0
    with pytest.raises(ValueError):
        clipped(-1)
"""
STRONGER = "\n\ndef test_the_default():\n    assert clipped(12) == clipped(11) == clipped(10) == 10\n"


@pytest.fixture
def root(tmp_path):
    for path, text in {
        "minires/__init__.py": "", "minires/ops/__init__.py": "", "minires/ops/clipped.py": CODE,
        "minires/ops/clipped_cases.py": "CASES = 1 + 1\n", "tests/ops/test_clipped.py": WEAK,
        "pytest.ini": "[pytest]\n",
    }.items():  # fmt: skip
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    return tmp_path


def run(root, *options):
    program = [sys.executable, mutants.__file__, "--root", str(root), "--patience", "2", *options]
    bare = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # these tests need none, and start sooner
    done = subprocess.run(program, capture_output=True, text=True, env=bare)
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout, json.loads((root / mutants.RESULT).read_text())


def test_each_place_of_the_code_is_changed_and_no_text_type_or_message(root):
    assert [path.name for path in tests_of.engine(root)] == ["__init__.py", "clipped.py"]
    found = mutations.mutants_of(root / "minires/ops/clipped.py", root)
    assert [f"{one.line}: {one.change}" for one in found] == [
        "6: 10 -> 0", "6: 10 -> 11", "6: 10 -> 20",
        "8: x < 0 -> (not (x < 0))", "8: < -> <=", "8: 0 -> 1",
        "10: x > most -> (not (x > most))", "10: > -> >=",
        "11: - -> +", "11: 1 -> 0", "11: 1 -> 2",
        "12: x == 5 and not most -> (not (x == 5 and not most))", "12: == -> !=",
        "12: 5 -> 0", "12: 5 -> 10", "12: 5 -> 6", "12: and -> or", "12: not -> nothing",
        "13: break -> pass", "14: return x -> return None",
    ]  # fmt: skip
    before = CODE.encode()
    for one in found:
        after = before[: one.start] + one.new.encode() + before[one.stop :]
        assert ast.dump(ast.parse(after)) != ast.dump(ast.parse(before))
        assert after.count(b"\n") == before.count(b"\n") and one.code in CODE.splitlines()[one.line - 1]


def test_larger_files_get_more_and_the_same_seed_draws_the_same(root):
    (root / "minires/ops/small.py").write_text("ONE = 1\n\n\ndef small(x=2):\n    return x\n")
    drawn = mutants.drawn(root, 10, 0, [])
    assert {file: len(chosen) for file, chosen in drawn.items()} == {
        "minires/ops/clipped.py": 7, "minires/ops/small.py": 3,
    }  # fmt: skip
    assert drawn == mutants.drawn(root, 10, 0, []) != mutants.drawn(root, 10, 1, [])
    assert list(mutants.drawn(root, 1, 0, ["small"]).values())[0] == drawn["minires/ops/small.py"][:2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the tests are run in forks")
def test_the_hole_in_the_tests_is_found_and_closed_and_nothing_is_run_twice(root):
    told, first = run(root, "--mutants", "5")
    assert first["mutants"] == 5 == first["killed"] + first["survived"]
    told, whole = run(root, "--mutants", "100")
    assert told.count("minires/ops/clipped.py:") == 15 and told.count("about 0 s left") == 1
    assert whole["mutants"] == 20 and (root / "minires/ops/clipped.py").read_text() == CODE
    survived = whole["files"]["minires/ops/clipped.py"]["survived"]
    assert {(one["line"], one["change"]) for one in survived} == {
        (6, "10 -> 0"), (6, "10 -> 11"), (6, "10 -> 20"), (12, "== -> !="), (12, "5 -> 0"), (12, "5 -> 10"),
        (12, "5 -> 6"), (12, "and -> or"), (12, "not -> nothing"),
        (12, "x == 5 and not most -> (not (x == 5 and not most))"), (13, "break -> pass"),
    }  # fmt: skip
    assert whole["share_killed"] == round(whole["killed"] / 20, 4)

    with open(root / "tests/ops/test_clipped.py", "a") as file:
        file.write(STRONGER)
    never = [{**one, "reason": "nobody sees it"} for one in survived if one["change"] == "break -> pass"]
    (root / mutants.EQUIVALENT).write_text(json.dumps(never))
    told, again = run(root, "--again")
    assert "break -> pass" not in told
    assert "clipped.py:6 10 -> 0: killed (failed)" in told and again["killed"] >= whole["killed"] + 3
    assert again["equivalent"] == 1 and again["share_killed"] == round(again["killed"] / 19, 4)
    told, last = run(root, "--mutants", "100")
    assert "clipped.py:" not in told and last == again


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the tests are run in forks")
def test_a_file_whose_tests_fail_as_it_is_is_left_out(root):
    (root / "tests/ops/test_clipped.py").write_text("def test_it():\n    assert 0\n")
    told, result = run(root, "--mutants", "5")
    assert "left out: minires/ops/clipped.py: without a mutant its tests" in told and result["mutants"] == 0

"""The README tells the truth: its figures are those of the result files, its code runs."""

import re
from pathlib import Path

import pytest
import readme

TEXT = readme.README.read_text()
CODE = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def test_the_figures_are_those_of_the_result_files():
    assert readme.rewritten(TEXT) == TEXT, "run python benchmarks/readme.py"
    for name in readme.TABLES:
        assert f"<!-- results: {name} -->\n|" in TEXT


def test_every_file_it_points_to_is_there():
    links = re.findall(r"\]\(([^)#]+)\)", TEXT)
    assert len(links) >= 3
    for link in links:
        assert (readme.README.parent / link).exists(), link


@pytest.mark.parametrize(
    "code", CODE, ids=["family", "step", "one block", "training loop", "inference", "less memory"]
)
def test_its_code_runs(code, capsys):
    # The loop is the reader's to run in full; here it sees two batches.
    exec(code.replace("Loader(hands.train,", "Loader(hands.train.take(range(32)),"), {})
    assert len(capsys.readouterr().out.splitlines()) >= 2


def test_its_commands_exist():
    from minires.cli import main

    commands = set(re.findall(r"^minires ([\w-]+)|/minires ([\w-]+)|`minires ([\w-]+)", TEXT, re.MULTILINE))
    for command in {one for group in commands for one in group if one}:
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert stop.value.code == 0, command


def test_a_wrong_figure_would_be_seen(tmp_path: Path):
    assert readme.rewritten(TEXT.replace("<!-- end -->", "1.0\n<!-- end -->")) == readme.rewritten(TEXT)

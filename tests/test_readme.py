"""README, the pages of the guide and CONTRIBUTING tell the truth.

Their figures are those of the result files, their code runs, their commands and files are there.
"""

from __future__ import annotations

import pkgutil
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import readme

from minires.cli import main

PAGES = [*readme.PAGES, readme.ROOT / "CONTRIBUTING.md", readme.ROOT / "CHANGELOG.md"]
TEXTS = {path.name: path.read_text(encoding="utf-8") for path in PAGES}
# A block of Python at the margin is a program; one that is indented, in a list, is a piece of a file.
CODE = {
    f"{name} {number}": code
    for name, text in TEXTS.items()
    for number, code in enumerate(re.findall(r"^```python\n(.*?)```", text, re.DOTALL | re.MULTILINE), 1)
}
every_page = pytest.mark.parametrize("page", PAGES, ids=[path.name for path in PAGES])


def prose(text: str) -> str:
    """The text without its blocks of code."""
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(text: str) -> set[str]:
    """What a link to a heading of this page is called."""
    headings = re.findall(r"^#+ (.*)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_is_short():
    assert len(TEXTS["README.md"].splitlines()) <= 200


@every_page
def test_the_figures_are_those_of_the_result_files(page: Path):
    assert readme.rewritten(TEXTS[page.name]) == TEXTS[page.name], "run python benchmarks/readme.py"


def test_every_table_stands_in_one_page():
    begin = re.compile(r"<!-- results: (\w+) -->\n(?:\*\*.+\*\*\n\n)?\|")  # the name of a processor, perhaps
    tables = [name for text in TEXTS.values() for name in begin.findall(text)]
    assert sorted(tables) == sorted(readme.TABLES)


def test_a_wrong_figure_would_be_seen():
    text = TEXTS["results.md"]
    wrong = text.replace("<!-- end -->", "1.0\n<!-- end -->")
    assert wrong != readme.rewritten(wrong) == readme.rewritten(text)


@every_page
def test_everything_it_points_to_is_there(page: Path):
    for link in re.findall(r"\]\((?!https:)([^)\s]+)\)", prose(TEXTS[page.name])):
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), link


def test_every_page_of_the_guide_is_found_from_the_readme():
    found, new, every = set(), {readme.README}, {page.resolve() for page in PAGES}
    while new:
        found |= new
        links = {(page, link) for page in new for link in re.findall(r"\]\(([^)#]+\.md)", TEXTS[page.name])}
        # Reports of the lab are found so, too, but lead no further.
        new = {(page.parent / link).resolve() for page, link in links} - found
        new, found = new & every, found | new
    assert every <= found


def test_the_names_that_the_changelog_leads_to_are_there():
    moved = re.findall(r"^  \| .* \| (.*`minires.*) \|$", TEXTS["CHANGELOG.md"], re.MULTILINE)
    names = re.findall(r"`(minires[\w.]*)`", " ".join(moved))
    assert len(names) >= 20
    assert all(pkgutil.resolve_name(name) for name in names)


@pytest.mark.usefixtures("registries_as_before")
@pytest.mark.parametrize("code", CODE.values(), ids=CODE)
def test_its_code_runs(
    code: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)  # where what it writes may lie
    # The loop is the reader's to run in full; here it sees two batches.
    exec(code.replace("Loader(hands.train,", "Loader(hands.train.take(range(32)),"), {"__name__": "__main__"})
    assert len(capsys.readouterr().out.splitlines()) >= 2


def commands(text: str) -> Iterator[list[str]]:
    """Every call of minires in a block for the shell or between backticks, cut into words."""
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()] + re.findall(r"`(minires [^`]*)`", text)
    for line in lines:
        if found := re.search(r"(?:^|/)minires ([\w-]+.*)", line):
            yield shlex.split(found[1], comments=True)


@every_page
def test_its_commands_and_their_options_exist(page: Path, capsys: pytest.CaptureFixture[str]):
    for command, *words in commands(TEXTS[page.name]):
        if command == "--import":  # the one option before a command that takes a word
            _, command, *words = words
        if command == "COMMAND":
            continue
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert stop.value.code == 0, command
        told = capsys.readouterr().out
        for option in (word for word in words if word.startswith("-")):
            assert re.search(rf"(?<![\w-]){option}(?![\w-])", told), f"minires {command} knows no {option}"


def test_the_guide_has_every_command(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["--help"])
    there = set(re.findall(r"^    ([a-z][\w-]+)(?:  |$)", capsys.readouterr().out, re.MULTILINE))
    assert len(there) >= 13
    assert there == set(re.findall(r"^\| `minires ([\w-]+)` \|", TEXTS["commands.md"], re.MULTILINE))


def test_the_tour_of_the_debugger_has_gradients_to_see():
    (code,) = (code for name, code in CODE.items() if name.startswith("README.md") and "s.back()" in code)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(code, namespace)
    stop = namespace["s"].here
    assert stop.backward and abs(stop.operation.incoming).max() > 1e-6
    assert not namespace["s"].recording.noise and "noise" not in repr(stop)

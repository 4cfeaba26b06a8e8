"""The package has a name of its own, one version, and nobody is told to install a stranger's code."""

from __future__ import annotations

import configparser
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import minires
from minires import version

ROOT = Path(__file__).parents[1]
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg", encoding="utf-8")
TEXTS = {".py", ".md", ".rst", ".cfg", ".toml", ".cff", ".yml", ".yaml", ".html", ".js", ".txt", ""}

# What pip is told to install, and a name with extras anywhere: a message may be put together from pieces.
WORD = r"[\"']?[\w.\-\[\],=<>~/$:{}]+[\"']?"
INSTALL = re.compile(rf"\bpip3?\s+install(\s+{WORD}(?:[ \t]+{WORD})*)")
EXTRAS = re.compile(r"\bminires(?:-engine)?\\?\[[a-z]")


def offences(text: str) -> list[str]:
    """The places that tell a user to take a package called minires, or minires-engine, from the index."""
    told = [
        found[0]
        for found in INSTALL.finditer(text)
        if any(re.match(r"minires(-engine)?\b(?!/)", word.strip("\"'")) for word in found[1].split())
    ]
    return told + [found[0] for found in EXTRAS.finditer(text)]


def files() -> Iterator[Path]:
    """Every file of ours that a user may read; what tools leave in the tree is not ours."""
    for top in (".ci", ".github", "benchmarks", "minires", "tests", "tutorials"):
        yield from (ROOT / top).rglob("*")
    yield from ROOT.glob("*")
    yield from ROOT.glob(".pre-commit*")


def test_nobody_is_told_to_install_a_strangers_package():
    read = {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
        for path in files()
        if path.is_file() and path.suffix in TEXTS and "__pycache__" not in path.parts
    }
    del read["tests/test_packaging.py"]
    assert {"README.md", ".ci/run", "minires/cli.py", "tutorials/index.rst"} <= read.keys()
    found = {name: wrong for name, text in read.items() if (wrong := offences(text))}
    assert not found


@pytest.mark.parametrize(
    "text",
    [
        "pip install minires", "pip install 'minires[torch]'", r"pip install .minires\[bf16\].",
        "pip install -U minires==0.1.0", "pip install\nminires-engine", ".venv/bin/pip install numpy minires",
        "`'minires[onnx]'` writes ONNX", "python -m pip install minires-engine[fast]",
    ],
)  # fmt: skip
def test_each_form_of_it_would_be_seen(text):
    assert offences(text)


@pytest.mark.parametrize(
    "text",
    [
        "pip install torch", "pip install '.[fast]' && .venv/bin/minires train", "pip uninstall -y minires",
        "pip install -e '.[fast,test]'", "pip install onnx; minires export", "minires[:3]",
    ],
)  # fmt: skip
def test_what_is_right_is_let_be(text):
    assert not offences(text)


def test_the_name_and_the_version_are_written_once():
    assert SETUP["metadata"]["name"] == version.DISTRIBUTION != "minires"
    assert SETUP["metadata"]["version"] == "attr: minires.version.__version__"
    assert minires.__version__ == version.__version__
    assert SETUP["options.entry_points"]["console_scripts"].split() == ["minires", "=", "minires.cli:main"]


def test_the_workflow_runs_the_one_truth_and_every_python_that_is_promised():
    workflow = (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    assert "bash .ci/run" in workflow
    promised = re.findall(r"Python :: (3\.\d+)$", SETUP["metadata"]["classifiers"], re.MULTILINE)
    tested = re.search(r"^        python: (.*)$", workflow, re.MULTILINE)
    assert re.findall(r"3\.\d+", tested[1]) == promised
    assert SETUP["options"]["python_requires"] == f">={promised[0]}"

"""The program in the process of the tests: with which status it ends, and what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from minires import cli


def call(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """The program's exit status, standard output and standard error."""
    capsys.readouterr()
    try:
        status = cli.main([str(argument) for argument in arguments])
    except SystemExit as leave:  # argparse ends the program itself
        status = leave.code if isinstance(leave.code, int) else 1
    said = capsys.readouterr()
    return status, said.out, said.err


def refused(capsys: pytest.CaptureFixture[str], status: int, *arguments: str | Path) -> str:
    """The one line with which the program refuses."""
    got, _, err = call(capsys, *arguments)
    assert got == status and "Traceback" not in err
    line = err.strip().splitlines()[-1]
    assert line.startswith("minires: error: ")
    return line

"""The lab: claims of papers, each with what is run to see whether it holds, a figure, and a verdict.

    expect.py   a claim as a rule that numbers can break
    scale.py    how much is done, and the cases that are compared
    run.py      one run, trained once
    lab.py      a lab: the claim, the cases, the figure
    session.py  all runs of a lab, found again where they were done before
    report.py   figure, table and report
    papers/     the labs that come with minires

A lab of your own is a file with a subclass of :class:`Lab`: ``minires lab my_lab.py``.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from minires.errors import ConfigError, MiniresError
from minires.lab import draw
from minires.lab.expect import AGREES, DIFFERS, UNCLEAR, Expect, Judged
from minires.lab.lab import Lab, Numbers, checked
from minires.lab.outcome import Outcome
from minires.lab.papers import LABS
from minires.lab.report import write
from minires.lab.run import Run, digest
from minires.lab.scale import Case, Scale
from minires.lab.session import recalled, run_lab

__all__ = [
    "AGREES", "DIFFERS", "LABS", "UNCLEAR", "Case", "Expect", "Judged", "Lab", "Numbers", "Outcome", "Run",
    "Scale", "draw", "find", "load_file", "recalled", "run_lab", "write",
]  # fmt: skip

OWN = "minires_lab_of_"  # what the module of a file is called begins with this


def find(name: str) -> Lab:
    """A lab by its name, its number, or the path of a file that has one.

    Raises: ConfigError with the nearest name if it is unknown; MiniresError for a file that cannot be run.

    >>> find("P3").name, find("shortcuts").number
    ('shortcuts', 'P3')
    """
    if name.endswith(".py"):
        return load_file(name)
    by_number = {lab.number.lower(): lab for lab in LABS.values()}
    if re.fullmatch(r"[pP]\d+", name) and name.lower() not in by_number:
        raise ConfigError(f"there is no lab {name}; their numbers are P1 to P{len(LABS)}")
    return by_number.get(name.lower()) or LABS.find(name)


def load_file(path: str | os.PathLike[str]) -> Lab:
    """The lab in a Python file of your own: its subclass of :class:`Lab`. The file is run as a program is, so
    it may import what lies beside it.

    Raises: MiniresError with the place if the file fails; ConfigError if it has no lab, or several, or one
    with the name of a lab of minires.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"there is no file {path}")
    name = OWN + path.stem
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # it ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for the names in it
    beside = str(path.resolve().parent)
    if beside not in sys.path:
        sys.path.insert(0, beside)
    try:
        spec.loader.exec_module(module)
    except MiniresError:
        raise
    except (Exception, SystemExit) as error:
        said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise MiniresError(f"{path} fails when it is run: {said}") from error
    found = [
        one for one in vars(module).values()
        if isinstance(one, type) and issubclass(one, Lab) and one.__module__ == name
    ]  # fmt: skip
    if len(found) != 1:
        names = ", ".join(one.__name__ for one in found) or "none"
        raise ConfigError(f"{path} must have one subclass of minires.lab.Lab, and has {names}")
    lab = checked(found[0]())
    if lab.name in LABS:
        raise ConfigError(f"{path}: a lab of minires is called {lab.name!r}; choose another name")
    helpers = sorted(_helpers(beside))
    texts = [path.read_text(encoding="utf-8"), *(one.read_text(encoding="utf-8") for one in helpers)]
    lab.file, lab.version = str(path), digest(texts)
    lab.beside = digest([_without(texts[0], type(lab).__name__), *texts[1:]])
    return lab


def _helpers(folder: str) -> Iterator[Path]:
    """The files in a folder that were imported, of what is installed there apart."""
    for name, module in list(sys.modules.items()):
        file = Path(getattr(module, "__file__", None) or "")
        is_ours = name.partition(".")[0] == "minires" or name.startswith(OWN) or "site-packages" in file.parts
        # Some modules (of PyTorch) name a file that there is not, relative to wherever the program runs.
        if not is_ours and file.suffix == ".py" and file.is_file() and file.resolve().is_relative_to(folder):
            yield file


def _without(text: str, name: str) -> str:
    """What a program says beside a class and its own description; comments and layout do not count."""
    tree = ast.parse(text)
    described = ast.get_docstring(tree) is not None
    kept = [one for one in tree.body[described:] if not (isinstance(one, ast.ClassDef) and one.name == name)]
    return "\n".join(map(ast.dump, kept))

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
import sysconfig
import tokenize
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
_ours: set[str] = set()  # modules that no one but files of labs has imported from beside them


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
    sys.path[:] = [beside, *(one for one in sys.path if one != beside)]
    # Helpers are read anew: they may have changed, or lie beside another lab. Who imported one keeps it.
    theirs = {name: sys.modules.pop(name) for name in {*_ours, *_beside(beside)} if name in sys.modules}
    try:
        spec.loader.exec_module(module)
        found = [
            one for one in vars(module).values()
            if isinstance(one, type) and issubclass(one, Lab) and one.__module__ == name
        ]  # fmt: skip
        labs = [one() for one in found] if len(found) == 1 else []
    except MiniresError:
        raise
    except (Exception, SystemExit) as error:
        said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise MiniresError(f"{path} fails when it is run: {said}") from error
    finally:
        helpers = _beside(beside)
        sys.modules.update({name: one for name, one in theirs.items() if name not in _ours})
        _ours.update(helpers.keys() - theirs.keys())
    if not labs:
        names = ", ".join(one.__name__ for one in found) or "none"
        raise ConfigError(f"{path} must have one subclass of minires.lab.Lab, and has {names}")
    lab = checked(labs[0])
    if lab.name in LABS:
        raise ConfigError(f"{path}: a lab of minires is called {lab.name!r}; choose another name")
    texts = [_text(one) for one in (path, *sorted({one for one in helpers.values() if one.is_file()}))]
    lab.file, lab.version = str(path), digest(texts)
    lab.beside = digest([_without(texts[0], type(lab).__name__), *texts[1:]])
    return lab


def _text(path: Path) -> str:
    """The text of a program, in the encoding that it names."""
    with tokenize.open(path) as file:
        return file.read()


def _beside(folder: str) -> dict[str, Path]:
    """The modules that were imported from a folder and their files, of what is installed there apart; of a
    package without a file its folder."""
    found, installed = {}, Path(sysconfig.get_path("stdlib")).resolve()
    for name, module in list(sys.modules.items()):
        place = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), None)
        if place is None or name.partition(".")[0] in ("minires", "__main__") or name.startswith(OWN):
            continue
        file = Path(place).resolve()
        # Some modules (of PyTorch) name a file that there is not, relative to wherever the program runs.
        if "site-packages" in file.parts or file.is_relative_to(installed) or not Path(place).is_absolute():
            continue
        if file.is_relative_to(folder) and (file.is_dir() or file.suffix == ".py" and file.is_file()):
            found[name] = file
    return found


def _without(text: str, name: str) -> str:
    """What a program says beside a class (but for classes in it, such as networks) and its own description;
    comments and layout do not count."""
    tree = ast.parse(text)
    described = ast.get_docstring(tree) is not None
    kept: list[ast.stmt] = []
    for one in tree.body[described:]:
        if isinstance(one, ast.ClassDef) and one.name == name:
            kept += [inner for inner in one.body if isinstance(inner, ast.ClassDef)]
        else:
            kept.append(one)
    return "\n".join(map(ast.dump, kept))

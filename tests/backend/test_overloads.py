"""Plain functions in compiled kernels, each under its own name."""

import importlib
import inspect
from pathlib import Path
from types import SimpleNamespace

import minires
from minires.backend import overloads, simd


def test_code_that_is_kept_has_the_name_of_its_function(monkeypatch):
    """Of one name and the same types, code of two processes would be taken for the same."""
    found = {}

    def keep(function, inline):
        assert inline == "never"
        return lambda typed: found.setdefault(function, typed)

    monkeypatch.setattr(importlib, "import_module", lambda name: SimpleNamespace(overload=keep))
    overloads.overload(simd.store, lambda tile, lines: lambda tile, lines: None)
    overloads.overload(simd.add, lambda tile, lines: lambda tile, lines: None)
    for function, typed in found.items():
        assert list(inspect.signature(typed).parameters) == ["tile", "lines"]  # as Numba looks at it
        assert typed(1, 2).__qualname__ == function.__name__
    assert len(found) == 2


def test_nobody_gives_a_function_a_meaning_without():
    files = [
        path
        for path in Path(minires.__file__).parent.rglob("*.py")
        if "extending.overload" in path.read_text(encoding="utf-8")
    ]
    assert [path.name for path in files] == ["overloads.py"]

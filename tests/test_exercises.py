"""check() tells right from wrong and from not yet answered, and never raises."""

import linecache
import sys
import types

import numpy as np
import pytest

from minires.exercises import check

HEAD = "import numpy as np\nfrom minires.exercises import check\n"


@pytest.fixture
def said(capsys, request):
    """Run a cell as a notebook does and give what it printed."""

    def run(cell: str) -> str:
        name = f"<{request.node.name}>"
        linecache.cache[name] = (len(cell), None, cell.splitlines(keepends=True), name)
        namespace = {"__name__": "__main__"}
        exec(HEAD, namespace)
        exec(compile(cell, name, "exec"), namespace)
        return capsys.readouterr().out.strip()

    yield run


@pytest.mark.parametrize("answer", ["4", "2 + 2", "np.float32(4)"])
def test_right(said, answer):
    assert said(f"your_answer = {answer}\ncheck('is four', lambda: your_answer == 4)") == "right: is four"


def test_wrong(said):
    assert said("your_answer = 5\ncheck('is four', lambda: your_answer == 4)") == "not yet: is four"


def test_a_bool_of_numpy_is_a_bool(capsys):
    check("yes", lambda: np.all([True, True]))
    check("no", lambda: np.all([True, False]))
    assert capsys.readouterr().out == "right: yes\nnot yet: no\n"


@pytest.mark.parametrize("result", ["np.array([True, True])", "4", "[]", "'yes'"])
def test_what_is_not_a_bool_is_never_right(said, result):
    out = said(f"your_answer = {result}\ncheck('claim', lambda: your_answer)")
    assert out.startswith("not yet: claim (the test gives ") and out.endswith(", not True or False)")


@pytest.mark.parametrize(
    "stub",
    [
        "your = ...",
        "your = None",
        "def your(x=0):\n    ...",
        "def your(x=0):\n    'What it does.'\n    ...",
        "def your(x=0):\n    y = ...\n    return x + y",
        "def your(x=0):\n    return [..., x]",
        "class your:\n    def __init__(self, x=0):\n        ...",
        "gap = ...\ndef your(x=0):\n    return x + gap",
        "def inner(x):\n    ...\ndef your(x=0):\n    return [inner(one) for one in x]",
    ],
)
@pytest.mark.parametrize(
    "test", ["your == 4", "bool(your())", "all(your(x) != 1 for x in range(3))", "not your"]
)
def test_open_while_the_gap_is_there(said, stub, test):
    assert said(f"{stub}\ncheck('claim', lambda: {test})") == "open: claim"


@pytest.mark.parametrize(
    "answer",
    [
        "def your(x):\n    return x[..., 0]",
        "def your(x):\n    y = x.copy()\n    y[...] = 1\n    return y[..., 0]",
        "def your(x, axis=None):\n    return x[..., 0].sum(axis)",
        "your = lambda x: x[...][..., 0]",
    ],
)
def test_dots_in_an_index_are_no_gap(said, answer):
    out = said(f"{answer}\nx = np.ones((2, 3))\ncheck('claim', lambda: bool(np.all(your(x) >= 1)))")
    assert out == "right: claim"


def test_an_error_is_the_reason_with_its_place(said):
    out = said("def your(x):\n    y = 2 * x\n    return y + z\ncheck('claim', lambda: your(1) == 3)")
    assert out == "not yet: claim (NameError: name 'z' is not defined, in your, line 3)"


def test_an_error_in_the_test_itself_has_no_place(said):
    out = said("your = 3\ncheck('claim', lambda: your.shape == ())")
    assert out == "not yet: claim (AttributeError: 'int' object has no attribute 'shape')"


def test_a_function_that_calls_itself(said):
    out = said(
        "def fact(n):\n    return 1 if n == 0 else n * fact(n - 1)\n"
        "check('small', lambda: fact(5) == 120)\ncheck('deep', lambda: fact(10**5) == 0)"
    )
    small, deep = out.splitlines()
    assert small == "right: small" and deep.startswith("not yet: deep (RecursionError: ")


def test_only_the_answer_that_a_claim_uses_can_leave_it_open(said):
    out = said("one = 1\ntwo = ...\ncheck('one', lambda: one == 1)\ncheck('two', lambda: two == 2)")
    assert out == "right: one\nopen: two"


def test_it_does_not_look_into_libraries(said, monkeypatch):
    """A function of a library may use None, which is no gap of the reader's."""
    library = types.ModuleType("library")
    exec("nothing = None\ndef is_four(x):\n    return x == 4 and nothing is None", library.__dict__)
    monkeypatch.setitem(sys.modules, "library", library)
    out = said("from library import is_four\nyour = 4\ncheck('claim', lambda: is_four(your))")
    assert out == "right: claim"


def test_an_interrupt_goes_through():
    def interrupted() -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check("claim", interrupted)

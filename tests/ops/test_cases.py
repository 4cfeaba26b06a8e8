"""The tables of cases, and the runner behind ``minires gradcheck``."""

import ast
import copy
import functools
import importlib
import inspect
import itertools
import pickle
import pkgutil
import sys
import types
from pathlib import Path

import numpy as np
import opcheck
import pytest

import minires
from minires import Tensor, backend, ops, recompute
from minires.errors import ConfigError
from minires.ops import arithmetic, cases, registry, softmax
from minires.ops.conv2d import choose
from minires.ops.elementwise import binary
from minires.ops.forms import Formula
from minires.ops.registry import described
from minires.plan import TrainingPlan


def recorded_names():
    """The names that the package's own files give to ``record``, each with its file."""
    for path in sorted(Path(minires.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "record" and node.args:
                first = node.args[0]
                if isinstance(first, ast.Constant):
                    yield first.value, path.name


def test_every_operation_describes_itself_and_has_cases():
    assert recompute.__doc__ and TrainingPlan.__doc__  # they are imported, and so described, where used
    names = {known.name for known in described()}
    assert len(set(recorded_names())) > 20
    assert {name for name, _ in recorded_names()} <= names
    for known in described():
        assert bool(known.cases) != bool(known.unchecked), f"{known.name}: cases, or why there are none"
        assert known.unchecked or cases.all_cases()[known.name], known.name


# The exponent tells where a base of 0 has a gradient, and no case has one. What a batch norm adds before its
# ReLU rarely needs a gradient where the batch norm needs none, so it saves the same there. A block that is
# recomputed needs all its inputs for that.
UNREAD = {
    "recompute": {("recompute.x1", "a"), ("recompute.x2", "b")},
    "power": {("power.b", "b")},
    "batch_norm": {(f"batch_norm.{name}", "add") for name in ("x", "gamma", "beta", "mean", "inv")},
}


@pytest.mark.parametrize("op", cases.all_cases())
def test_what_is_saved_is_read(op):
    assert opcheck.unread(op) == UNREAD.get(op, set())


def test_what_is_saved_for_nothing_is_noticed(monkeypatch):
    def keep_all(op, a, b, forward, backward, *, keep):
        return binary(op, a, b, forward, backward, keep=("aby", "aby"))

    monkeypatch.setattr(arithmetic, "binary", keep_all)
    assert {("mul.y", "all"), ("mul.a", "a"), ("mul.b", "b")} <= opcheck.unread("mul")


WATCHED = ("minires.ops.", "minires.backend.tile_")
NUMBA = {
    f"{name}.{attribute}": (module, attribute, value)
    for name, module in sorted(sys.modules.items()) if name.startswith(WATCHED)
    for attribute, value in vars(module).items() if hasattr(value, "compiled") and value.__module__ == name
}  # fmt: skip
# The kernels that a kernel calls in compiled code, where nobody can watch them.
PARTS = {
    name: {
        f"{part.__module__}.{part.__name__}"
        for part in map(vars(module).get, kernel.__wrapped__.__code__.co_names)
        if hasattr(part, "compiled") and hasattr(part, "__name__")
    } & NUMBA.keys()
    for name, (module, _, kernel) in NUMBA.items()
}


@pytest.fixture
def ran(monkeypatch):
    """The Numba kernels of operations that ran."""
    names = set()

    def watched(name, kernel):
        @functools.wraps(kernel)
        def run(*arguments):
            names.add(name)
            return kernel(*arguments)

        return run

    for name, (module, attribute, kernel) in NUMBA.items():
        monkeypatch.setattr(module, attribute, watched(name, kernel))
    return names


@pytest.mark.parametrize("op", cases.all_cases())
def test_the_reference_runs_no_kernel(op, ran):
    with minires.reference():
        for case in cases.all_cases()[op]:
            opcheck.run(case, case.arrays())
    assert not ran


@pytest.mark.skipif(not backend.HAS_NUMBA, reason="there are no kernels without Numba")
def test_out_of_the_reference_every_kernel_runs(ran, monkeypatch):
    monkeypatch.setattr(choose, "_is_worth", lambda *given: True)  # the cases are small, as they are fast
    for case in itertools.chain(*cases.all_cases().values()):
        opcheck.run(case, case.arrays())
    within = {name for whole in ran for name in PARTS.get(whole, ())}
    assert ran | within == NUMBA.keys() and len(ran) > 10


def test_formulas_are_needed_and_a_name_is_taken_once():
    for description in ({"math": "y = x", "backward": ""}, {"math": " ", "backward": "dx = dy"}):
        with pytest.raises(ConfigError, match="operation 'mine': give its name and both formulas"):
            registry.operation(name="mine", **description)(lambda x: x)
    with pytest.raises(ConfigError, match="role of mine must be one of 'box', 'small', 'silent', not 'x'"):
        registry.declare(registry.Description(name="mine", math="y = x", backward="dx = dy", role="x"))

    def relu(x):
        return x

    with pytest.raises(ConfigError, match="there is an operation 'relu' already; choose another name"):
        registry.operation(math="y = x", backward="dx = dy")(relu)
    assert "mine" not in {known.name for known in described()}


def test_formulas_stand_in_the_docstring_after_its_first_sentence():
    @registry.operation(name="own_same", math="y = x", backward="dx = dy\n    = dy / 1")
    def same(x):
        """The same.

        >>> same(1)
        1
        """
        return x

    assert same.__doc__ == (
        "The same.\n\nMath: y = x\nBackward:\n    dx = dy\n        = dy / 1\n\n>>> same(1)\n1"
    )
    del registry.OPERATIONS["own_same"]
    for known in described():
        if known.function is not None:
            doc = known.function.__doc__
            assert "\nMath:" in doc and "\nBackward:" in doc, known.name


def test_a_docstring_may_be_one_sentence_or_none():
    for text, head in (("One sentence.", "One sentence.\n\n"), (None, "")):

        def same(x):
            return x

        same.__doc__ = text
        made = registry.operation(name="own_same", math="y = x", backward="dx = dy")(same)
        assert made.__doc__ == f"{head}Math: y = x\nBackward: dx = dy"
        del registry.OPERATIONS["own_same"]


def test_a_formula_without_the_result_says_what_it_gives():
    for text, given in (("z = x + 1\ndx = dz", "z"), ("", "nothing")):
        with pytest.raises(ConfigError, match=f"of own: the formula gives {given}.*, but not the result y"):
            registry.declare(registry.Description("own", arithmetic=Formula(text)))


def test_a_case_is_called_by_its_operation_and_its_own_name():
    assert "leaky_relu: slope 0.3" in map(str, cases.all_cases()["leaky_relu"])


def test_what_is_not_said_follows_from_the_name():
    known = registry.describe("my_own_thing")
    assert (known.label, known.short, known.english.title) == ("my own thing", "my own thing", "My own thing")
    assert known.chinese == known.english and known.role == "box" and not known.onnx and known.result == "y"
    assert registry.describe("batch_norm").short == "BN"


def test_the_file_of_an_operation_is_called_like_it():
    x, w = Tensor(np.ones((1, 3, 3, 2))), Tensor(np.ones((3, 3, 2, 4)))
    assert isinstance(ops.conv2d, types.ModuleType) and ops.conv2d is sys.modules["minires.ops.conv2d"]
    assert np.array_equal(ops.conv2d(x, w, padding=1).data, ops.conv2d.conv2d(x, w, padding=1).data)
    assert inspect.signature(ops.conv2d) == inspect.signature(ops.conv2d.conv2d)
    for name in ("relu", "sigmoid", "softmax", "log_softmax", "global_avg_pool2d", "exp", "flatten"):
        assert isinstance(getattr(ops, name)(x), Tensor)
    assert copy.deepcopy(ops.relu) is ops.relu and pickle.loads(pickle.dumps(ops.relu)) is ops.relu


def test_no_function_stands_where_a_module_of_that_name_is():
    source = ast.parse(Path(ops.__file__).read_text())
    imported = {(one.module, name.name) for one in source.body if isinstance(one, ast.ImportFrom)
                for name in one.names}  # fmt: skip
    for module in pkgutil.iter_modules(ops.__path__):
        path = f"minires.ops.{module.name}"
        whole = importlib.import_module(path)
        assert getattr(ops, module.name) is whole
        assert callable(whole) == ((path, module.name) in imported), module.name


def test_names_are_unique_and_inputs_the_same_each_time():
    everything = [case for table in cases.all_cases().values() for case in table]
    assert len({str(case) for case in everything}) == len(everything)
    for case in everything:
        first, again, single = case.arrays(), case.arrays(), case.arrays("float32")
        for name, array in first.items():
            assert np.array_equal(array, again[name]) and array.dtype == np.float64
            assert single[name].dtype == np.float32 and np.allclose(single[name], array)


def test_rows():
    rows = list(cases.check_all(["softmax", "sigmoid"]))
    assert [row.op for row in rows] == ["softmax"] * 5 + ["sigmoid"] * 3
    assert all(row.ok and 0 <= row.error < 1e-6 and row.seconds > 0 for row in rows)
    assert rows[0].case == "shape (3, 4)"


def test_without_names_all_are_checked():
    iterator = cases.check_all()
    assert next(iterator).op == next(iter(cases.all_cases()))


def test_a_wrong_operation_is_a_row_that_is_not_ok(monkeypatch):
    monkeypatch.setattr(softmax, "_backward", lambda xp, dy, y: dy * y)
    rows = list(cases.check_all(["softmax"]))
    assert not any(row.ok for row in rows[:3]) and rows[0].error > 1e-3
    assert "FAILED" in str(rows[0].report)


@pytest.mark.parametrize(
    ("name", "text"),
    [("conv2", "the nearest is conv2d"), ("convolution of pictures", "there are abs, add, avg_pool2d")],
)
def test_an_unknown_operation_is_refused_before_anything_runs(name, text):
    with pytest.raises(ConfigError) as caught:
        cases.check_all([name])
    assert f"gradcheck: there is no operation {name!r}" in str(caught.value) and text in str(caught.value)


def test_an_operation_without_cases_is_there_all_the_same():
    (name, why) = next((known.name, known.unchecked) for known in described() if known.unchecked)
    with pytest.raises(ConfigError, match=f"'{name}' has no cases on which it could be checked: ") as caught:
        cases.check_all([name])
    assert str(caught.value).endswith(why)

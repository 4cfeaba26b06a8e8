"""The tables of cases, and the runner behind ``minires gradcheck``."""

import copy
import importlib
import inspect
import pickle
import pkgutil
import sys
import types

import numpy as np
import pytest

from minires import Tensor, ops
from minires.errors import ConfigError
from minires.ops import cases, softmax

HELPERS = {"callable_module", "cases", "checks", "mixed_precision", "window"}


def test_every_operation_has_cases():
    operations = {module.name for module in pkgutil.iter_modules(ops.__path__)} - HELPERS
    covered = {case.fn.__module__.rsplit(".", 1)[-1] for table in cases.CASES.values() for case in table}
    wrapped = {"batch_norm", "dropout", "concat", "dense_buffer"}  # called through a function of the table
    assert wrapped <= set(cases.CASES)
    assert operations == (covered - {"cases"}) | wrapped


def test_the_file_of_an_operation_is_called_like_it():
    x, w = Tensor(np.ones((1, 3, 3, 2))), Tensor(np.ones((3, 3, 2, 4)))
    assert isinstance(ops.conv2d, types.ModuleType) and ops.conv2d is sys.modules["minires.ops.conv2d"]
    assert np.array_equal(ops.conv2d(x, w, padding=1).data, ops.conv2d.conv2d(x, w, padding=1).data)
    assert inspect.signature(ops.conv2d) == inspect.signature(ops.conv2d.conv2d)
    for name in ("relu", "sigmoid", "softmax", "log_softmax", "global_avg_pool2d", "exp", "flatten"):
        assert isinstance(getattr(ops, name)(x), Tensor)
    assert copy.deepcopy(ops.relu) is ops.relu and pickle.loads(pickle.dumps(ops.relu)) is ops.relu


def test_no_function_stands_where_a_module_of_that_name_is():
    for module in pkgutil.iter_modules(ops.__path__):
        whole = importlib.import_module(f"minires.ops.{module.name}")
        assert getattr(ops, module.name) is whole
        assert callable(whole) == (hasattr(whole, module.name) and module.name not in HELPERS), module.name


def test_names_are_unique_and_inputs_the_same_each_time():
    everything = [case for table in cases.CASES.values() for case in table]
    assert len({str(case) for case in everything}) == len(everything)
    for case in everything:
        first, again, single = case.arrays(), case.arrays(), case.arrays("float32")
        for name, array in first.items():
            assert np.array_equal(array, again[name]) and array.dtype == np.float64
            assert single[name].dtype == np.float32 and np.allclose(single[name], array)


def test_rows():
    rows = list(cases.check_all(["softmax", "sigmoid"]))
    assert [row.op for row in rows] == ["softmax"] * 4 + ["sigmoid"] * 3
    assert all(row.ok and 0 <= row.error < 1e-6 and row.seconds > 0 for row in rows)
    assert rows[0].case == "shape (3, 4)"


def test_without_names_all_are_checked():
    iterator = cases.check_all()
    assert next(iterator).op == next(iter(cases.CASES))


def test_a_wrong_operation_is_a_row_that_is_not_ok(monkeypatch):
    monkeypatch.setattr(softmax, "_backward", lambda xp, dy, y: dy * y)
    rows = list(cases.check_all(["softmax"]))
    assert not any(row.ok for row in rows[:3]) and rows[0].error > 1e-3
    assert "FAILED" in str(rows[0].report)


@pytest.mark.parametrize(
    ("name", "text"),
    [("conv2", "did you mean 'conv2d'?"), ("convolution of pictures", "there are add, avg_pool2d")],
)
def test_an_unknown_operation_is_refused_before_anything_runs(name, text):
    with pytest.raises(ConfigError) as caught:
        cases.check_all([name])
    assert f"gradcheck: there is no operation {name!r}" in str(caught.value) and text in str(caught.value)

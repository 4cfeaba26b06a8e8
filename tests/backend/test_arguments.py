"""Each kernel is handed only what fits its declaration; every kernel of the package has one."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest

import minires
from minires.backend.arguments import checker
from minires.errors import MiniresError

ROOT = Path(minires.__file__).parent


def normalize(x, mean, add, y, counts, start, stop):
    """A kernel with each kind of argument."""


DECLARED = {
    "x": "(M, >= C)", "mean": "flat (C)", "add": "maybe (M, C)", "y": "out (M, C)", "counts": "int32 (2 * C)",
}  # fmt: skip
CHECK = checker(normalize, DECLARED, "0 <= start <= stop <= M")


def arguments(dtype=np.float32):
    return {
        "x": np.ones((6, 4), dtype), "mean": np.ones(3, dtype), "add": np.ones((6, 3), dtype),
        "y": np.ones((6, 3), dtype), "counts": np.ones(6, np.int32), "start": 0, "stop": 6,
    }  # fmt: skip


def locked(array):
    array.flags.writeable = False
    return array


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"x": (6, 3)},
        {"add": (0, 0)},
        {"add": (0, 3)},
        {"start": 2, "stop": 2},
        {"x": "view"},
        {"x": "locked"},
    ],
)
def test_what_fits_passes(dtype, change):
    given = arguments(dtype)
    for name, value in change.items():
        if isinstance(value, tuple):
            value = np.ones(value, dtype)
        elif value == "view":
            value = np.ones((12, 8), dtype)[::2, ::2]
        elif value == "locked":
            value = locked(np.ones((6, 4), dtype))
        given[name] = value
    CHECK(*given.values())


F = np.float32
WRONG = {
    "x too narrow": ("x", np.ones((6, 2), F), r"x is float32 \(6, 2\), but must be of .*M, >= C\); .*C = 3"),
    "x of one axis": ("x", np.ones(6, F), r"x is float32 \(6,\), but must be of shape \(M, >= C\)"),
    "x with fewer rows": ("x", np.ones((5, 4), F), r"add is float32 \(6, 3\), but must be of shape \(M, C\)"),
    "mean too long": ("mean", np.ones(5, F), r"x is float32 \(6, 4\), but must be of shape \(M, >= C\)"),
    "mean with gaps": ("mean", np.ones(6, F)[::2], "mean is float32 .3,., but must be without gaps"),
    "add too short": ("add", np.ones((5, 3), F), r"add is float32 \(5, 3\), but must be .* or empty"),
    "add of one axis": ("add", np.ones(18, F), r"add is float32 \(18,\), but must be"),
    "y of another dtype": ("y", np.ones((6, 3)), "y is float64 .6, 3., but must be of the dtype of all"),
    "y read-only": ("y", locked(np.ones((6, 3), F)), "y is float32 .6, 3., but must be writable"),
    "y too large": ("y", np.ones((7, 3), F), r"y is float32 \(7, 3\), but must be of shape \(M, C\)"),
    "counts of another dtype": ("counts", np.ones(6, np.int64), "counts is int64 .6,., but must be int32"),
    "counts too short": ("counts", np.ones(5, np.int32), r"counts is int32 \(5,\), but must be of shape"),
    "a list": ("x", [[1.0]], "x is a list, but must be a NumPy array"),
    "None": ("mean", None, "mean is a NoneType, but must be a NumPy array"),
    "stop too large": ("stop", 7, "this must hold: 0 <= start <= stop <= M; start = 0; stop = 7; M = 6"),
    "start too small": ("start", -1, "this must hold: 0 <= start <= stop <= M; start = -1"),
}


@pytest.mark.parametrize(("name", "value", "message"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_refused_with_its_numbers(name, value, message):
    with pytest.raises(MiniresError, match=f"kernel normalize: .*(?:{message})"):
        CHECK(*(arguments() | {name: value}).values())


@pytest.mark.parametrize("dtype", [np.float16, np.int32, np.complex64, ">f4", bool])
def test_numbers_of_a_dtype_that_no_kernel_knows_are_refused(dtype):
    given = arguments()
    for name in ("x", "mean", "add", "y"):
        given[name] = given[name].astype(dtype)
    with pytest.raises(MiniresError, match="kernel normalize: its numbers must be float32 or float64, not"):
        CHECK(*given.values())


@pytest.mark.parametrize("line", ["", "out", "(N", "out(N)", "N, C"])
def test_a_declaration_that_makes_no_sense_is_refused(line):
    with pytest.raises(MiniresError, match="is no declaration of an array"):
        checker(normalize, {"x": line})


def kernels():
    """Every function of the package under ``@kernel``: its file, name, parameters and decorator."""
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                for one in node.decorator_list:
                    if ast.unparse(one).split("(")[0] in ("kernel", "backend.kernel"):
                        yield pytest.param(node, one, id=f"{path.stem}.{node.name}")


@pytest.mark.parametrize(("function", "decorator"), list(kernels()))
def test_every_kernel_declares_each_of_its_arrays(function, decorator):
    assert isinstance(decorator, ast.Call), "a kernel of the package declares its arrays"
    declared = {keyword.arg: ast.literal_eval(keyword.value) for keyword in decorator.keywords}
    arrays = {
        argument.arg
        for argument in function.args.args
        if ast.unparse(argument.annotation or ast.Constant("")) in ("Array", "Any")
    }
    assert declared.keys() - {"where"} == arrays and arrays
    for node in ast.walk(function):
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
            name = ast.unparse(node.value)
            assert name not in arrays or "out" in declared[name].split(), f"{name} is written to"


def test_there_are_kernels():
    assert len(list(kernels())) >= 20


def test_a_kernel_of_a_package_refuses_what_would_be_read_beyond_its_end():
    from minires.ops.relu import _relu_numba

    x, y = np.ones(4, F), np.zeros(4000, F)
    with pytest.raises(MiniresError, match=r"kernel _relu_numba: y is float32 \(4000,\), but must be"):
        _relu_numba(x, x[:0], y)
    assert not y.any()

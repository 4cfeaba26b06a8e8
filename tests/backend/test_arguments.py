"""Each kernel is handed only what fits its declaration; every kernel of the package has one."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest

import minires
from minires import backend
from minires.backend.arguments import checker
from minires.errors import MiniresError
from minires.ops.conv2d import columns, direct
from minires.ops.max_pool2d import numba_kernels as max_pool

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
        {"add": (0, 9)},
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
    "add empty, of one axis": ("add", np.ones(0, F), "add is float32 .0,., but must be of shape .* or empty"),
    "add empty, but with rows": ("add", np.ones((4, 0), F), "add is float32 .4, 0., but must be of shape"),
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
    assert declared.keys() - {"where", "in_any_order"} == arrays and arrays
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


X = np.ones((2, 9, 9, 4), F)
W, B, Y = np.ones((3, 3, 4, 16), F), np.zeros(16, F), np.zeros((2, 9, 9, 16), F)
FRAME = np.zeros(12 * 12 * 4 + 8, F)
DW, ZEROS = np.zeros((3, 1, 16, 16), F), np.zeros(16, F)
COLUMNS = np.zeros((1, 162, 36), F)
SMALL, WINNERS = np.ones((2, 4, 4, 4), F), np.zeros((2, 4, 4, 4), np.int32)
CALLS = {
    "direct forward": (
        direct._forward_numba,
        {"x": X, "w": W, "b": B, "relu": False, "y": Y, "frame": FRAME, "lines": 11, "across": 11,
         "stride": (1, 1), "dilation": (1, 1), "top": 1, "left": 1, "groups": 1, "runs": 1},
        [{"top": -1}, {"left": -4}, {"groups": 0}, {"runs": 0}, {"runs": 12}, {"stride": (-1, 1)},
         {"dilation": (1, 0)}, {"lines": 10}, {"across": 10}, {"lines": 100}],
    ),
    "direct backward_w": (
        direct._backward_w_numba,
        {"x": X, "dy": Y, "dw": DW, "zeros": ZEROS, "frame": FRAME, "lines": 11, "across": 11,
         "stride": (1, 1), "dilation": (1, 1), "top": 1, "left": 1, "groups": 1},
        [{"top": -1}, {"left": -4}, {"groups": 0}, {"stride": (1, -1)}, {"dilation": (-1, 1)},
         {"lines": 100}, {"dilation": (3, 1)}],
    ),
    "im2col": (
        columns._im2col_numba,
        {"x": X, "columns": COLUMNS, "start": 0, "stop": 18, "stride": (1, 1), "dilation": (1, 1),
         "top": 1, "left": 1, "out": (9, 9), "size": (3, 3)},
        [{"dilation": (1, 0)}, {"dilation": (1, -2)}, {"size": (0, 3)}, {"start": -1}, {"stop": 19},
         {"columns": COLUMNS[:0]}],
    ),
    "col2im": (
        columns._col2im_numba,
        {"columns": COLUMNS, "dx": X.copy(), "stride": (1, 1), "dilation": (1, 1), "top": 1, "left": 1,
         "out": (9, 9), "size": (3, 3)},
        [{"size": (0, 3)}, {"out": (9, 10)}, {"columns": COLUMNS[:0]}, {"size": (3, 4)}],
    ),
    "max pool": (
        max_pool._forward_numba,
        {"x": X, "y": SMALL.copy(), "winner": WINNERS.copy(), "size": (2, 2), "stride": (2, 2),
         "dilation": (1, 1), "top": 0, "left": 0},
        [{"stride": (0, 2)}, {"dilation": (1, 0)}, {"winner": WINNERS[:1].copy()}],
    ),
}  # fmt: skip


@pytest.mark.skipif(not backend.HAS_NUMBA, reason="the kernels need Numba")
@pytest.mark.parametrize("name", CALLS)
def test_numbers_that_would_lead_a_kernel_out_of_its_arrays_are_refused(name):
    kernel, given, wrong = CALLS[name]
    kernel(*given.values())  # as it is it fits
    for change in wrong:
        with pytest.raises(MiniresError, match=f"kernel {kernel.__name__}: "):
            kernel(*(given | change).values())

"""Each kernel is handed only what fits its declaration; every kernel of the package has one."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest

import minires
from minires import backend
from minires.backend import simd, tile_products, tile_sums
from minires.backend.arguments import checker
from minires.errors import MiniresError
from minires.ops.conv2d import places, winograd, winograd_kernels, winograd_transforms
from minires.ops.max_pool2d import numba_kernels as max_pool
from minires.ops.window import window

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


# A 3x3 convolution of two pictures (4, 4, 5), whose outputs are one vector wide.
WIDE = simd.lanes(F)
TILE, HIGH = simd.shape(WIDE, F), len(simd.square(WIDE, 5, F)[0])
WINDOW = window("conv2d", (4, 4), (3, 3), 1, 1)
PART = places.forward(2, (4, 4, 5), WIDE, WINDOW, 5, len(TILE[0]))[0]
BLOCKS = places.blocks(2, (4, 4, 5), WINDOW)[0]
TAPS, TILES = np.arange(9), PART.places.sees.shape[1]
X, Y, W = np.ones(160, F), np.zeros(32 * WIDE, F), np.ones(45 * WIDE, F)  # W is as long as all panels, too
ROWS = BLOCKS.rows.max(axis=0)  # a block has so many of x and of dy
UNITS = 9 * -(-5 // HIGH)
X_ROOM, Y_ROOM = np.zeros((ROWS[1] - 1) * 5 + UNITS // 9 * HIGH, F), np.zeros(ROWS[3] * WIDE, F)
NONE, ZEROS, TWICE = np.zeros(0, F), np.zeros(max(5, WIDE), F), np.zeros(2 * WIDE, F)

PRODUCTS = {
    "rows": TILE[0], "columns": TILE[1], "x": X, "w": W, "packed": NONE, "b": np.zeros(WIDE, F),
    "added": NONE, "y": Y, "table": PART.places.table, "out": PART.places.out, "taps": TAPS,
    "sees": PART.places.sees, "zeros": ZEROS, "room": np.zeros(45 * WIDE, F), "relu": False, "turned": False,
    "count": 32, "x_step": 160, "y_step": 32 * WIDE, "depth": 5, "outputs": WIDE, "x_group": 5,
    "y_group": WIDE, "w_group": WIDE, "tap": 5 * WIDE, "row": WIDE, "width": WIDE, "start": 0, "stop": TILES,
    "first": 0, "last": 1,
}  # fmt: skip
BEYOND = [  # in products
    {"x": X[:4]}, {"y": Y[: WIDE - 1]}, {"added": Y[1:]}, {"b": Y[: WIDE - 1]}, {"zeros": ZEROS[1:]},
    {"table": PART.places.table[:8]}, {"sees": np.ones((9, TILES + 20), bool)},
    {"sees": np.ones((9, 0), bool)}, {"count": 33 + 2 * simd.MOST_ROWS}, {"x_step": -1}, {"depth": 0},
    {"outputs": 0}, {"outputs": -WIDE}, {"outputs": 33 * WIDE}, {"width": 0}, {"width": -WIDE},
    {"width": 2 * WIDE}, {"columns": ()}, {"start": -1}, {"start": TILES + 1}, {"stop": 2 * TILES},
    {"first": -1}, {"first": 2}, {"last": 2}, {"last": 2, "b": TWICE, "packed": W},
]  # fmt: skip
# The same window on two pictures (4, 5, WIDE), by Winograd's way.
PLANE = window("conv2d", (4, 5), (3, 3), 1, 1)
CUT = winograd.cut(PLANE, (2, 4, 5, WIDE), WIDE, np.dtype(F), 1)
WINO_TILE, WINO_SQUARE = simd.shape(WIDE, F), winograd.square()
SQUARE_WIDE = simd.width(WINO_SQUARE, F)
WINO_ZEROS, ROOM, TWO_ROOMS = (np.zeros(size, F) for size in (5 * WIDE, CUT.room, 2 * CUT.room))
FLAT_X, FLAT_Y = np.ones(40 * WIDE, F), np.zeros(40 * WIDE, F)
PANELS, U, TOTALS = np.zeros(80 * WIDE, F), np.zeros(16 * WIDE**2, F), np.zeros(16 * WIDE**2, F)
BLOCK = [  # in both kernels of Winograd's way
    {"x": FLAT_X[1:]}, {"blocks": CUT.blocks + 1}, {"blocks": CUT.blocks[:, ::-1].copy()},
    {"room": ROOM[: -20 * WIDE]}, {"h": 5}, {"w": 6}, {"channels": 2 * WIDE}, {"channels": WIDE - 1},
    {"channels": 0}, {"high": 5}, {"wide": 6}, {"outputs": 2 * WIDE}, {"outputs": WIDE - 1}, {"outputs": 0},
    {"left": -1}, {"width": 0}, {"width": WIDE // 2}, {"high": 2}, {"start": -1},
    {"stop": len(CUT.blocks) + 1}, {"lines": CUT.lines[1:]}, {"lines": CUT.lines + 1}, {"h": 3},
    {"blocks": CUT.blocks - np.array([1, 0, 0, 0], np.int32), "room": TWO_ROOMS},
    {"blocks": CUT.blocks - np.array([0, 0, 1, 0], np.int32), "room": TWO_ROOMS},
    {"columns": (0,) * 5}, {"zeros": WINO_ZEROS[1:]}, {"start": 1, "stop": 0},
]  # fmt: skip
SMALL, WINNERS = np.ones((2, 4, 4, 4), F), np.zeros((2, 4, 4, 4), np.int32)
CALLS = {
    "pack": (
        tile_products._pack_numba,
        {"w": W, "at": 0, "taps": TAPS, "tap": 5 * WIDE, "depth": 5, "row": WIDE, "turned": False,
         "count": WIDE, "panel": W.copy(), "to": 0, "width": WIDE, "lanes": WIDE},
        [{"w": W[1:]}, {"at": -1}, {"at": 1}, {"taps": TAPS + 1}, {"tap": -1}, {"tap": 5 * WIDE + 1},
         {"depth": 0}, {"depth": 6}, {"row": -1}, {"row": WIDE + 1}, {"turned": True, "row": 6},
         {"count": 0}, {"count": WIDE + 1}, {"panel": W[1:].copy()}, {"to": -1}, {"to": 1},
         {"width": WIDE - 1}, {"width": 2 * WIDE}, {"lanes": 0}, {"lanes": -WIDE},
         {"lanes": WIDE - 1}],
    ),
    "products": (
        tile_products.products_numba, PRODUCTS,
        [*BEYOND, {"w": W[1:]}, {"room": W[1:].copy()}, {"taps": TAPS + 1}, {"tap": -1}, {"w_group": -1},
         {"tap": 5 * WIDE + 1}, {"row": WIDE + 1}, {"turned": True, "row": 6}, {"depth": 6}],
    ),
    "products of what is turned": (
        tile_products.products_numba, {**PRODUCTS, "turned": True, "row": 5},
        [*BEYOND, {"w": W[1:]}, {"row": 6}, {"room": W[1:].copy()}],
    ),
    "products of what is packed": (
        tile_products.products_numba, {**PRODUCTS, "packed": W, "w": NONE, "room": NONE},
        [*BEYOND, {"packed": W[1:]}, {"depth": 6}],
    ),
    "sums over places": (
        tile_sums.sums_numba,
        {"height": (0,) * HIGH, "columns": (0,), "x": X, "dy": Y, "dw": W.copy(), "is_first": True,
         "rows": BLOCKS.rows, "starts": BLOCKS.start, "runs": BLOCKS.runs, "zeros": np.zeros(WIDE, F),
         "x_room": X_ROOM, "y_room": Y_ROOM, "x_apart": 1, "y_apart": 1, "x_at": 0, "y_at": 0,
         "times": 1, "x_step": 32, "y_step": 32, "x_row": 5, "y_row": WIDE, "depth": 5, "outputs": WIDE,
         "x_group": 5, "y_group": WIDE, "w_group": WIDE, "tap": 5 * WIDE, "row": WIDE, "width": WIDE,
         "start": 0, "stop": UNITS, "first": 0, "last": 1},
        [{"x": X[:4]}, {"dy": Y[: WIDE - 1]},
         {"dw": W[1:].copy()},
         {"zeros": NONE}, {"x_room": X_ROOM[1:]}, {"y_room": Y_ROOM[1:]},
         {"starts": BLOCKS.start[:, :1].copy()}, {"starts": BLOCKS.start[:, :0]},
         {"rows": BLOCKS.rows[:, :3].copy()}, {"runs": BLOCKS.runs[:2]}, {"x_at": -1}, {"x_at": 32},
         {"y_at": -1}, {"y_at": 32}, {"times": 0}, {"times": 2}, {"x_row": -1}, {"y_group": -1},
         {"depth": 0}, {"depth": -HIGH}, {"depth": HIGH + 5}, {"outputs": 0}, {"outputs": -WIDE, "last": 0},
         {"outputs": 33 * WIDE}, {"tap": 5 * WIDE + 1}, {"row": WIDE + 1}, {"width": 0},
         {"width": -WIDE, "last": 0}, {"width": 2 * WIDE}, {"columns": (0, 0, 0)}, {"start": -1},
         {"start": UNITS + 1}, {"stop": UNITS + 9}, {"first": -1}, {"first": 2}, {"last": 2}],
    ),
    "Winograd's kernel": (
        winograd_transforms.panels_numba,
        {"eight": winograd_transforms.EIGHT, "one": winograd_transforms.ONE, "w": np.ones(45 * WIDE, F),
         "g": winograd.transform(np.dtype(F), turned=False), "zeros": ZEROS, "u": PANELS,
         "room": np.zeros(16 * WIDE**2, F), "turned": False, "depth": 5, "outputs": WIDE, "width": WIDE,
         "lanes": WIDE, "start": 0, "stop": 1},
        [{"w": W[1:]}, {"g": W[:143].copy()}, {"u": PANELS[1:]}, {"room": U[:1]},
         {"zeros": ZEROS[: WIDE - 1]}, {"depth": 0}, {"depth": 6}, {"outputs": 0}, {"outputs": WIDE + 1},
         {"width": WIDE + 1}, {"lanes": 0},
         {"start": -1}, {"stop": 2}, {"start": 1, "stop": 0}],
    ),
    "Winograd's convolution": (
        winograd_kernels.convolve_numba,
        {"rows": WINO_TILE[0], "columns": WINO_TILE[1], "x": FLAT_X, "u": U, "b": NONE, "added": NONE,
         "y": FLAT_Y, "relu": False, "blocks": CUT.blocks, "lines": CUT.lines, "zeros": WINO_ZEROS,
         "room": ROOM, "h": 4, "w": 5, "channels": WIDE, "high": 4, "wide": 5, "outputs": WIDE, "left": 1,
         "width": WIDE, "start": 0, "stop": len(CUT.blocks)},
        [*BLOCK, {"u": U[1:]}, {"y": FLAT_Y[1:]}, {"b": NONE, "added": FLAT_Y[1:]}, {"b": ZEROS[: WIDE - 1]}],
    ),
    "Winograd's sums": (
        winograd_kernels.correlate_numba,
        {"rows": WINO_SQUARE[0], "columns": WINO_SQUARE[1], "x": FLAT_X, "dy": FLAT_Y, "totals": TOTALS,
         "blocks": CUT.blocks, "lines": CUT.lines, "zeros": WINO_ZEROS, "room": ROOM, "h": 4, "w": 5,
         "channels": WIDE, "high": 4, "wide": 5, "outputs": WIDE, "left": 1, "width": SQUARE_WIDE,
         "start": 0, "stop": len(CUT.blocks)},
        [*BLOCK, {"dy": FLAT_Y[1:]}, {"totals": TOTALS[1:]}],
    ),
    "max pool": (
        max_pool._forward_numba,
        {"x": np.ones((2, 9, 9, 4), F), "y": SMALL.copy(), "winner": WINNERS.copy(), "size": (2, 2),
         "stride": (2, 2), "dilation": (1, 1), "top": 0, "left": 0},
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

"""Tiles in registers: what a kernel computes with them is what their plain code computes."""

import os
import subprocess
import sys

import numpy as np
import pytest

from minires import backend
from minires.backend import simd
from minires.backend.simd import (
    add,
    beside,
    expect,
    listed,
    multiply_add,
    multiply_groups,
    plus,
    read,
    rectify,
    spread,
    store,
    turn,
    write,
)  # fmt: skip

pytestmark = pytest.mark.skipif(not backend.HAS_NUMBA, reason="Numba is not installed")

TABLE = np.array([-1, 40, 3, 3, 60, -1, 77, 20, 21, 22, 23, 5, 1], np.int32)


def _with_tiles(rows, columns, width, a, b, table, zeros, sums, written, rectified):
    tile = spread(rows, columns, b, 3)
    far, near = listed(rows, a, 1, table, 1, zeros), beside(rows, a, 2, 7)
    for k in range(5):
        tile = multiply_add(tile, far, k, b, 4 * k)
        tile = multiply_add(tile, near, k, b, 4 * k + 1)
    tile = plus(tile, beside(rows, b, 0, 5), 2, width)
    store(tile, beside(rows, written, 1, 70), 4, len(rows), width)
    add(tile, beside(rows, sums, 0, 80), 3, 3, width)
    store(rectify(tile), beside(rows, rectified, 0, 66), 0, len(rows) - 1, width)


_with_tiles_numba = backend.kernel(_with_tiles)


@pytest.mark.parametrize("width", ["whole", 1, 3])
@pytest.mark.parametrize("shape", simd.shapes(), ids=lambda shape: f"{len(shape[0])}x{len(shape[1])}")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_compiled_tiles_are_the_plain_code(dtype, shape, width):
    rng = np.random.default_rng(0)
    a, b, *others = (rng.standard_normal(1000).astype(dtype) for _ in range(5))
    a[2 + 7 + 3] = np.nan  # in row 1 of the products
    zeros = np.zeros(16, dtype)
    width = simd.width(shape, dtype) if width == "whole" else width
    ours = [array.copy() for array in others]
    _with_tiles_numba(*shape, width, a, b, TABLE, zeros, *ours)
    _with_tiles(*shape, width, a, b, TABLE, zeros, *others)
    limit = 5e-6 if dtype == np.float32 else 1e-14  # a fused multiply-add rounds once, NumPy twice
    for one, other in zip(ours, others, strict=True):
        np.testing.assert_allclose(one, other, rtol=limit, atol=limit)
    assert np.isnan(ours[2][66 : 66 + width]).all()
    assert (ours[2][:width] >= 0).all()


def _with_groups(rows, column, group, x, b, y):
    tile = spread(rows, column, b, 1)
    expect(column, beside(rows, y, 0, 50), 0)
    tile = multiply_groups(tile, beside(rows, x, 3, 21), 2, group, b, 5, 40)
    store(tile, beside(rows, y, 0, 50), 0, len(rows), 16)


_with_groups_numba = backend.kernel(_with_groups)


@pytest.mark.parametrize("many", [1, 2, 4, 8])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_groups_meet_their_own(dtype, many):
    if many > simd.lanes(dtype):
        pytest.skip("a vector has no room for a group")
    rng, shape = np.random.default_rng(0), simd.shapes()[-1]
    x, b = rng.standard_normal((2, 1000)).astype(dtype)
    ours, plain = np.zeros((2, 1000), dtype)
    _with_groups_numba(*shape, (0,) * many, x, b, ours)
    _with_groups(*shape, (0,) * many, x, b, plain)
    limit = 5e-6 if dtype == np.float32 else 1e-14
    np.testing.assert_allclose(ours, plain, rtol=limit, atol=limit)
    lanes = simd.lanes(dtype)  # and by hand, of row 1
    right = [b[1 + n] + sum(x[3 + 21 + 2 + n // many * many + k] * b[5 + 40 * k + n] for k in range(many))
             for n in range(lanes)]  # fmt: skip
    np.testing.assert_allclose(ours[50 : 50 + lanes], right, rtol=limit, atol=limit)


def _with_vectors(three, two, x, y):
    a, b, c = read(beside(three, x, 3, 30), 2)
    write((a - b, a + b - c), beside(two, y, 1, 100), 4)


_with_vectors_numba = backend.kernel(_with_vectors)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_vectors_are_added_up(dtype):
    x = np.random.default_rng(0).standard_normal(400).astype(dtype)
    ours, plain = np.zeros((2, 400), dtype)
    _with_vectors_numba((0,) * 3, (0,) * 2, x, ours)
    _with_vectors((0,) * 3, (0,) * 2, x, plain)
    assert np.array_equal(ours, plain)
    lanes, places = simd.lanes(dtype), np.flatnonzero(ours)
    assert places.tolist() == [*range(5, 5 + lanes), *range(105, 105 + lanes)]
    assert ours[5] == x[5] - x[35] and ours[105] == x[5] + x[35] - x[65]


def _with_a_turn(x, y):
    turn(x, 3, 19, y, 5, 17)


_with_a_turn_numba = backend.kernel(_with_a_turn)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_block_is_turned(dtype):
    x = np.random.default_rng(0).standard_normal(400).astype(dtype)
    ours, plain = np.zeros(400, dtype), np.zeros(400, dtype)
    _with_a_turn_numba(x, ours)
    _with_a_turn(x, plain)
    assert np.array_equal(ours, plain) and ours.any()


def test_the_shape_follows_what_is_asked():
    """The widest tile where there is enough for it, a narrow one where there is little."""
    widest, *_, narrowest = simd.shapes()
    assert simd.shape(4 * simd.width(widest, np.float32), np.float32) == widest
    assert simd.shape(1, np.float32) == narrowest
    for outputs in (1, 12, 16, 100):
        for depth in (3, 8, 12, 16, 60):
            rows, columns = simd.square(outputs, depth, np.float32)
            assert len(rows) * len(columns) <= simd.processor()[1] * 3 // 4


@backend.kernel
def _twice_numba(x):
    return 2 * x


@backend.kernel
def _four_times_numba(x):
    return _twice_numba(_twice_numba(x))


def test_a_kernel_calls_another():
    assert _four_times_numba(3.0) == 12.0


@backend.kernel
def _spread_to_numba(rows, columns, b, y):
    store(spread(rows, columns, b, 0), beside(rows, y, 0, 16), 0, 1, 16)


def test_arrays_with_gaps_are_refused():
    y = np.empty(200)
    with pytest.raises(Exception, match="flat arrays without gaps"):
        _spread_to_numba((0,), (0,), np.zeros(200)[::2], y)


@pytest.mark.parametrize(("missing", "register"), [("avx512", (32, 16)), ("avx", (16, 16))])
def test_a_processor_with_fewer_registers(tmp_path, missing, register):
    """Its tiles are smaller: the same convolutions come out."""
    code = f"""
import numpy as np
from llvmlite import binding
features = binding.get_host_cpu_features()
features |= {{name: False for name in features if name.startswith({missing!r})}}
binding.get_host_cpu_features = lambda: features
from minires import backend
from minires.backend import simd
from minires.ops import conv2d
from minires.ops.conv2d import indirect
from minires.ops.window import window
rng = np.random.default_rng(0)
for outputs in (3, 8, 40):
    x, w = rng.standard_normal((3, 6, 11, 5)), rng.standard_normal((3, 2, 5, outputs))
    win = window("conv2d", (6, 11), (3, 2), (2, 1), (1, 1))
    dy = rng.standard_normal((3, *win.out, outputs))
    for ours, plain in zip(
        (indirect.forward(x, w, None, True, win, 1), indirect.backward_x(dy, w, x.shape, win, 1),
         indirect.backward_w(dy, x, w.shape, win, 1)),
        (conv2d._forward(np, x, w, None, True, win, 1), conv2d._backward_x(np, dy, w, x.shape, win, 1),
         conv2d._backward_w(np, dy, x, w.shape, win, 1)),
    ):
        assert np.allclose(ours, plain, rtol=1e-12, atol=1e-12)
print(simd.processor())
"""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    if missing == "avx":
        environment |= {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert run.stdout.strip() == str(register), run.stdout + run.stderr

"""Tiles in registers: what a kernel computes with them is what their plain code computes."""

import os
import subprocess
import sys

import numpy as np
import pytest

from minires import backend
from minires.backend import simd
from minires.backend.simd import add, multiply_add, rectify, spread, store

pytestmark = pytest.mark.skipif(not backend.HAS_NUMBA, reason="Numba is not installed")


def _with_tiles(a, b, sums, written, rectified):
    tile = spread(b, 3)
    for k in range(5):
        tile = multiply_add(tile, a, 2 + k, 7, b, 4 * k)
    store(tile, written, 1, simd.LANES + 2)
    add(tile, sums, 4, simd.LANES)
    store(rectify(tile), rectified, 0, simd.LANES)


_with_tiles_numba = backend.kernel(_with_tiles)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_compiled_tiles_are_the_plain_code(dtype):
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(200).astype(dtype) for _ in range(5)]
    arrays[0][9] = np.nan  # in row 1 of the products
    ours = [array.copy() for array in arrays]
    _with_tiles_numba(*ours)
    _with_tiles(*arrays)
    limit = 1e-6 if dtype == np.float32 else 1e-14  # a fused multiply-add rounds once, NumPy twice
    for one, other in zip(ours, arrays, strict=True):
        np.testing.assert_allclose(one, other, rtol=limit, atol=limit)
    assert np.isnan(ours[4][simd.LANES : 2 * simd.LANES]).all()
    assert (ours[4][: simd.LANES] >= 0).all()


@backend.kernel
def _twice_numba(x):
    return 2 * x


@backend.kernel
def _four_times_numba(x):
    return _twice_numba(_twice_numba(x))


def test_a_kernel_calls_another():
    assert _four_times_numba(3.0) == 12.0


@backend.kernel
def _spread_to_numba(b, y):
    store(spread(b, 0), y, 0, simd.LANES)


def test_arrays_with_gaps_are_refused():
    y = np.empty(200)
    with pytest.raises(Exception, match="flat arrays without gaps"):
        _spread_to_numba(np.zeros(200)[::2], y)


def test_a_processor_with_fewer_registers(tmp_path):
    """Its tiles have fewer rows: the same convolutions come out."""
    code = """
import numpy as np
from llvmlite import binding
features = binding.get_host_cpu_features()
features |= {name: False for name in features if name.startswith("avx512")}
binding.get_host_cpu_features = lambda: features
from minires import backend
from minires.backend import simd
from minires.ops import conv2d
from minires.ops.conv2d import direct
from minires.ops.window import window
rng = np.random.default_rng(0)
x, w = rng.standard_normal((3, 6, 11, 5)), rng.standard_normal((3, 2, 5, 32))
win = window("conv2d", (6, 11), (3, 2), (1, 1), (1, 1))
dy = rng.standard_normal((3, *win.out, 32))
y = direct.forward(x, w, None, True, win, 1)
assert np.allclose(y, conv2d._forward(np, x, w, None, True, win, 1), rtol=1e-12, atol=1e-12)
dw = direct.backward_w(dy, x, w.shape, win, 1)
assert np.allclose(dw, conv2d._backward_w(np, dy, x, w.shape, win, 1), rtol=1e-12, atol=1e-12)
print(simd.ROWS)
"""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert run.stdout.strip() == "4", run.stdout + run.stderr

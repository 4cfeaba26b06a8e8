"""Matrix products by tiles: every order in memory, sums of any length."""

import numpy as np
import pytest

from minires import backend
from minires.backend import matrix_products

pytestmark = pytest.mark.usefixtures("three_threads")
ORDERS = {
    "as they are": lambda a, b: (a, b),
    "a by columns": lambda a, b: (a.T.copy().T, b),
    "b by columns": lambda a, b: (a, b.T.copy().T),
    "with gaps": lambda a, b: (np.repeat(a, 2, axis=1)[:, ::2], np.repeat(b, 2, axis=1)[:, ::2]),
}


@pytest.mark.parametrize("depth", [4096, 7])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("m", "k", "n"), [(2, 3, 4), (500, 40, 30), (40, 500, 30), (30, 40, 500), (1, 1, 1), (0, 3, 2), (3, 0, 2)]
)
def test_matmul(monkeypatch, m, k, n, order, depth):
    monkeypatch.setattr(matrix_products, "_DEPTH", depth)
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((m, k)), rng.standard_normal((k, n))
    assert np.allclose(backend.matmul(*ORDERS[order](a, b)), a @ b, rtol=1e-12, atol=1e-12)
    single = backend.matmul(*ORDERS[order](a.astype(np.float32), b.astype(np.float32)))
    assert single.dtype == np.float32 and single.base is None


@pytest.mark.skipif(not backend.HAS_NUMBA, reason="without Numba BLAS sums")
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("m", "n"), [(2, 3), (1, 2), (3, 1)])
def test_long_sums_round_little(m, n, order):
    """One sum of a million float32 after the other would be off by 1e-4."""
    rng = np.random.default_rng(0)
    a, b = rng.random((m, 1_000_000), np.float32), rng.random((1_000_000, n), np.float32)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    assert abs(backend.matmul(*ORDERS[order](a, b)) / exact - 1).max() < 2e-6


@pytest.mark.parametrize("turn", [lambda x: x.swapaxes(-1, -2), lambda x: x])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_product_with_itself_has_the_bits_of_one_with_a_copy(monkeypatch, dtype, turn):
    """BLAS has a routine of its own for a matrix by its transpose, and NumPy calls it where both lie in one
    place; a plan, which keeps them apart, would get other last bits."""
    x = np.random.default_rng(0).standard_normal((3, 40, 40)).astype(dtype)
    expected, shared, product = backend.matmul(x, turn(x.copy())), [], np.matmul
    monkeypatch.setattr(np, "matmul", lambda a, b: shared.append(np.shares_memory(a, b)) or product(a, b))
    assert np.array_equal(backend.matmul(x, turn(x)), expected) and shared == [False]

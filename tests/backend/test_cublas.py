"""The calls of cuBLAS, against a library that takes the same arguments and multiplies in plain loops.

It knows matrices by columns, leading dimensions and types as cuBLAS does, so a wrong order of factors, a
wrong transposition or a wrong dimension gives wrong numbers or an error here too.
"""

from __future__ import annotations

import ctypes
import itertools
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from minires import backend
from minires.backend import arrays, cublas
from minires.errors import ConfigError, MiniresError

SOURCE = Path(__file__).parents[1] / "fake_cublas.c"


class OnFakeGpu(np.ndarray):
    """A NumPy array with what a CuPy array has besides: a device and a pointer."""

    device = SimpleNamespace(id=0)

    @property
    def data(self):
        return SimpleNamespace(ptr=self.ctypes.data)


def on_gpu(array):
    return array.view(OnFakeGpu)


class FakeCupy:
    """As much of the module as cublas.py uses."""

    cuda = SimpleNamespace(get_current_stream=lambda: SimpleNamespace(ptr=4711))

    @staticmethod
    def empty(shape, dtype):
        return on_gpu(np.full(shape, 77, dtype))

    @staticmethod
    def ascontiguousarray(array):
        return on_gpu(np.array(array, order="C"))

    @staticmethod
    def matmul(a, b, out=None):
        return "by CuPy"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler here")
    target = tmp_path_factory.mktemp("cublas") / "libcublas.so"
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", str(SOURCE), "-o", str(target)], check=True)
    return ctypes.CDLL(str(target))


@pytest.fixture
def fake(monkeypatch, built):
    monkeypatch.setattr(cublas, "library", lambda: built)
    cublas._handle.cache_clear()
    yield built
    cublas._handle.cache_clear()


def _plain(array):
    return on_gpu(array.copy())


def _transposed(array):
    return on_gpu(array.T.copy()).T


def _with_gaps(array):
    wide = np.full((array.shape[0], array.shape[1] + 3), np.nan, array.dtype)
    wide[:, : array.shape[1]] = array
    return on_gpu(wide)[:, : array.shape[1]]


def _every_second(array):
    wide = np.full((2 * array.shape[0], 2 * array.shape[1]), np.nan, array.dtype)
    wide[::2, ::2] = array
    return on_gpu(wide)[::2, ::2]


LAYOUTS = (_plain, _transposed, _with_gaps, _every_second)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(3, 4, 5), (1, 4, 5), (3, 1, 5), (3, 4, 1), (1, 1, 1), (6, 2, 6)], ids=str)
def test_products_in_every_layout(fake, shape, dtype):
    (m, k, n), rng = shape, np.random.default_rng(0)
    a, b = rng.standard_normal((m, k)).astype(dtype), rng.standard_normal((k, n)).astype(dtype)
    for lay_a, lay_b, lay_out in itertools.product(LAYOUTS, LAYOUTS, (None, _plain, _with_gaps)):
        out = None if lay_out is None else lay_out(np.full((m, n), 77, dtype))
        y = cublas.matmul(FakeCupy, lay_a(a), lay_b(b), out)
        assert out is None or y is out
        assert y.dtype == dtype
        np.testing.assert_allclose(np.asarray(y), a @ b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kept", ["bfloat16", "float32"])
@pytest.mark.parametrize("shape", [(3, 4, 5), (1, 4, 5), (3, 1, 5), (3, 4, 1), (6, 2, 6)], ids=str)
def test_products_in_bfloat16(fake, shape, kept):
    """The sums are float32, and the product is rounded once or not at all."""
    (m, k, n), rng, narrow = shape, np.random.default_rng(0), backend.bfloat16()
    a, b = (rng.standard_normal(size).astype(narrow) for size in ((m, k), (k, n)))
    exact = a.astype(np.float64) @ b.astype(np.float64)
    for lay_a, lay_b in itertools.product(LAYOUTS, LAYOUTS):
        for precision in cublas.PRECISIONS:
            y = cublas.matmul(FakeCupy, lay_a(a), lay_b(b), dtype=kept, precision=precision)
            assert y.dtype == kept and fake.fake_last_compute() == 68
            assert np.array_equal(np.asarray(y), exact.astype(np.float32).astype(kept))
    y = cublas.matmul(FakeCupy, on_gpu(a), on_gpu(b))
    assert y.dtype == narrow
    out = on_gpu(np.full((m, n), 77, np.float32))
    assert cublas.matmul(FakeCupy, on_gpu(a), on_gpu(b), out) is out
    assert np.array_equal(np.asarray(out), exact.astype(np.float32))


def test_the_handle_is_made_once_and_has_a_workspace(fake):
    before = fake.fake_created()
    a = on_gpu(np.ones((2, 2), np.float32))
    cublas.matmul(FakeCupy, a, a)
    cublas.matmul(FakeCupy, a, a)
    assert fake.fake_created() == before + 1
    assert fake.fake_workspace_bytes() == 32 << 20


def test_the_arithmetic_is_chosen_for_each_call(fake):
    a = on_gpu(np.ones((2, 2), np.float32))
    for precision, number in (("fp32", 68), ("tf32", 77), ("bf16", 68)):
        cublas.matmul(FakeCupy, a, a, precision=precision)
        assert fake.fake_last_compute() == number
    cublas.matmul(FakeCupy, a.astype(np.float64), a.astype(np.float64), precision="tf32")
    assert fake.fake_last_compute() == 70  # float64 stays float64


def test_the_backend_sends_gpu_arrays_there(monkeypatch):
    seen = []
    gpu = SimpleNamespace(ndim=2)
    monkeypatch.setattr(arrays, "cupy", lambda: "the cupy module")
    monkeypatch.setattr(cublas, "matmul", lambda *args, **options: seen.append((args, options)))
    backend.matmul(gpu, gpu)
    with backend.precision("tf32"):
        backend.matmul(gpu, gpu)
    backend.matmul(gpu, gpu, np.float32)
    assert [options["precision"] for _, options in seen] == ["fp32", "tf32", "fp32"]
    assert [options["dtype"] for _, options in seen] == [None, None, np.float32]
    assert seen[0][0] == ("the cupy module", gpu, gpu)


def test_an_unknown_precision_is_named():
    with pytest.raises(ConfigError, match="precision must be one of 'fp32', 'tf32', 'bf16', not 'fp8'"):
        with backend.precision("fp8"):
            pass


def test_errors_of_the_library_are_told(fake, monkeypatch):
    monkeypatch.setattr(cublas, "_FLOAT", 70)
    a = on_gpu(np.ones((2, 2), np.float32))
    with pytest.raises(MiniresError, match="cublasGemmEx failed with status 7"):
        cublas.matmul(FakeCupy, a, a)


def test_without_the_library_cupy_multiplies(monkeypatch):
    monkeypatch.setattr(cublas, "library", lambda: None)
    a = on_gpu(np.ones((2, 2), np.float32))
    assert cublas.matmul(FakeCupy, a, a) == "by CuPy"
    with pytest.raises(ConfigError, match="precision 'tf32' needs cuBLAS.*pip install nvidia-cublas"):
        cublas.matmul(FakeCupy, a, a, precision="tf32")
    a = on_gpu(np.ones((2, 2), backend.bfloat16()))
    with pytest.raises(ConfigError, match="precision 'bf16' needs cuBLAS"):
        cublas.matmul(FakeCupy, a, a)


def test_it_is_looked_for_in_wheels_and_toolkits(monkeypatch, tmp_path):
    wheel = tmp_path / "nvidia" / "cublas" / "lib" / "libcublas.so.12"
    toolkit = tmp_path / "cuda" / "lib64" / "libcublas.so"
    for place in (wheel, toolkit):
        place.parent.mkdir(parents=True)
        place.touch()
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path / "nvidia")])
    monkeypatch.setattr(cublas.importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setenv("CUDA_PATH", str(tmp_path / "cuda"))
    found = list(cublas._candidates())
    assert found[:2] == [str(wheel), str(toolkit)]

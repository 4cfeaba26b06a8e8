"""bfloat16: each operation on the CPU and, emulated, by its kernels; the rounding itself; what is refused."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys

import cuda_emulator
import numpy as np
import opcheck
import pytest

from minires import Tensor, backend, reference
from minires.backend import cuda
from minires.errors import ConfigError, ShapeError
from minires.ops import cases, checks, concat, dropout, relu
from minires.ops.avg_pool2d import cuda_kernels as avg_pool_cuda
from minires.ops.batch_norm import batch_norm, cuda_kernels
from minires.ops.conv2d import conv2d, cuda_columns
from minires.ops.max_pool2d import cuda_kernels as max_pool_cuda

BFLOAT16 = backend.bfloat16()
# The sources of operations, of which some know bfloat16: those whose arithmetic is in float32. The others get
# float32: softmax and the losses.
OF_OPERATIONS = cuda_emulator.of_operations()
# The kernels that do in bfloat16 what they do in float32, and round the result; a convolution rounds more.
MORE_ROUNDINGS = {"conv2d"}

with_emulator = [
    pytest.mark.emulated,
    pytest.mark.skipif(cuda_emulator.compiler() is None, reason="there is no g++ here"),
]


def emulated(test):
    for mark in with_emulator:
        test = mark(test)
    return test


@pytest.fixture
def emulator(monkeypatch):
    return cuda_emulator.emulate(monkeypatch)


# ------------------------------------------------------------------------------------------ operations


@opcheck.of(*cases.all_cases())
def test_on_the_cpu(case):
    opcheck.check_bfloat16(case)


@emulated
@opcheck.of(*(op for op in cases.all_cases() if op != "dropout"))  # whose kernel has masks of its own
def test_with_emulated_kernels(case, emulator):
    opcheck.check_bfloat16(case)


@pytest.mark.gpu
@opcheck.of(*(op for op in cases.all_cases() if op != "dropout"))
def test_on_a_gpu(case):
    opcheck.need_device("cuda")
    opcheck.check_bfloat16(case, "cuda")


def _check_one_rounding(case):
    """To the last bit: the kernels for bfloat16 give what those for float32 give, rounded."""
    arrays = opcheck.arrays_of(case, "bfloat16")
    wide = {name: array.astype(np.float32) for name, array in arrays.items()}

    def make_dy(y):
        return opcheck.upstream(y).astype(BFLOAT16).astype(y.dtype)

    got, expected = opcheck.run(case, arrays, make_dy), opcheck.run(case, wide, make_dy)
    for name, array in got.items():
        same = np.array_equal(array, expected[name].astype(array.dtype))
        assert same, f"{case}: {name}"


@emulated
@pytest.mark.parametrize("place", OF_OPERATIONS)
def test_kernels_compute_in_float32_and_round_once(place, emulator):
    if not cuda_emulator.knows_bfloat16(cuda_emulator.sources()[place].code):
        return
    for op in set(OF_OPERATIONS[place]) - MORE_ROUNDINGS:
        for case in cases.all_cases()[op]:
            _check_one_rounding(case)


@emulated
def test_these_kernels_and_no_others_run_in_bfloat16(emulator):
    for table in cases.all_cases().values():
        for case in table:
            opcheck.run(case, opcheck.arrays_of(case, "bfloat16"))
    sources = [cuda_emulator.sources()[place].code for place in OF_OPERATIONS]
    known = {k for code in sources if cuda_emulator.knows_bfloat16(code) for k in cuda_emulator.kernels(code)}
    # These get statistics alone, which are float32.
    statistics = {"batch_norm_constants", "batch_norm_gradient_totals"}
    assert emulator.of_dtype["bfloat16"] == known - statistics
    assert {"relu", "leaky_relu_gradient", "im2col", "max_pool", "concat", "dropout"} <= known
    others = {kernel for code in sources for kernel in cuda_emulator.kernels(code)} - known
    assert emulator.of_dtype["float32"] == others | statistics
    assert {"cross_entropy", "softmax_gradient", "log_softmax"} <= others


@emulated
@pytest.mark.parametrize(
    ("module", "op", "right", "wrong"),
    [
        (relu, "relu", "value += add[i]", "value = T(value) + T(add[i] * A(1.01))"),
        (cuda_kernels, "batch_norm", "products += g * d", "products += T(g * d)"),
        (cuda_kernels, "batch_norm", "A d = m < rows ?", "T d = m < rows ?"),
        (cuda_kernels, "batch_norm", "if (add) value += add[i]", "if (add) value = T(value) + add[i]"),
        (cuda_kernels, "batch_norm", "? scale * g + slope * d", "? T(scale * g) + slope * d"),
        (max_pool_cuda, "max_pool2d", "sum += dy[o]", "sum = T(sum + dy[o])"),
        (avg_pool_cuda, "avg_pool2d", "A(sum / count)", "A(T(sum) / A(count))"),
        (dropout, "dropout", "(kept ? scale : A(0))", "(kept ? A(T(scale)) : A(0))"),
    ],
)
def test_kernels_that_round_more_often_are_caught(module, op, right, wrong, emulator, monkeypatch):
    code = module._CUDA.code.removeprefix(cuda.PRELUDE)
    assert code.count(right) == 1
    monkeypatch.setattr(module, "_CUDA", cuda.Source(code.replace(right, wrong)))
    cuda_emulator.library(module._CUDA.text("bfloat16"))  # it can be compiled
    with pytest.raises(AssertionError):
        for case in cases.all_cases()[op]:
            _check_one_rounding(case)


@emulated
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        (
            "A sum = 0;",
            "struct { T s; void operator+=(T x) { s = s + x; } operator T() { return s; } } sum{0};",
        ),
        ("value += b[i % outputs]", "value += T(b[i % outputs])"),
    ],
)
def test_convolutions_that_round_more_often_are_caught(right, wrong, emulator, monkeypatch):
    code = cuda_columns._CUDA.code.removeprefix(cuda.PRELUDE)
    assert code.count(right) == 1
    monkeypatch.setattr(cuda_columns, "_CUDA", cuda.Source(code.replace(right, wrong)))
    cuda_emulator.library(cuda_columns._CUDA.text("bfloat16"))
    with pytest.raises(AssertionError):
        _check_exact_convolution()


def _check_exact_convolution():
    """A bias of which nothing would be left, were it rounded before it is added; and whole numbers that
    bfloat16 holds, with sums that it does not: nothing is rounded but the end."""
    third = np.full((1, 1, 1, 1), -1 / 3).astype(BFLOAT16)
    y = conv2d(Tensor(third), Tensor(np.ones((1, 1, 1, 1), np.float32)), Tensor(np.float32([1 / 3])))
    assert y.item() == (np.float32(1 / 3) + third.astype(np.float32)).astype(BFLOAT16) != 0
    x, dy = np.full((1, 6, 6, 1), 2.0), np.full((1, 4, 4, 1), 1.0)
    w = np.full((3, 3, 1, 1), 1.0)
    w[0, 0] = 255.0
    leaves = [Tensor(x.astype(BFLOAT16), requires_grad=True)]
    leaves += [Tensor(np.asarray(a, np.float32), requires_grad=True) for a in (w, [0.0])]
    y = conv2d(*leaves)
    assert np.array_equal(y.numpy(), np.full(y.shape, 2 * (255 + 8)).astype(BFLOAT16))
    y.backward(dy.astype(BFLOAT16))
    exact = Tensor(x, requires_grad=True)
    with reference():
        conv2d(exact, Tensor(w)).backward(dy)
    assert np.array_equal(leaves[0].grad, exact.grad.astype(BFLOAT16))
    assert leaves[1].grad.dtype == leaves[2].grad.dtype == np.float32
    assert (leaves[1].grad == 2 * 16).all() and leaves[2].grad.tolist() == [16]


@emulated
def test_columns_are_summed_up_and_the_bias_is_added_in_float32(emulator):
    _check_exact_convolution()


# -------------------------------------------------------------------------------------------- rounding

ROUND = cuda.Source(r"""
extern "C" __global__ void narrow(T* y, const A* x, int n) { EACH(i, n) y[i] = x[i]; }
extern "C" __global__ void widen(const T* x, A* y, int n) { EACH(i, n) y[i] = x[i]; }
""")


def _check_rounding():
    """Every bfloat16, and around each the floats at and beside its own place and the middle to the next."""
    upper = np.arange(1 << 16, dtype=np.uint32) << 16
    lower = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    x = (upper[:, None] + lower).view(np.float32).ravel()
    narrow = np.empty(x.shape, BFLOAT16)
    ROUND("narrow", cuda.over(x.size), narrow, x, x.size)
    with np.errstate(invalid="ignore"):  # NumPy says so of each NaN
        expected = x.astype(BFLOAT16)
        assert np.array_equal(np.isnan(narrow), np.isnan(x))
    numbers = ~np.isnan(x)
    assert np.array_equal(narrow[numbers].view(np.uint16), expected[numbers].view(np.uint16))
    everything = np.arange(1 << 16, dtype=np.uint16).view(BFLOAT16)
    wide = np.empty(everything.shape, np.float32)
    ROUND("widen", cuda.over(wide.size), everything, wide, wide.size)
    assert np.array_equal(wide.view(np.uint32), upper)


@emulated
def test_a_float_is_rounded_to_the_nearest_and_halfway_to_even(emulator):
    _check_rounding()


@emulated
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("all + 0x7fff + (all >> 16 & 1)", "all"),
        ("all + 0x7fff + (all >> 16 & 1)", "all + 0x8000"),
        ("all + 0x7fff + (all >> 16 & 1)", "all + 0x7fff"),
        ("is_nan ? all | 0x400000 : ", ""),
        ("all | 0x400000", "all"),
        (" > 0x7f800000", " >= 0x7f800000"),
        ("unsigned(bits) << 16", "unsigned(bits) << 16 | 1"),
    ],
)
def test_wrong_roundings_are_caught(right, wrong, emulator, monkeypatch):
    assert cuda.BFLOAT16.count(right) == 1
    monkeypatch.setattr(cuda, "BFLOAT16", cuda.BFLOAT16.replace(right, wrong))
    with pytest.raises(AssertionError):
        _check_rounding()


def test_there_is_no_arithmetic_in_16_bits(tmp_path):
    """What would sum up in bfloat16 does not compile."""
    if cuda_emulator.compiler() is None:
        pytest.skip("there is no g++ here")
    wrong = max_pool_cuda._CUDA.text("bfloat16").replace("double sum = 0;", "T sum = 0;")
    with pytest.raises(AssertionError, match="operator\\+=|no match|invalid"):
        cuda_emulator.library(wrong)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc here")
@pytest.mark.parametrize("place", OF_OPERATIONS)
def test_compiles_for_gpus(place, tmp_path):
    source = cuda_emulator.sources()[place]
    if not cuda_emulator.knows_bfloat16(source.code):
        return
    file = tmp_path / "kernels.cu"
    file.write_text(source.text("bfloat16"))
    targets = [f"-gencode=arch=compute_{n},code=sm_{n}" for n in (80, 90)]
    strict = ["--Werror=all-warnings", "-std=c++17"]
    command = ["nvcc", "-fatbin", *targets, *strict, str(file), "-o", str(tmp_path / "kernels")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# ------------------------------------------------------------------------------ dtypes, and what is refused


def test_astype_and_its_gradient():
    x = Tensor(np.array([1.0, 1.00390625, 3.0], np.float32), requires_grad=True)
    assert x.astype("float32") is x
    y = x.astype("bfloat16")
    assert y.dtype == BFLOAT16 and y.numpy().tolist() == [1.0, 1.0, 3.0]
    z = y.astype("float32")
    z.backward(np.array([1.0, 1.001, 2.0], np.float32))
    assert x.grad.dtype == np.float32 and x.grad.tolist() == [1.0, 1.0, 2.0]  # rounded on its way
    for wrong in (lambda: x.astype("int32"), lambda: Tensor(np.ones(2, np.int64)).astype("float32")):
        with pytest.raises(ShapeError, match="astype: floats become floats; int"):
            wrong()


def test_without_the_package_it_says_what_is_missing(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "ml_dtypes" else find_spec(name)
    )
    backend.bfloat16.cache_clear()
    try:
        for ask in (lambda: Tensor([1.0]).astype("bfloat16"), lambda: backend.precision("bf16").__enter__()):
            with pytest.raises(ConfigError, match=r"Install it with pip install ml_dtypes, or"):
                ask()
    finally:
        monkeypatch.undo()
        backend.bfloat16.cache_clear()


def test_float32_does_not_load_the_package():
    code = (
        "import sys, numpy as np, minires; from minires.ops.relu import relu;"
        "relu(minires.Tensor(np.ones(3, np.float32), requires_grad=True)).sum().backward();"
        "print('ml_dtypes' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "False", done.stderr


def _tensors(**dtypes):
    shapes = {"x": (1, 3, 3, 2), "add": (1, 3, 3, 2), "w": (1, 1, 2, 2)}
    return {name: Tensor(np.ones(shapes.get(name, 2), dtype)) for name, dtype in dtypes.items()}


@pytest.mark.parametrize("with_kernels", [False, pytest.param(True, marks=with_emulator)])
def test_activations_of_two_dtypes_are_refused(with_kernels, monkeypatch):
    if with_kernels:
        cuda_emulator.emulate(monkeypatch)
    narrow, wide = _tensors(x=BFLOAT16, gamma="float32", beta="float32"), _tensors(add="float32")
    with pytest.raises(ShapeError, match="relu: x is bfloat16 but add is float32"):
        relu.relu(narrow["x"], **wide)
    with pytest.raises(ShapeError, match="batch_norm: x is bfloat16 but add is float32"):
        batch_norm(**narrow, **wide, training=True)
    for mix in (lambda x, add: x + add, lambda x, add: add * x, lambda x, add: x / add):
        with pytest.raises(ShapeError, match="is bfloat16 but|is float32 but"):
            mix(narrow["x"], wide["add"])
    with pytest.raises(ShapeError, match="concat: .* is bfloat16 but"):
        concat.concat([narrow["x"], wide["add"]])


@pytest.mark.parametrize("with_kernels", [False, pytest.param(True, marks=with_emulator)])
@pytest.mark.parametrize("stored", ["float64", "bfloat16"])
def test_parameters_stay_float32(stored, with_kernels, monkeypatch):
    if with_kernels:
        cuda_emulator.emulate(monkeypatch)
    for name in ("w", "b"):
        tensors = _tensors(**{"x": BFLOAT16, "w": "float32", "b": "float32", name: stored})
        with pytest.raises(ShapeError, match=f"conv2d: {name} is {stored}, but it must be float32"):
            conv2d(**tensors)
    tensors = _tensors(x=BFLOAT16, gamma=stored, beta="float32")
    with pytest.raises(ShapeError, match=f"batch_norm: gamma is {stored}, but it must be float32"):
        batch_norm(**tensors, training=True)
    with pytest.raises(ShapeError, match="conv2d: .* is bfloat16"):
        conv2d(**_tensors(x="float32", w=BFLOAT16))


def test_a_float_has_one_dtype_elsewhere_too():
    assert backend.accumulator(BFLOAT16) == np.float32
    assert [backend.accumulator(dtype) for dtype in checks.FLOATS] == list(checks.FLOATS)
    assert backend.is_float(BFLOAT16) and not backend.is_float(np.dtype("V2"))
    assert backend.activations("bf16") == BFLOAT16 and backend.activations("tf32") == np.float32

"""The CUDA kernels of batch normalisation on sizes that fill several blocks, and kernels that are wrong."""

from contextlib import nullcontext

import cuda_emulator
import numpy as np
import opcheck
import pytest

from minires import Tensor, reference
from minires.backend import cuda
from minires.ops.batch_norm import batch_norm, cuda_kernels

pytestmark = [
    pytest.mark.emulated,
    pytest.mark.skipif(cuda_emulator.compiler() is None, reason="there is no g++ here"),
]
TRAINING = {"batch_norm_sums", "batch_norm_statistics"}
FORWARD = {"batch_norm_normalize"}
BACKWARD = {"batch_norm_gradient_sums", "batch_norm_gradient_totals", "batch_norm_gradient"}


@pytest.fixture
def emulator(monkeypatch):
    return cuda_emulator.emulate(monkeypatch)


def _rows(count, channels, dtype):
    return (1 + np.random.default_rng(0).standard_normal((count, channels))).astype(dtype)


def _run(x, training, **options):
    """The output, all gradients, and the running statistics afterwards."""
    rng, channels = np.random.default_rng(1), x.shape[-1]
    numbers = {"gamma": rng.uniform(0.5, 2, channels), "beta": rng.standard_normal(channels)}
    if options.pop("add", False):
        numbers["add"] = rng.standard_normal(x.shape)
    leaves = {"x": Tensor(x, requires_grad=True)}
    leaves |= {name: Tensor(array.astype(x.dtype), requires_grad=True) for name, array in numbers.items()}
    running = {"running_mean": np.linspace(-1, 1, channels), "running_var": np.linspace(1, 2, channels)}
    running = {name: array.astype(x.dtype) for name, array in running.items()}
    y = batch_norm(**leaves, **running, training=training, **options)
    y.backward(rng.standard_normal(y.shape).astype(x.dtype))
    return {"y": y.data, **{name: leaf.grad for name, leaf in leaves.items()}, **running}


def _check(x, training=True, **options):
    """The kernels against the reference implementation."""
    got = _run(x, training, **options)
    with reference():
        expected = _run(x, training, **options)
    opcheck.assert_all_close(got, expected, opcheck.CLOSE[str(x.dtype)], f"{x.shape} {training=} {options}")


OPTIONS = {
    "plain": {},
    "relu, torch": {"relu": True, "convention": "torch"},
    "add": {"add": True},
    "add and relu": {"add": True, "relu": True},
}
# A block is at most 32 channels wide, and 512 threads large.
SHAPES = {
    "three rows, one channel": (3, 1),
    "one channel, two blocks and a part of one": (2 * 4 * 512 + 5, 1),
    "three channels": (1111, 3),
    "16 channels, no whole block": (130, 16),
    "one channel more than a block": (65, 33),
    "many channels, few rows": (3, 100),
    "just whole blocks": (128, 64),
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", opcheck.DTYPES)
def test_shapes(shape, options, dtype, emulator):
    _check(_rows(*SHAPES[shape], dtype), **OPTIONS[options])
    assert emulator.launches == dict.fromkeys(TRAINING | FORWARD | BACKWARD, 1)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", opcheck.DTYPES)
def test_inference(options, dtype, emulator):
    _check(_rows(70, 40, dtype), training=False, **OPTIONS[options])
    assert emulator.launches == dict.fromkeys({"batch_norm_constants"} | FORWARD | BACKWARD, 1)


@pytest.fixture
def few_blocks(monkeypatch):
    """So few that a thread has many rows of x, as it has in large arrays."""
    monkeypatch.setattr(cuda_kernels, "_BLOCKS", 18)


# In the first there are more parts than the block that adds them up has rows, too.
@pytest.mark.parametrize("shape", [(1200, 32), (10000, 7), (1500, 33), (300, 200)])
@pytest.mark.parametrize("dtype", opcheck.DTYPES)
def test_many_rows_for_each_thread(shape, dtype, emulator, few_blocks):
    _check(_rows(*shape, dtype), relu=True, add=True)


def test_blocks_are_no_more_than_allowed_and_threads_reach_every_number():
    for rows, channels in [(2, 1), (2, 4096), (10**7, 1), (10**7, 16), (10**6, 96), (12544, 2048), (7, 3)]:
        width, across, parts = cuda_kernels._cut(rows, channels)
        assert width & (width - 1) == 0 and width <= cuda_kernels._WIDTH
        assert width * across >= channels > width * (across - 1)
        assert parts * across <= max(cuda_kernels._BLOCKS, across)
        height = cuda_kernels._THREADS // width
        assert parts == 1 or (parts - 1) * height < rows


@pytest.mark.parametrize("used", [np.s_[..., :5], np.s_[..., 3:], np.s_[1:, ..., 1:6]], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_a_view_is_read_where_it_lies(used, training, emulator):
    whole = np.full((3, 10, 5, 8), np.nan)
    whole[used] = np.random.default_rng(0).standard_normal(whole[used].shape)
    numbers, stride = cuda_kernels._numbers(np, whole[used].reshape(-1, whole[used].shape[-1]))
    assert stride == 8 and numbers.flags.c_contiguous and np.shares_memory(numbers, whole)
    _check(whole[used], training, relu=True)


@pytest.mark.parametrize("convention", ["keras", "torch"])
@pytest.mark.parametrize("layout", ["as x", "float64", "every second"])
def test_running_statistics_of_any_layout(convention, layout, emulator):
    x = _rows(100, 6, "float32")
    ones, zeros = Tensor(np.ones(6, np.float32)), Tensor(np.zeros(6, np.float32))
    for training in (True, False):
        found = []
        for implementation in (nullcontext, reference):
            dtype = "float64" if layout == "float64" else "float32"
            mean, var = np.linspace(-1, 1, 12).astype(dtype), np.linspace(1, 2, 12).astype(dtype)
            mean, var = (a[::2] if layout == "every second" else a[:6] for a in (mean, var))
            with implementation():
                options = {"training": training, "convention": convention}
                y = batch_norm(Tensor(x), ones, zeros, running_mean=mean, running_var=var, **options)
            assert mean.dtype == var.dtype == dtype and y.dtype == np.float32
            found.append({"y": y.data, "mean": mean, "var": var})
        opcheck.assert_all_close(*found, 1e-6, f"{convention}, {layout}, {training=}")


def test_statistics_that_move_before_the_backward_do_not_change_it(emulator):
    x, ones = Tensor(_rows(4, 2, "float64")), np.ones(2)
    gamma, beta = Tensor(ones, requires_grad=True), Tensor(ones)
    mean, var = np.array([1.0, 2.0]), np.array([4.0, 9.0])
    y = batch_norm(x, gamma, beta, training=False, running_mean=mean, running_var=var, eps=0.0)
    mean += 100
    var *= 100
    y.sum().backward()
    assert np.allclose(gamma.grad, ((x.data - [1, 2]) / [2, 3]).sum(0), rtol=1e-12)


def test_a_large_common_mean_does_not_eat_the_variance(emulator):
    x = (1e4 + np.random.default_rng(0).standard_normal((2000, 3))).astype(np.float32)
    mean, inv = cuda_kernels.statistics(np, x, None, None, 0.0, 1.0, 0.0)
    exact = x.astype(np.float64)
    assert np.allclose(mean, exact.mean(0), rtol=1e-7) and np.allclose(inv, 1 / exact.std(0), rtol=1e-6)


@pytest.mark.parametrize("dtype", opcheck.DTYPES)
def test_a_constant_channel_stays_finite(dtype, emulator):
    x = np.full((600, 2), 3.1, dtype)
    mean, inv = cuda_kernels.statistics(np, x, None, None, 0.0, 1.0, 1e-3)
    assert np.array_equal(mean, x[0]) and np.allclose(inv, 1e-3**-0.5, rtol=1e-6)


@pytest.mark.parametrize("add", [True, False])
def test_nan_is_not_hidden(add, emulator):
    x = _rows(50, 3, "float64")
    x[7, 1] = np.nan
    got = _run(x, True, relu=True, add=add)
    assert np.isnan(got["y"]).all(axis=0).tolist() == [False, True, False]
    assert np.isnan(got["running_var"]).tolist() == [False, True, False]
    assert np.isfinite(got["y"][:, [0, 2]]).all() and np.isfinite(got["x"][:, [0, 2]]).all()


def test_the_backward_sees_the_same_signs_as_the_forward(emulator):
    """It finds the sign of y a second time, from x: to the last bit, also where y is nearly zero."""
    rng = np.random.default_rng(3)
    x = Tensor((1 + 1e-6 * rng.standard_normal((500, 24))).astype(np.float32), requires_grad=True)
    gamma, beta = (Tensor(array.astype(np.float32)) for array in (1 + rng.random(24), 1e-6 * rng.random(24)))
    mean, var = np.ones(24, np.float32), np.full(24, 0.7, np.float32)
    y = batch_norm(x, gamma, beta, training=False, running_mean=mean, running_var=var, relu=True)
    y.backward(np.ones(y.shape, np.float32))
    assert 0.1 < (y.data > 0).mean() < 0.9
    assert np.array_equal(x.grad > 0, y.data > 0)


MUTANTS = {
    "a barrier is missing": ("        __syncthreads();\n", ""),
    "the last halving is missing": ("half >= width;", "half > width;"),
    "one row too many": ("A d = m < rows ?", "A d = m <= rows ?"),
    "the last row is missing": ("if (m < rows) {", "if (m < rows - 1) {"),
    "one row too many in y and dx": ("m < rows; m += at.step", "m <= rows; m += at.step"),
    "rows are added twice": ("row += 4 * at.step", "row += 3 * at.step"),
    "only as many parts as rows of a block": ("part += at.step", "part += parts"),
    "one channel too many": ("threadIdx.x < width && at.channel < channels", "threadIdx.x < width"),
    "one part is missing": ("part < parts;", "part < parts - 1;"),
    "squares where products are": ("products += g * d", "products += d * d"),
    "rows without gaps": ("x[m * stride + at.channel]", "x[m * channels + at.channel]"),
    "rows without gaps in the backward": ("A d = x[m * stride + c]", "A d = x[m * channels + c]"),
    "the variance of the first row": ("- offset * offset", ""),
    "always the biased variance": ("var * correction", "var"),
    "the mean without the first row": ("x[c] + offset", "offset"),
    "eps outside the root": ("sqrt(var + eps)", "(sqrt(var) + eps)"),
    "the sign is not that of y": ("A value = y ? A(y[i]) :", "A value ="),
    "no gradient through the variance": ("slope * d + offset", "offset"),
    "no gradient through the mean": ("slope * d + offset", "slope * d"),
    "training in inference": ("dx[i] = training ?", "dx[i] = 1 ?"),
    "the addition is forgotten": ("value += add[i]", "value += A(0)"),
    "the addition gets dy": ("dadd[i] = g", "dadd[i] = dy[i]"),
}


def _check_all():
    _check(_rows(300, 33, "float64"), relu=True, add=True, convention="torch")
    _check(_rows(3, 5, "float64"), relu=True, training=False)
    _check(_rows(100, 8, "float64")[:, :6], relu=True)
    _check(_rows(1200, 32, "float64"))


def test_the_kernels_pass_what_mutants_fail(emulator, few_blocks):
    _check_all()


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants(name, emulator, few_blocks, monkeypatch):
    right, wrong = MUTANTS[name]
    code = cuda_kernels._CUDA.code
    changed = code.replace(right, wrong)
    assert changed != code
    monkeypatch.setattr(cuda_kernels, "_CUDA", cuda.Source(changed.removeprefix(cuda.PRELUDE)))
    with pytest.raises(AssertionError):
        _check_all()

"""Sums that lose no digits: any axis and layout, up to 10**8 numbers, by the kernel and by plain code."""

import itertools

import numpy as np
import pytest

from minires import Tensor, backend, ops
from minires.optim import SGD

AIM = 1e-7  # of float32: 6e-8 is what rounding the right result costs
MANY = 10_000_000


@pytest.fixture(params=["kernel", "reference"], autouse=True)
def implementation(request):
    if request.param == "kernel" and not backend.HAS_NUMBA:
        pytest.skip("Numba is not installed")
    with backend.reference(request.param == "reference"):
        yield


def uniform(*shape, seed=0):
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def error(found, expected):
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    return float(np.max(np.abs(found.astype(np.float64) / expected - 1)))


def test_a_hundred_million_ones():
    ones = np.ones((50_000_000, 2), np.float32)
    assert backend.total(ones, 0).tolist() == [5e7, 5e7]
    assert backend.total(ones) == 1e8
    assert backend.total(ones.T, 1).tolist() == [5e7, 5e7]


SHAPES = [
    ((MANY,), 0), ((MANY, 1), 0), ((1, MANY), 1), ((MANY // 2, 2), 0), ((MANY // 7, 7), 0),
    ((MANY // 100, 100), 0), ((MANY // 100, 100), 1), ((100, MANY // 100), 0), ((100, MANY // 100), 1),
    ((2, MANY // 8, 4), 1), ((2, MANY // 8, 4), (0, 1)), ((2, MANY // 8, 4), (0, 2)),
    ((10, 10, 1000, 100), (1, 2)), ((10, 10, 1000, 100), None), ((10, 10, 1000, 100), (0, 3)),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "axes"), SHAPES, ids=str)
def test_ten_million_numbers_over_any_axis(shape, axes):
    x = uniform(*shape)
    exact = x.astype(np.float64)
    assert error(backend.total(x, axes), exact.sum(axis=axes)) < AIM
    assert error(backend.total(x, axes, dtype=np.float64), exact.sum(axis=axes)) < 1e-12
    assert error(backend.mean(x, axes, keepdims=True), exact.mean(axis=axes, keepdims=True)) < AIM
    assert error(ops.sum(Tensor(x), axes).data, exact.sum(axis=axes)) < AIM
    assert error(ops.mean(Tensor(x), axes).data, exact.mean(axis=axes)) < AIM


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
@pytest.mark.parametrize("axes", [0, 1, 2, (0, 1), (0, 2), (1, 2), None], ids=str)
def test_any_layout_of_memory(order, axes):
    x = uniform(40, 30, 50).transpose(order)
    for view in (x, x[1:], x[::2], x[:, ::-1], x[..., 3:20]):
        assert error(backend.total(view, axes), view.astype(np.float64).sum(axis=axes)) < AIM


@pytest.mark.parametrize(
    "sizes", [(1, 20000), (3, 9000), (5, 4100), (20000, 3), (257, 65), (64, 64 * 7), (2, 9001)]
)
@pytest.mark.parametrize("outer", [1, 2, 5])
def test_sizes_beside_those_of_the_kernels_blocks(sizes, outer):
    rows, inner = sizes
    x = np.arange(outer * rows * inner, dtype=np.float32).reshape(outer, rows, inner) % 1000
    assert np.array_equal(backend.total(x, 1), x.astype(np.float64).sum(axis=1))
    assert np.array_equal(backend.total(x, 1, divisor=2), x.astype(np.float64).sum(axis=1) / 2)


def test_a_sum_of_nothing_is_zero_and_over_no_axis_all():
    assert backend.total(np.ones((0, 3), np.float32), 0).tolist() == [0, 0, 0]
    assert backend.total(np.ones((3, 0), np.float32), 0).shape == (0,)
    x = uniform(200, 100)
    assert np.array_equal(backend.total(x, ()), x) and backend.total(x, ()) is not x


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_the_dtype_is_that_of_the_array_or_as_asked(dtype):
    dtype = backend.bfloat16() if dtype == "bfloat16" else np.dtype(dtype)
    for size in (10, 100_000):
        x = np.ones((size, 2), dtype)
        assert (
            backend.total(x, 0).dtype == dtype and backend.total(x, 0, dtype=np.float64).dtype == np.float64
        )
        assert backend.total(x, 0, dtype=np.float64).tolist() == [size, size]
        assert backend.mean(x, 0).tolist() == [1, 1]


def test_what_is_too_large_on_the_way_is_not_too_large_at_the_end():
    x = np.full((100_000, 2), 3e38, np.float32)
    assert error(backend.mean(x, 0), np.full(2, np.float32(3e38), np.float64)) < AIM
    assert np.isposinf(backend.total(x, 0)).all()  # and nothing is said of it
    x[::2] *= -1
    assert backend.total(x, 0).tolist() == [0, 0]


def test_numbers_that_are_not_finite_show():
    x = uniform(100_000, 3)
    x[7, 0], x[8, 1] = np.nan, np.inf
    total = backend.total(x, 0)
    assert np.isnan(total[0]) and np.isposinf(total[1]) and np.isfinite(total[2])


# ------------------------------------------------------------------------------- who adds up many numbers


def gradient(operation, leaf, *others):
    leaf = Tensor(leaf, requires_grad=True)
    y = operation(leaf, *others)
    dy = uniform(*y.shape, seed=5)
    y.backward(dy)
    return leaf.grad, dy.astype(np.float64)


def test_variance_of_many():
    x = uniform(MANY, 1) + np.float32(100)
    exact = x.astype(np.float64)
    assert error(ops.var(Tensor(x), axis=0).data, exact.var(axis=0)) < 1e-6
    assert error(ops.std(Tensor(x), axis=0).data, exact.std(axis=0)) < 1e-6


def test_variance_far_from_zero():
    """The mean, 12345.6, is rounded by more than the numbers' distance from it squared."""
    x = (12345.6 + 0.01 * np.random.default_rng(0).standard_normal((1000, 2))).astype(np.float32)
    exact = x.astype(np.float64)
    assert error(ops.var(Tensor(x), axis=0).data, exact.var(axis=0)) < 1e-5


def test_the_gradient_of_what_was_stretched():
    x = Tensor(np.zeros((MANY, 1), np.float32))
    for operation in (ops.add, ops.sub, ops.mul, ops.maximum):
        y = Tensor(np.ones((MANY, 1), np.float32)) if operation is ops.mul else x
        found, dy = gradient(lambda b, y=y, operation=operation: operation(b, y), np.ones(1, np.float32))
        assert error(found, dy.sum(axis=0)) < AIM
    found, dy = gradient(lambda b: ops.broadcast_to(b, (MANY, 1)), np.ones(1, np.float32))
    assert error(found, dy.sum(axis=0)) < AIM


def test_the_bias_of_layers():
    bias = np.zeros(2, np.float32)
    rows = Tensor(np.zeros((MANY // 2, 1), np.float32))
    w = Tensor(np.zeros((1, 2), np.float32))
    found, dy = gradient(lambda b: ops.linear(rows, w, b), bias)
    assert error(found, dy.sum(axis=0)) < AIM
    pictures, kernel = (
        Tensor(np.zeros((2, 1000, MANY // 4000, 1), np.float32)),
        Tensor(np.zeros((1, 1, 1, 2), np.float32)),
    )
    found, dy = gradient(lambda b: ops.conv2d(pictures, kernel, b), bias)
    assert error(found, dy.sum(axis=(0, 1, 2))) < AIM
    kernel = Tensor(np.zeros((1, 1, 2, 1), np.float32))
    found, dy = gradient(lambda b: ops.conv_transpose2d(pictures, kernel, b), bias)
    assert error(found, dy.sum(axis=(0, 1, 2))) < AIM


@pytest.mark.parametrize("outputs", [3, 16])
def test_the_kernel_of_a_convolution_of_large_pictures(outputs):
    """A product of half a million numbers, which the tiles sum in blocks."""
    x, shape = uniform(2, 500, 501, 1), (1, 2, 1, outputs)
    found, dy = gradient(lambda w: ops.conv2d(Tensor(x), w), np.zeros(shape, np.float32))
    pixels = [x[:, :, k : k + 500].astype(np.float64) for k in range(2)]
    assert error(found[0], [np.tensordot(one, dy, ([0, 1, 2], [0, 1, 2])) for one in pixels]) < 3e-6


def test_average_pools_of_a_large_picture():
    x = uniform(1, 2500, 2000, 2)
    exact = x.astype(np.float64).mean(axis=(1, 2))
    assert error(ops.global_avg_pool2d(Tensor(x)).data, exact) < AIM
    x = x[:, :400, :300]
    exact = x.astype(np.float64).mean(axis=(1, 2), keepdims=True)
    assert error(ops.avg_pool2d(Tensor(x), (400, 300)).data, exact) < AIM


def test_the_gradient_of_an_average_pool_whose_windows_overlap():
    x = np.zeros((1, 199, 199, 1), np.float32)
    found, dy = gradient(lambda x: ops.avg_pool2d(x, 100, stride=1), x)
    assert error(found[0, 99, 99, 0], dy.mean()) < AIM  # this pixel lies under all 10,000 windows


def test_the_gradient_of_a_pixel_that_wins_everywhere():
    x = np.zeros((1, 199, 199, 1), np.float32)
    x[0, 99, 99] = 1
    found, dy = gradient(lambda x: ops.max_pool2d(x, 100, stride=1), x)
    assert error(found[0, 99, 99, 0], dy.sum()) < AIM


def test_response_norm_over_many_neighbours():
    x = uniform(2, 8000)
    y = ops.local_response_norm(Tensor(x), 16001, k=1.0, alpha=1.0, beta=1.0).data
    exact = x.astype(np.float64)
    assert error(y, exact / (1 + (exact**2).sum(axis=1, keepdims=True))) < 2e-7


def test_batch_norm_of_many():
    x = uniform(MANY // 2, 2)
    exact, means, variances = x.astype(np.float64), np.zeros(2, np.float32), np.zeros(2, np.float32)
    gamma, beta = (Tensor(np.full(2, k, np.float32), requires_grad=True) for k in (1, 3))
    y = ops.batch_norm(
        Tensor(x), gamma, beta, training=True, running_mean=means, running_var=variances, momentum=0.0
    )
    assert error(means, exact.mean(axis=0)) < 2e-7
    assert error(variances, exact.var(axis=0)) < 1e-6
    dy = uniform(*x.shape, seed=5) * (x > 0.5)
    y.backward(dy)
    assert error(beta.grad, dy.astype(np.float64).sum(axis=0)) < 2e-7
    xhat = (exact - exact.mean(axis=0)) / np.sqrt(exact.var(axis=0) + 1e-3)
    assert error(gamma.grad, (dy * xhat).sum(axis=0)) < 1e-6


def test_softmax_over_many_classes():
    x = np.zeros((MANY * 2, 1), np.float32)
    assert error(ops.softmax(Tensor(x), axis=0).data[0, 0], 1 / (2 * MANY)) < AIM
    assert error(ops.log_softmax(Tensor(x), axis=0).data[0, 0], -np.log(2 * MANY)) < AIM


def test_losses_over_many_rows():
    logits = np.concatenate([uniform(MANY // 4, 1), np.zeros((MANY // 4, 1), np.float32)], axis=1)
    exact = np.log1p(np.exp(-logits[:, 0].astype(np.float64)))
    labels = np.zeros(len(logits), np.int64)
    assert error(ops.cross_entropy(Tensor(logits), labels).data, exact.mean()) < AIM
    assert (
        error(
            ops.nll_loss(Tensor(-uniform(MANY // 4, 1)), labels).data,
            uniform(MANY // 4, 1).mean(dtype=np.float64),
        )
        < AIM
    )


def test_a_row_that_is_read_many_times():
    places = np.zeros(2**24 + 5, np.int64)
    x = Tensor(np.zeros((2, 1), np.float32), requires_grad=True)
    x[places].backward(np.ones((len(places), 1), np.float32))
    assert error(x.grad[0], np.array([2**24 + 5.0])) < AIM


def test_the_maximum_of_many_equal_numbers_shares_its_gradient_evenly():
    x = Tensor(np.zeros((3 * 2**23, 1), np.float32), requires_grad=True)
    x.max(axis=0).backward(np.ones(1, np.float32))
    assert error(x.grad[0, 0], 1 / (3 * 2**23)) < AIM


@pytest.mark.parametrize("size", [100, MANY])
def test_the_norm_of_all_gradients(size):
    weights = [Tensor(np.zeros(n, np.float32), requires_grad=True) for n in (size, 3)]
    for p, scale in zip(weights, (1.0, 1e20), strict=True):
        p.grad = uniform(p.data.size) * np.float32(scale)
    exact = np.sqrt(sum((p.grad.astype(np.float64) ** 2).sum() for p in weights))
    assert error(SGD(weights, 0.1).gradient_norm(), exact) < 1e-12


def test_squares_of_many_arrays_each_once():
    """Threads share them out in the middle of arrays; some are no work for the kernel."""
    sizes = [1, 700_001, 3, 2_500_000, 0, 64, 65, 256, 257, 999_999]
    arrays = [uniform(size, seed=i) for i, size in enumerate(sizes)]
    arrays += [uniform(30, 40).T, uniform(50)[::2], uniform(7).astype(np.float64), np.float32(3).reshape(())]
    exact = sum((array.astype(np.float64) ** 2).sum() for array in arrays)
    assert abs(backend.sum_of_squares(arrays) / exact - 1) < 1e-13
    assert backend.sum_of_squares([]) == 0
    assert np.isnan(backend.sum_of_squares([*arrays, np.float32([1, np.nan])]))
    assert backend.sum_of_squares([np.float32([1e30, np.inf])]) == np.inf

"""Pooling and joining in CUDA, run on the CPU: shapes beyond the table of cases, and wrong kernels."""

import cuda_emulator
import numpy as np
import opcheck
import pytest

from minires.backend import cuda
from minires.ops import avg_pool2d, concat, max_pool2d, pad_channels
from minires.ops.avg_pool2d import cuda_kernels as avg_pool_cuda
from minires.ops.max_pool2d import cuda_kernels as max_pool_cuda
from minires.ops.window import window

pytestmark = [
    pytest.mark.emulated,
    pytest.mark.skipif(cuda_emulator.compiler() is None, reason="there is no g++ here"),
]

WINDOWS = [  # picture, kernel, stride, padding, dilation
    ((2, 9, 11, 37), 3, 2, 1, 1),
    ((1, 23, 17, 1), 3, 1, "same", 1),
    ((3, 8, 7, 130), 2, 2, 0, 1),
    ((2, 9, 7, 33), (2, 3), (3, 1), ((0, 1), (1, 0)), 1),
    ((1, 13, 14, 16), 2, 3, "ceil", 1),
    ((4, 1, 1, 70), 4, 1, 2, 1),
    ((2, 9, 11, 37), 3, 1, ((3, 2), (5, 4)), (2, 3)),
    ((1, 14, 9, 5), (3, 2), (2, 1), "ceil", (3, 2)),
]
JOINED = [  # sizes of the parts along the axis, the other axes, the axis
    ([5], (40, 3), 2),
    ([3, 64], (2, 5, 7), 3),
    ([1, 2, 3, 4], (3, 9, 11), 3),
    ([7, 1, 33, 2, 9], (2, 5, 3), 3),
    ([2, 0, 3], (10, 13), 1),
    ([3, 1, 4, 1, 5, 9, 2, 6, 5], (30, 2), 1),
    ([3, 1, 4, 1, 5], (40, 7), 0),
]
PADDED = [  # picture, channels, stride, channels before
    ((2, 9, 7, 16), 33, 2, 8),
    ((1, 30, 31, 1), 2, 1, 0),
    ((3, 8, 10, 40), 70, 3, 0),
    ((2, 5, 5, 20), 20, 2, 0),
]


@pytest.fixture(autouse=True)
def emulator(monkeypatch):
    monkeypatch.setattr(cuda, "_MOST_BLOCKS", 3)  # so that a thread has more than one number to do
    return cuda_emulator.emulate(monkeypatch)


def _random(shape, dtype, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def check_max_pool(dtype):
    for shape, *options in WINDOWS:
        win = window("max_pool2d", shape[1:3], *options)
        numbers, often = [np.nan, -np.inf, -1, 0, 1], [0.03, 0.5, 0.2, 0.2, 0.07]  # many are equal
        x = np.random.default_rng(0).choice(numbers, shape, p=often).astype(dtype)
        y, winner = max_pool_cuda.forward(np, x, win)
        expected_y, expected_winner = max_pool2d._forward(np, x, win)
        assert np.array_equal(y, expected_y, equal_nan=True)
        assert winner.dtype == np.int32 and np.array_equal(winner, expected_winner)
        dy = _random(y.shape, dtype)
        dx = max_pool_cuda.backward(np, dy, winner, shape, win)
        opcheck.assert_close(dx, max_pool2d._backward(np, dy, winner, shape, win), opcheck.CLOSE[dtype], "dx")


def check_avg_pool(dtype):
    for shape, *options in WINDOWS:
        win = window("avg_pool2d", shape[1:3], *options)
        for count_padding in (False, True):
            counts = avg_pool2d._counts(np, win, shape, dtype, count_padding)
            x = _random(shape, dtype)
            y = avg_pool_cuda.forward(np, x, win, count_padding)
            opcheck.assert_close(y, avg_pool2d._sum(np, x, win) / counts, opcheck.CLOSE[dtype], "y")
            dy = _random(y.shape, dtype, 1)
            dx = avg_pool_cuda.backward(np, dy, shape, win, count_padding)
            expected = avg_pool2d._backward(np, dy / counts, shape, win)
            opcheck.assert_close(dx, expected, opcheck.CLOSE[dtype], "dx")


def check_global_avg_pool(dtype):
    for n, h, w, c in [(3, 7, 5, 67), (1, 40, 41, 1), (2, 1, 1, 1000)]:
        dy = _random((n, c), dtype)
        dx = avg_pool_cuda.global_backward(np, dy, (n, h, w, c))
        expected = np.broadcast_to(dy[:, None, None, :] / (h * w), (n, h, w, c))
        opcheck.assert_close(dx, expected, opcheck.CLOSE[dtype], "dx")


def check_concat(dtype):
    for sizes, others, axis in JOINED:
        parts = [_random((*others[:axis], size, *others[axis:]), dtype) for size in sizes]
        assert np.array_equal(concat._forward_cuda(np, parts, axis), concat._forward(np, parts, axis))
        dy = _random(concat._forward(np, parts, axis).shape, dtype)
        found, expected = (f(np, dy, sizes, axis) for f in (concat._backward_cuda, concat._backward))
        for part, expected_part in zip(found, expected, strict=True):
            assert np.array_equal(part, expected_part) and part.flags.owndata and part.flags.c_contiguous


def check_pad_channels(dtype):
    for shape, channels, stride, before in PADDED:
        x = _random(shape, dtype)
        y = pad_channels._forward_cuda(np, x, channels, stride, before)
        assert np.array_equal(y, pad_channels._forward(np, x, channels, stride, before))
        dy = _random(y.shape, dtype, 1)
        dx = pad_channels._backward_cuda(np, dy, shape, stride, before)
        assert np.array_equal(dx, pad_channels._backward(np, dy, shape, stride, before))


CHECKS = [check_max_pool, check_avg_pool, check_global_avg_pool, check_concat, check_pad_channels]


@pytest.mark.parametrize("dtype", cuda.C_TYPES)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_shapes_beyond_the_table(check, dtype):
    check(dtype)


def test_means_of_many_pixels_lose_no_digits():
    x = np.random.default_rng(0).random((1, 700, 500, 2), np.float32)
    win = window("avg_pool2d", (700, 500), (600, 500), 100, 0)
    y = avg_pool_cuda.forward(np, x, win, False)
    expected = [x[:, at : at + 600].astype(np.float64).mean(axis=(1, 2)) for at in (0, 100)]
    np.testing.assert_allclose(y[0, :, 0], np.concatenate(expected), rtol=1e-7)
    win = window("avg_pool2d", (99, 99), 50, 1, 0)
    dy = np.random.default_rng(0).random((1, *win.out, 1), np.float32)
    dx = avg_pool_cuda.backward(np, dy, (1, 99, 99, 1), win, False)
    np.testing.assert_allclose(dx[0, 49, 49, 0], dy.mean(dtype=np.float64), rtol=1e-7)
    middle = (49 - np.arange(50))[:, None] * 50 + 49 - np.arange(50)  # it won under each of these windows
    winner = middle.astype(np.int32).reshape(dy.shape)
    dx = max_pool_cuda.backward(np, dy, winner, (1, 99, 99, 1), win)
    np.testing.assert_allclose(dx[0, 49, 49, 0], dy.sum(dtype=np.float64), rtol=1e-7)


@pytest.mark.parametrize(("tensors", "launches"), [(1, 1), (4, 1), (5, 2), (9, 3)])
def test_four_tensors_are_joined_in_one_launch(tensors, launches, emulator):
    parts = [np.ones((2, 3))] * tensors
    y = concat._forward_cuda(np, parts, 1)
    concat._backward_cuda(np, y, [3] * tensors, 1)
    assert emulator.launches == {"concat": launches, "concat_gradient": launches}


@pytest.mark.parametrize(
    ("module", "check", "right", "wrong"),
    [
        (max_pool_cuda, check_max_pool, "pixel > best", "pixel >= best"),
        (max_pool_cuda, check_max_pool, " || isnan(pixel)", ""),
        (max_pool_cuda, check_max_pool, "first_x = first(start_w, dilation_w)", "first_x = 0"),
        (max_pool_cuda, check_max_pool, "(dilation - 1 - start) / dilation", "-start / dilation"),
        (max_pool_cuda, check_max_pool, "iw = start_w + kx * dilation_w;", "iw = start_w + kx * dilation_h;"),
        (max_pool_cuda, check_max_pool, "if (ky % dilation_h) continue;", ""),
        (max_pool_cuda, check_max_pool, "kx /= dilation_w;", ""),
        (max_pool_cuda, check_max_pool, "high = kernel_h * dilation_h", "high = kernel_h"),
        (max_pool_cuda, check_max_pool, "row / out_h * h", "row / out_h * out_h"),
        (max_pool_cuda, check_max_pool, "oh >= 0", "oh > 0"),
        (max_pool_cuda, check_max_pool, "winner[o] == ky * kernel_w", "winner[o] == ky * kernel_h"),
        (max_pool_cuda, check_max_pool, "sum += dy", "sum = dy"),
        (avg_pool_cuda, check_avg_pool, "(stop_y - first_y) * (stop_x - first_x)", "kernel_h * kernel_w"),
        (avg_pool_cuda, check_avg_pool, "(dilation - 1 - start) / dilation", "-start / dilation"),
        (avg_pool_cuda, check_avg_pool, "size - start + dilation - 1", "size - start"),
        (avg_pool_cuda, check_avg_pool, "start_h + ky * dilation_h", "start_h + ky"),
        (avg_pool_cuda, check_avg_pool, "dilation_w > 1 && ", "false && "),
        (avg_pool_cuda, check_avg_pool, "wide = kernel_w * dilation_w", "wide = kernel_w"),
        (avg_pool_cuda, check_avg_pool, "row % out_h * stride_h", "row % out_h * stride_w"),
        (avg_pool_cuda, check_avg_pool, "real_h * real_w", "real_w * real_w"),
        (avg_pool_cuda, check_avg_pool, "ih < oh", "ih <= oh"),
        (avg_pool_cuda, check_global_avg_pool, "* channels + i % channels", "* channels"),
        (concat, check_concat, "k < to_a", "k <= to_a"),
        (concat, check_concat, "k - to_a", "to_b - 1 - k"),
        (concat, check_concat, " y[row * width + start", " y[row * width"),
        (concat, check_concat, "dy[row * width", "dy[row * joined"),
        (pad_channels, check_pad_channels, "c < channels", "c <= channels"),
        (pad_channels, check_pad_channels, "% out_channels - before", "% out_channels"),
        (pad_channels, check_pad_channels, "row % out_h * stride", "row % out_h"),
        (pad_channels, check_pad_channels, " && ow * stride == iw", ""),
    ],
)
def test_a_wrong_kernel_is_caught(module, check, right, wrong, monkeypatch):
    code = module._CUDA.code.removeprefix(cuda.PRELUDE)
    assert code.count(right) == 1
    source = cuda.Source(code.replace(right, wrong))
    cuda_emulator.library(source.text("float64"))  # it can be compiled
    monkeypatch.setattr(module, "_CUDA", source)
    with pytest.raises(AssertionError):
        check("float64")

"""Convolution's CUDA kernels, run on the CPU: several blocks, chunks, joined groups, wrong kernels."""

import math

import cuda_emulator
import numpy as np
import opcheck
import pytest

from minires import Tensor, reference
from minires.backend import cuda
from minires.ops import conv2d as module
from minires.ops.conv2d import choose, conv2d, cuda_columns, way
from minires.ops.window import window

pytestmark = [
    pytest.mark.emulated,
    pytest.mark.skipif(cuda_emulator.compiler() is None, reason="there is no g++ here"),
]

SHAPES = {
    "3x3, odd sizes": ((3, 9, 11, 37), (3, 3, 37, 5), {"padding": 1}),
    "5x3, one channel, four sides": ((1, 33, 31, 1), (5, 3, 1, 1), {"padding": ((4, 1), (0, 2))}),
    "7x7, three channels": ((2, 29, 23, 3), (7, 7, 3, 8), {"stride": 2, "padding": 3}),
    "1x1": ((3, 13, 9, 34), (1, 1, 34, 6), {}),
    "1x1, stride 2": ((3, 13, 9, 34), (1, 1, 34, 6), {"stride": 2}),
    "1x1, 3 groups": ((2, 7, 5, 36), (1, 1, 12, 9), {"groups": 3}),
    "3x2, 5 groups": ((3, 8, 7, 40), (3, 2, 8, 15), {"groups": 5, "stride": (1, 2), "padding": (2, 1)}),
    "depthwise": ((2, 9, 8, 24), (3, 3, 1, 24), {"groups": 24, "padding": 1}),
    "2x3, stride larger than kernel": ((2, 17, 20, 12), (2, 3, 12, 4), {"stride": (3, 4)}),
    "2x2, windows beside the picture": ((2, 5, 6, 20), (2, 2, 20, 3), {"padding": 3}),
    "3x3, dilated": ((2, 9, 10, 33), (3, 3, 33, 4), {"padding": 2, "dilation": 2}),
    "2x3, dilated pairs, 2 groups": (
        (2, 11, 9, 14),
        (2, 3, 7, 4),
        {"dilation": (4, 3), "stride": (2, 1), "padding": (3, 2), "groups": 2},
    ),
}


@pytest.fixture
def emulator(monkeypatch):
    """Here new arrays hold NaN, so that a number which no kernel writes is seen."""
    monkeypatch.setattr(np, "empty", lambda shape, dtype, **order: np.full(shape, np.nan, dtype, **order))
    return cuda_emulator.emulate(monkeypatch)


def check(x, w, options, dtype="float64"):
    """The three products against the reference implementation."""
    rng = np.random.default_rng(3)
    groups = options.get("groups", 1)
    stride, padding, dilation = (options.get(*o) for o in (("stride", 1), ("padding", 0), ("dilation", 1)))
    win = window("conv2d", x[1:3], w[:2], stride, padding, dilation)
    x, w, b = (rng.standard_normal(shape).astype(dtype) for shape in (x, w, w[-1:]))
    for bias in (b, None):
        for relu in (False, True):
            y = cuda_columns.forward(x, w, bias, relu, win, groups)
            expected = module._forward(np, x, w, bias, relu, win, groups)
            opcheck.assert_close(y, expected, opcheck.CLOSE[dtype], f"y, relu={relu}")
            assert y.dtype == dtype
    dy = rng.standard_normal(y.shape).astype(dtype)
    dx = cuda_columns.backward_x(dy, w, x.shape, win, groups)
    opcheck.assert_close(dx, module._backward_x(np, dy, w, x.shape, win, groups), opcheck.CLOSE[dtype], "dx")
    dw = cuda_columns.backward_w(dy, x, w.shape, win, groups)
    opcheck.assert_close(dw, module._backward_w(np, dy, x, w.shape, win, groups), opcheck.CLOSE[dtype], "dw")


def check_nan():
    """NaN in a picture stays where a window meets it, also behind a ReLU."""
    x = np.zeros((1, 3, 3, 1))
    x[0, 0, 0, 0] = np.nan
    win = window("conv2d", (3, 3), 2, 1, 0)
    y = cuda_columns.forward(x, np.ones((2, 2, 1, 1)), None, True, win, 1)
    assert np.isnan(y[0, :, :, 0]).tolist() == [[True, False], [False, False]]


@pytest.mark.parametrize("blocks", [1, 8192])
@pytest.mark.parametrize("dtype", opcheck.DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_beyond_the_table(shape, dtype, blocks, emulator, monkeypatch):
    monkeypatch.setattr(cuda, "_MOST_BLOCKS", blocks)  # with one, its threads go round several times
    check(*SHAPES[shape], dtype)


def test_nan_is_not_hidden(emulator):
    check_nan()


@pytest.mark.parametrize("pictures", [0, 1, 3])
@pytest.mark.parametrize("groups", [1, 3])
def test_chunks(groups, pictures, emulator, monkeypatch):
    """Seven pictures in chunks of at most so many; of one where not even its columns are allowed."""
    x, w = (7, 5, 4, 6), (3, 2, 6 // groups, 9)
    win = window("conv2d", x[1:3], w[:2], (1, 2), (1, 0))
    size = math.prod(win.out) * math.prod(w[:3]) * 8
    monkeypatch.setattr(cuda_columns, "_CHUNK", pictures * size + 7)
    chunks = cuda_columns._chunks(np.ones(x), win, groups)
    assert [n for start, stop in chunks for n in range(start, stop)] == list(range(7))
    assert max(stop - start for start, stop in chunks) == max(1, pictures)
    check(x, w, {"stride": (1, 2), "padding": (1, 0), "groups": groups})
    assert emulator.launches["col2im"] == groups * len(chunks)  # one pass backward
    assert emulator.launches["im2col"] == 5 * groups * len(chunks)  # four forward, one for dw


@pytest.mark.parametrize(("most", "left"), [(1, 16), (16, 8), (48, 4), (64, 2)])
def test_joined_groups(most, left, emulator, monkeypatch):
    monkeypatch.setattr(choose, "_JOINED_CHANNELS_CUDA", most)
    shapes = {"x": (2, 5, 4, 64), "w": (3, 2, 4, 128), "b": (128,)}
    arrays = {name: np.random.default_rng(1).standard_normal(shape) for name, shape in shapes.items()}

    def case(x, w, b):
        return conv2d(x, w, b, groups=16, padding=1, relu=True)

    got = opcheck.run(case, arrays)
    assert emulator.launches["col2im"] == left
    told = way(shapes["x"], shapes["w"], groups=16, padding=1)
    assert {*told} == {("cuda_columns", left)}
    with reference():
        expected = opcheck.run(case, arrays)
    opcheck.assert_all_close(got, expected, 1e-12, f"{left} groups")


def test_what_is_not_needed_is_not_launched(emulator):
    def run(kernel, bias, relu):
        emulator.launches.clear()
        x, w = Tensor(np.ones((2, 5, 4, 3)), requires_grad=True), np.ones((kernel, kernel, 3, 4))
        y = conv2d(x, Tensor(w, requires_grad=True), Tensor(np.ones(4)) if bias else None, relu=relu)
        forward = dict(emulator.launches)
        emulator.launches.clear()
        y.backward(np.ones(y.shape))
        return forward, emulator.launches

    assert run(1, False, False) == ({}, {})
    assert run(1, True, False) == ({"bias_relu": 1}, {})
    assert run(1, False, True) == ({"bias_relu": 1}, {"relu_gradient": 1})
    assert run(3, False, False) == ({"im2col": 1}, {"im2col": 1, "col2im": 1})


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("EACH(i, rows * depth)", "EACH(i, rows * depth - 1)"),
        ("row % ow * sw - left", "row % ow * sh - left"),
        ("row / ow % oh * sh - top", "row / ow % oh * sh - left"),
        ("n * h * w * c + first + channel", "n * h * w * c + channel"),
        ("0 <= py", "0 < py"),
        ("px < w;", "px <= w;"),
        ("EACH(i, pixels * depth)", "EACH(i, pixels * depth - 1)"),
        ("pixel % w + left", "pixel % w + top"),
        ("ow - 1", "ow - 2"),
        ("y >= 0", "y > 0"),
        ("px - x * sw < kw * dw", "px - x * sw <= kw * dw"),
        ("py - y * sh < kh * dh", "py - y * sh < kh"),
        ("ky * kw", "ky * kh"),
        ("py += dh", "py += dw"),
        ("px < x0 + kw * dw", "px < x0 + kw"),
        ("if (ky % dh) continue;", ""),
        ("kx /= dw;", ""),
        ("dx[pixel * c + first + channel]", "dx[pixel * c + channel]"),
        ("b[i % outputs]", "b[(i + 1) % outputs]"),
        ("relu && value < 0", "value < 0"),
        ("relu && value < 0 ? A(0) : value", "relu ? (value > 0 ? value : A(0)) : value"),
    ],
)
def test_wrong_kernels_are_caught(right, wrong, emulator, monkeypatch):
    code = cuda_columns._CUDA.code.removeprefix(cuda.PRELUDE)
    assert code.count(right) == 1
    monkeypatch.setattr(cuda_columns, "_CUDA", cuda.Source(code.replace(right, wrong)))
    with pytest.raises(AssertionError):
        for shape in SHAPES.values():
            check(*shape)
        check_nan()

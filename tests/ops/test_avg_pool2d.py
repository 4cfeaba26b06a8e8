"""Average pooling, under windows and of the whole picture."""

import re

import numpy as np
import opcheck
import pytest

from minires import Tensor
from minires.errors import ShapeError
from minires.ops.avg_pool2d import avg_pool2d, global_avg_pool2d


@opcheck.on_devices
@opcheck.of("avg_pool2d", "global_avg_pool2d")
def test_case(case, device):
    opcheck.check(case, device)


@opcheck.of("avg_pool2d")
def test_against_torch(case):
    torch = pytest.importorskip("torch")

    def reference(x, kernel, stride=None, padding=0, dilation=1, count_padding=False):
        stride = kernel if stride is None else stride
        sides = opcheck.four_sides(x.shape[1:3], kernel, stride, padding, dilation)
        (top, bottom), (left, right) = sides

        def mean_of_all(picture):
            padded, c = torch.nn.functional.pad(picture, (left, right, top, bottom)), picture.shape[1]
            if dilation == 1:
                return torch.nn.functional.avg_pool2d(padded, kernel, stride)
            kh, kw = opcheck.pair(kernel)  # no average pool of PyTorch's is dilated, but a convolution is
            same = torch.full((c, 1, kh, kw), 1 / (kh * kw), dtype=x.dtype)
            return torch.nn.functional.conv2d(padded, same, stride=stride, dilation=dilation, groups=c)

        y = mean_of_all(x.permute(0, 3, 1, 2))
        if not count_padding or padding == "ceil":  # the share of real pixels under each window
            y = y / mean_of_all(torch.ones(1, 1, *x.shape[1:3], dtype=x.dtype))
        return y.permute(0, 2, 3, 1)

    opcheck.check_against_torch(case, reference)


@opcheck.of("global_avg_pool2d")
def test_global_against_torch(case):
    opcheck.check_against_torch(case, lambda x: x.mean((1, 2)))


def test_in_a_dilated_window_the_pixels_between_do_not_count():
    x = Tensor(np.array([1.0, 9, 2, 9, 3]).reshape(1, 1, 5, 1), requires_grad=True)
    y = avg_pool2d(x, (1, 2), stride=1, dilation=2)
    y.backward(np.array([2.0, 4, 8]).reshape(y.shape))
    assert y.numpy().ravel().tolist() == [1.5, 9, 2.5] and x.grad.ravel().tolist() == [1, 2, 5, 2, 4]


def test_the_border_is_counted_only_if_asked():
    x = Tensor(np.ones((1, 2, 2, 1)))
    plain = avg_pool2d(x, 2, stride=1, padding=1).numpy()[0, :, :, 0]
    counted = avg_pool2d(x, 2, stride=1, padding=1, count_padding=True).numpy()[0, :, :, 0]
    assert plain.tolist() == [[1, 1, 1]] * 3
    assert counted.tolist() == [[0.25, 0.5, 0.25], [0.5, 1, 0.5], [0.25, 0.5, 0.25]]


def test_what_ceil_adds_is_never_counted():
    ones = Tensor(np.ones((1, 4, 4, 1)))
    y = avg_pool2d(ones, 3, stride=2, padding="ceil", count_padding=True)
    assert y.numpy()[0, :, :, 0].tolist() == [[1, 1], [1, 1]]


CEIL = [  # picture, kernel, stride
    ((4, 4), 3, 2),
    ((5, 6), 2, 2),
    ((7, 5), 3, 2),
    ((6, 9), 2, 3),
    ((5, 5), (2, 3), (3, 2)),
    ((2, 2), 1, 2),
    ((2, 2), 3, 2),  # a window that begins inside may be larger than the picture
    ((1, 4), 3, 3),
]


@pytest.mark.parametrize("count_padding", [False, True])
@pytest.mark.parametrize(("size", "kernel", "stride"), CEIL)
def test_ceil_is_what_torch_rounds_up(size, kernel, stride, count_padding):
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).standard_normal((2, *size, 3))
    ours, theirs = Tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    y = avg_pool2d(ours, kernel, stride=stride, padding="ceil", count_padding=count_padding)
    options = {"ceil_mode": True, "count_include_pad": count_padding}
    expected = torch.nn.functional.avg_pool2d(theirs.permute(0, 3, 1, 2), kernel, stride, **options)
    opcheck.assert_close(y.numpy(), expected.detach().permute(0, 2, 3, 1).numpy(), 1e-12, "y")
    y.backward(np.ones(y.shape))
    expected.sum().backward()
    opcheck.assert_close(ours.grad, theirs.grad.numpy(), 1e-12, "dx")


@pytest.mark.parametrize("count_padding", [False, True])
@pytest.mark.parametrize(("size", "kernel", "stride"), CEIL)
def test_ceil_is_what_onnxruntime_rounds_up(size, kernel, stride, count_padding):
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    make, number = onnx.helper, onnx.TensorProto.FLOAT
    node = make.make_node(
        "AveragePool", ["x"], ["y"], kernel_shape=opcheck.pair(kernel), strides=opcheck.pair(stride),
        ceil_mode=1, count_include_pad=int(count_padding),
    )  # fmt: skip
    values = [make.make_tensor_value_info(name, number, [None] * 4) for name in "xy"]
    graph = make.make_graph([node], "pool", values[:1], values[1:])
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 19)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).standard_normal((2, *size, 3)).astype(np.float32)
    (expected,) = session.run(None, {"x": x.transpose(0, 3, 1, 2)})
    y = avg_pool2d(Tensor(x), kernel, stride=stride, padding="ceil", count_padding=count_padding)
    opcheck.assert_close(y.numpy(), expected.transpose(0, 2, 3, 1), 1e-6, "y")


@pytest.mark.parametrize(
    ("x", "options", "text"),
    [
        ((4, 4, 1), {"kernel": 2}, "avg_pool2d: x must be (N, H, W, C), 4 axes, but its shape is (4, 4, 1)"),
        ((1, 2, 4, 1), {"kernel": 3}, "avg_pool2d: the kernel 3x3 is larger than the padded picture 2x4"),
        ((1, 4, 4, 1), {"kernel": 2, "padding": 2}, "must be smaller than the kernel 2x2"),
        ((1, 4, 4, 1), {"kernel": (1, 0)}, "avg_pool2d: kernel size must be a whole number of at least 1"),
    ],
)
def test_shapes_that_do_not_fit(x, options, text):
    with pytest.raises(ShapeError, match=re.escape(text)):
        avg_pool2d(Tensor(np.ones(x)), **options)


def test_bad_input_of_the_global_pool():
    with pytest.raises(ShapeError, match=re.escape("global_avg_pool2d: x must be (N, H, W, C)")):
        global_avg_pool2d(Tensor(np.ones((2, 3))))
    with pytest.raises(ShapeError, match="global_avg_pool2d: x is uint8"):
        global_avg_pool2d(Tensor(np.ones((1, 2, 2, 1), np.uint8)))


@pytest.mark.parametrize("kernel", [(1, 15), (8, 8), (9, 8), (1, 16), (5, 13), (12, 12), (30, 34)])
def test_sums_are_as_exact_as_is_said(kernel):
    """Numbers of 1 to 2, which float32 adds up wrongly in their last digits."""
    x = np.random.default_rng(0).uniform(1, 2, (2, 40, 40, 3)).astype(np.float32)
    bound, of_gradient = (1e-6, 1e-6) if sum(kernel) <= 16 else (1e-7, 2e-7)
    tensor = Tensor(x, requires_grad=True)
    y = avg_pool2d(tensor, kernel, stride=1)
    exact = Tensor(x.astype(np.float64), requires_grad=True)
    right = avg_pool2d(exact, kernel, stride=1)
    dy = np.random.default_rng(1).uniform(1, 2, y.shape).astype(np.float32)
    y.backward(dy)
    right.backward(dy.astype(np.float64))
    assert np.abs(y.data / right.data - 1).max() <= bound
    assert np.abs(tensor.grad / exact.grad - 1).max() <= of_gradient

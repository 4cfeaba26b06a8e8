"""Transposed convolution: against PyTorch and Keras, against conv2d, sizes, bad shapes."""

import re

import numpy as np
import opcheck
import pytest
from oracle import keras

from minires import Tensor
from minires.errors import ShapeError
from minires.ops.conv2d import conv2d
from minires.ops.conv_transpose2d import conv_transpose2d


@opcheck.on_devices
@opcheck.of("conv_transpose2d")
def test_case(case, device):
    opcheck.check(case, device)


@opcheck.of("conv_transpose2d")
def test_against_torch(case):
    torch = pytest.importorskip("torch")

    def reference(x, w, b=None, stride=1, padding=0, dilation=1, output_padding=0, groups=1):
        sh, sw = opcheck.pair(stride)
        large = [size * step for size, step in zip(x.shape[1:3], (sh, sw), strict=True)]
        sides = opcheck.four_sides(large, w.shape[:2], (sh, sw), padding, dilation)
        (top, bottom), (left, right) = sides
        more = opcheck.pair(output_padding)
        if padding == "same":  # y is as large as asked for also where the kernels do not touch each other
            more = [max(0, step - size) for step, size in zip((sh, sw), w.shape[:2], strict=True)]
        kernel = w.permute(3, 2, 0, 1).contiguous()  # (KH, KW, O/groups, C) -> (C, O/groups, KH, KW)
        y = torch.nn.functional.conv_transpose2d(
            x.permute(0, 3, 1, 2), kernel, b, stride=(sh, sw), output_padding=more, groups=groups,
            dilation=dilation,
        )  # fmt: skip
        y = y[:, :, top : y.shape[2] - bottom, left : y.shape[3] - right]
        return y.permute(0, 2, 3, 1)

    opcheck.check_against_torch(case, reference)


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (4, 2), (2, 2), (2, 3)])
def test_against_keras(padding, kernel, stride):
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 4, 5, 3)), rng.standard_normal((kernel, kernel, 2, 3))
    theirs = keras().ops.conv_transpose(
        x.astype("float32"), w.astype("float32"), strides=stride, padding=padding
    )
    options = {"padding": "same"} if padding == "same" else {"output_padding": max(0, stride - kernel)}
    ours = conv_transpose2d(Tensor(x), Tensor(w), stride=stride, **options)
    opcheck.assert_close(ours.numpy(), np.asarray(theirs, np.float64), 1e-5, "against Keras")


@opcheck.of("conv_transpose2d")
def test_it_is_the_adjoint_of_conv2d(case):
    """<conv2d(u, w), x> = <u, conv_transpose2d(x, w)> for every u."""
    arrays, options = case.arrays(), dict(case.options)
    x, w = Tensor(arrays["x"]), Tensor(arrays["w"])
    y = conv_transpose2d(x, w, **options)
    options.pop("output_padding", None)
    u = np.random.default_rng(3).standard_normal(y.shape)
    small = conv2d(Tensor(u), w, **options)
    assert small.shape == x.shape
    assert abs((small.numpy() * x.numpy()).sum() - (u * y.numpy()).sum()) < 1e-10


def test_output_padding_says_which_size_is_meant():
    w = Tensor(np.ones((3, 3, 1, 1)))
    for size in (7, 8):
        picture = Tensor(np.ones((1, size, size, 1)))
        small = conv2d(picture, w, stride=2, padding=1)
        assert small.shape == (1, 4, 4, 1)
        assert conv_transpose2d(small, w, stride=2, padding=1, output_padding=size - 7).shape == picture.shape


@pytest.mark.parametrize(
    ("x", "w", "options", "text"),
    [
        ((4, 4, 2), (3, 3, 1, 2), {}, "x must be (N, H, W, C), 4 axes, but its shape is (4, 4, 2)"),
        ((1, 4, 4, 2), (3, 3, 2), {}, "w must be (KH, KW, O/groups, C), 4 axes, but its shape is (3, 3, 2)"),
        ((1, 4, 4, 2), (3, 3, 2, 5), {}, "w (3, 3, 2, 5) expects 5 input channels, but x (1, 4, 4, 2) has 2"),
        ((1, 4, 4, 3), (3, 3, 2, 3), {"groups": 2}, "groups=2 must divide the 3 input channels"),
        ((1, 4, 4, 2), (3, 3, 2, 2), {"output_padding": 1}, "output_padding (1, 1) must be smaller than the"),
        (
            (1, 4, 4, 2), (3, 3, 2, 2), {"stride": 2, "padding": "same", "output_padding": 1},
            "padding 'same' gives y a size of [8, 8]; leave out output_padding",
        ),
        ((1, 4, 4, 2), (3, 3, 2, 2), {"padding": "ceil"}, "padding must be an int, a pair, four sides or"),
        ((1, 2, 2, 2), (1, 1, 2, 2), {"padding": 1}, "a picture 2x2 becomes 0x0, of which nothing is left"),
        ((1, 2, 2, 2), (1, 1, 2, 2), {"dilation": 0}, "dilation must be a whole number of at least 1"),
        ((1, 4, 4, 2), (3, 3, 2, 2), {"groups": True}, "groups=True must divide the 2 input channels"),
        ((1, 2, 2, 2), (1, 1, 2, 2), {"stride": 0}, "stride must be a whole number of at least 1"),
    ],
)  # fmt: skip
def test_shapes_that_do_not_fit(x, w, options, text):
    with pytest.raises(ShapeError, match=re.escape("conv_transpose2d: ") + ".*" + re.escape(text)):
        conv_transpose2d(Tensor(np.ones(x)), Tensor(np.ones(w)), **options)


def test_a_bias_that_does_not_fit():
    x, w = Tensor(np.ones((1, 2, 2, 4))), Tensor(np.ones((2, 2, 3, 4)))
    with pytest.raises(ShapeError, match=re.escape("b must have shape (6,), one per output channel, not (3")):
        conv_transpose2d(x, w, Tensor(np.ones(3)), groups=2)
    with pytest.raises(ShapeError, match="conv_transpose2d: w is float32 but x is float64"):
        conv_transpose2d(x, Tensor(np.ones((2, 2, 3, 4), np.float32)))

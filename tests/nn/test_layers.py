"""Layers against their operations, initialisers against their formulas, blocks against a sum by hand."""

import re

import numpy as np
import pytest

import minires
from minires import nn, ops
from minires.errors import ConfigError, ShapeError
from minires.nn import (
    AvgPool2d,
    Conv2d,
    CrossEntropyLoss,
    Dropout,
    GlobalAvgPool2d,
    Linear,
    MaxPool2d,
    Pad2d,
    init,
)
from minires.nn.blocks import convolutional_block, identity_block
from minires.ops.avg_pool2d import avg_pool2d
from minires.ops.conv2d import conv2d
from minires.ops.cross_entropy import cross_entropy
from minires.ops.max_pool2d import max_pool2d
from minires.ops.pad import pad
from minires.tensor import Tensor


def rng(seed=0):
    return np.random.default_rng(seed)


def picture(*shape):
    return Tensor(rng(1).standard_normal(shape).astype(np.float32))


@pytest.mark.parametrize(
    ("name", "variance"),
    [("glorot_uniform", 2 / (9 * 40 + 9 * 60)), ("he_normal", 2 / (9 * 40)), ("he_normal_out", 2 / (9 * 60))],
)
def test_initialisers_have_the_variance_of_their_paper(name, variance):
    weight = init.get(name)((3, 3, 40, 60), rng())
    assert weight.dtype == np.float32
    assert abs(weight.mean()) < 3 * np.sqrt(variance / weight.size)
    assert weight.var() == pytest.approx(variance, rel=0.03)
    assert np.array_equal(weight, init.get(name)((3, 3, 40, 60), rng()))
    assert not np.array_equal(weight, init.get(name)((3, 3, 40, 60), rng(1)))


def test_glorot_is_uniform_within_its_bound():
    weight = init.glorot_uniform((1, 1, 30, 20), rng())
    bound = np.sqrt(6 / 50)
    assert 0.97 * bound < np.abs(weight).max() <= bound


def test_unknown_initialiser_names_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'he_normal'"):
        init.get("he_norml")


def test_layers_pass_their_options_to_the_operation():
    x = picture(2, 9, 9, 4)
    options = {"stride": (2, 1), "padding": ((1, 0), (2, 2)), "dilation": (1, 2), "groups": 2}
    conv = Conv2d(4, 6, (3, 5), rng=rng(), **options)
    assert conv.weight.shape == (3, 5, 2, 6)
    conv.bias.data[:] = 0.5
    assert np.array_equal(conv(x).data, conv2d(x, conv.weight, conv.bias, **options).data)
    assert Conv2d(4, 6, 1, bias=False, rng=rng()).bias is None
    options = {"stride": 2, "padding": 1, "dilation": (1, 3)}
    assert np.array_equal(MaxPool2d(3, **options)(x).data, max_pool2d(x, 3, **options).data)
    options["count_padding"] = True
    assert np.array_equal(AvgPool2d(3, **options)(x).data, avg_pool2d(x, 3, **options).data)
    sides, options = ((1, 0), (2, 3)), {"mode": "constant", "value": 2.5}
    assert np.array_equal(Pad2d(sides, **options)(x).data, pad(x, sides, **options).data)
    assert np.allclose(GlobalAvgPool2d()(x).data, x.data.mean((1, 2)), atol=1e-7)
    dense = Linear(4, 3, rng=rng())
    row = x.data[:, 0, 0, :]
    assert np.allclose(dense(Tensor(row)).data, row @ dense.weight.data, atol=1e-6)


@pytest.mark.parametrize(
    ("mode", "theirs"), [("edge", "replicate"), ("reflect", "reflect"), ("wrap", "circular")]
)
@pytest.mark.parametrize(
    "options",
    [{"padding": 1}, {"padding": (2, 1), "stride": 2}, {"padding": "same", "dilation": 2}, {"padding": 0}],
    ids=str,
)
def test_a_border_of_pixels_is_that_of_torch(mode, theirs, options):
    torch = pytest.importorskip("torch")
    conv = Conv2d(4, 6, 3, padding_mode=mode, groups=2, rng=rng(), **options)
    twin = torch.nn.Conv2d(4, 6, 3, padding_mode=theirs, groups=2, **options)
    state = {"weight": conv.weight.data.transpose(3, 2, 0, 1), "bias": conv.bias.data}
    twin.load_state_dict({name: torch.tensor(array) for name, array in state.items()})
    x = picture(2, 6, 5, 4)
    x.requires_grad = True
    given = torch.tensor(x.data.transpose(0, 3, 1, 2), requires_grad=True)
    y, expected = conv(x), twin(given)
    np.testing.assert_allclose(y.data.transpose(0, 3, 1, 2), expected.detach(), rtol=1e-4, atol=1e-5)
    (y * y).sum().backward()
    (expected * expected).sum().backward()
    np.testing.assert_allclose(x.grad.transpose(0, 3, 1, 2), given.grad, rtol=1e-3, atol=1e-4)
    assert f"padding_mode={mode!r}" in repr(conv)


def test_a_border_of_pixels_that_the_picture_does_not_have():
    conv = Conv2d(1, 1, 7, padding=3, padding_mode="reflect", rng=rng())
    with pytest.raises(ShapeError, match="of 3 columns mode 'reflect' can make at most 2 more on each side"):
        conv(Tensor(np.ones((1, 4, 3, 1), np.float32)))
    with pytest.raises(ShapeError, match="conv2d: x must be .N, H, W, C., 4 axes, but its shape is .4, 3."):
        conv(Tensor(np.ones((4, 3), np.float32)))


@pytest.mark.parametrize(
    ("error", "options", "text"),
    [
        (ConfigError, {"padding_mode": "replicate"}, "padding_mode must be one of 'constant', 'edge'"),
        (ShapeError, {"kernel": (3, 0)}, "Conv2d: kernel must be a whole number of at least 1, or a pair"),
        (ShapeError, {"kernel": 3.0}, "Conv2d: kernel must be a whole number of at least 1, or a pair"),
        (ShapeError, {"stride": 0}, "Conv2d: stride must be a whole number of at least 1, or a pair of them"),
        (ShapeError, {"dilation": True}, "Conv2d: dilation must be a whole number of at least 1, or a pair"),
    ],
)
def test_options_of_a_convolution_are_refused_where_they_are_given(error, options, text):
    with pytest.raises(error, match=re.escape(text)):
        Conv2d(2, 2, **{"kernel": 3, **options})
    with pytest.raises(ConfigError, match="mode must be one of 'constant', 'edge', 'reflect', 'wrap'"):
        Pad2d(1, mode="zeros")


def test_numbers_of_numpy_make_a_convolution():
    conv = Conv2d(np.int64(2), np.int32(4), np.int64(3), stride=np.int64(2), groups=np.int8(2), rng=rng())
    assert conv(picture(1, 5, 5, 2)).shape == (1, 2, 2, 4)


def test_a_loss_with_all_its_options():
    scores, labels = picture(2, 3, 3, 4), np.array([[[0, 1, 2], [3, 3, 9], [1, 0, 0]]] * 2)
    for reduction in ("mean", "sum", "none"):
        options = {"ignore_index": 9, "label_smoothing": 0.1, "reduction": reduction}
        loss = CrossEntropyLoss(weight=[1, 2, 0.5, 4], **options)
        expected = cross_entropy(scores, labels, weight=[1, 2, 0.5, 4], **options)
        assert np.array_equal(loss(scores, labels).data, expected.data)
    assert [name for name, _ in loss.named_buffers()] == ["weight"] and loss.weight.dtype == np.float32


def test_dropout_only_in_training():
    layer, x = Dropout(0.5), Tensor(np.ones((100, 100), np.float32))
    assert set(np.unique(layer(x).data)) == {0.0, 2.0}
    assert np.array_equal(layer.eval()(x).data, x.data)


def by_hand(block, name, x, project):
    """The block's formula written out with its own weights, in inference."""
    layer = vars(block)

    def conv_bn(x, branch):
        y, bn = layer[f"res{name}{branch}"](x), layer[f"bn{name}{branch}"]
        return bn.gamma * (y - bn.running_mean) / np.sqrt(bn.running_var + np.float32(bn.eps)) + bn.beta

    zero = np.float32(0)
    y = Tensor(np.maximum(conv_bn(x, "2a").data, zero))
    y = Tensor(np.maximum(conv_bn(y, "2b").data, zero))
    shortcut = conv_bn(x, "1") if project else x
    return np.maximum(conv_bn(y, "2c").data + shortcut.data, zero)


def test_identity_block_is_the_papers_formula():
    x = picture(2, 5, 5, 8)
    block = identity_block(8, (3, 4, 8), stage=3, block="b", rng=rng()).eval()
    assert np.allclose(block(x).data, by_hand(block, "3b_branch", x, project=False), atol=1e-5)
    assert "res3b_branch1" not in vars(block)


def test_convolutional_block_projects_and_strides_on_the_first_1x1():
    x = picture(2, 5, 5, 8)
    block = convolutional_block(8, (3, 4, 12), stage=3, block="a", stride=2, rng=rng()).eval()
    y = block(x)
    assert y.shape == (2, 3, 3, 12)
    assert np.allclose(y.data, by_hand(block, "3a_branch", x, project=True), atol=1e-5)
    assert (block.res3a_branch2a.stride, block.res3a_branch2b.stride, block.res3a_branch1.stride) == (2, 1, 2)


def test_last_gamma_zero_starts_an_identity_block_as_the_identity():
    x = Tensor(np.abs(picture(2, 5, 5, 8).data))
    block = identity_block(8, (3, 4, 8), stage=3, block="b", rng=rng(), last_gamma=0.0)
    assert np.array_equal(block(x).data, x.data)


def test_unfused_is_the_same_function_in_more_steps():
    x = picture(3, 5, 5, 8)
    results = []
    for fused in (True, False):
        block = convolutional_block(8, (3, 4, 12), stage=3, block="a", rng=rng())
        if fused:
            y = block(x)
        else:
            with minires.unfused():
                y = block(x)
        dy = rng(5).standard_normal(y.shape).astype(np.float32)
        ops = [step.node.op for step in y.backward_steps(dy)]
        results.append((y.data, [p.grad for p in block.parameters()], ops))
    (y1, grads1, ops1), (y2, grads2, ops2) = results
    assert np.allclose(y1, y2, atol=1e-6)
    assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(grads1, grads2, strict=True))
    assert (ops1.count("relu"), ops1.count("add")) == (0, 0)
    assert (ops2.count("relu"), ops2.count("add")) == (3, 1)


def test_layers_left_without_options_are_their_operation_without_options():
    x, scores, labels = picture(2, 3, 4, 5), picture(6, 5), np.array([0, 4, 2, 2, 1, 3])
    for layer, operation in (
        (nn.Softmax(), ops.softmax), (nn.Flatten(), ops.flatten), (nn.Identity(), lambda x: x),
        (nn.LocalResponseNorm(), ops.local_response_norm), (nn.LeakyReLU(), ops.leaky_relu),
        (nn.ReLU(), ops.relu), (nn.Sigmoid(), ops.sigmoid),
        (nn.MaxPool2d(2), lambda x: ops.max_pool2d(x, 2)), (nn.AvgPool2d(2), lambda x: ops.avg_pool2d(x, 2)),
        (nn.Pad2d(1), lambda x: ops.pad(x, 1)),
    ):  # fmt: skip
        np.testing.assert_array_equal(layer(x).data, operation(x).data, err_msg=str(layer))
    assert CrossEntropyLoss()(scores, labels).item() == ops.cross_entropy(scores, labels).item()


def test_a_batch_norm_left_without_numbers_has_those_of_its_convention():
    for convention, momentum, eps in (("keras", 0.99, 1e-3), ("torch", 0.1, 1e-5)):
        layer = minires.nn.BatchNorm2d(3, convention=convention)
        assert (layer.momentum, layer.eps, layer.relu) == (momentum, eps, False)
        assert layer.gamma.tolist() == [1, 1, 1]
    assert minires.nn.BatchNorm2d(3, momentum=0, eps=0).momentum == 0


def test_a_layer_of_an_operation_says_what_it_takes():
    assert minires.nn.LeakyReLU.__module__ == "minires.nn.layers"
    for wrong, options in (((0.2,), {}), ((), {"foo": 1})):
        with pytest.raises(TypeError, match=r"; it is LeakyReLU\(\*, slope: .* = 0.01\)"):
            minires.nn.LeakyReLU(*wrong, **options)

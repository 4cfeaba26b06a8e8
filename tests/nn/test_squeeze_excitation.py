"""Squeeze and excitation against a plain PyTorch version, numeric gradients, and its limits."""

import numpy as np
import pytest

from minires.errors import ConfigError
from minires.gradient_check import gradcheck
from minires.inspect.summary import summarize
from minires.nn import Conv2d, Sequential
from minires.nn.squeeze_excitation import SqueezeExcitation
from minires.tensor import Tensor

SQUEEZES = ("avg", "max", "none")


def gate(channels=12, seed=0, **options):
    """A gate in float64 whose biases are random too."""
    rng = np.random.default_rng(seed)
    made = SqueezeExcitation(channels, rng=rng, **options).astype("float64")
    for _, parameter in made.named_parameters():
        parameter.data[...] = rng.normal(0, 0.7, parameter.shape)
    return made


def picture(*shape):
    return np.random.default_rng(1).standard_normal(shape)


def with_torch(torch, x, weights, squeeze):
    """The three lines of the paper in (N, C, H, W), with einsum; dense weights are (C, O)."""
    w1, b1, w2, b2 = weights
    x = x.permute(0, 3, 1, 2)
    z = {"avg": lambda: x.mean((2, 3), keepdim=True), "max": lambda: x.amax((2, 3), keepdim=True),
         "none": lambda: x}[squeeze]()  # fmt: skip
    hidden = torch.clamp(torch.einsum("nchw,cd->ndhw", z, w1) + b1[:, None, None], min=0)
    s = 1 / (1 + torch.exp(-torch.einsum("ndhw,dc->nchw", hidden, w2) - b2[:, None, None]))
    return (x * s).permute(0, 2, 3, 1)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("reduction", [1, 2, 5, 12])  # 12 // 5 = 2
@pytest.mark.parametrize("squeeze", SQUEEZES)
def test_equals_torch(squeeze, reduction, bias):
    torch = pytest.importorskip("torch")
    ours = gate(reduction=reduction, squeeze=squeeze, bias=bias)
    x, dy = picture(3, 4, 5, 12), picture(3, 4, 5, 12)[::-1].copy()
    mine = Tensor(x, requires_grad=True)
    y = ours(mine)
    y.backward(dy)

    parameters = dict(ours.named_parameters())
    theirs = torch.tensor(x, requires_grad=True)
    weights = []
    for layer, outputs in (("reduce", 12 // reduction), ("expand", 12)):
        weight = parameters[f"{layer}.weight"]
        assert weight.shape[-1] == outputs
        weights.append(torch.tensor(weight.data.reshape(weight.shape[-2:]), requires_grad=True))
        there = parameters[f"{layer}.bias"].data if bias else np.zeros(outputs)
        weights.append(torch.tensor(there, requires_grad=True))
    expected = with_torch(torch, theirs, weights, squeeze)
    expected.backward(torch.tensor(dy))

    def close(a, b):
        return np.allclose(a, b, rtol=1e-11, atol=1e-13)

    assert close(y.numpy(), expected.detach().numpy())
    assert close(mine.grad, theirs.grad.numpy())
    names = ["reduce.weight", "reduce.bias", "expand.weight", "expand.bias"]
    assert list(parameters) == (names if bias else names[::2])
    for name, tensor in zip(names, weights, strict=True):
        if name in parameters:
            assert close(parameters[name].grad, tensor.grad.numpy().reshape(parameters[name].shape)), name


@pytest.mark.parametrize("squeeze", SQUEEZES)
def test_gradients_are_the_numeric_ones(squeeze):
    ours = gate(6, reduction=2, squeeze=squeeze)
    gradcheck(ours, {"x": picture(2, 3, 3, 6)}, parameters=ours.named_parameters())


def test_no_squeeze_weighs_each_place_by_itself():
    x = picture(1, 3, 3, 12)
    ours = {squeeze: gate(reduction=3, squeeze=squeeze) for squeeze in SQUEEZES}
    before = {squeeze: one(Tensor(x)).numpy() for squeeze, one in ours.items()}
    x[0, 1, 1] *= 30  # one place, which becomes the maximum of half the channels
    for squeeze, one in ours.items():
        changed = np.abs(one(Tensor(x)).numpy() - before[squeeze]).max(-1)[0] > 1e-12
        assert changed[1, 1]
        assert changed.sum() == (1 if squeeze == "none" else 9), squeeze


def test_on_one_pixel_all_squeezes_are_the_same():
    x, weights = picture(4, 1, 1, 12), gate(reduction=3).state_dict()
    found = []
    for squeeze in SQUEEZES:
        ours = gate(reduction=3, squeeze=squeeze, seed=5)
        for name, parameter in ours.named_parameters():
            parameter.data[...] = weights[name].reshape(parameter.shape)
        found.append(ours(Tensor(x)).numpy())
    assert np.allclose(found[0], found[1], atol=1e-13) and np.allclose(found[0], found[2], atol=1e-13)


def test_scale_is_between_zero_and_one():
    x = picture(2, 4, 4, 12)
    shares = gate(reduction=2)(Tensor(x)).numpy() / x
    assert 0 < shares.min() < 0.4 and 0.6 < shares.max() < 1
    assert np.allclose(shares, shares[:, :1, :1]), "one number for the whole picture"


@pytest.mark.parametrize(("squeeze", "places"), [("avg", 1), ("max", 1), ("none", 20)])
def test_summary_counts_it(squeeze, places):
    rng = np.random.default_rng(0)
    made = SqueezeExcitation(12, reduction=3, squeeze=squeeze, rng=rng)
    model = Sequential(conv=Conv2d(3, 12, 1, bias=False, rng=rng), se=made)
    summary = summarize(model, (4, 5, 3))
    assert summary.params_total == 36 + 12 * 4 * 2 + 16
    assert summary.macs == 36 * 20 + 12 * 4 * 2 * places
    assert summary.layers[-1].name == "se.scale" and summary.layers[-1].output == (4, 5, 12)


def test_float32_stays_float32():
    made = SqueezeExcitation(8, reduction=2, rng=np.random.default_rng(0))
    assert made(Tensor(picture(2, 3, 3, 8).astype(np.float32))).dtype == np.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"squeeze": "mean"}, "squeeze must be one of 'avg', 'max', 'none', not 'mean'"),
        ({"reduction": 13}, "a whole number from 1 to 12, the channels of this gate, not 13"),
        ({"reduction": 0}, "from 1 to 12.* not 0"),
        ({"reduction": 1.5}, "whole number .* not 1.5"),
        ({"reduction": True}, "not True"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ConfigError, match=message):
        SqueezeExcitation(12, rng=np.random.default_rng(0), **options)

"""Class-activation maps: against what Zhou's formula, FullGrad's biases and PyTorch's gradients say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from minires import ConfigError, MiniresError, ShapeError, Tensor, models, nn
from minires.debug.cam import activation_maps, overlay
from minires.tensor import is_recording, no_grad

RNG = np.random.default_rng(0)


def lived_in(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model with biases and running statistics as after training, in float64."""
    rng = np.random.default_rng(seed)
    model.astype(np.float64)
    for name, parameter in model.named_parameters():
        if name.endswith(("bias", "beta")):
            parameter.data[...] = rng.normal(0, 0.2, parameter.shape)
    for _, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean[...] = rng.normal(0, 0.3, module.running_mean.shape)
            module.running_var[...] = rng.uniform(1, 3, module.running_var.shape)
    return model.eval()


def small_net(*, flat: bool = False) -> nn.Module:
    rng = np.random.default_rng(1)
    end: dict[str, nn.Module] = (
        {"flatten": nn.Flatten(), "fc": nn.Linear(4 * 4 * 7, 3, rng=rng)}
        if flat
        else {"avg_pool": nn.GlobalAvgPool2d(), "fc": nn.Linear(7, 3, rng=rng)}
    )
    return nn.Sequential(
        conv1=nn.Conv2d(3, 5, 3, padding=1, rng=rng), bn1=nn.BatchNorm2d(5, relu=True),
        pool=nn.MaxPool2d(2),
        conv2=nn.Conv2d(5, 7, 3, padding=1, rng=rng), bn2=nn.BatchNorm2d(7), relu2=nn.ReLU(), **end,
    )  # fmt: skip


def picture(side: int = 8) -> np.ndarray:
    return np.random.default_rng(2).normal(size=(side, side, 3))


@pytest.mark.parametrize("label", [0, 7])
def test_behind_the_last_stage_it_is_zhous_map_and_its_sum_is_the_score(label):
    model, x = lived_in(models.build("resnet20_cifar", classes=10)), picture(32)
    features = Tensor(x[None])
    with no_grad():
        for name, module in model.children():
            if name == "avg_pool":
                break
            features = module(features)
    weight, bias = model.fc.weight.data[:, label], model.fc.bias.data[label]
    zhou = (features.data[0] * weight).sum(axis=-1)  # equation 2 there
    found = activation_maps(model, x, label)
    last = found.stages[-1].values
    assert last.shape == zhou.shape == (8, 8)
    np.testing.assert_allclose(last * zhou.size, zhou, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(last.sum() + bias, found.scores[label], rtol=1e-12)
    np.testing.assert_allclose(found.rest_share, bias, rtol=1e-9)
    np.testing.assert_allclose(found.scores, model(Tensor(x[None])).data[0], rtol=1e-12)


def test_the_share_of_a_stage_is_what_its_biases_add():
    model, x = lived_in(small_net()), picture()
    result = model(Tensor(x[None]))
    result.backward(np.eye(3)[None, 1])
    found = activation_maps(model, x, 1)

    def added(conv: Any, bn: Any) -> float:
        inside = bn.beta.data - bn.gamma.data * bn.running_mean / np.sqrt(bn.running_var + bn.eps)
        return float((conv.bias.data * conv.bias.grad).sum() + (inside * bn.beta.grad).sum())

    shares = [stage.share for stage in found.stages]
    expected = [added(model.conv1, model.bn1), added(model.conv2, model.bn2)]
    np.testing.assert_allclose(shares, expected, rtol=1e-9)
    total = found.picture_share + sum(shares) + found.rest_share
    np.testing.assert_allclose(total, result.data[0, 1], rtol=1e-12)
    # A step in the direction of the picture itself changes the score by the picture's share.
    step = 1e-7
    longer = activation_maps(model, x * (1 + step), 1).scores[1]
    np.testing.assert_allclose((longer - found.scores[1]) / step, found.picture_share, rtol=1e-5)


@pytest.mark.parametrize("flat", [False, True])
def test_grad_cam_is_that_of_pytorchs_gradients(flat):
    torch = pytest.importorskip("torch", reason="needs PyTorch")
    functional = torch.nn.functional
    model, x = lived_in(small_net(flat=flat)), picture()

    def conv_and_norm(y: Any, conv: Any, bn: Any) -> Any:
        kernel = torch.tensor(conv.weight.data.transpose(3, 2, 0, 1).copy())
        y = functional.conv2d(y, kernel, torch.tensor(conv.bias.data), padding=1)
        statistics = [torch.tensor(array) for array in (bn.running_mean, bn.running_var)]
        affine = [torch.tensor(array) for array in (bn.gamma.data, bn.beta.data)]
        return functional.batch_norm(y, *statistics, *affine, eps=bn.eps).relu()

    start = torch.tensor(x.transpose(2, 0, 1)[None].copy(), requires_grad=True)
    first = conv_and_norm(start, model.conv1, model.bn1)
    second = conv_and_norm(functional.max_pool2d(first, 2), model.conv2, model.bn2)
    read = second.permute(0, 2, 3, 1).flatten(1) if flat else second.mean((2, 3))
    scores = read @ torch.tensor(model.fc.weight.data) + torch.tensor(model.fc.bias.data)
    gradients = torch.autograd.grad(scores[0, 2], [first, second])
    found = activation_maps(model, x, 2)
    assert [stage.name for stage in found.stages] == ["conv1 – bn1", "pool – relu2"]
    for stage, value, gradient in zip(found.stages, (first, second), gradients, strict=True):
        expected = (gradient.mean((2, 3), keepdim=True) * value).sum(1)[0]
        np.testing.assert_allclose(stage.values, expected.detach().numpy(), rtol=1e-9, atol=1e-12)


FAMILY = {
    "resnet20_cifar": (32, [32, 16, 8]),
    "resnet50_signs": (64, [32, 15, 8, 4, 2]),
    "preresnet18": (64, [32, 16, 8, 4, 2]),
    "densenet_bc100_k12_cifar": (32, [32, 16, 8]),
    "se_resnet56_cifar": (32, [32, 16, 8]),
    "vgg11_lrn": (32, [32, 16, 8, 4, 2]),
    "bn_inception": (64, [32, 16, 8, 4, 2]),
}


@pytest.mark.parametrize("name", FAMILY)
def test_the_whole_family_has_a_map_for_each_size_and_shares_that_add_up(name):
    side, sizes = FAMILY[name]
    model = models.build(name, classes=6, **models.entry(name).fitted(side))
    model = lived_in(model)
    found = activation_maps(model, picture(side))
    assert found.label == found.scores.argmax()
    assert [stage.values.shape for stage in found.stages] == [(size, size) for size in sizes]
    total = found.picture_share + sum(stage.share for stage in found.stages) + found.rest_share
    np.testing.assert_allclose(total, found.scores[found.label], rtol=1e-9)


def test_the_model_is_left_as_it_was():
    model = lived_in(small_net()).train()
    model(Tensor(picture()[None])).sum().backward()
    model.conv1.weight.requires_grad = False
    state = model.state_dict()
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    nodes = {name: parameter.node for name, parameter in model.named_parameters()}
    with no_grad():
        activation_maps(model, picture())
        assert not is_recording()
    assert model.training and model.bn1.training
    assert all(np.array_equal(value, state[name]) for name, value in model.state_dict().items())
    for name, parameter in model.named_parameters():
        assert parameter.grad is grads[name] and parameter.node is nodes[name]


def test_what_cannot_be_is_refused():
    model = small_net().astype(np.float64)
    with pytest.raises(ShapeError, match=r"one picture.*not \(2, 8, 8, 3\)"):
        activation_maps(model, np.zeros((2, 8, 8, 3)))
    with pytest.raises(ConfigError, match="label is 3; the model has classes 0 to 2"):
        activation_maps(model, picture(), 3)
    dense = nn.Sequential(flatten=nn.Flatten(), fc=nn.Linear(192, 3, rng=RNG))
    with pytest.raises(MiniresError, match="no result of this network is a picture"):
        activation_maps(dense.astype(np.float64), picture())
    headless = nn.Sequential(conv=nn.Conv2d(3, 2, 3, rng=RNG))
    with pytest.raises(ShapeError, match=r"scores \(1, classes\), not \(1, 6, 6, 2\)"):
        activation_maps(headless.astype(np.float64), picture())


def test_an_overlay_covers_only_what_speaks_for_the_class():
    grey = np.full((8, 8, 3), 100, np.uint8)
    values = np.zeros((2, 2))
    assert np.array_equal(overlay(grey, values - 1), grey)
    values[1, 1], values[0, 0] = 2.0, -5.0
    heated = overlay(grey, values)
    assert heated.shape == (8, 8, 3) and heated.dtype == np.uint8
    assert np.array_equal(heated[0, 0], grey[0, 0])
    brightness = heated.sum(axis=-1)
    assert brightness[7, 7] == brightness.max() > 500
    assert np.array_equal(overlay(grey, values * 1e-6), heated)

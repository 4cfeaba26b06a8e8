"""Folded batch norms: the same function in inference, the original untouched, and nothing folded wrongly."""

import re

import numpy as np
import pytest
from oracle import shake

import minires
from minires import Tensor, models
from minires.errors import ShapeError
from minires.inspect import summarize
from minires.models.resnet_v2 import ResidualUnit
from minires.nn import BatchNorm2d, Conv2d, Linear, Module, Sequential
from minires.nn.fuse import AddReLU
from minires.ops.avg_pool2d import global_avg_pool2d


def rng(seed=0):
    return np.random.default_rng(seed)


def picture(side, n=2, channels=3, dtype="float32"):
    return Tensor(rng(5).standard_normal((n, side, side, channels)).astype(dtype))


def norms(model):
    return [path for path, module in model.named_modules() if isinstance(module, BatchNorm2d)]


def assert_same(model, fused, x, tolerance=1e-5):
    expected, found = (net.eval()(x).numpy() for net in (model, fused))
    assert np.isfinite(expected).all() and np.linalg.norm(expected) > 0
    assert found.dtype == expected.dtype and found.shape == expected.shape
    assert np.linalg.norm(found - expected) <= tolerance * np.linalg.norm(expected)


# --------------------------------------------------------------------------------- every model by its name


def small(name):
    """A model of few layers with all kinds of blocks of its family, and the side of its pictures."""
    preset, options = models.entry(name).preset, {}
    side = 16 if name.endswith("_cifar") else 64 if "inception" in name else 32
    if "vgg" in name:
        options = {"size": 32, "widths": (4, 8, 8, 16, 16), "hidden": 8} | (
            {"reduction": 4} if "se_" in name else {}
        )
    elif "densenet" in name:
        options = {"blocks": (2,) * len(preset.get("blocks", (1, 1, 1, 1))), "growth": 4}
    elif "inception" not in name and not name.endswith("_signs"):
        options = {"repeats": (2,) + (1,) * (len(preset.get("repeats", (1,) * 4)) - 1)}
        if name == "senet154":
            options |= {"cardinality": 4, "width": 16, "reduction": 4}
        if not name.startswith("resnext29"):
            options["widths"] = tuple(16 * 2**i for i in range(len(options["repeats"])))
    return shake(models.build(name, classes=3, seed=1, **options)), side


def left(name, model):
    """The batch norms that follow no convolution: those of activations before a weight, and the last one."""
    units = [module for _, module in model.named_modules() if isinstance(module, ResidualUnit)]
    before = [getattr(unit, name, None) for unit in units for name in unit._before]
    return [
        path
        for path, module in model.named_modules()
        if module in before
        or path == "post_bn"
        or ("densenet" in name and re.fullmatch(r"block\d\.layer\d\.bn1|transition\d\.bn|bn_last", path))
    ]


@pytest.mark.parametrize("name", models.names())
def test_every_model_is_the_same_function_when_fused(name):
    model, side = small(name)
    before = model.state_dict()
    fused = minires.fuse(model, (side, side, 3))
    assert_same(model, fused, picture(side))
    assert norms(fused) == left(name, model)
    after = model.state_dict()
    assert list(after) == list(before) and all(np.array_equal(after[key], before[key]) for key in before)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vgg16_bn", {"head": "linear", "widths": (16, 16, 32, 32, 32)}),
        ("resnet50_signs", {}),
        ("preresnet50", {"widths": (16, 32, 64, 128)}),
        ("resnext50_32x4d", {"widths": (16, 32, 64, 128)}),
        ("densenet121", {"growth": 8}),
        ("se_resnet50", {"widths": (16, 32, 64, 128)}),
    ],
)
def test_full_depth_in_double_precision(name, options):
    model = shake(models.build(name, classes=3, seed=1, **options)).astype("float64")
    assert_same(model, minires.fuse(model), picture(64, n=1, dtype="float64"), 1e-12)


VARIANTS = [
    ("resnext50_32x4d", {"form": "concat", "cardinality": 2, "width": 16}, 0),
    ("resnext50_32x4d", {"form": "branches", "cardinality": 2, "width": 16}, 4),  # one reads a sum
    ("resnet50", {"shortcut": "A"}, 0),
    ("resnet50", {"bias": True, "kind": "basic", "convention": "keras"}, 0),
    ("se_resnet50", {"placement": "pre"}, 0),
    ("se_resnet50", {"placement": "identity"}, 0),
    ("preresnet50", {"order": "original"}, 0),
    ("preresnet50", {"order": "bn_after_add"}, 4),
    ("preresnet50", {"order": "relu_before_add"}, 0),
    ("preresnet50", {"order": "relu_only"}, 0),
    ("preresnet50", {"gating": "exclusive", "shortcut": "C"}, 4),
]


@pytest.mark.parametrize(("name", "options", "kept"), VARIANTS)
def test_every_form_of_a_block(name, options, kept):
    options = {"repeats": (1, 1, 1, 1), "widths": (16, 32, 64, 128)} | options
    model = shake(models.build(name, classes=3, seed=1, **options))
    fused = minires.fuse(model)
    assert_same(model, fused, picture(32))
    assert len(norms(fused)) == kept


def test_dropout_between_is_nothing_in_inference():
    model = shake(models.build("densenet121", classes=3, blocks=(1, 1), growth=4, dropout=0.5))
    fused = minires.fuse(model)
    assert_same(model, fused, picture(32))
    assert norms(fused) == left("densenet121", model)


# --------------------------------------------------------------------------- what may be folded and what not


class Two(Module):
    """Two convolutions and two batch norms, put together by ``wiring``."""

    def __init__(self, wiring):
        super().__init__()
        self.a, self.b = (Conv2d(4, 4, 3, padding=1, bias=bias, rng=rng(3)) for bias in (True, False))
        self.m, self.n = BatchNorm2d(4, relu=True), BatchNorm2d(4)
        self.fc = Linear(4, 2, rng=rng(4))
        self.wiring = wiring

    def forward(self, x):
        return self.fc(global_avg_pool2d(self.wiring(self, x)))


def read_twice(net, x):
    y = net.a(x)
    return net.m(y) + y


WIRINGS = [
    (lambda net, x: net.m(net.a(x)), {"m"}),
    (lambda net, x: net.n(net.b(net.m(net.a(x))), add=x), {"m", "n"}),
    (lambda net, x: net.m(net.b(x), add=net.n(net.a(x))), {"m", "n"}),
    (read_twice, set()),
    (lambda net, x: net.m(net.a(net.a(x))), set()),  # one kernel for two convolutions
    (lambda net, x: net.m(net.m(net.a(x))), set()),  # one batch norm for a convolution and for itself
    (lambda net, x: net.m(net.a(x) * 2), set()),
    (lambda net, x: net.m(net.a(x) + net.b(x)), set()),
    (lambda net, x: net.a(net.m(x)), set()),
]


@pytest.mark.parametrize(("wiring", "folded"), WIRINGS)
def test_a_batch_norm_is_folded_where_it_alone_reads_a_convolution(wiring, folded):
    model = shake(Two(wiring))
    fused = minires.fuse(model)
    assert_same(model, fused, picture(32, channels=4))
    assert {"m", "n"} - set(norms(fused)) == folded


def test_a_kernel_of_two_convolutions_keeps_its_batch_norm():
    model = shake(Two(lambda net, x: net.n(net.b(net.m(net.a(x))))))
    model.b.weight = model.a.weight
    assert norms(minires.fuse(model)) == ["m", "n"]
    model.wiring = lambda net, x: net.m(net.a(x))  # and where only one of the two is called
    fused = minires.fuse(model)
    assert norms(fused) == ["m", "n"]
    assert_same(model, fused, picture(32, channels=4))


def test_a_subclass_may_do_what_it_likes():
    class Doubled(Conv2d):
        def forward(self, x):
            return super().forward(x + x)

    class Halved(BatchNorm2d):
        def forward(self, x):
            return super().forward(x) * 0.5

    for number, layer in enumerate((Doubled(4, 4, 3, rng=rng()), Halved(4))):
        layers = [Conv2d(4, 4, 3, rng=rng()), BatchNorm2d(4)]
        layers[number] = layer
        model = shake(Sequential(*layers))
        fused = minires.fuse(model)
        assert norms(fused) == ["1"]
        assert_same(model, fused, picture(8, channels=4))


# ---------------------------------------------------------------------------------------------- the result


def net(**options):
    options = {"repeats": (1, 1, 1), "shortcut": "B"} | options
    return shake(models.build("resnet20_cifar", classes=3, seed=1, **options))


def test_its_state_has_biases_and_nothing_of_batch_norms():
    model = net()
    fused = minires.fuse(model)
    weights = [name for name in model.state_dict() if re.fullmatch(r"(conv|res).*\.weight", name)]
    expected = [name for weight in weights for name in (weight, weight.replace("weight", "bias"))]
    assert list(fused.state_dict()) == [*expected, "fc.weight", "fc.bias"]
    assert norms(model) and not norms(fused)


def test_the_formula():
    conv, bn = Conv2d(1, 1, 1, rng=rng()), BatchNorm2d(1, eps=0.5)
    for parameter, value in ((conv.weight, 2.0), (conv.bias, 3.0), (bn.gamma, 6.0), (bn.beta, 5.0)):
        parameter.data[...] = value
    bn.running_mean[...], bn.running_var[...] = 1.0, 3.5  # scale = 6 / sqrt(4) = 3
    state = minires.fuse(Sequential(c=conv, n=bn)).state_dict()
    assert {name: array.item() for name, array in state.items()} == {"c.weight": 6.0, "c.bias": 11.0}


def test_a_summary_shows_what_is_left():
    fused = minires.fuse(net())
    summary = summarize(fused, (32, 32, 3))
    kinds = {layer.name: layer.kind for layer in summary.layers}
    assert kinds["conv1"].endswith(", ReLU") and kinds["bn_conv1"] == "AddReLU, nothing to do"
    assert kinds["bn2a_branch2b"] == "+ shortcut, ReLU"
    assert kinds["bn3a_branch1"] == "AddReLU, nothing to do"
    assert summary.params_total == summary.params_trainable == sum(p.size for p in fused.parameters())
    assert summary.macs == summarize(net(), (32, 32, 3)).macs


def test_errors_and_the_tape_name_the_layers_as_before():
    fused = minires.fuse(net())
    left_over = [path for path, module in fused.named_modules() if isinstance(module, AddReLU)]
    assert left_over == norms(net())
    y = fused(picture(16))
    paths = [step.node.path for step in y.backward_steps(np.ones((2, 3), np.float32))]
    assert "bn4a_branch2b" in paths and "res4a_branch2b" in paths and "bn4a_branch1" not in paths


def test_the_original_keeps_its_modes_gradients_and_random_states():
    inner = models.build("se_resnet56_cifar", classes=4, repeats=(1, 1, 1), seed=1)
    model = shake(Sequential(inner, minires.nn.Dropout(0.5, seed=3)))
    first = next(iter(model.parameters()))
    first.grad = np.ones_like(first.data)
    bn = next(module for _, module in model.named_modules() if isinstance(module, BatchNorm2d))
    bn.frozen = True
    state, random = model.state_dict(), model.random_states()
    modes = [module.training for _, module in model.named_modules()]
    fused = minires.fuse(model)
    assert model.training and modes == [module.training for _, module in model.named_modules()]
    assert model.random_states() == random and bn.frozen and (first.grad == 1).all()
    assert not any(module.training for _, module in fused.named_modules()) and not fused.training
    for parameter in fused.parameters():
        parameter.data[...] = 7
    assert all(np.array_equal(array, state[name]) for name, array in model.state_dict().items())


def test_it_can_be_trained_and_its_gradients_are_its_own():
    model = net()
    fused = minires.fuse(model).train()
    before = fused.state_dict()
    y = fused(picture(16))
    assert minires.unused_parameters(y, fused) == []
    y.backward(np.ones((2, 3), np.float32))
    assert all(parameter.grad is not None for parameter in fused.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(np.array_equal(array, before[name]) for name, array in fused.state_dict().items())


def test_frozen_weights_are_folded_and_stay_frozen():
    model = net()
    for parameter in model.parameters():
        parameter.requires_grad = False
    model.fc.weight.requires_grad = model.conv1.weight.requires_grad = True
    fused = minires.fuse(model)
    assert not norms(fused)
    trained = {name for name, parameter in fused.named_parameters() if parameter.requires_grad}
    assert trained == {"conv1.weight", "conv1.bias", "fc.weight"}


@pytest.mark.parametrize("mode", [minires.no_grad, minires.unfused, minires.reference])
def test_it_can_be_made_and_run_in_every_mode(mode):
    model = net()
    with mode():
        fused = minires.fuse(model)
        assert_same(model, fused, picture(16))
    assert not norms(fused)


def test_the_size_of_pictures_is_found_or_must_be_given():
    options = {"widths": (4, 4, 4, 4, 4), "hidden": 4, "classes": 2}
    for size in (32, 64, 224):
        assert not norms(minires.fuse(models.build("vgg11_bn", size=size, **options)))
    odd = models.build("vgg11_bn", size=96, **options)
    assert not norms(minires.fuse(odd, (96, 96, 3)))
    with pytest.raises(ShapeError, match=re.escape("of 32x32x3, 64x64x3, 224x224x3 does not fit")) as caught:
        minires.fuse(odd)
    assert "(H, W, C), as input=" in str(caught.value) and "fc6" in str(caught.value)
    with pytest.raises(ShapeError, match="a picture of 32x32x3 does not fit"):
        minires.fuse(odd, (32, 32, 3))


def test_a_first_convolution_with_groups_takes_all_their_channels():
    model = Sequential(Conv2d(4, 6, 1, groups=2, rng=rng()), BatchNorm2d(6))
    assert not norms(minires.fuse(model))


def test_a_model_without_convolutions_is_copied():
    model = Sequential(Linear(3, 2, rng=rng()), BatchNorm2d(2))
    fused = minires.fuse(model)
    assert norms(fused) == ["1"] and fused is not model and not fused.training

"""ResNet V2: every order, shortcut and gate against the paper's figures; networks against released code.

Inference in float32 shows that the layers are the same; training in float64 shows the statistics and the
gradients through them. Training in float32 is compared on a small network alone: in a deep one a ReLU that
rounds to the other side changes gradients by percents, in any framework.
"""

import re

import numpy as np
import pytest
from oracle import Keras, Torch, assert_equal, keras, leaf_for_torch, shake

import minires
from minires.errors import ConfigError
from minires.inspect import summarize
from minires.models import build
from minires.models.resnet_v2 import ORDERS, ResidualUnit
from minires.nn.blocks import basic, bottleneck
from minires.nn.layers import MaxPool2d, Pad2d
from minires.tensor import Tensor

SMALL = {"repeats": (2, 2, 2), "widths": (4, 6, 8)}
UNIT = re.compile(r"(res|bn)(\d)([a-z]\d*)_branch(\w+)")


def place(layer):
    """res3b2_branch2a -> ("res", stage 3, unit 3 counted from 1, "2a"); None for what is in no unit."""
    found = UNIT.fullmatch(layer)
    if found is None:
        return None
    kind, stage, unit, branch = found.groups()
    number = 1 + int(unit[1:]) if unit[1:] else ord(unit) - ord("a") + 1
    return kind, int(stage), number, branch


def pair_of_modes(ours, theirs, shape):
    """Inference in float32 to 1e-4 and training in float64 to 1e-8."""
    assert_equal(ours, theirs, shape)
    assert_equal(ours, theirs, shape, training=True, dtype="float64", tolerance=1e-8)


# ------------------------------------------------------------------ orders and shortcuts: the paper's figures

FIGURE_4 = {  # from top to bottom, the path with the weights and what follows the addition
    "original": "weight bn relu weight bn add relu",
    "bn_after_add": "weight bn relu weight add bn relu",
    "relu_before_add": "weight bn relu weight bn relu add",
    "relu_only": "relu weight bn relu weight bn add",
    "full": "bn relu weight bn relu weight add",
}


def twin(model, *, order, shortcut="A", gating=None, scale=None):
    """The network that has the layers of ``model``, run by reading figure 4 aloud, in PyTorch."""
    torch = pytest.importorskip("torch")
    from torch.nn import functional

    class Twin(torch.nn.Module):
        def __init__(self):
            super().__init__()
            state = model.state_dict()
            self.units = {}
            for name, array in state.items():
                layer, leaf = name.rsplit(".", 1)
                if leaf == "gamma":
                    self.add_module(layer, torch.nn.BatchNorm2d(array.size))
                elif array.ndim == 2:
                    self.add_module(layer, torch.nn.Linear(*array.shape))
                elif array.ndim == 4:
                    kh, kw, inputs, outputs = array.shape
                    stride = 2 if self.halves(layer, state) else 1
                    self.add_module(
                        layer,
                        torch.nn.Conv2d(
                            inputs, outputs, (kh, kw), stride, kh // 2, bias=f"{layer}.bias" in state
                        ),
                    )
                if place(layer):
                    kind, stage, number, branch = place(layer)
                    layers = self.units.setdefault((stage, number), {})
                    layers[kind, branch] = getattr(self, layer)

        @staticmethod
        def halves(layer, state):
            """The stride is on the 3x3 that comes first, and on what stands beside it."""
            if not place(layer):
                return False
            _, stage, number, branch = place(layer)
            first_3x3 = "2b" if state[f"res{stage}a_branch2a.weight"].shape[0] == 1 else "2a"
            return stage > 2 and number == 1 and branch in (first_3x3, "1", "_gate")

        def forward(self, x):
            x = functional.relu(self.bn_conv1(self.conv1(x)))
            for unit in sorted(self.units):
                x = self.unit(x, *unit)
            last = self.units[max(self.units)]
            for word in self.words(last)[
                : self.words(last).index("weight")
            ]:  # what one more would begin with
                x = functional.relu(x) if word == "relu" else self.post_bn(x)
            return self.fc(x.mean((2, 3)))

        @staticmethod
        def words(layers):
            """Figure 4 for as many weights as the unit has."""
            weights = sum(kind == "res" and branch.startswith("2") for kind, branch in layers)
            text = FIGURE_4[order].replace("weight", "weight bn relu weight", weights - 2)
            return text.split()

        def unit(self, x, stage, number):
            layers, words = self.units[stage, number], self.words(self.units[stage, number])
            weights = [layers[key] for key in sorted(layers) if key[0] == "res" and key[1].startswith("2")]
            norms = [layers[key] for key in sorted(layers) if key[0] == "bn" and key[1].startswith("2")]
            width = weights[-1].out_channels
            if (stage, number) == (2, 1):  # its activation is that after conv1
                words = words[words.index("weight") :]
            split = x
            last = len(words) - 1 - words[::-1].index("weight")
            for at, word in enumerate(words):
                if word == "weight":
                    x = weights.pop(0)(x)
                elif word == "bn":
                    x = norms.pop(0)(x)
                elif word == "relu":
                    x = functional.relu(x)
                else:
                    x = self.add(x, split, width, layers, normed=words[last + 1] == "bn")
                if number == 1 and "weight" not in words[: at + 1]:  # activated before the split
                    split = x
            assert not weights and not norms
            return x

        def add(self, x, split, width, layers, *, normed):
            side = split
            if shortcut == "C" or (shortcut == "B" and ("res", "1") in layers):
                side = layers["res", "1"](split)
                assert normed == (("bn", "1") in layers)
                side = layers["bn", "1"](side) if normed else side
            elif split.shape != x.shape:
                step = split.shape[2] // x.shape[2]
                side = split[:, :, ::step, ::step]
                zeros = side.new_zeros(len(x), width - side.shape[1], *x.shape[2:])
                side = torch.cat([side, zeros], 1)
            if gating == "constant":
                return scale[0] * side + scale[1] * x
            if gating in ("exclusive", "shortcut_only"):
                g = 1 / (1 + torch.exp(-layers["res", "_gate"](split)))
                return (1 - g) * side + (g * x if gating == "exclusive" else x)
            return side + x

    return Torch(Twin(), leaf_for_torch)


@pytest.mark.parametrize("shortcut", ["A", "B", "C"])
@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
@pytest.mark.parametrize("order", FIGURE_4)
def test_orders_equal_figure_4(order, kind, shortcut):
    options = {"order": order, "shortcut": shortcut}
    ours = build("preresnet110_cifar", **SMALL, kind=kind, **options)
    pair_of_modes(ours, twin(ours, **options), (3, 12, 12, 3))


@pytest.mark.parametrize(
    ("gating", "scale"),
    [
        ("constant", (0, 1)),
        ("constant", (0.5, 1)),
        ("constant", (0.5, 0.5)),
        ("constant", (0.25, 2)),
        ("exclusive", None),
        ("shortcut_only", None),
    ],
)
@pytest.mark.parametrize(("order", "shortcut"), [("original", "A"), ("original", "B"), ("full", "A")])
def test_shortcuts_equal_table_1(gating, scale, order, shortcut):
    options = {"order": order, "shortcut": shortcut, "gating": gating}
    if scale:
        options["scale"] = scale
    ours = build("preresnet110_cifar", **SMALL, **options)
    pair_of_modes(ours, twin(ours, **options), (3, 12, 12, 3))


@pytest.mark.parametrize("order", FIGURE_4)
def test_gates_fit_every_order(order):
    options = {"order": order, "gating": "exclusive", "shortcut": "B"}
    ours = build("preresnet110_cifar", **SMALL, kind="bottleneck", **options)
    pair_of_modes(ours, twin(ours, **options), (3, 12, 12, 3))


def test_biases_stand_where_no_batch_norm_follows():
    ours = build("preresnet110_cifar", **SMALL, shortcut="B", bias=True)
    biased = {name.removesuffix(".bias") for name in ours.state_dict() if name.endswith(".bias")}
    second = {f"res{stage}{block}_branch2b" for stage in (2, 3, 4) for block in "ab"}
    assert biased == second | {"res3a_branch1", "res4a_branch1", "fc"}
    pair_of_modes(ours, twin(ours, order="full", shortcut="B"), (3, 12, 12, 3))
    normed = build("preresnet110_cifar", **SMALL, shortcut="B", bias=True, order="original")
    assert [name for name in normed.state_dict() if name.endswith(".bias")] == ["fc.bias"]


def test_training_in_float32():
    ours = build("preresnet110_cifar", repeats=(1, 1, 1), widths=(4, 6, 8))
    assert_equal(ours, twin(ours, order="full"), (8, 16, 16, 3), training=True)


@pytest.mark.parametrize("bias", [0, -6])
def test_gates_start_at_their_bias(bias):
    model = build("preresnet110_cifar", gating="exclusive", gate_bias=bias, initializer="zeros")
    gates = [array for name, array in model.state_dict().items() if name.endswith("_gate.bias")]
    assert len(gates) == 54 and all((gate == bias).all() for gate in gates)
    # Wg = 0: g = sigmoid(bias) everywhere. The branch is zero, so the unit gives (1 - g) x.
    x = np.random.default_rng(0).uniform(0, 1, (2, 4, 4, 16)).astype("float32")
    y = model.res2b1.eval()(Tensor(x)).numpy()
    np.testing.assert_allclose(y, x * (1 - 1 / (1 + np.exp(-bias))), rtol=1e-6)


def test_dropout_on_the_shortcut():
    """Half of the shortcut is gone in training, the rest is doubled; nothing happens at inference."""
    rng = np.random.default_rng(0)
    model = build("preresnet110_cifar", gating="dropout", initializer="zeros", seed=3)
    x = rng.standard_normal((4, 16, 16, 16)).astype("float32")  # of the zero branch nothing is added
    unit, other = model.res2b1, model.res2b2
    inputs = Tensor(x, requires_grad=True)
    y = unit(inputs)
    kept = y.numpy() != 0
    assert 0.48 < kept.mean() < 0.52
    assert np.array_equal(y.numpy(), np.where(kept, 2 * x, 0))
    dy = rng.standard_normal(x.shape).astype("float32")
    y.backward(dy)
    assert np.array_equal(inputs.grad, np.where(kept, 2 * dy, 0))
    assert not np.array_equal(other(inputs).numpy() != 0, kept)  # every unit has its own mask
    assert np.array_equal(unit.eval()(inputs).numpy(), x)
    rare = build("preresnet110_cifar", gating="dropout", dropout=0.1, initializer="zeros").res2b1
    assert 0.88 < (rare(inputs).numpy() != 0).mean() < 0.92


# -------------------------------------------------------------------------------------------- the unit itself


@pytest.mark.parametrize("branch", [basic(8), bottleneck(2)], ids=["basic", "bottleneck"])
@pytest.mark.parametrize("starts", ["branch", "outside"])
def test_with_a_zero_branch_full_pre_activation_is_the_identity(branch, starts):
    unit = ResidualUnit(
        8, branch, stage=2, block="a", starts=starts, initializer="zeros", rng=np.random.default_rng(0)
    )
    x = np.random.default_rng(1).standard_normal((2, 5, 5, 8)).astype("float32")
    inputs = Tensor(x, requires_grad=True)
    y = unit(inputs)
    assert np.array_equal(y.numpy(), x) and x.min() < -1
    y.backward(x)
    assert np.array_equal(inputs.grad, x)


def test_the_other_orders_are_not():
    """relu_only too keeps any input; of the others two cut what is negative, one does not add it."""
    x = np.random.default_rng(1).standard_normal((2, 5, 5, 8)).astype("float32")
    found = {}
    for order in ORDERS:
        unit = ResidualUnit(
            8, basic(8), stage=2, block="a", order=order, initializer="zeros", rng=np.random.default_rng(0)
        )
        found[order] = unit.eval()(Tensor(x)).numpy()
    for order in ("full", "relu_only", "relu_before_add"):
        assert np.array_equal(found[order], x), order
    assert np.array_equal(found["original"], np.maximum(x, 0))
    np.testing.assert_allclose(found["bn_after_add"], np.maximum(x, 0) / np.sqrt(1 + 1e-3), rtol=1e-6)


def test_with_zeros_nothing_is_drawn():
    options = {**SMALL, "shortcut": "C", "gating": "exclusive", "gate_bias": 0, "initializer": "zeros"}
    for stem in ("imagenet", "cifar", "keras"):
        state = build("preresnet110_cifar", stem=stem, **options).state_dict()
        weights = [array for name, array in state.items() if name.endswith((".weight", ".bias"))]
        assert len(weights) > 20 and not any(array.any() for array in weights)


def test_names_and_order_of_parameters():
    full = build("preresnet110_cifar", repeats=(1, 1), widths=(4, 8), shortcut="B", initializer="zeros")
    assert [name for name, _ in full.named_parameters()] == [
        "conv1.weight", "bn_conv1.gamma", "bn_conv1.beta",
        "res2a_branch2a.weight", "bn2a_branch2b.gamma", "bn2a_branch2b.beta", "res2a_branch2b.weight",
        "bn3a_branch2a.gamma", "bn3a_branch2a.beta", "res3a_branch2a.weight",
        "bn3a_branch2b.gamma", "bn3a_branch2b.beta", "res3a_branch2b.weight", "res3a_branch1.weight",
        "post_bn.gamma", "post_bn.beta", "fc.weight", "fc.bias",
    ]  # fmt: skip
    assert [name for name, _ in full.children()] == [
        "conv1", "bn_conv1", "res2a", "res3a", "post_bn", "avg_pool", "fc",
    ]  # fmt: skip


def test_original_has_the_parameters_of_the_residual_network_of_2015():
    """Under the same names and, with the same weights, the same scores."""
    for kind, shortcut, stride_on in (("basic", "A", "3x3"), ("bottleneck", "B", "1x1")):
        options = {**SMALL, "kind": kind, "shortcut": shortcut, "stride_on": stride_on}
        v1 = shake(build("resnet20_cifar", **options)).eval()
        v2 = build("preresnet110_cifar", order="original", **options).eval()
        v2.load_state_dict(v1.state_dict())
        x = Tensor(np.random.default_rng(0).standard_normal((2, 16, 16, 3)).astype("float32"))
        np.testing.assert_allclose(v2(x).numpy(), v1(x).numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("order", ORDERS)
def test_fused_is_unfused(order):
    model = shake(build("preresnet110_cifar", **SMALL, order=order)).astype("float64")
    x = np.random.default_rng(0).standard_normal((2, 12, 12, 3))
    found = []
    for mode in (minires.unfused, None):
        model.zero_grad()
        shake(model)
        inputs = Tensor(x, requires_grad=True)
        if mode is None:
            y = model(inputs)
        else:
            with mode():
                y = model(inputs)
        y.backward(np.cos(np.arange(y.size)).reshape(y.shape))
        found.append([y.numpy(), inputs.grad, *(p.grad for p in model.parameters())])
    for fused, unfused in zip(*found, strict=True):
        np.testing.assert_allclose(fused, unfused, rtol=1e-9, atol=1e-12)


def test_1001_layers_forward_and_backward():
    """One small picture: as many layers and steps of the tape as for a large one."""
    model = build("preresnet1001_cifar")
    y = model(Tensor(np.random.default_rng(0).standard_normal((1, 8, 8, 3)).astype("float32")))
    y.backward(np.ones(y.shape, "float32"))
    assert y.shape == (1, 10) and np.isfinite(y.numpy()).all()
    gradients = [parameter.grad for parameter in model.parameters()]
    weights = 1001 + 3  # layers, and a projection for each stage
    assert len(gradients) == weights + 2 * 1000 + 1  # gamma and beta before all but conv1; the bias of fc
    assert all(gradient is not None and np.isfinite(gradient).all() for gradient in gradients)
    assert np.abs(model.conv1.weight.grad).max() > 0


# -------------------------------------------------------------------------------- networks: pytorchcv, Keras


def cv_names(name, *, stem_norm):
    """pytorchcv's names; ``stem_norm`` is where our bn_conv1 stands there."""
    layer, leaf = leaf_for_torch(name).rsplit(".", 1)
    if place(layer) is None:
        there = {"bn_conv1": stem_norm, "post_bn": "features.post_activ.bn", "fc": "output"}
        there["conv1"] = "features.init_block.conv"
        return f"{there[layer]}.{leaf}"
    kind, stage, number, branch = place(layer)
    unit = f"features.stage{stage - 1}.unit{number}"
    if branch == "1":
        return f"{unit}.identity_conv.{leaf}"
    return f"{unit}.body.conv{'abc'.index(branch[1]) + 1}.{'conv' if kind == 'res' else 'bn'}.{leaf}"


def cv_imagenet(widths, repeats, *, kind, stride_on="3x3"):
    """pytorchcv's network without the batch norm that its first unit begins with.

    It has that one AND the one after conv1, the paper and fb.resnet.torch only the latter. (A ReLU after the
    max pool of a ReLU changes nothing.) Its last average pool is for 224x224 alone; any size is taken here.
    """
    torch = pytest.importorskip("torch")
    preresnet = pytest.importorskip("pytorchcv.models.preresnet")
    outs = [width * (4 if kind == "bottleneck" else 1) for width in widths]
    model = preresnet.PreResNet(
        [[out] * count for out, count in zip(outs, repeats, strict=True)],
        widths[0], bottleneck=kind == "bottleneck", conv1_stride=stride_on == "1x1", num_classes=10,
    )  # fmt: skip
    model.features.stage1.unit1.body.conv1.bn = torch.nn.Identity()
    model.features.final_pool = torch.nn.AdaptiveAvgPool2d(1)
    return Torch(model, lambda name: cv_names(name, stem_norm="features.init_block.bn"))


@pytest.mark.parametrize(
    ("name", "kind", "repeats"),
    [("preresnet18", "basic", (2, 2, 2, 2)), ("preresnet50", "bottleneck", (3, 4, 6, 3))],
)
def test_imagenet_networks_equal_pytorchcv(name, kind, repeats):
    ours = build(name, classes=10)
    assert_equal(ours, cv_imagenet((64, 128, 256, 512), repeats, kind=kind), (2, 64, 64, 3))


@pytest.mark.parametrize("stride_on", ["1x1", "3x3"])
@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
def test_small_imagenet_networks_equal_pytorchcv_in_training(kind, stride_on):
    widths, repeats = (4, 6, 8, 10), (1, 2, 1, 1)
    options = {"widths": widths, "repeats": repeats, "kind": kind, "stride_on": stride_on}
    ours = build("preresnet50", classes=10, **options)
    pair_of_modes(ours, cv_imagenet(**options), (2, 49, 65, 3))


def test_cifar_bottlenecks_equal_pytorchcv():
    """As released: there the activation after conv1 is that of the first unit, which stands before the
    split, since the unit has a projection. So our bn_conv1 is the first batch norm of that unit."""
    torch = pytest.importorskip("torch")
    cifar = pytest.importorskip("pytorchcv.models.preresnet_cifar")

    def theirs(count):
        model = cifar.CIFARPreResNet([[width] * count for width in (64, 128, 256)], 16, bottleneck=True)
        model.features.final_pool = torch.nn.AdaptiveAvgPool2d(1)  # theirs is for 32x32 alone

        def names(name):
            there = cv_names(name, stem_norm="features.stage1.unit1.body.conv1.bn")
            return there.replace("init_block.conv", "init_block")

        return Torch(model, names)

    small = build("preresnet164_cifar", repeats=(2, 2, 2), stride_on="3x3")
    pair_of_modes(small, theirs(2), (2, 16, 16, 3))
    assert_equal(build("preresnet164_cifar", stride_on="3x3"), theirs(18), (2, 8, 8, 3))


def test_cifar_basic_networks_equal_pytorchcv():
    """With its batch norm of the first unit before the split, where the paper and fb.resnet.torch have it:
    in a basic unit, which begins with an identity, pytorchcv's shortcut sees what is not activated."""
    torch = pytest.importorskip("torch")
    cifar = pytest.importorskip("pytorchcv.models.preresnet_cifar")
    model = cifar.CIFARPreResNet([[width] * 3 for width in (16, 32, 64)], 16, bottleneck=False)
    model.features.final_pool = torch.nn.AdaptiveAvgPool2d(1)
    model.features.init_block = torch.nn.Sequential(
        model.features.init_block, torch.nn.BatchNorm2d(16), torch.nn.ReLU()
    )
    model.features.stage1.unit1.body.conv1.bn = torch.nn.Identity()
    model.features.stage1.unit1.body.conv1.activ = torch.nn.Identity()  # else it changes the split in place

    def names(name):
        there = cv_names(name, stem_norm="features.init_block.1")
        return there.replace("init_block.conv", "init_block.0")

    ours = build("preresnet110_cifar", repeats=(3, 3, 3), shortcut="B")
    pair_of_modes(ours, Torch(model, names), (2, 16, 16, 3))


def keras_names(name):
    layer, leaf = name.rsplit(".", 1)
    leaf = {"weight": "kernel", "running_mean": "moving_mean", "running_var": "moving_variance"}.get(
        leaf, leaf
    )
    if place(layer) is None:
        return f"{ {'conv1': 'conv1_conv', 'post_bn': 'post_bn', 'fc': 'predictions'}[layer] }/{leaf}"
    kind, stage, number, branch = place(layer)
    part = {
        "res1": "0_conv", "res2a": "1_conv", "res2b": "2_conv", "res2c": "3_conv",
        "bn2a": "preact_bn", "bn2b": "1_bn", "bn2c": "2_bn",
    }[kind + branch]  # fmt: skip
    return f"conv{stage}_block{number}_{part}/{leaf}"


def test_resnet50v2_equals_keras():
    theirs = keras().applications.ResNet50V2(
        weights=None, input_shape=(64, 64, 3), classes=10, classifier_activation=None
    )
    ours = build("resnet50v2_keras", classes=10)
    assert_equal(ours, Keras(theirs, keras_names), (2, 64, 64, 3))


def test_a_small_network_equals_keras_in_training():
    """Three stages of two units. Keras computes in float32, so the network is shallow; see the head."""
    keras()
    resnet = pytest.importorskip("keras.src.applications.resnet")

    def stages(x):
        x = resnet.stack_residual_blocks_v2(x, 64, 2, name="conv2")
        x = resnet.stack_residual_blocks_v2(x, 8, 2, name="conv3")
        return resnet.stack_residual_blocks_v2(x, 4, 2, stride1=1, name="conv4")

    theirs = resnet.ResNet(
        stages, True, True, name="small", weights=None, input_shape=(49, 49, 3), classes=5,
        classifier_activation=None,
    )  # fmt: skip
    ours = build("resnet50v2_keras", classes=5, widths=(64, 8, 4), repeats=(2, 2, 2))
    assert_equal(ours, Keras(theirs, keras_names), (4, 49, 49, 3), training=True)


def test_border_zeros_win_in_keras_and_never_in_torch():
    x = Tensor(np.full((1, 4, 4, 1), -1, np.float32))
    zeros = MaxPool2d(3, stride=2)(Pad2d(1)(x)).numpy()[0, :, :, 0]
    assert np.array_equal(zeros, [[0, 0], [0, -1]])
    assert (MaxPool2d(3, stride=2, padding=1)(x).numpy() == -1).all()


@pytest.mark.parametrize("size", [65, 64])
def test_the_stride_in_the_last_unit_is_subsampling_before_the_next(size):
    """Keras halves a stage in its last unit: stride 2 on the 3x3, and a 1x1 max pool with stride 2 on the
    shortcut. What follows the 3x3 looks at one pixel at a time, so this is the same as computing all pixels
    and taking every second one of the result, as a next unit does that has the stride on its first 1x1 and on
    its projection. The same weights fit both. (Equal at inference: the batch norm between sees other pixels.)
    """
    options = {"widths": (8, 6, 8, 10), "repeats": (2, 1, 3, 2), "classes": 7}
    last = shake(build("resnet50v2_keras", **options)).astype("float64").eval()
    first = build("resnet50v2_keras", **options, stride_in="first", stride_on="1x1").astype("float64").eval()
    first.load_state_dict(last.state_dict())
    sizes = [
        {layer.block: layer.output for layer in summarize(m, (size, size, 3)).layers} for m in (last, first)
    ]
    assert sizes[0]["res2b"][0] < sizes[1]["res2b"][0] and sizes[0]["res5b"] == sizes[1]["res5b"]
    x = np.random.default_rng(0).standard_normal((2, size, size, 3))
    found = []
    for model in (last, first):
        inputs = Tensor(x, requires_grad=True)
        y = model(inputs)
        y.backward(np.cos(np.arange(y.size)).reshape(y.shape))
        found.append([y.numpy(), inputs.grad, *(p.grad for p in model.parameters())])
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


# ------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": "post"}, "order must be one of 'original', 'bn_after_add'.*, not 'post'"),
        ({"shortcut": "D"}, "shortcut must be one of 'A', 'B', 'C', not 'D'"),
        ({"gating": "highway"}, "gating must be one of 'none', 'constant'.*, not 'highway'"),
        ({"gating": "constant", "scale": 0.5}, "scale must be two numbers, .*, not 0.5"),
        ({"gating": "constant", "scale": (0.5, "x")}, "scale must be two numbers, .*'x'"),
        ({"gating": "dropout", "dropout": 1.0}, "from 0 to below 1, not 1.0"),
        ({"gating": "exclusive", "gate_bias": "low"}, "gate_bias must be a number, not 'low'"),
        ({"kind": "wide"}, "kind must be one of 'basic', 'bottleneck', not 'wide'"),
        ({"stem": "patch"}, "stem must be one of 'imagenet', 'cifar', 'bare', 'keras', not 'patch'"),
        ({"stride_in": "middle"}, "stride_in must be one of 'first', 'last', not 'middle'"),
        ({"kind": "bottleneck", "stride_on": "5x5"}, "stride_on must be .*'1x1'.*'3x3', not '5x5'"),
        ({"repeats": (1, 1)}, "repeats must give each of the 3 stages at least one block"),
        ({"repeats": 3}, "repeats must give each of the 3 stages at least one block, not 3"),
        ({"widths": ()}, r"widths must be a list of at least one width, each at least 1, not \(\)"),
        (
            {"widths": (16, 8, 8)},
            "unit 3a: shortcut 'A' adds channels of zeros, but 16 come in and .* gives 8",
        ),
        ({"bias": "conv1"}, "bias must be one of False, True, not 'conv1'"),
        ({"initializer": "he"}, "unknown initialiser 'he'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ConfigError, match=message):
        build("preresnet110_cifar", **{"repeats": (1, 1, 1), "initializer": "zeros", **options})


def test_a_unit_refuses_an_unknown_start():
    with pytest.raises(ConfigError, match="starts must be one of 'branch', 'split', 'outside', not 'x'"):
        ResidualUnit(8, basic(8), stage=2, block="a", starts="x", rng=np.random.default_rng(0))

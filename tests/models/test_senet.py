"""SENet against pytorchcv, and every switch against a plain PyTorch version written here."""

import string

import numpy as np
import oracle
import pytest

import minires
from minires.errors import ConfigError
from minires.inspect.summary import summarize
from minires.models import build

# ----------------------------------------------------------------------------------- against pytorchcv


def pytorchcv(module, kind, **options):
    """A network of pytorchcv for any picture size; its gates have dense layers, as ours."""
    pytest.importorskip("torch")
    found = pytest.importorskip(f"pytorchcv.models.{module}")
    from pytorchcv.models.common import SEBlock
    from torch.nn import AdaptiveAvgPool2d

    model = getattr(found, kind)(num_classes=10, **options)
    model.features.final_pool = AdaptiveAvgPool2d(1)  # 7x7 there
    for unit in list(model.modules()):
        if hasattr(unit, "se"):
            unit.se = SEBlock(channels=unit.se.conv2.out_channels, use_conv=False)
    return oracle.Torch(model, there)


def there(name):
    """``res2b_branch2c.weight`` -> ``features.stage1.unit2.body.conv3.conv.weight``."""
    layer, *inside, leaf = oracle.leaf_for_torch(name).split(".")
    if layer == "fc":
        return f"output.{leaf}"
    kind = "conv" if layer.startswith(("conv", "res")) else "bn"
    if layer in ("conv1", "bn_conv1"):
        return f"features.init_block.conv.{kind}.{leaf}"
    block, _, place = layer.removeprefix("res").removeprefix("bn").partition("_")
    number = int(block[2:]) if len(block) > 2 else string.ascii_lowercase.index(block[1])  # b3 or d
    unit = f"features.stage{int(block[0]) - 1}.unit{number + 1}"
    if inside:
        return f"{unit}.se.{'fc1' if inside == ['reduce'] else 'fc2'}.{leaf}"
    if place == "branch1":
        return f"{unit}.identity_conv.{kind}.{leaf}"
    return f"{unit}.body.conv{'abc'.index(place[-1]) + 1}.{kind}.{leaf}"


def cifar(name):
    """CIFAR networks of pytorchcv have no pool in their stem, hence one name less."""
    return there(name).replace("init_block.conv.", "init_block.")


def senet(name):
    """SENet-154 has three convolutions in its stem, and a dropout beside its dense layer."""
    if name.startswith(("conv1_", "bn1_")):
        kind, number = ("conv" if name.startswith("conv") else "bn"), name.split(".")[0][-1]
        return f"features.init_block.conv{number}.{kind}.{oracle.leaf_for_torch(name).split('.')[1]}"
    return there(name).replace("output.", "output.fc.")


def test_se_resnet50_equals_pytorchcv():
    oracle.assert_equal(build("se_resnet50", classes=10), pytorchcv("seresnet", "seresnet50"), (2, 64, 64, 3))


SMALL = {"repeats": (2, 1, 1, 2), "widths": (16, 32, 48, 64)}
CHANNELS = [[64, 64], [128], [192], [256, 256]]  # of the same, after the blocks
MODES = [("float32", False, 1e-4), ("float64", True, 1e-8)]


@pytest.mark.parametrize(("dtype", "training", "tolerance"), MODES)
@pytest.mark.parametrize("stride_on", ["1x1", "3x3"])
def test_stride_equals_pytorchcv(stride_on, dtype, training, tolerance):
    theirs = pytorchcv(
        "seresnet", "SEResNet", channels=CHANNELS, init_block_channels=16, bottleneck=True,
        conv1_stride=stride_on == "1x1",
    )  # fmt: skip
    ours = build("se_resnet50", classes=10, stride_on=stride_on, **SMALL)
    oracle.assert_equal(ours, theirs, (2, 64, 64, 3), dtype=dtype, training=training, tolerance=tolerance)


@pytest.mark.parametrize(("dtype", "training", "tolerance"), MODES)
def test_se_resnext_equals_pytorchcv(dtype, training, tolerance):
    theirs = pytorchcv(
        "seresnext", "SEResNeXt", channels=CHANNELS, init_block_channels=16, cardinality=4, bottleneck_width=9
    )
    ours = build("se_resnext50_32x4d", classes=10, cardinality=4, width=9, **SMALL)  # 2, 4, 6, 9 wide
    oracle.assert_equal(ours, theirs, (2, 64, 64, 3), dtype=dtype, training=training, tolerance=tolerance)


def test_se_resnext50_equals_pytorchcv_at_full_width():
    theirs = pytorchcv(
        "seresnext", "SEResNeXt", channels=[[256], [512, 512]], init_block_channels=64, cardinality=32,
        bottleneck_width=4,
    )  # fmt: skip
    ours = build("se_resnext50_32x4d", classes=10, repeats=(1, 2), widths=(64, 128))
    oracle.assert_equal(ours, theirs, (2, 64, 64, 3))


def test_senet154_equals_pytorchcv_with_a_block_in_each_stage():
    theirs = pytorchcv(
        "senet", "SENet", channels=[[256], [512], [1024], [2048]], init_block_channels=128, cardinality=64,
        bottleneck_width=4,
    )  # fmt: skip
    theirs.names = senet
    oracle.assert_equal(build("senet154", classes=10, repeats=(1, 1, 1, 1)), theirs, (2, 64, 64, 3))


@pytest.mark.parametrize(("dtype", "training", "tolerance"), MODES)
def test_a_small_senet_equals_pytorchcv(dtype, training, tolerance):
    theirs = pytorchcv(
        "senet", "SENet", channels=CHANNELS, init_block_channels=32, cardinality=2, bottleneck_width=16
    )
    theirs.names = senet
    ours = build("senet154", classes=10, cardinality=2, width=16, **SMALL)
    oracle.assert_equal(ours, theirs, (2, 64, 64, 3), dtype=dtype, training=training, tolerance=tolerance)


@pytest.mark.parametrize(("dtype", "training", "tolerance"), MODES)
def test_se_resnet56_cifar_equals_pytorchcv(dtype, training, tolerance):
    """On 16x16 pictures in float32. Of the million ReLUs in two 32x32 pictures one rounds to the other side
    in PyTorch, which moves its gradients by 5e-3 from its own float64 ones (ours stay within 1e-5)."""
    theirs = pytorchcv(
        "seresnet_cifar", "CIFARSEResNet", channels=[[16] * 9, [32] * 9, [64] * 9], init_block_channels=16,
        bottleneck=False,
    )  # fmt: skip
    theirs.names = cifar
    ours, side = build("se_resnet56_cifar"), 16 if dtype == "float32" else 32
    oracle.assert_equal(ours, theirs, (2, side, side, 3), dtype=dtype, training=training, tolerance=tolerance)


# ---------------------------------------------------------------------- every switch, in plain PyTorch


def twin(ours, *, placement="standard", squeeze="avg", stride_at="a", groups=1):
    """The network with the shapes of ``ours`` as one function of its weights, which keep their names."""
    torch = pytest.importorskip("torch")
    from torch.nn import functional as F
    from torch_peer import to_torch

    class Twin(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = [name for name, child in ours.children() if name.startswith("res")]
            trained = {name for name, _ in ours.named_parameters()}
            for name, array in ours.state_dict().items():
                tensor, key = to_torch(name, array), name.replace(".", "/")
                if name in trained:
                    self.register_parameter(key, torch.nn.Parameter(tensor))
                else:
                    self.register_buffer(key, tensor)

        def has(self, name):
            return hasattr(self, name)

        def conv(self, x, layer, stride=1, groups=1):
            weight = getattr(self, f"{layer}/weight")
            bias = getattr(self, f"{layer}/bias", None)
            return F.conv2d(x, weight, bias, stride, weight.shape[-1] // 2, 1, groups)

        def bn(self, x, layer):
            mean, var, gamma, beta = (
                getattr(self, f"{layer}/{leaf}") for leaf in ("running_mean", "running_var", "gamma", "beta")
            )
            return F.batch_norm(x, mean, var, gamma, beta, self.training, 0.1, 1e-5)

        def gate(self, x, layer):
            z = x
            if squeeze != "none":
                z = x.mean((2, 3), keepdim=True) if squeeze == "avg" else x.amax((2, 3), keepdim=True)
            for dense, activation in (("reduce", F.relu), ("expand", torch.sigmoid)):
                weight = getattr(self, f"{layer}/{dense}/weight")
                bias = getattr(self, f"{layer}/{dense}/bias", None)
                z = activation(F.conv2d(z, weight.reshape(*weight.shape[:2], 1, 1), bias))
            return x * z

        def block(self, x, name, stride):
            def gate(y, where):
                return self.gate(y, f"res{name}_se") if where == placement else y

            y = gate(x, "pre")
            last = "c" if self.has(f"res{name}_branch2c/weight") else "b"
            for place in "abc"[: "abc".index(last) + 1]:
                step = stride if place == stride_at else 1
                y = self.conv(y, f"res{name}_branch2{place}", step, groups if place == "b" else 1)
                y = self.bn(y, f"bn{name}_branch2{place}")
                y = F.relu(y) if place != last else y
            shortcut = x
            if self.has(f"res{name}_branch1/weight"):
                shortcut = self.bn(self.conv(x, f"res{name}_branch1", stride), f"bn{name}_branch1")
            return gate(F.relu(gate(y, "standard") + gate(shortcut, "identity")), "post")

        def forward(self, x):
            x = F.relu(self.bn(self.conv(x, "conv1"), "bn_conv1"))
            for name in self.blocks:
                x = self.block(x, name[3:], 2 if name[3] > "2" and name[4:] == "a" else 1)
            return F.linear(x.mean((2, 3)), getattr(self, "fc/weight"), getattr(self, "fc/bias"))

    return oracle.Torch(Twin(), lambda name: name.replace(".", "/"))


PLACEMENTS, SQUEEZES = ("standard", "pre", "post", "identity"), ("avg", "max", "none")
SWITCHES = [
    {"placement": placement, "squeeze": squeeze, "gate_bias": (i + j) % 2 == 0, "reduction": (2, 3, 4)[j]}
    for i, placement in enumerate(PLACEMENTS)
    for j, squeeze in enumerate(SQUEEZES)
]
SHALLOW = {"stem": "cifar", "repeats": (2, 2), "widths": (12, 16), "classes": 5}
ALL_MODES = [*MODES, ("float32", True, 1e-4)]


def ids(options):
    return "-".join(map(str, options.values()))


@pytest.mark.parametrize(("dtype", "training", "tolerance"), ALL_MODES)
@pytest.mark.parametrize("options", SWITCHES, ids=ids)
def test_basic_blocks_equal_their_twin(options, dtype, training, tolerance):
    ours = build("se_resnet50", kind="basic", **SHALLOW, **options)
    assert ("res2a_se.reduce.bias" in ours.state_dict()) == options["gate_bias"]
    theirs = twin(ours, placement=options["placement"], squeeze=options["squeeze"])
    oracle.assert_equal(ours, theirs, (4, 12, 12, 3), dtype=dtype, training=training, tolerance=tolerance)


@pytest.mark.parametrize(("dtype", "training", "tolerance"), ALL_MODES)
@pytest.mark.parametrize("options", SWITCHES[::2], ids=ids)
def test_bottlenecks_equal_their_twin(options, dtype, training, tolerance):
    ours = build("se_resnext50_32x4d", cardinality=2, width=20, **SHALLOW, **options)
    theirs = twin(ours, placement=options["placement"], squeeze=options["squeeze"], stride_at="b", groups=2)
    oracle.assert_equal(ours, theirs, (4, 12, 12, 3), dtype=dtype, training=training, tolerance=tolerance)


@pytest.mark.parametrize(("dtype", "training", "tolerance"), ALL_MODES)
@pytest.mark.parametrize("squeeze", SQUEEZES)
def test_se_vgg_equals_its_twin(squeeze, dtype, training, tolerance):
    """VGG-16 as a list of layers, with a gate after each of the 13 ReLUs."""
    torch = pytest.importorskip("torch")
    nn, widths = torch.nn, (8, 12, 16, 20, 24)

    class Gate(nn.Module):
        def __init__(self, channels):
            super().__init__()
            made = (lambda i, o: nn.Conv2d(i, o, 1)) if squeeze == "none" else nn.Linear
            self.reduce, self.expand = made(channels, channels // 4), made(channels // 4, channels)

        def forward(self, x):
            z = {"avg": lambda: x.mean((2, 3)), "max": lambda: x.amax((2, 3)), "none": lambda: x}[squeeze]()
            s = self.expand(self.reduce(z).relu()).sigmoid()
            return x * (s if squeeze == "none" else s[:, :, None, None])

    layers, channels = nn.Sequential(), 3
    for block, (count, width) in enumerate(zip((2, 2, 3, 3, 3), widths, strict=True), 1):
        for i in range(1, count + 1):
            layers.add_module(f"conv{block}_{i}", nn.Conv2d(channels, width, 3, padding=1))
            layers.add_module(f"bn{block}_{i}", nn.BatchNorm2d(width))
            layers.add_module(f"relu{block}_{i}", nn.ReLU())
            layers.add_module(f"se{block}_{i}", Gate(width))
            channels = width
        layers.add_module(f"pool{block}", nn.MaxPool2d(2))
    layers.add_module("flatten", nn.Flatten())
    layers.add_module("fc", nn.Linear(channels, 7))
    ours = build(
        "se_vgg16_bn", classes=7, size=32, widths=widths, head="linear", reduction=4, squeeze=squeeze
    )
    theirs = oracle.Torch(layers, oracle.leaf_for_torch)
    oracle.assert_equal(ours, theirs, (4, 32, 32, 3), dtype=dtype, training=training, tolerance=tolerance)


# ---------------------------------------------------------------------------------------- equivalences


def with_open_gates(gated, plain, size):
    """The arrays that both networks have, of both, when every gate is 1: a sigmoid of 100 is exactly that."""
    oracle.shake(gated)
    for name, parameter in gated.named_parameters():
        if ".expand." in name:
            parameter.data[...] = 100.0 if name.endswith("bias") else 0.0
    plain.load_state_dict({n: a for n, a in gated.state_dict().items() if ".expand." not in n
                           and ".reduce." not in n})  # fmt: skip
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((4, size, size, 3)), rng.standard_normal((4, 5))
    mine, theirs = (oracle.ours_run(m.astype("float64"), x, dy, training=True) for m in (gated, plain))
    assert len(mine) > len(theirs)
    return {name: mine[name] for name in theirs}, theirs


@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
@pytest.mark.parametrize("squeeze", SQUEEZES)
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_with_open_gates_it_is_the_plain_resnet(placement, squeeze, kind):
    gated = build("se_resnet50", kind=kind, reduction=4, placement=placement, squeeze=squeeze, **SHALLOW)
    mine, theirs = with_open_gates(gated, build("resnet50", kind=kind, **SHALLOW), 12)
    assert max(oracle.distances(mine, theirs).values()) < 1e-12


def test_with_open_gates_it_is_the_plain_vgg():
    options = {"classes": 5, "size": 32, "widths": (16,) * 5, "head": "linear"}
    mine, theirs = with_open_gates(build("se_vgg16_bn", **options), build("vgg16_bn", **options), 32)
    assert max(oracle.distances(mine, theirs).values()) < 1e-12


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_fused_equals_unfused(placement):
    model = oracle.shake(build("se_resnet50", reduction=4, placement=placement, **SHALLOW)).astype("float64")
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((4, 12, 12, 3)), rng.standard_normal((4, 5))
    fused = oracle.ours_run(model, x, dy, training=False)
    with minires.unfused():
        apart = oracle.ours_run(model, x, dy, training=False)
    assert max(oracle.distances(fused, apart).values()) < 1e-11


def test_placements_differ():
    """From one set of weights; else the tests above could all have seen the same network."""
    x = np.random.default_rng(0).standard_normal((2, 12, 12, 3)).astype(np.float32)
    options = {"reduction": 4, "kind": "basic", "stem": "cifar", "repeats": (2,), "widths": (12,)}
    state = oracle.shake(build("se_resnet50", **options)).state_dict()
    outputs = []
    for placement in PLACEMENTS:
        model = build("se_resnet50", placement=placement, **options)
        model.load_state_dict(state)
        outputs.append(model.eval()(minires.Tensor(x)).numpy())
    for i, one in enumerate(outputs):
        assert all(np.abs(one - other).max() > 1e-3 for other in outputs[:i])


# ----------------------------------------------------------------------------------------- what is built


def test_where_the_gates_of_vgg_stand():
    model = build("se_vgg16_bn", initializer="zeros")
    layers = [name for name, _ in model.children()]
    gates = [name for name in layers if name.startswith("se")]
    assert len(gates) == 13
    for name in gates:
        assert layers[layers.index(name) - 1] == name.replace("se", "bn")
    assert layers[-1] == "fc8" and model.se5_3.reduce.weight.shape == (512, 32)


def test_summary_ends_each_stage_with_its_output():
    model = build("se_resnet50", initializer="zeros")
    sizes = [layers[-1].output for _, layers in summarize(model, (224, 224, 3)).stages()]
    assert sizes == [(112, 112, 64), (56, 56, 256), (28, 28, 512), (14, 14, 1024), (7, 7, 2048), (1000,)]


def test_what_no_squeeze_costs():
    """Table 16: 4.27 billion MACs without a squeeze, and 28.1 million weights with and without."""
    found = [
        summarize(build("se_resnet50", squeeze=squeeze, initializer="zeros"), (224, 224, 3))
        for squeeze in SQUEEZES
    ]
    # With the squeeze the paper has 3.87, but the released model's convolutions and dense layers make 3.8605.
    assert [round(summary.macs / 1e9, 2) for summary in found] == [3.86, 3.86, 4.27]
    assert {round(summary.params_trainable / 1e6, 1) for summary in found} == {28.1}


def test_pools_that_round_up_see_one_pixel_more():
    """The release pools 112 to 56 by rounding up, without padding; most others pad by one pixel."""
    for padding in (1, "ceil"):
        model = build("se_resnet50", repeats=(1,), widths=(16,), initializer="zeros", pool_padding=padding)
        assert summarize(model, (64, 64, 3)).layers[2].output == (16, 16, 16)
        assert model.pool1.padding == padding


@pytest.mark.parametrize("name", ["se_resnet50", "senet154", "se_vgg16_bn", "bn_inception"])
def test_options_of_batch_norm_reach_every_one(name):
    plain, other = (build(name, initializer="zeros", **options)
                    for options in ({}, {"bn_momentum": 0.3, "bn_eps": 1e-3}))  # fmt: skip
    for model, expected in ((plain, {(0.1, 1e-5, "torch")}), (other, {(0.3, 1e-3, "torch")})):
        norms = [part for _, part in model.named_modules() if hasattr(part, "gamma")]
        assert {(norm.momentum, norm.eps, norm.convention) for norm in norms} == expected


@pytest.mark.parametrize("name", ["se_resnet50", "senet154"])
def test_last_gamma_is_that_of_each_branch(name):
    state = build(name, initializer="zeros", last_gamma=0.0, repeats=(2, 1, 1, 1)).state_dict()
    zero = {layer for layer, array in state.items() if layer.endswith("gamma") and not array.any()}
    assert zero == {f"bn{block}_branch2c.gamma" for block in ("2a", "2b", "3a", "4a", "5a")}


def test_dropout_of_senet154():
    small = {"repeats": (1, 1), "widths": (16, 32), "cardinality": 2, "width": 16}
    model = build("senet154", **small)
    assert model.drop.rate == 0.2
    assert build("senet154", dropout=0.0, **small).drop.rate == 0.0
    names = [name for name, _ in model.children()]
    assert names[-3:] == ["avg_pool", "drop", "fc"]
    other = build("senet154", seed=1, **small)
    assert model.random_states() == build("senet154", **small).random_states() != other.random_states()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("se_resnet50", {"kind": "wide"}, "kind must be one of 'basic', 'bottleneck', not 'wide'"),
        ("se_resnet50", {"stem": "keras"}, "stem must be one of 'imagenet', 'cifar', not 'keras'"),
        (
            "se_resnet50",
            {"placement": "last"},
            "placement must be one of 'standard', 'pre', 'post'",
        ),
        ("se_resnet50", {"pool_padding": 0}, "pool_padding must be one of 1, 'ceil', not 0"),
        ("senet154", {"pool_padding": 0}, "pool_padding must be one of 1, 'ceil', not 0"),
        ("se_resnet50", {"squeeze": "sum"}, "squeeze must be one of 'avg', 'max', 'none', not 'sum'"),
        ("se_resnet50", {"shortcut": "D"}, "shortcut must be one of"),
        ("se_resnet50", {"stride_on": "2x2"}, "stride_on must be"),
        ("se_resnet50", {"reduction": 257}, "reduction must be a whole number from 1 to 256.* not 257"),
        ("se_resnet56_cifar", {"reduction": 32}, "reduction must be a whole number from 1 to 16.* not 32"),
        ("se_resnet50", {"repeats": (3, 4, 6)}, "repeats must give each of the 4 stages"),
        ("se_resnet50", {"widths": ()}, "widths must be"),
        ("se_resnext50_32x4d", {"cardinality": 0}, "0x4d is no network.* 0 groups"),
        (
            "se_resnext50_32x4d",
            {"widths": (8, 16), "repeats": (1, 1)},
            "stage of n = 8 .* groups of 0 channels",
        ),
        ("senet154", {"width": 0}, "64x0d is no network"),
        ("senet154", {"placement": "last"}, "placement must be one of"),
        ("senet154", {"widths": ()}, "widths must be"),
        ("se_vgg16_bn", {"squeeze": "sum"}, "squeeze must be one of"),
        ("se_vgg16_bn", {"reduction": 65}, "from 1 to 64.* not 65"),
        ("se_vgg16_bn", {"head": "flat"}, "head must be one of"),
    ],
)
def test_bad_options(name, options, message):
    with pytest.raises(ConfigError, match=message):
        build(name, initializer="zeros", **options)


def test_without_gates_there_is_nothing_to_squeeze_or_to_place():
    for option in ({"placement": "pre"}, {"squeeze": "max"}):
        with pytest.raises(ConfigError, match="reduction=None leaves out the gates, so there is no"):
            build("se_resnet56_cifar", reduction=None, **option)
    bare, gated = (build("se_bn_inception", reduction=one) for one in (None, 16))
    count = sum(one.size for one in bare.parameters())
    assert count == sum(one.size for one in build("bn_inception").parameters())
    assert count < sum(one.size for one in gated.parameters())

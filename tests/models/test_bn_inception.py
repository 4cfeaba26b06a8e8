"""BN-Inception, plain and with squeeze and excitation, against pytorchcv."""

import numpy as np
import oracle
import pytest

import minires
from minires.errors import ConfigError, ShapeError
from minires.models import build
from minires.tensor import Tensor

UNITS = {
    # module: where pytorchcv has it, and the channels that come out (the table in the head of the model)
    "3a": ("stage1.unit1", 256), "3b": ("stage1.unit2", 320), "3c": ("stage2.unit1", 576),
    "4a": ("stage2.unit2", 576), "4b": ("stage2.unit3", 576), "4c": ("stage2.unit4", 608),
    "4d": ("stage2.unit5", 608), "4e": ("stage3.unit1", 1056), "5a": ("stage3.unit2", 1024),
    "5b": ("stage3.unit3", 1024),
}  # fmt: skip
STEM = {"1": "conv1", "2_reduce": "conv2.conv1", "2": "conv2.conv2"}
BRANCHES = {
    "_1x1": "branch1", "_3x3_reduce": "branch2.conv1", "_3x3": "branch2.conv2",
    "_double3x3_reduce": "branch3.conv1", "_double3x3a": "branch3.conv2", "_double3x3b": "branch3.conv3",
    "_pool_proj": "branch4.conv",
}  # fmt: skip


def peer(*, bias=False, se=False):
    """pytorchcv's network, for any picture size, and with its gates after the modules if ``se``."""
    pytest.importorskip("torch")
    bninception = pytest.importorskip("pytorchcv.models.bninception")
    from pytorchcv.models.common import SEBlock
    from torch.nn import AdaptiveAvgPool2d

    model = bninception.get_bninception(bias=bias, num_classes=10)
    model.features.final_pool = AdaptiveAvgPool2d(1)  # 7x7 there
    if not bias:  # its stem has two all the same
        for name in ("conv1", "conv2"):
            getattr(model.features.init_block.conv2, name).conv.bias = None
    if se:
        for path, channels in UNITS.values():
            unit = model.features.get_submodule(path)
            unit.se = SEBlock(channels=channels, use_conv=False)
            unit.register_forward_hook(lambda unit, x, y: unit.se(y))
    return oracle.Torch(model, there)


def there(name):
    """``inception_3a.conv_3x3.weight`` -> ``features.stage1.unit1.branches.branch2.conv2.conv.weight``."""
    *path, layer, leaf = oracle.leaf_for_torch(name).split(".")
    if layer == "fc":
        return f"output.{leaf}"
    if layer in ("reduce", "expand"):
        unit = UNITS[path[0].removeprefix("inception_")][0]
        return f"features.{unit}.se.{'fc1' if layer == 'reduce' else 'fc2'}.{leaf}"
    kind = "conv" if layer.startswith("conv") else "bn"
    place = layer.removeprefix(kind)
    if not path:
        return f"features.init_block.{STEM[place]}.{kind}.{leaf}"
    module = path[0].removeprefix("inception_")
    branch = BRANCHES[place]
    if module in ("3c", "4e"):  # no 1x1 there, so that the others are counted from 1
        branch = branch.replace("branch2", "branch1").replace("branch3", "branch2")
    return f"features.{UNITS[module][0]}.branches.{branch}.{kind}.{leaf}"


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("se", [False, True])
def test_equals_pytorchcv_in_float32(se, bias):
    ours = build("se_bn_inception" if se else "bn_inception", classes=10, bias=bias)
    oracle.assert_equal(ours, peer(bias=bias, se=se), (2, 64, 96, 3))


@pytest.mark.parametrize("se", [False, True])
def test_equals_pytorchcv_in_training(se):
    ours = build("bn_inception", classes=10, se=se)
    oracle.assert_equal(ours, peer(se=se), (3, 64, 64, 3), training=True, dtype="float64", tolerance=1e-8)


def test_with_open_gates_it_is_the_plain_network():
    """A bias of 100 makes a sigmoid of exactly 1: the outputs and the gradients of all that both have."""
    gated, plain = build("se_bn_inception", classes=10), build("bn_inception", classes=10)
    weights = oracle.shake(gated).state_dict()
    for name, parameter in gated.named_parameters():
        if ".se.expand." in name:
            parameter.data[...] = 100.0 if name.endswith("bias") else 0.0
    plain.load_state_dict({name: array for name, array in weights.items() if ".se." not in name})
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((2, 64, 64, 3)), rng.standard_normal((2, 10))
    found = [oracle.ours_run(model.astype("float64"), x, dy, training=True) for model in (gated, plain)]
    shared = {name: array for name, array in found[0].items() if ".se." not in name}
    assert len(found[0]) == len(shared) + 40
    assert max(oracle.distances(shared, found[1]).values()) < 1e-12


def test_fused_equals_unfused():
    model = oracle.shake(build("se_bn_inception", classes=10)).astype("float64")
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((2, 64, 64, 3)), rng.standard_normal((2, 10))
    fused = oracle.ours_run(model, x, dy, training=False)
    with minires.unfused():
        apart = oracle.ours_run(model, x, dy, training=False)
    assert max(oracle.distances(fused, apart).values()) < 1e-11


@pytest.mark.parametrize("name", ["bn_inception", "se_bn_inception"])
def test_outputs_of_the_modules(name):
    model = build(name, initializer="zeros")
    x, sizes = Tensor(np.zeros((1, 224, 224, 3), np.float32)), {}
    for layer, module in model.children():
        x = module(x)
        sizes[layer] = x.shape[1:]
    assert sizes["pool1"] == (56, 56, 64) and sizes["pool2"] == (28, 28, 192)
    side = {"3a": 28, "3b": 28, "4e": 7, "5a": 7, "5b": 7}
    for module, (_, channels) in UNITS.items():
        assert sizes[f"inception_{module}"] == (side.get(module, 14), side.get(module, 14), channels)


def test_reduction_squeeze_and_bias_reach_the_gates():
    shapes = {
        key: {name: array.shape for name, array in build("se_bn_inception", initializer="zeros", **options)
              .state_dict().items() if ".se." in name}
        for key, options in {
            "r8": {"reduction": 8}, "bare": {"gate_bias": False}, "none": {"squeeze": "none"}
        }.items()
    }  # fmt: skip
    assert shapes["r8"]["inception_3b.se.reduce.weight"] == (320, 40)
    assert len(shapes["r8"]) == 40 and len(shapes["bare"]) == 20
    assert shapes["none"]["inception_4e.se.expand.weight"] == (1, 1, 66, 1056)


@pytest.mark.parametrize(
    ("side", "message"),
    [
        (104, "^inception_3c: the picture is 13x13 here.* multiples of 32"),
        (32, "^inception_4e: the picture is 2x2 here"),
    ],
)
def test_a_picture_that_cannot_be_halved(side, message):
    model = build("bn_inception", initializer="zeros")
    with pytest.raises(ShapeError, match=message):
        model(Tensor(np.zeros((1, side, side, 3), np.float32)))


def test_bad_options():
    with pytest.raises(ConfigError, match="squeeze must be one of .* not 'min'"):
        build("se_bn_inception", squeeze="min", initializer="zeros")
    with pytest.raises(ConfigError, match="reduction must be a whole number from 1 to 256"):
        build("se_bn_inception", reduction=300, initializer="zeros")
    with pytest.raises(ConfigError, match="unknown initialiser"):
        build("bn_inception", initializer="ones")

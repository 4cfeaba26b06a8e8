"""ResNeXt: three forms of one function, one path is ResNet, and the same numbers as pytorchcv's."""

import re

import numpy as np
import oracle
import pytest

from minires.errors import ConfigError
from minires.inspect import summarize
from minires.models import build
from minires.models.resnext import split_paths
from minires.ops.cross_entropy import cross_entropy
from minires.tensor import Tensor

SMALL = {"repeats": (1, 2), "widths": (16, 32), "cardinality": 4, "width": 16}  # paths of 4, then 8 channels
SPLIT = ("branches", "concat")


# --------------------------------------------------------------------------------------- the three forms


def results(model, training):
    """Output, gradients and running statistics of a network, in float64."""
    rng = np.random.default_rng(3)
    x, dy = rng.standard_normal((3, 17, 17, 3)), rng.standard_normal((3, 5))
    return oracle.ours_run(model, x, dy, training=training)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shortcut", ["A", "B", "C", "none"])
@pytest.mark.parametrize("form", SPLIT)
def test_the_forms_are_one_function(form, shortcut, training):
    """Also their gradients are, and the running statistics after a step: split as the weights are."""
    grouped, split = (
        build("resnext50_32x4d", classes=5, shortcut=shortcut, form=f, **SMALL) for f in ("grouped", form)
    )
    oracle.shake(grouped).astype("float64")
    split.astype("float64").load_state_dict(split_paths(grouped.state_dict(), 4, form))
    expected, got = results(grouped, training), results(split, training)
    gradients = {name: expected[f"d {name}"] for name, _ in grouped.named_parameters()}
    wanted = {f"d {name}": array for name, array in split_paths(gradients, 4, form).items()}
    wanted.update(y=expected["y"], dx=expected["dx"])
    if training:  # the running statistics are part of the state, and have moved
        after = split_paths(grouped.state_dict(), 4, form)
        wanted.update({name: array for name, array in after.items() if "running" in name})
    worst = sorted(oracle.distances(got, wanted).items(), key=lambda item: -item[1])[:5]
    assert worst[0][1] < 1e-10, worst


@pytest.mark.parametrize("form", SPLIT)
def test_the_forms_start_from_the_same_weights(form):
    grouped, split = (build("resnext50_32x4d", seed=3, form=f, **SMALL) for f in ("grouped", form))
    expected, got = split_paths(grouped.state_dict(), 4, form), split.state_dict()
    assert expected.keys() == got.keys()
    assert all(np.array_equal(expected[name], got[name]) for name in got)


@pytest.mark.parametrize("form", SPLIT)
def test_the_forms_have_the_same_figures(form):
    one, other = (
        summarize(build("resnext50_32x4d", form=f, initializer="zeros", **SMALL), (64, 64, 3))
        for f in ("grouped", form)
    )
    for figure in ("params_total", "params_trainable", "macs"):
        assert getattr(one, figure) == getattr(other, figure)


def test_a_split_network_shows_every_path():
    state = {f: build("resnext50_32x4d", form=f, **SMALL).state_dict() for f in SPLIT}
    for form, last in (("branches", {"res3a_branch2c_4.weight": (1, 1, 8, 128)}),
                       ("concat", {"res3a_branch2c.weight": (1, 1, 32, 128)})):  # fmt: skip
        shapes = {
            name: array.shape for name, array in state[form].items() if name.startswith(("res3a", "bn3a"))
        }
        paths = {
            f"{kind}3a_branch2{place}_{i}.{leaf}": shape
            for i in range(1, 5)
            for kind, place, leaf, shape in [
                ("res", "a", "weight", (1, 1, 64, 8)), ("res", "b", "weight", (3, 3, 8, 8)),
                ("bn", "a", "gamma", (8,)), ("bn", "b", "running_var", (8,)),
            ]
        }  # fmt: skip
        wanted = {**paths, **last, "bn3a_branch2c.gamma": (128,), "res3a_branch1.weight": (1, 1, 64, 128)}
        assert wanted.items() <= shapes.items()
    assert sum(name.startswith("res3a_branch2c") for name in state["branches"]) == 4


def test_the_batch_norm_of_branches_stands_after_the_sum():
    model = build("resnext50_32x4d", classes=5, form="branches", **SMALL)
    loss = cross_entropy(model(Tensor(np.ones((2, 33, 33, 3), np.float32))), np.array([0, 1]))
    steps = [(step.node.op, step.node.path) for step in loss.backward_steps()]
    at = steps.index(("batch_norm", "bn2a_branch2c"))
    assert ("add", "res2a_branch2") in steps[at + 1 :]
    assert not any(path.startswith("bn2a_branch2c_") for _, path in steps)


# --------------------------------------------------------------------------------------------- options


def test_one_path_of_64_is_resnet_with_the_stride_on_the_3x3():
    ours = build("resnext50_1x64d", classes=5, seed=4, repeats=(1, 2, 1, 1))
    resnet = build("resnet50", classes=5, seed=4, repeats=(1, 2, 1, 1), stride_on="3x3")
    one, other = ours.state_dict(), resnet.state_dict()
    assert one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)
    x = Tensor(np.random.default_rng(0).standard_normal((2, 65, 65, 3)).astype(np.float32))
    assert np.array_equal(ours(x).numpy(), resnet(x).numpy())


@pytest.mark.parametrize(
    ("name", "groups", "channels"),
    [
        ("resnext50_32x4d", 32, (128, 256, 512, 1024)),
        ("resnext50_2x40d", 2, (80, 160, 320, 640)),
        ("resnext50_8x14d", 8, (112, 224, 448, 896)),
        ("resnext101_64x4d", 64, (256, 512, 1024, 2048)),
        ("resnext101_1x100d", 1, (100, 200, 400, 800)),
        ("resnext29_16x64d_cifar", 16, (1024, 2048, 4096)),
    ],
)
def test_widths_of_the_3x3(name, groups, channels):
    state = build(name, initializer="zeros", form="grouped").state_dict()
    for stage, wide in enumerate(channels, 2):
        assert state[f"res{stage}a_branch2b.weight"].shape == (3, 3, wide // groups, wide)


def test_a_width_that_does_not_divide_is_rounded_down():
    state = build("resnext50_32x4d", repeats=(1, 1), widths=(24, 48), cardinality=3, width=7).state_dict()
    assert state["res2a_branch2b.weight"].shape == (3, 3, 2, 6)  # floor(24 * 7 / 64) = 2
    assert state["res3a_branch2b.weight"].shape == (3, 3, 5, 15)  # floor(48 * 7 / 64) = 5


@pytest.mark.parametrize("form", ("grouped", *SPLIT))
def test_options_reach_every_layer(form):
    model = build(
        "resnext29_32x4d_cifar", form=form, initializer="zeros", last_gamma=0.25, bn_momentum=0.3, bn_eps=0.1,
        **SMALL,
    )  # fmt: skip
    norms = {path: module for path, module in model.named_modules() if hasattr(module, "gamma")}
    assert {(bn.momentum, bn.eps, bn.convention) for bn in norms.values()} == {(0.3, 0.1, "torch")}
    for path, bn in norms.items():
        assert np.all(bn.gamma.data == (0.25 if path.endswith("_branch2c") else 1)), path
    weights = [p.data for name, p in model.named_parameters() if name.endswith(".weight")]
    assert not any(weight.any() for weight in weights)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"form": "sum"}, "form must be one of 'grouped', 'branches', 'concat', not 'sum'"),
        ({"stem": "mnist"}, "stem must be one of 'imagenet', 'cifar', not 'mnist'"),
        ({"shortcut": "D"}, "shortcut must be one of 'A', 'B', 'C', 'none', not 'D'"),
        ({"cardinality": 0}, "0x4d is no network"),
        ({"width": 0}, "32x0d is no network"),
        ({"widths": (8, 64), "repeats": (1, 1)}, "floor(n * width / 64) in a stage of n = 8, 64"),
        ({"repeats": (3, 4, 6)}, "repeats must give each of the 4 stages at least one block"),
    ],
)
def test_options_that_do_not_fit(options, text):
    with pytest.raises(ConfigError, match=re.escape(text)):
        build("resnext50_32x4d", initializer="zeros", **options)


def test_weights_that_cannot_be_split():
    state = build("resnext50_32x4d", **SMALL).state_dict()
    with pytest.raises(ConfigError, match="split_paths: form must be one of 'branches', 'concat'"):
        split_paths(state, 4, "grouped")
    with pytest.raises(ConfigError, match="5 paths cannot share the 16 channels of res2a_branch2a.weight"):
        split_paths(state, 5, "branches")
    with pytest.raises(ConfigError, match="0 paths cannot share"):
        split_paths(state, 0, "branches")
    with pytest.raises(ConfigError, match="give the state of a grouped network"):
        split_paths(split_paths(state, 4, "branches"), 4, "branches")


# ------------------------------------------------------------------------------------ against pytorchcv


def names_of(model):
    """Ours -> pytorchcv's: ``res3b_branch2a`` is ``features.stage2.unit2.body.conv1.conv``."""
    blocks = [name for name, _ in model.children() if name.startswith("res")]
    unit = {
        name[3:]: f"features.stage{int(name[3]) - 1}.unit{1 + sum(b[3] == name[3] for b in blocks[:i])}"
        for i, name in enumerate(blocks)
    }
    stem = "features.init_block" + (".conv" if hasattr(model, "pool1") else "")

    def rename(name):
        layer, leaf = oracle.leaf_for_torch(name).split(".")
        if layer == "fc":
            return f"output.{leaf}"
        kind = "bn" if layer.startswith("bn") else "conv"
        if layer in ("conv1", "bn_conv1"):
            return f"{stem}.{kind}.{leaf}"
        block, place = layer.removeprefix("res").removeprefix("bn").split("_branch")
        inner = "identity_conv" if place == "1" else f"body.conv{' abc'.index(place[1])}"
        return f"{unit[block]}.{inner}.{kind}.{leaf}"

    return rename


def pytorchcv_of(ours, *, repeats, widths, cardinality, width, cifar=False, classes=5):
    """pytorchcv's network of the same shape, with a pool for pictures of any size."""
    torch = pytest.importorskip("torch")
    module = pytest.importorskip("pytorchcv.models.resnext" + ("_cifar" if cifar else ""))
    channels = [[4 * n] * count for n, count in zip(widths, repeats, strict=True)]
    make = module.CIFARResNeXt if cifar else module.ResNeXt
    theirs = make(channels, 64, cardinality, width, num_classes=classes)
    theirs.features.final_pool = torch.nn.AdaptiveAvgPool2d(1)
    return oracle.Torch(theirs, names_of(ours))


FULL = {"repeats": (3, 4, 6, 3), "widths": (64, 128, 256, 512), "cardinality": 32, "width": 4}


@pytest.mark.parametrize(
    ("training", "dtype", "tolerance"), [(False, "float32", 1e-4), (True, "float64", 1e-8)]
)
def test_resnext50_equals_pytorchcv(training, dtype, tolerance):
    ours = build("resnext50_32x4d", classes=5)
    theirs = pytorchcv_of(ours, **FULL)
    oracle.assert_equal(ours, theirs, (2, 33, 33, 3), training=training, dtype=dtype, tolerance=tolerance)


@pytest.mark.parametrize(
    ("cardinality_width", "training", "dtype", "tolerance"),
    [(pair, False, "float32", 1e-4) for pair in [(1, 64), (2, 40), (4, 24), (8, 14), (64, 4), (32, 8)]]
    + [(pair, True, "float64", 1e-8) for pair in [(2, 40), (8, 14), (64, 4)]],
    ids=str,
)
def test_cardinalities_equal_pytorchcv(cardinality_width, training, dtype, tolerance):
    shape = {"repeats": (1, 2), "widths": (64, 128)}
    shape.update(zip(("cardinality", "width"), cardinality_width, strict=True))
    ours = build("resnext50_32x4d", classes=5, **shape)
    theirs = pytorchcv_of(ours, **shape)
    oracle.assert_equal(ours, theirs, (2, 33, 33, 3), training=training, dtype=dtype, tolerance=tolerance)


def test_a_shallow_network_equals_pytorchcv_in_float32_training():
    ours = build("resnext50_32x4d", classes=5, repeats=(1, 1), widths=(64, 128))
    theirs = pytorchcv_of(ours, repeats=(1, 1), widths=(64, 128), cardinality=32, width=4)
    oracle.assert_equal(ours, theirs, (8, 32, 32, 3), training=True)


@pytest.mark.parametrize(
    ("training", "dtype", "tolerance"), [(False, "float32", 1e-4), (True, "float64", 1e-8)]
)
def test_resnext29_cifar_equals_pytorchcv(training, dtype, tolerance):
    """On 8x8: among the many units of a larger picture there is one whose ReLU rounds to the other side, and
    then both are as far from the float64 gradients as from each other."""
    shape = {"repeats": (3, 3, 3), "widths": (64, 128, 256), "cardinality": 32, "width": 4}
    ours = build("resnext29_32x4d_cifar", classes=5)
    theirs = pytorchcv_of(ours, cifar=True, **shape)
    oracle.assert_equal(ours, theirs, (2, 8, 8, 3), training=training, dtype=dtype, tolerance=tolerance)


@pytest.mark.parametrize("shortcut", ["A", "C", "none"])
@pytest.mark.parametrize(
    ("training", "dtype", "tolerance"), [(False, "float32", 1e-4), (True, "float64", 1e-8)]
)
def test_shortcuts_equal_pytorchcv_with_them_put_in(shortcut, training, dtype, tolerance):
    """pytorchcv has option B only; its units get another ``identity_conv``."""
    torch = pytest.importorskip("torch")
    common = pytest.importorskip("pytorchcv.models.common")
    shape = {"repeats": (2, 2), "widths": (16, 32), "cardinality": 4, "width": 16}
    ours = build("resnext29_32x4d_cifar", classes=5, shortcut=shortcut, **shape)
    theirs = pytorchcv_of(ours, cifar=True, **shape)

    class Zeros(torch.nn.Module):  # subsampled, then zero channels; or nothing but zeros
        def __init__(self, channels, stride):
            super().__init__()
            self.channels, self.stride = channels, stride

        def forward(self, x):
            x = x[:, :, :: self.stride, :: self.stride]
            missing = self.channels - x.shape[1]
            return torch.cat([x, x.new_zeros(len(x), missing, *x.shape[2:])], 1) if shortcut == "A" else 0.0

    for stage, (inputs, wide) in enumerate(((64, 64), (64, 128)), 1):
        for number in (1, 2):
            unit = getattr(getattr(theirs.model.features, f"stage{stage}"), f"unit{number}")
            stride, channels = (stage if number == 1 else 1), (inputs if number == 1 else wide)
            unit.resize_identity = True
            if shortcut == "C":
                unit.identity_conv = common.conv1x1_block(channels, wide, stride=stride, activation=None)
            else:
                unit.identity_conv = Zeros(wide, stride)
    oracle.assert_equal(ours, theirs, (2, 9, 9, 3), training=training, dtype=dtype, tolerance=tolerance)

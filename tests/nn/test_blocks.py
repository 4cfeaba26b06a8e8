"""The residual block in all its options against its formula by hand; names and strides of stages."""

import numpy as np
import pytest
from oracle import shake

from minires.errors import ConfigError
from minires.models import build
from minires.models.resnet_v2 import ORDERS
from minires.nn import BatchNorm2d, Conv2d, Module, blocks
from minires.nn.blocks import Conv, Residual, ResidualBlock, basic, bottleneck, stack
from minires.nn.fuse import fuse
from minires.nn.module import Parameter
from minires.tensor import Tensor


def rng(seed=0):
    return np.random.default_rng(seed)


class Scaled(Module):
    """Stands for a gate: each channel times a number of its own."""

    def __init__(self, channels):
        super().__init__()
        self.factor = Parameter(rng(7).uniform(0.2, 0.9, channels).astype(np.float32))

    def forward(self, x):
        return x * self.factor


# -------------------------------------------------------------------------------- the formula, by hand


def convolution(x, w, stride, groups):
    """A convolution of padding kernel // 2 in plain NumPy, one place of the window at a time."""
    kernel, each = w.shape[0], w.shape[3] // groups
    padding = kernel // 2
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    height, width = ((side - kernel) // stride + 1 for side in x.shape[1:3])
    y = np.zeros((len(x), height, width, w.shape[3]))
    for g in range(groups):
        into = slice(g * each, (g + 1) * each)
        seen = x[..., g * w.shape[2] : (g + 1) * w.shape[2]]
        for i in range(kernel):
            for j in range(kernel):
                places = seen[:, i : i + stride * height : stride, j : j + stride * width : stride]
                y[..., into] += places @ w[i, j, :, into]
    return y


def layer(state, place, x, stride, groups=1):
    """Convolution and batch norm of branch ``place`` of block 3b, in inference."""
    y = convolution(x, state[f"res3b_branch{place}.weight"], stride, groups)
    y = y + state.get(f"res3b_branch{place}.bias", 0.0)
    gamma, beta, mean, var = (
        state[f"bn3b_branch{place}.{name}"] for name in ("gamma", "beta", "running_mean", "running_var")
    )
    return gamma * (y - mean) / np.sqrt(var + 1e-3) + beta


def formula(state, x, strides, *, groups=1, shortcut="identity", before=0, placement=None):
    """y = relu(F(x) + shortcut(x)), with a gate where ``placement`` says.

    ``shortcut`` is "identity", "none", "projection" or "zeros" (option A, with ``before`` zero channels in
    front); ``groups`` are those of a bottleneck's 3x3.
    """

    def gate(y, here):
        return y * state["res3b_se.factor"] if placement == here else y

    y = gate(x, "pre")
    for i, stride in enumerate(strides):
        y = layer(state, f"2{'abc'[i]}", y, stride, groups if (len(strides), i) == (3, 1) else 1)
        y = np.maximum(y, 0) if i < len(strides) - 1 else y
    y, stride = gate(y, "standard"), max(strides)
    if shortcut == "projection":
        x = layer(state, "1", x, stride)
    elif shortcut == "zeros":
        wide = np.zeros(y.shape)
        wide[..., before : before + x.shape[-1]] = x[:, ::stride, ::stride]
        x = wide
    added = 0.0 if shortcut == "none" else gate(x, "identity")
    return gate(np.maximum(y + added, 0), "post")


def check(branch, options, strides, channels=6, **by_hand):
    """The block equals the formula, on a picture of odd size, with every parameter at random."""
    gate = {"gate": Scaled(channels)} if by_hand.get("placement") == "pre" else {}
    if "placement" in by_hand and not gate:
        gate = {"gate": Scaled(branch[-1].channels)}
    block = ResidualBlock(channels, branch, stage=3, block="b", rng=rng(), **options, **gate)
    shake(block).astype("float64").eval()
    x = rng(1).standard_normal((2, 7, 5, channels))
    expected = formula(block.state_dict(), x, strides, **by_hand)
    y = block(Tensor(x)).numpy()
    assert y.shape == expected.shape == (2, -(-7 // block.stride), -(-5 // block.stride), block.out_channels)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-12)
    return block


@pytest.mark.parametrize(
    ("branch", "options", "strides", "by_hand"),
    [
        (basic(6), {"shortcut": "A"}, (1, 1), {}),
        (basic(6), {"shortcut": "B"}, (1, 1), {}),
        (basic(6), {"shortcut": "C"}, (1, 1), {"shortcut": "projection"}),
        (basic(6), {"shortcut": "none"}, (1, 1), {"shortcut": "none"}),
        (basic(9, stride=2), {"shortcut": "A"}, (2, 1), {"shortcut": "zeros"}),
        (basic(9, stride=2), {"shortcut": "A", "pad": "both"}, (2, 1), {"shortcut": "zeros", "before": 1}),
        (basic(6, stride=2), {"shortcut": "A"}, (2, 1), {"shortcut": "zeros"}),
        (basic(9), {"shortcut": "A"}, (1, 1), {"shortcut": "zeros"}),
        (basic(9, stride=2), {"shortcut": "B"}, (2, 1), {"shortcut": "projection"}),
        (basic(9), {"shortcut": "B"}, (1, 1), {"shortcut": "projection"}),
        (basic(4, stride=2), {"shortcut": "B"}, (2, 1), {"shortcut": "projection"}),
        (basic(9, stride=2), {"shortcut": "none"}, (2, 1), {"shortcut": "none"}),
        (basic(9, stride=2), {"bias": True}, (2, 1), {"shortcut": "projection"}),
        (basic(9, stride=2), {"projection": 3}, (2, 1), {"shortcut": "projection"}),
        (bottleneck(4, out=6), {"shortcut": "B"}, (1, 1, 1), {}),
        (bottleneck(4), {"shortcut": "B"}, (1, 1, 1), {"shortcut": "projection"}),
        (bottleneck(4, stride=2), {"bias": True}, (2, 1, 1), {"shortcut": "projection"}),
        (bottleneck(4, stride=2, stride_on="3x3"), {}, (1, 2, 1), {"shortcut": "projection"}),
        (bottleneck(4, stride=2, groups=2), {}, (2, 1, 1), {"shortcut": "projection", "groups": 2}),
        (bottleneck(4, stride=2), {"shortcut": "A"}, (2, 1, 1), {"shortcut": "zeros"}),
    ],
)
def test_block_is_the_formula(branch, options, strides, by_hand):
    check(branch, options, strides, **by_hand)


@pytest.mark.parametrize("placement", ["standard", "pre", "post", "identity"])
@pytest.mark.parametrize(
    ("branch", "shortcut", "strides", "by_hand"),
    [
        (bottleneck(4, out=6), "B", (1, 1, 1), {}),
        (bottleneck(4, stride=2), "B", (2, 1, 1), {"shortcut": "projection"}),
        (basic(9, stride=2), "A", (2, 1), {"shortcut": "zeros"}),
        (basic(9, stride=2), "none", (2, 1), {"shortcut": "none"}),
    ],
)
def test_gate_stands_where_placement_says(placement, branch, shortcut, strides, by_hand):
    if (placement, shortcut) == ("identity", "none"):
        with pytest.raises(ConfigError, match="block 3b: placement 'identity' needs a shortcut, not 'none'"):
            check(branch, {"shortcut": shortcut, "placement": placement}, strides, placement=placement)
        return
    options = {"shortcut": shortcut, "placement": placement}
    check(branch, options, strides, placement=placement, **by_hand)


def test_no_two_placements_are_one():
    x, found = Tensor(rng(1).standard_normal((2, 5, 5, 6)).astype(np.float32)), []
    for placement in ("standard", "pre", "post", "identity"):
        block = ResidualBlock(6, basic(6), stage=3, block="b", gate=Scaled(6), placement=placement, rng=rng())
        found.append(block(x).numpy())
    assert all(np.abs(a - b).max() > 0.1 for i, a in enumerate(found) for b in found[:i])


# ------------------------------------------------------------------------------- how a block is made


def make(branch=None, in_channels=6, **options):
    options = {"stage": 3, "block": "b", "rng": rng(), **options}
    return ResidualBlock(in_channels, branch or bottleneck(4, stride=2), **options)


def test_layers_have_the_released_names():
    block = make(gate=Scaled(16), bias=True)
    convolutions = [f"res3b_branch{place}.{leaf}" for place in ("2a", "2b", "2c", "1")
                    for leaf in ("weight", "bias")]  # fmt: skip
    norms = [f"bn3b_branch{place}.{leaf}" for place in ("2a", "2b", "2c", "1") for leaf in ("gamma", "beta")]
    assert {name for name, _ in block.named_parameters()} == {*convolutions, *norms, "res3b_se.factor"}
    assert not [name for name, _ in make().named_parameters() if name.endswith("bias")]
    assert not [name for name, _ in make(shortcut="A").named_parameters() if "branch1" in name]


def test_last_gamma_is_that_of_the_last_batch_norm_of_the_branch_alone():
    starts = {name: set(p.data) for name, p in make(last_gamma=0.25).named_parameters() if "gamma" in name}
    assert starts == {
        "bn3b_branch2a.gamma": {1.0}, "bn3b_branch2b.gamma": {1.0}, "bn3b_branch2c.gamma": {0.25},
        "bn3b_branch1.gamma": {1.0},
    }  # fmt: skip


def test_kernel_of_the_projection():
    assert [make(projection=k).res3b_branch1.weight.shape for k in (1, 3)] == [(1, 1, 6, 16), (3, 3, 6, 16)]


def test_norm_options_reach_every_batch_norm():
    block = make(norm={"convention": "torch", "momentum": 0.2, "eps": 0.5})
    norms = [module for _, module in block.named_modules() if isinstance(module, BatchNorm2d)]
    assert {(bn.convention, bn.momentum, bn.eps) for bn in norms} == {("torch", 0.2, 0.5)}
    assert len(norms) == 4


def test_zeros_draws_nothing_at_random():
    generator = rng()
    before = generator.bit_generator.state
    block = make(initializer="zeros", rng=generator)
    assert generator.bit_generator.state == before
    assert not any(p.data.any() for name, p in block.named_parameters() if name.endswith("weight"))
    assert make().res3b_branch1.weight.data.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shortcut": "D"}, "shortcut must be one of 'A', 'B', 'C', 'none', not 'D'"),
        ({"pad": "before"}, "pad must be one of 'after', 'both', not 'before'"),
        ({"placement": "middle"}, "placement must be one of 'standard', 'pre', 'post', 'identity', not 'mid"),
        ({"shortcut": "A", "in_channels": 17}, "block 3b: shortcut 'A' adds .* 17 come in .* gives 16"),
        ({"norm": {"convention": "caffe"}}, "convention must be one of 'keras', 'torch', not 'caffe'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ConfigError, match=message):
        make(**options)


def test_bad_stride_on():
    with pytest.raises(ConfigError, match="stride_on must be one of '1x1', '3x3', not '5x5'"):
        bottleneck(4, stride_on="5x5")


def test_branches():
    assert basic(9, stride=2) == (Conv(9, 3, 2), Conv(9, 3, 1))
    assert bottleneck(4, stride=2) == (Conv(4, 1, 2), Conv(4, 3, 1), Conv(16, 1, 1))
    assert bottleneck(4, stride=2, stride_on="3x3", groups=2, out=9) == (
        Conv(4, 1, 1), Conv(4, 3, 2, groups=2), Conv(9, 1, 1),
    )  # fmt: skip


# ----------------------------------------------------------------------------------------- the stages


def stages(repeats, widths=(4, 5, 6, 7)):
    """What stack() asks for: {name: (channels in, width, stage, block, stride)}."""

    class Asked:
        def __init__(self, in_channels, width, *, stage, block, stride):
            self.asked, self.out_channels = (in_channels, width, stage, block, stride), 4 * width

    return {name: found.asked for name, found in stack(3, widths, repeats, Asked).items()}


def test_stack_names_strides_and_channels():
    assert stages((2, 1, 1), (4, 5, 6)) == {
        "res2a": (3, 4, 2, "a", 1),
        "res2b": (16, 4, 2, "b", 1),
        "res3a": (16, 5, 3, "a", 2),
        "res4a": (20, 6, 4, "a", 2),
    }


@pytest.mark.parametrize(
    ("repeats", "last"),
    [
        ((3, 4, 6, 3), ["2c", "3d", "4f", "5c"]),  # as in the released ResNet-50
        ((3, 4, 23, 3), ["2c", "3b3", "4b22", "5c"]),  # -101
        ((3, 8, 36, 3), ["2c", "3b7", "4b35", "5c"]),  # -152
        ((18, 18, 18), ["2b17", "3b17", "4b17"]),
    ],
)
def test_blocks_have_the_released_names(repeats, last):
    names = list(stages(repeats, (4, 5, 6, 7)[: len(repeats)]))
    assert len(names) == len(set(names)) == sum(repeats)
    ends = np.cumsum(repeats)
    assert [names[end - 1] for end in ends] == [f"res{name}" for name in last]
    assert [names[end - count] for end, count in zip(ends, repeats, strict=True)] == [
        f"res{stage}a" for stage in range(2, 2 + len(repeats))
    ]


@pytest.mark.parametrize("repeats", [(1, 1), (1, 1, 0), (), 3, "111", (1, 1, 1.0), None])
def test_bad_repeats(repeats):
    with pytest.raises(ConfigError, match="repeats must give each of the 3 stages at least one block, not "):
        stages(repeats, (4, 5, 6))


@pytest.mark.parametrize("widths", [(), 4, (4, 0, 6), (4, "5", 6), None])
def test_bad_widths(widths):
    with pytest.raises(ConfigError, match="widths must be a list of at least one width, each at least 1"):
        blocks.check_stages(widths, (1, 1, 1))


def test_an_identity_block_needs_as_many_channels_as_it_gives():
    with pytest.raises(ConfigError, match="block 2b: the input has 6 channels, but the branch gives 8"):
        blocks.identity_block(6, (2, 3, 8), stage=2, block="b")


BLOCKS = {
    "plain": ("plain20_cifar", {}),
    "A": ("resnet20_cifar", {}),
    "C": ("resnet20_cifar", {"shortcut": "C"}),
    "no batch norm": ("resnet20_cifar", {"shortcut": "B", "bn": False}),
    "plain, no batch norm": ("plain20_cifar", {"bn": False}),
    "no gates": ("se_resnet56_cifar", {"reduction": None, "repeats": (1, 1, 1)}),
    **{
        f"gate {place}": ("se_resnet56_cifar", {"repeats": (1, 1, 1), "placement": place})
        for place in ("standard", "pre", "post", "identity")
    },
    **{order: ("preresnet110_cifar", {"repeats": (2, 1, 1), "order": order}) for order in ORDERS},
    "exclusive": (
        "preresnet110_cifar", {"repeats": (2, 1, 1), "order": "original", "gating": "exclusive"}
    ),
}  # fmt: skip


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", BLOCKS)
def test_the_parts_of_a_block_joined_are_what_it_gives(name, training):
    model, options = BLOCKS[name]
    rng = np.random.default_rng(0)
    blocks = [one for one in build(model, **options).modules() if isinstance(one, Residual)]
    assert len(blocks) > 2
    for block in blocks:
        block.train(training)
        x = Tensor(rng.standard_normal((3, 4, 4, block.in_channels)).astype("float32"))
        branch, shortcut = block.parts(x)
        assert (shortcut is None) == name.startswith("plain")
        assert (branch.data < 0).any() == (name != "relu_before_add")  # else no ReLU stands before
        assert np.allclose(block.join(branch, shortcut).data, block(x).data, atol=1e-6)


def test_the_parts_of_a_folded_block_are_those_of_the_block():
    model = build("resnet20_cifar").eval()
    x = Tensor(np.random.default_rng(0).standard_normal((2, 8, 8, 16)).astype("float32"))
    for before, after in zip(model.res2a.parts(x), fuse(model).res2a.parts(x), strict=True):
        assert np.allclose(before.data, after.data, atol=1e-5)


def test_without_batch_norm_every_convolution_has_a_bias_and_there_are_no_statistics():
    model = build("resnet20_cifar", bn=False, shortcut="B")
    convolutions = [one for one in model.modules() if isinstance(one, Conv2d)]
    assert len(convolutions) == 21 and all(one.bias is not None for one in convolutions)
    assert not list(model.named_buffers()) and not [n for n, _ in model.named_modules() if n.startswith("bn")]
    with pytest.raises(ConfigError, match="bn"):
        build("resnet20_cifar", bn="no")


@pytest.mark.parametrize(
    ("model", "option", "value"),
    [("resnet20_cifar", "last_gamma", 0.0), ("resnet20_cifar", "bn_momentum", 0.9),
     ("resnet50", "bn_eps", 1e-3), ("vgg16", "bn_momentum", 0.9)],
)  # fmt: skip
def test_an_option_of_batch_norms_that_are_left_out_is_refused(model, option, value):
    with pytest.raises(ConfigError, match=f"{option} is of a batch norm, and bn=False leaves none"):
        build(model, bn=False, **{option: value})
    build(model, bn=True, **{option: value})


def test_without_a_reduction_a_network_has_no_gates_and_is_the_plain_one():
    x = Tensor(np.random.default_rng(0).standard_normal((2, 32, 32, 3)).astype("float32"))
    without = build("se_resnet56_cifar", reduction=None, seed=3)
    same = build("resnet56_cifar", shortcut="B", seed=3)
    assert without.state_dict().keys() == same.state_dict().keys()
    assert np.allclose(without(x).data, same(x).data, atol=1e-6)
    vgg = build("se_vgg16_bn", reduction=None, initializer="zeros", widths=[8] * 5, hidden=8)
    same = build("vgg16_bn", initializer="zeros", widths=[8] * 5, hidden=8)
    assert vgg.state_dict().keys() == same.state_dict().keys()


@pytest.mark.parametrize("order", ORDERS)
def test_the_last_norm_of_a_second_version_can_be_chosen_by_itself(order):
    def last(**options):
        model = build("preresnet110_cifar", order=order, repeats=(1, 1, 1), **options)
        return [name for name, _ in model.children()][-3]

    assert last(last_norm=True) == "post_bn" and last(last_norm=False) == "res4a"
    usual = {"full": "post_bn", "relu_only": "post_relu"}
    assert last() == last(last_norm=None) == usual.get(order, "res4a")

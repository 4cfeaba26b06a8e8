"""
08 · Bottlenecks, and the shortcuts A, B and C
==============================================

You count weights and MACs (multiply-accumulates) of the two kinds of residual block and of the three kinds of
shortcut, and see which pixels a block reads.

Lesson 06 stepped through one block, lesson 07 used fifty layers of them. Here you see why the block has the
form it has. Every choice is a trade between three things: how much it computes, how many weights it has, and
what it lets through. The first two can be counted exactly, and the paper's tables can be checked.
"""

# %%
# ``basic`` and ``bottleneck`` describe the branch of a block, its chain of convolutions. ``ResidualBlock``
# makes a block of one, and ``summarize`` counts.

import matplotlib.pyplot as plt
import numpy as np

from minires import Tensor
from minires.data import load
from minires.exercises import check
from minires.inspect import summarize
from minires.models import build
from minires.nn import ResidualBlock
from minires.nn.blocks import basic, bottleneck
from minires.ops.pad_channels import pad_channels

# %%
# The cost of a convolution
# -------------------------
#
# A convolution with a K x K kernel, C channels in and O channels out has ``K K C O`` weights. Each weight is
# used once at every place of the output, so it costs ``H W`` times as many MACs. Both grow with
# the product of C and O: twice the channels on both sides is four times the cost.
#
# The deep stages of a network have many channels. Two 3x3 convolutions on 256 channels, which is a basic
# block there, cost:

channels = 256
two_3x3 = 2 * (3 * 3 * channels * channels)
print(f"basic block on {channels} channels: {two_3x3:,} weights")
assert two_3x3 == 1_179_648

# %%
# The bottleneck
# --------------
#
# So do the expensive thing on few channels. A *bottleneck* first reduces the channels to a quarter with a 1x1
# convolution, which is a matrix product at each pixel (lesson 03). It does the 3x3 convolution on those few,
# and a second 1x1 convolution restores the channels, so that the shortcut fits.

rng = np.random.default_rng(0)
block = ResidualBlock(channels, bottleneck(64), stage=2, block="b", rng=rng)
rows = [layer for layer in summarize(block, (56, 56, channels)).layers if layer.macs]
for row in rows:
    print(
        f"{row.name:<16} {row.kind:<10} {str(row.output):<15} {row.params:>7,} weights {row.macs:>12,} macs"
    )

by_hand = {"1x1, reduce": 1 * 256 * 64, "3x3": 9 * 64 * 64, "1x1, restore": 1 * 64 * 256}
assert [row.params for row in rows] == list(by_hand.values())
print(f"together {sum(by_hand.values()):,} weights, {two_3x3 / sum(by_hand.values()):.1f} times fewer")
assert sum(by_hand.values()) == 69_632 and round(two_3x3 / 69_632, 1) == 16.9

# %%
# You may read that a bottleneck saves "a factor of about 20" here. Now you know the figure. In the picture,
# the whole of the lower bar stands for the three layers of the block above, a colour each:

fig, ax = plt.subplots(figsize=(8, 2.4), layout="constrained")
parts = {"basic: 3x3, 3x3": {"3x3": two_3x3 // 2, " 3x3": two_3x3 // 2}, "bottleneck: 1x1, 3x3, 1x1": by_hand}
for name, counts in parts.items():
    start = 0
    for i, count in enumerate(counts.values()):
        ax.barh(name, count / 1000, left=start / 1000, color=("#0072b2", "#e69f00", "#56b4e9")[i])
        start += count
ax.invert_yaxis()
_ = ax.set(xlabel="thousand weights, 256 channels in and out")

# %%
# What is saved can be spent on depth. ResNet-34 has basic blocks. Put a bottleneck in the place of each, and
# you have ResNet-50: half as many layers again, and four times as many channels between the blocks. The
# weights are all zero here, as only their number matters.


def count(name, size=224, **options):
    """The summary of a model: its layers, parameters and MACs."""
    return summarize(build(name, initializer="zeros", **options), (size, size, 3))


resnet34, resnet50 = count("resnet34"), count("resnet50")
for name, model in (("ResNet-34", resnet34), ("ResNet-50", resnet50)):
    print(f"{name}: {model.params_trainable:,} parameters trained, {model.macs:,} MACs")

assert (resnet34.macs // 10**8, resnet50.macs // 10**8) == (36, 38)
assert 1.05 < resnet50.macs / resnet34.macs < 1.06

# %%
# The paper's table 1 says 3.6 and 3.8 times 10⁹: it cuts off. Its error on ImageNet falls from
# 24.52% (34 layers, table 3, shortcut B) to 22.85% (50 layers), for some five percent more work.

# %%
# Where the halving stands
# ------------------------
#
# The first block of a stage halves height and width. In the paper the first 1x1 convolution does it, with
# stride 2, and so does the 1x1 convolution of the shortcut. A 1x1 kernel sees one pixel; with stride 2 it
# sees every second pixel of every second row. Ask the gradient which pixels were read at all: where no output
# depends on a pixel, its gradient is exactly zero.


def pixels_read(stride_on, shortcut):
    """A picture of 8x8 pixels, True where the block's output depends on the pixel."""
    branch = bottleneck(16, stride=2, stride_on=stride_on)
    block = ResidualBlock(32, branch, stage=3, block="a", shortcut=shortcut, rng=np.random.default_rng(0))
    x = Tensor(np.random.default_rng(1).standard_normal((1, 8, 8, 32)).astype("float32"), requires_grad=True)
    y = block(x)
    y.backward(np.random.default_rng(2).standard_normal(y.shape))
    return (x.grad != 0).any(axis=(0, 3))


read = {stride_on: pixels_read(stride_on, "B") for stride_on in ("1x1", "3x3")}
fig, axes = plt.subplots(1, 2, figsize=(6.4, 3.2), layout="constrained")
for ax, (stride_on, seen) in zip(axes, read.items(), strict=True):
    ax.imshow(seen, cmap="cividis", vmin=0, vmax=1)
    ax.set(title=f"stride on the {stride_on}", xlabel="column (pixels)", ylabel="row (pixels)")

print({stride_on: f"{seen.mean():.0%} of the pixels are read" for stride_on, seen in read.items()})
assert read["1x1"].mean() == 0.25 and read["3x3"].all()

# %%
# Yellow pixels are read. With the stride on the 1x1, as in the paper, three quarters of the pixels that the
# stage before has computed are thrown away unseen. Later code moved the stride to the 3x3 (often called
# "v1.5"; it is what fb.resnet.torch and torchvision do). The weights are the same, and their number; but the
# first 1x1 now works at full size, which costs:

v1_5 = count("resnet50", stride_on="3x3")
extra = v1_5.macs - resnet50.macs
print(f"{extra:,} MACs more, {extra / resnet50.macs:.1%}")
assert v1_5.params_total == resnet50.params_total
assert extra == 231_211_008

# %%
# Weights trained for one form fit the other and give wrong results without an error. When you compare two
# "ResNet-50", ask where their stride is.

# %%
# Three shortcuts
# ---------------
#
# Where a block changes the shape, x cannot be added to F(x) as it is. The paper has three answers:
#
# * **A**: take every second pixel of x, and append channels of zeros. No weights.
# * **B**: a 1x1 convolution with stride 2, and a batch norm: a *projection*. Where the shape stays, x itself.
# * **C**: a projection in every block, also where x would fit.
#
# Option A is an operation of its own, ``pad_channels``. Here it takes a picture with its three channels, red,
# green and blue, to half the size and six channels.

picture = load("hands", size=32).test.images[5:6].astype("float32") / 255
padded = pad_channels(Tensor(picture), 6, stride=2).data
print("in", picture.shape, " out", padded.shape)
assert np.array_equal(padded[..., :3], picture[:, ::2, ::2]) and not padded[..., 3:].any()

fig, axes = plt.subplots(2, 6, figsize=(8, 3), layout="constrained")
for ax in axes.flat:
    ax.axis("off")
for row, array in zip(axes, (picture, padded), strict=True):
    for channel in range(array.shape[-1]):
        row[channel].axis("on")
        row[channel].imshow(array[0, :, :, channel], cmap="gray", vmin=0, vmax=1)
        row[channel].set(title=f"channel {channel}", xticks=[0, len(array[0]) - 1], yticks=[])

# %%
# Above the three channels that come in, below the six that go out. The last three are black: zeros. In these
# places the sum is the branch alone, so there the block is no residual block. That is the paper's own guess
# at why A is a little worse than B.

# %%
# What they cost
# --------------
#
# ResNet-34 with each of them, counted here; and the error the paper measured (table 3: top-1 on ImageNet, ten
# crops). The plain network without shortcuts is the first row.

errors = {"none": 28.54, "A": 25.03, "B": 24.52, "C": 24.19}  # from the paper, not measured here
counted = {shortcut: count("resnet34", shortcut=shortcut) for shortcut in errors}
for shortcut, model in counted.items():
    size = f"{model.params_trainable:,} parameters trained, {model.macs:,} MACs"
    print(f"{shortcut:<5} {size}, in the paper {errors[shortcut]:.2f}% error")

assert (
    counted["A"].params_total == counted["none"].params_total and counted["A"].macs == counted["none"].macs
)
assert counted["B"].macs < 1.01 * counted["A"].macs
assert counted["C"].macs < 1.06 * counted["A"].macs
assert round(errors["none"] - errors["A"], 2) == 3.51 and round(errors["A"] - errors["C"], 2) == 0.84

# %%
# From no shortcut to A the error falls by 3.51 points, at no cost at all. From A to C it falls by 0.84
# points. *That there is a shortcut* matters; which one, little. Do you believe it? ``minires lab shortcuts``,
# lab P3, trains a small network with each, from three seeds.
#
# With bottlenecks the price of C is another. There the shortcut joins the two wide ends of the block, so a
# projection is as expensive as the rest of the block together:

wide = ResidualBlock(256, bottleneck(64), stage=2, block="b", shortcut="C", rng=rng)
weights = sum(layer.params for layer in summarize(wide, (56, 56, 256)).layers if layer.macs)
resnet50_c = count("resnet50", shortcut="C")
print(f"a block with identity: {sum(by_hand.values()):,} weights, with a projection: {weights:,}")
print(f"ResNet-50 with C has {resnet50_c.macs / resnet50.macs:.2f} times the MACs")
assert 1.9 < weights / sum(by_hand.values()) < 2
assert 1.5 < resnet50_c.macs / resnet50.macs < 1.7

# %%
# The paper says "doubled", of such a block. So ResNet-50 and deeper use B. Lesson 09 gives a better reason to
# leave the shortcut alone: whatever stands on it is in the way of the gradient.
#
# One trap, if you compare small networks: the paper's networks for CIFAR-10 use option A. Many that are
# called ResNet-20 have projections instead.

with_a, with_b = count("resnet20_cifar", size=32), count("resnet20_cifar", size=32, shortcut="B")
print(f"ResNet-20 with projections: {with_b.params_trainable - with_a.params_trainable:,} parameters more")
assert with_b.params_trainable - with_a.params_trainable == 2_752

# %%
# Exercises
# ---------

# %%
# **Exercise 1.** How many weights do the three convolutions of a bottleneck have, with ``channels`` in and
# out and ``width`` channels in the middle?


def your_bottleneck_weights(channels, width):
    """The weights of 1x1, 3x3 and 1x1 together."""
    ...


def weights_counted(channels, width):
    branch = bottleneck(width, out=channels)
    block = ResidualBlock(channels, branch, stage=2, block="b", rng=np.random.default_rng(0))
    return sum(parameter.size for parameter in block.parameters() if parameter.ndim == 4)


check(
    "right for 256 channels and width 64",
    lambda: your_bottleneck_weights(256, 64) == weights_counted(256, 64),
)
check(
    "right for 100 channels and width 30",
    lambda: your_bottleneck_weights(100, 30) == weights_counted(100, 30),
)

# %%
# **Exercise 2.** Write shortcut A with NumPy alone: x has shape (N, H, W, C); take every ``stride``-th pixel
# in both directions, and append zeros behind the channels until there are ``channels``.


def your_shortcut_a(x, channels, stride):
    """Shape (N, ceil(H / stride), ceil(W / stride), channels)."""
    ...


features = np.random.default_rng(4).standard_normal((2, 7, 8, 3)).astype("float32")
check(
    "the shape is right, also for an odd height",
    lambda: your_shortcut_a(features, 5, 2).shape == (2, 4, 4, 5),
)
check(
    "it gives the values of pad_channels",
    lambda: np.array_equal(your_shortcut_a(features, 5, 2), pad_channels(Tensor(features), 5, stride=2).data),
)
check(
    "with stride 1 and no new channels it changes nothing",
    lambda: np.array_equal(your_shortcut_a(features, 3, 1), features),
)

# %%
# **Exercise 3.** The paper wants a bottleneck on 256 channels to cost about as much as a basic block on 64.
# What is the largest width for which the bottleneck has *no more* weights than that basic block? Compare it
# with the width the paper chose.

your_width = ...


def weights_of(channels, branch):
    block = ResidualBlock(channels, branch, stage=2, block="b", rng=np.random.default_rng(0))
    return sum(parameter.size for parameter in block.parameters() if parameter.ndim == 4)


check(
    "no more weights than the basic block",
    lambda: weights_of(256, bottleneck(your_width, out=256)) <= weights_of(64, basic(64)),
)
check(
    "one channel more would be too many",
    lambda: weights_of(256, bottleneck(your_width + 1, out=256)) > weights_of(64, basic(64)),
)

# %%
# What you now know
# -----------------
#
# * A bottleneck does its 3x3 convolution on a quarter of the channels, and costs a fraction of a basic block.
# * What it saves buys depth: ResNet-50 computes hardly more than ResNet-34.
# * With the stride on a 1x1 convolution three quarters of the pixels are never read; "v1.5" moves it.
# * Shortcut A has no weights, B projects where shapes change, C projects everywhere. In the paper's table
#   having one matters far more than which; lab P3 tries it.
# * Around a bottleneck a projection costs about as much as the block itself.

"""
11 · VGG, ResNeXt, DenseNet, SENet
==================================

You meet four relatives of the ResNet, one idea each, and put every idea to a test that you can run.

VGG came before: small kernels, and many of them. The other three came after, and each changed one thing in
the residual block. ResNeXt splits the branch into paths, DenseNet puts side by side what ResNet adds, and
SENet lets the network look at the whole picture and weigh its channels.
"""

# %%
# Operations, layers and models you know; new are ``concat``, ``DenseBuffer`` and ``SqueezeExcitation``.

import matplotlib.pyplot as plt
import numpy as np

from minires import Tensor, no_grad
from minires.data import Loader, Normalize, find, load
from minires.exercises import check
from minires.inspect import summarize
from minires.models import build
from minires.models.resnext import split_paths
from minires.nn import ResidualBlock, SqueezeExcitation
from minires.nn.blocks import bottleneck
from minires.nn.squeeze_excitation import Scale
from minires.ops.avg_pool2d import global_avg_pool2d
from minires.ops.concat import concat
from minires.ops.conv2d import conv2d
from minires.ops.cross_entropy import cross_entropy
from minires.ops.dense_buffer import DenseBuffer
from minires.ops.relu import relu
from minires.ops.sigmoid import sigmoid
from minires.optim import Adam

# %%
# First a look from afar. Counting needs no trained weights, so all start at zero here. The picture shows one
# network of each family, for ImageNet's pictures of 224x224 and 1000 classes.

family = ["vgg16", "resnet50", "resnext50_32x4d", "densenet121", "se_resnet50"]
counts = {name: summarize(build(name, initializer="zeros"), (224, 224, 3)) for name in family}

fig, (left, right) = plt.subplots(1, 2, figsize=(9, 2.8), layout="constrained", sharey=True)
left.barh(family, [count.params_trainable / 1e6 for count in counts.values()], color="#0072b2")
left.set(xlabel="trained parameters (millions)")
left.invert_yaxis()
right.barh(family, [count.macs / 1e9 for count in counts.values()], color="#e69f00")
right.set(xlabel="MACs per picture (10⁹)")

for name, count in counts.items():
    print(f"{name:16} {count.params_trainable:12,} parameters  {count.macs:15,} MACs")
assert counts["vgg16"].params_trainable > 5 * counts["resnet50"].params_trainable

# %%
# VGG: small kernels, and many
# ----------------------------
#
# Before VGG, networks began with kernels of 11x11 or 7x7. VGG has 3x3 only. The argument: two 3x3 in a row
# see 5x5 pixels, three see 7x7. They do it with fewer weights, and with a ReLU after each. Simonyan and
# Zisserman, arXiv:1409.1556.
#
# Test it: put a 1 at one output place and ask for the gradient of the picture. It is not zero just where the
# output looks. The kernels are all ones here, so the gradient even counts the ways from a pixel to the
# output.

kernel = Tensor(np.ones((3, 3, 1, 1)))
fig, axes = plt.subplots(1, 3, figsize=(8, 2.8), layout="constrained")
for depth, ax in enumerate(axes, 1):
    picture = Tensor(np.zeros((1, 11, 11, 1)), requires_grad=True)
    y = picture
    for _ in range(depth):
        y = conv2d(y, kernel, padding=1)
    upstream = np.zeros(y.shape)
    upstream[0, 5, 5, 0] = 1
    y.backward(upstream)
    ways = picture.grad[0, :, :, 0]
    image = ax.imshow(np.where(ways > 0, ways / ways.max(), np.nan), cmap="viridis", vmin=0, vmax=1)
    ax.set(title=f"{depth} x 3x3: {9 * depth} weights", xlabel="column (pixels)", ylabel="row (pixels)")

    side = 2 * depth + 1
    assert (ways > 0).sum() == side**2 and (ways[5 - depth : 6 + depth, 5 - depth : 6 + depth] > 0).all()
    assert ways[5 - depth, 5 - depth] == 1
fig.colorbar(image, ax=axes, label="ways (share of the most)")
print(f"three layers: {ways[5, 5]:.0f} ways from the middle pixel, {ways[2, 2]:.0f} from the corner")

# %%
# Three layers see 7x7 pixels with 27 weights in place of 49; with C channels in and out it is 27 C² against
# 49 C². And the middle is seen along many ways, the corner along one.
#
# VGG-16 has 138 million parameters, as table 2 of the paper says. Most of them are not in the convolutions:
# the first dense layer alone, which reads 7x7x512 numbers, has more than all other layers together. ResNet
# took the average of the picture in its place, and that is most of the difference you saw above.

vgg = counts["vgg16"]
fc6 = next(layer for layer in vgg.layers if layer.name == "fc6")
print(f"fc6: {fc6.params:,} of {vgg.params_total:,} parameters")
assert round(vgg.params_trainable / 1e6) == 138 and fc6.params > vgg.params_total / 2
assert fc6.params > 0.5 * (vgg.params_total - counts["resnet50"].params_total)

# %%
# ResNeXt: many narrow paths
# --------------------------
#
# The branch of a bottleneck block (lesson 08) becomes C paths, each of them d channels wide, and their
# outputs are summed. Xie et al., arXiv:1611.05431, call C the *cardinality*, and found that more paths help
# more than more depth or width at the same cost. (VGG by depth is lab P11, and cardinality lab P8.)
#
# Nobody computes the paths one by one. A *grouped* convolution does it at once: the channels are cut into
# groups, and each output reads its own group only. It equals C small convolutions side by side:

rng = np.random.default_rng(0)
x = Tensor(rng.normal(size=(2, 8, 8, 16)))
w = Tensor(rng.normal(size=(3, 3, 4, 16)))  # each output reads 16 / 4 channels

grouped = conv2d(x, w, padding=1, groups=4)
paths = [conv2d(x[..., i : i + 4], w[..., i : i + 4], padding=1) for i in (0, 4, 8, 12)]
print("largest difference:", np.abs(grouped.numpy() - concat(paths).numpy()).max())
assert np.allclose(grouped.numpy(), concat(paths).numpy())

# %%
# Written as an ordinary convolution, the same kernel is full of zeros. The picture shows its middle place as
# a matrix, channels in by channels out: on the left all 256 weights of a dense kernel, on the right what four
# groups leave of them, a quarter.

full = np.zeros((3, 3, 16, 16))
for i in (0, 4, 8, 12):
    full[:, :, i : i + 4, i : i + 4] = w.numpy()[..., i : i + 4]
assert np.allclose(conv2d(x, Tensor(full), padding=1).numpy(), grouped.numpy())
assert np.count_nonzero(full) == full.size / 4

dense = rng.normal(size=(16, 16))
fig, axes = plt.subplots(1, 2, figsize=(7, 3), layout="constrained")
for ax, matrix, title in zip(axes, (dense, full[1, 1]), ("dense", "4 groups"), strict=True):
    image = ax.imshow(matrix, cmap="PuOr", vmin=-3, vmax=3)
    ax.set(title=title, xlabel="channel out", ylabel="channel in")
fig.colorbar(image, ax=axes, label="weight")

# %%
# The paper draws three forms of its block: separate branches, early concatenation, grouped convolution. They
# are one function. Here is a small ResNeXt in two forms with the same weights:

small = {"repeats": [1], "widths": [64], "cardinality": 4, "width": 16}
one = build("resnext29_32x4d_cifar", form="grouped", **small)
many = build("resnext29_32x4d_cifar", form="branches", **small)
many.load_state_dict(split_paths(one.state_dict(), 4, "branches"))

pictures = Tensor(rng.normal(size=(2, 16, 16, 3)).astype(np.float32))
with no_grad():
    difference = np.abs(one.eval()(pictures).numpy() - many.eval()(pictures).numpy()).max()
print(f"grouped: {len(list(one.parameters()))} arrays of weights, ", end="")
print(f"branches: {len(list(many.parameters()))}; difference of the outputs {difference:.1e}")
assert difference < 1e-4

# %%
# Table 1 of the paper: ResNeXt-50 (32x4d) has 25.0 million parameters, ResNet-50 has 25.5. For about as many
# MACs it has twice the channels in its middle layers.

middle = {
    name: next(layer.output[-1] for layer in counts[name].layers if layer.name == "res2a_branch2b")
    for name in ("resnet50", "resnext50_32x4d")
}
print("channels of res2a_branch2b:", middle)
assert middle["resnext50_32x4d"] == 2 * middle["resnet50"]
assert abs(counts["resnext50_32x4d"].macs / counts["resnet50"].macs - 1) < 0.12
assert abs(counts["resnext50_32x4d"].params_trainable / 1e6 - 25.0) < 0.1
assert abs(counts["resnet50"].params_trainable / 1e6 - 25.5) < 0.1

# %%
# DenseNet: side by side in place of added
# ----------------------------------------
#
# A residual block *adds* to what is there. A dense layer puts its few new channels *beside* it, and the next
# layer reads everything so far::
#
#     ResNet      x -> x + F(x)
#     DenseNet    x -> [x, F(x)]
#
# Each layer gives only k channels, the *growth rate*. Huang et al., arXiv:1608.06993. The picture shows who
# reads what in a block of six layers: a bar is what a layer reads, in the colours of those who made it.

start, growth, layers = 24, 12, 6
fig, ax = plt.subplots(figsize=(8, 3), layout="constrained")
colors = plt.get_cmap("viridis")(np.linspace(0, 1, layers + 1))
for layer in range(1, layers + 2):
    made = [start] + [growth] * (layer - 1)
    below = np.cumsum([0, *made[:-1]])
    ax.bar(layer, made, bottom=below, color=colors[: len(made)], edgecolor="white")
ax.set(xlabel="layer", ylabel="channels read", xticks=range(1, layers + 2))
_ = ax.set_xticklabels([*range(1, layers + 1), "next"])

assert below[-1] + made[-1] == start + layers * growth

# %%
# To put side by side means to copy: layer after layer, the whole history is written anew, and the tape keeps
# every copy. minires keeps one array with room for all, and each layer writes behind the others. What was
# read once never changes, so this is safe, and the numbers are the same:

news = [Tensor(rng.normal(size=(2, 8, 8, growth)), requires_grad=True) for _ in range(layers)]
x = Tensor(rng.normal(size=(2, 8, 8, start)), requires_grad=True)
upstream = rng.normal(size=(2, 8, 8, start + layers * growth))

copied = x
for new in news:
    copied = concat([copied, new])
copied.backward(upstream)
by_copies = [x.grad, *(new.grad for new in news)]

for tensor in (x, *news):
    tensor.grad = None
history = DenseBuffer(x, room=start + layers * growth)
for new in news:
    history.append(new)
history.latest.backward(upstream)

assert np.array_equal(history.latest.numpy(), copied.numpy())
for tensor, gradient in zip((x, *news), by_copies, strict=True):
    assert np.array_equal(tensor.grad, gradient)

# %%
# What it saves shows in a whole network, DenseNet-BC with 100 layers and k = 12. Table 2 of the paper gives
# it 0.8 million parameters. Its error beside that of residual networks of as many is lab P9.

held = {}
for shared in (True, False):
    network = build("densenet_bc100_k12_cifar", shared=shared, initializer="zeros")
    counted = summarize(network, (32, 32, 3), memory=True)
    held[shared] = counted.saved / 2**20
print(f"parameters: {counted.params_trainable:,}")
print(f"kept for the backward, per picture: {held[True]:.1f} MiB shared, {held[False]:.1f} MiB copied")
assert round(counted.params_trainable / 1e6, 1) == 0.8 and held[True] < 0.8 * held[False]

# %%
# SENet: weigh the channels
# -------------------------
#
# A convolution sees a few pixels. *Squeeze and excitation* looks at the whole picture: the mean of each
# channel goes through two small dense layers and a sigmoid, and what comes out, one number between 0 and 1
# for each channel, scales that channel. Hu et al., arXiv:1709.01507::
#
#     z = mean of x over the picture               C numbers
#     s = sigmoid(relu(z w1 + b1) w2 + b2)         C -> C / r -> C
#     y = x * s

gate = SqueezeExcitation(16, reduction=4, rng=rng)
x = Tensor(rng.normal(size=(2, 8, 8, 16)).astype(np.float32))
with no_grad():
    s = sigmoid(gate.expand(relu(gate.reduce(global_avg_pool2d(x)))))
    y = gate(x)
print("gates of the first picture:", np.round(s.numpy()[0], 2))
assert np.allclose(y.numpy(), x.numpy() * s.numpy()[:, None, None, :], atol=1e-6)

# %%
# It stands at the end of the branch, before the addition, and is cheap: in ResNet-50 about 2.5 million
# parameters, as the paper says, and next to no MACs. Whether it lowers the error, by how much for which r,
# and at which place, is lab P10.

more = counts["se_resnet50"].params_trainable - counts["resnet50"].params_trainable
share = counts["se_resnet50"].macs / counts["resnet50"].macs - 1
print(f"{more:,} more parameters, {share:.2%} more MACs")
assert abs(more / 1e6 - 2.5) < 0.1 and 0 < share < 0.002

# %%
# Do the gates learn to tell pictures apart? Train a small SE-ResNet, three blocks, on hands (SIGNS if you
# have it), and write down what each gate says of each test picture. ``Watched`` takes the place of the layer
# that scales. One training may be luck, so do it from three seeds.

splits = load("signs" if find("signs") else "hands", size=32)
print("source:", splits.source)
normalize = Normalize.of(splits.train)


class Watched(Scale):
    """Scales, and writes down by what."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x, *, by):
        self.seen.append(by.numpy()[:, 0, 0, :])
        return super().forward(x, by=by)


def gates_after_training(seed, epochs=4):
    """What the gate of each block says of the test pictures, by its name; and the test accuracy."""
    options = {"repeats": [1, 1, 1], "reduction": 4, "bn_momentum": 0.2}
    model = build("se_resnet56_cifar", classes=6, seed=seed, **options)
    optimizer = Adam(model.named_parameters(), lr=3e-3)
    for epoch in range(epochs):
        for batch, labels in Loader(splits.train, 32, seed=seed, normalize=normalize).epoch(epoch):
            loss = cross_entropy(model(Tensor(batch)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    blocks = {name: getattr(getattr(model, name), f"{name}_se") for name in ("res2a", "res3a", "res4a")}
    for gate in blocks.values():
        gate.scale = Watched()
    with no_grad():
        guesses = model.eval()(Tensor(normalize(splits.test.images))).numpy().argmax(axis=1)
    return {name: gate.scale.seen[0] for name, gate in blocks.items()}, np.mean(guesses == splits.test.labels)


runs = [gates_after_training(seed) for seed in range(3)]
for seed, (gates, accuracy) in enumerate(runs):
    deviations = {name: float(values.std(axis=0).mean()) for name, values in gates.items()}
    print(f"seed {seed}: test accuracy {accuracy:.1%}; deviation of the gates from picture to picture:",
          {name: round(value, 3) for name, value in deviations.items()})  # fmt: skip
    assert all((0 <= values).all() and (values <= 1).all() for values in gates.values())
    assert deviations["res4a"] > 1.3 * deviations["res2a"] > 0

# %%
# The paper found that early gates say about the same of every class, and late ones differ from class to
# class. So it is here, in each of the three networks. Look along the columns of the first: on the left the
# colour changes little, on the right many channels are open for some classes and shut for others.


def by_class(values):
    """The mean gate of each class, (classes, channels)."""
    return np.array([values[splits.test.labels == label].mean(axis=0) for label in range(6)])


fig, axes = plt.subplots(1, 2, figsize=(9, 2.8), layout="constrained", width_ratios=[1, 3])
for ax, name in zip(axes, ("res2a", "res4a"), strict=True):
    shown = by_class(runs[0][0][name])
    image = ax.imshow(shown, cmap="viridis", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    ax.set(title=f"gates of {name}", xlabel="channel", ylabel="class", yticks=range(6))
fig.colorbar(image, ax=axes, label="mean gate of the class")

for gates, _ in runs:
    spread = {name: float(by_class(values).std(axis=0).mean()) for name, values in gates.items()}
    print("from class to class:", {name: round(value, 3) for name, value in spread.items()})
    assert spread["res4a"] > 1.5 * spread["res2a"]

# %%
# Exercises
# ---------
#
# Put your answer in the place of ``...`` and run the cell again.

# %%
# **Exercise 1.** How many pixels wide is what one output of a stack of convolutions sees? You get the side of
# each kernel, first layer first, all with stride 1: ``[3, 3]`` sees 5.


def your_view(kernels):
    """The side of the square that one output sees, in pixels."""
    ...


def view_of_the_stack(kernels):
    y = picture = Tensor(np.zeros((1, 31, 31, 1)), requires_grad=True)
    for k in kernels:
        y = conv2d(y, Tensor(np.ones((k, k, 1, 1))), padding=k // 2)
    upstream = np.zeros(y.shape)
    upstream[0, 15, 15, 0] = 1
    y.backward(upstream)
    return round(np.sqrt(np.count_nonzero(picture.grad)))


check("four 3x3", lambda: your_view([3, 3, 3, 3]) == view_of_the_stack([3, 3, 3, 3]))
check("7x7, then 1x1, then 5x5", lambda: your_view([7, 1, 5]) == view_of_the_stack([7, 1, 5]))

# %%
# **Exercise 2.** A ResNeXt block reads ``channels``, has C paths of d channels each, and gives as many
# channels as it reads: a 1x1 convolution, a 3x3 with C groups, a 1x1. Count the weights of its three
# convolutions (no biases).


def your_weights(channels, C, d):
    """The number of weights of the three convolutions."""
    ...


def weights_of_a_block(channels, C, d):
    branch = bottleneck(C * d, groups=C, out=channels)
    block = ResidualBlock(channels, branch, stage=2, block="b", rng=np.random.default_rng(0))
    return sum(p.size for name, p in block.named_parameters() if name.startswith("res"))


check(
    "one path of 64 channels, a ResNet's", lambda: your_weights(256, 1, 64) == weights_of_a_block(256, 1, 64)
)
check("32x4d", lambda: your_weights(256, 32, 4) == weights_of_a_block(256, 32, 4))

# %%
# **Exercise 3.** Write the gate of squeeze and excitation in NumPy: the picture ``x`` (N, H, W, C), the
# weights ``w1`` (C, C/r) and ``w2`` (C/r, C), no biases. Return x with its channels scaled.


def your_gate(x, w1, w2):
    """x with each channel scaled by its gate."""
    ...


noise = np.random.default_rng(0)
photo = noise.normal(size=(2, 6, 6, 8))
theirs = SqueezeExcitation(8, reduction=2, bias=False, rng=noise).astype(np.float64)
w1, w2 = 3 * theirs.reduce.weight.data, 3 * theirs.expand.weight.data
theirs.reduce.weight.data[...], theirs.expand.weight.data[...] = w1, w2
check(
    "it gives what SqueezeExcitation gives",
    lambda: np.allclose(your_gate(photo, w1, w2), theirs(Tensor(photo)).numpy()),
)
check(
    "weights of zero open every gate halfway",
    lambda: np.allclose(your_gate(photo, 0 * w1, 0 * w2), photo / 2),
)

# %%
# What you now know
# -----------------
#
# * VGG: a few 3x3 convolutions see as much as one large kernel, for fewer weights.
# * ResNeXt: a grouped convolution is many narrow paths side by side; the paths share nothing.
# * DenseNet: layers put their channels beside the old ones; one shared array makes that cheap.
# * SENet: two small dense layers look at the whole picture and weigh every channel.

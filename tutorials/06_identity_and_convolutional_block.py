"""
06 · The identity block and the convolutional block
===================================================

You walk through the two blocks of a ResNet one operation at a time, forward and back, and see what the
shortcut does to the gradient.

Lesson 05 trained a network of 56 layers from three seeds, with shortcuts and without: only with them did it
learn (lab P1 trains for longer). Here you look inside. ``minires.step`` is a
debugger for networks: it records one forward and one backward pass, and you stop wherever you like.
"""

# %%
# The two blocks are functions that make a ``ResidualBlock``; everything else you know.

import matplotlib.pyplot as plt
import numpy as np

from minires import ConfigError, Tensor, step
from minires.data import hands
from minires.exercises import check
from minires.nn import (
    BatchNorm2d,
    Conv2d,
    GlobalAvgPool2d,
    Linear,
    Sequential,
    convolutional_block,
    identity_block,
)
from minires.ops.conv2d import conv2d
from minires.ops.relu import relu

# %%
# Two blocks, one formula
# -----------------------
#
# Both compute::
#
#     y = relu(F(x) + shortcut(x))
#
# F is the *branch*: three convolutions, 1x1, 3x3, 1x1, with a batch norm after each and a ReLU between. It
# reduces the channels, works on few of them, and restores them. The blocks differ in the shortcut. In the
# *identity block* it is x itself. That needs a branch whose result has the shape of x. Where a stage begins,
# picture and channels change; there the *convolutional block* brings x to the new shape, by a 1x1 convolution
# and a batch norm. He et al., arXiv:1512.03385.


def draw_block(ax, title, first, shortcut, shapes):
    """Draw a block from top to bottom: the branch on the left, the shortcut on the right."""
    notes = ["x", first, "3x3, BN, ReLU", "1x1, BN", "add", "ReLU"]
    box = {"boxstyle": "round", "edgecolor": "black"}
    for place, (note, shape) in enumerate(zip(notes, shapes, strict=True)):
        color = "#cfe8f7" if 0 < place < 4 else "#fde3c4"
        if place:
            style = {"arrowstyle": "->", "shrinkA": 9, "shrinkB": 9}
            ax.annotate("", (0, -place), (0, 1 - place), arrowprops=style)
        ax.text(0, -place, f"{note}   {shape}", ha="center", va="center", bbox=box | {"facecolor": color})
    ax.plot([0, 2.1, 2.1], [-0.5, -0.5, -4], color="#d55e00", linewidth=2)
    arrow = {"arrowstyle": "->", "color": "#d55e00", "linewidth": 2}
    ax.annotate("", (0.75, -4), (2.1, -4), arrowprops=arrow)
    ax.text(2.1, -2.2, shortcut, ha="center", va="center", bbox=box | {"facecolor": "white"})
    ax.set(title=title, xlim=(-1.5, 3), ylim=(-5.4, 0.5))
    ax.axis("off")


fig, (left, right) = plt.subplots(1, 2, figsize=(9, 4.5), layout="constrained")
reduced, full, half = "32x32x16", "32x32x64", "16x16x32"
draw_block(left, "identity block", "1x1, BN, ReLU", "x", [full, reduced, reduced, full, full, full])
wide = "16x16x128"
title, first = "convolutional block, stride 2", "1x1 /2, BN, ReLU"
draw_block(right, title, first, "1x1 /2, BN", [full, half, half, wide, wide, wide])

# %%
# The picture shows the two blocks that you will walk through, with the shapes of what each box hands on. If
# the shapes do not fit, minires says so when the block is built, not when it runs:

rng = np.random.default_rng(0)
try:
    identity_block(32, (16, 16, 64), stage=2, block="a", rng=rng)
    message = ""
except ConfigError as error:
    message = str(error)
print(message)
assert "must be equal" in message

# %%
# A small network to walk through
# -------------------------------
#
# Two stages, each a convolutional block and an identity block, as in every ResNet. The names are those of the
# released model: ``res2b_branch2a`` is the first convolution in the branch of stage 2, block b, and
# ``res3a_branch1`` the one on the shortcut of stage 3, block a. At the end a global average pool makes one
# number of each channel, and a dense layer six scores of these, as in lesson 05. ``step`` gets six rendered
# hands and their labels, and adds the loss: softmax and cross-entropy.

network = Sequential(
    conv1=Conv2d(3, 32, 3, stride=2, padding=1, rng=rng),
    bn_conv1=BatchNorm2d(32, relu=True),
    res2a=convolutional_block(32, (16, 16, 64), stage=2, block="a", stride=1, rng=rng),
    res2b=identity_block(64, (16, 16, 64), stage=2, block="b", rng=rng),
    res3a=convolutional_block(64, (32, 32, 128), stage=3, block="a", stride=2, rng=rng),
    res3b=identity_block(128, (32, 32, 128), stage=3, block="b", rng=rng),
    avg_pool=GlobalAvgPool2d(),
    fc=Linear(128, 6, rng=rng),
)

labels = np.arange(6)
pictures = np.stack([hands.render(int(label), seed=(6, int(label))) for label in labels])
x = (pictures / 127.5 - 1).astype(np.float32)

s = step(network, x, labels)
operations = s.recording.operations
print(f"{len(s)} events, {len(operations)} of them on the way forward; the loss is {s.recording.loss:.3f}")
assert len(s) == 2 * len(operations)

# %%
# Forward through the identity block
# ----------------------------------
#
# ``goto`` takes the name of a block and goes to the first event in it. The card says what was computed, by
# which formula, with which shapes, and what the numbers are like:

s.goto("res2b")
print(s.here)

# %%
# Step on with ``next()``. Ten operations, and only the addition reads two results: that of the branch and,
# from far back, the input of the block.

s.goto("res2b")
while s.here.operation.block == "res2b":
    operation = s.here.operation
    reads = ", ".join(str(source.number) for source in operation.inputs if source.number is not None)
    print(f"{operation.number}  {operation.op:10} {operation.path:14} {operation.shape}  reads {reads}")
    s.next()

block = [operation for operation in operations if operation.block == "res2b"]
addition = next(operation for operation in block if operation.op == "add")
branch, shortcut = addition.inputs
assert len(block) == 10
assert shortcut.number == block[0].inputs[0].number  # the very tensor that the first convolution reads

# %%
# Watch one channel of one picture on its way. The branch makes a change, the shortcut keeps what was there,
# and the sum is both. The ReLU then cuts off what is negative.

channel = int(shortcut.value[3].std(axis=(0, 1)).argmax())
y = block[-1].output
fig, axes = plt.subplots(1, 4, figsize=(9, 2.6), layout="constrained")
maps = {"x, the shortcut": shortcut.value, "F(x), the branch": branch.value, "sum": addition.output}
limit = np.abs(addition.output[3, :, :, channel]).max()
for ax, (title, values) in zip(axes, [*maps.items(), ("y, after the ReLU", y)], strict=True):
    image = ax.imshow(values[3, :, :, channel], cmap="PuOr", vmin=-limit, vmax=limit)
    ax.set(title=title, xlabel="column", xticks=[0, 16, 31], yticks=[0, 16, 31])
axes[0].set_ylabel("row")
fig.colorbar(image, ax=axes, label="value")

assert np.array_equal(addition.output, branch.value + shortcut.value)
assert np.array_equal(y, np.maximum(addition.output, 0))

# %%
# Explain one number
# ------------------
#
# Lesson 03 said: one output of a convolution is a row of the im2col matrix times a column of the kernel. Ask
# for any one number of any layer, and you get the row, the column and the products. ``n`` is the picture,
# ``i`` and ``j`` the place, ``o`` the channel of the result. (``goto`` with a name stays on the way where you
# are, forward or back; ``goto(0)`` is the very beginning.)

s.goto(0)
s.goto("res2b_branch2b")
explained = s.explain(n=3, i=10, j=12, o=7)
print(explained)

row, column = explained.found.row, explained.found.column
assert np.isclose(row @ column, explained.found.sum)
assert abs(explained.result - explained.stored) < 1e-4
assert row.size == 3 * 3 * 16

# %%
# Back through the identity block
# -------------------------------
#
# Now the way back. ``back()`` goes to the backward event of the operation at hand. First the ReLU, then the
# addition. The ReLU lets the gradient pass where y is positive. The addition does no arithmetic at all: it
# hands the same gradient to both sides.

s.goto(0)
s.goto("res2b")
s.find(op="add")
print(s.back())

to_branch, to_shortcut = addition.outgoing
dy = block[-1].incoming
assert np.array_equal(to_branch, to_shortcut)
assert np.array_equal(to_shortcut, dy * (y > 0))

# %%
# Lesson 01 had a rule: what is used in several places gets the sum of what comes back from them. The input of
# the block is used twice, by the first convolution and by the addition. It is the *fork*. Go to the operation
# that made it, and look at what comes back to it:

s.goto(shortcut.number)
fork = operations[shortcut.number]
for sender, gradient in fork.contributions:
    way = "shortcut" if operations[sender].op == "add" else "branch"
    print(f"from {operations[sender].op:6} by the {way:8}: norm {np.linalg.norm(gradient):.4f}")
print(f"their sum                 : norm {np.linalg.norm(fork.incoming):.4f}")

parts = {operations[sender].op: gradient for sender, gradient in fork.contributions}
assert np.array_equal(parts["add"], dy * (y > 0))
assert np.allclose(parts["add"] + parts["conv2d"], fork.incoming)

# %%
# So the backward pass of an identity block is short::
#
#     g  = dy where y > 0, else 0
#     dx = g + (what the branch makes of g)
#
# The first summand has no weights in it and no batch norm: nothing that training could make small.

# %%
# Why the gradient cannot vanish through the shortcut
# ---------------------------------------------------
#
# Take the branch away to see it. With gamma = 0 in its last batch norm, F(x) is 0 whatever x is, and nothing
# comes back from the branch. In a plain network this would be the end: no gradient below. Here the block
# becomes the identity, forward and back. (Does weight decay bring a block there by itself? Lab P15 looks.)

network.res2b.bn2b_branch2c.gamma.data[...] = 0
silent = step(network, x, labels).recording.operations
network.res2b.bn2b_branch2c.gamma.data[...] = 1

parts = {silent[sender].op: gradient for sender, gradient in silent[fork.number].contributions}
last = silent[block[-1].number]
print(f"with a silent branch: from the branch {np.linalg.norm(parts['conv2d']):.4f}, ", end="")
print(f"by the shortcut {np.linalg.norm(parts['add']):.4f}")
assert not parts["conv2d"].any() and parts["add"].any()
assert np.array_equal(last.output, silent[fork.number].output)
assert np.array_equal(parts["add"], last.incoming * (last.output > 0))

# %%
# Two blocks in a row multiply what they do to the gradient. Write f for the branch's part, and leave the ReLU
# aside::
#
#     (1 + f1)(1 + f2) = 1 + f1 + f2 + f1 f2
#
# Without shortcuts only the last term is there, a product of as many factors as there are blocks. With them,
# the 1 stays however many blocks there are. (Lesson 10 makes an experiment of this sum.)
#
# Be exact about what is *not* said. The ReLU after the addition still sets the gradient to zero where y is
# not positive; lesson 09 moves it out of the way. And the branch's part could cancel the shortcut's. It would
# have to be the exact negative, in every number.

# %%
# The convolutional block
# -----------------------
#
# Here the shortcut is no free pass: it has a convolution and a batch norm of its own. Both ways begin with a
# 1x1 convolution of stride 2, so both read one pixel in four, the same ones. Look at what comes back to the
# fork before ``res3a``:

first = next(operation for operation in operations if operation.block == "res3a")
fork = operations[first.inputs[0].number]
for sender, gradient in fork.contributions:
    print(f"from {operations[sender].path}: norm {np.linalg.norm(gradient):.4f}")
assert {operations[sender].path for sender, _ in fork.contributions} == {"res3a_branch2a", "res3a_branch1"}

skipped = np.ones((32, 32), bool)
skipped[::2, ::2] = False
assert not fork.incoming[:, skipped].any()
print(f"share of pixels that get no gradient from this block: {skipped.mean():.0%}")

# %%
# Three pixels in four get none. They are not lost: the 3x3 convolutions of the blocks before look at them.
# But a 1x1 convolution with a stride throws away what it skips. Many networks of today put the stride on the
# 3x3 instead (``stride_on="3x3"``, known as v1.5), where every pixel is read. The picture shows the size of
# the gradient in a part of one hand: before the convolutional block it is a grid, before the identity block
# every pixel has some.

fig, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
before_identity = operations[shortcut.number]
for ax, operation, title in zip(
    axes, (fork, before_identity), ("into res3a, stride 2", "into res2b, identity"), strict=True
):
    size = np.linalg.norm(operation.incoming[3, 8:20, 8:20], axis=-1)
    sides = (7.5, 19.5, 19.5, 7.5)
    image = ax.imshow(size / size.max(), cmap="viridis", vmin=0, vmax=1, extent=sides)
    ax.set(title=title, xlabel="column", ylabel="row", xticks=range(8, 20, 2), yticks=range(8, 20, 2))
fig.colorbar(image, ax=axes, label="gradient (share of the largest)")
assert before_identity.incoming.any(axis=-1).all()

# %%
# Exercises
# ---------
#
# Put your answer in the place of ``...`` and run the cell again.

# %%
# **Exercise 1.** Write the backward of an identity block. You get the gradient ``dy`` of its result, the
# result ``y`` (after the ReLU), and a function ``branch_backward`` that takes the gradient of F(x) and gives
# that of x through the branch. Return the gradient of x.


def your_block_backward(dy, y, branch_backward):
    """The gradient of the block's input."""
    ...


def of_the_tape(x, w, dy):
    leaf = Tensor(x, requires_grad=True)
    y = relu(conv2d(leaf, Tensor(w), padding=1) + leaf)
    y.backward(dy)
    return y.data, leaf.grad


def through_the_branch(x, w, dy):
    leaf = Tensor(x, requires_grad=True)
    conv2d(leaf, Tensor(w), padding=1).backward(dy)
    return leaf.grad


noise = np.random.default_rng(0)
x6, w6, dy6 = (
    noise.normal(size=(2, 5, 5, 3)),
    noise.normal(size=(3, 3, 3, 3)),
    noise.normal(size=(2, 5, 5, 3)),
)
y6, dx6 = of_the_tape(x6, w6, dy6)
check(
    "it is the gradient of the tape",
    lambda: np.allclose(your_block_backward(dy6, y6, lambda dy: through_the_branch(x6, w6, dy)), dx6),
)
check(
    "with a silent branch it is dy where y is positive",
    lambda: np.allclose(your_block_backward(dy6, y6, lambda dy: 0 * dy), np.where(y6 > 0, dy6, 0)),
)

# %%
# **Exercise 2.** A convolutional block reads (N, 15, 15, 256) and has the filters (128, 128, 512) and stride
# 2. What shape does it give for N = 2, and how many numbers does the convolution on its shortcut learn, bias
# included?

your_shape = ...
your_count = ...


def convolutional():
    return convolutional_block(256, (128, 128, 512), stage=3, block="a", rng=np.random.default_rng(0))


check(
    "the shape",
    lambda: tuple(your_shape) == convolutional()(Tensor(np.zeros((2, 15, 15, 256), np.float32))).shape,
)
check(
    "the numbers on the shortcut",
    lambda: your_count == sum(p.size for p in convolutional().res3a_branch1.parameters()),
)

# %%
# **Exercise 3.** What share of the pixels gets no gradient from a convolutional block with stride s? Assume a
# picture whose side is a multiple of s.


def your_share(s):
    """The share of pixels, between 0 and 1."""
    ...


def share_without_gradient(s):
    noise = np.random.default_rng(0)
    block = convolutional_block(4, (2, 2, 8), stage=2, block="a", stride=s, rng=noise)
    leaf = Tensor(noise.normal(size=(4, 12, 12, 4)).astype(np.float32), requires_grad=True)
    y = block(leaf)
    y.backward(noise.normal(size=y.shape))
    return np.mean(~leaf.grad.any(axis=(0, 3)))


check("stride 2", lambda: np.isclose(your_share(2), share_without_gradient(2)))
check(
    "stride 1 and stride 3", lambda: all(np.isclose(your_share(s), share_without_gradient(s)) for s in (1, 3))
)

# %%
# What you now know
# -----------------
#
# * An identity block is ``relu(F(x) + x)``; where the shape changes, a convolutional block projects x.
# * Backward, the addition hands the same gradient to both ways, and the fork adds what comes back.
# * Through the shortcut the gradient arrives as it is, whatever the branch does.
# * The ReLU after the addition, and a stride on a 1x1, still stop some of it.
# * ``minires.step`` shows any operation of any network, and ``explain`` any number of it.

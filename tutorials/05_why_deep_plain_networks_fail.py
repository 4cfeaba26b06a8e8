"""
05 · Why deep plain networks fail
=================================

You train a plain network of 56 layers that learns nothing, look for the reason, and find that it is not the
one most often given.

Lessons 03 and 04 gave you the layers. It is tempting to stack more and more of them. The authors of the
residual network did, and met what they called *degradation*: beyond some depth, more layers make a network
worse, and not only on new pictures but on the very pictures it is trained on (He, Zhang, Ren, Sun 2015,
arXiv:1512.03385). This lesson repeats their experiment in a few seconds and then asks why.
"""

# %%
# The networks are those of the paper's section 4.2, for small pictures. ``plain`` is a chain of 3x3
# convolutions, each with a batch norm and a ReLU. ``resnet`` has the same layers, and a *shortcut* around
# every two of them.

import matplotlib.pyplot as plt
import numpy as np

from minires import Tensor
from minires.data import Loader, Normalize, find, load
from minires.exercises import check
from minires.inspect import summarize
from minires.models import build
from minires.nn import Conv2d, GlobalAvgPool2d, Linear, ReLU, Sequential
from minires.ops.cross_entropy import cross_entropy
from minires.optim import Adam

# %%
# The pictures are real photographs of hands (SIGNS) if you have them, else rendered ones. They show 0 to 5
# fingers and are scaled down to 16x16 pixels, so that you need not wait.

pictures = load("signs" if find("signs") else "hands", size=16)
normalize = Normalize.of(pictures.train)
print(pictures.source, "-", len(pictures.train), "pictures to train on")

# %%
# Deeper is worse
# ---------------
#
# Could more layers do harm at all? Take a trained network of 20 layers and add 36 that hand on what they get.
# The result has 56 layers and makes exactly the same mistakes. So a network of 56 layers that is *at least as
# good* as the one of 20 exists. The question is whether training finds it.
#
# A shortcut in these networks has no weights, so the plain and the residual network of 56 layers have exactly
# the same parameters and the same arithmetic:

names = ["plain20_cifar", "plain56_cifar", "resnet56_cifar"]
sizes = {name: summarize(build(name, classes=6), (16, 16, 3)) for name in names}
for name, size in sizes.items():
    print(f"{name:<15} {size.params_total:>9,} parameters  {size.macs:>11,} MACs")

plain, residual = sizes["plain56_cifar"], sizes["resnet56_cifar"]
assert plain.params_total == residual.params_total and plain.macs == residual.macs

# %%
# Now train all three: the same batches of 32 pictures, the same optimiser (Adam), 81 steps.


def train(model, epochs=3):
    """Train, and return the loss of every step."""
    optimizer = Adam(model.named_parameters(), 1e-3)
    batches = Loader(pictures.train, 32, normalize=normalize, drop_last=True)
    losses = []
    for epoch in range(epochs):
        for x, labels in batches.epoch(epoch):
            loss = cross_entropy(model(Tensor(x)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


models = {name: build(name, classes=6, seed=0) for name in names}
losses = {name: train(model) for name, model in models.items()}
assert all(len(values) == 81 for values in losses.values())

# %%
# A network that gives each of six classes the same probability has the loss ln 6, the dotted line. Compare
# the curves with it.

guessing = np.log(6)
colors = {"plain20_cifar": "#0072b2", "plain56_cifar": "#d55e00", "resnet56_cifar": "#009e73"}
fig, ax = plt.subplots(figsize=(8, 3.6), layout="constrained")
for name, values in losses.items():
    smooth = np.convolve(values, np.ones(10) / 10, mode="valid")
    ax.plot(np.arange(len(smooth)) + 10, smooth, color=colors[name], label=name)
ax.axhline(guessing, color="black", linestyle=":", label="guessing: ln 6")
ax.set(xlabel="step", ylabel="training loss, mean of 10 steps", ylim=(0, 3))
ax.legend(fontsize=8)

end = {name: np.mean(values[-20:]) for name, values in losses.items()}
print({name: round(float(value), 2) for name, value in end.items()}, f" guessing: {guessing:.2f}")
assert end["plain56_cifar"] > 0.85 * guessing
assert end["plain20_cifar"] < end["plain56_cifar"] - 0.05
assert end["resnet56_cifar"] < end["plain20_cifar"] - 0.2

# %%
# The plain network of 20 layers learns. The one of 56 has hardly left the dotted line: it guesses. The
# residual network of 56 layers, with the same parameters, is the best of the three. It is no matter of too
# many parameters for too few pictures: this is the loss in training, where such a network should be good.
#
# Be fair to the plain network: 81 steps are few. The paper trained for 64,000; a plain network of 56 layers
# does learn something in that time, and stays behind the one of 20 layers to the end.

# %%
# The first suspect: vanishing gradients
# --------------------------------------
#
# The usual answer is that the gradient gets smaller on its way back, until nothing reaches the first layers.
# You can look. A ``Sequential`` lets you go through it part by part, and ``retain_grad`` keeps the gradient
# of what each part hands on.

some = np.random.default_rng(0).permutation(len(pictures.train))[:32]
x, labels = normalize(pictures.train.images[some]), pictures.train.labels[some]


def gradient_by_depth(model):
    """The norm of the loss's gradient for the output of each part, from the first convolution on."""
    outputs = [Tensor(x)]
    for _, part in model.children():
        outputs.append(part(outputs[-1]).retain_grad())
    cross_entropy(outputs[-1], labels).backward()
    return np.array([np.linalg.norm(output.grad) for output in outputs[1:-2]])  # without pool and dense layer


# %%
# Begin without batch norm: 55 convolutions with a ReLU each, once with weights from Glorot's formula, once
# from He's. A ReLU throws away half of what comes; He's weights are larger by a factor of √2 to make up for
# it (arXiv:1502.01852), Glorot's are not.


def bare(initializer):
    """Convolutions and ReLUs, nothing else."""
    options = {"padding": 1, "relu": True, "initializer": initializer, "rng": np.random.default_rng(0)}
    convolutions = [Conv2d(3 if i == 0 else 16, 16, 3, **options) for i in range(55)]
    return Sequential(*convolutions, GlobalAvgPool2d(), Linear(16, 6, rng=options["rng"]))


without_norm = {name: gradient_by_depth(bare(name)) for name in ("glorot_uniform", "he_normal")}
for name, norms in without_norm.items():
    print(f"{name:<14} first / last: {norms[0] / norms[-1]:.1e}")

assert without_norm["glorot_uniform"][0] < 1e-6 * without_norm["glorot_uniform"][-1]
assert 1e-2 < without_norm["he_normal"][0] / without_norm["he_normal"][-1] < 1e2

# %%
# Here it is, then: with Glorot's weights the gradient all but vanishes on its way to the first layers.
# But that is a matter of how the weights start, and it was solved before residual networks. Our plain network
# starts from He's weights and has batch norm besides. The same measurement on it, fresh and after its 81
# steps:

with_norm = {name: gradient_by_depth(build(name, classes=6, seed=0)) for name in names[1:]}
later = {name: gradient_by_depth(models[name]) for name in names[1:]}

fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
for (name, norms), color in zip(without_norm.items(), ("#cc79a7", "#56b4e9"), strict=True):
    left.semilogy(norms / norms[-1], color=color, label=name)
left.set(title="without batch norm", xlabel="convolution", ylabel="norm of the gradient (last = 1)")
left.legend(fontsize=8)
for name in with_norm:
    for norms, style, when in ((with_norm[name], "-", "fresh"), (later[name], "--", "after 81 steps")):
        right.semilogy(norms / norms[-1], color=colors[name], linestyle=style, label=f"{name}, {when}")
right.set(title="with batch norm", xlabel="part (two convolutions each)")
right.legend(fontsize=8)

growth = {name: norms[0] / norms[-1] for name, norms in with_norm.items()}
print({name: f"first / last: {value:.0f}" for name, value in growth.items()})
assert growth["plain56_cifar"] > 500
assert 1 < growth["resnet56_cifar"] < 200
assert later["plain56_cifar"][0] > 2 * later["plain56_cifar"][-1]

# %%
# Read the right half from right to left, as the gradient goes. In the plain network it does not vanish; in
# the fresh network it *grows* on its way to the first layers, by the factor printed above, and after 81 steps
# the first layers still get more of it than the last. The paper says so, too, in section 4.1: with batch
# norm, neither the signal nor the gradient vanishes. The usual answer is not the answer here.
#
# Could it be that the gradient is too large, then? That is no good reason either. Adam divides each gradient
# by its own usual size, so its steps do not depend on how large the gradient is. You trained with Adam.

# %%
# Not its size but its direction
# ------------------------------
#
# A gradient is a promise: go a small step this way, and the loss falls. It is worth something only if it
# still holds a little further on. So change the pictures a little, by noise of one hundredth of their
# standard deviation, which no eye could see, and compare the two gradients for the pictures. Their *cosine*
# is 1 if they point the same way, and 0 if they have nothing to do with each other.


def agreement(model):
    """The cosine of the gradients for a batch of pictures without and with a little noise."""
    noise = np.random.default_rng(1).standard_normal(x.shape).astype("float32")
    gradients = []
    for amount in (0, 0.01):
        batch = Tensor(x + np.float32(amount) * noise, requires_grad=True)
        cross_entropy(model(batch), labels).backward()
        gradients.append(batch.grad.ravel())
    a, b = gradients
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


blocks = [1, 2, 3, 5, 7, 9]  # in each of three stages, two layers each; and two layers more
depths = [6 * n + 2 for n in blocks]
cosines = {
    kind: [
        [agreement(build(f"{kind}20_cifar", classes=6, seed=seed, repeats=(n, n, n))) for seed in range(3)]
        for n in blocks
    ]
    for kind in ("plain", "resnet")
}

# %%
# Six depths, three networks of each with other weights (the dots); all fresh, none trained:

fig, ax = plt.subplots(figsize=(7, 3.4), layout="constrained")
for kind, values in cosines.items():
    color = colors[f"{kind}56_cifar"]
    ax.plot(depths, np.mean(values, axis=1), color=color, label=kind)
    ax.plot(depths, values, ".", color=color)
ax.axhline(0, color="black", linewidth=0.8)
ax.set(xlabel="layers", ylabel="cosine of the two gradients", ylim=(-0.1, 1), xticks=depths)
ax.legend()

for depth, plain, residual in zip(depths, *cosines.values(), strict=True):
    print(f"{depth:>2} layers   plain {np.mean(plain):5.2f}   residual {np.mean(residual):5.2f}")
assert np.abs(cosines["plain"][-1]).max() < 0.2
assert np.min(cosines["resnet"][-1]) > 0.4
assert np.mean(cosines["plain"][0]) > 0.8

# %%
# Here the networks part. In a plain network of 8 layers the two gradients agree. At 56 layers they have
# nothing in common: a change that no one can see gives an unrelated gradient. Following it is a random walk,
# however large its steps. In the residual network most of the direction remains. Balduzzi and others, who
# found this in 2017, called such gradients *shattered* (arXiv:1702.08591). This is one reason that can be
# measured, and no proof that there is no other.

# %%
# What a shortcut changes
# -----------------------
#
# Two layers F of a plain network compute ``y = F(x)``. With a shortcut around them::
#
#     y  = x  + F(x)
#     dx = dy + (what the backward of F makes of dy)
#
# Lesson 01 gave the reason for the second line: x is used twice, so two gradients are added. The first of
# them is dy itself, whatever the picture and the weights. However shattered the second is, the first still
# points where it did. And the network that hands on what it gets, which must be found by a plain network, is
# now at hand: F need only be zero. Lesson 06 takes such a block apart.

# %%
# Exercises
# ---------

# %%
# **Exercise 1.** The smallest residual block: ``y = x + x @ w``, with x of shape (N, C) and w of shape (C,
# C). Write the gradient of x, given ``dy`` and ``w``.


def your_residual_backward(dy, w):
    """The gradient of x."""
    ...


rng = np.random.default_rng(5)
features, weight, dy = rng.normal(size=(4, 3)), rng.normal(size=(3, 3)), rng.normal(size=(4, 3))


def dx_of_the_tape(dy, w):
    x = Tensor(features, requires_grad=True)
    (x + x @ Tensor(w)).backward(dy)
    return x.grad


check(
    "it is the gradient of the tape",
    lambda: np.allclose(your_residual_backward(dy, weight), dx_of_the_tape(dy, weight)),
)
check(
    "where the weights are zero, dy comes back as it is",
    lambda: np.allclose(your_residual_backward(dy, np.zeros((3, 3))), dy),
)

# %%
# **Exercise 2.** A dense layer with C inputs and C outputs, Glorot's weights (their variance is 1 / C) and a
# ReLU. On the way back through one such layer the *squares* of the gradient's values are halved on average.
# By what factor is the *norm* of the gradient multiplied on the way through ``layers`` of them?


def your_shrinkage(layers):
    """The norm of the gradient before the first layer, divided by that behind the last."""
    ...


def measured_shrinkage(layers, width=256):
    rng = np.random.default_rng(0)
    parts = [part for _ in range(layers) for part in (Linear(width, width, rng=rng), ReLU())]
    x = Tensor(rng.standard_normal((64, width)).astype("float32"), requires_grad=True)
    dy = rng.standard_normal(x.shape)
    Sequential(*parts)(x).backward(dy)
    return np.linalg.norm(x.grad) / np.linalg.norm(dy)


check(
    "it is what 20 layers do, within a factor of 2",
    lambda: bool(0.5 < measured_shrinkage(20) / your_shrinkage(20) < 2),
)
check(
    "30 layers are 10 layers and then 20",
    lambda: bool(np.isclose(your_shrinkage(30), your_shrinkage(10) * your_shrinkage(20))),
)

# %%
# **Exercise 3.** Look at the first picture again: the residual network starts with a larger loss than
# guessing. Every block adds something to the signal, so it has grown when it reaches the last layer.
# ``last_gamma`` is where the gamma of the last batch norm of each block starts, usually 1. Choose it such
# that each block, before any training, hands on just what its shortcut hands on.

your_last_gamma = ...


def fresh_network():
    return build("resnet56_cifar", classes=6, seed=0, last_gamma=your_last_gamma)


def hands_on_its_shortcut(block):
    x = np.abs(np.random.default_rng(2).standard_normal((4, 8, 8, 16))).astype("float32")
    return np.allclose(block(Tensor(x)).data, x)


def first_loss(model):
    x = np.random.default_rng(3).standard_normal((32, 16, 16, 3)).astype("float32")
    return cross_entropy(model(Tensor(x)), np.arange(32) % 6).item()


check(
    "block res2b hands on its shortcut",
    lambda: hands_on_its_shortcut(dict(fresh_network().children())["res2b1"]),
)
check("the loss starts near that of guessing", lambda: abs(first_loss(fresh_network()) - np.log(6)) < 0.4)

# %%
# What you now know
# -----------------
#
# * Beyond some depth a plain network gets worse in *training*, although a network at least as good exists.
# * With batch norm the gradients of such a network do not vanish. Without it, and with weights that start too
#   small, they do.
# * What is lost is the direction: in a deep plain network a change that cannot be seen gives an unrelated
#   gradient.
# * A shortcut adds dy itself to the gradient, and makes "change nothing" the easiest thing to learn.

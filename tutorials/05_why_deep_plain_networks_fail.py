"""
05 · Why deep plain networks fail
=================================

You train a plain network of 56 layers that learns nothing, look for the reason, and find that it is not the
one most often given.

Lessons 03 and 04 gave you the layers. It is tempting to stack more and more of them. The authors of the
residual network did, and met what they called *degradation*: beyond some depth, more layers make a network
worse, and not only on new pictures but on the very pictures it is trained on (He, Zhang, Ren, Sun 2015,
arXiv:1512.03385). This lesson repeats their experiment in half a minute and then asks why.
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
# What training makes smaller
# ---------------------------
#
# The last layer of these networks is a *dense layer*, ``Linear``: each of its six numbers is a weighted sum
# of all that comes in, plus a bias, ``x @ w + b``. They are the *scores* z of the six classes. Two formulas
# make a loss of them::
#
#     softmax          p[k] = exp(z[k]) / (exp(z[0]) + exp(z[1]) + ...)
#     cross-entropy    loss = -log p[label]
#
# The softmax makes probabilities: they are positive and sum to 1, and the largest score has the largest. The
# cross-entropy looks at the one that the network gives to the right class. Where that is near 1, the loss is
# near 0; where it is small, the loss is large. Three classes by hand, the second one is right:

scores, label = np.array([2.0, 1.0, 0.0]), 1
powers = np.exp(scores)  # 7.389, 2.718 and 1, together 11.107
p = powers / powers.sum()
print("p:", p.round(3), " loss:", -np.log(p[label]).round(3))

z = Tensor(scores[None], requires_grad=True)  # a batch of one picture
loss = cross_entropy(z, [label])
assert np.allclose(p, [0.665, 0.245, 0.090], atol=5e-4)
assert np.isclose(loss.item(), -np.log(p[label])) and np.isclose(loss.item(), 1.408, atol=5e-4)

# %%
# And the gradient? Put the first formula into the second: loss = log(exp(z[0]) + exp(z[1]) + ...) - z[label].
# The derivative of the logarithm by z[k] is p[k] again; the last term gives 1 for the label. So, with t = 1
# for the label and 0 for the others::
#
#     dz = p - t
#
# What the network said less what it should have said. Of a batch the loss is the mean, and each picture has
# this gradient over the size of the batch.

loss.backward()
print("dz:", z.grad[0].round(3))
assert np.allclose(z.grad[0], p - np.eye(3)[label])

# %%
# An *optimiser* then takes a step: it changes each weight w a little, against its gradient. The simplest one,
# SGD, is ``w = w - rate * dw``; with *momentum* it goes against a running mean of the gradients instead.
# *Adam* also divides that mean by the usual size of the gradient (the root of a running mean of its squares),
# so each weight moves by about ``rate`` in a step.

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
# Now train all three: the same batches of 32 pictures, the same optimiser (Adam), 54 steps. One training may
# be luck, so do it from three seeds, which choose the weights and the order of the pictures.


def train(model, seed, epochs=2):
    """Train, and return the loss of every step."""
    optimizer = Adam(model.named_parameters(), 1e-3)
    batches = Loader(pictures.train, 32, seed=seed, normalize=normalize, drop_last=True)
    losses = []
    for epoch in range(epochs):
        for x, labels in batches.epoch(epoch):
            loss = cross_entropy(model(Tensor(x)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


seeds = range(3)
models = {name: [build(name, classes=6, seed=seed) for seed in seeds] for name in names}
losses = {name: np.array([train(model, seed) for seed, model in zip(seeds, three, strict=True)])
          for name, three in models.items()}  # fmt: skip
assert all(values.shape == (3, 54) for values in losses.values())

# %%
# A network that gives each of six classes the same probability has the loss ln 6, the dotted line. Compare
# the curves with it.

guessing = np.log(6)
colors = {"plain20_cifar": "#0072b2", "plain56_cifar": "#d55e00", "resnet56_cifar": "#009e73"}
fig, ax = plt.subplots(figsize=(8, 3.6), layout="constrained")
for name, three in losses.items():
    for seed, values in zip(seeds, three, strict=True):
        smooth = np.convolve(values, np.ones(10) / 10, mode="valid")
        label = name if seed == 0 else None
        ax.plot(np.arange(len(smooth)) + 10, smooth, color=colors[name], label=label)
ax.axhline(guessing, color="black", linestyle=":", label="guessing: ln 6")
ax.set(xlabel="step", ylabel="training loss, mean of 10 steps", ylim=(0, 3))
ax.legend(fontsize=8)

end = {name: values[:, -20:].mean(axis=1) for name, values in losses.items()}
print({name: values.round(2).tolist() for name, values in end.items()}, f" guessing: {guessing:.2f}")
assert (end["plain56_cifar"] > 0.85 * guessing).all()
assert (end["plain20_cifar"] < end["plain56_cifar"] - 0.03).all()
assert (end["resnet56_cifar"] < end["plain20_cifar"] - 0.2).all()

# %%
# Each of the three times, the plain network of 20 layers learns. The one of 56 has hardly left the dotted
# line: it guesses. The residual network of 56 layers, with the same parameters, is the best of the three. It
# is no matter of too many parameters for too few pictures: this is the loss in training, where such a network
# should be good.
#
# Be fair to the plain network: 54 steps are few. The paper trained for 64,000; a plain network of 56 layers
# does learn something in that time, and stays behind the one of 20 layers to the end. These three and a
# residual network of 20 layers, with that paper's optimiser, more steps, and pictures that they have not
# seen: ``minires lab degradation``, which is lab P1.

# %%
# The first suspect: vanishing gradients
# --------------------------------------
#
# The usual answer is that the gradient gets smaller on its way back, until nothing reaches the first layers.
# You can look. What training changes are the weights, so look at *their* gradients: at the norm of the
# gradient of each convolution's kernels.

some = np.random.default_rng(0).permutation(len(pictures.train))[:32]
x, labels = normalize(pictures.train.images[some]), pictures.train.labels[some]


def kernel_gradients(model, batch=x):
    """The gradient of the loss for the kernels of each convolution, from the first one on."""
    kernels = [weights for weights in model.parameters() if weights.ndim == 4]
    for weights in model.parameters():
        weights.grad = None
    cross_entropy(model(Tensor(batch)), labels).backward()
    return [kernel.grad.copy() for kernel in kernels]


def norms(gradients):
    return np.array([np.linalg.norm(gradient) for gradient in gradients])


# %%
# Begin without batch norm: 55 convolutions with a ReLU each, once with weights from Glorot's formula, once
# from He's. A ReLU throws away half of what comes; He's weights are larger by a factor of √2 to make up for
# it (arXiv:1502.01852), Glorot's are not.


def bare(initializer, seed):
    """Convolutions and ReLUs, nothing else."""
    options = {"padding": 1, "relu": True, "initializer": initializer, "rng": np.random.default_rng(seed)}
    convolutions = [Conv2d(3 if i == 0 else 16, 16, 3, **options) for i in range(55)]
    return Sequential(*convolutions, GlobalAvgPool2d(), Linear(16, 6, rng=options["rng"]))


without_norm = {
    name: np.array([norms(kernel_gradients(bare(name, seed))) for seed in seeds])
    for name in ("glorot_uniform", "he_normal")
}
for name, found in without_norm.items():
    print(f"{name:<14} the kernels' gradients have norms from {found.min():.0e} to {found.max():.0e}")

assert without_norm["glorot_uniform"].max() < 1e-5 * without_norm["he_normal"].min()
first_to_last = without_norm["glorot_uniform"][:, 0] / without_norm["glorot_uniform"][:, -1]
assert (0.1 < first_to_last).all() and (first_to_last < 10).all()

# %%
# Here it is, then: with Glorot's weights the gradients vanish. But look how: not on the way to the first
# layers, but in all layers alike, the last ones too. A kernel's gradient is the signal that comes in times
# the gradient that comes back. The one gets smaller from layer to layer on the way forward, the other on the
# way back, and each kernel's gradient has been through all 55 layers, on the one way or on the other.
#
# But that is a matter of how the weights start, and it was solved before residual networks. Our plain network
# starts from He's weights and has batch norm besides. The same measurement on it, fresh and after its 54
# steps, for all three seeds:

fresh = {name: np.array([norms(kernel_gradients(build(name, classes=6, seed=seed))) for seed in seeds])
         for name in names[1:]}  # fmt: skip
later = {name: np.array([norms(kernel_gradients(model)) for model in models[name]]) for name in names[1:]}

fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
for (name, found), color in zip(without_norm.items(), ("#cc79a7", "#56b4e9"), strict=True):
    for seed in seeds:
        left.semilogy(found[seed], color=color, label=name if seed == 0 else None)
left.set(title="without batch norm", xlabel="convolution", ylabel="norm of its kernels' gradient")
left.legend(fontsize=8)
for name in fresh:
    for found, style, when in ((fresh[name], "-", "fresh"), (later[name], "--", "after 54 steps")):
        ratio = found / found[:, -1:]
        for seed in seeds:
            label = f"{name}, {when}" if seed == 0 else None
            right.semilogy(ratio[seed], color=colors[name], linestyle=style, linewidth=0.8, label=label)
right.set(title="with batch norm", xlabel="convolution", ylabel="(last = 1)")
right.legend(fontsize=8)

growth = {name: found[:, 0] / found[:, -1] for name, found in fresh.items()}
print("first / last:", {name: found.round().tolist() for name, found in growth.items()})
assert growth["plain56_cifar"].min() > 100
assert growth["resnet56_cifar"].min() > 1 and growth["resnet56_cifar"].max() < 50
after = later["plain56_cifar"][:, 0] / later["plain56_cifar"][:, -1]
print("plain56_cifar after its training:", after.round().tolist())
assert after.min() > 1

# %%
# Read the right half from right to left, as the gradient goes. In the plain network it does not vanish; in
# the fresh network it *grows* towards the first layers, by the factors printed above, and after 54 steps the
# first kernels still get more of it than the last. The paper says so, too, in section 4.1: with batch norm,
# neither the signal nor the gradient vanishes. The usual answer is not the answer here.
#
# Could it be that the gradient is too large, then? That is no good reason either. Adam divides each gradient
# by its own usual size, so its steps do not depend on how large the gradient is. You trained with Adam.

# %%
# Not its size but its direction
# ------------------------------
#
# A gradient is a promise: go a small step this way, and the loss falls. It is worth something only if it
# still holds a little further on. So change the pictures a little, by noise of one hundredth of their
# standard deviation, which no eye could see, and compare the two gradients, those of all kernels in one long
# vector: the direction in which a step of training would go. Their *cosine* is 1 if they point the same way,
# and 0 if they have nothing to do with each other.


def agreement(model):
    """The cosine of the kernels' gradients for a batch of pictures without and with a little noise."""
    noise = np.random.default_rng(1).standard_normal(x.shape).astype("float32")
    noisy = x + np.float32(0.01) * noise
    a, b = (np.concatenate([gradient.ravel() for gradient in kernel_gradients(model, batch)])
            for batch in (x, noisy))  # fmt: skip
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


blocks = [1, 2, 3, 5, 7, 9]  # in each of three stages, two layers each; and two layers more
depths = [6 * n + 2 for n in blocks]
cosines = {
    kind: [
        [agreement(build(f"{kind}20_cifar", classes=6, seed=seed, repeats=(n, n, n))) for seed in seeds]
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
ax.set(xlabel="layers", ylabel="cosine of the two gradients of the weights", ylim=(-0.15, 1), xticks=depths)
ax.legend()

for depth, plain, residual in zip(depths, *cosines.values(), strict=True):
    print(f"{depth:>2} layers   plain {np.mean(plain):5.2f}   residual {np.mean(residual):5.2f}")
assert np.abs(cosines["plain"][-1]).max() < 0.25
assert np.min(cosines["resnet"][-1]) > 0.5
assert np.min(cosines["plain"][0]) > 0.8

# %%
# Here the networks part. In a plain network of 8 layers the two gradients agree. At 56 layers they have
# nothing in common: a change that no one can see gives an unrelated step, and where that leads hangs on what
# no eye can see, however long it is. In the residual network most of the direction remains. Balduzzi and
# others, who found this in 2017 for the gradients of the pictures, called such gradients *shattered*
# (arXiv:1702.08591). What was measured are fresh networks, before any training. It is one reason that can be
# measured, and no proof that there is no other. Nor is it depth alone: lab P13 makes the same measurement
# without batch norm. And that a sigmoid divides the gradient by four in every layer, as is often said, is
# tried in lab P14.

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
# guessing. Every block adds something to the signal, so it has grown when it reaches the last layer
# (lesson 09 measures it, with 110 layers).
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
# * A softmax makes probabilities p of scores, the cross-entropy is -log p of the label, and the gradient of
#   the scores is p - t.
# * Beyond some depth a plain network gets worse in *training*, although a network at least as good exists.
# * With batch norm the weights' gradients of such a network do not vanish. Without it, and with weights that
#   start too small, they do, in all layers alike.
# * In fresh plain networks with batch norm it is the direction that gets lost with depth: at 56 layers a
#   change that cannot be seen gives an unrelated gradient of the weights. It is one reason, not the only one
#   there may be.
# * A shortcut adds dy itself to the gradient, and a block that changes nothing needs only F = 0. How near
#   trained blocks come to that is asked in lab P2 (responses) and lab P15 (weight decay).

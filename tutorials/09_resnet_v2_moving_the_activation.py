"""
09 · ResNet V2: moving the activation
=====================================

You follow a gradient through 120 residual units, see what stands in its way in the first residual networks,
and take it out of the way.

Lesson 05 ended with ``dx = dy + ...``: over a shortcut, the gradient comes back as it is. In a block of the
first paper that is not quite true, because a ReLU follows the addition. A year later the same authors looked
at what happens if *nothing* stands on the way from one end of the network to the other (He, Zhang, Ren, Sun
2016, arXiv:1603.05027). The result is called ResNet V2, or pre-activation.
"""

# %%
# All models of that paper are options of one: ``order`` says where the activations stand, ``gating`` what is
# on the shortcut.

import matplotlib.pyplot as plt
import numpy as np

from minires import Tensor
from minires.data import Loader, Normalize, find, load
from minires.exercises import check
from minires.models import build
from minires.models.resnet_v2 import ORDERS, ResidualUnit
from minires.nn import BatchNorm2d, Sequential
from minires.nn.blocks import basic
from minires.ops.cross_entropy import cross_entropy
from minires.optim import SGD

# %%
# Two orders
# ----------
#
# Both units have the same layers. Only their places differ::
#
#     V1, "original"    y = relu(x + F(x))     F: conv, batch norm, ReLU, conv, batch norm
#     V2, "full"        y =      x + F(x)      F: batch norm, ReLU, conv, batch norm, ReLU, conv
#
# In V2 each convolution has its batch norm and ReLU *before* it, hence pre-activation, and nothing comes
# after the addition. To see what that does, take a long chain: 120 units of 16 channels, without any change
# of shape.


def chain(order):
    """A network whose 120 units all keep the shape."""
    return build("preresnet110_cifar", classes=6, seed=0, order=order, widths=[16], repeats=[120])


def units_of(model):
    return [part for name, part in model.children() if name.startswith("res")]


def signals(units, x):
    """What comes in, and what each unit hands on; with their gradients kept."""
    outputs = [Tensor(x, requires_grad=True)]
    for unit in units:
        outputs.append(unit(outputs[-1]).retain_grad())
    return outputs


rng = np.random.default_rng(0)
x = np.maximum(rng.standard_normal((8, 8, 8, 16)), 0).astype("float32")  # as a ReLU would give it
orders = {order: signals(units_of(chain(order)), x) for order in ORDERS}
print(f"{len(orders['full']) - 1} units in a row")
assert len(orders["full"]) == 121

# %%
# Forward: the input is still there
# ---------------------------------
#
# In V2 each unit adds something to what it gets. So what comes out at the end is what came in, plus the sum
# of all that was added::
#
#     x[120] = x[0] + F(x[0]) + F(x[1]) + ... + F(x[119])
#
# (each F with its own weights). Check it: give every unit's branch the input of that unit, and add up.


def branch(unit, x):
    """F(x): the convolutions, batch norms and ReLUs of a unit, one after the other, without the addition."""
    y = Tensor(x)
    for _, layer in unit.children():
        y = layer(y)
    return y.data


off = {}
for order in ("original", "full"):
    outputs = [output.data for output in orders[order]]
    total = outputs[0].astype(np.float64)
    for unit, before in zip(units_of(chain(order)), outputs[:-1], strict=True):
        total += branch(unit, before)
    off[order] = np.linalg.norm(total - outputs[-1]) / np.linalg.norm(outputs[-1])

print({order: f"relative difference {value:.1e}" for order, value in off.items()})
assert off["full"] < 1e-4
assert off["original"] > 0.1

# %%
# For V2 the sum holds, to rounding. For V1 it does not: after each addition the ReLU sets what is negative to
# zero, so part of what came in is lost.

# %%
# Backward: the gradient arrives whole
# ------------------------------------
#
# Differentiate the sum. With dy the gradient at the end, the gradient at *any* unit is::
#
#     dx = dy + (what comes back through the branches)
#
# The first term is dy itself: not multiplied by any weight, not cut by any ReLU, however many units lie in
# between. So send a random dy from the end, and ask of the gradient at each unit how much of dy is in it.
# That is the projection ``share = <dx, dy> / <dy, dy>``: 1 if dy arrived whole. What comes through the
# branches is noise here, with a share near 0.

dy = rng.standard_normal(x.shape).astype("float32")
shares, norms = {}, {}
for order, outputs in orders.items():
    outputs[-1].backward(dy)
    shares[order] = np.array([(out.grad * dy).sum() for out in outputs]) / (dy * dy).sum()
    norms[order] = np.array([np.linalg.norm(out.grad) for out in outputs]) / np.linalg.norm(dy)

colors = dict(zip(ORDERS, ("#d55e00", "#e69f00", "#56b4e9", "#cc79a7", "#009e73"), strict=True))
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
for order in ("original", "full"):
    left.plot(np.arange(10, 121), shares[order][10:], color=colors[order], label=order)
left.set(
    xlabel="unit (the gradient comes from the right)", ylabel="share of dy in the gradient", ylim=(0, 1.3)
)
left.legend()
for order in ORDERS:
    right.semilogy(norms[order], color=colors[order], label=order)
right.set(xlabel="unit", ylabel="norm of the gradient (last = 1)")
_ = right.legend(fontsize=8)

for order in ("original", "full"):
    print(f"{order:<9} share at unit 20: {shares[order][20]:.2f}")
assert np.abs(shares["full"][20:] - 1).max() < 0.3
assert shares["original"][20] < 0.5 < shares["full"][20]

# %%
# On the left: in V2 the share stays near 1 through 100 units. In V1 it falls, as every ReLU on the way cuts
# out places where its output was zero. (All of this is one fresh network of each order, from one seed.)
#
# On the right are the five orders of the paper's table 2::
#
#                         before the weights   after the last weight   after the addition
#     original                                 BN                      ReLU
#     bn_after_add                                                     BN, ReLU
#     relu_before_add                          BN, ReLU
#     relu_only           ReLU                 BN
#     full                BN, ReLU
#
# One line is far above the others: a batch norm *after* the addition stands on the shortcut's path. It scales
# what passes, at each of the 120 units, and the gradient grows from unit to unit. The paper found that this
# order trains worst of the five (8.17% error, against 6.61% for the original and 6.37% for full, with 110
# layers on CIFAR-10).

print({order: f"{norm[0]:.1e}" for order, norm in norms.items()})
assert norms["bn_after_add"][0] > 1e5
assert all(norm[0] < 1e4 for order, norm in norms.items() if order != "bn_after_add")

# %%
# Leave the shortcut alone
# ------------------------
#
# The paper also put things on the shortcut on purpose (table 1). Take away the branches and send a gradient
# of ones along the shortcuts of 54 units, which is what a network of 110 layers has:

tried = {
    "identity": {},
    "times 0.5": {"gating": "constant", "scale": (0.5, 0.5)},
    "gate, starts half open": {"gating": "shortcut_only", "gate_bias": 0},
    "gate, starts nearly open": {"gating": "shortcut_only", "gate_bias": -6},
}
in_the_paper = {"identity": 6.61, "times 0.5": 12.35, "gate, starts half open": 12.86,
                "gate, starts nearly open": 6.91}  # fmt: skip
arrives = {}
for name, options in tried.items():
    model = build("preresnet110_cifar", classes=6, order="original", widths=[16], repeats=[54], **options)
    start = end = Tensor(x, requires_grad=True)
    for unit in units_of(model):
        end, _ = unit.shortcut(end)
    end.sum().backward()
    arrives[name] = float(np.abs(start.grad).mean())
    print(f"{name:<26} arrives: {arrives[name]:.1e}    error in the paper: {in_the_paper[name]}%")

assert arrives["identity"] == 1
assert np.isclose(arrives["times 0.5"], 0.5**54)
assert arrives["gate, starts half open"] < 1e-6 < 0.3 < arrives["gate, starts nearly open"]

# %%
# A factor of one half looks harmless. Multiplied 54 times by itself, nothing arrives, and the network is left
# with what comes through the branches. The paper's errors (the last column; not measured here) are 6.61% and
# 6.91% where the gradient arrives, and 12.35% and 12.86% where nothing does. A gate has weights and *could*
# learn to be the identity; in the paper having more freedom did not help. Trainings of all rows of both
# tables are in lab P4 (the orders) and lab P5 (what stands on the shortcut).

# %%
# One thing more at the end
# -------------------------
#
# What leaves the last unit of V2 has been through no batch norm and no ReLU, so one of each stands between it
# and the average pool. (The first unit needs none of its own, as the first convolution has one already.) V1
# has nothing there: its last addition ends in a ReLU.

parts = [name for name, _ in build("preresnet110_cifar", classes=6).children()]
print(parts[:3], "...", parts[-4:])
assert parts[-3:] == ["post_bn", "avg_pool", "fc"]
assert "post_bn" not in [name for name, _ in build("resnet110_cifar", classes=6).children()]

# %%
# Does it start better?
# ---------------------
#
# The authors report that V1 of 110 layers did not start well with the learning rate 0.1, and began with 0.01
# for the first 400 steps. Of their V2 they remark that it needs no such care. It is tempting to thank the new
# order for that. But V1 and V2 differ in *two* things, as you have just seen: the order, and the batch norm
# at the end. Two things that change together say nothing about either. So change one at a time: both orders,
# with that last norm and without it. And since one start may be luck, start each of the four from three
# seeds, which choose the weights and the order of the pictures. (SGD with momentum 0.9 goes against a running
# mean of the gradients.)

pictures = load("signs" if find("signs") else "hands", size=16)
normalize = Normalize.of(pictures.train)
print(pictures.source)


def network(order, last_norm, seed):
    """A network of 110 layers, with a batch norm and a ReLU before its average pool or without."""
    parts = dict(build("preresnet110_cifar", classes=6, seed=seed, order=order).children())
    parts.pop("post_bn", None)
    head = {name: parts.pop(name) for name in ("avg_pool", "fc")}
    norm = {"post_bn": BatchNorm2d(64, relu=True)} if last_norm else {}
    return Sequential(**parts, **norm, **head)


def first_steps(order, last_norm, seed, steps=8):
    """The losses of the first steps at the rate 0.1."""
    model = network(order, last_norm, seed)
    optimizer = SGD(model.named_parameters(), 0.1, momentum=0.9)
    batches = Loader(pictures.train, 16, seed=seed, normalize=normalize, drop_last=True).epoch(0)
    losses = []
    for _, (images, labels) in zip(range(steps), batches, strict=False):
        loss = cross_entropy(model(Tensor(images)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


seeds = range(3)
four = [(order, last_norm) for last_norm in (False, True) for order in ("original", "full")]
losses = {case: [first_steps(*case, seed) for seed in seeds] for case in four}

# %%
# The two orders have the colours from above; without the last norm the lines are dashed.

fig, ax = plt.subplots(figsize=(7, 3.4), layout="constrained")
for (order, last_norm), runs in losses.items():
    for seed, values in zip(seeds, runs, strict=True):
        label = f"{order}, {'with' if last_norm else 'without'} a last norm" if seed == 0 else None
        style = "o-" if last_norm else "o--"
        ax.semilogy(range(1, 9), values, style, markersize=3, color=colors[order], label=label)
ax.axhline(np.log(6), color="black", linestyle=":", label="guessing: ln 6")
ax.set(xlabel="step", ylabel="training loss", xticks=range(1, 9))
_ = ax.legend(fontsize=8)

worst = {case: [max(values) for values in runs] for case, runs in losses.items()}
for (order, last_norm), values in worst.items():
    name = f"{order}, {'with' if last_norm else 'without'} a last norm"
    print(f"{name:<30} worst loss of three starts: {', '.join(f'{value:.1f}' for value in values)}")

for order in ("original", "full"):
    assert max(worst[order, True]) < 5 and min(worst[order, False]) > 20
assert min(worst["full", False]) > max(worst["original", False])

# %%
# It is the last norm. With it both orders start calmly, V1 as well as V2, from every seed. Without it both
# jump to losses far above that of guessing, and V2, which has no ReLU on its path, jumps higher than V1. The
# order alone, which is what this lesson is about, shows no advantage in these eight steps.
#
# Why a norm at the end? A likely reason can be measured. The signal on the path of the additions grows, as
# each unit adds something, and nothing brings it back. It is what the last layer multiplies: look at its size
# where it enters the average pool, in the fresh networks.


def size_before_pool(order, last_norm, seed):
    """The standard deviation of what the average pool gets."""
    signal = Tensor(normalize(pictures.train.images[:16]))
    for name, part in network(order, last_norm, seed).children():
        if name == "avg_pool":
            return float(signal.data.std())
        signal = part(signal)


sizes = {case: [size_before_pool(*case, seed) for seed in seeds] for case in four}
for (order, last_norm), values in sizes.items():
    name = f"{order}, {'with' if last_norm else 'without'} a last norm"
    print(f"{name:<30} size: {', '.join(f'{value:.1f}' for value in values)}")
for order in ("original", "full"):
    assert min(sizes[order, False]) > 2.5 * max(sizes[order, True])

# %%
# So do not make more of the order than was measured. What it does is above: the signal and its gradient pass
# through 120 units whole. What that is worth in the end no lesson of a minute can tell; in the paper's table
# 3, after a whole training, the error goes from 6.61% to 6.37% with 110 layers, and from 7.61% to 4.92% with
# 1001. There, too, the two networks differ in both things; lab P4 takes them apart in whole trainings, and
# lab P6 asks what the warm-up of the first 400 steps is for.

# %%
# Exercises
# ---------

# %%
# **Exercise 1.** Write the forward pass of a V2 unit. ``norm1`` and ``norm2`` are batch norms that end in a
# ReLU, ``conv1`` and ``conv2`` convolutions; call each of them once.


def your_unit(x, norm1, conv1, norm2, conv2):
    """What the unit hands on."""
    ...


unit = ResidualUnit(8, basic(8), stage=2, block="b", order="full", rng=np.random.default_rng(0))
features = Tensor(np.random.default_rng(1).standard_normal((2, 5, 5, 8)).astype("float32"))


def layers_in_order():
    layers = dict(unit.children())
    names = ["bn2b_branch2a", "res2b_branch2a", "bn2b_branch2b", "res2b_branch2b"]
    return [layers[name] for name in names]


check(
    "it gives what the unit of minires gives",
    lambda: np.allclose(your_unit(features, *layers_in_order()).data, unit(features).data, atol=1e-5),
)
check(
    "if the last convolution gives zeros, x comes out unchanged",
    lambda: np.array_equal(your_unit(features, *layers_in_order()[:3], lambda y: y * 0).data, features.data),
)

# %%
# **Exercise 2.** The shortcut of every unit is multiplied by the same number. Which number lets *half* of the
# gradient arrive after 54 units?

your_scale = ...


def arriving(scale):
    options = {"gating": "constant", "scale": (scale, 1.0), "widths": [4], "repeats": [54]}
    model = build("preresnet110_cifar", classes=2, order="full", **options)
    start = end = Tensor(np.ones((1, 2, 2, 4), "float32"), requires_grad=True)
    for name, part in model.children():
        if name.startswith("res"):
            end, _ = part.shortcut(end)
    end.sum().backward()
    return float(start.grad.mean())


check("half of the gradient arrives", lambda: abs(arriving(your_scale) - 0.5) < 0.01)
check("after 108 units it is a quarter", lambda: bool(np.isclose(your_scale**108, 0.25, atol=0.01)))

# %%
# **Exercise 3.** In one of the five orders no value of the signal can ever get smaller from one unit to the
# next, because no branch can give anything negative. Which one? (The paper names it as a reason why this
# order does worse.)

your_order = ...


def gets_smaller(order):
    options = {"classes": 6, "order": order, "widths": [8], "repeats": [6]}
    x = Tensor(np.abs(np.random.default_rng(0).standard_normal((2, 6, 6, 8))).astype("float32"))
    for name, part in build("preresnet110_cifar", **options).children():
        if name.startswith("res"):
            x, before = part(x), x
            if (x.data < before.data).any():
                return True
    return False


check("in this order no value gets smaller", lambda: not gets_smaller(your_order))
check("in all others some do", lambda: all(gets_smaller(order) for order in ORDERS if order != your_order))

# %%
# What you now know
# -----------------
#
# * In V2 nothing stands on the path of the additions: the output is the input plus what all branches add.
# * So the gradient of the output arrives at every unit whole, and what comes through the branches is added to
#   it.
# * In V1 a ReLU on that path cuts away part of it; a batch norm or a factor there does worse, once per unit.
# * V2 has one more batch norm and ReLU at its end. That norm, and not the order, makes the first steps at a
#   rate of 0.1 calm: V1 with it starts as calmly, and V2 without it worse than V1.
# * Two things that change together say nothing about either: change one at a time, and from several seeds.

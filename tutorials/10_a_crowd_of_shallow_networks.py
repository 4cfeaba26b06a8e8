"""
10 · A ResNet as a crowd of shallow networks
============================================

You count the paths through a residual network, take blocks out of a trained one, and see which paths the
gradient comes from.

A chain breaks if you take out a link. A residual network is deeper than most chains, but is it a chain? Veit,
Wilber and Belongie (2016, arXiv:1605.06431) proposed to look at it as a large number of *paths*, most of them
short. This lesson repeats three of their experiments on networks that train in seconds.
"""

# %%
# You need models, pictures, an optimiser, and ``comb`` to count.

from itertools import combinations
from math import comb

import matplotlib.pyplot as plt
import numpy as np

from minires import Tensor, no_grad
from minires.data import Loader, Normalize, find, load
from minires.exercises import check
from minires.models import build
from minires.nn import Sequential
from minires.ops.cross_entropy import cross_entropy
from minires.optim import Adam
from minires.train import recalibrate

# %%
# Multiply out
# ------------
#
# Take two residual units in a row, with the branches F1 and F2. On the way back, each unit passes on dy
# itself, and adds what its branch makes of it. Write B1 and B2 for the backward of the branches, and multiply
# out::
#
#     after unit 2       dy + B2(dy)
#     after unit 1       dy + B2(dy)  +  B1(dy + B2(dy))
#                      = dy + B2(dy) + B1(dy) + B1(B2(dy))
#
# Four terms: one for every way to go, through both branches, through one of them, or through none. The step
# from the second line to the third is allowed because a backward is linear: the backward of a sum is the sum
# of the backwards. With n units there are two choices at each, so
#
#     n units = 2^n paths
#
# How long are they? The number of paths through exactly k branches is the number of ways to choose k units of
# n. For the 54 units of the paper's network of 110 layers:

units = 54
paths = np.array([comb(units, k) for k in range(units + 1)], dtype=float)
share = paths / paths.sum()
middle = share[19:36].sum()
print(f"{paths.sum():.1e} paths; {middle:.1%} of them go through 19 to 35 of the {units} branches")
assert paths.sum() == 2.0**units
assert middle > 0.95

fig, ax = plt.subplots(figsize=(7, 2.8), layout="constrained")
ax.bar(range(units + 1), 100 * share, color="#0072b2")
ax.set(xlabel="length of the path (branches on it)", ylabel="share of all paths (%)")

# %%
# Almost no path is long. There is exactly one through all 54 branches, of some 10¹⁶. "110 layers" is the
# length of that one.

# %%
# One network, with and without its shortcuts
# -------------------------------------------
#
# To see what the shortcuts do, change nothing else. Take a residual network of 20 layers in the form of
# lesson 09, so that nothing stands on its shortcuts. Then take the very same layers in a row, without the
# additions: a plain network of the same depth, with the same weights at the start. (At 20 layers the plain
# networks of lesson 05 still learned; those of 56 hardly did.) Train both with Adam on the same batches. And
# do that three times, with other weights and another order of the pictures, since one training may be luck.

pictures = load("signs" if find("signs") else "hands", size=16)
normalize = Normalize.of(pictures.train)
print(pictures.source)


def network(seed, units=3, shortcuts=True):
    """A residual network of so many units in each of its three stages; or its layers in a row."""
    model = build("preresnet110_cifar", classes=6, seed=seed, repeats=[units] * 3)
    if shortcuts:
        return model
    parts = {name: Sequential(**dict(part.children())) if name.startswith("res") else part
             for name, part in model.children()}  # fmt: skip
    return Sequential(**parts)


def trained(model, seed, steps=110):
    """The model after so many steps of Adam with a falling learning rate, ready for use."""
    optimizer = Adam(model.named_parameters(), 1e-3)
    batches = Loader(pictures.train, 32, seed=seed, normalize=normalize, drop_last=True)
    for step in range(steps):
        if step % len(batches) == 0:
            epoch = batches.epoch(step // len(batches))
        x, labels = next(epoch)
        optimizer.lr = 1e-3 * min(1, 2 * (1 - step / steps))
        loss = cross_entropy(model(Tensor(x)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    recalibrate(model, pictures.train.images, normalize)
    return model.eval()


seeds = range(3)
models = {
    kind: [trained(network(seed, shortcuts=kind == "residual"), seed) for seed in seeds]
    for kind in ("plain", "residual")
}
sizes = {kind: sum(weights.size for weights in three[0].parameters()) for kind, three in models.items()}
print(sizes)
assert sizes["plain"] == sizes["residual"]

# %%
# Take out one block
# ------------------
#
# To take a block out, do not call it. What comes into it goes straight into the next one. That works where
# the block keeps the shape, which are all but the first of the later stages; those stay. All is measured on
# the test pictures, which no network was trained on.

x, labels = normalize(pictures.test.images), pictures.test.labels


def removable(model):
    """The names of the blocks that hand on the shape they get."""
    names = [name for name, _ in model.children() if name.startswith("res")]
    return [name for name in names if name not in ("res3a", "res4a")]


def accuracy(model, without=()):
    """The share of the test pictures that are right if the blocks ``without`` are not called."""
    y = Tensor(x)
    with no_grad():
        for name, part in model.children():
            if name not in without:
                y = part(y)
    return float((y.data.argmax(axis=1) == labels).mean())


whole = {kind: [accuracy(model) for model in three] for kind, three in models.items()}
one_less = {
    kind: np.array([[accuracy(model, [name]) for name in removable(model)] for model in three])
    for kind, three in models.items()
}

colors, blocks = {"plain": "#d55e00", "residual": "#009e73"}, removable(models["plain"][0])
fig, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained", sharey=True)
for ax, (kind, results) in zip(axes, one_less.items(), strict=True):
    ax.bar([name[3:] for name in blocks], results.mean(axis=0), color=colors[kind], alpha=0.6)
    for values in results:
        ax.plot(range(len(blocks)), values, "k.", markersize=5)
    ax.axhline(np.mean(whole[kind]), color="black", linestyle="--", label="nothing taken out")
    ax.axhline(1 / 6, color="black", linestyle=":", label="guessing")
    ax.set(title=kind, xlabel="block taken out (dots: three trainings)", ylim=(0, 1.05))
axes[0].set_ylabel("accuracy on test pictures")
_ = fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=8)

for kind, results in one_less.items():
    for seed in seeds:
        less = f"{results[seed].min():.2f} to {results[seed].max():.2f}, mean {results[seed].mean():.2f}"
        print(f"{kind:<9} seed {seed}   whole: {whole[kind][seed]:.2f}   one block less: {less}")

for seed in seeds:
    assert one_less["residual"][seed].mean() > one_less["plain"][seed].mean() + 0.08
    assert one_less["plain"][seed].mean() < 0.3

# %%
# At equal depth, with equal layers: the plain network is near guessing whichever block is missing. The
# residual network is hurt as well, but keeps a part of what it knew, and without its most dispensable block
# it is still right far more often than by guessing. That holds in each of the three trainings. In terms of
# paths: one block is on *half* of all paths. Take it out, and the other half is untouched. In a plain network
# there is one path, and every block is on it.
#
# The whole residual networks are better than the plain ones, too. So compare what is left with what there
# was: of what a network knew beyond guessing, how much does it keep without one block, on average?


def share_kept(whole, one_less):
    return float((np.mean(one_less) - 1 / 6) / (whole - 1 / 6))


kept = {kind: [share_kept(*each) for each in zip(whole[kind], one_less[kind], strict=True)] for kind in whole}
print({kind: [f"{share:.0%}" for share in shares] for kind, shares in kept.items()})
assert max(kept["plain"]) < 0.2 < min(kept["residual"])

# %%
# Seven blocks can be taken out here. In the network of 54 units that Veit and others took apart, hardly any
# single block matters, save those that change the shape.

# %%
# Take out several
# ----------------
#
# A chain breaks or holds. A crowd gets smaller. Take out 1, 2, ... blocks at random, six times of each
# network:


def accuracies_without(model, count, draws=6):
    rng = np.random.default_rng(count)
    return [accuracy(model, rng.choice(removable(model), count, replace=False)) for _ in range(draws)]


counts = range(1, 6)
fewer = {
    kind: np.array([np.repeat(whole[kind], 6), *(
        np.ravel([accuracies_without(model, count) for model in three]) for count in counts
    )])
    for kind, three in models.items()
}  # fmt: skip

fig, ax = plt.subplots(figsize=(7, 3), layout="constrained")
for kind, values in fewer.items():
    ax.plot(values.mean(axis=1), color=colors[kind], label=f"{kind}, mean of three networks")
    ax.plot(values, ".", color=colors[kind], alpha=0.4)
ax.axhline(1 / 6, color="black", linestyle=":", label="guessing")
ax.set(xlabel="blocks taken out", ylabel="accuracy on test pictures", ylim=(0, 1.05))
_ = ax.legend(fontsize=8)

means = {kind: values.mean(axis=1) for kind, values in fewer.items()}
print({kind: several.round(2).tolist() for kind, several in means.items()})
assert means["residual"][1] > means["residual"][3] > means["residual"][5] - 0.05
assert means["residual"][1] > means["plain"][1] + 0.08
assert means["plain"][1] < 0.3

# %%
# The plain networks are close to guessing after the first block. The residual networks get there more slowly.
# With 54 units, blocks put in another order, and the lengths of paths: lab P7, ``minires lab crowd``. To take
# out blocks of your own network there is ``with minires.intervene(model, {"res2b": "drop"})``.

# %%
# Which paths carry the gradient?
# -------------------------------
#
# Now the backward pass of trained residual networks. Sort the gradient by the length of the path on which
# it came. That needs no list of all paths. Keep one array for each length; at a unit with the backward B::
#
#     new[k] = old[k] + B(old[k - 1])        past the branch, or through it and one longer
#
# The branch of a unit is its layers one after the other, as in lesson 09. Run it with a tape of its own for
# each unit, and add the shortcut by hand. The network is in inference mode: its batch norms use fixed
# statistics, and each picture has its gradient to itself. (For any other model of residual units
# ``minires.inspect.path_lengths`` does this, and the paper's measurement over single paths.)


def branch(unit, x):
    for _, layer in unit.children():
        x = layer(x)
    return x


def back(start, end, dy):
    """The gradient of what came in, from that of what came out."""
    start.grad = None
    end.backward(dy, retain_graph=True)
    return start.grad


def gradients_by_length(model):
    """The gradient of the pixels by the length of its paths; and that over the one path through all."""
    tapes, signal = [], x[:32]
    for name, part in model.children():
        start = Tensor(signal, requires_grad=True)
        has_shortcut = name in removable(model)
        end = branch(part, start) if has_shortcut else part(start)
        signal = start.data + end.data if has_shortcut else end.data
        tapes.append((has_shortcut, start, end))

    logits = Tensor(signal, requires_grad=True)
    cross_entropy(logits, labels[:32]).backward()
    by_length, over_all = [logits.grad], logits.grad
    for has_shortcut, start, end in reversed(tapes):
        through = [back(start, end, dy) for dy in by_length]
        over_all = back(start, end, over_all)
        if has_shortcut:
            none = np.zeros_like(through[0])
            by_length = [past + new for past, new in zip([*by_length, none], [none, *through], strict=True)]
        else:
            by_length = through
    return by_length, over_all


# %%
# The networks of 20 layers have seven such units. Train three of 38 layers besides, with sixteen: is the
# answer the same?
#
# Nothing may be missing: the sum of all lengths must be the gradient that the tape of the whole network
# gives, and the last of the arrays what comes over the one path through all branches.

by_depth = {20: models["residual"], 38: [trained(network(seed, units=6), seed) for seed in seeds]}


def sizes_by_length(model):
    """The norm of the gradient over all paths of each length; that of the whole gradient is 1."""
    by_length, over_all = gradients_by_length(model)
    pixels = Tensor(x[:32], requires_grad=True)
    cross_entropy(model(pixels), labels[:32]).backward()
    whole = np.linalg.norm(pixels.grad)
    assert np.linalg.norm(sum(by_length) - pixels.grad) < 1e-3 * whole
    assert np.allclose(over_all, by_length[-1], rtol=1e-3, atol=1e-4 * np.abs(over_all).max())
    return [float(np.linalg.norm(gradient)) / whole for gradient in by_length]


size = {depth: np.array([sizes_by_length(model) for model in three]) for depth, three in by_depth.items()}
assert {depth: found.shape for depth, found in size.items()} == {20: (3, 8), 38: (3, 17)}

# %%
# The lines are the share of all paths that have this length; the bars, the share of the gradient that comes
# over them, on average of three networks, which are the dots.

fig, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
mean_length = {}
for ax, (depth, found) in zip(axes, size.items(), strict=True):
    lengths = np.arange(found.shape[1])
    number = np.array([comb(lengths[-1], k) for k in lengths], dtype=float)
    shares = found / found.sum(axis=1, keepdims=True)
    ax.bar(lengths, shares.mean(axis=0), color="#009e73", alpha=0.6, label="gradient")
    ax.plot(lengths, shares.T, "k.", markersize=4)
    ax.plot(lengths, number / number.sum(), color="#0072b2", label="number of paths")
    ax.set(title=f"{depth} layers", xlabel="length of the path (branches on it)", ylabel="share")
    mean_length[depth] = (lengths.mean(), shares @ lengths)
    print(f"{depth} layers, mean length: of all paths {lengths.mean():.1f}, weighted by gradient in each:",
          (shares @ lengths).round(1).tolist())  # fmt: skip
    print(f"   the longest path carries, of what the shortest does: {(found[:, -1] / found[:, 0]).round(2)}")
axes[0].legend(fontsize=8)

of_all, by_gradient = mean_length[38]
assert by_gradient.max() < of_all - 0.5
of_all, by_gradient = mean_length[20]
assert by_gradient.min() > of_all
assert (size[38][:, -1] < 0.3 * size[38][:, 0]).all() and (size[20][:, -1] > size[20][:, 0]).all()

# %%
# The two depths do not agree. In the network of 38 layers the gradient comes over paths that are shorter than
# the average path, in each of the three: on average a branch passes on less than the shortcut beside it, so
# that the longest path carries only a small part of what the shortest does. That is what the authors found
# with 54 units: nearly all of the gradient on paths of 5 to 17 branches, where the average path has 27. In
# the network of 20 layers it is the other way round. There a branch passes on more than its shortcut, and the
# longer paths carry more.
#
# So "the effective paths are short" is no law of shortcuts: it depends on how much the branches pass on
# beside them. How far the picture of a crowd goes is a matter of debate: the paths share their weights and
# are trained together. What you measured does not depend on it.

# %%
# Exercises
# ---------

# %%
# **Exercise 1.** A network has ``units`` residual units, and ``deleted`` of them are taken out. How many
# paths are left?


def your_paths_left(units, deleted):
    """The number of paths."""
    ...


def paths_listed(units, deleted):
    """Every path as the set of the branches on it, listed and counted."""
    rest = range(deleted, units)
    return sum(1 for k in range(len(rest) + 1) for _ in combinations(rest, k))


check("right for 10 units, 3 of them taken out", lambda: your_paths_left(10, 3) == paths_listed(10, 3))
check("right if all are taken out", lambda: your_paths_left(5, 5) == paths_listed(5, 5))
check("each unit less halves them", lambda: your_paths_left(54, 1) * 2 == your_paths_left(54, 0))

# %%
# **Exercise 2.** Two linear units: ``y = x + x @ w1`` and ``z = y + y @ w2``. You get ``dz``. Return a list
# of the four gradients that come back to x, one for each path: through no branch, through the first only,
# through the second only, through both.


def your_four_gradients(dz, w1, w2):
    """A list of four arrays of the shape of dz."""
    ...


rng = np.random.default_rng(7)
features, first_weight, second_weight = (
    rng.normal(size=(5, 3)),
    rng.normal(size=(3, 3)),
    rng.normal(size=(3, 3)),
)
upstream = rng.normal(size=(5, 3))


def gradient_of_the_tape(w1, w2):
    x = Tensor(features, requires_grad=True)
    y = x + x @ Tensor(w1)
    (y + y @ Tensor(w2)).backward(upstream)
    return x.grad


zero = np.zeros((3, 3))
check(
    "together they are the gradient of the tape",
    lambda: np.allclose(
        sum(your_four_gradients(upstream, first_weight, second_weight)),
        gradient_of_the_tape(first_weight, second_weight),
    ),
)
check("there are four", lambda: len(your_four_gradients(upstream, first_weight, second_weight)) == 4)
check(
    "if the first branch is zero, the paths through it carry nothing",
    lambda: (
        [bool(np.any(g)) for g in your_four_gradients(upstream, zero, second_weight)]
        == [True, False, True, False]
    ),
)

# %%
# **Exercise 3.** Which share of the paths through ``units`` residual units goes through *at most* ``length``
# branches? ``comb(n, k)`` is there for you.


def your_share(units, length):
    """A number from 0 to 1."""
    ...


def share_listed(units, length):
    lengths = [k for k in range(units + 1) for _ in combinations(range(units), k)]
    return sum(k <= length for k in lengths) / len(lengths)


check("right for 12 units and 4 branches", lambda: bool(np.isclose(your_share(12, 4), share_listed(12, 4))))
check("no path is longer than there are units", lambda: bool(np.isclose(your_share(54, 54), 1)))
check(
    "for 54 units, as many are short as are long",
    lambda: bool(np.isclose(your_share(54, 26), 1 - your_share(54, 27))),
)

# %%
# What you now know
# -----------------
#
# * n residual units are 2ⁿ paths; most go through about half of the branches, one goes through all.
# * The gradient is the sum of what comes over each path, exactly.
# * Without one of its blocks a trained residual network keeps a part of what it knew; a plain one of the same
#   depth, with the same layers, next to nothing.
# * In the networks of 38 layers the gradient came over paths that are shorter than the average path; in those
#   of 20 layers it did not.

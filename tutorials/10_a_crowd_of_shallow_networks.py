"""
10 · A ResNet as a crowd of shallow networks
============================================

You count the paths through a residual network, take blocks out of a trained one, and see which paths the
gradient comes from.

A chain breaks if you take out a link. A residual network is deeper than most chains, but is it a chain? Veit,
Wilber and Belongie (2016, arXiv:1605.06431) proposed to look at it as a large number of *paths*, most of them
short. This lesson repeats three of their experiments on a network that trains in seconds.
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
# Two networks to break
# ---------------------
#
# Train two networks: a plain one of 20 layers, as deep as lesson 05 says you may go, and a residual one of 38
# in the form of lesson 09, so that nothing stands on its shortcuts.

pictures = load("signs" if find("signs") else "hands", size=16)
normalize = Normalize.of(pictures.train)
print(pictures.source)


def trained(name, steps=200, **options):
    """A model after so many steps of Adam with a falling learning rate, ready for use."""
    model = build(name, classes=6, seed=0, **options)
    optimizer = Adam(model.named_parameters(), 1e-3)
    batches = Loader(pictures.train, 32, normalize=normalize, drop_last=True)
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


plain = trained("plain20_cifar")
residual = trained("preresnet110_cifar", repeats=[6, 6, 6])

# %%
# Take out one block
# ------------------
#
# To take a block out, do not call it. What comes into it goes straight into the next one. That works where
# the block keeps the shape, which are all but the first of the later stages; those stay. The question is not
# how well the network does on new pictures but how much of it is left, so use pictures it was trained on.

some = np.random.default_rng(0).permutation(len(pictures.train))[:256]
x, labels = normalize(pictures.train.images[some]), pictures.train.labels[some]


def accuracy(model, without=()):
    """The share of the pictures that are right if the blocks ``without`` are not called."""
    y = Tensor(x)
    with no_grad():
        for name, part in model.children():
            if name not in without:
                y = part(y)
    return float((y.data.argmax(axis=1) == labels).mean())


def removable(model):
    """The names of the blocks that hand on the shape they get."""
    blocks = [(name, part) for name, part in model.children() if name.startswith("res")]
    return [name for name, part in blocks if part.stride == 1 and part.in_channels == part.out_channels]


whole = {"plain": accuracy(plain), "residual": accuracy(residual)}
one_less = {
    "plain": {name: accuracy(plain, [name]) for name in removable(plain)},
    "residual": {name: accuracy(residual, [name]) for name in removable(residual)},
}

fig, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained", sharey=True, width_ratios=(1, 2))
for ax, (kind, results) in zip(axes, one_less.items(), strict=True):
    ax.bar(
        [name[3:] for name in results], results.values(), color="#009e73" if kind == "residual" else "#d55e00"
    )
    ax.axhline(whole[kind], color="black", linestyle="--", label="nothing taken out")
    ax.axhline(1 / 6, color="black", linestyle=":", label="guessing")
    ax.set(title=kind, xlabel="block taken out", ylim=(0, 1.05))
axes[0].set_ylabel("accuracy on training pictures")
_ = fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=8)

for kind, results in one_less.items():
    values = list(results.values())
    print(f"{kind:<9} whole: {whole[kind]:.2f}   one block less, median: {np.median(values):.2f}, "
          f"worst {min(values):.2f}, best {max(values):.2f}")  # fmt: skip

plain_less, residual_less = (np.array(list(results.values())) for results in one_less.values())
assert whole["plain"] > 0.7 and plain_less.max() < 0.6 and np.median(plain_less) < 0.45
assert whole["residual"] > 0.85 and np.median(residual_less) > 0.6
first = [one_less["residual"][name] for name in ("res2a", "res2b", "res3b", "res4b")]
assert np.mean(first) < np.median(residual_less)

# %%
# The plain network does not survive the loss of any block: what each block learned to expect does not come
# any more. The residual network loses little by most of them, and most by the first ones of a stage. In terms
# of paths: one block is on *half* of all paths. Take it out, and the other half is untouched. In a plain
# network there is one path, and every block is on it.
#
# Here 16 blocks can be taken out. In the network of 54 that Veit and others took apart, hardly any single
# block matters, save those that change the shape.

# %%
# Take out several
# ----------------
#
# A chain breaks or holds. A crowd gets smaller. Take out 1, 2, ... blocks at random, eight times each:


def accuracies_without(model, count, draws=8):
    rng = np.random.default_rng(count)
    names = removable(model)
    return [accuracy(model, rng.choice(names, count, replace=False)) for _ in range(draws)]


counts = range(1, 6)
fewer = {
    "plain": [[whole["plain"]], *(accuracies_without(plain, count) for count in counts)],
    "residual": [[whole["residual"]], *(accuracies_without(residual, count) for count in counts)],
}

fig, ax = plt.subplots(figsize=(7, 3), layout="constrained")
for kind, color in (("plain", "#d55e00"), ("residual", "#009e73")):
    ax.plot([np.mean(values) for values in fewer[kind]], color=color, label=f"{kind}, mean")
    for count, values in enumerate(fewer[kind]):
        ax.plot([count] * len(values), values, ".", color=color, alpha=0.6)
ax.axhline(1 / 6, color="black", linestyle=":", label="guessing")
ax.set(xlabel="blocks taken out", ylabel="accuracy on training pictures", ylim=(0, 1.05))
_ = ax.legend(fontsize=8)

means = {kind: [float(np.mean(values)) for values in several] for kind, several in fewer.items()}
print({kind: [round(mean, 2) for mean in several] for kind, several in means.items()})
assert means["residual"][1] > means["residual"][3] > means["residual"][5]
assert means["residual"][2] > means["plain"][1] + 0.1
assert means["plain"][1] < 0.4

# %%
# The plain network is close to guessing after the first block. The residual network gets there more slowly.

# %%
# Which paths carry the gradient?
# -------------------------------
#
# Now the backward pass of the trained network. Sort the gradient by the length of the path on which it came.
# That needs no list of all paths. Keep one array for each length; at a unit with the backward B::
#
#     new[k] = old[k] + B(old[k - 1])        past the branch, or through it and one longer
#
# The branch of a unit is its layers one after the other, as in lesson 09. Run it with a tape of its own for
# each unit, and add the shortcut by hand. The network is in inference mode: its batch norms use fixed
# statistics, and each picture has its gradient to itself.


def branch(unit, x):
    for _, layer in unit.children():
        x = layer(x)
    return x


tapes, signal = [], x[:32]
for name, part in residual.children():
    start = Tensor(signal, requires_grad=True)
    has_shortcut = name in removable(residual)
    end = branch(part, start) if has_shortcut else part(start)
    signal = start.data + end.data if has_shortcut else end.data
    tapes.append((has_shortcut, start, end))


def back(start, end, dy):
    """The gradient of what came in, from that of what came out."""
    start.grad = None
    end.backward(dy, retain_graph=True)
    return start.grad


logits = Tensor(signal, requires_grad=True)
cross_entropy(logits, labels[:32]).backward()
by_length = [logits.grad]
for has_shortcut, start, end in reversed(tapes):
    through = [back(start, end, dy) for dy in by_length]
    if has_shortcut:
        none = np.zeros_like(through[0])
        by_length = [past + new for past, new in zip([*by_length, none], [none, *through], strict=True)]
    else:
        by_length = through

# %%
# Nothing is missing: the sum of all lengths is the gradient that the tape of the whole network gives. And the
# last of the arrays is what comes over the one path through all branches.

pixels = Tensor(x[:32], requires_grad=True)
cross_entropy(residual(pixels), labels[:32]).backward()
difference = np.linalg.norm(sum(by_length) - pixels.grad) / np.linalg.norm(pixels.grad)
longest = len(by_length) - 1
print(f"lengths 0 to {longest}; their sum differs from the gradient of the tape by {difference:.0e} of it")
assert longest == len(removable(residual)) == 16
assert difference < 1e-3

over_all_branches = logits.grad
for _, start, end in reversed(tapes):
    over_all_branches = back(start, end, over_all_branches)
assert np.allclose(over_all_branches, by_length[-1], rtol=1e-3, atol=1e-4 * np.abs(by_length[-1]).max())

# %%
# On the left is how many paths there are of each length; on the right, how large the gradient is that comes
# over all of them together.

number = np.array([comb(longest, k) for k in range(longest + 1)], dtype=float)
size = np.array([np.linalg.norm(gradient) for gradient in by_length])

fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
left.bar(range(longest + 1), number, color="#0072b2")
left.set(xlabel="length of the path (branches on it)", ylabel="number of paths", xticks=range(0, 17, 4))
right.bar(range(longest + 1), size / np.linalg.norm(pixels.grad), color="#009e73")
right.set(xlabel="length of the path", ylabel="their gradient (norm; whole = 1)", xticks=range(0, 17, 4))

lengths = np.arange(longest + 1)
print(f"mean length: of all paths {(number * lengths).sum() / number.sum():.1f}, "
      f"weighted by gradient {(size * lengths).sum() / size.sum():.1f}")  # fmt: skip
print(f"the longest path carries {size[-1] / size[0]:.2f} times what the shortest does")
assert (size * lengths).sum() / size.sum() < (number * lengths).sum() / number.sum() - 0.3
assert size[-1] < 0.3 * size[0]

# %%
# The right half leans to the left: the gradient comes over paths that are shorter than the average path. On
# average a branch passes on less than the shortcut beside it, so the longest path carries only a small part
# of what the shortest does. With 16 branches that is a mild effect. With 54, the authors found nearly all of
# the gradient on paths of 5 to 17 branches, where the average path has 27.
#
# So a residual network does not carry the gradient through all its depth. It offers short ways, and they are
# used. How far the picture of a crowd goes is a matter of debate: the paths share their weights and are
# trained together. What you measured does not depend on it.

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
# * A trained residual network survives the loss of most of its blocks, one at a time; a plain one of none.
# * The gradient comes over paths that are shorter than the average path.

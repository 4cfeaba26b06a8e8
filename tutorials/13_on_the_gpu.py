"""
13 · On the GPU
===============

You read a CUDA kernel, run its blocks and threads in plain Python, and see what a GPU makes fast or slow.

No GPU is needed. What a GPU does with a kernel is played through in Python, on arrays small enough to look
at. Two cells use a GPU where there is one. The line below the imports says whether there was one when this
page was made.
"""

# %%
# The kernels of minires stand in the files of the operations. They are compiled only when a GPU is there.

import time

import matplotlib.pyplot as plt
import numpy as np

from minires import Tensor, backend
from minires.backend import cublas, cuda
from minires.exercises import check
from minires.models import build
from minires.ops import relu as relu_file
from minires.ops.conv2d import conv2d
from minires.ops.cross_entropy import cross_entropy
from minires.ops.relu import relu
from minires.optim import cuda_kernels

device = backend.choose_device("auto")
print("device:", device)

# %%
# A kernel is the body of a loop
# ------------------------------
#
# A GPU has many small processors. It is given a kernel: a function that each of many threads runs. The
# threads differ in nothing but their number. They come in blocks: ``blockIdx.x`` is the number of the
# block, ``threadIdx.x`` that of the thread in its block. Here is the whole CUDA C++ source of ReLU. ``T``
# is the type of the numbers, and ``EACH(i, n)`` shares the places 0 to n - 1 out among all threads.

(source,) = [value for value in vars(relu_file).values() if isinstance(value, cuda.Source)]
print(source.text("float32"))
assert "__global__ void relu(" in source.text("float32")

# %%
# Blocks and threads, in Python
# -----------------------------
#
# This is ``EACH``, and the kernel, line by line. ``launch`` runs all threads one after the other. A GPU
# runs many of them at once, in an order that nobody knows.


def each(me, n):
    """The places of a thread: it starts at its own number and goes on by the number of all threads."""
    block, thread, blocks, threads = me
    return range(block * threads + thread, n, blocks * threads)


def relu_kernel(me, x, y, n):
    for i in each(me, n):
        y[i] = 0 if x[i] < 0 else x[i]


def launch(kernel, blocks, threads, *arguments):
    for block in range(blocks):
        for thread in range(threads):
            kernel((block, thread, blocks, threads), *arguments)


rng = np.random.default_rng(0)
x = rng.standard_normal(20).astype("float32")
y = np.zeros(20, "float32")
launch(relu_kernel, 2, 4, x, y, 20)
assert np.array_equal(y, relu(Tensor(x)).numpy())
print("2 blocks of 4 threads agree with minires")

# %%
# The picture below shows who takes which place. Neighbouring threads take neighbouring places. When all
# threads have had one, the first thread goes on. So a launch may have fewer threads than there are numbers,
# or more.

grid = [(block, thread) for block in range(2) for thread in range(4)]
places = [(i, block, thread) for block, thread in grid for i in each((block, thread, 2, 4), 20)]
assert sorted(i for i, _, _ in places) == list(range(20))  # each place is taken once

fig, ax = plt.subplots(figsize=(7, 2.8), layout="constrained")
for i, block, thread in places:
    color = ("#9ecae1", "#fdae6b")[block]
    ax.add_patch(plt.Rectangle((i % 8 - 0.5, i // 8 - 0.5), 1, 1, facecolor=color, edgecolor="w"))
    ax.text(i % 8, i // 8, f"y[{i}]\nthread {thread}", ha="center", va="center", fontsize=8)
ax.set(xlim=(-0.5, 7.5), ylim=(2.5, -0.5), yticks=range(3), title="EACH(i, 20), 2 blocks of 4 threads")
ax.set(xlabel="number of the thread among all (blue: block 0, orange: block 1)", ylabel="its turn")

# %%
# The result depends neither on the grid nor on the order of the threads, since each place is written by one
# thread only. Keep to this rule when you write a kernel.

for blocks, threads in ((1, 1), (3, 2), (8, 4)):
    y[:] = 0
    launch(relu_kernel, blocks, threads, x, y, 20)
    assert np.array_equal(y, relu(Tensor(x)).numpy())
y[:] = 0
for block, thread in rng.permutation(grid):
    relu_kernel((block, thread, 2, 4), x, y, 20)
assert np.array_equal(y, relu(Tensor(x)).numpy())
print("minires would launch", cuda.over(20), "for 20 numbers and", cuda.over(1 << 20), "for a million")

# %%
# Threads that write to one place
# -------------------------------
#
# A sum breaks the rule: all numbers go to one place. Adding takes three steps, read, add, write, and
# between them other threads do theirs. Here ``yield`` marks the moment at which the others go on.


def at_once(threads):
    """Run generators in turn, each up to its next yield, until all are done."""
    while threads:
        threads = [thread for thread in threads if next(thread, "done") != "done"]


def careless_sum(thread, x, total):
    seen = total[0]
    yield
    total[0] = seen + x[thread]


numbers = np.arange(1.0, 9.0)
total = [0.0]
at_once([careless_sum(thread, numbers, total) for thread in range(8)])
print("sum:", numbers.sum(), " the careless kernel:", total[0])
assert total[0] == numbers[-1] != numbers.sum()

# %%
# All threads read the zero, and the last one to write wins. The way out is a tree. The threads of a block
# have a small memory in common, ``shared``, and can wait for one another: ``__syncthreads()`` in CUDA,
# ``yield`` here. In each round half of the threads add the number of a partner, and no two threads write to
# one place.


def sum_of_block(thread, x, shared):
    shared[thread] = x[thread]
    half = len(x) // 2
    while half:
        yield  # wait for all threads of the block
        if thread < half:
            shared[thread] += shared[thread + half]
        half //= 2


shared = np.zeros(8)
at_once([sum_of_block(thread, numbers, shared) for thread in range(8)])
print("sum by a tree:", shared[0])
assert shared[0] == numbers.sum()

# %%
# In CUDA it looks the same. With this function minires adds up the squares of all gradients, for their
# norm.

(code,) = [
    v.code for v in vars(cuda_kernels).values() if isinstance(v, cuda.Source) and "sum_of_block(" in v.code
]
start = code.index("__device__ double sum_of_block")
print(code[start : code.index("\n}\n", start) + 2])

# %%
# A tree adds in the same order each time, so the result is the same to the last bit each time. Where
# minires can do without sums of many threads, it does. ``col2im`` of lesson 03 adds each column back to its
# pixel, and there two threads could meet. So the kernel is turned round: a thread has a pixel, and asks
# which windows lie over it.

# %%
# Memory: neighbours read neighbours
# ----------------------------------
#
# Three kinds of memory matter:
#
# - the memory of the *host*, where NumPy arrays live. A copy from there is slow, so the weights of a network
#   stay on the device from step to step;
# - the memory of the *device*, large and fast, which all threads read and write;
# - *shared memory* and registers, small and the fastest, for the threads of a block and for one thread.
#
# Threads run in groups, called warps, and device memory comes in lines; the cell below has the sizes that
# NVIDIA's programming guide gives. What counts is how many lines the threads of a warp touch in one step.
# Arrays of minires are N H W C, with the channels last. Compare two ways to give numbers to threads.

WARP, LINE = 32, 128
pictures = np.zeros((1, 8, 8, 64), "float32")
threads = np.arange(WARP)
bytes_of = {
    "neighbouring channels": threads * pictures.strides[3],
    "neighbouring pixels, one channel": threads * pictures.strides[2],
}
lines = {name: len(set(places // LINE)) for name, places in bytes_of.items()}
print("lines of memory touched by a warp:", lines)
assert list(lines.values()) == [1, 32]

# %%
# If its threads take neighbouring channels, a warp needs one line. If they take neighbouring pixels, each
# thread needs a line of its own, and of each line one number is used. The next picture shows the addresses,
# with the lines that are touched in blue. In the kernels of minires neighbouring threads therefore take
# neighbouring channels.

fig, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained", sharex=True, sharey=True)
for ax, (name, places) in zip(axes, bytes_of.items(), strict=True):
    for line in sorted(set(places // LINE)):
        ax.axvspan(line * LINE, (line + 1) * LINE, color="#9ecae1", linewidth=0)
    ax.plot(places, threads, ".", color="#d55e00")
    ax.set(title=f"{name}, lines: {lines[name]}", xlabel="address (bytes)", ylabel="thread of the warp")

# %%
# Why launches count
# ------------------
#
# Each operation is at least one launch, and a launch has a fixed price: Python, the driver, the start of
# the kernel. For few numbers that is all there is to pay. The same shows on any device, so here ReLU is
# timed on the one that was found above. In the picture the curve is flat on the left, where only the call
# costs, and rises on the right, where the numbers do.


def finished():
    """Wait until a GPU has done what was launched: launching does not wait by itself."""
    if device == "cuda":
        backend.cupy().cuda.Device().synchronize()


def seconds(x):
    """The best of ten times."""
    times = []
    for _ in range(10):
        finished()
        start = time.perf_counter()
        relu(x)
        finished()
        times.append(time.perf_counter() - start)
    return min(times[1:])


sizes = [4**k for k in range(2, 12)]
times = [seconds(Tensor(np.ones(size, "float32"), device=device)) for size in sizes]
fig, ax = plt.subplots(figsize=(6, 3.4), layout="constrained")
ax.loglog(sizes, [1e6 * t for t in times], "o-", color="#0072b2", linewidth=2)
ax.set(xlabel="numbers", ylabel="microseconds of one call", title=f"relu on {device}")
ax.grid(alpha=0.3)
print(f"{sizes[0]} numbers: {1e6 * times[0]:.1f} microseconds; {sizes[-1]:,}: {1e6 * times[-1]:.0f}")
assert times[0] / sizes[0] > 10 * times[-1] / sizes[-1]

# %%
# How many operations does a training step of ResNet-50 have? The tape of lesson 01 knows. Forward and
# backward, each is at least one launch, and the optimiser comes on top. Many of these kernels are small,
# and for a small kernel Python takes longer to launch it than a GPU to run it.

model = build("resnet50_signs", seed=0)
logits = model(Tensor(rng.standard_normal((2, 64, 64, 3)).astype("float32")))
steps = [step.node.op for step in cross_entropy(logits, np.array([0, 1])).backward_steps()]
print(len(steps), "operations:", {op: steps.count(op) for op in sorted(set(steps))})
assert len(steps) > 100

# %%
# Two things help. Do more in a launch: batch norm, addition and ReLU are one operation here, as in lesson
# 04. And do not launch at all, but let the GPU repeat what it did before.

# %%
# A captured step
# ---------------
#
# All steps of a training run launch the same kernels on the same arrays. So one step is captured: its
# launches are written down and not run. The list is called a CUDA graph. It is replayed for each batch with
# a single launch. In Python a graph is a list.


def double_kernel(me, x, y, n):
    for i in each(me, n):
        y[i] = 2 * x[i]


batch, hidden, result = np.array([1.0, -2.0, 3.0]), np.zeros(3), np.zeros(3)
graph = [(double_kernel, 1, 3, batch, hidden, 3), (relu_kernel, 1, 3, hidden, result, 3)]


def replay(graph):
    for kernel, *arguments in graph:
        launch(kernel, *arguments)


replay(graph)
print("first batch:", result)
assert np.array_equal(result, [2, 0, 6])

# %%
# A graph holds addresses, not names. What changes from step to step must be written to the place that the
# graph reads. A new array under the old name is not seen.

reads = batch
batch = np.array([10.0, 10.0, 10.0])  # a new array: the graph still reads the old one
replay(graph)
print("a new array:    ", result)
assert np.array_equal(result, [2, 0, 6])

reads[...] = 10.0  # into the place that the graph reads
replay(graph)
print("the same array: ", result)
assert np.array_equal(result, [20, 20, 20])

# %%
# ``minires/train/captured.py`` does this with the whole step: forward, backward and optimiser. Pictures,
# labels and the learning rate are written to fixed places before each replay.

# %%
# Precision
# ---------
#
# A float32 has 23 bits behind the point of its significand. The matrix units of a GPU are faster with fewer
# bits: in the format TF32 the factors of a product are rounded to 10 bits, in bfloat16 to 7, and the sums
# stay in float32. What does that cost? Below, the factors of a matrix product are rounded to so many bits.
# The picture shows the relative error of the product.


def rounded(x, bits):
    """The nearest number with ``bits`` bits behind the point of its significand."""
    fraction, exponent = np.frexp(x)  # x = fraction * 2**exponent, with 0.5 <= |fraction| < 1
    scale = 2.0 ** (bits + 1)
    return np.ldexp(np.round(fraction * scale) / scale, exponent).astype("float32")


assert np.finfo(np.float32).nmant == 23 and rounded(np.float32(1 / 3), 23) == np.float32(1 / 3)
a, b = rng.standard_normal((2, 256, 256)).astype("float32")
exact = a.astype("float64") @ b
errors = {}
for bits in range(5, 24):
    product = rounded(a, bits) @ rounded(b, bits)
    errors[bits] = np.linalg.norm(product - exact) / np.linalg.norm(exact)

formats = {"bfloat16": 7, "TF32": 10, "float32": 23}
fig, ax = plt.subplots(figsize=(6.5, 3.4), layout="constrained")
ax.semilogy(list(errors), list(errors.values()), color="#0072b2", linewidth=2)
for name, bits in formats.items():
    ax.plot(bits, errors[bits], "o", color="#d55e00")
    ax.annotate(name, (bits, errors[bits]), (8, 8), textcoords="offset points")
    print(f"{name:9} {bits:3} bits, relative error {errors[bits]:.0e}")
ax.set(
    xlabel="bits of the factors", ylabel="relative error of the product", xlim=(4, 26), xticks=range(5, 24, 3)
)
ax.grid(alpha=0.3)

# %%
# Each bit less doubles the error. Only on the right, with nearly all bits, the roundings of the float32
# sums are larger than those of the factors. minires rounds factors only if you ask for it, for example with
# ``minires train --precision tf32``.

assert 4 < errors[7] / errors[10] < 16  # three bits: a factor of about eight
assert errors[10] < 1e-3 and errors[10] > 100 * errors[23]
print("minires knows", cublas.PRECISIONS)

# %%
# With a GPU
# ----------
#
# A tensor on the device is made with ``device="cuda"``; all operations on it run there, and ``numpy()``
# brings a result back. Nothing else changes. The next cell compares a convolution on both.

if device == "cuda":
    x, w = (rng.standard_normal(shape).astype("float32") for shape in ((4, 16, 16, 8), (3, 3, 8, 8)))
    there = conv2d(Tensor(x, device=device), Tensor(w, device=device), padding=1)
    here = conv2d(Tensor(x), Tensor(w), padding=1)
    assert there.device.startswith("cuda") and np.allclose(there.numpy(), here.numpy(), atol=1e-4)
    print("the GPU and the CPU agree to", abs(there.numpy() - here.numpy()).max())
else:
    print("no GPU here, so there is nothing to compare")

# %%
# Exercises
# ---------
#
# Replace each ``...`` and run the lesson again.

# %%
# **Exercise 1.** Write ``EACH``: the list of the places that one thread takes, out of 0 to n - 1.


def your_places(block, thread, blocks, threads, n):
    """Return a list of places."""
    ...


def of_all(blocks, threads, n):
    grid = [(block, thread) for block in range(blocks) for thread in range(threads)]
    return [list(your_places(block, thread, blocks, threads, n)) for block, thread in grid]


check("one thread takes all", lambda: of_all(1, 1, 5) == [[0, 1, 2, 3, 4]])
check("each place is taken once", lambda: sorted(sum(of_all(3, 4, 50), [])) == list(range(50)))
check(
    "neighbouring threads take neighbouring places",
    lambda: [p[0] for p in of_all(2, 4, 30)] == list(range(8)),
)
check("more threads than places", lambda: sorted(sum(of_all(2, 8, 5), [])) == list(range(5)))

# %%
# **Exercise 2.** Add a bias to pictures. ``x`` and ``y`` are arrays (N, H, W, C), laid out as flat lists;
# ``b`` has C numbers. Write what the thread for place ``i`` does. It sets ``y[i]`` and returns nothing.


def your_bias_thread(i, x, b, y):
    """Set y[i]."""
    ...


def with_bias(shape):
    """Your y, and the right one, for threads in any order."""
    rng = np.random.default_rng(1)
    x, b = rng.standard_normal(shape), rng.standard_normal(shape[-1])
    y = np.full(x.size, np.nan)
    for i in rng.permutation(x.size):
        your_bias_thread(i, x.ravel(), b, y)
    return y.reshape(shape), x + b


check("one pixel", lambda: np.allclose(*with_bias((1, 1, 1, 4))))
check("pictures", lambda: np.allclose(*with_bias((2, 3, 5, 4))))

# %%
# **Exercise 3.** A step was captured that reads the array ``fixed``. Bring the next batch to where it
# reads. The function returns nothing.


def your_next_batch(fixed, batch):
    """Make the captured step read the numbers of batch."""
    ...


def replayed(*batches):
    """What the captured step, doubling, gives for each batch."""
    fixed, y, results = np.zeros(3), np.zeros(3), []
    graph = [lambda: np.multiply(fixed, 2, out=y)]
    for batch in batches:
        your_next_batch(fixed, np.array(batch))
        for repeat in graph:
            repeat()
        results.append(y.tolist())
    return results


check("the step sees the batch", lambda: replayed([1.0, 2.0, 3.0]) == [[2.0, 4.0, 6.0]])
check("and the next one", lambda: replayed([1.0, 2.0, 3.0], [5.0, 0.0, 1.0])[1] == [10.0, 0.0, 2.0])

# %%
# What you now know
# -----------------
#
# - A kernel is the body of a loop; blocks and threads share the places out, in no order.
# - No two threads write to one place. Sums go through a tree, with a barrier between its rounds.
# - Neighbouring threads should read neighbouring numbers: with channels last, neighbouring channels.
# - A launch has a fixed price, so operations are fused and a whole step is captured and replayed.
# - Each bit less in the factors of a product doubles its error.

"""
12 · Fast on the CPU: one convolution in five steps
===================================================

You write one convolution five times, from plain loops to what minires does, and see what each step gains.

The task is that of lesson 03. What changes is the order in which the arithmetic is done, where its numbers
lie, and who does it. Every version is compared with the right result first and timed after that. The times on
this page are those of the machine that made it, and of that moment; run the lesson to see yours.
"""

# %%
# The lesson needs the threads of ``minires/backend/`` and the files in which minires convolves. Numba
# compiles Python functions. minires works without it, more slowly, and so does this lesson.

import time
from functools import partial

import matplotlib.pyplot as plt
import numpy as np

from minires import Tensor, backend, ops
from minires.exercises import check
from minires.inspect import summarize
from minires.nn import Conv2d, Sequential
from minires.ops.conv2d import columns as by_columns
from minires.ops.conv2d import conv2d, direct, winograd
from minires.ops.window import window

print("threads:", backend.threads(), " Numba:", "yes" if backend.HAS_NUMBA else "no")

# %%
# The task
# --------
#
# A 3x3 convolution with 64 channels in and out, as in the first stage of a ResNet, on 16 pictures of 32x32.
# The unit is GFLOP/s: a thousand million floating-point operations a second. A multiply-add counts as two
# operations.

rng = np.random.default_rng(0)
x = rng.standard_normal((16, 32, 32, 64)).astype("float32")
w = rng.standard_normal((3, 3, 64, 64)).astype("float32")
padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
y_shape = (16, 32, 32, 64)
y = np.zeros(y_shape, "float32")
operations = 2 * np.prod(y_shape) * 3 * 3 * 64
print("operations:", f"{operations:,}")

# %%
# The right result comes from the matrix product of lesson 03 in float64. A version may differ from it by
# roundings only. Each is run until a fifth of a second has gone by, and the best time counts: whatever else
# the machine does can only make a run slower.


def columns_of(lines, oh):
    """(N, OH + 2, OW + 2, C) -> (N*OH*OW, 9*C)."""
    n, _, width, channels = lines.shape
    columns = np.empty((n, oh, width - 2, 3, 3, channels), lines.dtype)
    for kh in range(3):
        for kw in range(3):
            columns[:, :, :, kh, kw] = lines[:, kh : kh + oh, kw : kw + width - 2]
    return columns.reshape(-1, 9 * channels)


right = (columns_of(padded.astype("float64"), 32) @ w.reshape(-1, 64)).reshape(y_shape)


def is_right(y):
    return abs(y - right).max() < 1e-4 * abs(right).max()


def best_seconds(run):
    times, start = [], time.perf_counter()
    while not times or time.perf_counter() - start < 0.2:
        before = time.perf_counter()
        run()
        times.append(time.perf_counter() - before)
    return min(times)


gflops = {}


def measure(name, run):
    """Time ``run``, which writes its result into ``y``."""
    y[...] = 0
    run()  # this also compiles what is to be compiled, before the clock runs
    assert is_right(y), name
    gflops[name] = operations / best_seconds(run) / 1e9
    print(f"{name:28} {gflops[name]:9.3f} GFLOP/s")


# %%
# Step 1: loops
# -------------
#
# The loops of lesson 03. Python takes so long for the whole task that only two places are computed and
# timed here; the rate in GFLOP/s is that of these two.


def loops(padded, w, y, places):
    """Convolve at the first ``places`` of the first line of the first picture."""
    for j in range(places):
        for o in range(w.shape[3]):
            total = 0.0
            for kh in range(3):
                for kw in range(3):
                    for c in range(w.shape[2]):
                        total += padded[0, kh, j + kw, c] * w[kh, kw, c, o]
            y[0, 0, j, o] = total


start = time.perf_counter()
loops(padded, w, y, 2)
rate = operations * 2 / (16 * 32 * 32) / (time.perf_counter() - start) / 1e9
assert np.allclose(y[0, 0, :2], right[0, 0, :2], atol=1e-3)
gflops["1 loops"] = rate
print(f"1 loops: {rate:.4f} GFLOP/s, so the whole task would take {operations / rate / 1e9:.0f} s")

# %%
# Most of that time Python spends on finding out what ``+`` and ``*`` mean this time, and on objects for
# single numbers. A compiler does that once. ``@kernel`` has Numba compile a function for the types that it
# is called with. Here are the same loops, compiled, around all places.


def all_loops(padded, w, y):
    for n in range(y.shape[0]):
        for i in range(y.shape[1]):
            for j in range(y.shape[2]):
                for o in range(y.shape[3]):
                    total = 0.0
                    for kh in range(3):
                        for kw in range(3):
                            for c in range(w.shape[2]):
                                total += padded[n, i + kh, j + kw, c] * w[kh, kw, c, o]
                    y[n, i, j, o] = total


if backend.HAS_NUMBA:
    compiled = backend.kernel(all_loops)
    measure("  the same loops, compiled", lambda: compiled(padded, w, y))
else:
    print("Numba is not installed: the compiled loops are left out")

# %%
# Step 2: one large matrix product
# --------------------------------
#
# Compiled loops still add one number after the other, and the next number of ``w`` that they need lies a
# whole row of ``w`` further on. A library for matrix products (BLAS; NumPy brings one) does better. It uses
# vector instructions, keeps a tile of sums in registers, and goes through memory in an order that suits the
# caches. So make the columns and multiply.
#
# BLAS has threads of its own. ``parallel_calls`` of ``minires/backend/`` runs a list of functions at once
# and holds BLAS to one thread inside them. With a list of one this step and the next run on one core, and
# can be compared.

assert w.strides[2] == w.shape[3] * w.itemsize  # from one input channel to the next


def one_product():
    y[...] = (columns_of(padded, 32) @ w.reshape(-1, 64)).reshape(y_shape)


measure("2 one large product", lambda: backend.parallel_calls([one_product]))
columns = columns_of(padded, 32)
print(f"the columns take {columns.nbytes / 2**20:.0f} MiB, x itself {x.nbytes / 2**20:.0f} MiB")
assert columns.nbytes == 9 * x.nbytes

# %%
# Step 3: blocks that stay in the cache
# -------------------------------------
#
# The columns are nine times as large as ``x``, too large for a core's own cache. They are written to
# memory, and the product reads them from there again. It is better to make the columns of a few lines of
# the output, multiply them while they are still in the cache, and go on with the next few.


def in_blocks(first, last, lines=8):
    """Convolve the pictures first..last, a few lines of the output at a time."""
    matrix = w.reshape(-1, 64)
    for n in range(first, last):
        for i in range(0, 32, lines):
            columns = columns_of(padded[n : n + 1, i : i + lines + 2], lines)
            np.matmul(columns, matrix, out=y[n, i : i + lines].reshape(-1, 64))


measure("3 in blocks", lambda: backend.parallel_calls([lambda: in_blocks(0, 16)]))
block = columns_of(padded[:1, :10], 8)
print(f"the columns of a block take {block.nbytes / 2**20:.2f} MiB")

# %%
# Step 4: threads
# ---------------
#
# Give each core some of the pictures. Its thread does everything for them, the copying and the product.
# ``parallel_for`` cuts ``range(16)`` into one part per thread, and again BLAS uses one thread inside: a
# second layer of threads would fight with the first one for the cores.
#
# The threads write to one array ``y``, yet never to the same number, since each has pictures of its own.
# Work that is cut along the output needs no lock.

measure("4 in blocks, on threads", lambda: backend.parallel_for(in_blocks, 16))

# %%
# Step 5: what minires does
# -------------------------
#
# The copying to columns is a loop compiled by Numba there, and for some layers there is something better
# than columns. More on that below.


def own():
    y[...] = conv2d(Tensor(x), Tensor(w), padding=1).numpy()


measure("5 minires", own)
assert gflops["5 minires"] > 50 * gflops["1 loops"]
print(f"minires / loops: {gflops['5 minires'] / gflops['1 loops']:,.0f}")

# %%
# Compare with a limit: how fast is the matrix product alone, with a block that lies in the cache already,
# on all threads? A version that has to make columns first stays below that, but for the noise of measuring.
# The picture shows all versions and the limit. Its axis is logarithmic: from one line of the grid to the
# next it is a factor of ten. If a step gains nothing with you, look whether something else keeps the cores
# busy.


def products_alone(first, last):
    for n in range(first, last):
        for i in range(0, 32, 8):
            np.matmul(block, w.reshape(-1, 64), out=y[n, i : i + 8].reshape(-1, 64))


limit = operations / best_seconds(lambda: backend.parallel_for(products_alone, 16)) / 1e9
print(f"the product alone: {limit:.0f} GFLOP/s")

fig, ax = plt.subplots(figsize=(8, 3.4), layout="constrained")
labels = [f"{name}: {value:.2g}" for name, value in gflops.items()]
ax.barh(labels, list(gflops.values()), color="#0072b2")
ax.axvline(limit, color="#d55e00", linestyle="--", linewidth=2, label="the matrix product alone")
ax.set(xscale="log", xlim=(min(gflops.values()) / 3, 3 * max(limit, *gflops.values())))
ax.set(xlabel="GFLOP/s (operations of the direct way)", title="one convolution, five steps")
ax.grid(axis="x", alpha=0.3)
ax.invert_yaxis()
ax.legend(loc="upper center")

# %%
# How large should a block be?
# ----------------------------
#
# Small blocks mean many calls, and products too small for BLAS to be fast. Large blocks no longer fit into
# a core's cache. The next picture shows step 4 with blocks from one line up to a whole picture. Look for
# the best place on your machine. minires chooses blocks that fit into a core's second-level cache.

lines_of_block = [1, 2, 4, 8, 16, 32]
rates = []
for lines in lines_of_block:
    run = partial(backend.parallel_for, partial(in_blocks, lines=lines), 16)
    y[...] = 0
    run()
    assert is_right(y)
    rates.append(operations / best_seconds(run) / 1e9)
sizes = [lines * 32 * 9 * 64 * 4 / 2**20 for lines in lines_of_block]
fig, ax = plt.subplots(figsize=(6, 3.2), layout="constrained")
ax.plot(sizes, rates, "o-", color="#0072b2", linewidth=2)
ax.set_xscale("log", base=2)
ax.set_xticks(sizes, [f"{size:.2f}" for size in sizes])
ax.set(xlabel="columns of a block (MiB)", ylabel="GFLOP/s", ylim=(0, None), title="step 4, by size of block")

# %%
# Fewer multiplications
# ---------------------
#
# minires can get above the limit of the first picture, as it may do fewer multiplications. Winograd (1980)
# found that two neighbouring outputs of a filter with three taps need four products in place of six. With
# four inputs ``d`` and the filter ``g``::
#
#     y = A^T [(G g) * (B^T d)]          * is place by place: four products
#
# ``B^T`` and ``A^T`` only add and subtract. ``G g`` is computed once for the whole batch.

B_T = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
A_T = np.array([[1, 1, 1, 0], [0, 1, -1, -1]])
d, g = rng.standard_normal(4), rng.standard_normal(3)
products = (winograd.G @ g) * (B_T @ d)
print(products.size, "products give", A_T @ products, "=", np.correlate(d, g, "valid"))
assert products.size == 4 and np.allclose(A_T @ products, np.correlate(d, g, "valid"))

# %%
# Along both axes that makes 4 x 4 = 16 products for 2 x 2 outputs, where the direct way needs 36. Summed
# over the channels, each of the 16 is a matrix product (Lavin and Gray 2015). The price is the transforms
# before and after.

saving = (2 * 2 * 3 * 3) / (4 * 4)
assert saving == 2.25
print("fewer products by a factor of", saving)

# %%
# No way is the best for all
# --------------------------
#
# minires has three: columns (``conv2d/columns.py``), sums in registers without columns
# (``conv2d/direct.py``), and Winograd (``conv2d/winograd.py``). With few channels the columns cost as much
# as their product. With many, BLAS or Winograd pays. A 1x1 convolution is a product already. The next
# picture shows all that can do a layer, for four layers. Which one is taken is decided in
# ``conv2d/choose.py``, by rules that come from measurements like this, and told by ``conv2d.way``.

layers = {  # (N, H, W, C), (KH, KW, C, O), stride, padding
    "3x3, 16 -> 16": ((32, 32, 32, 16), (3, 3, 16, 16), 1, 1),
    "3x3, 64 -> 64": ((16, 32, 32, 64), (3, 3, 64, 64), 1, 1),
    "1x1, 256 -> 64": ((32, 16, 16, 256), (1, 1, 256, 64), 1, 0),
    "7x7, 3 -> 64, /2": ((16, 64, 64, 3), (7, 7, 3, 64), 2, 3),
}
for name, (x_shape, w_shape, stride, padding) in layers.items():
    taken = ops.conv2d.way(x_shape, w_shape, stride=stride, padding=padding)
    print(f"{name:18}", taken.forward.name)

ways = {
    "columns": by_columns.forward,
    "direct": direct.forward,
    "Winograd": winograd.forward,
}


def rate_of(way, x_shape, w_shape, stride, padding):
    """GFLOP/s of a way that can do the layer."""
    x, w = (rng.standard_normal(shape).astype("float32") for shape in (x_shape, w_shape))
    win = window("conv2d", x_shape[1:3], w_shape[:2], stride, padding)
    expected = conv2d(Tensor(x), Tensor(w), stride=stride, padding=padding).numpy()
    assert np.allclose(way(x, w, None, False, win, 1), expected, atol=1e-2)
    amount = 2 * expected.size * w[..., 0].size
    return amount / best_seconds(lambda: way(x, w, None, False, win, 1)) / 1e9


fig, ax = plt.subplots(figsize=(8, 3.6), layout="constrained")
if backend.HAS_NUMBA:
    styles = zip(ways.items(), ("#0072b2", "#e69f00", "#009e73"), ("", "//", ".."), strict=True)
    for number, ((name, way), color, hatch) in enumerate(styles):
        able = [k for k, layer in enumerate(layers.values()) if name != "Winograd" or layer[1][0] == 3]
        rates = [rate_of(way, *list(layers.values())[k]) for k in able]
        bars = ax.bar([k + 0.27 * (number - 1) for k in able], rates, 0.25, color=color, hatch=hatch)
        bars.set_label(name)
        ax.bar_label(bars, [f"{rate:.0f}" for rate in rates])
    ax.legend()
else:
    ax.text(0.5, 0.5, "these ways need Numba", ha="center", transform=ax.transAxes)
ax.set_xticks(range(len(layers)), layers)
ax.set(xlabel="layer: window, channels -> outputs, /stride", ylabel="GFLOP/s", title="three ways")
ax.margins(y=0.1)

# %%
# Exercises
# ---------
#
# Replace each ``...`` and run the lesson again.

# %%
# **Exercise 1.** Count the multiply-accumulates (MACs) of a convolution of one picture with padding
# ``"same"``: ``size`` rows and columns, a window of ``kernel`` x ``kernel``, ``channels`` in, ``outputs``
# out, and a stride that divides the size.


def your_macs(size, kernel, channels, outputs, stride):
    """Return how many MACs there are."""
    ...


def is_count_right(size, kernel, channels, outputs, stride):
    rng = np.random.default_rng(0)
    layer = Conv2d(channels, outputs, kernel, stride=stride, padding="same", bias=False, rng=rng)
    counted = summarize(Sequential(conv=layer), (size, size, channels)).macs
    return your_macs(size, kernel, channels, outputs, stride) == counted


check("1x1, one channel", lambda: is_count_right(4, 1, 1, 1, 1))
check("3x3, several channels", lambda: is_count_right(4, 3, 2, 5, 1))
check("stride 2", lambda: is_count_right(32, 3, 16, 32, 2))

# %%
# **Exercise 2.** Multiply ``a @ b`` in blocks of at most ``rows`` rows of ``a``, for any number of rows of
# ``a``. Call ``product(block, b)`` for each block, in place of ``block @ b``, and return the whole result.
# The checks look at the blocks that you gave to ``product``.


def your_product_in_blocks(product, a, b, rows):
    """Return a @ b."""
    ...


def tried(m, rows):
    """Whether the result is right, and the number of rows of each block."""
    sizes = []

    def product(block, b):
        sizes.append(len(block))
        return block @ b

    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((m, 5)), rng.standard_normal((5, 3))
    result = your_product_in_blocks(product, a, b, rows)
    return result.shape == (m, 3) and np.allclose(result, a @ b), sizes


check("12 rows in blocks of 4", lambda: tried(12, 4)[0])
check("14 rows in blocks of 4", lambda: tried(14, 4)[0])
check("no block is larger than allowed", lambda: 0 < max(tried(14, 4)[1]) <= 4)
check("no row is computed twice", lambda: sum(tried(14, 4)[1]) == 14)

# %%
# **Exercise 3.** Winograd's way for ``m`` outputs of a filter with ``r`` taps needs ``m + r - 1`` products
# along one axis. By what factor does it save multiplications in two dimensions?


def your_saving(m, r):
    """Return direct products / Winograd's products, for m x m outputs and r x r taps."""
    ...


check("F(2x2, 3x3)", lambda: your_saving(2, 3) == 2.25)
check("one output at a time saves nothing", lambda: your_saving(1, 3) == 1)
check("a 1x1 window saves nothing", lambda: your_saving(4, 1) == 1)
check("the saving grows with m, but never to r x r", lambda: your_saving(2, 3) < your_saving(4, 3) < 9)

# %%
# What you now know
# -----------------
#
# - The same arithmetic runs at very different speeds: compiled code, vector instructions, caches and cores
#   decide.
# - Columns in blocks stay in the cache; the columns of a whole batch do not.
# - One layer of threads: each thread has a part of the output and a BLAS of one thread.
# - Above the rate of the plain product leads only less arithmetic: Winograd's way for 3x3.
# - Which way is the best depends on the layer, and only a measurement tells.
